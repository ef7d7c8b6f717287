//! Builds a plan: overrides, variants and the sweep are put into the tree, and each combination is resolved.
//!
//! Contract: deterministic; the order is that of the file, variants outside and the sweep's last key innermost.
//! `--set` wins over the sweep and the variants, a variant over the sweep.
use crate::error::{CliError, Result};
use crate::plan::axes::{
    Overrides, apply_override, combinations, describe, sweep_is_not_empty, variants,
};
use crate::plan::combine::{Combination, combine};
use crate::plan::config::{Backend, StrategyConfig, TrialConfig};
use crate::plan::meaningless::Refused;
use crate::plan::profile::profile;
use crate::plan::settings::{Settings, labels, settings, told_apart};
use crate::plan::unused::unused;
use crate::plan::{LeftOut, Merged, Plan, Trial, identity, model};
use crate::scenario::check::Checker;
use crate::scenario::contradictions;
use crate::scenario::file::{BackendChoice, Kind, Scenario};
use crate::scenario::keys::{self, Assignment};
use crate::scenario::problem::{Problem, Sources};
use crate::scenario::read::read;
use crate::scenario::tree::{Node, Value};

/// What a plan is made from.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Name of the scenario's text in messages.
    pub name: String,
    /// The scenario's text.
    pub text: String,
    /// Name (`--set`, `--backend`) and text of each override, in order.
    pub overrides: Vec<(String, String)>,
    /// Arguments of `--filter`.
    pub filters: Vec<String>,
    /// Whether the scenario's models are to be profiled in its place.
    pub profile: bool,
    /// Whether the text is the `scenario.toml` of a run folder: its overrides are in it, and it stays as it is.
    pub as_run: bool,
    /// What computes where the scenario leaves it to the machine.
    pub auto: Backend,
}

/// Builds the plan.
///
/// # Errors
/// Anything wrong with the scenario or the arguments, with its place; a plan without a trial.
pub fn build(request: &Request) -> Result<Plan> {
    let mut sources = Sources::default();
    let file = sources.add(&request.name, &request.text);
    let overrides: Vec<usize> = request
        .overrides
        .iter()
        .map(|(name, text)| sources.add(name, text))
        .collect();
    let filters: Vec<usize> = request
        .filters
        .iter()
        .map(|text| sources.add("--filter", text))
        .collect();
    read_and_combine(request, file, &overrides, &filters)
        .map_err(|problem| CliError::diagnostic(sources.error(problem)))?
        .finish(request)
}

/// Everything whose problems have a place in the scenario or in an argument.
fn read_and_combine(
    request: &Request,
    file: usize,
    overrides: &[usize],
    filters: &[usize],
) -> std::result::Result<Built, Problem> {
    let mut tree = Node::parse(&request.text, file)?;
    contradictions::sections(&tree)?;
    // The file is read as written first, so that an override cannot hide what is wrong with it.
    let mut scenario: Scenario = read(&tree)?;
    sweep_is_not_empty(&tree)?;
    if request.profile {
        profile(&mut tree, &scenario)?;
        scenario = read(&tree)?;
    }
    let mut answer_is_set = false;
    for (source, (_, text)) in overrides.iter().zip(&request.overrides) {
        let assignment = keys::assignment(text, *source)?;
        answer_is_set |= assignment.path.first().is_some_and(|key| key == "answer");
        apply_override(&mut tree, assignment)?;
        contradictions::sections(&tree)?;
        scenario = read(&tree)?;
    }
    for (source, text) in filters.iter().zip(&request.filters) {
        keys::filter(text, *source)?;
    }
    let mut built = Built {
        scenario,
        tree,
        auto: request.auto,
        trials: Vec::new(),
        left_out: Vec::new(),
        merged: Vec::new(),
    };
    built.combine_all()?;
    let as_written = overrides.is_empty() && !request.as_run;
    built.check_answer(as_written || answer_is_set)?;
    Ok(built)
}

struct Draft {
    id: String,
    variant: Option<String>,
    config: TrialConfig,
    settings: Settings,
    parameters: u64,
    notes: Vec<String>,
    automatic: bool,
    shares_gpus: bool,
}

struct Built {
    scenario: Scenario,
    tree: Node,
    auto: Backend,
    trials: Vec<Draft>,
    left_out: Vec<LeftOut>,
    merged: Vec<Merged>,
}

impl Built {
    fn combine_all(&mut self) -> std::result::Result<(), Problem> {
        let combinations = combinations(&self.tree)?;
        let mut base = self.tree.clone();
        base.remove("sweep");
        base.remove("variant");
        for (name, set) in variants(&self.tree)? {
            for combination in &combinations {
                let mut tree = base.clone();
                for Assignment {
                    path,
                    key_place,
                    node,
                } in combination.iter().chain(&set)
                {
                    tree.set(path, *key_place, node.clone())?;
                }
                self.add(name.as_deref(), combination, &tree)?;
            }
        }
        self.exchange_alone(base)?;
        self.check_norms()?;
        self.note_unused();
        Ok(())
    }

    /// What accepts GPUs has a trial of collectives beside those that train, among the devices of `[parallel]`.
    fn exchange_alone(&mut self, mut base: Node) -> std::result::Result<(), Problem> {
        if self.scenario.kind != Kind::Acceptance {
            return Ok(());
        }
        let kind = Node {
            place: base.place,
            value: Value::String("collectives".to_owned()),
        };
        base.set(&["kind".to_owned()], base.place, kind)?;
        for section in ["model", "data", "train", "evaluate", "answer"] {
            base.remove(section);
        }
        self.add(Some("collectives"), &Vec::new(), &base)
    }

    /// A trial without norms is what the others are held against; alone it answers nothing.
    fn check_norms(&self) -> std::result::Result<(), Problem> {
        let has = |draft: &Draft| model::has_norm(&draft.config.model, draft.config.norm);
        if self.scenario.kind != Kind::NormCost
            || self.trials.is_empty()
            || self.trials.iter().any(has)
        {
            return Ok(());
        }
        let message = "no trial has a norm, so there is nothing to be held against a model without";
        let help = "write norm = \"batch\", \"sync-batch\", \"layer\", \"instance\", \"group\" or \"rms\" in one of them, and a model whose layers have `norm`";
        Err(Checker(&self.tree).problem("model.norm", message, help))
    }

    /// Collectives alone have no strategy, so nothing can be said of its options.
    fn note_unused(&mut self) {
        if self.scenario.kind == Kind::Collectives {
            return;
        }
        let strategies: Vec<&str> = self
            .trials
            .iter()
            .map(|trial| trial.config.strategy.name())
            .collect();
        let notes = unused(&self.tree, &strategies);
        for trial in &mut self.trials {
            trial.notes.extend(notes.iter().cloned());
        }
    }

    /// Adds the combination whose effective tree this is to the trials, or to what is merged or left out.
    fn add(
        &mut self,
        variant: Option<&str>,
        combination: &Overrides,
        tree: &Node,
    ) -> std::result::Result<(), Problem> {
        let scenario: Scenario = read(tree)?;
        let what = || describe(variant, combination);
        let (config, parameters, notes) = match combine(&scenario, tree, self.auto)? {
            // It is all that the scenario asks for: its author must change it.
            Combination::LeftOut(Refused { key, why, instead })
                if variant.is_none() && combination.is_empty() =>
            {
                return Err(Checker(tree).problem(key, why, instead));
            }
            Combination::LeftOut(Refused { why, instead, .. }) => {
                self.left_out.push(LeftOut {
                    what: what(),
                    why,
                    instead,
                });
                return Ok(());
            }
            Combination::Trial {
                config,
                parameters,
                notes,
            } => (*config, parameters, notes),
        };
        let id = identity::id(&config);
        let automatic = scenario.parallel.backend == BackendChoice::Auto;
        if let Some(equal) = self.trials.iter_mut().find(|trial| trial.id == id) {
            // What is open in one of the two is open: they differ where `auto` stands for something else.
            equal.automatic |= automatic;
            equal.shares_gpus |= scenario.parallel.share_gpus;
            self.merged.push(Merged {
                what: what(),
                into: id,
            });
            return Ok(());
        }
        let (variant, settings) = (variant.map(str::to_owned), settings(&scenario, &config));
        self.trials.push(Draft {
            id,
            variant,
            config,
            settings,
            parameters,
            notes,
            automatic,
            shares_gpus: scenario.parallel.share_gpus,
        });
        Ok(())
    }

    /// The answer compares values that the trials have, or it could never be given. An override of something else can take
    /// the baseline away on purpose, as a filter can; `meant` says that none did.
    fn check_answer(&self, meant: bool) -> std::result::Result<(), Problem> {
        let Some(answer) = &self.scenario.answer else {
            return Ok(());
        };
        let checker = Checker(&self.tree);
        if answer.factor != "variant" {
            let place = checker
                .problem("answer.factor", "", "")
                .place
                .unwrap_or(self.tree.place);
            keys::setting(&answer.factor, place)?;
        }
        match self.without_baseline() {
            Some((message, help)) if meant => {
                Err(checker.problem("answer.baseline", message, help))
            }
            _ => Ok(()),
        }
    }

    /// What is to be said where no trial has the baseline that the answer compares with, and what the trials have instead.
    fn without_baseline(&self) -> Option<(String, String)> {
        let answer = self.scenario.answer.as_ref()?;
        let baseline = match &answer.baseline {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let values = self.values(&answer.factor);
        if values.contains(&baseline) || self.trials.is_empty() {
            return None;
        }
        let message = format!(
            "no trial has `{}` = {baseline}, so nothing can be compared with it",
            answer.factor
        );
        Some((
            message,
            format!("values in this plan: {}", values.join(", ")),
        ))
    }

    /// The values that the trials have of a factor, each once.
    fn values(&self, factor: &str) -> Vec<String> {
        let value = |trial: &Draft| trial.value(factor);
        let mut values: Vec<String> = self.trials.iter().filter_map(value).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Why combinations were left out, and what to write instead, each once.
    fn reasons(&self) -> Vec<String> {
        let mut reasons: Vec<String> = Vec::new();
        for left in &self.left_out {
            let reason = format!("{}: {}", left.why, left.instead);
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        reasons
    }

    fn finish(mut self, request: &Request) -> Result<Plan> {
        self.filter(&request.filters)?;
        if let Some((message, help)) = self.without_baseline() {
            for trial in &mut self.trials {
                trial.notes.push(format!("{message}; {help}"));
            }
        }
        if self.trials.is_empty() {
            return Err(CliError::usage(format!(
                "the scenario `{}` has no trial that means anything",
                request.name
            ))
            .help(self.reasons().join("; ")));
        }
        let named: Vec<(String, &Settings)> = self
            .trials
            .iter()
            .map(|trial| (strategy_in_words(&trial.config), &trial.settings))
            .collect();
        let variants = self.trials.iter().map(|trial| trial.variant.as_deref());
        let labels = told_apart(labels(&named), variants);
        let toml = as_run(request, &self.tree)?;
        let trials = self
            .trials
            .into_iter()
            .zip(labels)
            .map(|(draft, label)| Trial {
                id: draft.id,
                label,
                variant: draft.variant,
                model: draft.config.model.name.clone(),
                config: draft.config,
                settings: draft.settings,
                parameters: draft.parameters,
                notes: draft.notes,
                automatic: draft.automatic,
                shares_gpus: draft.shares_gpus,
            });
        let trials = trials.collect();
        Ok(Plan {
            scenario: self.scenario,
            toml,
            auto: None,
            trials,
            left_out: self.left_out,
            merged: self.merged,
        })
    }

    /// Keeps the trials that match: any value of the same key, and every key.
    fn filter(&mut self, filters: &[String]) -> Result<()> {
        let mut wanted: Vec<(String, Vec<String>)> = Vec::new();
        for argument in filters {
            // The argument was checked before; what has no key was refused then.
            let Ok((key, value)) = keys::filter(argument, 0) else {
                continue;
            };
            match wanted.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.push(value),
                None => wanted.push((key, vec![value])),
            }
        }
        for (key, values) in wanted {
            let mut present: Vec<String> = self
                .trials
                .iter()
                .filter_map(|trial| trial.value(&key))
                .collect();
            self.trials.retain(|trial| {
                trial
                    .value(&key)
                    .is_some_and(|value| values.contains(&value))
            });
            if self.trials.is_empty() {
                present.sort_unstable();
                present.dedup();
                let message = format!("--filter {key}={} leaves no trial", values.join(" or "));
                let mut help = match present.is_empty() {
                    true => format!("no trial that is left uses `{key}`"),
                    false => format!("values of the trials that are left: {}", present.join(", ")),
                };
                // What was looked for may be among what means nothing here.
                let reasons = self.reasons();
                if !reasons.is_empty() {
                    help += &format!("; left out before: {}", reasons.join("; "));
                }
                return Err(CliError::usage(message).help(help));
            }
        }
        Ok(())
    }
}

impl Draft {
    fn value(&self, key: &str) -> Option<String> {
        match key {
            "id" => Some(self.id.clone()),
            "variant" => self.variant.clone(),
            key => self.settings.get(key).cloned(),
        }
    }
}

/// `ddp-processes ×2`.
fn strategy_in_words(config: &TrialConfig) -> String {
    let name = config.strategy_name();
    match config.strategy {
        StrategyConfig::Single => name.to_owned(),
        _ => match config.strategy.launch() {
            Some(launch) => format!("{name}-{launch} ×{}", config.devices),
            None => format!("{name} ×{}", config.devices),
        },
    }
}

/// The scenario's text as run: as written, or written anew with the overrides and a note of them.
fn as_run(request: &Request, tree: &Node) -> Result<String> {
    let arguments = request
        .overrides
        .iter()
        .map(|(name, text)| format!("{name} {text}"));
    let profile = request.profile.then(|| "--profile".to_owned());
    let arguments: Vec<String> = profile
        .into_iter()
        .chain(arguments)
        .chain(
            request
                .filters
                .iter()
                .map(|text| format!("--filter {text}")),
        )
        .collect();
    if arguments.is_empty() || request.as_run {
        return Ok(request.text.clone());
    }
    let body = match request.overrides.is_empty() && !request.profile {
        true => request.text.clone(),
        false => toml::to_string_pretty(&tree.to_toml()).map_err(|error| {
            CliError::failed(format!(
                "cannot write the scenario with its overrides: {error}"
            ))
        })?,
    };
    let note = arguments
        .join(" ")
        .replace(|letter: char| letter.is_control(), " ");
    Ok(format!("# {}, as run with {note}\n{body}", request.name))
}
