//! Where the ranks of a job meet that are in several processes: memory that they share, or a socket on which rank 0 listens.
//!
//! Contract: the socket listens before any process starts, so its port is the job's own from then on; only rank 0's process
//! inherits it, and this one closes it right after. Reference: "The child protocol" in CONTRIBUTING.md.
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::{FdFlags, fcntl_setfd};
use syncmark_engine::comm::shared::{DEFAULT_SLOT_BYTES, Region};
use syncmark_engine::comm::tcp::random_token;

use super::protocol::Meeting;
use crate::agent::message::SharedRegion;
use crate::plan::config::TrialConfig;
use crate::scenario::file::{Launch, Transport};

/// The meeting point of one job.
#[derive(Debug)]
pub enum MeetingPoint {
    /// All ranks are in one process, or there is one rank.
    Within,
    /// Memory, by the descriptor that children inherit.
    Memory {
        /// It; closed once nobody is to find it any more.
        fd: Option<OwnedFd>,
    },
    /// A socket of rank 0.
    Socket {
        /// It; closed once rank 0's process has inherited it.
        listener: Option<TcpListener>,
        /// Where it listens.
        address: SocketAddr,
        /// The job's own.
        token: u64,
    },
}

impl MeetingPoint {
    /// Makes that of `trial`, and returns the region with which ranks that share memory can be told of a failure; a
    /// socket listens at `interface`.
    ///
    /// # Errors
    /// A sentence: there is no memory, or no port.
    pub fn make(trial: &TrialConfig, interface: IpAddr) -> Result<(Self, Option<Region>), String> {
        if trial.strategy.launched() != Some(Launch::Processes) {
            return Ok((Self::Within, None));
        }
        if shares_memory(trial) {
            let (fd, region) = Region::create_memfd(trial.devices, DEFAULT_SLOT_BYTES)
                .map_err(|error| error.to_string())?;
            return Ok((Self::Memory { fd: Some(fd) }, Some(region)));
        }
        let (listener, address) = listen(interface)
            .map_err(|error| format!("failed to listen on {interface} for the ranks: {error}"))?;
        let point = Self::Socket {
            listener: Some(listener),
            address,
            token: random_token(),
        };
        Ok((point, None))
    }

    /// How the process whose first rank is `rank` finds the others.
    pub fn of(&self, rank: usize) -> Option<Meeting> {
        match self {
            Self::Within => None,
            Self::Memory { fd } => fd.as_ref().map(|fd| Meeting::Region { fd: fd.as_raw_fd() }),
            Self::Socket {
                listener,
                address,
                token,
            } => Some(Meeting::Tcp {
                address: *address,
                listener_fd: listener
                    .as_ref()
                    .filter(|_| rank == 0)
                    .map(AsRawFd::as_raw_fd),
                interface: None,
                token: *token,
            }),
        }
    }

    /// The process whose first rank is `rank` has started with what it inherits.
    pub fn has_started(&mut self, rank: usize) {
        if let (Self::Socket { listener, .. }, 0) = (self, rank) {
            *listener = None;
        }
    }

    /// All processes of this host have started.
    pub fn close(&mut self) {
        if let Self::Memory { fd } = self {
            *fd = None;
        }
    }

    /// The memory as another process on this host finds it. A memfd has no name and no trace when its last user is gone,
    /// unlike a file in /dev/shm, which a killed run would leave; it is opened through the process that holds it.
    ///
    /// # Errors
    /// What fstat(2) says.
    pub fn held_region(&self) -> std::io::Result<Option<SharedRegion>> {
        let Self::Memory { fd: Some(fd) } = self else {
            return Ok(None);
        };
        let stat = rustix::fs::fstat(fd)?;
        Ok(Some(SharedRegion {
            process: std::process::id(),
            descriptor: fd.as_raw_fd(),
            device: stat.st_dev,
            inode: stat.st_ino,
        }))
    }
}

/// Whether the processes of a trial meet in memory that they share.
pub fn shares_memory(trial: &TrialConfig) -> bool {
    trial.strategy.launched() == Some(Launch::Processes)
        && trial.strategy.ranks_transport() != Some(Transport::Tcp)
}

/// Listens on a port that the system chooses, with a socket that a child inherits.
fn listen(interface: IpAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((interface, 0))?;
    fcntl_setfd(&listener, FdFlags::empty())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::plan::config::StrategyConfig;
    use crate::run::mock::{config, ddp};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn over_tcp(launch: Launch) -> TrialConfig {
        let StrategyConfig::Ddp(mut ddp) = ddp(launch) else {
            unreachable!("it is DDP");
        };
        ddp.transport = Transport::Tcp;
        config(StrategyConfig::Ddp(ddp), 2)
    }

    #[test]
    fn rank_0_alone_inherits_the_socket_and_its_port_is_taken_before_it_starts() {
        let (mut point, region) = MeetingPoint::make(&over_tcp(Launch::Processes), HERE).unwrap();
        assert!(region.is_none());
        let of = |point: &MeetingPoint, rank| match point.of(rank) {
            Some(Meeting::Tcp {
                address,
                listener_fd,
                token,
                ..
            }) => (address, listener_fd, token),
            other => panic!("no meeting over TCP: {other:?}"),
        };
        let (first, second) = (of(&point, 0), of(&point, 1));
        assert!(TcpListener::bind(first.0).is_err(), "the port is taken");
        assert!(first.1.is_some() && second.1.is_none());
        assert_eq!((first.0, first.2), (second.0, second.2));
        point.has_started(0);
        assert_eq!(of(&point, 0).1, None, "nothing is left to inherit");
        assert!(
            TcpListener::bind(first.0).is_ok(),
            "nobody inherited it here"
        );
    }

    #[test]
    fn ranks_that_are_threads_meet_within_their_process() {
        for trial in [over_tcp(Launch::Threads), config(ddp(Launch::Threads), 2)] {
            let (point, region) = MeetingPoint::make(&trial, HERE).unwrap();
            assert!(region.is_none() && point.of(0).is_none());
        }
    }

    #[test]
    fn shared_memory_is_held_until_all_have_started() {
        let trial = config(ddp(Launch::Processes), 2);
        let (mut point, region) = MeetingPoint::make(&trial, HERE).unwrap();
        assert!(region.is_some());
        point.has_started(0);
        assert!(matches!(point.of(1), Some(Meeting::Region { .. })));
        assert!(point.held_region().unwrap().is_some());
        point.close();
        assert!(point.held_region().unwrap().is_none());
    }
}
