//! Other load in a real run: seen, attributed to others, labelled in every file; and never our own.
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod running;

use std::sync::atomic::{AtomicBool, Ordering};

use running::{Ended, Run, TURN};
use rustix::thread::{CpuSet, sched_setaffinity};
use syncmark::run::cores::usable;
use syncmark_record::Outcome;
use syncmark_record::rows::{RepeatRow, TrialRow};

/// `single` alone, whose rank computes without a pause. A smoke size is not judged by other load.
fn scenario(smoke: bool) -> String {
    let (warmup, window) = if smoke { ("100ms", "1s") } else { ("2s", "5s") };
    running::scenario(1, window, "2m")
        .replace("smoke = true", &format!("smoke = {smoke}"))
        .replace(
            "warmup_time = \"50ms\"",
            &format!("warmup_time = \"{warmup}\""),
        )
        .split("[[variant]]\nname = \"ddp\"")
        .next()
        .unwrap()
        .to_owned()
}

fn run(smoke: bool) -> (Ended, RepeatRow, TrialRow) {
    let ended = Run::start(&scenario(smoke), &["--quiet"]).finish();
    assert_eq!(ended.status, Some(0), "{}{}", ended.stdout, ended.stderr);
    let repeats: Vec<RepeatRow> = ended.folder.read().unwrap();
    let trials: Vec<TrialRow> = ended.folder.read().unwrap();
    let [repeat] = repeats.try_into().unwrap();
    let [trial] = trials.try_into().unwrap();
    (ended, repeat, trial)
}

/// Runs something while another thread keeps the first usable core busy, which is device 0's.
fn beside_a_busy_loop<T>(what: impl FnOnce() -> T) -> T {
    let core = usable().unwrap()[0];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut set = CpuSet::new();
            set.set(core);
            sched_setaffinity(None, &set).unwrap();
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(what));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_busy_loop_on_a_ranks_core_makes_the_trial_disturbed_everywhere() {
    let _turn = TURN.lock();
    let (ended, repeat, trial) = beside_a_busy_loop(|| run(false));
    assert_eq!(repeat.outcome, Outcome::Disturbed, "{repeat:?}");
    let reason = repeat.reason.unwrap();
    assert!(
        reason.contains("other programs used a core of the ranks"),
        "{reason}"
    );
    // The scheduler gives each of two threads its half; a third of it is left for whatever else runs here.
    let foreign = repeat.foreign_cpu_share.unwrap();
    assert!(foreign > 0.3 && foreign <= 1.0, "{foreign}");
    assert!(repeat.watched_ns.unwrap() >= repeat.window_ns.unwrap());
    assert!(
        repeat.involuntary_switches.unwrap() > 0,
        "two threads shared a core"
    );
    assert_eq!(trial.outcome, Outcome::Disturbed);
    assert!(
        trial.step_ms.is_some() && trial.samples_per_s.is_some(),
        "figures are kept"
    );
    assert!(ended.stdout.contains("disturbed"), "{}", ended.stdout);
    let report = std::fs::read_to_string(ended.folder.path().join("report.md")).unwrap();
    assert!(report.contains("1 trial was disturbed"), "{report}");
    assert!(
        report.contains("Disturbed: single ×1."),
        "captions name it: {report}"
    );
}

#[test]
fn what_the_ranks_use_themselves_is_not_foreign() {
    let _turn = TURN.lock();
    let (_, repeat, trial) = run(true);
    assert_eq!(
        repeat.outcome,
        Outcome::Passed,
        "a smoke size is not judged: {repeat:?}"
    );
    let foreign = repeat
        .foreign_cpu_share
        .expect("Linux says who used a core");
    // The rank never idles, so its core is busy all the time. Were its own time foreign, the share would be 1, however quiet
    // or noisy the machine; others leave the rank a part of the core, be they thirty.
    assert!(foreign < 0.97, "{foreign}");
    assert!(
        repeat.steal_share.is_some() && repeat.involuntary_switches.is_some(),
        "{repeat:?}"
    );
    let warned = trial
        .warnings
        .as_deref()
        .is_some_and(|w| w.contains("other load"));
    assert_eq!(
        warned,
        syncmark_record::disturbance::disturbance(&repeat).is_some(),
        "{trial:?}"
    );
}
