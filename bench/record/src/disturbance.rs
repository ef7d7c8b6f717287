//! When a repeat is `disturbed`, by other load on the ranks' cores or by what happened to their GPUs: one rule, for the runner that
//! judges and the report that warns.
//!
//! Contract: pure, from a repeat's row. What nobody watched does not disturb.
//! Reference: METHODOLOGY.md, "Other load" and "On GPUs".
use crate::rows::RepeatRow;

/// Largest share of a core that others may use in an undisturbed window. What takes 2 % of a core makes a step some 2 %
/// longer, which is what makes a window unsteady; a quiet machine's services and the reading of ticks stay below 1 %.
pub const FOREIGN: f64 = 0.02;
/// Largest share of a core that a hypervisor may take away: half as much, because a quiet host steals next to nothing.
pub const STOLEN: f64 = 0.01;
/// Nanoseconds below which there is no disturbance, whatever share of a short window they are: the kernel's counters are cut
/// to ticks of 10 ms, and five of them make up the time in which a core was not busy.
pub const LEAST_NS: f64 = 50e6;
/// By how much a GPU's clock may be lower in one third of a pass than in another. At its power cap a clock flutters by more from
/// one sample to the next; a third's mean does not.
pub const CLOCK_SPREAD: f64 = 0.05;
/// Share of samples in which heat or the hardware may hold a GPU's clock back, and the fewest samples that count: NVML shows a
/// slowdown of the hardware for a moment when a clock changes.
pub const SLOWDOWN: f64 = 0.02;
/// See [`SLOWDOWN`].
pub const LEAST_SAMPLES: f64 = 2.0;

/// What disturbed a repeat, in words; `None` for nothing that counts.
pub fn disturbance(row: &RepeatRow) -> Option<String> {
    let mut reasons = on_cores(row);
    reasons.extend(on_gpus(row));
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn on_cores(row: &RepeatRow) -> Vec<String> {
    let Some(watched_ns) = row.watched_ns else {
        return Vec::new();
    };
    let above = |share: Option<f64>, limit: f64| {
        share.filter(|share| *share > limit && share * watched_ns as f64 > LEAST_NS)
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
    foreign.into_iter().chain(stolen).collect()
}

fn on_gpus(row: &RepeatRow) -> Vec<String> {
    let samples = row.gpu_samples.unwrap_or(0) as f64;
    let foreign = row.gpu_foreign_processes.filter(|&others| others > 0);
    let foreign = foreign.map(|others| {
        let others = match others {
            1 => "another process".to_owned(),
            others => format!("{others} other processes"),
        };
        format!("{others} computed on a GPU of the ranks, or could have")
    });
    let slowed = row.gpu_slowdown_share.filter(|share| {
        // Shares of samples are not exact.
        *share > SLOWDOWN && (share * samples).round() >= LEAST_SAMPLES
    });
    let slowed = slowed.map(|share| {
        let by = row.gpu_slowdown.as_deref().unwrap_or("its hardware");
        let percent = share * 100.0;
        format!("a GPU's clock was held back by {by} in {percent:.0} % of a timed pass")
    });
    let moved = row
        .gpu_clock_spread
        .filter(|spread| *spread > CLOCK_SPREAD)
        .map(|spread| {
            let percent = spread * 100.0;
            format!("a GPU's clock was {percent:.1} % lower in one third of a timed pass than in another")
        });
    foreign.into_iter().chain(slowed).chain(moved).collect()
}
