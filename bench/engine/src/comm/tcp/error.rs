//! Why the ranks of a job did not meet.
use std::io;
use std::net::SocketAddr;

/// Why joining failed, in words for whoever started the job.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A rank, world size or time that cannot be meant.
    #[error("{0}")]
    Settings(String),
    /// The address cannot be listened on.
    #[error("failed to listen on {address}: {}", explain_bind(.source))]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody listens where rank 0 should.
    #[error(
        "rank {rank} tried for {seconds} s to reach rank 0 at {address}: {source}; is rank 0 running, is this its address, and does a firewall let the port through?"
    )]
    Unreachable {
        /// Who tried.
        rank: usize,
        /// Where.
        address: SocketAddr,
        /// How long.
        seconds: u64,
        /// The last failure.
        source: io::Error,
    },
    /// Not all ranks came.
    #[error("rank 0 waited {seconds} s at {address} for {missing}{notes}")]
    Missing {
        /// Where.
        address: SocketAddr,
        /// Such as `rank 2` or `ranks 1, 3`.
        missing: String,
        /// How long.
        seconds: u64,
        /// Who else knocked.
        notes: String,
    },
    /// Ranks that do not fit together came; every rank of the job fails.
    #[error("{0}")]
    Conflict(String),
    /// Rank 0 refused this rank.
    #[error("rank 0 at {address} refused rank {rank}: {reason}")]
    Refused {
        /// Who asked.
        rank: usize,
        /// Rank 0's address.
        address: SocketAddr,
        /// Its words.
        reason: String,
    },
    /// A connection between two ranks failed.
    #[error("rank {rank} failed to {what} rank {peer}: {source}")]
    Peer {
        /// This rank.
        rank: usize,
        /// The other.
        peer: usize,
        /// `connect to`, ...
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("failed to {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// All had connected, but not all got through.
    #[error("{0}")]
    Aborted(String),
}

fn explain_bind(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => {
            "the port is in use: end the program or job that listens there, or choose another port (0 lets the system choose)".into()
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this host has this address: rank 0 must run on the host that the address belongs to".into()
        }
        io::ErrorKind::PermissionDenied => format!("{source}: ports below 1024 need privileges, choose a higher one"),
        _ => source.to_string(),
    }
}

pub(super) fn system(what: &'static str) -> impl Fn(io::Error) -> JoinError {
    move |source| JoinError::System { what, source }
}
