//! When other load makes a repeat `disturbed`: one rule, for the runner that judges and the report that warns.
//!
//! Contract: pure, from a repeat's row. A repeat that nobody watched is not disturbed.
//! Reference: METHODOLOGY.md, "Other load".
use crate::rows::RepeatRow;

/// Largest share of a core that others may use in an undisturbed window. What takes 2 % of a core makes a step some 2 %
/// longer, which is what makes a window unsteady; a quiet machine's services and the reading of ticks stay below 1 %.
pub const FOREIGN: f64 = 0.02;
/// Largest share of a core that a hypervisor may take away: half as much, because a quiet host steals next to nothing.
pub const STOLEN: f64 = 0.01;
/// Nanoseconds below which there is no disturbance, whatever share of a short window they are: the kernel's counters are cut
/// to ticks of 10 ms, and five of them make up the time in which a core was not busy.
pub const LEAST_NS: f64 = 50e6;

/// What disturbed a repeat, in words; `None` for nothing that counts.
pub fn disturbance(row: &RepeatRow) -> Option<String> {
    let watched_ns = row.watched_ns? as f64;
    let above = |share: Option<f64>, limit: f64| {
        share.filter(|share| *share > limit && share * watched_ns > LEAST_NS)
    };
    let percent = |share: f64| share * 100.0;
    let foreign = above(row.foreign_cpu_share, FOREIGN).map(percent);
    let stolen = above(row.steal_share, STOLEN).map(percent);
    let foreign = foreign.map(|share| {
        format!("other programs used a core of the ranks for {share:.1} % of a timed pass")
    });
    let stolen = stolen.map(|share| {
        format!("the hypervisor took a core of the ranks away for {share:.1} % of a timed pass")
    });
    let reasons: Vec<String> = foreign.into_iter().chain(stolen).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}
