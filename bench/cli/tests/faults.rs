//! What users meet when something goes wrong in the middle of a run: a rank that is killed, one that hangs, ctrl-C, a dead
//! conductor, a folder that cannot be written, a full disk. Each test drives the built binary as a user would.
//!
//! Contract: the binary is started with a marker in its environment, which its children inherit, so a test can find every
//! process of its run and prove that none is left. Tests take turns, because they time real processes.
mod running;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use syncmark::plan::schedule::schedule;
use syncmark::run::spool::Event;
use syncmark_record::rows::{Pass, RepeatRow, StepRow, TrialRow};
use syncmark_record::{Outcome, RunFolder};

use running::{Ended, Run, TURN, command, scenario, wait_for};

/// Within this time after a rank's death the others must be gone.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);

fn trial(folder: &RunFolder, label: &str) -> TrialRow {
    let rows: Vec<TrialRow> = folder.read().unwrap();
    let found = rows.iter().find(|row| row.label.contains(label));
    found
        .unwrap_or_else(|| panic!("no trial {label} in {rows:?}"))
        .clone()
}

/// Steps of the window that a rank's spool holds.
fn window_steps(events: &[Event]) -> usize {
    events
        .iter()
        .filter(|event| matches!(event, Event::Step { pass: 0, .. }))
        .count()
}

/// Waits until both ranks of DDP have finished some steps of their window; returns their pids in rank order and how many
/// steps rank 1 had finished.
fn ranks_at_work(run: &mut Run) -> (Vec<u32>, usize) {
    wait_for("two ranks at work", Duration::from_secs(60), || {
        let spools = run.spools();
        let steps: Vec<usize> = spools.iter().map(|events| window_steps(events)).collect();
        let pids = run.ranks();
        (pids.len() == 2 && steps.len() == 2 && steps.iter().all(|&n| n >= 5))
            .then(|| (pids, steps[1]))
    })
}

/// The same scenario with ranks that exchange over TCP.
fn over_tcp(toml: &str) -> String {
    let processes = "\"parallel.launch\" = \"processes\"";
    assert!(toml.contains(processes));
    toml.replace(
        processes,
        &format!("{processes}, \"parallel.transport\" = \"tcp\""),
    )
}

#[test]
fn a_killed_rank_fails_its_trial_alone_and_leaves_its_steps() {
    let toml = scenario(2, "1500ms", "60s");
    for (toml, victim) in [
        (toml.clone(), 1),
        (over_tcp(&toml), 1),
        // Over TCP rank 0 is where the others meet, and through which they hear of each other.
        (over_tcp(&toml), 0),
    ] {
        let _turn = TURN.lock();
        kill_a_rank(&toml, victim);
    }
}

fn kill_a_rank(toml: &str, victim: usize) {
    let mut run = Run::start(toml, &[]);
    let (pids, steps) = ranks_at_work(&mut run);
    let begin = Instant::now();
    running::signal(pids[victim], Signal::KILL);
    wait_for("the other rank to be gone", STOPPED_WITHIN, || {
        (!run.ranks().contains(&pids[1 - victim])).then_some(())
    });
    assert!(begin.elapsed() < STOPPED_WITHIN);
    let Ended {
        status,
        stdout,
        folder,
        kept: _kept,
        ..
    } = run.finish();

    assert_eq!(status, Some(1), "{stdout}");
    let (ddp, single) = (trial(&folder, "ddp"), trial(&folder, "single"));
    assert_eq!(
        (ddp.outcome, single.outcome),
        (Outcome::RankFailed, Outcome::Passed),
        "{stdout}"
    );
    let expected = format!(
        "rank {victim} (process {}) was killed by signal 9 (SIGKILL)",
        pids[victim]
    );
    let reason = ddp.reason.unwrap();
    assert!(reason.contains(&expected), "{reason}");
    assert!(reason.ends_with("1 of 2 repeats ended well"), "{reason}");
    assert!(
        stdout.contains(&expected),
        "the summary says so as well: {stdout}"
    );
    assert_eq!((single.repeats, ddp.samples_per_s), (2, None));
    let repeats: Vec<RepeatRow> = folder.read().unwrap();
    let failed = repeats
        .iter()
        .find(|row| row.outcome == Outcome::RankFailed)
        .unwrap();
    let rows: Vec<StepRow> = folder.read().unwrap();
    let of_rank = |row: &&StepRow| {
        row.trial == failed.trial
            && row.repeat == failed.repeat
            && row.rank == victim as u32
            && row.pass == Pass::Window
    };
    let kept = rows.iter().filter(of_rank).count();
    // Rank 1's steps were looked at last before the signal; rank 0 can be a step behind it.
    assert!(kept + 1 >= steps, "{kept} rows of {steps} finished steps");
}

#[test]
fn a_rank_that_hangs_is_a_timeout_that_names_it() {
    let toml = scenario(1, "1s", "6s");
    for toml in [toml.clone(), over_tcp(&toml)] {
        let _turn = TURN.lock();
        stop_a_rank(&toml);
    }
}

fn stop_a_rank(toml: &str) {
    let mut run = Run::start(toml, &["--filter", "parallel.strategy=ddp"]);
    let (pids, _) = ranks_at_work(&mut run);
    running::signal(pids[1], Signal::STOP);
    let Ended {
        status,
        stdout,
        folder,
        kept: _kept,
        ..
    } = run.finish();
    assert_eq!(status, Some(1), "{stdout}");
    let ddp = trial(&folder, "ddp");
    assert_eq!(ddp.outcome, Outcome::Timeout, "{stdout}");
    let reason = ddp.reason.unwrap();
    let expected = format!(
        "it took longer than its time limit of 6.0 s; rank 1 (process {}) is stopped and gave its last sign of life",
        pids[1]
    );
    assert!(reason.contains(&expected), "{reason}");
}

#[test]
fn ctrl_c_ends_the_run_and_keeps_its_rows() {
    let _turn = TURN.lock();
    let mut run = Run::start(&scenario(3, "1s", "60s"), &[]);
    ranks_at_work(&mut run);
    running::signal(run.pid(), Signal::INT);
    let Ended {
        status,
        stderr,
        folder,
        stdout,
        kept: _kept,
    } = run.finish();
    assert_eq!(status, Some(130), "{stdout}{stderr}");
    assert!(
        stderr.contains("interrupted: what was measured until then is in"),
        "{stderr}"
    );
    let repeats: Vec<RepeatRow> = folder.read().unwrap();
    assert_eq!(repeats.last().unwrap().outcome, Outcome::Interrupted);
    assert!(
        repeats.last().unwrap().steps >= 5,
        "its finished steps are counted"
    );
    let rendered = command()
        .arg("report")
        .arg("--no-pdf")
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        rendered.status.success(),
        "{}",
        String::from_utf8_lossy(&rendered.stderr)
    );
}

#[test]
fn ranks_die_with_their_conductor() {
    let _turn = TURN.lock();
    let mut run = Run::start(
        &scenario(1, "10s", "60s"),
        &["--filter", "parallel.strategy=ddp"],
    );
    ranks_at_work(&mut run);
    running::signal(run.pid(), Signal::KILL);
    wait_for("every rank to be gone", Duration::from_secs(3), || {
        run.ranks().is_empty().then_some(())
    });
    assert_eq!(run.finish().status, None);
}

#[test]
fn a_folder_that_cannot_be_made_is_told_before_anything_runs() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let out = file.path().join("reports");
    let scenario_file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(scenario_file.path(), scenario(1, "1s", "60s")).unwrap();
    let output = command()
        .arg("run")
        .arg(scenario_file.path())
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).replace(&out.display().to_string(), "OUT");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.starts_with("error: cannot make a run folder in OUT: "),
        "{stderr}"
    );
    assert!(stderr.contains("Not a directory"), "{stderr}");
    assert!(
        stderr.contains("help: give a folder that can be written, and has room, with --out DIR"),
        "{stderr}"
    );
}

#[test]
fn a_disk_that_fills_up_stops_the_run_and_keeps_what_was_written() {
    let _turn = TURN.lock();
    // One spool takes 16 MiB: that of `single` fits, the two of DDP's ranks do not.
    let Some(disk) = running::SmallDisk::mount("24m") else {
        return;
    };
    let seed = (0..).find(|&seed| schedule(2, 1, seed)[0][0] == 0).unwrap();
    let toml = scenario(1, "300ms", "60s").replace("seed = 0", &format!("seed = {seed}"));
    let run = Run::start_in(&toml, &[], disk.path());
    let Ended {
        status,
        stdout,
        stderr,
        folder,
        kept: _kept,
    } = run.finish();
    assert_eq!(status, Some(1), "{stdout}{stderr}");
    assert!(
        stderr.contains("error: the run stopped: failed to reserve room for the spool"),
        "{stderr}"
    );
    assert!(stderr.contains("No space left on device"), "{stderr}");
    assert!(
        stderr.contains("what was measured until then is in"),
        "{stderr}"
    );
    assert_eq!(
        folder.read::<RepeatRow>().unwrap().len(),
        1,
        "the repeat before it is kept"
    );
    assert_eq!(trial(&folder, "single").outcome, Outcome::Passed);
    assert_eq!(trial(&folder, "ddp").outcome, Outcome::Skipped);
    assert!(
        !Path::new(folder.path()).join(".spool").exists(),
        "its room is given back"
    );
}

#[test]
fn a_run_without_faults_passes_and_complains_of_nothing() {
    let _turn = TURN.lock();
    let Ended {
        status,
        stdout,
        stderr,
        folder,
        kept: _kept,
    } = Run::start(&scenario(1, "200ms", "60s"), &[]).finish();
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    let progress = |line: &str| line.contains('/') && line.ends_with(" left");
    assert!(
        stderr.lines().count() == 1 && stderr.lines().all(progress),
        "a log gets a line a minute, and the first at once: {stderr}"
    );
    assert!(
        stdout.contains(&folder.path().display().to_string()),
        "{stdout}"
    );
    for file in [
        "environment.json",
        "scenario.toml",
        "trials.csv",
        "repeats.csv",
        "steps.csv",
        "gates.csv",
        "report.md",
    ] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    for file in [".spool", ".gates"] {
        assert!(!folder.path().join(file).exists(), "{file} is left");
    }
}

#[test]
fn verify_runs_every_trial_and_writes_nothing() {
    let _turn = TURN.lock();
    let scenario_file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(scenario_file.path(), scenario(1, "1s", "60s")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = command()
        .current_dir(folder.path())
        .arg("verify")
        .arg(scenario_file.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        stdout.contains("none: one device is the reference itself"),
        "{stdout}"
    );
    assert_eq!(stdout.matches("passed").count(), 2, "{stdout}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
