//! The rows of `ceilings.csv`: what the machine could do at best beside a measurement.
use serde::{Deserialize, Serialize};

/// `ceilings.csv`: one row per trial, repeat and ceiling, measured within the repeat on the cores of its devices.
///
/// Rates are in bytes or operations per second, times in nanoseconds: `unit` says which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CeilingRow {
    pub trial: String,
    pub repeat: u32,
    /// `multiply-add`, `memory-read`, `memory-read-write`, `tcp-one-way`, `tcp-both-ways`, `tcp-round-trip`, `shared-copy`,
    /// `shared-round-trip`.
    pub ceiling: String,
    /// Threads that took part, all at once.
    pub threads: u32,
    /// Vector instructions of the loop, where they decide: `avx512`, `avx2` or `portable`.
    pub instructions: Option<String>,
    /// Bytes that each thread went over in a window, where that decides.
    pub working_set_bytes: Option<u64>,
    /// Last-level cache that the working set is 4 times as large as; empty where it is not known.
    pub last_level_cache_bytes: Option<u64>,
    /// Windows, not counting the one that warmed up.
    pub windows: u32,
    /// `flop/s`, `B/s` or `ns`.
    pub unit: String,
    /// The middle one of the windows.
    pub median: f64,
    /// The best one: the largest rate, or the shortest time.
    pub best: f64,
    /// Between these two lies the middle half of the windows.
    pub p25: f64,
    pub p75: f64,
}
