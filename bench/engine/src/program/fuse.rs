//! Which nodes a norm does itself: a rectifier behind it, or an addition and a rectifier.
//!
//! Such a chain goes through memory once instead of two or three times, and what lies between its nodes is never written. The
//! nodes stay in the model and in the records; those within a chain run nothing of their own.
use crate::model::cost::{NodeCost, Work};
use crate::model::{Model, Op};
use crate::norm::Tail;
use crate::tensor::Dtype;

/// How a node of the model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// By itself.
    Alone,
    /// A norm that also does the nodes up to `last`.
    Head {
        /// What they are.
        tail: Tail,
        /// The value that is added to the norm's, if one is.
        shortcut: Option<usize>,
        /// The last node of the chain, whose value is the chain's.
        last: usize,
    },
    /// By an earlier node.
    Within(usize),
}

/// How many nodes read each value; value 0 is the model's input.
pub(super) fn uses(model: &Model) -> Vec<usize> {
    let mut uses = vec![0; model.nodes.len() + 1];
    let inputs = model.nodes.iter().flat_map(|node| &node.inputs);
    inputs.for_each(|value| uses[*value] += 1);
    uses
}

/// The role of each node of `model`.
pub fn roles(model: &Model) -> Vec<Role> {
    let uses = uses(model);
    let mut roles = vec![Role::Alone; model.nodes.len()];
    for i in 0..model.nodes.len() {
        if let Some(head) = head(model, &uses, i) {
            let Role::Head { last, .. } = head else {
                continue;
            };
            roles[i] = head;
            roles[i + 1..=last].fill(Role::Within(i));
        }
    }
    roles
}

/// What each node of `model` costs with `batch` samples where values are of type `dtype`, and the node that it is run within. Of a node within another it is what it
/// adds to that one's: a rectifier adds nothing, since its output is written in its input's place and where it was open can
/// be computed again; an addition reads the shortcut, and backward, where the sum decides what passes, reads the sum and writes the
/// shortcut's gradient.
pub fn node_costs(model: &Model, batch: usize, dtype: Dtype) -> Vec<(NodeCost, Option<usize>)> {
    let costs = model.node_costs_in(batch, dtype);
    let costs = costs.into_iter().zip(roles(model));
    let cost = |(i, (mut cost, role)): (usize, (NodeCost, Role))| {
        let Role::Within(head) = role else {
            return (cost, None);
        };
        let node = &model.nodes[i];
        let values = (node.output.elements() * batch * dtype.size()) as u64;
        let wanted = node.inputs.iter().any(|value| *value > 0 && *value != i);
        let bytes = match node.op {
            Op::Add if wanted => [values, 2 * values],
            Op::Add => [values, values],
            _ => [0, 0],
        };
        [cost.forward, cost.backward] = bytes.map(|read_write_bytes| Work {
            flops: None,
            read_write_bytes,
        });
        (cost, Some(head))
    };
    costs.enumerate().map(cost).collect()
}

/// The chain that begins with node `i`, whose values nobody else reads.
fn head(model: &Model, uses: &[usize], i: usize) -> Option<Role> {
    // One that leaves padding out stays alone.
    let norm = matches!(
        model.nodes[i].op,
        Op::BatchNorm { padding: None, .. } | Op::GroupNorm { .. } | Op::RmsNorm { .. }
    );
    let own = |node: usize| uses[node + 1] == 1;
    let next = model.nodes.get(i + 1)?;
    if !norm || !own(i) || !next.inputs.contains(&(i + 1)) {
        return None;
    }
    match next.op {
        Op::Relu => Some(Role::Head {
            tail: Tail::Relu,
            shortcut: None,
            last: i + 1,
        }),
        Op::Add if own(i + 1) && model.nodes.get(i + 2)?.op == Op::Relu => {
            let shortcut = next.inputs.iter().find(|value| **value != i + 1)?;
            // What the norm itself reads has two gradients to take, one of which is not its chain's to hand over.
            if model.nodes[i].inputs.contains(shortcut) {
                return None;
            }
            Some(Role::Head {
                tail: Tail::AddRelu,
                shortcut: Some(*shortcut),
                last: i + 2,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{LayerSpec, ModelSpec, Norm};
    use crate::model::{NormOptions, lower};

    fn roles_of(layers: &str) -> Vec<Role> {
        roles(&model_of(layers))
    }

    fn model_of(layers: &str) -> Model {
        let layers: Vec<LayerSpec> = serde_json::from_str(layers).expect("layers");
        let spec = ModelSpec {
            name: String::new(),
            input: vec![4, 4, 4],
            classes: 2,
            layers,
        };
        let model = lower(&spec, &[4, 4, 4], 2, Norm::None, &NormOptions::default());
        model.expect("a model")
    }

    fn relu(last: usize) -> Role {
        Role::Head {
            tail: Tail::Relu,
            shortcut: None,
            last,
        }
    }

    #[test]
    fn a_norm_takes_the_rectifier_behind_it_and_nothing_else() {
        assert_eq!(
            roles_of(
                r#"[{"batch-norm":{}},"relu",{"group-norm":{}},{"gelu":{}},{"rms-norm":{}},"relu","relu"]"#
            ),
            [
                relu(1),
                Role::Within(0),
                Role::Alone,
                Role::Alone,
                relu(5),
                Role::Within(4),
                Role::Alone
            ]
        );
    }

    #[test]
    fn a_block_ends_in_one_chain_with_its_shortcut() {
        let roles = roles_of(r#"["relu",{"residual":{"body":["relu",{"batch-norm":{}}]}},"relu"]"#);
        let chain = Role::Head {
            tail: Tail::AddRelu,
            shortcut: Some(1),
            last: 4,
        };
        assert_eq!(roles[2..], [chain, Role::Within(2), Role::Within(2)]);
    }

    #[test]
    fn what_is_within_a_chain_costs_what_it_adds() {
        let model = model_of(
            r#"["relu",{"residual":{"body":["relu",{"batch-norm":{}}]}},"relu",{"group-norm":{}},"relu"]"#,
        );
        let (batch, values) = (3, 3 * 4 * 4 * 4 * 4);
        let found: Vec<_> = node_costs(&model, batch, Dtype::F32)
            .iter()
            .map(|(cost, within)| {
                let bytes =
                    [&cost.forward, &cost.backward].map(|work| work.read_write_bytes / values);
                (bytes, *within)
            })
            .collect();
        assert_eq!(
            found[2..],
            [
                ([3, 5], None),
                ([1, 2], Some(2)),
                ([0, 0], Some(2)),
                ([2, 3], None),
                ([0, 0], Some(5))
            ]
        );
    }

    #[test]
    fn a_value_that_others_read_is_written() {
        // The norm's value is also the shortcut of the block behind it.
        let roles = roles_of(r#"[{"batch-norm":{}},{"residual":{"body":["relu"]}}]"#);
        assert_eq!(roles, [Role::Alone; 3]);
        // The sum is also read by the next block.
        let roles = roles_of(
            r#"["relu",{"residual":{"body":[{"batch-norm":{}}]}},{"residual":{"body":["relu"]}}]"#,
        );
        assert_eq!(roles, [Role::Alone; 5]);
        // So is what the norm reads, where it is the shortcut as well.
        let roles = roles_of(r#"["relu",{"residual":{"body":[{"batch-norm":{}}]}},"relu"]"#);
        assert_eq!(roles, [Role::Alone; 4]);
    }
}
