//! The binary as launchers start it: the same losses as the conductor's own launch in one run folder, and a clean end whatever
//! happens to whom.
//!
//! Contract: every process of a job has a marker in its environment, and no job may leave one behind. What needs a launcher
//! or rights that are not there prints why it is skipped; SYNCMARK_REQUIRE_MPI=1 (set in CI) turns that into a failure.
mod launching;
#[allow(
    dead_code,
    reason = "a test crate of its own: what only single runs need is unused here"
)]
mod running;

use std::process::{Command, Output, Stdio};

use syncmark_record::environment::Environment;
use syncmark_record::rows::{StepRow, TrialRow};
use syncmark_record::{Outcome, RunFolder};

use launching::hosts::Hosts;
use launching::{Agents, Finished, ddp, free_port, losses, plain, scenario, single};
use running::{TURN, run_folder};

/// Losses of the conductor's own launch.
fn own_losses(toml: &str) -> Vec<(String, u32, u64)> {
    let alone = Agents::start_with(1, toml, &[], |_, _| {}).finish();
    assert_eq!(alone.statuses(), [Some(0)], "{}", alone.stderr(0));
    losses(alone.folder())
}

/// One folder, written by rank 0, which alone prints.
fn assert_one_voice(job: &Finished) {
    assert!(
        job.statuses().iter().all(|status| *status == Some(0)),
        "{:?} {}",
        job.statuses(),
        job.stderr(0)
    );
    assert!(
        job.stdout(0)
            .contains(&job.folder().path().display().to_string()),
        "{}",
        job.stdout(0)
    );
    for rank in 1..job.agents.len() {
        assert_eq!(
            (job.stdout(rank), job.stderr(rank)),
            (String::new(), String::new())
        );
    }
    assert_eq!(
        std::fs::read_dir(job.folder().path().parent().unwrap())
            .unwrap()
            .count(),
        1
    );
}

/// Two ranks add two numbers, whose order does not matter: over either transport every repeat of DDP has the same loss.
fn assert_alike_over_any_transport(folder: &RunFolder, losses: &[(String, u32, u64)]) {
    let rows: Vec<TrialRow> = folder.read().unwrap();
    let of = |transport: &str| -> Vec<(u32, u64)> {
        let row = rows
            .iter()
            .find(|row| row.transport.as_deref() == Some(transport));
        let id = &row.expect("a trial over each transport").trial;
        let its = losses.iter().filter(|(trial, ..)| trial == id);
        its.map(|(_, repeat, loss)| (*repeat, *loss)).collect()
    };
    assert!(!of("tcp").is_empty());
    assert_eq!(of("tcp"), of("shared"));
}

#[test]
fn a_loop_of_two_agents_trains_like_the_conductors_own_launch() {
    let _turn = TURN.lock();
    let toml = scenario(
        8,
        2,
        &[single(), &ddp(2, "shared"), &ddp(2, "tcp")].concat(),
    );
    let job = Agents::start(2, &toml, &[]).finish();
    assert_one_voice(&job);
    let losses = losses(job.folder());
    assert_eq!(losses.len(), 6);
    assert_eq!(losses, own_losses(&toml));
    assert_alike_over_any_transport(job.folder(), &losses);
    let environment: Environment = job.folder().environment().unwrap().unwrap();
    let launched = environment.launched.expect("a launcher started this run");
    assert_eq!(launched.launcher, "torchrun");
    let ranks: Vec<u32> = launched.agents.iter().map(|agent| agent.rank).collect();
    assert_eq!(ranks, [0, 1]);
    let gates = std::fs::read_to_string(job.folder().path().join("gates.csv")).unwrap();
    assert!(
        gates.lines().count() > 1,
        "the outputs of rank 1 came back: {gates}"
    );
    for left in [".spool", ".gates"] {
        assert!(!job.folder().path().join(left).exists(), "{left} is left");
    }
}

#[test]
fn three_agents_share_what_needs_three_and_idle_where_fewer_do() {
    let _turn = TURN.lock();
    let toml = scenario(
        8,
        1,
        &[
            &ddp(3, "shared"),
            single(),
            &ddp(2, "shared").replace("ddp-shared", "two"),
        ]
        .concat(),
    );
    let job = Agents::start(3, &toml, &[]).finish();
    assert_one_voice(&job);
    assert_eq!(losses(job.folder()), own_losses(&toml));
    let steps: Vec<StepRow> = job.folder().read().unwrap();
    let ranks = |label: &str| {
        let id = job.trial(label).trial;
        let mut ranks: Vec<u32> = steps
            .iter()
            .filter(|row| row.trial == id)
            .map(|row| row.rank)
            .collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    };
    assert_eq!(
        (ranks("×3"), ranks("×2"), ranks("single")),
        (vec![0, 1, 2], vec![0, 1], vec![0])
    );
}

#[test]
fn a_trial_of_more_ranks_than_agents_is_skipped_with_its_reason() {
    let _turn = TURN.lock();
    let toml = scenario(8, 1, &[&ddp(3, "shared"), single()].concat());
    let job = Agents::start(2, &toml, &[]).finish();
    assert_one_voice(&job);
    let row = job.trial("ddp");
    assert_eq!(row.outcome, Outcome::Skipped);
    let reason = row.reason.unwrap();
    assert!(
        reason.contains("it has 3 ranks in processes, but torchrun started 2"),
        "{reason}"
    );
    assert_eq!(job.trial("single").outcome, Outcome::Passed);
}

/// What mpirun says of itself, or why there is none.
fn mpirun() -> Result<String, String> {
    match Command::new("mpirun")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
    {
        Ok(Output { status, stdout, .. }) if status.success() => {
            Ok(String::from_utf8_lossy(&stdout).into_owned())
        }
        Ok(output) => Err(format!(
            "mpirun --version failed: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
        Err(error) => Err(format!("there is no mpirun: {error}")),
    }
}

#[test]
fn mpirun_starts_agents_that_train_like_the_conductors_own_launch() {
    let _turn = TURN.lock();
    if let Err(why) = mpirun().and_then(|version| {
        if version.contains("Open MPI") {
            Ok(())
        } else {
            Err(format!("mpirun is not Open MPI's: {version}"))
        }
    }) {
        let required = std::env::var("SYNCMARK_REQUIRE_MPI").is_ok_and(|value| !value.is_empty());
        assert!(!required, "{why}");
        eprintln!("skipped: {why}");
        return;
    }
    let toml = scenario(
        8,
        2,
        &[single(), &ddp(2, "shared"), &ddp(2, "tcp")].concat(),
    );
    let files = tempfile::tempdir().unwrap();
    let (file, out) = (
        files.path().join("agents.toml"),
        files.path().join("reports"),
    );
    std::fs::write(&file, &toml).unwrap();
    let output = plain(Command::new("mpirun"))
        .args(["-np", "2", "--allow-run-as-root", "--oversubscribe"])
        .arg(env!("CARGO_BIN_EXE_syncmark"))
        .arg("run")
        .arg(&file)
        .arg("--out")
        .arg(&out)
        .env("SYNCMARK_MASTER_PORT", free_port().to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    let folder = RunFolder::open(run_folder(&out).unwrap()).unwrap();
    assert_eq!(losses(&folder), own_losses(&toml));
    let environment: Environment = folder.environment().unwrap().unwrap();
    assert_eq!(environment.launched.unwrap().launcher, "Open MPI's mpirun");
}

#[test]
fn two_network_namespaces_train_like_one_host() {
    let _turn = TURN.lock();
    let hosts = match Hosts::make() {
        Ok(hosts) => hosts,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let toml = scenario(8, 2, &ddp(2, "tcp"));
    let port = free_port().to_string();
    let program = |rank| hosts.command(rank, env!("CARGO_BIN_EXE_syncmark"));
    let job = Agents::start_as(2, &toml, &[], program, |rank, command| {
        command
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", "2")
            .env("MASTER_ADDR", hosts.address(0))
            .env("SYNCMARK_MASTER_PORT", &port);
    })
    .finish();
    assert_one_voice(&job);
    assert_eq!(losses(job.folder()), own_losses(&toml));
    let sent = job.trial("ddp").measured_bytes_per_step;
    assert!(sent.is_some_and(|bytes| bytes > 0.0), "{sent:?}");
}
