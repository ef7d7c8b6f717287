//! The axes of a plan: the sweep, the variants, and the overrides that win over both.
//!
//! Contract: the order is that of the file, the sweep's last key innermost. Keys are checked here, values when
//! they are read. Nothing of the tree is lost: each assignment keeps the place at which it was written.
use crate::scenario::check::Checker;
use crate::scenario::keys::{self, Assignment};
use crate::scenario::problem::Problem;
use crate::scenario::tree::{Entry, Node, Value};

/// More combinations than this are a slip, and would take weeks.
const MAX_COMBINATIONS: usize = 10_000;

/// A set of assignments: those of a variant, or one combination of the sweep.
pub type Overrides = Vec<Assignment>;

type Result<T> = std::result::Result<T, Problem>;

/// Checks that a written sweep has a key.
///
/// # Errors
/// When it has none.
pub fn sweep_is_not_empty(tree: &Node) -> Result<()> {
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

/// Puts an override into the tree and into the sweep and the variants, so that it wins over both: there, the same
/// key (or one below it) is taken out, and a key above it gets the value inside.
///
/// # Errors
/// When something on the way to the key is no table.
pub fn apply_override(tree: &mut Node, assignment: Assignment) -> Result<()> {
    if let Value::Table(entries) = &mut tree.value {
        for Entry { key, node, .. } in entries {
            match (key.as_str(), &mut node.value) {
                ("sweep", Value::Table(axes)) => override_keys(axes, &assignment)?,
                ("variant", Value::Array(variants)) => {
                    for set in variants.iter_mut().filter_map(set_of) {
                        override_keys(set, &assignment)?;
                    }
                }
                _ => {}
            }
        }
    }
    let Assignment {
        path,
        key_place,
        node,
    } = assignment;
    tree.set(&path, key_place, node)
}

fn set_of(variant: &mut Node) -> Option<&mut Vec<Entry>> {
    let Value::Table(keys) = &mut variant.value else {
        return None;
    };
    match &mut keys.iter_mut().find(|entry| entry.key == "set")?.node.value {
        Value::Table(set) => Some(set),
        _ => None,
    }
}

fn override_keys(entries: &mut Vec<Entry>, assignment: &Assignment) -> Result<()> {
    let Assignment {
        path,
        key_place,
        node,
    } = assignment;
    let key = path.join(".");
    entries.retain(|entry| entry.key != key && !entry.key.starts_with(&format!("{key}.")));
    for entry in entries {
        let above: Vec<&str> = entry.key.split('.').collect();
        if path.len() <= above.len() || !path.iter().zip(&above).all(|(part, above)| part == above)
        {
            continue;
        }
        let rest = &path[above.len()..];
        match &mut entry.node.value {
            Value::Array(values) => {
                values
                    .iter_mut()
                    .try_for_each(|value| value.set(rest, *key_place, node.clone()))?;
            }
            _ => entry.node.set(rest, *key_place, node.clone())?,
        }
    }
    Ok(())
}

/// Names and assignments of the variants; one without a name where there are none.
///
/// # Errors
/// An unknown key, or a name that is not the variant's own.
pub fn variants(tree: &Node) -> Result<Vec<(Option<String>, Overrides)>> {
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
        variants.push((Some(name), set.collect::<Result<_>>()?));
    }
    Ok(variants)
}

/// Every combination of the sweep's values; one without assignments where there is no sweep.
///
/// # Errors
/// An unknown key, an empty list, or too many combinations.
pub fn combinations(tree: &Node) -> Result<Vec<Overrides>> {
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

/// A combination in words, such as `variant dp, parallel.devices = 2`.
pub fn describe(variant: Option<&str>, combination: &Overrides) -> String {
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
