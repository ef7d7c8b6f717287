//! The plan of a scenario: its trials in order, what was left out and why, and what it will take.
//!
//! Contract: a plan does no I/O and depends on nothing but the scenario, the command line and what `auto` stands for: the same
//! input gives the same plan, ids and order on every machine. See "Data flows one way" in ARCHITECTURE.md.
pub mod axes;
pub mod backend;
pub mod batch_norm;
pub mod build;
pub mod collectives;
pub mod combine;
pub mod config;
mod cuda_graph;
pub mod estimate;
pub mod identity;
pub mod meaningless;
pub mod model;
pub mod profile;
pub mod schedule;
pub mod settings;
pub mod unused;

use crate::args::ScenarioArgs;
use crate::error::Result;
use crate::plan::backend::Choice;
use crate::plan::build::{Request, build};
use crate::plan::config::TrialConfig;
use crate::plan::settings::Settings;
use crate::scenario::file::Scenario;
use crate::scenario::preset;

/// An ordered list of trials, and what is not in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The scenario with `--set` applied.
    pub scenario: Scenario,
    /// `scenario.toml` as run: the file with `--set` applied, to be written into the run folder.
    pub toml: String,
    /// What `auto` stands for; none where no trial leaves its backend to the machine.
    pub auto: Option<Choice>,
    /// In the order of the file: variants outside, the sweep's last key innermost.
    pub trials: Vec<Trial>,
    /// Combinations that mean nothing, with the reason.
    pub left_out: Vec<LeftOut>,
    /// Combinations that turned out equal to an earlier trial.
    pub merged: Vec<Merged>,
}

/// One trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// First 12 hexadecimal digits of the BLAKE3 hash of the effective configuration's canonical JSON.
    pub id: String,
    /// Short name for people, such as `resnet20 batch ddp-processes ×2`; unique within the plan.
    pub label: String,
    /// Name of the `[[variant]]` that it came from.
    pub variant: Option<String>,
    /// Model preset, or `in-place`.
    pub model: String,
    /// What the child receives.
    pub config: TrialConfig,
    /// Its effective settings as dotted keys, for filters and tables.
    pub settings: Settings,
    /// Scalar parameters of the model.
    pub parameters: u64,
    /// What a reader must know, such as devices that get no samples.
    pub notes: Vec<String>,
    /// Whether its backend was left to the machine.
    pub automatic: bool,
    /// Whether its devices may share a GPU.
    pub shares_gpus: bool,
}

/// A combination that means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The combination, such as `single ×2`.
    pub what: String,
    /// Why it means nothing.
    pub why: String,
    /// What to write instead.
    pub instead: &'static str,
}

/// A combination that equals an earlier trial once the keys it does not use are dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The overrides of the combination.
    pub what: String,
    /// Id of the trial that stands for it.
    pub into: String,
}

/// The plans of the scenarios on a command line, in their order; with `profile` those of profiles of their models. `choose` says
/// what `auto` stands for in a plan, and is asked only where a trial leaves it open.
///
/// # Errors
/// A scenario that cannot be read, and anything wrong with it or with the arguments.
pub fn plans(
    args: &ScenarioArgs,
    profile: bool,
    choose: &dyn Fn(&Plan) -> Choice,
) -> Result<Vec<Plan>> {
    let backend = args
        .backend
        .map(|backend| ("--backend", format!("parallel.backend={}", backend.name())));
    let set = args.overrides.iter().map(|text| ("--set", text.clone()));
    let overrides: Vec<(String, String)> = set
        .chain(backend)
        .map(|(name, text)| (name.to_owned(), text))
        .collect();
    args.scenarios
        .iter()
        .map(|argument| {
            let (name, text) = preset::scenario(argument)?;
            let request = Request {
                name,
                text,
                overrides: overrides.clone(),
                filters: args.filters.clone(),
                profile,
                ..Request::default()
            };
            with_choice(request, choose)
        })
        .collect()
}

/// The plan of a request, with what `choose` makes of `auto`.
///
/// # Errors
/// As [`build()`].
pub fn with_choice(mut request: Request, choose: &dyn Fn(&Plan) -> Choice) -> Result<Plan> {
    let mut plan = build(&request)?;
    if plan.trials.iter().any(|trial| trial.automatic) {
        let choice = choose(&plan);
        if choice.backend != request.auto {
            request.auto = choice.backend;
            plan = build(&request)?;
        }
        plan.auto = Some(choice);
    }
    Ok(plan)
}
