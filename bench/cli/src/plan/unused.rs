//! Options of `[parallel]` that no trial of a plan uses, because none has a strategy that they belong to.
//!
//! Contract: a sweep over strategies may carry the options of each, and what one trial does not use is dropped there. But an
//! option that means nothing to any trial is not dropped in silence: every trial carries a note of it.
use crate::scenario::tree::Node;

const RANKS: &[&str] = &["ddp", "zero1"];
/// Options of some strategies alone, and those.
const OPTIONS: [(&str, &[&str]); 13] = [
    ("launch", &["independent", "ddp", "zero1"]),
    ("transport", RANKS),
    ("bucket_cap", RANKS),
    ("first_bucket_cap", RANKS),
    ("broadcast_buffers", RANKS),
    ("overlap", &["ddp"]),
    ("no_sync", &["ddp"]),
    ("compression", &["ddp"]),
    ("dp_loss", &["dp"]),
    ("dp_transport", &["dp"]),
    ("device_ids", &["dp"]),
    ("output_device", &["dp"]),
    ("dim", &["dp"]),
];

/// A note for each option in the scenario `tree` that none of the planned `strategies` has.
pub fn unused(tree: &Node, strategies: &[&str]) -> Vec<String> {
    let Some(parallel) = tree.entry("parallel") else {
        return Vec::new();
    };
    let used = |owners: &[&str]| owners.iter().any(|owner| strategies.contains(owner));
    OPTIONS
        .iter()
        .filter(|(option, owners)| parallel.node.entry(option).is_some() && !used(owners))
        .map(|(option, owners)| {
            format!(
                "parallel.{option} is not used: it belongs to {}, and no trial here is one",
                owners.join(" and ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_noted_only_when_no_trial_has_its_strategy() {
        let tree = Node::parse(
            "[parallel]\nstrategy = \"dp\"\ntransport = \"tcp\"\ndim = 0\n",
            0,
        )
        .expect("TOML");
        assert_eq!(
            unused(&tree, &["single", "dp"]),
            [
                "parallel.transport is not used: it belongs to ddp and zero1, and no trial here is one"
            ]
        );
        assert!(unused(&tree, &["dp", "ddp"]).is_empty());
        assert_eq!(unused(&tree, &["ddp"]).len(), 1);
        let bare = Node::parse("name = \"x\"\n", 0).expect("TOML");
        assert!(unused(&bare, &["single"]).is_empty());
    }
}
