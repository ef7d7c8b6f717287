//! From what the ranks saw on their cores to the share of a pass that others took.
//!
//! Contract: pure. The worst core of the worst pass (the window, the arm without synchronization) counts, not the mean: ranks
//! wait for each other, so one core that is taken holds up all, and exposed communication is the difference of the two. A
//! core that several processes of the job share is not watched, because none of them knows what the others used.
//! The rule by which a repeat is called disturbed is [`super::super::ledger::judge`]'s.
use super::RepeatFacts;
use crate::run::spool::Event;
use crate::scenario::file::Launch;

/// What others did to a window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Watched {
    /// Shortest time that a core was watched.
    pub(super) watched_ns: u64,
    /// Foreign CPU time on the worst core, over its time.
    pub(super) foreign: f64,
    /// Stolen time on the worst core, over its time.
    pub(super) stolen: f64,
    /// Time in which some thread waited for a core, on the host that had most of it.
    pub(super) pressure: Option<f64>,
    /// Of all ranks' threads.
    pub(super) involuntary_switches: u64,
}

/// Puts together what all ranks saw; `None` where one of them saw nothing.
pub(super) fn watched(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Option<Watched> {
    if shared_between_processes(facts) {
        return None;
    }
    let mut all: Option<Watched> = None;
    for event in ranks.iter().flatten() {
        let Some(one) = of_group(event) else { continue };
        all = Some(all.map_or(one, |all| worst(all, one)));
    }
    let seen = |cores: &Vec<usize>, clock: &str| {
        // The first device on these cores of this host speaks for all of them.
        let first = (0..facts.cores.len())
            .find(|&other| facts.cores[other] == *cores && facts.clock(other) == clock);
        ranks.iter().flatten().any(
            |event| matches!(event, Event::Cores { device, .. } if Some(*device as usize) == first),
        )
    };
    let complete =
        (0..facts.cores.len()).all(|device| seen(&facts.cores[device], facts.clock(device)));
    all.filter(|_| complete)
}

fn shared_between_processes(facts: &RepeatFacts<'_>) -> bool {
    let seat = |device: usize| (facts.clock(device), &facts.cores[device]);
    let devices = facts.cores.len();
    facts.config.strategy.launched() == Some(Launch::Processes)
        && (0..devices).any(|a| (a + 1..devices).any(|b| seat(a) == seat(b)))
}

fn of_group(event: &Event) -> Option<Watched> {
    let Event::Cores {
        cores,
        elapsed_ns,
        busy_ns,
        pinned_ns,
        elsewhere_ns,
        stolen_ns,
        involuntary_switches,
        pressure_ns,
        ..
    } = *event
    else {
        return None;
    };
    let time = elapsed_ns.max(1) as f64;
    let all_cores = time * f64::from(cores.max(1));
    Some(Watched {
        watched_ns: elapsed_ns,
        foreign: busy_ns.saturating_sub(pinned_ns + elsewhere_ns) as f64 / all_cores,
        stolen: stolen_ns as f64 / all_cores,
        pressure: pressure_ns.map(|ns| ns as f64 / time),
        involuntary_switches,
    })
}

fn worst(a: Watched, b: Watched) -> Watched {
    Watched {
        watched_ns: a.watched_ns.min(b.watched_ns),
        foreign: a.foreign.max(b.foreign),
        stolen: a.stolen.max(b.stolen),
        pressure: a.pressure.into_iter().chain(b.pressure).reduce(f64::max),
        involuntary_switches: a.involuntary_switches + b.involuntary_switches,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::StrategyConfig;
    use crate::run::mock::{config, ddp};
    use syncmark_record::Outcome;

    /// 1000 ns on one core, of which this job used 600 and its conductor 100.
    fn core(device: u16, busy_ns: u64, stolen_ns: u64) -> Event {
        Event::Cores {
            device,
            cores: 1,
            elapsed_ns: 1000,
            busy_ns,
            pinned_ns: 600,
            elsewhere_ns: 100,
            stolen_ns,
            involuntary_switches: 3,
            pressure_ns: Some(50),
        }
    }

    fn fold(
        strategy: StrategyConfig,
        cores: &[Vec<usize>],
        ranks: &[Vec<Event>],
    ) -> Option<Watched> {
        let config = config(strategy, cores.len());
        let facts = RepeatFacts {
            trial: "id",
            config: &config,
            repeat: 0,
            order: 0,
            started: String::new(),
            outcome: Outcome::Passed,
            reason: None,
            unsynchronized_first: None,
            cores,
            clocks: &[],
            nccl: None,
        };
        watched(&facts, ranks)
    }

    #[test]
    fn our_own_time_is_not_foreign_and_the_worst_core_counts() {
        let cores = [vec![0], vec![1]];
        let ranks = [vec![core(0, 700, 0)], vec![core(1, 950, 20)]];
        let found = fold(ddp(Launch::Processes), &cores, &ranks).unwrap();
        let expected = Watched {
            watched_ns: 1000,
            foreign: 0.25,
            stolen: 0.02,
            pressure: Some(0.05),
            involuntary_switches: 6,
        };
        assert_eq!(found, expected);
        let quiet = fold(
            ddp(Launch::Processes),
            &cores,
            &[vec![core(0, 700, 0)], vec![core(1, 650, 0)]],
        );
        assert_eq!(
            quiet.unwrap().foreign,
            0.0,
            "ticks beside the clock are no negative load"
        );
    }

    /// A device says twice: for the window and for the arm without synchronization, which other load bends as well.
    #[test]
    fn the_worse_of_two_passes_counts() {
        let cores = [vec![0], vec![1]];
        let quiet = || core(0, 700, 0);
        let ranks = [
            vec![quiet(), quiet()],
            vec![core(1, 700, 0), core(1, 990, 30)],
        ];
        let found = fold(ddp(Launch::Processes), &cores, &ranks).unwrap();
        assert_eq!((found.foreign, found.stolen), (0.29, 0.03));
        assert_eq!(found.involuntary_switches, 12);
    }

    #[test]
    fn what_not_every_rank_saw_is_not_known() {
        let cores = [vec![0], vec![1]];
        assert_eq!(
            fold(
                ddp(Launch::Threads),
                &cores,
                &[vec![core(0, 700, 0)], vec![]]
            ),
            None
        );
        assert_eq!(fold(ddp(Launch::Threads), &cores, &[vec![], vec![]]), None);
    }

    #[test]
    fn a_core_of_several_processes_is_not_watched_and_one_of_several_threads_is_once() {
        let cores = [vec![0], vec![0]];
        let both = [vec![core(0, 900, 0)], vec![core(1, 900, 0)]];
        assert_eq!(fold(ddp(Launch::Processes), &cores, &both), None);
        let threads = [vec![core(0, 900, 0)], vec![]];
        let found = fold(ddp(Launch::Threads), &cores, &threads).unwrap();
        assert_eq!((found.foreign, found.involuntary_switches), (0.2, 3));
    }
}
