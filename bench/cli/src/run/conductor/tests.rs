//! Runs told with a mock executor and fake time: order, gates, outcomes, interruption, remaining time.
use std::time::Duration;

use syncmark_engine::model::spec::Norm;
use syncmark_record::Outcome;

use super::super::mock::{
    Act, FakeClock, MockExecutor, MockLedger, MockProgress, collectives, plan,
};
use super::super::standing::Unrun;
use super::{Conductor, RunEnd};
use crate::plan::Plan;
use crate::plan::schedule::schedule;
use crate::scenario::file::Transport;

struct Told {
    end: RunEnd,
    executor: MockExecutor,
    ledger: MockLedger,
    progress: MockProgress,
}

fn tell(
    plan: &Plan,
    script: &[(&'static str, Act)],
    set: impl FnOnce(&mut MockExecutor, &mut MockLedger),
) -> Told {
    let clock = FakeClock::default();
    let scratch = tempfile::tempdir().unwrap();
    let mut executor = MockExecutor::new(&clock, script);
    let (mut ledger, mut progress) = (MockLedger::default(), MockProgress::default());
    set(&mut executor, &mut ledger);
    let end = Conductor {
        executor: &mut executor,
        ledger: &mut ledger,
        clock: &clock,
        progress: &mut progress,
        scratch: scratch.path(),
    }
    .run(plan);
    assert!(progress.ended, "the bar is taken away, whatever happened");
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        0,
        "no dump is left"
    );
    Told {
        end,
        executor,
        ledger,
        progress,
    }
}

fn outcomes(end: &RunEnd) -> Vec<Outcome> {
    end.trials.iter().map(|row| row.outcome).collect()
}

/// Names of the measuring jobs of the schedule, leaving out those for which `skip` is true.
fn scheduled(plan: &Plan, skip: impl Fn(&str, usize) -> bool) -> Vec<String> {
    let blocks = schedule(
        plan.trials.len(),
        plan.scenario.measure.repeats,
        plan.scenario.measure.seed,
    );
    let jobs = blocks
        .iter()
        .enumerate()
        .flat_map(|(repeat, block)| block.iter().map(move |&index| (repeat, index)));
    let named = jobs.map(|(repeat, index)| (plan.trials[index].label.clone(), repeat));
    named
        .filter(|(label, repeat)| !skip(label, *repeat))
        .map(|(label, repeat)| format!("{label}#{repeat}"))
        .collect()
}

const GATES: [&str; 6] = [
    "dp, reference at step 1",
    "dp, gate at step 1",
    "dp, reference at step 3",
    "dp, gate at step 3",
    "ddp, gate at step 1",
    "ddp, gate at step 3",
];

/// Each trial of NCCL's collectives is asked for once, before the blocks, and every repeat of it is told.
#[test]
fn nccl_is_asked_once_before_anything_is_timed() {
    let mut plan = plan(2);
    plan.trials = vec![collectives(Transport::Nccl), collectives(Transport::Shared)];
    plan.trials[1].id = "over memory".into();
    let log = "x NCCL INFO AllReduce: 1024 Bytes -> Algo RING proto LL channel{Lo..Hi}={0..1}";
    let told = tell(&plan, &[], |executor, _| executor.nccl_log = Some(log));
    assert_eq!(told.executor.jobs[0], "collectives, NCCL's choices");
    assert_eq!(told.executor.jobs[1..], scheduled(&plan, |_, _| false));
    let known = told.ledger.repeats.iter().zip(&told.ledger.nccl);
    for ((trial, ..), known) in known {
        assert_eq!(*known, trial != "over memory", "{trial}");
    }
    // It can be measured without knowing, and the user hears of it.
    let told = tell(&plan, &[], |_, _| {});
    assert_eq!(told.ledger.nccl, [false; 4]);
    assert_eq!(told.progress.problems.len(), 1);
    assert!(told.progress.problems[0].contains("NCCL's choices are not known"));
    let stopped = [(
        "collectives, NCCL's choices",
        Act::End(Outcome::Interrupted, "ctrl-C"),
    )];
    let told = tell(&plan, &stopped, |_, _| {});
    assert_eq!(told.end.unrun, Unrun::Interrupted);
    assert!(told.ledger.repeats.is_empty());
}

#[test]
fn gates_come_first_and_share_their_reference_then_the_blocks_in_their_order() {
    let plan = plan(4);
    let told = tell(&plan, &[], |_, _| {});
    assert_eq!(
        told.executor.jobs[..6],
        GATES,
        "single needs no gate; dp and ddp share one reference"
    );
    assert_eq!(told.executor.jobs[6..], scheduled(&plan, |_, _| false));
    assert_eq!(outcomes(&told.end), [Outcome::Passed; 3]);
    assert!(
        told.end
            .trials
            .iter()
            .all(|row| row.repeats == 4 && row.reason.is_none())
    );
    assert_eq!(told.end.unrun, Unrun::Complete);
    assert_eq!(told.ledger.repeats.len(), 12);
    let first_block: Vec<u32> = told.ledger.repeats[..3].iter().map(|row| row.2).collect();
    assert_eq!(
        first_block,
        [0, 1, 2],
        "the position within the block is recorded"
    );
}

#[test]
fn the_paired_arm_comes_first_in_half_of_the_repeats() {
    let told = tell(&plan(4), &[], |_, _| {});
    for label in ["dp", "ddp"] {
        let first = told
            .executor
            .arms
            .iter()
            .filter(|(name, first)| name == label && *first)
            .count();
        assert_eq!(first, 2, "{label}");
    }
    let single = told
        .ledger
        .repeats
        .iter()
        .filter(|row| row.0 == "id-single");
    assert!(
        single.into_iter().all(|row| row.4.is_none()),
        "single has nothing to synchronize"
    );
}

#[test]
fn a_trial_that_disagrees_with_one_device_is_invalid_and_never_timed() {
    let plan = plan(3);
    let told = tell(&plan, &[], |executor, _| executor.wrong = Some("dp"));
    assert_eq!(
        outcomes(&told.end),
        [Outcome::Passed, Outcome::Invalid, Outcome::Passed]
    );
    assert_eq!(
        told.executor.jobs[5..],
        scheduled(&plan, |label, _| label == "dp")
    );
    let row = &told.end.trials[1];
    assert_eq!(
        row.reason.as_deref(),
        Some(
            "gate at step 1: the update of 0.linear.weight differs from that of one device by 5.0e-1, more than 1e-3 (against 1 device, chunks 4+4)"
        )
    );
    let gates: Vec<(&str, bool)> = told
        .ledger
        .gates
        .iter()
        .map(|row| (row.label.as_str(), row.passed))
        .collect();
    assert_eq!(gates, [("dp", false), ("ddp", true), ("ddp", true)]);
}

/// The end of a run of ddp alone whose gates find these factors on its updates, and (start, passed, retried) of their rows.
fn gated(norm: Norm, factors: &[f32]) -> (Told, Vec<(u32, bool, bool)>) {
    let mut plan = plan(1);
    plan.trials.drain(..2);
    plan.trials[0].config.norm = norm;
    let told = tell(&plan, &[], |executor, _| {
        executor.factors = factors.iter().copied().collect();
    });
    let rows = told.ledger.gates.iter();
    let rows = rows
        .map(|row| (row.start, row.passed, row.retried))
        .collect();
    (told, rows)
}

#[test]
fn sync_batch_norm_that_strays_from_one_start_is_tried_from_another() {
    let (told, rows) = gated(Norm::SyncBatch, &[1.02]);
    assert_eq!(outcomes(&told.end), [Outcome::Passed]);
    assert_eq!(
        rows,
        [(0, false, true), (1, true, false), (1, true, false)],
        "what strayed is recorded"
    );
    assert_eq!(
        told.executor.jobs,
        [
            "ddp, reference at step 1",
            "ddp, gate at step 1",
            "ddp, reference at step 1",
            "ddp, gate at step 1",
            "ddp, reference at step 3",
            "ddp, gate at step 3",
            "ddp#0"
        ]
    );
    // A later stage may stray as well, and the next start passes all of them or none.
    let (_, rows) = gated(Norm::SyncBatch, &[1.0, 1.07]);
    let expected = [
        (0, true, false),
        (0, false, true),
        (1, true, false),
        (1, true, false),
    ];
    assert_eq!(rows, expected);
}

#[test]
fn a_gate_that_no_start_passes_bars_its_trial() {
    let (told, rows) = gated(Norm::SyncBatch, &[1.02; 20]);
    assert_eq!(outcomes(&told.end), [Outcome::Invalid]);
    assert_eq!(rows.len(), 8);
    assert_eq!(rows.last(), Some(&(7, false, false)));
    let reason = told.end.trials[0].reason.as_deref().unwrap_or_default();
    assert!(
        reason.ends_with("(against 1 device, chunks 8, as from 7 other initial parameters)"),
        "{reason}"
    );
}

#[test]
fn neither_a_gross_error_nor_any_of_another_norm_is_tried_again() {
    for (norm, factor) in [(Norm::SyncBatch, 0.5), (Norm::Batch, 1.02)] {
        let (told, rows) = gated(norm, &[factor]);
        assert_eq!(outcomes(&told.end), [Outcome::Invalid], "{norm:?}");
        assert_eq!(rows, [(0, false, false)], "{norm:?}");
    }
}

#[test]
fn a_gate_whose_process_dies_gives_its_trial_that_outcome() {
    let told = tell(
        &plan(2),
        &[(
            "ddp, gate at step 1",
            Act::End(Outcome::RankFailed, "rank 1 died"),
        )],
        |_, _| {},
    );
    assert_eq!(
        outcomes(&told.end),
        [Outcome::Passed, Outcome::Passed, Outcome::RankFailed]
    );
    assert_eq!(
        told.end.trials[2].reason.as_deref(),
        Some("gate: rank 1 died")
    );
    assert!(told.progress.problems[0].contains("rank 1 died"));
}

#[test]
fn a_reference_that_fails_bars_all_that_depend_on_it_and_is_tried_once() {
    let told = tell(
        &plan(1),
        &[(
            "dp, reference at step 1",
            Act::End(Outcome::OutOfMemory, "no room"),
        )],
        |_, _| {},
    );
    assert_eq!(
        outcomes(&told.end),
        [Outcome::Passed, Outcome::OutOfMemory, Outcome::OutOfMemory]
    );
    assert_eq!(told.executor.jobs, ["dp, reference at step 1", "single#0"]);
}

#[test]
fn one_failed_repeat_stops_nothing_and_decides_the_outcome_of_its_trial() {
    let plan = plan(3);
    let told = tell(
        &plan,
        &[("ddp#1", Act::End(Outcome::RankFailed, "rank 1 was killed"))],
        |_, _| {},
    );
    assert_eq!(
        told.executor.jobs[6..],
        scheduled(&plan, |_, _| false),
        "it is tried again in the next block"
    );
    assert_eq!(
        outcomes(&told.end),
        [Outcome::Passed, Outcome::Passed, Outcome::RankFailed]
    );
    let reason = told.end.trials[2].reason.as_deref().unwrap();
    assert_eq!(
        reason,
        "repeat 1: rank 1 was killed; 2 of 3 repeats ended well"
    );
    assert_eq!(
        told.ledger.repeats.len(),
        9,
        "the failed repeat has its row, too"
    );
}

#[test]
fn two_timeouts_or_one_lack_of_memory_end_a_trial() {
    let plan = plan(5);
    let timeout = |name| (name, Act::End(Outcome::Timeout, "too long"));
    let script = [
        timeout("dp#0"),
        timeout("dp#2"),
        ("single#1", Act::End(Outcome::OutOfMemory, "no room")),
    ];
    let told = tell(&plan, &script, |_, _| {});
    let left_out =
        |label: &str, repeat| (label == "dp" && repeat > 2) || (label == "single" && repeat > 1);
    assert_eq!(told.executor.jobs[6..], scheduled(&plan, left_out));
    assert_eq!(
        outcomes(&told.end),
        [Outcome::OutOfMemory, Outcome::Timeout, Outcome::Passed]
    );
    assert_eq!(
        told.progress.finished, told.progress.jobs,
        "what is left out moves the bar as well"
    );
}

#[test]
fn an_interruption_keeps_rows_and_names_what_did_not_run() {
    let plan = plan(3);
    let order = scheduled(&plan, |_, _| false);
    let first: &'static str = Box::leak(order[0].clone().into_boxed_str());
    let told = tell(&plan, &[(first, Act::PassAndInterrupt)], |_, _| {});
    assert_eq!(told.end.unrun, Unrun::Interrupted);
    assert_eq!(told.executor.jobs.len(), 6 + 1);
    assert_eq!(told.ledger.repeats.len(), 1);
    for row in &told.end.trials {
        let expected = if first.starts_with(&format!("{}#", row.label)) {
            Outcome::Passed
        } else {
            Outcome::Interrupted
        };
        assert_eq!(row.outcome, expected, "{}", row.label);
    }
}

#[test]
fn an_interrupted_job_is_recorded_and_ends_the_run() {
    let plan = plan(2);
    let second: &'static str =
        Box::leak(scheduled(&plan, |_, _| false)[1].clone().into_boxed_str());
    let told = tell(
        &plan,
        &[(second, Act::End(Outcome::Interrupted, "ctrl-C"))],
        |_, _| {},
    );
    assert_eq!(told.ledger.repeats.len(), 2, "its finished steps are kept");
    assert_eq!(told.ledger.repeats[1].3, Outcome::Interrupted);
    assert_eq!(told.executor.jobs.len(), 6 + 2);
}

#[test]
fn an_interruption_among_the_gates_leaves_every_trial_interrupted() {
    let told = tell(
        &plan(2),
        &[(
            "dp, gate at step 1",
            Act::End(Outcome::Interrupted, "ctrl-C"),
        )],
        |_, _| {},
    );
    assert_eq!(outcomes(&told.end), [Outcome::Interrupted; 3]);
    assert_eq!(told.executor.jobs, GATES[..2]);
}

#[test]
fn records_that_cannot_be_written_stop_the_run_with_what_there_is() {
    let told = tell(&plan(3), &[], |_, ledger| ledger.full_at = Some(4));
    let Unrun::Stopped(why) = &told.end.unrun else {
        panic!("{:?}", told.end.unrun)
    };
    assert!(
        why.contains("steps.csv") && why.contains("4 repeats are kept"),
        "{why}"
    );
    assert_eq!(told.executor.jobs.len(), 6 + 5);
    assert_eq!(
        told.end.trials.iter().map(|row| row.repeats).sum::<u32>(),
        4
    );
}

#[test]
fn spools_that_cannot_be_made_stop_the_run() {
    let plan = plan(1);
    let order = scheduled(&plan, |_, _| false);
    let second: &'static str = Box::leak(order[1].clone().into_boxed_str());
    let told = tell(&plan, &[(second, Act::Stop)], |_, _| {});
    assert!(matches!(told.end.unrun, Unrun::Stopped(_)));
    let skipped = told
        .end
        .trials
        .iter()
        .filter(|row| row.outcome == Outcome::Skipped)
        .count();
    assert_eq!(skipped, 2);
}

#[test]
fn remaining_time_falls_to_the_last_job() {
    let told = tell(&plan(3), &[], |_, _| {});
    // Every job takes ten seconds of fake time; after the first block all trials have been observed.
    let expected: Vec<Duration> = (1..=6)
        .rev()
        .map(|jobs| Duration::from_secs(10 * jobs))
        .collect();
    assert_eq!(
        told.progress.remaining[told.progress.remaining.len() - 6..],
        expected
    );
    assert_eq!((told.progress.jobs, told.progress.finished), (12, 12));
}

#[test]
fn a_trial_that_the_executor_refuses_is_skipped_with_its_reason_and_never_started() {
    let plan = plan(2);
    let told = tell(&plan, &[], |executor, _| executor.refused = Some("ddp"));
    assert_eq!(
        outcomes(&told.end),
        [Outcome::Passed, Outcome::Passed, Outcome::Skipped]
    );
    assert_eq!(told.end.trials[2].reason.as_deref(), Some("no ddp here"));
    assert!(!told.executor.jobs.iter().any(|job| job.starts_with("ddp")));
}
