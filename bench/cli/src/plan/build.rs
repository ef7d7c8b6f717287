//! Builds a plan: overrides, variants and the sweep are put into the tree, and each combination is resolved.
//!
//! Contract: deterministic; the order is that of the file, variants outside and the sweep's last key innermost.
//! `--set` wins over the sweep and the variants, a variant over the sweep.
use crate::error::{CliError, Result};
use crate::plan::combine::{Combination, combine};
use crate::plan::config::{StrategyConfig, TrialConfig};
use crate::plan::settings::{Settings, labels, settings};
use crate::plan::{LeftOut, Merged, Plan, Trial, identity};
use crate::scenario::check::Checker;
use crate::scenario::file::Scenario;
use crate::scenario::keys::{self, Assignment};
use crate::scenario::problem::{Problem, Sources};
use crate::scenario::read::read;
use crate::scenario::tree::{Node, Value};

/// More combinations than this are a slip, and would take weeks.
const MAX_COMBINATIONS: usize = 10_000;

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
    let build = || -> std::result::Result<Built, Problem> {
        let mut tree = Node::parse(&request.text, file)?;
        let written: Scenario = read(&tree)?;
        sweep_is_not_empty(&tree)?;
        for (source, (_, text)) in overrides.iter().zip(&request.overrides) {
            apply_override(&mut tree, keys::assignment(text, *source)?)?;
        }
        let scenario = if overrides.is_empty() {
            written
        } else {
            read(&tree)?
        };
        let mut built = Built {
            scenario,
            tree,
            trials: Vec::new(),
            left_out: Vec::new(),
            merged: Vec::new(),
        };
        built.combine_all()?;
        built.check_answer(!overrides.is_empty())?;
        for (source, text) in filters.iter().zip(&request.filters) {
            keys::filter(text, *source)?;
        }
        Ok(built)
    };
    let built = build().map_err(|problem| CliError::diagnostic(sources.error(problem)))?;
    built.finish(request)
}

struct Draft {
    id: String,
    variant: Option<String>,
    config: TrialConfig,
    settings: Settings,
    parameters: u64,
    notes: Vec<String>,
}

struct Built {
    scenario: Scenario,
    tree: Node,
    trials: Vec<Draft>,
    left_out: Vec<LeftOut>,
    merged: Vec<Merged>,
}

/// A named set of assignments: a variant, or one combination of the sweep.
type Overrides = Vec<Assignment>;

impl Built {
    fn combine_all(&mut self) -> std::result::Result<(), Problem> {
        let variants = variants(&self.tree)?;
        let combinations = combinations(&self.tree)?;
        let mut base = self.tree.clone();
        base.remove("sweep");
        base.remove("variant");
        for (name, set) in &variants {
            for combination in &combinations {
                let mut tree = base.clone();
                for Assignment {
                    path,
                    key_place,
                    node,
                } in combination.iter().chain(set)
                {
                    tree.set(path, *key_place, node.clone())?;
                }
                let scenario: Scenario = read(&tree)?;
                let what = || describe(name.as_deref(), combination);
                match combine(&scenario, &tree)? {
                    Combination::LeftOut(why) => self.left_out.push(LeftOut { what: what(), why }),
                    Combination::Trial {
                        config,
                        parameters,
                        notes,
                    } => {
                        let settings = settings(&scenario, &config);
                        let id = identity::id(&config);
                        if self.trials.iter().any(|trial| trial.id == id) {
                            self.merged.push(Merged {
                                what: what(),
                                into: id,
                            });
                            continue;
                        }
                        let variant = name.clone();
                        self.trials.push(Draft {
                            id,
                            variant,
                            config: *config,
                            settings,
                            parameters,
                            notes,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// The answer compares values that the file's trials have, or it could never be given. An override can take
    /// the baseline away on purpose: then the report says that nothing can be compared.
    fn check_answer(&self, overridden: bool) -> std::result::Result<(), Problem> {
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
        let baseline = match &answer.baseline {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut values: Vec<&String> = match answer.factor.as_str() {
            "variant" => self
                .trials
                .iter()
                .filter_map(|trial| trial.variant.as_ref())
                .collect(),
            factor => self
                .trials
                .iter()
                .filter_map(|trial| trial.settings.get(factor))
                .collect(),
        };
        if overridden || values.contains(&&baseline) || self.trials.is_empty() {
            return Ok(());
        }
        values.sort_unstable();
        values.dedup();
        let list: Vec<&str> = values.into_iter().map(String::as_str).collect();
        let message = format!(
            "no trial has `{}` = {baseline}, so nothing can be compared with it",
            answer.factor
        );
        Err(checker.problem(
            "answer.baseline",
            message,
            format!("values in this plan: {}", list.join(", ")),
        ))
    }

    fn finish(mut self, request: &Request) -> Result<Plan> {
        self.filter(&request.filters)?;
        if self.trials.is_empty() {
            let reasons: Vec<&str> = self.left_out.iter().map(|left| left.why.as_str()).collect();
            return Err(CliError::usage(format!(
                "the scenario `{}` has no trial that means anything",
                request.name
            ))
            .help(reasons.join("; ")));
        }
        let named: Vec<(String, &Settings)> = self
            .trials
            .iter()
            .map(|trial| (strategy_in_words(&trial.config), &trial.settings))
            .collect();
        let labels = labels(&named);
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
            });
        let trials = trials.collect();
        Ok(Plan {
            scenario: self.scenario,
            toml,
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
                return Err(CliError::usage(message).help(match present.is_empty() {
                    true => format!("no trial that is left uses `{key}`"),
                    false => format!("values of the trials that are left: {}", present.join(", ")),
                }));
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

fn sweep_is_not_empty(tree: &Node) -> std::result::Result<(), Problem> {
    let checker = Checker(tree);
    let Some(sweep) = tree.entry("sweep") else {
        return Ok(());
    };
    if sweep.node.entries().is_empty() {
        let help = "name a key with a list of values, or leave [sweep] out";
        return Err(checker.problem("sweep", "the sweep is empty", help));
    }
    Ok(())
}

/// Puts an override into the tree and takes the same key out of the sweep and the variants, so that it wins.
fn apply_override(tree: &mut Node, assignment: Assignment) -> std::result::Result<(), Problem> {
    let Assignment {
        path,
        key_place,
        node,
    } = assignment;
    let key = path.join(".");
    let covers = |other: &str| other == key || other.starts_with(&format!("{key}."));
    let drop = |node: &mut Node| {
        if let Value::Table(entries) = &mut node.value {
            entries.retain(|entry| !covers(&entry.key));
        }
    };
    if let Value::Table(entries) = &mut tree.value {
        for entry in entries {
            match (entry.key.as_str(), &mut entry.node.value) {
                ("sweep", _) => drop(&mut entry.node),
                ("variant", Value::Array(variants)) => {
                    for variant in variants {
                        if let Value::Table(keys) = &mut variant.value {
                            keys.iter_mut()
                                .filter(|key| key.key == "set")
                                .for_each(|key| drop(&mut key.node));
                        }
                    }
                }
                _ => {}
            }
        }
    }
    tree.set(&path, key_place, node)
}

/// Names and assignments of the variants; one without a name where there are none.
fn variants(tree: &Node) -> std::result::Result<Vec<(Option<String>, Overrides)>, Problem> {
    let checker = Checker(tree);
    let Some(Value::Array(tables)) = tree.entry("variant").map(|entry| &entry.node.value) else {
        return Ok(vec![(None, Vec::new())]);
    };
    let mut variants: Vec<(Option<String>, Overrides)> = Vec::new();
    for table in tables {
        let name = table
            .entry("name")
            .map(|entry| entry.node.to_string())
            .unwrap_or_default();
        let place = table
            .entry("name")
            .map_or(table.place, |entry| entry.node.place);
        if name.is_empty()
            || variants
                .iter()
                .any(|(known, _)| known.as_ref() == Some(&name))
        {
            let message = format!("a variant's name must be its own; {name:?} is not");
            return Err(Problem {
                place: Some(place),
                ..checker.problem("variant", message, "write another name")
            });
        }
        let entries = table
            .entry("set")
            .map(|entry| entry.node.entries())
            .unwrap_or_default();
        let set = entries.iter().map(|entry| {
            let path = keys::setting(&entry.key, entry.key_place)?;
            Ok(Assignment {
                path,
                key_place: entry.key_place,
                node: entry.node.clone(),
            })
        });
        variants.push((
            Some(name),
            set.collect::<std::result::Result<_, Problem>>()?,
        ));
    }
    Ok(variants)
}

/// Every combination of the sweep's values; one without assignments where there is no sweep.
fn combinations(tree: &Node) -> std::result::Result<Vec<Overrides>, Problem> {
    let mut combinations: Vec<Overrides> = vec![Vec::new()];
    let checker = Checker(tree);
    for entry in tree
        .entry("sweep")
        .map(|entry| entry.node.entries())
        .unwrap_or_default()
    {
        let path = keys::setting(&entry.key, entry.key_place)?;
        let Value::Array(values) = &entry.node.value else {
            continue;
        };
        if values.is_empty() {
            let message = format!("the sweep of `{}` is empty", entry.key);
            let problem = checker.problem(
                "sweep",
                message,
                "list at least one value, or leave the key out",
            );
            return Err(Problem {
                place: Some(entry.node.place),
                ..problem
            });
        }
        if combinations.len() * values.len() > MAX_COMBINATIONS {
            let message = format!("the sweep has more than {MAX_COMBINATIONS} combinations");
            return Err(checker.problem("sweep", message, "leave out keys or values"));
        }
        let extend = |combination: Overrides| {
            let (path, key_place) = (path.clone(), entry.key_place);
            values.iter().map(move |node| {
                let mut longer = combination.clone();
                longer.push(Assignment {
                    path: path.clone(),
                    key_place,
                    node: node.clone(),
                });
                longer
            })
        };
        combinations = combinations.into_iter().flat_map(extend).collect();
    }
    Ok(combinations)
}

fn describe(variant: Option<&str>, combination: &Overrides) -> String {
    let settings = combination
        .iter()
        .map(|Assignment { path, node, .. }| format!("{} = {node}", path.join(".")));
    let words: Vec<String> = variant
        .map(|name| format!("variant {name}"))
        .into_iter()
        .chain(settings)
        .collect();
    match words.is_empty() {
        true => "the scenario".to_owned(),
        false => words.join(", "),
    }
}

/// `ddp-processes ×2`.
fn strategy_in_words(config: &TrialConfig) -> String {
    let name = config.strategy.name();
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
    let arguments: Vec<String> = arguments
        .chain(
            request
                .filters
                .iter()
                .map(|text| format!("--filter {text}")),
        )
        .collect();
    if arguments.is_empty() {
        return Ok(request.text.clone());
    }
    let body = match request.overrides.is_empty() {
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
