//! Which rank has been silent for longest, in words, when a job has passed its time limit.
//!
//! Contract: ranks beat at every step (see [`super::spool`]) and at every collective. A process that was stopped (SIGSTOP,
//! a debugger) is named before one that is merely older, because the others only wait for it.
use std::time::Duration;

/// A silence shorter than this is the ordinary time between two beats, not a hang.
const NOTABLE: Duration = Duration::from_secs(1);

/// Signs of life of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Sign {
    /// As in other reasons.
    pub name: String,
    /// Its last beat on CLOCK_MONOTONIC; 0 for never.
    pub beat_ns: u64,
    /// Whether its process is stopped.
    pub stopped: bool,
}

/// Why a job passed its limit, as far as its ranks' signs of life tell.
pub fn reason(limit: Duration, signs: &[Sign], now_ns: u64) -> String {
    let passed = format!("it took longer than its time limit of {}", seconds(limit));
    let Some(oldest) = signs
        .iter()
        .min_by_key(|sign| (!sign.stopped, sign.beat_ns))
    else {
        return passed;
    };
    let silent = Duration::from_nanos(now_ns.saturating_sub(oldest.beat_ns));
    let how = match (oldest.stopped, oldest.beat_ns) {
        (true, 0) => format!("{} is stopped and never gave a sign of life", oldest.name),
        (true, _) => format!(
            "{} is stopped and gave its last sign of life {} ago",
            oldest.name,
            seconds(silent)
        ),
        (false, 0) => format!("{} never gave a sign of life", oldest.name),
        (false, _) if silent < NOTABLE => {
            return format!("{passed}; all its ranks were at work: raise measure.timeout");
        }
        (false, _) => format!(
            "{} gave its last sign of life {} ago",
            oldest.name,
            seconds(silent)
        ),
    };
    format!("{passed}; {how}")
}

/// Whether a process is stopped, as by SIGSTOP or a debugger.
pub fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command's name, which stands in brackets and can itself hold brackets.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('T' | 't')))
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(rank: usize, beat_s: u64) -> Sign {
        Sign {
            name: format!("rank {rank}"),
            beat_ns: beat_s * 1_000_000_000,
            stopped: false,
        }
    }

    fn say(signs: &[Sign]) -> String {
        reason(Duration::from_secs(5), signs, 20_000_000_000)
    }

    #[test]
    fn the_rank_with_the_oldest_beat_is_named() {
        let words = say(&[sign(0, 19), sign(1, 12), sign(2, 18)]);
        assert_eq!(
            words,
            "it took longer than its time limit of 5.0 s; rank 1 gave its last sign of life 8.0 s ago"
        );
    }

    #[test]
    fn a_stopped_process_is_named_before_one_that_waits_for_it() {
        let stopped = Sign {
            stopped: true,
            ..sign(1, 13)
        };
        let words = say(&[sign(0, 12), stopped]);
        assert!(
            words.ends_with("rank 1 is stopped and gave its last sign of life 7.0 s ago"),
            "{words}"
        );
    }

    #[test]
    fn a_rank_that_never_came_and_ranks_that_are_merely_slow_are_told_apart() {
        assert!(say(&[sign(0, 12), sign(1, 0)]).ends_with("rank 1 never gave a sign of life"));
        assert!(
            say(&[sign(0, 20), sign(1, 20)])
                .ends_with("all its ranks were at work: raise measure.timeout")
        );
    }

    #[test]
    fn this_process_is_not_stopped() {
        assert!(!is_stopped(std::process::id()));
    }
}
