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
use std::time::Duration;

use rustix::process::Signal;
use syncmark_record::environment::Environment;
use syncmark_record::rows::{RepeatRow, StepRow, TrialRow};
use syncmark_record::{Outcome, RunFolder};

use launching::hosts::Hosts;
use launching::{Agents, Finished, ddp, free_port, losses, plain, scenario, single};
use running::{TURN, command, run_folder, signal, wait_for};

/// A window of some seconds, in the middle of which something is killed.
const LONG: usize = 20_000;

/// Losses of the conductor's own launch.
fn own_losses(toml: &str) -> Vec<(String, u32, u64)> {
    let alone = Agents::start_with(1, toml, &[], |_, _| {}).finish();
    assert_eq!(alone.statuses(), [Some(0)], "{}", alone.stderr(0));
    losses(alone.folder())
}

fn wait_until_at_work(agents: &Agents, ranks: usize) {
    wait_for("the ranks to be at work", Duration::from_secs(60), || {
        agents.at_work(ranks)
    });
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

#[test]
fn a_killed_child_fails_its_repeat_alone_and_leaves_its_steps() {
    for transport in ["shared", "tcp"] {
        let _turn = TURN.lock();
        kill_a_child(transport);
    }
}

fn kill_a_child(transport: &str) {
    let agents = Agents::start(2, &scenario(LONG, 2, &ddp(2, transport)), &[]);
    wait_until_at_work(&agents, 2);
    let child = agents.child_of(1).unwrap();
    signal(child, Signal::KILL);
    let job = agents.finish();
    assert_eq!(job.statuses(), [Some(1), Some(0)], "{}", job.stderr(0));
    let repeats: Vec<RepeatRow> = job.folder().read().unwrap();
    let outcomes: Vec<Outcome> = repeats.iter().map(|row| row.outcome).collect();
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    assert_eq!(outcomes[0], Outcome::RankFailed);
    assert!(
        outcomes[1].has_figures(),
        "the agent starts another child: {outcomes:?}"
    );
    let reason = repeats[0].reason.clone().unwrap();
    assert!(
        reason.starts_with(&format!("rank 1 (process {child} on ")),
        "{reason}"
    );
    assert!(
        reason.ends_with("was killed by signal 9 (SIGKILL)"),
        "{reason}"
    );
    let steps: Vec<StepRow> = job.folder().read().unwrap();
    assert!(
        steps.iter().any(|row| row.repeat == 0 && row.rank == 1),
        "the killed rank's steps came back"
    );
}

#[test]
fn a_killed_agent_ends_the_run_and_keeps_what_was_measured() {
    for transport in ["shared", "tcp"] {
        let _turn = TURN.lock();
        kill_an_agent(transport);
    }
}

fn kill_an_agent(transport: &str) {
    let toml = scenario(LONG, 2, &ddp(2, transport));
    let agents = Agents::start(2, &toml, &[]);
    wait_until_at_work(&agents, 2);
    let agent = agents.pid(1);
    signal(agent, Signal::KILL);
    let job = agents.finish();
    assert_eq!(job.statuses(), [Some(1), None]);
    let row = job.trial("ddp");
    assert_eq!(row.outcome, Outcome::RankFailed);
    let reason = row.reason.unwrap();
    assert!(reason.contains("rank 1 (process "), "{reason}");
    assert!(
        reason.contains(&format!(
            "was lost: the agent of rank 1 (process {agent} on "
        )),
        "{reason}"
    );
    assert!(
        job.stderr(0)
            .contains("error: the run stopped: the agent of rank 1"),
        "{}",
        job.stderr(0)
    );
    let steps: Vec<StepRow> = job.folder().read().unwrap();
    assert!(
        steps.iter().any(|row| row.rank == 0),
        "rank 0's steps are kept"
    );
}

#[test]
fn an_agent_that_stops_answering_is_given_up() {
    let _turn = TURN.lock();
    let agents = Agents::start(2, &scenario(LONG, 1, &ddp(2, "shared")), &[]);
    wait_until_at_work(&agents, 2);
    signal(agents.pid(1), Signal::STOP);
    // Rank 0 ends by itself; the stopped agent must be woken to see that it did.
    wait_for("rank 0 to give up", Duration::from_secs(60), || {
        let rank_0 = agents.pid(0);
        (!agents.living().contains(&rank_0)).then_some(())
    });
    signal(agents.pid(1), Signal::CONT);
    let job = agents.finish();
    assert_eq!(job.statuses(), [Some(1), Some(1)], "{}", job.stderr(0));
    let reason = job.trial("ddp").reason.unwrap();
    assert!(
        reason.contains("it gave no sign of life for 15 s"),
        "{reason}"
    );
    assert!(
        job.stderr(1).contains("ends because rank 0 went away"),
        "{}",
        job.stderr(1)
    );
}

#[test]
fn the_other_agents_end_with_rank_0() {
    let _turn = TURN.lock();
    let agents = Agents::start(3, &scenario(LONG, 1, &ddp(3, "shared")), &[]);
    wait_until_at_work(&agents, 3);
    signal(agents.pid(0), Signal::KILL);
    let job = agents.finish();
    assert_eq!(job.statuses(), [None, Some(1), Some(1)]);
    for rank in 1..3 {
        let stderr = job.stderr(rank);
        assert!(
            stderr.starts_with(&format!("error: the agent of rank {rank} (process ")),
            "{stderr}"
        );
        assert!(stderr.contains("ends because rank 0 went away"), "{stderr}");
    }
}

#[test]
fn a_signal_to_any_agent_interrupts_the_run() {
    let _turn = TURN.lock();
    for told in [vec![0], vec![1], vec![0, 1]] {
        let agents = Agents::start(2, &scenario(LONG, 1, &ddp(2, "shared")), &[]);
        wait_until_at_work(&agents, 2);
        told.iter()
            .for_each(|&rank| signal(agents.pid(rank), Signal::TERM));
        let job = agents.finish();
        assert_eq!(job.statuses()[0], Some(130), "{told:?} {}", job.stderr(0));
        let other = if told.contains(&1) {
            Some(130)
        } else {
            Some(0)
        };
        assert_eq!(job.statuses()[1], other, "{told:?} {}", job.stderr(1));
        let repeats: Vec<RepeatRow> = job.folder().read().unwrap();
        assert_eq!(
            repeats.last().unwrap().outcome,
            Outcome::Interrupted,
            "{told:?}"
        );
        if told == [1] {
            let stopped = "was stopped by signal 15 (SIGTERM)";
            assert!(
                repeats
                    .last()
                    .unwrap()
                    .reason
                    .as_ref()
                    .unwrap()
                    .ends_with(stopped)
            );
            assert!(job.stderr(0).contains(stopped), "{}", job.stderr(0));
        }
    }
}

/// Runs one process with variables that are wrong.
fn complaint(variables: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = plain(command());
    let output = command
        .args(["run", "quickstart", "--out", "/proc/nowhere"])
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn wrong_variables_are_errors_with_their_remedy() {
    let cases: [(&[(&str, &str)], &str); 3] = [
        (
            &[("RANK", "0")],
            "error: RANK is set to \"0\" but WORLD_SIZE is not set; torchrun sets both",
        ),
        (
            &[
                ("RANK", "5"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
            ],
            "error: RANK is 5 but WORLD_SIZE is 2: ranks count from 0 to one below the number of processes",
        ),
        (
            &[
                ("RANK", "1"),
                ("WORLD_SIZE", "2"),
                ("MASTER_ADDR", "127.0.0.1"),
                ("SYNCMARK_MASTER_PORT", "x"),
            ],
            "error: SYNCMARK_MASTER_PORT is \"x\", not a port between 1 and 65535",
        ),
    ];
    for (variables, wanted) in cases {
        let (status, stderr) = complaint(variables, &[]);
        assert_eq!(status, Some(2), "{stderr}");
        assert!(stderr.starts_with(wanted), "{stderr}");
        assert!(stderr.contains("\n  help: "), "{stderr}");
    }
    let (status, stderr) = complaint(&[], &["--launcher", "mpi"]);
    assert_eq!(status, Some(2));
    assert!(
        stderr.starts_with("error: --launcher mpi was given but OMPI_COMM_WORLD_RANK is not set"),
        "{stderr}"
    );
    // With the launcher left out of account the run begins, and fails at its folder.
    let (_, stderr) = complaint(&[("RANK", "0")], &["--launcher", "none"]);
    assert!(
        stderr.contains("cannot make a run folder in /proc/nowhere"),
        "{stderr}"
    );
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let port = free_port().to_string();
    let lonely = |rank| {
        let variables = [
            ("RANK", rank),
            ("WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("SYNCMARK_MASTER_PORT", port.as_str()),
            ("SYNCMARK_MEETING_TIMEOUT", "1"),
        ];
        complaint(&variables, &[])
    };
    let (status, stderr) = lonely("0");
    assert_eq!(status, Some(4));
    assert!(
        stderr.starts_with("error: rank 1 did not come to 127.0.0.1:"),
        "{stderr}"
    );
    let (status, stderr) = lonely("1");
    assert_eq!(status, Some(4));
    assert!(
        stderr.starts_with("error: rank 1 could not join rank 0 at 127.0.0.1:"),
        "{stderr}"
    );
    assert!(
        stderr.contains("all processes need the same MASTER_ADDR"),
        "{stderr}"
    );
}

#[test]
fn agents_with_other_options_are_named_before_anything_is_written() {
    let _turn = TURN.lock();
    let port = free_port().to_string();
    let job = Agents::start_with(2, &scenario(8, 1, single()), &[], |rank, command| {
        command
            .env("OMPI_COMM_WORLD_RANK", rank.to_string())
            .env("OMPI_COMM_WORLD_SIZE", "2")
            .env("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
            .env("SYNCMARK_MASTER_PORT", &port);
        if rank == 1 {
            command.args(["--set", "train.seed=7"]);
        }
    })
    .finish();
    assert_eq!(job.statuses(), [Some(2), Some(2)]);
    assert!(job.folder.is_none());
    let stderr = job.stderr(0);
    assert!(
        stderr.contains(
            "plans other trials than rank 0: its scenario `agents` or its options differ"
        ),
        "{stderr}"
    );
    assert!(
        job.stderr(1)
            .starts_with("error: rank 0 refused rank 1: the agent of rank 1"),
        "{}",
        job.stderr(1)
    );
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
