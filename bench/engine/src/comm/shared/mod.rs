//! The transport `shared`: ranks on one host exchange through memory that all of them see.
//!
//! One algorithm serves threads (a private mapping) and processes (an inherited memfd): `region` is the memory,
//! `rendezvous` how ranks meet in it, `exchange` and `collective` what they do there, `ledger` what it moved.
//! Collectives run on the communication stream of the rank's device, so at most one per rank is under way at a time.
mod collective;
mod exchange;
mod layout;
pub(crate) mod ledger;
mod mailbox;
mod number;
mod region;
mod rendezvous;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use self::exchange::{Exchange, invalid};
use self::ledger::Ledger;
use self::rendezvous::{Lane, Meeting, announced};
use crate::backend::{Backend, BackendError, Event, HostMemory, HostTask, Result, Stream};
use crate::comm::{
    Aborter, Collective, CollectiveCall, Communicator, Count, HostCall, Reduce, chunk,
};
use crate::probe::now_ns;
use crate::tensor::Span;

pub use self::region::{DEFAULT_SLOT_BYTES, MAX_WORLD, Region, RegionError};
pub use self::rendezvous::{CommError, Waiting};

/// Name of this transport's algorithm in records.
pub const ALGORITHM: &str = "shared-direct";

/// One rank's end of a region: what runs on the stream's thread.
struct Endpoint {
    region: Arc<Region>,
    rank: usize,
    waiting: Waiting,
    /// Only the stream's thread locks it within a step, so the lock is never contended there.
    ledger: Mutex<Ledger>,
    failure: OnceLock<String>,
}

impl Endpoint {
    fn meeting(&self) -> Meeting<'_> {
        Meeting {
            region: &self.region,
            rank: self.rank,
            waiting: self.waiting,
        }
    }

    fn fail(&self, error: &CommError) -> String {
        let text = error.to_string();
        let _ = self.failure.set(text.clone());
        text
    }
}

impl HostTask for Endpoint {
    fn run(&self, memory: &HostMemory, call: HostCall) -> std::result::Result<(), String> {
        let HostCall::Collective(call) = call else {
            return Err("a communicator cannot run a copy between devices".into());
        };
        let begin = now_ns();
        // SAFETY: the stream runs one task at a time, after the event that the caller named, and whoever uses the
        // spans next waits for the event of this task.
        let done = unsafe { Exchange::new(self.meeting(), call).run(memory) };
        let tally = done.map_err(|error| self.fail(&error))?;
        // Alone, a rank exchanges nothing, so there is nothing to enter.
        if self.region.world_size() > 1 {
            let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.enter(&call, tally, now_ns() - begin);
        }
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // The last handle goes when the stream has no call of this rank left, so nobody waits for a call that would
        // still have come.
        self.region.depart(self.rank);
    }
}

/// A rank of the transport `shared`.
pub struct SharedCommunicator {
    endpoint: Arc<Endpoint>,
    task: Arc<dyn HostTask>,
}

impl SharedCommunicator {
    /// Joins `region` as `rank`. Each rank may join once.
    ///
    /// # Errors
    /// [`CommError::Invalid`] when the region has no such rank.
    pub fn join(
        region: Arc<Region>,
        rank: usize,
        waiting: Waiting,
    ) -> std::result::Result<Self, CommError> {
        if rank >= region.world_size() {
            let problem = format!(
                "rank {rank} is not below the world size {}",
                region.world_size()
            );
            return Err(CommError::Invalid {
                call: "join",
                problem,
            });
        }
        let ledger = Mutex::new(Ledger::new(ALGORITHM));
        let endpoint = Arc::new(Endpoint {
            region,
            rank,
            waiting,
            ledger,
            failure: OnceLock::new(),
        });
        Ok(Self {
            task: Arc::clone(&endpoint) as Arc<dyn HostTask>,
            endpoint,
        })
    }

    /// All ranks of a new region for threads of this process.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn for_threads(
        world: usize,
        waiting: Waiting,
    ) -> std::result::Result<Vec<Self>, RegionError> {
        let region = Arc::new(Region::for_threads(world, DEFAULT_SLOT_BYTES)?);
        let join = |rank| {
            Self::join(Arc::clone(&region), rank, waiting)
                .expect("every rank is below the world size")
        };
        Ok((0..world).map(join).collect())
    }

    /// The memory that the ranks share.
    pub fn region(&self) -> &Arc<Region> {
        &self.endpoint.region
    }

    fn check(&self, call: &CollectiveCall) -> std::result::Result<(), CommError> {
        let (world, rank) = (self.world_size(), self.rank());
        let CollectiveCall {
            collective,
            from,
            to,
            root,
            ..
        } = *call;
        let wrong = |problem: String| Err(invalid(collective, &problem));
        if root >= world {
            return wrong(format!(
                "root or peer {root} is not below the world size {world}"
            ));
        }
        if from.dtype() != to.dtype() {
            return wrong(format!(
                "from holds {:?}, to {:?}",
                from.dtype(),
                to.dtype()
            ));
        }
        if matches!(call.reduce, Reduce::ScaledSum(_)) && from.dtype() != crate::tensor::Dtype::F32
        {
            return wrong("only floats can be scaled".into());
        }
        let lengths = match collective {
            Collective::Barrier => true,
            Collective::Broadcast | Collective::Reduce | Collective::AllReduce => from == to,
            Collective::AllGather => to.len() == from.len() * world,
            Collective::ReduceScatter => to.len() == chunk(from.len(), world, rank).len(),
            Collective::Scatter => rank != root || to.len() == chunk(from.len(), world, rank).len(),
            Collective::Gather => rank != root || from.len() == chunk(to.len(), world, rank).len(),
            Collective::Send | Collective::Receive => root != rank,
            Collective::Copy => false,
        };
        if !lengths {
            return wrong(format!(
                "from {} to {} elements on rank {rank} of {world}",
                from.len(),
                to.len()
            ));
        }
        let in_place = matches!(
            collective,
            Collective::Broadcast | Collective::Reduce | Collective::AllReduce
        );
        let one_sided = matches!(
            collective,
            Collective::Barrier | Collective::Send | Collective::Receive
        );
        if !in_place && !one_sided && overlap(from, to) {
            return wrong("from and to overlap".into());
        }
        Ok(())
    }
}

fn overlap(a: Span, b: Span) -> bool {
    let apart = a.start() + a.len() <= b.start() || b.start() + b.len() <= a.start();
    a.arena() == b.arena() && !a.is_empty() && !b.is_empty() && !apart
}

impl Communicator for SharedCommunicator {
    fn rank(&self) -> usize {
        self.endpoint.rank
    }

    fn world_size(&self) -> usize {
        self.endpoint.region.world_size()
    }

    fn enqueue(
        &mut self,
        backend: &mut dyn Backend,
        call: CollectiveCall,
        after: Event,
    ) -> Result<Event> {
        self.check(&call)
            .map_err(|error| BackendError::Communication(error.to_string()))?;
        let after = backend.completion(after);
        backend.enqueue_host(
            Stream::Communication,
            &after,
            &self.task,
            HostCall::Collective(call),
        )
    }

    fn barrier(&mut self) -> Result<()> {
        let met = self
            .endpoint
            .meeting()
            .meet(Lane::Host, &|| "barrier".to_owned());
        met.map(|_| ())
            .map_err(|error| BackendError::Communication(self.endpoint.fail(&error)))
    }

    fn agree(&mut self, value: u64) -> Result<u64> {
        let meeting = self.endpoint.meeting();
        let parity = (meeting.round(Lane::Host) & 1) as usize;
        self.endpoint.region.line(self.endpoint.rank).word[parity].store(value, Ordering::Relaxed);
        self.barrier()?;
        // Two barriers later rank 0 may write this word again; before that it has to meet this rank once more.
        Ok(announced(&self.endpoint.region.line(0).word, parity))
    }

    fn counts(&self) -> Vec<Count> {
        self.endpoint
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .counts()
    }

    fn reset_counts(&mut self) {
        self.endpoint
            .ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
    }

    fn aborter(&self) -> Aborter {
        let (region, rank) = (Arc::clone(&self.endpoint.region), self.endpoint.rank);
        Aborter(Arc::new(move |reason| region.abort(Some(rank), reason)))
    }

    fn failure(&self) -> Option<String> {
        let aborted = || Some(self.endpoint.meeting().refuse_aborted().err()?.to_string());
        self.endpoint.failure.get().cloned().or_else(aborted)
    }
}
