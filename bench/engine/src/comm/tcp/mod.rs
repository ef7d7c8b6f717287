//! The transport `tcp`: ranks anywhere exchange over connections between each two of them, on a ring.
//!
//! `rendezvous` is how they meet (`accept`, `wire`, `error` with it), `control` what they tell each other beside calls,
//! `ring` the algorithm, `flow` how bytes move and are counted, `ends` and `pair` the memory at both ends, `info` the kernel's own
//! counters. Collectives run on the communication stream of the rank's device, so at most one per rank is under way.
mod accept;
mod control;
mod ends;
mod error;
mod flow;
mod info;
mod pair;
mod rendezvous;
mod ring;
mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::control::Control;
use self::error::system;
use self::flow::{Exchange, Lines};
use crate::backend::{Backend, BackendError, Event, HostMemory, HostTask, Result, Stream};
use crate::comm::algorithm::{check, perform};
use crate::comm::error::Waiting;
use crate::comm::fault::Fault;
use crate::comm::ledger::Books;
use crate::comm::shared::MAX_WORLD;
use crate::comm::{Aborter, CollectiveCall, Communicator, Count, HostCall, Watch};
use crate::probe::now_ns;

pub use self::error::JoinError;
pub use self::info::{Carried, carried};
pub use self::wire::{HEADER_BYTES, VERSION};

/// Name of this transport's algorithm in records.
pub const ALGORITHM: &str = "ring";
/// How long counting waits for the kernel to send what it took.
const DRAIN: Duration = Duration::from_secs(2);

/// How a rank joins its job.
#[derive(Debug)]
pub struct Settings {
    /// This rank.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Where rank 0 listens, as this rank reaches it.
    pub rendezvous: SocketAddr,
    /// Rank 0: a listener that is bound already, whose port nobody can take in between. Without one it binds
    /// `rendezvous` itself.
    pub listener: Option<TcpListener>,
    /// The address at which others reach this rank; that of the interface towards rank 0 unless given.
    pub interface: Option<IpAddr>,
    /// Keeps jobs apart that meet by accident; the same on all ranks. It authenticates nobody.
    pub token: u64,
    /// How long all ranks have to meet.
    pub join_timeout: Duration,
    /// How collectives and barriers wait: the time limit is that without any progress.
    pub waiting: Waiting,
    /// Size of the kernel's send and receive buffers; none leaves that to the kernel's own tuning.
    pub buffer_bytes: Option<usize>,
}

impl Settings {
    /// The usual settings of rank `rank`: no listener, any interface, a minute to meet.
    pub fn new(rank: usize, world: usize, rendezvous: SocketAddr, token: u64) -> Self {
        Self {
            rank,
            world,
            rendezvous,
            listener: None,
            interface: None,
            token,
            join_timeout: Duration::from_secs(60),
            waiting: Waiting::default(),
            buffer_bytes: None,
        }
    }

    fn check(&self) -> std::result::Result<(), JoinError> {
        let Self { rank, world, .. } = *self;
        let wrong = |problem| Err(JoinError::Settings(problem));
        if world == 0 || world > MAX_WORLD {
            return wrong(format!(
                "{world} ranks cannot meet: ranks must be 1 to {MAX_WORLD}"
            ));
        }
        if rank >= world {
            return wrong(format!("rank {rank} is not below the world size {world}"));
        }
        if self.waiting.timeout.is_zero() || self.join_timeout.is_zero() {
            return wrong("a time limit of 0 leaves no time to meet".into());
        }
        if rank != 0 && self.rendezvous.port() == 0 {
            return wrong(format!(
                "rank 0 cannot be reached at port 0 of {}",
                self.rendezvous.ip()
            ));
        }
        Ok(())
    }
}

/// One rank's end of the connections: what runs on the stream's thread.
struct Endpoint {
    control: Arc<Control>,
    /// Only the stream's thread locks it within a step, so the lock is never contended there.
    lines: Mutex<Lines>,
    waiting: Waiting,
    books: Books,
    fault: Fault,
}

impl HostTask for Endpoint {
    fn run(&self, memory: &HostMemory, call: HostCall) -> std::result::Result<(), String> {
        let HostCall::Collective(call) = call else {
            return Err("a communicator cannot run a copy between devices".into());
        };
        let begin = now_ns();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let mut exchange =
            Exchange::new(&mut lines, &self.control, call, self.waiting, &self.fault);
        self.fault.point();
        let ready = self.control.refuse_aborted();
        // SAFETY: the stream runs one task at a time, after the event that the caller named, and whoever uses the
        // spans next waits for the event of this task.
        let done = ready.and_then(|()| unsafe { perform(&mut exchange, &call, memory) });
        done.map_err(|error| self.books.fail(&error))?;
        let tally = exchange.finish();
        // Alone, a rank exchanges nothing, so there is nothing to enter.
        if self.control.world > 1 {
            self.books.ledger().enter(&call, tally, now_ns() - begin);
        }
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // The last handle goes when the stream has no call of this rank left, so nobody waits for a call that would
        // still have come.
        self.control.leave();
    }
}

/// A rank of the transport `tcp`.
pub struct TcpCommunicator {
    endpoint: Arc<Endpoint>,
    task: Arc<dyn HostTask>,
}

impl TcpCommunicator {
    /// Meets all other ranks: blocks until every one of them has joined as well.
    ///
    /// # Errors
    /// [`JoinError`], within the time limit.
    pub fn join(mut settings: Settings) -> std::result::Result<Self, JoinError> {
        settings.check()?;
        let connections = rendezvous::meet(&mut settings)?;
        for stream in connections.data.iter().flatten() {
            set_up(stream, settings.buffer_bytes).map_err(system("set up a data connection"))?;
        }
        let Settings {
            rank,
            waiting,
            join_timeout,
            ..
        } = settings;
        let control = Control::start(rank, connections.control, waiting.timeout)?;
        let endpoint = Arc::new(Endpoint {
            control,
            lines: Mutex::new(Lines::new(connections.data)),
            waiting,
            books: Books::new(ALGORITHM),
            fault: Fault::default(),
        });
        // Whoever returns from here knows that all others have all their connections.
        let all = endpoint.control.barrier(0, join_timeout);
        all.map_err(|error| JoinError::Aborted(error.to_string()))?;
        Ok(Self {
            task: Arc::clone(&endpoint) as Arc<dyn HostTask>,
            endpoint,
        })
    }

    /// All ranks of a new job between threads of this process, over the loopback interface.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn for_threads(
        world: usize,
        waiting: Waiting,
    ) -> std::result::Result<Vec<Self>, JoinError> {
        Self::for_threads_with(world, |settings| settings.waiting = waiting)
    }

    /// As [`TcpCommunicator::for_threads`], with settings changed by `change`.
    ///
    /// # Errors
    /// [`JoinError`].
    pub fn for_threads_with(
        world: usize,
        change: impl Fn(&mut Settings) + Sync,
    ) -> std::result::Result<Vec<Self>, JoinError> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener =
            TcpListener::bind(any).map_err(system("listen on the loopback interface"))?;
        let address = listener
            .local_addr()
            .map_err(system("listen on the loopback interface"))?;
        let (token, mut listener) = (random_token(), Some(listener));
        std::thread::scope(|scope| {
            let start = |rank| {
                let mut settings = Settings::new(rank, world, address, token);
                if rank == 0 {
                    settings.listener = listener.take();
                }
                change(&mut settings);
                scope.spawn(move || Self::join(settings))
            };
            let ranks: Vec<_> = (0..world).map(start).collect();
            let joined = ranks.into_iter().map(|rank| match rank.join() {
                Ok(joined) => joined,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.collect()
        })
    }

    /// Lets a test stop this rank in the midst of a call; see [`Fault`].
    #[doc(hidden)]
    pub fn fault(&self) -> Fault {
        self.endpoint.fault.clone()
    }
}

/// A token that no other job has, but by a chance of 2⁻⁶⁴.
pub fn random_token() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The keys of a new hasher are random, and differ from those of the one before.
    std::hash::RandomState::new().build_hasher().finish()
}

fn set_up(stream: &TcpStream, buffer_bytes: Option<usize>) -> std::io::Result<()> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    if let Some(bytes) = buffer_bytes {
        rustix::net::sockopt::set_socket_send_buffer_size(stream, bytes)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(stream, bytes)?;
    }
    Ok(())
}

impl Communicator for TcpCommunicator {
    fn rank(&self) -> usize {
        self.endpoint.control.rank
    }

    fn world_size(&self) -> usize {
        self.endpoint.control.world
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
        self.agree(0).map(|_| ())
    }

    fn agree(&mut self, value: u64) -> Result<u64> {
        let Endpoint {
            control,
            waiting,
            books,
            ..
        } = &*self.endpoint;
        let agreed = control.barrier(value, waiting.timeout);
        agreed.map_err(|error| BackendError::Communication(books.fail(&error)))
    }

    fn counts(&self) -> Vec<Count> {
        let lines = self.endpoint.lines.lock();
        let drained = lines.unwrap_or_else(PoisonError::into_inner).drain(DRAIN);
        let mut counts = self.endpoint.books.ledger().counts();
        if !drained {
            // What the kernel took but has not sent is no measured figure.
            for count in &mut counts {
                count.measured_sent_bytes = None;
            }
        }
        counts
    }

    fn reset_counts(&mut self) {
        self.endpoint.books.ledger().reset();
    }

    fn aborter(&self) -> Aborter {
        let control = Arc::clone(&self.endpoint.control);
        Aborter(Arc::new(move |reason| {
            control.abort(Some(control.rank), reason)
        }))
    }

    fn failure(&self) -> Option<String> {
        let aborted = || Some(self.endpoint.control.refuse_aborted().err()?.to_string());
        self.endpoint.books.failure().or_else(aborted)
    }
    fn watch(&self) -> Watch {
        // Not the endpoint: this rank leaves when that is dropped.
        let control = Arc::clone(&self.endpoint.control);
        Watch(Arc::new(move || control.seen()))
    }
}
