//! The child side: `syncmark rank` reads an assignment, builds its replicas, runs its passes and spools what happened.
//!
//! One child holds one rank of a process-launched DDP, or all ranks of anything else: single and DP have one, thread
//! ranks a thread each, pinned to their device's cores. The first failure of any rank ends the child: nobody waits for
//! a rank that will not come.
mod build;
mod ceilings;
pub(super) mod choices;
mod collectives;
mod data;
mod device;
mod dispatch;
mod gate;
mod gpus;
mod layer_cost;
mod learning;
mod measure;
mod settings;
mod snapshot;
mod witness;

use std::io::{self, Write};
use std::process::ExitCode;

use syncmark_engine::backend::BackendError;
use syncmark_engine::backend::cuda::nvtx;
use syncmark_engine::ceiling::CeilingError;
use syncmark_engine::program::BuildError;
use syncmark_engine::strategy::StrategyError;

use super::protocol::{Assignment, ErrorKind, Message, PROTOCOL_VERSION, Purpose};
use super::spool::SpoolError;
use build::{Bench, Participant, Ranks};
pub use data::batches;
use witness::Witness;

use crate::plan::config::Work;

/// Why a rank gives up.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    /// A device or a collective failed.
    #[error("{0}")]
    Engine(#[from] BackendError),
    /// The strategy failed.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// The model cannot be built; the plan should have said so.
    #[error("failed to build the model: {0}")]
    Model(String),
    /// What the machine can do at best cannot be measured.
    #[error("failed to measure a ceiling of this machine: {0}")]
    Ceiling(#[from] CeilingError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The assignment makes no sense to this binary.
    #[error("{0}")]
    Assignment(String),
    /// Training left the numbers.
    #[error("the loss is {loss} after step {step}{pass}")]
    Diverged {
        /// The loss.
        loss: f32,
        /// Steps done.
        step: u64,
        /// Whose steps, unless they are the window's.
        pass: &'static str,
    },
    /// A file of a gate cannot be written.
    #[error("failed to write {}: {source}", path.display())]
    Output {
        /// File.
        path: std::path::PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl RankError {
    fn kind(&self) -> ErrorKind {
        let device = match self {
            Self::Engine(error) | Self::Strategy(StrategyError::Backend(error)) => Some(error),
            Self::Strategy(StrategyError::Device { source, .. }) => Some(source),
            Self::Strategy(StrategyError::Build(BuildError::Backend(error))) => Some(error),
            _ => None,
        };
        match (self, device) {
            (Self::Diverged { .. }, _) => ErrorKind::Diverged,
            (Self::Ceiling(CeilingError::Memory { .. }), _) => ErrorKind::OutOfMemory,
            (_, Some(BackendError::OutOfMemory { .. })) => ErrorKind::OutOfMemory,
            (_, Some(BackendError::Communication(_))) => ErrorKind::Aborted,
            _ => ErrorKind::Failed,
        }
    }
}

/// Runs the assignment on standard input.
pub fn main() -> ExitCode {
    // A child must not outlive its conductor, however that ends.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    match read_assignment() {
        Ok(assignment) => run(&assignment),
        Err(error) => give_up(0, &error),
    }
    say(&Message::Done);
    ExitCode::SUCCESS
}

fn read_assignment() -> Result<Assignment, RankError> {
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .map_err(|e| RankError::Assignment(format!("failed to read the assignment: {e}")))?;
    let assignment: Assignment = serde_json::from_str(&line)
        .map_err(|e| RankError::Assignment(format!("failed to parse the assignment: {e}")))?;
    if assignment.protocol_version == PROTOCOL_VERSION {
        return Ok(assignment);
    }
    let theirs = assignment.protocol_version;
    Err(RankError::Assignment(format!(
        "protocol version {theirs}, but this child speaks {PROTOCOL_VERSION}"
    )))
}

/// Runs all ranks of this child, the only one on this thread, several on a thread each.
fn run(assignment: &Assignment) {
    let mut ranks = Ranks::new(assignment).unwrap_or_else(|error| give_up(assignment.rank, &error));
    if ranks.local() == 1 {
        return run_or_give_up(assignment, ranks.take(0));
    }
    std::thread::scope(|scope| {
        for index in 0..ranks.local() {
            let seat = ranks.take(index);
            let rank = seat.rank;
            let thread = std::thread::Builder::new().name(format!("rank {rank}"));
            if let Err(error) = thread.spawn_scoped(scope, move || run_or_give_up(assignment, seat))
            {
                let problem = format!("failed to start the thread of rank {rank}: {error}");
                give_up(rank, &RankError::Assignment(problem));
            }
        }
    });
}

fn run_or_give_up(assignment: &Assignment, seat: build::Seat) {
    let rank = seat.rank;
    if let Err(error) = run_rank(assignment, seat) {
        give_up(rank, &error);
    }
}

fn run_rank(assignment: &Assignment, seat: build::Seat) -> Result<(), RankError> {
    if let Work::Collectives(config) = &assignment.trial.work {
        let mut witness = Witness::new(assignment, seat.rank as usize);
        let bench = Bench::build(assignment, seat)?;
        return match &assignment.purpose {
            Purpose::Choices { .. } => collectives::each_once(config, bench),
            _ => collectives::run(assignment, config, bench, &mut witness),
        };
    }
    name_ranges(assignment);
    let mut participant = Participant::build(assignment, seat)?;
    if participant.first_rank {
        let parameters = participant.strategy.master().program().parameters().len() as u64;
        say(&Message::Ready { parameters });
    }
    match &assignment.purpose {
        Purpose::Measure { .. } if assignment.trial.work == Work::LayerCost => {
            layer_cost::run(assignment, participant)
        }
        Purpose::Measure { .. } if assignment.trial.learning().is_some() => {
            learning::run(assignment, participant)
        }
        Purpose::Measure {
            unsynchronized_first,
        } => measure::run(assignment, participant, *unsynchronized_first),
        Purpose::Gate { steps, outputs, .. } => gate::run(assignment, participant, *steps, outputs),
        Purpose::Choices { .. } => Err(RankError::Assignment(
            "only collectives are asked what NCCL takes".to_owned(),
        )),
    }
}

/// Names what a step does for profilers, if that is wanted. Nothing is measured by it, so a machine without the library runs the same.
fn name_ranges(assignment: &Assignment) {
    if assignment.trial.measure.nvtx {
        // What is missing has become a note of the trial.
        let _ = nvtx::enable();
    }
}

/// Says a message; a conductor that is gone no longer listens, and the child then dies of its own.
fn say(message: &Message) {
    let line = serde_json::to_string(message).expect("messages serialise");
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Says why and ends the child: other ranks of it may be waiting in a collective for one that will not come.
fn give_up(rank: u32, error: &RankError) -> ! {
    say(&Message::Error {
        kind: error.kind(),
        rank,
        message: error.to_string(),
    });
    std::process::exit(1)
}
