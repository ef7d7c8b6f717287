//! The transport `nccl`: ranks that each have a GPU exchange by NVIDIA's own library, over NVLink, PCIe or the network.
//!
//! Ranks may be threads of one process or processes, on one host or several; each GPU has one rank, but for [`one_gpu`]. They have met
//! before over another transport, which stays their control plane: barriers, agreement, and who is gone. `identity` is how they find each
//! other in NCCL over it and `connect` how they come together there; `transfer` is what a call is made of, `library` NCCL itself,
//! `session` who may use it and how it is aborted, `record` what was called, `captured` what is called again by CUDA graphs, `device` what is
//! needed of a GPU.
//!
//! Contract: every rank makes the same calls in the same order. NCCL does not compare them, and waits for ever for one that does not
//! come; ranks compare what they have called, but for sends and receives, at every barrier. A send may wait for its receive. Every rank
//! gets the same bits; which these are NCCL's algorithm decides, so they are not those of another transport, whose sums go in rank order.
//! In half precision the factor of a scaled sum is rounded to half precision too. NCCL's maximum of a NaN and a number is the number.
//! Reference: NCCL user guide, <https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/>.
mod captured;
mod connect;
mod device;
mod environment;
#[cfg(test)]
mod fake;
mod identity;
mod interface;
mod library;
mod links;
mod record;
mod session;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

pub use self::environment::one_gpu;
pub use self::interface::{Carried, carried};
pub use self::links::NcclLinks;

use self::captured::CapturedCalls;
use self::device::Device;
use self::library::{Nccl, Operators};
use self::record::Record;
use self::session::{End, Owner, Session};
use self::transfer::{Place, is_grouped, transfers};
use crate::backend::{Backend, BackendError, Captured, Event, Result};
use crate::comm::algorithm::check;
use crate::comm::error::CommError;
use crate::comm::signature::Signature;
use crate::comm::{Aborter, Collective, CollectiveCall, Communicator, Count, Watch};
use crate::tensor::Span;

/// Name of this transport's algorithm in records: which one NCCL took it does not say.
pub const ALGORITHM: &str = "nccl";

/// A rank of the transport `nccl`.
pub struct NcclCommunicator {
    // The session needs the job to end well, so it goes first.
    connected: Option<Connected>,
    control: Box<dyn Communicator>,
    /// Found when it is needed, unless a test has put one here.
    nccl: Option<Arc<dyn Nccl>>,
    record: Record,
    calls: Calls,
    captured: CapturedCalls,
}

/// What there is once NCCL is connected.
struct Connected {
    session: Arc<Session>,
    operators: Operators,
    scratch: Span,
    version: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.session.close();
    }
}

/// What a rank has called, for the others to compare.
#[derive(Default)]
struct Calls {
    digest: u64,
    number: u64,
    /// Graphs with calls in them that were launched.
    launches: u64,
    last: Option<Signature>,
}

impl Calls {
    fn add(&mut self, call: &CollectiveCall) {
        // Point to point, ranks differ; of a scatter or gather only the root knows the total.
        let elements = match call.collective {
            Collective::Send | Collective::Receive => return,
            Collective::Scatter | Collective::Gather => 0,
            _ => call.from.len(),
        };
        let (root, dtype) = (call.root, call.from.dtype());
        let signature = Signature::new(call.collective, root, dtype, call.reduce, elements);
        self.mix(signature.0);
        self.number += 1;
        self.last = Some(signature);
    }

    /// FNV-1a, by words.
    fn mix(&mut self, word: u64) {
        self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3);
    }

    fn describe(&self) -> String {
        let Some(last) = self.last else {
            return "no collective".into();
        };
        let within = match self.launches {
            0 => String::new(),
            1 => ", with those of one graph".to_owned(),
            launches => format!(", with those of {launches} graphs"),
        };
        format!(
            "{} collectives{within}, the last {}",
            self.number,
            last.describe()
        )
    }
}

impl NcclCommunicator {
    /// A rank of the job that `control` has met; NCCL is connected by [`NcclCommunicator::connect`], or by the first call.
    pub fn new(control: Box<dyn Communicator>) -> Self {
        Self {
            connected: None,
            control,
            nccl: None,
            record: Record::default(),
            calls: Calls::default(),
            captured: CapturedCalls::default(),
        }
    }

    /// Connects NCCL, unless it is. Every rank must do so, on its own thread. Blocks until all have.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where `backend` is no GPU's, [`BackendError::Library`] without NCCL, or what NCCL or another rank
    /// says. A rank that cannot go on ends the job of all.
    pub fn connect(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let met = match backend.cuda() {
            Some(device) => self.meet(device),
            None => Err(BackendError::Unsupported("NCCL without a GPU")),
        };
        self.report(met)
    }

    /// The version of NCCL, such as 2.28.9; none before it is connected.
    pub fn version(&self) -> Option<String> {
        let connected = self.connected.as_ref()?;
        Some(identity::dotted(connected.version))
    }

    fn meet(&mut self, device: &mut dyn Device) -> Result<()> {
        if self.connected.is_some() {
            return Ok(());
        }
        if self.captured.is_open() {
            return Err(BackendError::Unsupported(
                "connecting NCCL in a step that is captured",
            ));
        }
        let nccl = match &self.nccl {
            Some(nccl) => Arc::clone(nccl),
            None => library::load()?,
        };
        let version = nccl.version().map_err(BackendError::Communication)?;
        let scratch = device.scratch()?;
        let id = identity::exchange(&mut *self.control, &*nccl)?;
        let handle = connect::connect(&nccl, id, &*self.control, device.enter())?;
        let end = End {
            handle,
            loss: device.loss(),
            name: format!("rank {}", self.control.rank()),
        };
        let owner = Owner {
            watch: self.control.watch(),
            aborter: self.control.aborter(),
            rank: self.control.rank(),
        };
        let session = Session::start(nccl, [end].into(), owner, device.enter())?;
        self.connected = Some(Connected {
            session,
            operators: Operators::default(),
            scratch,
            version,
        });
        // Whoever returns from here knows that all others are connected.
        self.control.barrier()
    }

    /// A failure of this rank ends the job of all.
    fn report<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.control.aborter().abort(&error.to_string()))
    }

    fn enqueue_on(
        &mut self,
        device: &mut dyn Device,
        call: CollectiveCall,
        after: Event,
    ) -> Result<Event> {
        if let Some(reason) = self.failure() {
            return Err(BackendError::Communication(reason));
        }
        let met = self.meet(device);
        self.report(met)?;
        let (rank, world) = (self.rank(), self.world_size());
        let connected = self.connected.as_mut().expect("just connected");
        let Connected {
            session,
            operators,
            scratch,
            ..
        } = connected;
        let (event, interval) = device.enqueue(after, &mut |target| {
            let place = Place {
                rank,
                world,
                from: (target.address)(used(&call, rank).0),
                to: (target.address)(used(&call, rank).1),
                scratch: (target.address)(*scratch),
            };
            session.call(|nccl, ends| {
                let comm = ends[0].handle;
                // SAFETY: the session has the communicator used by this thread alone; `check` has passed the call, whose spans are the
                // device's, and whoever uses them next waits for the event of this call.
                unsafe {
                    let operator = operators.of(nccl, comm, call.from.dtype(), call.reduce)?;
                    let grouped = is_grouped(&call, world);
                    if grouped {
                        nccl.group_start()?;
                    }
                    let done = transfers(&call, &place, operator, &mut |transfer| {
                        nccl.transfer(comm, target.stream, &transfer)
                    });
                    // A group that was begun is ended, whatever happened in it.
                    let ended = if grouped { nccl.group_end() } else { Ok(()) };
                    done.and(ended)
                }
            })
        })?;
        if self.captured.take(&call) {
            return Ok(event);
        }
        session.follow(0, &call, interval.clone(), None);
        self.calls.add(&call);
        // Alone, a rank exchanges nothing, so there is nothing to enter.
        if world > 1 {
            self.record.enter(&call, Some(interval));
        }
        Ok(event)
    }

    /// Compares what all ranks have called with what rank 0 has. Blocks until all ranks are here.
    fn compare(&mut self) -> Result<()> {
        if self.control.agree(self.calls.digest)? == self.calls.digest {
            return Ok(());
        }
        let error = CommError::Mismatch {
            rank: self.control.rank(),
            peer: 0,
            ours: self.calls.describe(),
            theirs: "others".into(),
        };
        Err(BackendError::Communication(error.to_string()))
    }
}

/// The spans of `call` that `rank` uses: scatter takes only the root's `from`, gather its `to`.
fn used(call: &CollectiveCall, rank: usize) -> (Span, Span) {
    let only_on_root = |span: Span| {
        if rank == call.root { span } else { Span::EMPTY }
    };
    match call.collective {
        Collective::Barrier => (Span::EMPTY, Span::EMPTY),
        Collective::Scatter => (only_on_root(call.from), call.to),
        Collective::Gather => (call.from, only_on_root(call.to)),
        Collective::Send => (call.from, Span::EMPTY),
        Collective::Receive => (Span::EMPTY, call.to),
        _ => (call.from, call.to),
    }
}

impl Communicator for NcclCommunicator {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn world_size(&self) -> usize {
        self.control.world_size()
    }

    fn enqueue(
        &mut self,
        backend: &mut dyn Backend,
        call: CollectiveCall,
        after: Event,
    ) -> Result<Event> {
        check(&call, self.rank(), self.world_size())
            .map_err(|error| BackendError::Communication(error.to_string()))?;
        match backend.cuda() {
            Some(device) => self.enqueue_on(device, call, after),
            None => self.report(Err(BackendError::Unsupported("NCCL without a GPU"))),
        }
    }

    fn barrier(&mut self) -> Result<()> {
        let same = self.compare();
        self.report(same)
    }

    fn agree(&mut self, value: u64) -> Result<u64> {
        self.control.agree(value)
    }

    fn begin_capture(&mut self) {
        self.captured.begin();
    }

    fn end_capture(&mut self, captured: Option<Captured>) {
        self.captured.end(captured);
    }

    fn replayed(
        &mut self,
        backend: &mut dyn Backend,
        captured: Captured,
        end: Event,
    ) -> Result<()> {
        match backend.cuda() {
            Some(device) => self.replayed_on(device, captured, end),
            None => Err(BackendError::Unsupported("NCCL without a GPU")),
        }
    }

    fn counts(&self) -> Vec<Count> {
        self.record.counts()
    }

    fn reset_counts(&mut self) {
        self.record.reset();
    }

    fn aborter(&self) -> Aborter {
        // The watching thread of every rank hears of it.
        self.control.aborter()
    }

    fn failure(&self) -> Option<String> {
        let session = self.connected.as_ref().map(|connected| &connected.session);
        session
            .and_then(|session| session.failure())
            .or_else(|| self.control.failure())
    }

    fn watch(&self) -> Watch {
        self.control.watch()
    }
}
