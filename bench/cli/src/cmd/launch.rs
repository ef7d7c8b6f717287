//! What a launcher's variables make of `run` and `verify`: an ordinary run, the agent that leads one, or one that serves.
//!
//! Contract: decided before anything is run or written. An agent that serves has done its whole work when this returns. One
//! that cannot plan still goes to the meeting, so that rank 0 can say which rank it was and nobody waits for it.
use crate::agent::crew::Crew;
use crate::agent::launcher::{self, LauncherArg, Place, Start};
use crate::agent::machine::Machine;
use crate::agent::meet::{self, MeetError};
use crate::agent::message::{AGENT_PROTOCOL_VERSION, Hello, Work};
use crate::agent::serve::{Agent, Served};
use crate::error::{CliError, Result, Status};
use crate::plan::Plan;
use crate::run::child::signal_words;
use crate::run::signals::Signals;

/// The part of this process.
pub enum Part {
    /// It runs the plans, alone or with a crew.
    Conduct {
        /// The plans.
        plans: Vec<Plan>,
        /// The agents of the other ranks.
        crew: Option<Box<Crew>>,
    },
    /// It served rank 0 and is done.
    Served(Status),
}

/// Finds out which part this process has, and plays it unless it is the conductor's.
///
/// # Errors
/// Exit status 2 for wrong variables, agents that differ and whatever is wrong with the plans; 4 when the agents do not meet.
pub fn part(
    verb: &str,
    wanted: LauncherArg,
    plans: Result<Vec<Plan>>,
    signals: &Signals,
) -> Result<Part> {
    let lookup =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let start = launcher::find(wanted, &lookup)
        .map_err(|error| CliError::usage(error.to_string()).help(error.help()))?;
    let place = match start {
        Start::Agent(place) => place,
        Start::Ordinary(note) => {
            let plans = plans?;
            note.iter().for_each(|note| eprintln!("note: {note}"));
            return Ok(Part::Conduct { plans, crew: None });
        }
    };
    let hello = hello(verb, &place, &plans)?;
    if place.rank > 0 {
        let served = serve(&place, &hello, signals);
        return plans.and(served).map(Part::Served);
    }
    let crew = Crew::gather(place, hello, signals);
    // Its own complaint says more than that of the meeting, which the others have been told.
    let plans = plans?;
    let crew = crew.map_err(failure)?;
    crew.crowding()
        .iter()
        .for_each(|words| eprintln!("warning: {words}"));
    Ok(Part::Conduct {
        plans,
        crew: Some(Box::new(crew)),
    })
}

/// Who this agent is and what it is to do.
fn hello(verb: &str, place: &Place, plans: &Result<Vec<Plan>>) -> Result<Hello> {
    let machine = Machine::here().map_err(|error| {
        CliError::failed(format!("cannot find out where this agent runs: {error}"))
    })?;
    Ok(Hello {
        protocol_version: AGENT_PROTOCOL_VERSION,
        syncmark_version: env!("CARGO_PKG_VERSION").to_owned(),
        token: place.token.clone(),
        rank: place.rank,
        world_size: place.world_size,
        local_rank: place.local_rank,
        process: std::process::id(),
        machine,
        work: match plans {
            Ok(plans) => Work::Planned {
                verb: verb.to_owned(),
                plans: plans
                    .iter()
                    .map(|plan| (plan.scenario.name.clone(), digest(plan)))
                    .collect(),
            },
            Err(error) => Work::Failed {
                reason: error.message().to_owned(),
            },
        },
    })
}

/// A hash of a plan's text and trials.
fn digest(plan: &Plan) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(plan.toml.as_bytes());
    plan.trials.iter().for_each(|trial| {
        hasher.update(trial.id.as_bytes());
    });
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Joins the others and serves to the end.
fn serve(place: &Place, hello: &Hello, signals: &Signals) -> Result<Status> {
    let (stream, inbox) = meet::join(place, hello, signals).map_err(failure)?;
    let agent = Agent::new(hello, stream, inbox, signals);
    match agent.and_then(Agent::serve) {
        Ok(Served::Dismissed) => Ok(Status::Passed),
        Ok(Served::Signalled(signal)) => Err(CliError::interrupted(format!(
            "the agent of rank {} was stopped by {}",
            place.rank,
            signal_words(signal)
        ))),
        Err(error) => Err(CliError::failed(error.to_string())),
    }
}

fn failure(error: MeetError) -> CliError {
    let told = match error {
        MeetError::Interrupted => CliError::interrupted(error.to_string()),
        MeetError::Differs(_) | MeetError::Refused { .. } => CliError::usage(error.to_string()),
        _ => CliError::nothing_runs(error.to_string()),
    };
    match error.help() {
        Some(help) => told.help(help),
        None => told,
    }
}
