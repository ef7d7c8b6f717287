//! A job of agents when something goes wrong: an agent, a child or rank 0 dies or hangs, a signal comes, variables are wrong, agents differ.
//!
//! Contract: every process of a job has a marker in its environment, and no job may leave one behind.
mod launching;
#[allow(
    dead_code,
    reason = "a test crate of its own: what only single runs need is unused here"
)]
mod running;

use std::time::Duration;

use rustix::process::Signal;
use syncmark_record::Outcome;
use syncmark_record::rows::{RepeatRow, StepRow};

use launching::{Agents, ddp, free_port, plain, scenario, single};
use running::{TURN, command, signal, wait_for};

/// A window of some seconds, in the middle of which something is killed.
const LONG: usize = 20_000;

fn wait_until_at_work(agents: &Agents, ranks: usize) {
    wait_for("the ranks to be at work", Duration::from_secs(60), || {
        agents.at_work(ranks)
    });
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
