//! What this machine can do at best: arithmetic, memory, and the ways between two of its cores.
//!
//! Contract: each ceiling is measured in at least [`WINDOWS`] short windows of plain loops, with the kernels' own instructions, on cores that the
//! caller names; every loop's result is compared with what it must be, so that none of it can have been left out. What is kept is
//! the median of the windows, the best one and the middle half. Nothing here decides how a figure relates to a ceiling.
//! Reference: Williams, Waterman and Patterson, *Roofline: an insightful visual performance model*, 2009.
mod arithmetic;
mod gpu;
mod memory;
mod shared;
mod tcp;
mod together;

pub use arithmetic::arithmetic;
pub use gpu::gpu_memory;
pub use memory::{UNKNOWN_CACHE_BYTES, memory, working_set};
pub use shared::shared;
pub use tcp::{exchange, socket_pair, tcp};

use crate::backend::BackendError;
use crate::backend::cpu::instructions::Instructions;

/// Fewest windows of a ceiling; one more before them warms up and is not counted.
pub const WINDOWS: usize = 10;

/// Bytes of a message whose bandwidth is measured.
pub const MESSAGE_BYTES: usize = 64 << 20;
/// Bytes that go to and fro over a connection.
pub const SMALL_MESSAGE_BYTES: usize = 4 << 10;

/// What is at its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ceiling {
    /// Fused multiply-adds of f32 in registers, 2 operations each.
    MultiplyAdd,
    /// Reading memory that no cache holds.
    MemoryRead,
    /// One stream in and one out, bytes of both; the line that a store first has to fetch is not counted.
    MemoryReadWrite,
    /// Bytes from one core to another over a loopback connection.
    TcpOneWay,
    /// The same in both directions at once, bytes of one direction.
    TcpBothWays,
    /// A message of 4 KiB and one back, over the same connection.
    TcpRoundTrip,
    /// Bytes that one core copies out of memory that another has just written.
    SharedCopy,
    /// A cache line to the other core and back.
    SharedRoundTrip,
}

impl Ceiling {
    /// All of them, in the order of their numbers in a spool.
    pub const ALL: [Self; 8] = [
        Self::MultiplyAdd,
        Self::MemoryRead,
        Self::MemoryReadWrite,
        Self::TcpOneWay,
        Self::TcpBothWays,
        Self::TcpRoundTrip,
        Self::SharedCopy,
        Self::SharedRoundTrip,
    ];

    /// As `ceilings.csv` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiplyAdd => "multiply-add",
            Self::MemoryRead => "memory-read",
            Self::MemoryReadWrite => "memory-read-write",
            Self::TcpOneWay => "tcp-one-way",
            Self::TcpBothWays => "tcp-both-ways",
            Self::TcpRoundTrip => "tcp-round-trip",
            Self::SharedCopy => "shared-copy",
            Self::SharedRoundTrip => "shared-round-trip",
        }
    }

    /// Unit of its figures.
    pub fn unit(self) -> &'static str {
        match self {
            Self::MultiplyAdd => "flop/s",
            Self::TcpRoundTrip | Self::SharedRoundTrip => "ns",
            _ => "B/s",
        }
    }

    /// Whether it is a time, of which less is better.
    pub fn is_time(self) -> bool {
        self.unit() == "ns"
    }
}

/// Figures of several windows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// How many.
    pub windows: usize,
    /// The middle one.
    pub median: f64,
    /// The best one.
    pub best: f64,
    /// First and third quartile: between them lies the middle half.
    pub quartiles: [f64; 2],
}

impl Spread {
    /// Of at least one figure; `is_time` says that the smallest is the best.
    ///
    /// # Panics
    /// Without a figure.
    pub fn of(mut figures: Vec<f64>, is_time: bool) -> Self {
        figures.sort_by(f64::total_cmp);
        let last = figures.len() - 1;
        let quantile = |share: f64| {
            let place = share * last as f64;
            let below = place.floor() as usize;
            let above = (below + 1).min(last);
            figures[below] + (figures[above] - figures[below]) * (place - below as f64)
        };
        Self {
            windows: figures.len(),
            median: quantile(0.5),
            best: figures[if is_time { 0 } else { last }],
            quartiles: [quantile(0.25), quantile(0.75)],
        }
    }
}

/// A ceiling of this machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Which.
    pub ceiling: Ceiling,
    /// Threads that took part, all at once; their figures are added up, but for times.
    pub threads: usize,
    /// Vector instructions of its loops, where they decide.
    pub instructions: Option<Instructions>,
    /// Bytes that each thread went over in a window, where that decides.
    pub working_set_bytes: Option<u64>,
    /// Figures of its windows, in [`Ceiling::unit`].
    pub spread: Spread,
}

/// Why a ceiling could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CeilingError {
    /// A thread could not be pinned, or the environment asks for instructions that cannot be had.
    #[error(transparent)]
    Device(#[from] BackendError),
    /// A thread could not be started, or the loopback interface could not be used.
    #[error("failed to {action}: {source}")]
    System {
        /// What was to be done.
        action: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// No memory for the working set.
    #[error("no {bytes} bytes of memory for a working set of 4 times the last-level cache")]
    Memory {
        /// That many.
        bytes: u64,
    },
    /// A loop did not compute what it must, so its time means nothing.
    #[error("{}: the result is {found}, and must be {expected}", ceiling.name())]
    Wrong {
        /// Whose loop.
        ceiling: Ceiling,
        /// What came out.
        found: f64,
        /// What should have.
        expected: f64,
    },
}

impl Measured {
    /// What two threads reach between them, from windows of which the first warmed up.
    fn between(ceiling: Ceiling, mut figures: Vec<f64>) -> Self {
        figures.remove(0);
        Self {
            ceiling,
            threads: 2,
            instructions: None,
            working_set_bytes: None,
            spread: Spread::of(figures, ceiling.is_time()),
        }
    }
}

impl CeilingError {
    fn system(action: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// Result of measuring.
pub type Result<T> = std::result::Result<T, CeilingError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_best_of_rates_and_of_times() {
        let figures = vec![4.0, 1.0, 2.0, 5.0, 3.0];
        let rate = Spread::of(figures.clone(), false);
        assert_eq!(
            (rate.median, rate.best, rate.quartiles),
            (3.0, 5.0, [2.0, 4.0])
        );
        assert_eq!(Spread::of(figures, true).best, 1.0);
        assert_eq!(Spread::of(vec![7.0], true).quartiles, [7.0, 7.0]);
    }

    #[test]
    fn every_ceiling_has_a_name_of_its_own() {
        let mut names = Ceiling::ALL.map(Ceiling::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert!(Ceiling::TcpRoundTrip.is_time() && !Ceiling::SharedCopy.is_time());
    }
}
