//! Starts the built binary as a launcher would: one process per rank, with the variables of a rank.
#![allow(dead_code, reason = "each test file uses a part of this")]
pub mod hosts;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use syncmark_record::RunFolder;
use syncmark_record::rows::{RepeatRow, TrialRow};

use crate::running::{marked, marker, run_folder, spools};
use syncmark::run::spool::Event;

/// Variables by which a launcher could have started the tests themselves.
const LAUNCHERS: [&str; 12] = [
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "PMI_RANK",
    "PMI_SIZE",
];

/// A model whose windows are counted in steps alone, so that its losses are the same in every run; `variants` is TOML.
pub fn scenario(steps: usize, repeats: usize, variants: &str) -> String {
    format!(
        r#"name = "agents"
question = "Do agents train like one process does?"
kind = "train"
[model]
layers = [{{ linear = {{ features = 256 }} }}, "relu", {{ linear = {{ features = "classes" }} }}]
input = [256]
classes = 10
norm = "none"
[data]
source = "synthetic"
batch_size = 64
[measure]
smoke = true
repeats = {repeats}
steps = {steps}
min_time = "0s"
warmup_steps = 3
warmup_time = "0s"
trace_steps = 2
unsynchronized = false
timeout = "100s"
seed = 0
{variants}"#
    )
}

/// A variant of DDP in processes.
pub fn ddp(devices: usize, transport: &str) -> String {
    format!(
        "[[variant]]\nname = \"ddp-{transport}\"\nset = {{ \"parallel.strategy\" = \"ddp\", \"parallel.launch\" = \"processes\", \
         \"parallel.transport\" = \"{transport}\", \"parallel.devices\" = {devices} }}\n"
    )
}

/// A variant that runs in one process.
pub fn single() -> &'static str {
    "[[variant]]\nname = \"single\"\nset = { \"parallel.strategy\" = \"single\" }\n"
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Takes away what a launcher of the tests has set.
pub fn plain(mut command: Command) -> Command {
    LAUNCHERS.iter().for_each(|name| {
        command.env_remove(name);
    });
    command
}

/// The agents of a job. Dropped, they are killed.
pub struct Agents {
    children: Vec<Child>,
    marker: String,
    out: PathBuf,
    files: tempfile::TempDir,
}

/// How a job ended.
pub struct Finished {
    /// What each agent's end, stdout and stderr were, by rank.
    pub agents: Vec<Output>,
    /// The run folder, where there is one.
    pub folder: Option<RunFolder>,
    _files: tempfile::TempDir,
}

impl Agents {
    /// A loop that sets the variables of torchrun.
    pub fn start(world: usize, toml: &str, arguments: &[&str]) -> Self {
        let port = free_port().to_string();
        Self::start_with(world, toml, arguments, |rank, command| {
            command
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", world.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("SYNCMARK_MASTER_PORT", &port);
        })
    }

    /// As [`Agents::start`], with other variables.
    pub fn start_with(
        world: usize,
        toml: &str,
        arguments: &[&str],
        variables: impl Fn(usize, &mut Command),
    ) -> Self {
        let program = |_| crate::running::command();
        Self::start_as(world, toml, arguments, program, variables)
    }

    /// As [`Agents::start_with`], started by a program of each rank.
    pub fn start_as(
        world: usize,
        toml: &str,
        arguments: &[&str],
        program: impl Fn(usize) -> Command,
        variables: impl Fn(usize, &mut Command),
    ) -> Self {
        let files = tempfile::tempdir().unwrap();
        let (scenario, out) = (
            files.path().join("agents.toml"),
            files.path().join("reports"),
        );
        std::fs::write(&scenario, toml).unwrap();
        let marker = marker();
        let (name, value) = marker.split_once('=').unwrap();
        let start = |rank| {
            let mut command = plain(program(rank));
            command
                .arg("run")
                .arg(&scenario)
                .arg("--out")
                .arg(&out)
                .args(arguments)
                .env(name, value)
                // What a killed agent leaves behind goes with the test's own files.
                .env("TMPDIR", files.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            variables(rank, &mut command);
            command.spawn().unwrap()
        };
        let children = (0..world).map(start).collect();
        Self {
            children,
            marker,
            out,
            files,
        }
    }

    /// Process id of an agent.
    pub fn pid(&self, rank: usize) -> u32 {
        self.children[rank].id()
    }

    /// Process id of the child of an agent.
    pub fn child_of(&self, rank: usize) -> Option<u32> {
        let agent = self.pid(rank);
        marked(&self.marker)
            .into_iter()
            .find(|&pid| parent(pid) == Some(agent))
    }

    /// Whether every one of the first `ranks` agents has a child, and rank 0's has finished steps of its window.
    pub fn at_work(&self, ranks: usize) -> Option<()> {
        let children = (0..ranks).all(|rank| self.child_of(rank).is_some());
        let in_window = |event: &Event| matches!(event, Event::Step { pass: 0, .. });
        let steps = spools(&self.out).first().map_or(0, |events| {
            events.iter().filter(|event| in_window(event)).count()
        });
        (children && steps >= 5).then_some(())
    }

    /// Processes of the job that still live.
    pub fn living(&self) -> Vec<u32> {
        marked(&self.marker)
    }

    /// Waits for the end of all agents, which must leave no process behind.
    pub fn finish(mut self) -> Finished {
        let children = std::mem::take(&mut self.children);
        let agents = children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap())
            .collect();
        let left = self.living();
        assert!(left.is_empty(), "processes {left:?} are left");
        let files = std::mem::replace(&mut self.files, tempfile::tempdir().unwrap());
        Finished {
            agents,
            folder: run_folder(&self.out).map(|folder| RunFolder::open(folder).unwrap()),
            _files: files,
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

impl Finished {
    /// Exit status of each agent; none for one that was killed.
    pub fn statuses(&self) -> Vec<Option<i32>> {
        self.agents
            .iter()
            .map(|agent| agent.status.code())
            .collect()
    }

    /// What an agent complained of.
    pub fn stderr(&self, rank: usize) -> String {
        String::from_utf8_lossy(&self.agents[rank].stderr).into_owned()
    }

    /// What an agent printed.
    pub fn stdout(&self, rank: usize) -> String {
        String::from_utf8_lossy(&self.agents[rank].stdout).into_owned()
    }

    /// The run folder.
    pub fn folder(&self) -> &RunFolder {
        let all: Vec<String> = (0..self.agents.len())
            .map(|rank| self.stderr(rank))
            .collect();
        self.folder
            .as_ref()
            .unwrap_or_else(|| panic!("no run folder: {all:#?}"))
    }

    /// The row of a trial whose label holds `label`.
    pub fn trial(&self, label: &str) -> TrialRow {
        let rows: Vec<TrialRow> = self.folder().read().unwrap();
        let found = rows.iter().find(|row| row.label.contains(label));
        found
            .unwrap_or_else(|| panic!("no trial {label} in {rows:?}"))
            .clone()
    }
}

/// Trial, repeat and the bits of the loss after the window, of every repeat.
pub fn losses(folder: &RunFolder) -> Vec<(String, u32, u64)> {
    let rows: Vec<RepeatRow> = folder.read().unwrap();
    let mut losses: Vec<_> = rows
        .into_iter()
        .map(|row| {
            let loss = row
                .loss
                .unwrap_or_else(|| panic!("no loss: {:?}", row.reason));
            (row.trial, row.repeat, loss.to_bits())
        })
        .collect();
    losses.sort();
    losses
}
