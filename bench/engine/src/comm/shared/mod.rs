//! The transport `shared`: ranks on one host exchange through memory that all of them see.
//!
//! One algorithm serves threads (a private mapping) and processes (an inherited memfd): `region` is the memory,
//! `rendezvous` how ranks meet in it, `exchange` and `collective` what they do there, `ledger` what it moved.
//! Collectives run on the communication stream of the rank's device, so at most one per rank is under way at a time.
mod collective;
mod exchange;
mod layout;
mod mailbox;
mod region;
mod rendezvous;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::exchange::Exchange;
use self::rendezvous::{Lane, Meeting, announced};
use crate::backend::{Backend, BackendError, Event, HostMemory, HostTask, Result, Stream};
use crate::comm::algorithm::check;
use crate::comm::fault::Fault;
use crate::comm::ledger::Books;
use crate::comm::{Aborter, CollectiveCall, Communicator, Count, HostCall, Seen, Watch};
use crate::probe::now_ns;

pub use self::region::{DEFAULT_SLOT_BYTES, MAX_WORLD, Region, RegionError};
pub use crate::comm::error::{CommError, Waiting};

/// Name of this transport's algorithm in records.
pub const ALGORITHM: &str = "shared-direct";

/// One rank's end of a region: what runs on the stream's thread.
struct Endpoint {
    region: Arc<Region>,
    rank: usize,
    waiting: Waiting,
    books: Books,
    fault: Fault,
}

impl Endpoint {
    fn meeting(&self) -> Meeting<'_> {
        Meeting {
            region: &self.region,
            rank: self.rank,
            waiting: self.waiting,
            fault: &self.fault,
        }
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
        let tally = done.map_err(|error| self.books.fail(&error))?;
        // Alone, a rank exchanges nothing, so there is nothing to enter.
        if self.region.world_size() > 1 {
            self.books.ledger().enter(&call, tally, now_ns() - begin);
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
        let endpoint = Arc::new(Endpoint {
            region,
            rank,
            waiting,
            books: Books::new(ALGORITHM),
            fault: Fault::default(),
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

    /// Lets a test stop this rank in the midst of a call; see [`Fault`].
    #[doc(hidden)]
    pub fn fault(&self) -> Fault {
        self.endpoint.fault.clone()
    }

    /// The memory that the ranks share.
    pub fn region(&self) -> &Arc<Region> {
        &self.endpoint.region
    }
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
        check(&call, self.rank(), self.world_size())
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
            .map_err(|error| BackendError::Communication(self.endpoint.books.fail(&error)))
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
        self.endpoint.books.ledger().counts()
    }

    fn reset_counts(&mut self) {
        self.endpoint.books.ledger().reset();
    }

    fn aborter(&self) -> Aborter {
        let (region, rank) = (Arc::clone(&self.endpoint.region), self.endpoint.rank);
        Aborter(Arc::new(move |reason| region.abort(Some(rank), reason)))
    }

    fn failure(&self) -> Option<String> {
        let aborted = || Some(self.endpoint.meeting().refuse_aborted().err()?.to_string());
        self.endpoint.books.failure().or_else(aborted)
    }
    fn watch(&self) -> Watch {
        // Not the endpoint: this rank departs when that is dropped.
        let (region, own) = (Arc::clone(&self.endpoint.region), self.endpoint.rank);
        Watch(Arc::new(move || {
            let aborted = region.aborted();
            let others = (0..region.world_size()).filter(|rank| *rank != own);
            Seen {
                failure: aborted.map(|(by, reason)| CommError::Aborted { by, reason }.to_string()),
                left: others.filter(|rank| region.has_departed(*rank)).collect(),
            }
        }))
    }
}
