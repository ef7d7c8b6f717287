//! What `--profile` makes of a scenario: a profile of its models on one device, node by node.
//!
//! Contract: the scenario's own keys and those of its sweep and variants stay, but for what a profile decides: kind, strategy, number of
//! devices, micro-batches and the answer. So trials that differ only in these become one. `batch_size` is taken as written, which
//! with strong scaling is the global one.
use crate::plan::axes::apply_override;
use crate::scenario::file::{Kind, Scenario};
use crate::scenario::keys::Assignment;
use crate::scenario::problem::{Problem, ProblemKind};
use crate::scenario::tree::{Node, Value};

/// What the scenario asks once it is a profile.
const QUESTION: &str = "What does each layer of these models cost here, and how far is it from what the machine could do at best?";

/// Turns the tree of a scenario into that of its profile.
///
/// # Errors
/// A scenario of another kind than `train`.
pub fn profile(tree: &mut Node, scenario: &Scenario) -> Result<(), Problem> {
    let place = |tree: &Node| {
        tree.entry("kind")
            .map_or(tree.place, |entry| entry.node.place)
    };
    if scenario.kind != Kind::Train {
        let kind = ProblemKind::Meaningless {
            message: "only a scenario of kind `train` can be profiled".to_owned(),
            help: "leave --profile out".to_owned(),
        };
        return Err(Problem::new(kind).at(place(tree)));
    }
    let place = place(tree);
    tree.remove("answer");
    let text = |text: &str| Value::String(text.to_owned());
    for (key, value) in [
        ("name", text(&format!("{}-profile", scenario.name))),
        ("question", text(QUESTION)),
        ("kind", text("layer-cost")),
        ("parallel.strategy", text("single")),
        ("parallel.devices", Value::Integer(1)),
        ("train.accumulation", Value::Integer(1)),
    ] {
        let assignment = Assignment {
            path: key.split('.').map(str::to_owned).collect(),
            key_place: place,
            node: Node { place, value },
        };
        apply_override(tree, assignment)?;
    }
    // What is left of a sweep over devices alone.
    if tree
        .entry("sweep")
        .is_some_and(|entry| entry.node.entries().is_empty())
    {
        tree.remove("sweep");
    }
    Ok(())
}
