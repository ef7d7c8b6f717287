//! Costs per node by formula, against sums written out by hand.
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, NodeCost, NormOptions, Work, lower};
use syncmark_engine::tensor::Dtype;

fn model(input: &[usize], norm: Norm, layers: &str) -> Model {
    let layers: Vec<LayerSpec> =
        serde_json::from_str(layers).unwrap_or_else(|error| panic!("{layers}: {error}"));
    let spec = ModelSpec {
        name: "test".into(),
        input: input.to_vec(),
        classes: 10,
        layers,
    };
    lower(&spec, input, 10, norm, &NormOptions::default()).expect("a model")
}

/// Cost of the last of `layers`, whose input is `[8, 6, 6]` and has a gradient.
fn last(layers: &str, batch: usize) -> NodeCost {
    let layers = format!(r#"["relu", {layers}]"#);
    let costs = model(&[8, 6, 6], Norm::None, &layers).node_costs(batch);
    costs.last().expect("a node").clone()
}

fn passes(x: u64, y: u64) -> impl Fn(u64, u64) -> Work {
    move |of_x, of_y| Work {
        flops: None,
        read_write_bytes: 4 * (of_x * x + of_y * y),
    }
}

#[test]
fn products_count_two_operations_a_term_and_every_operand_once() {
    let conv = r#"[{"conv2d":{"channels":16,"kernel":3,"stride":2,"padding":1}}, {"conv2d":{"channels":4,"kernel":1,"bias":false}},
        "flatten", {"linear":{"features":10}}]"#;
    let costs = model(&[3, 7, 7], Norm::None, conv).node_costs(5);
    // 7×7 becomes 4×4; the first convolution's input needs no gradient, so its backward has one product.
    let (x, y, w) = (5 * 3 * 49, 5 * 16 * 16, 16 * 27 + 16);
    let macs = y * 27;
    assert_eq!(
        (costs[0].forward, costs[0].backward),
        (
            Work {
                flops: Some(2 * macs),
                read_write_bytes: 4 * (x + y + w)
            },
            Work {
                flops: Some(2 * macs),
                read_write_bytes: 4 * (x + y + w)
            },
        )
    );
    let (x, y, w) = (y, 5 * 4 * 16, 4 * 16);
    let macs = y * 16;
    assert_eq!(
        (costs[1].forward, costs[1].backward),
        (
            Work {
                flops: Some(2 * macs),
                read_write_bytes: 4 * (x + y + w)
            },
            Work {
                flops: Some(4 * macs),
                read_write_bytes: 4 * (x + y + w + x + w)
            },
        )
    );
    let (x, y, w) = (5 * 64, 5 * 10, 640);
    assert_eq!(costs[3].facts.parameters as u64, w + 10);
    assert_eq!(
        (costs[3].forward, costs[3].backward),
        (
            Work {
                flops: Some(2 * 5 * 640),
                read_write_bytes: 4 * (x + y + w + 10)
            },
            Work {
                flops: Some(4 * 5 * 640),
                read_write_bytes: 4 * (2 * x + y + 2 * w + 10)
            },
        )
    );
}

#[test]
fn norms_make_the_passes_of_the_table() {
    let n = 3 * 8 * 36;
    for (layer, forward, backward) in [
        (r#"{"batch-norm":{}}"#, 3, 5),
        (r#"{"batch-norm":{"affine":false}}"#, 3, 5),
        (r#"{"sync-batch-norm":{}}"#, 3, 5),
        (r#"{"layer-norm":{}}"#, 2, 3),
        (r#"{"layer-norm":{"affine":"element"}}"#, 2, 3),
        (r#"{"group-norm":{}}"#, 2, 3),
        (r#"{"instance-norm":{}}"#, 2, 3),
        (r#"{"rms-norm":{}}"#, 2, 3),
    ] {
        let cost = last(layer, 3);
        let work = passes(n, n);
        assert_eq!(
            (cost.forward, cost.backward),
            (work(forward, 0), work(backward, 0)),
            "{layer}"
        );
    }
}

#[test]
fn norms_keep_their_input_and_their_statistics() {
    // 4 samples of 8 channels and 3×3 pixels: 288 values.
    for (norm, statistics) in [
        (r#"{"batch-norm":{}}"#, 2 * 8),
        (r#"{"layer-norm":{}}"#, 2 * 4),
        (r#"{"group-norm":{"groups":2}}"#, 2 * 4 * 2),
        (r#"{"instance-norm":{}}"#, 2 * 4 * 8),
        (r#"{"rms-norm":{}}"#, 4),
    ] {
        let layers = format!("[{norm}]");
        let model = model(&[8, 3, 3], Norm::None, &layers);
        let cost = &model.node_costs(4)[0];
        assert_eq!(cost.kept_bytes, Some(4 * (4 * 72 + statistics)), "{norm}");
    }
    let relu = model(&[8, 3, 3], Norm::None, r#"["relu"]"#);
    assert_eq!(relu.node_costs(4)[0].kept_bytes, None);
}

#[test]
fn a_norm_of_the_models_input_makes_no_input_gradient() {
    let n: u64 = 2 * 8 * 36;
    for (layer, passes) in [
        (r#"[{"batch-norm":{}}]"#, 2),
        (r#"[{"batch-norm":{"affine":false}}]"#, 0),
        (r#"[{"group-norm":{}}]"#, 2),
        (r#"[{"layer-norm":{"affine":"none"}}]"#, 0),
        (r#"[{"rms-norm":{}}]"#, 2),
        (r#"[{"rms-norm":{"affine":"none"}}]"#, 0),
    ] {
        let costs = model(&[8, 6, 6], Norm::None, layer).node_costs(2);
        assert_eq!(
            costs[0].backward.read_write_bytes,
            4 * passes * n,
            "{layer}"
        );
    }
}

#[test]
fn layers_without_products_read_and_write_each_operand_once() {
    let n = 2 * 8 * 36;
    for (layer, y, forward, backward) in [
        (r#""relu""#, n, (1, 1), (1, 2)),
        (r#"{"gelu":{}}"#, n, (1, 1), (1, 2)),
        (
            r#"{"average-pool":{"kernel":2}}"#,
            2 * 8 * 9,
            (1, 1),
            (1, 1),
        ),
        (r#"{"dropout":{"p":0.5}}"#, n, (1, 1), (1, 1)),
        (r#""flatten""#, n, (1, 1), (1, 1)),
        (r#""global-average-pool""#, 2 * 8, (1, 1), (1, 1)),
        // Winners are kept and read again.
        (r#"{"max-pool":{"kernel":2}}"#, 2 * 8 * 9, (1, 2), (1, 2)),
    ] {
        let (cost, work) = (last(layer, 2), passes(n, y));
        assert_eq!(
            (cost.forward, cost.backward),
            (work(forward.0, forward.1), work(backward.0, backward.1)),
            "{layer}"
        );
    }
}

#[test]
fn an_addition_copies_only_the_gradient_that_another_layer_reads_too() {
    let n = 2 * 8 * 36;
    let work = passes(n, n);
    // The identity's value feeds the body too; the body's own value nobody else.
    let identity = last(r#"{"residual":{"body":["relu"]}}"#, 2);
    assert_eq!(
        (identity.forward, identity.backward),
        (work(3, 0), work(2, 0))
    );
    let both = last(r#"{"residual":{"body":["relu"],"shortcut":["relu"]}}"#, 2);
    assert_eq!((both.forward, both.backward), (work(3, 0), work(0, 0)));
    // Of the model's input nobody needs the gradient.
    let input = model(
        &[8, 6, 6],
        Norm::None,
        r#"[{"residual":{"body":["relu"]}}]"#,
    );
    assert_eq!(input.node_costs(2)[1].backward.read_write_bytes, 0);
}

/// 1.814 and 4.089 GMAC a sample are the figures that torchvision gives for its two models.
#[test]
fn the_large_resnets_have_the_operations_that_are_known_of_them() {
    for (name, gflops) in [("resnet18", 1.814), ("resnet50", 4.089)] {
        let path = format!(
            "{}/../../scenarios/models/{name}.toml",
            env!("CARGO_MANIFEST_DIR")
        );
        let text = std::fs::read_to_string(path).expect("a preset");
        let spec: ModelSpec = toml::from_str(&text).expect("a model file");
        let options = NormOptions::default();
        let model = lower(&spec, &spec.input, spec.classes, Norm::Batch, &options).expect(name);
        let costs = model.node_costs(1);
        let forward: u64 = costs.iter().filter_map(|cost| cost.forward.flops).sum();
        assert_eq!(forward / 2 / 1_000_000, (gflops * 1000.0) as u64, "{name}");
        // Each product has two in backward, but the first, whose input needs no gradient.
        let backward: u64 = costs.iter().filter_map(|cost| cost.backward.flops).sum();
        assert_eq!(
            backward,
            2 * forward - costs[0].forward.flops.expect("a product"),
            "{name}"
        );
    }
}

#[test]
fn costs_follow_the_nodes_and_grow_with_the_batch() {
    let layers = r#"[{"conv2d":{"channels":8,"kernel":3}}, "norm", "relu", "global-average-pool", {"linear":{"features":"classes"}}]"#;
    let model = model(&[3, 8, 8], Norm::Batch, layers);
    let facts = model.facts().layers;
    let (one, two) = (model.node_costs(1), model.node_costs(2));
    assert!(one.iter().map(|cost| &cost.facts).eq(facts.iter()));
    for (one, two) in one.iter().zip(&two) {
        assert_eq!(two.forward.flops, one.forward.flops.map(|flops| 2 * flops));
        assert!(two.forward.read_write_bytes > one.forward.read_write_bytes);
    }
    assert!(
        model
            .node_costs(0)
            .iter()
            .all(|cost| cost.forward.flops.unwrap_or(0) == 0)
    );
    assert_eq!(
        model.node_costs(usize::MAX)[0].forward,
        Work {
            flops: Some(u64::MAX),
            read_write_bytes: u64::MAX
        }
    );
}

/// Values take two bytes, and what is no value four; a weight is rounded once a step.
#[test]
fn narrow_values_halve_what_is_moved_of_them() {
    let layers = r#"[{"conv2d":{"channels":16,"kernel":3,"padding":1,"bias":false}}, {"batch-norm":{}}, "relu", {"max-pool":{"kernel":2}},
        "flatten", {"linear":{"features":10}}]"#;
    let batch = 3;
    let costs = model(&[8, 6, 6], Norm::None, layers).node_costs_in(batch, Dtype::Bf16);
    let bytes = |cost: &NodeCost| [cost.forward, cost.backward].map(|work| work.read_write_bytes);
    let n = batch as u64;
    let (x, y, w) = (n * 8 * 36, n * 16 * 36, 16 * 8 * 9);
    // The first one rounds the input, which the host sends in f32, and has no gradient to make of it.
    let conv = [
        (4 + 2) * x + 2 * x + 2 * y + (4 + 2) * w,
        2 * x + 2 * y + 4 * w,
    ];
    assert_eq!(bytes(&costs[0]), conv);
    assert_eq!(bytes(&costs[1]), [2 * 3 * y, 2 * 5 * y]);
    assert_eq!(costs[1].kept_bytes, Some(2 * y + 4 * 2 * 16));
    // Winners' offsets are i32.
    let pooled = n * 16 * 9;
    assert_eq!(bytes(&costs[3]), [2 * y + 6 * pooled, 2 * y + 6 * pooled]);
    let (w, out) = (16 * 9 * 10, n * 10);
    let linear = [
        2 * (pooled + out) + (4 + 2) * w + 4 * 10,
        2 * (2 * pooled + out) + (4 + 2) * w + 4 * 10,
    ];
    assert_eq!(bytes(&costs[5]), linear);
    let tokens = r#"[{"embedding":{"vocabulary":10,"features":8,"padding":0}},"norm",{"linear":{"features":"classes"}}]"#;
    let costs = model(&[5], Norm::Layer, tokens).node_costs_in(batch, Dtype::Bf16);
    let (tokens, y) = (n * 5, n * 5 * 8);
    assert_eq!(
        bytes(&costs[0]),
        [4 * tokens + (4 + 2) * y, 4 * tokens + (2 + 8) * y]
    );
}
