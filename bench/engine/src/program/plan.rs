//! Which gradient lies where, and who overwrites or adds to it: decided once, from the reverse order of the nodes.
//!
//! A value's gradient lives from its first writer to the backward of the node that made the value; then its slot is
//! used again. Slots are in elements per sample. An addition whose branch is used by nobody else does not copy: the
//! branch's gradient *is* the output's gradient. Who shares a gradient only reads it, but for the last of them: a norm whose
//! chain ends in a rectifier ([`super::fuse`]) sends the gradient through it where it lies, and what was added before the
//! rectifier takes it over.
use super::fuse::{Role, uses};
use crate::kernel::Write;
use crate::model::{Model, Op};

/// The plan of a model's gradients.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientPlan {
    /// Elements per sample of each slot.
    pub slots: Vec<usize>,
    /// Slot of each value's gradient; value 0 is the model's input. None where nobody needs it.
    pub values: Vec<Option<usize>>,
    /// How each node writes the gradients of its inputs; none where nobody needs it, or where it is there already.
    pub writes: Vec<Vec<Option<Write>>>,
}

/// Plans the gradients of `model`; that of its input only if wanted.
pub fn plan(model: &Model, roles: &[Role], input_gradient: bool) -> GradientPlan {
    // Group norm's backward makes the input's gradient together with those of γ and β.
    let grouped = |node: &crate::model::Node| {
        matches!(node.op, Op::GroupNorm { .. }) && node.inputs.contains(&0)
    };
    let input_gradient = input_gradient || model.nodes.iter().any(grouped);
    // Tokens have none.
    let input_gradient = input_gradient && model.vocabulary.is_none();
    let uses = uses(model);
    let mut planner = Planner {
        slots: Vec::new(),
        holders: Vec::new(),
        values: vec![None; uses.len()],
        written: vec![false; uses.len()],
    };
    let output = model.nodes.len();
    planner.values[output] = Some(planner.take(model.output.elements()));
    planner.written[output] = true;
    let mut writes = vec![Vec::new(); model.nodes.len()];
    for (i, node) in model.nodes.iter().enumerate().rev() {
        let (last, shortcut) = match roles[i] {
            Role::Within(_) => continue,
            Role::Alone => (i, None),
            Role::Head { last, shortcut, .. } => (last, shortcut),
        };
        let own = planner.values[last + 1];
        for value in node.inputs.iter().chain(&shortcut) {
            let wanted = *value > 0 || input_gradient;
            let taken_over = shortcut == Some(*value) && !planner.written[*value] && *value > 0;
            let shared =
                node.op == Op::Add && uses[*value] == 1 && *value > 0 && reads_only(roles, *value);
            writes[i].push(match own {
                Some(slot) if wanted && (shared || taken_over) => planner.share(*value, slot),
                _ if wanted => Some(planner.write(*value, elements(model, *value))),
                _ => None,
            });
        }
        if let Some(slot) = own {
            planner.holders[slot] -= 1;
        }
    }
    GradientPlan {
        slots: planner.slots,
        values: planner.values,
        writes,
    }
}

/// Whether the node that made a value leaves its gradient as it is.
fn reads_only(roles: &[Role], value: usize) -> bool {
    !matches!(roles[value - 1], Role::Within(_))
}

fn elements(model: &Model, value: usize) -> usize {
    if value == 0 {
        model.input.elements()
    } else {
        model.nodes[value - 1].output.elements()
    }
}

struct Planner {
    slots: Vec<usize>,
    /// Values whose gradient lies in each slot and is still to be read.
    holders: Vec<usize>,
    values: Vec<Option<usize>>,
    written: Vec<bool>,
}

impl Planner {
    /// A free slot for `elements`: the smallest that is large enough, else the largest, which grows, else a new one.
    fn take(&mut self, elements: usize) -> usize {
        let free = || (0..self.slots.len()).filter(|slot| self.holders[*slot] == 0);
        let fitting = free()
            .filter(|slot| self.slots[*slot] >= elements)
            .min_by_key(|slot| self.slots[*slot]);
        let slot = fitting
            .or_else(|| free().max_by_key(|slot| self.slots[*slot]))
            .unwrap_or_else(|| {
                self.slots.push(0);
                self.holders.push(0);
                self.slots.len() - 1
            });
        self.slots[slot] = self.slots[slot].max(elements);
        self.holders[slot] = 1;
        slot
    }

    /// The next write to the gradient of `value`.
    fn write(&mut self, value: usize, elements: usize) -> Write {
        if self.values[value].is_none() {
            self.values[value] = Some(self.take(elements));
        }
        if std::mem::replace(&mut self.written[value], true) {
            Write::Accumulate
        } else {
            Write::Overwrite
        }
    }

    /// Lets the gradient of `value` be what lies in `slot` already.
    fn share(&mut self, value: usize, slot: usize) -> Option<Write> {
        self.values[value] = Some(slot);
        self.written[value] = true;
        self.holders[slot] += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{LayerSpec, ModelSpec, Norm};
    use crate::model::{NormOptions, lower};
    use crate::program::fuse::roles;

    const NESTED: &str = r#"["relu",
        {"residual":{"body":[{"residual":{"body":["relu"]}},{"conv2d":{"channels":4,"kernel":1}},"relu"]}},
        {"residual":{"body":["relu"],"shortcut":[{"residual":{"body":["relu","relu"],"shortcut":["relu"]}}]}},
        "relu",{"max-pool":{"kernel":2}},"relu","flatten",{"linear":{"features":100}},"relu"]"#;

    const CHAINS: &str = r#"["relu",
        {"residual":{"body":[{"batch-norm":{}},"relu",{"group-norm":{}}]}},"relu",
        {"residual":{"body":[{"group-norm":{}},"relu"],"shortcut":[{"batch-norm":{}},"relu"]}},
        {"residual":{"body":[{"residual":{"body":[{"rms-norm":{}}]}},"relu",{"batch-norm":{}}],"shortcut":[{"batch-norm":{}}]}},
        "relu","flatten",{"linear":{"features":100}},"relu"]"#;
    const ENDS_IN_A_CHAIN: &str = r#"[{"batch-norm":{}},"relu",
        {"residual":{"body":[{"batch-norm":{}}],"shortcut":[{"conv2d":{"channels":4,"kernel":1}},{"batch-norm":{}}]}},"relu"]"#;

    fn model(layers: &str) -> Model {
        let layers: Vec<LayerSpec> = serde_json::from_str(layers).expect("layers");
        let spec = ModelSpec {
            name: String::new(),
            input: vec![4, 4, 4],
            classes: 2,
            layers,
        };
        lower(&spec, &[4, 4, 4], 2, Norm::None, &NormOptions::default()).expect("a model")
    }

    /// Plays backward: at every write, no other gradient that is still to be read may lie in the slot.
    fn play(model: &Model, roles: &[Role], plan: &GradientPlan) {
        let slot = |value: usize| {
            plan.values[value].expect("a value whose gradient is written has a slot")
        };
        let mut pending = vec![model.nodes.len()];
        for (i, node) in model.nodes.iter().enumerate().rev() {
            let (last, shortcut) = match roles[i] {
                Role::Within(_) => continue,
                Role::Alone => (i, None),
                Role::Head { last, shortcut, .. } => (last, shortcut),
            };
            let own = last + 1;
            assert!(
                pending.contains(&own),
                "node {i} reads a gradient that nobody wrote"
            );
            if roles[i] != Role::Alone {
                let sharer = pending
                    .iter()
                    .find(|other| **other != own && slot(**other) == slot(own));
                assert_eq!(sharer, None, "node {i} changes what another still reads");
            }
            for (value, write) in node.inputs.iter().chain(&shortcut).zip(&plan.writes[i]) {
                match write {
                    Some(write) => {
                        let first = !pending.contains(value);
                        assert_eq!(
                            *write == Write::Overwrite,
                            first,
                            "node {i} and value {value}"
                        );
                        let clash = pending
                            .iter()
                            .find(|other| *other != value && slot(**other) == slot(*value));
                        assert_eq!(clash, None, "node {i} writes value {value} over another");
                        assert!(plan.slots[slot(*value)] >= elements(model, *value));
                    }
                    None if *value == 0 => continue,
                    None => assert_eq!(
                        slot(*value),
                        slot(own),
                        "value {value} shares its sum's gradient"
                    ),
                }
                if !pending.contains(value) {
                    pending.push(*value);
                }
            }
            pending.retain(|value| *value != own);
        }
        pending.retain(|value| *value != 0);
        assert_eq!(pending, [0; 0], "gradients that nobody reads");
    }

    #[test]
    fn no_gradient_is_overwritten_before_it_is_read() {
        for input_gradient in [false, true] {
            let model = model(NESTED);
            let roles = roles(&model);
            let plan = plan(&model, &roles, input_gradient);
            play(&model, &roles, &plan);
            assert_eq!(plan.values[0].is_some(), input_gradient);
        }
    }

    #[test]
    fn chains_of_norms_change_no_gradient_that_another_reads() {
        for layers in [CHAINS, ENDS_IN_A_CHAIN] {
            let model = model(layers);
            let roles = roles(&model);
            let chains = roles
                .iter()
                .filter(|role| matches!(role, Role::Head { .. }));
            assert!(chains.count() > 1, "{roles:?}");
            for input_gradient in [false, true] {
                play(&model, &roles, &plan(&model, &roles, input_gradient));
            }
        }
    }

    #[test]
    fn what_a_norm_and_its_shortcut_both_read_gets_both_gradients() {
        for norm in ["batch-norm", "group-norm", "rms-norm"] {
            let model = model(&format!(
                r#"["relu",{{"residual":{{"body":[{{"{norm}":{{}}}}]}}}},"relu"]"#
            ));
            let roles = roles(&model);
            let plan = plan(&model, &roles, false);
            play(&model, &roles, &plan);
            // The addition hands its gradient to the shortcut as it is, and to the norm, which adds its own.
            assert_eq!(plan.writes[1], [Some(Write::Accumulate)]);
        }
    }

    #[test]
    fn what_is_added_in_a_chain_takes_its_gradient_over() {
        let model = model(
            r#"["relu",{"residual":{"body":[{"conv2d":{"channels":4,"kernel":1}},{"batch-norm":{}}]}},"relu"]"#,
        );
        let plan = plan(&model, &roles(&model), false);
        assert_eq!(plan.writes[2], [Some(Write::Overwrite), None]);
        assert_eq!(plan.writes[1], [Some(Write::Accumulate)]);
    }

    #[test]
    fn slots_are_used_again() {
        let chain = model(r#"["relu","relu","relu","relu","relu","relu"]"#);
        assert_eq!(plan(&chain, &roles(&chain), true).slots, [64, 64]);
    }

    #[test]
    fn a_branch_of_its_own_is_not_copied() {
        let residual = model(r#"["relu",{"residual":{"body":["relu"]}}]"#);
        let plan = plan(&residual, &roles(&residual), false);
        // Value 1 feeds the body and the sum; value 2 the sum alone.
        assert_eq!(plan.writes[2], [None, Some(Write::Overwrite)]);
        assert_eq!(plan.writes[1], [Some(Write::Accumulate)]);
        assert_eq!(plan.values[2], plan.values[3]);
    }

    #[test]
    fn group_norm_at_the_input_has_an_input_gradient() {
        let grouped = model(r#"[{"group-norm":{}}]"#);
        assert_eq!(
            plan(&grouped, &roles(&grouped), false).writes[0],
            [Some(Write::Overwrite)]
        );
        let batched = model(r#"[{"batch-norm":{}}]"#);
        assert_eq!(plan(&batched, &roles(&batched), false).writes[0], [None]);
    }
}
