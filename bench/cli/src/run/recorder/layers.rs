//! Rows of `layers.csv`: the time of a node beside what the model says of it.
//!
//! Contract: what a node is, its shape and its sizes come from the configuration, never from the child.
use syncmark_engine::model::node::Node;
use syncmark_engine::model::{Model, Op, resolve};
use syncmark_engine::program::fuse::node_costs;
use syncmark_engine::shape::Shape;
use syncmark_record::rows::LayerRow;

use super::RepeatFacts;
use crate::plan::config::{Backend, TrialConfig, Work};
use crate::run::spool::Event;

pub(super) fn layer_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<LayerRow> {
    if facts.config.work != Work::LayerCost {
        return Vec::new();
    }
    let Some(model) = model(facts.config) else {
        return Vec::new();
    };
    // The times are of one micro-batch, which is what the configuration's batch says.
    let costs = node_costs(
        &model,
        facts.config.batch.global,
        facts.config.precision.values(),
    );
    let row = |event: &Event| {
        let Event::NodeTime {
            node,
            backward,
            calls,
            time_ns: [p10, p50, p90],
        } = *event
        else {
            return None;
        };
        let (cost, within) = costs.get(node as usize)?;
        let (layer, work) = (
            &cost.facts,
            if backward {
                &cost.backward
            } else {
                &cost.forward
            },
        );
        Some(LayerRow {
            trial: facts.trial.to_owned(),
            repeat: facts.repeat,
            node,
            layer: layer.kind.to_owned(),
            name: name(&layer.path, layer.kind),
            output_shape: shape(layer.output),
            direction: if backward { "backward" } else { "forward" }.to_owned(),
            calls,
            time_ns_p10: p10,
            time_ns_p50: p50,
            time_ns_p90: p90,
            flops: work.flops,
            read_write_bytes: Some(work.read_write_bytes),
            parameters: layer.parameters as u64,
            within: within.map(|head| head as u32),
            kept_bytes: cost.kept_bytes.filter(|_| !backward),
            algorithm: algorithm(facts.config.backend, &model.nodes[node as usize], backward),
        })
    };
    ranks.iter().flatten().filter_map(row).collect()
}

/// The plan has resolved it before, so there is one.
fn model(config: &TrialConfig) -> Option<Model> {
    let (input, classes) = (&config.model.input, config.model.classes);
    let options = config.norm_options();
    resolve(&config.model, input, classes, config.norm, &options).ok()
}

/// How a convolution is computed; the first of a model has no gradient of its input.
fn algorithm(backend: Backend, node: &Node, backward: bool) -> Option<String> {
    let Op::Conv2d { window, .. } = &node.op else {
        return None;
    };
    if backend == Backend::Cuda {
        // Which of its own it took is known to the rank alone.
        return Some("cudnn".to_owned());
    }
    let algorithms = window.algorithms();
    let (dx, dw) = (
        algorithms.backward_input.name(),
        algorithms.backward_weight.name(),
    );
    Some(match (backward, node.inputs[0] > 0) {
        (false, _) => algorithms.forward.name().to_owned(),
        (true, true) => format!("dx {dx}, dw {dw}"),
        (true, false) => format!("dw {dw}"),
    })
}

/// The path of a layer in its file without what every path has: `layers[3].residual.body[1] (norm)` of a batch norm is
/// `3.body.1 batch-norm`.
fn name(path: &str, kind: &str) -> String {
    let place = path.split(" (").next().unwrap_or(path);
    let parts = place.split(['.', '[', ']']);
    let parts: Vec<&str> = parts
        .filter(|part| !matches!(*part, "" | "layers" | "residual"))
        .collect();
    format!("{} {kind}", parts.join("."))
}

/// `16×32×32`.
fn shape(shape: Shape) -> String {
    let words: Vec<String> = shape.dimensions().iter().map(ToString::to_string).collect();
    words.join("×")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short() {
        assert_eq!(
            name("layers[3].residual.body[1] (norm)", "batch-norm"),
            "3.body.1 batch-norm"
        );
        assert_eq!(name("layers[0] (conv2d)", "conv2d"), "0 conv2d");
        assert_eq!(name("layers[4] (residual)", "residual"), "4 residual");
    }

    #[test]
    fn convolutions_of_a_gpu_are_cudnns() {
        let config = crate::run::mock::config(crate::plan::config::StrategyConfig::Single, 1);
        let mut spec = config.model;
        spec.input = vec![4, 8, 8];
        spec.layers = serde_json::from_str(
            r#"["relu", {"conv2d": {"channels": 4, "kernel": 3, "padding": 1}}, "flatten", {"linear": {"features": 2}}]"#,
        )
        .unwrap();
        let model = resolve(&spec, &spec.input, 2, config.norm, &Default::default()).unwrap();
        let node = |at: usize| &model.nodes[at];
        assert_eq!(algorithm(Backend::Cuda, node(1), true).unwrap(), "cudnn");
        assert!(
            algorithm(Backend::Cpu, node(1), true)
                .unwrap()
                .starts_with("dx ")
        );
        assert_eq!(algorithm(Backend::Cuda, node(0), false), None);
    }

    #[test]
    fn shapes_are_of_a_sample() {
        assert_eq!(shape(Shape::Image { c: 16, h: 32, w: 8 }), "16×32×8");
    }
}
