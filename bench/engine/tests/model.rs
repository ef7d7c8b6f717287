//! Models: the presets' sizes and the rules of lowering. What wrong models are told stands in `model/mistakes.rs`.
#[path = "model/mistakes.rs"]
mod mistakes;

use std::path::PathBuf;

use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, NormOptions, Op, check, lower, resolve};
use syncmark_engine::shape::Shape;

fn preset(name: &str) -> ModelSpec {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../scenarios/models/{name}.toml"));
    toml::from_str(&std::fs::read_to_string(path).expect("a preset")).expect("a model file")
}

fn spec(layers: &str) -> ModelSpec {
    let layers: Vec<LayerSpec> =
        serde_json::from_str(layers).unwrap_or_else(|error| panic!("{layers}: {error}"));
    ModelSpec {
        name: "test".into(),
        input: vec![3, 8, 8],
        classes: 10,
        layers,
    }
}

fn lowered(layers: &str, norm: Norm) -> Model {
    lower(&spec(layers), &[3, 8, 8], 10, norm, &NormOptions::default())
        .unwrap_or_else(|error| panic!("{layers}: {error}"))
}

fn message(layers: &str, norm: Norm) -> String {
    let result = lower(&spec(layers), &[3, 8, 8], 10, norm, &NormOptions::default());
    result.map(|_| ()).expect_err(layers).to_string()
}

#[test]
fn presets_have_the_sizes_that_are_known_of_them() {
    // ResNet-20 with projections has 272 474 parameters (He et al. 2015 give 0.27 M).
    for (name, norm, parameters, buffers) in [
        (
            "resnet20",
            Norm::Batch,
            272_474,
            8 * (7 * 16 + 7 * 32 + 7 * 64) + 8 * 21,
        ),
        ("resnet20", Norm::Group, 272_474, 0),
        ("mlp", Norm::Batch, 2_916_362, 3 * (8 * 1024 + 8)),
        ("convnet", Norm::Batch, 24_058, 8 * (16 + 32 + 64) + 8 * 3),
        (
            "convnet",
            Norm::SyncBatch,
            24_058,
            8 * (16 + 32 + 64) + 8 * 3,
        ),
        ("convnet", Norm::Layer, 24_058, 0),
        ("convnet", Norm::Instance, 24_058, 0),
        // RMS norm has γ alone, and the convolutions before it have no bias all the same.
        ("convnet", Norm::Rms, 24_058 - 112, 0),
        // torchvision's resnet18 and resnet50 have as many parameters.
        ("resnet18", Norm::Batch, 11_689_512, 8 * 4800 + 8 * 20),
        ("resnet50", Norm::Batch, 25_557_032, 8 * 26_560 + 8 * 53),
        ("resnet50", Norm::Group, 25_557_032, 0),
        // Four layers of 12·256² and 13·256, embedding, positions, a norm, the head's transform and norm, and the head.
        (
            "bert-mini",
            Norm::Layer,
            4 * (12 * 65_536 + 13 * 256)
                + (30_522 + 128 + 2) * 256
                + (65_536 + 3 * 256)
                + 30_522 * 257,
            0,
        ),
        (
            "bert-mini-tied",
            Norm::Layer,
            4 * (12 * 65_536 + 13 * 256) + (30_522 + 128 + 2) * 256 + (65_536 + 3 * 256) + 30_522,
            0,
        ),
        // BertForMaskedLM of bert-base-uncased has 109,514,298, with 2·768 for segments.
        ("bert-base", Norm::Layer, 109_514_298 - 2 * 768, 0),
        (
            "char-encoder",
            Norm::Rms,
            2 * (12 * 4096 + 9 * 64 + 2 * 64) + (28 + 16 + 1) * 64 + 28 * 65,
            0,
        ),
        // Without norms the three convolutions have biases, and neither γ nor β.
        ("convnet", Norm::None, 24_058 - 112, 0),
    ] {
        let spec = preset(name);
        let facts = check(&spec, &spec.input, spec.classes, norm, Some(2))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            (facts.parameters, facts.buffer_bytes),
            (parameters, buffers),
            "{name} with {norm:?}"
        );
        assert_eq!(facts.parameter_bytes, 4 * parameters);
        assert_eq!(facts.output.channels(), spec.classes);
        assert_eq!(
            facts.output.spatial(),
            if name.contains("bert") || name == "char-encoder" {
                spec.input[0]
            } else {
                1
            }
        );
        assert_eq!(
            facts
                .layers
                .iter()
                .map(|layer| layer.parameters)
                .sum::<usize>(),
            parameters
        );
    }
}

/// Shapes after the stem and after each stage, as in He et al. 2015, table 1.
#[test]
fn the_large_resnets_have_the_shapes_of_their_paper() {
    for (name, widths, additions) in [
        ("resnet18", [64, 128, 256, 512], [2, 2, 2, 2]),
        ("resnet50", [256, 512, 1024, 2048], [3, 4, 6, 3]),
    ] {
        let spec = preset(name);
        let options = NormOptions::default();
        let model = resolve(&spec, &[3, 224, 224], 1000, Norm::Batch, &options).expect(name);
        let shape = |kind: &str| {
            let node = model.nodes.iter().find(|node| node.op.kind() == kind);
            node.expect(kind).output.dimensions()
        };
        assert_eq!(shape("conv2d"), [64, 112, 112], "{name}");
        assert_eq!(shape("max-pool"), [64, 56, 56], "{name}");
        assert_eq!(shape("global-average-pool"), [widths[3]], "{name}");
        let found: Vec<Vec<usize>> = model
            .nodes
            .iter()
            .filter(|node| node.op == Op::Add)
            .map(|node| node.output.dimensions())
            .collect();
        let sides = [56, 28, 14, 7];
        let stages = widths.into_iter().zip(sides).zip(additions);
        let expected: Vec<Vec<usize>> = stages
            .flat_map(|((width, side), blocks)| vec![vec![width, side, side]; blocks])
            .collect();
        assert_eq!(found, expected, "{name}");
        // The stride of a bottleneck is in its 3×3 convolution, as in torchvision.
        let strided = model.nodes.iter().filter_map(|node| match &node.op {
            Op::Conv2d { window, .. } if window.stride == 2 => Some(window.kernel),
            _ => None,
        });
        assert_eq!(strided.collect::<Vec<_>>(), [7, 3, 1, 3, 1, 3, 1], "{name}");
    }
}

#[test]
fn sequences_go_through_norms_and_pooling_as_in_pytorch() {
    let lower_at = |layers: &str, input: &[usize]| {
        lower(
            &spec(layers),
            input,
            10,
            Norm::None,
            &NormOptions::default(),
        )
    };
    for (layers, output) in [
        (
            r#"[{"batch-norm":{}}, {"layer-norm":{"affine":"element"}}, {"instance-norm":{}}]"#,
            &[6, 7][..],
        ),
        (
            r#"[{"group-norm":{"groups":3}}, {"rms-norm":{}}, "relu", {"gelu":{}}, {"dropout":{"p":0.5}}]"#,
            &[6, 7],
        ),
        (r#"["flatten"]"#, &[42]),
        (r#"["global-average-pool"]"#, &[6]),
    ] {
        let model = lower_at(layers, &[6, 7]).unwrap_or_else(|error| panic!("{layers}: {error}"));
        assert_eq!(model.output.dimensions(), output, "{layers}");
    }
    let element = lower_at(r#"[{"rms-norm":{"affine":"element"}}]"#, &[6, 7]).expect("a model");
    assert_eq!(element.nodes[0].parameters()[0].shape, [6, 7]);
    for (layers, input, expected) in [
        (
            r#"[{"conv2d":{"channels":4,"kernel":1}}]"#,
            &[6, 7][..],
            "layers[0] (conv2d): needs [channels, height, width], but its input is [6, 7]: write the model's input as [channels, 1, length], or leave the layer out",
        ),
        (
            r#"[{"linear":{"features":4}}]"#,
            &[6, 7],
            "layers[0] (linear): needs [features], but its input is [6, 7]: put \"flatten\" or \"global-average-pool\" before it",
        ),
        (
            r#"[{"instance-norm":{}}]"#,
            &[6],
            "layers[0] (instance-norm): [6] has one position per channel, which has no variance: put it where there are more, or write another norm",
        ),
        (
            r#"[{"instance-norm":{}}]"#,
            &[6, 1],
            "layers[0] (instance-norm): [6, 1] has one position per channel, which has no variance: put it where there are more, or write another norm",
        ),
    ] {
        assert_eq!(
            lower_at(layers, input)
                .map(|_| ())
                .expect_err(layers)
                .to_string(),
            expected
        );
    }
}

#[test]
fn convnet_takes_images_of_any_size() {
    let spec = preset("convnet");
    for side in [8, 28, 2] {
        check(&spec, &[1, side, side], 10, Norm::Batch, Some(2))
            .unwrap_or_else(|error| panic!("{side}: {error}"));
    }
}

/// Whether each linear and convolution of a model has a bias.
fn biases(layers: &str, norm: Norm) -> Vec<bool> {
    let model = lowered(layers, norm);
    let weighted = model
        .nodes
        .iter()
        .filter(|node| matches!(node.op.kind(), "linear" | "conv2d"));
    weighted.map(|node| node.parameters().len() == 2).collect()
}

#[test]
fn a_bias_is_left_out_before_a_norm_that_has_one() {
    let conv = r#"{"conv2d":{"channels":4,"kernel":1}}"#;
    let before = |next: &str| biases(&format!("[{conv},{next}]"), Norm::Batch)[0];
    assert!(!before(r#""norm""#));
    assert!(!before(r#"{"group-norm":{}}"#));
    assert!(!before(r#"{"layer-norm":{"affine":"element"}}"#));
    assert!(before(r#"{"layer-norm":{"affine":"none"}}"#));
    assert!(before(r#"{"batch-norm":{"affine":false}}"#));
    assert!(before(r#""relu","norm""#));
    assert!(
        before(r#"{"repeat":{"times":1,"layers":["norm"]}}"#),
        "the next element is the repeat"
    );
    assert_eq!(
        biases(&format!(r#"[{conv},"norm","relu"]"#), Norm::None),
        [true]
    );
    assert_eq!(
        biases(
            &format!(r#"[{conv},"norm",{{"batch-norm":{{}}}}]"#),
            Norm::None
        ),
        [false],
        "the next that is left"
    );
    assert_eq!(
        biases(
            r#"[{"conv2d":{"channels":4,"kernel":1,"bias":true}},"norm"]"#,
            Norm::Batch
        ),
        [true]
    );
    assert_eq!(
        biases(
            r#"[{"conv2d":{"channels":4,"kernel":1,"bias":false}}]"#,
            Norm::Batch
        ),
        [false]
    );
    let residual = r#"[{"residual":{"body":[{"conv2d":{"channels":3,"kernel":1}}]}},"norm"]"#;
    assert_eq!(
        biases(residual, Norm::Batch),
        [true],
        "the norm is in another list"
    );
}

#[test]
fn residuals_and_repeats_become_a_straight_line() {
    let layers = r#"[{"repeat":{"times":2,"layers":[
        {"residual":{"body":["relu",{"conv2d":{"channels":3,"kernel":1}}]}}]}},"flatten"]"#;
    let model = lowered(layers, Norm::None);
    let inputs: Vec<&[usize]> = model
        .nodes
        .iter()
        .map(|node| node.inputs.as_slice())
        .collect();
    assert_eq!(inputs, [&[0][..], &[1], &[2, 0], &[3], &[4], &[5, 3], &[6]]);
    assert_eq!(
        model.nodes[4].path,
        "layers[0].repeat.layers[0].residual.body[1] (conv2d)"
    );
    assert_eq!(model.output, Shape::Features(192));
}

#[test]
fn a_flatten_that_moves_nothing_is_no_node() {
    let flat = lower(
        &spec(r#"["flatten"]"#),
        &[1, 28, 28],
        10,
        Norm::None,
        &NormOptions::default(),
    )
    .expect("a model");
    assert_eq!((flat.nodes.len(), flat.output), (0, Shape::Features(784)));
}

#[test]
fn tokens_go_through_norms_position_by_position() {
    let layers = r#"[{"embedding":{"vocabulary":9,"features":8,"padding":0}},"norm",{"linear":{"features":"classes"}}]"#;
    for (norm, each) in [
        (Norm::Layer, true),
        (Norm::Rms, true),
        (Norm::Group, true),
        (Norm::Instance, false),
    ] {
        let spec = ModelSpec {
            input: vec![5],
            ..spec(layers)
        };
        let model = resolve(&spec, &[5], 9, norm, &NormOptions::default()).expect(layers);
        assert_eq!((model.vocabulary, model.labels_per_sample()), (Some(9), 5));
        match model.nodes[1].op {
            Op::GroupNorm { each_position, .. } | Op::RmsNorm { each_position, .. } => {
                assert_eq!(each_position, each, "{norm:?}")
            }
            ref other => panic!("{other:?}"),
        }
    }
}
