//! Models: the presets' sizes, the rules of lowering, and every message that a wrong model gets.
use std::path::PathBuf;

use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, ModelError, NormOptions, Op, check, lower, resolve};
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
fn every_mistake_names_its_layer_and_what_to_write_instead() {
    for (layers, norm, expected) in [
        (
            r#"["relu",{"linear":{"features":4}}]"#,
            Norm::None,
            "layers[1] (linear): needs [features], but its input is [3, 8, 8]: put \"flatten\" or \"global-average-pool\" before it",
        ),
        (
            r#"["flatten",{"conv2d":{"channels":4,"kernel":3}}]"#,
            Norm::None,
            "layers[1] (conv2d): needs [channels, height, width], but its input is [192]: move it before \"flatten\" or pooling, or leave it out",
        ),
        (
            r#"["flatten","flatten"]"#,
            Norm::None,
            "layers[1] (flatten): needs [channels, height, width], but its input is [192]: move it before \"flatten\" or pooling, or leave it out",
        ),
        (
            r#"["flatten","global-average-pool"]"#,
            Norm::None,
            "layers[1] (global-average-pool): needs [channels, height, width], but its input is [192]: move it before \"flatten\" or pooling, or leave it out",
        ),
        (
            r#"[{"conv2d":{"channels":4,"kernel":11,"padding":1}}]"#,
            Norm::None,
            "layers[0] (conv2d): a kernel of 11 does not fit into input [3, 8, 8] with padding 1: write a kernel of at most 10, or more padding",
        ),
        (
            r#"[{"max-pool":{"kernel":9}}]"#,
            Norm::None,
            "layers[0] (max-pool): a kernel of 9 does not fit into input [3, 8, 8] with padding 0: write a kernel of at most 8, or more padding",
        ),
        (
            r#"[{"max-pool":{"kernel":3,"padding":2}}]"#,
            Norm::None,
            "layers[0] (max-pool): padding 2 is more than half of the kernel 3: write at most 1",
        ),
        (
            r#"[{"conv2d":{"channels":0,"kernel":3}}]"#,
            Norm::None,
            "layers[0] (conv2d): channels is 0: write at least 1",
        ),
        (
            r#"[{"conv2d":{"channels":4,"kernel":0}}]"#,
            Norm::None,
            "layers[0] (conv2d): kernel is 0: write at least 1",
        ),
        (
            r#"[{"conv2d":{"channels":4,"kernel":1,"stride":0}}]"#,
            Norm::None,
            "layers[0] (conv2d): stride is 0: write at least 1",
        ),
        (
            r#"[{"repeat":{"times":0,"layers":["relu"]}}]"#,
            Norm::None,
            "layers[0] (repeat): times is 0: write at least 1",
        ),
        (r#"[]"#, Norm::None, "layers: no layers; write at least one"),
        (
            r#"[{"residual":{"body":[]}}]"#,
            Norm::None,
            "layers[0].residual.body: no layers; write at least one",
        ),
        (
            r#"["relu",{"conv2d":{"channels":6,"kernel":1}},{"group-norm":{"groups":4}}]"#,
            Norm::None,
            "layers[2] (group-norm): 4 groups do not divide 6 channels: write one of 1, 2, 3 or 6",
        ),
        // 30 channels have 7 groups by default.
        (
            r#"[{"conv2d":{"channels":30,"kernel":1}},"norm"]"#,
            Norm::Group,
            "layers[1] (group-norm): 7 groups do not divide 30 channels: write one of 1, 2, 3, 5, 6, 10, 15 or 30",
        ),
        (
            r#"[{"group-norm":{"groups":0}}]"#,
            Norm::None,
            "layers[0] (group-norm): groups is 0: write at least 1",
        ),
        (
            r#"["relu",{"residual":{"body":[{"conv2d":{"channels":6,"kernel":3,"stride":2,"padding":1}}]}}]"#,
            Norm::None,
            "layers[1] (residual): the body gives [6, 4, 4], the shortcut [3, 8, 8]: make them equal, with a conv2d of kernel 1 in the shortcut where channels or size change",
        ),
        (
            r#"[{"residual":{"body":["relu","relu",{"linear":{"features":2}}]}}]"#,
            Norm::None,
            "layers[0].residual.body[2] (linear): needs [features], but its input is [3, 8, 8]: put \"flatten\" or \"global-average-pool\" before it",
        ),
        (
            r#"[{"dropout":{"p":1.5}}]"#,
            Norm::None,
            "layers[0] (dropout): p = 1.5 is out of range: write 0 to 1",
        ),
        (
            r#"[{"batch-norm":{"eps":0.0}}]"#,
            Norm::None,
            "layers[0] (batch-norm): eps = 0 is out of range: write a positive number, such as 1e-5",
        ),
        (
            r#"[{"rms-norm":{"eps":-1.0}}]"#,
            Norm::None,
            "layers[0] (rms-norm): eps = -1 is out of range: write a positive number, such as 1e-5",
        ),
        (
            r#"["global-average-pool",{"linear":{"features":4}},"norm"]"#,
            Norm::Instance,
            "layers[2] (instance-norm): [4] has one position per channel, which has no variance: put it where there are more, or write another norm",
        ),
        (
            r#"[{"average-pool":{"kernel":2,"padding":2}}]"#,
            Norm::None,
            "layers[0] (average-pool): padding 2 is more than half of the kernel 2: write at most 1",
        ),
        (
            r#"["flatten",{"average-pool":{"kernel":2}}]"#,
            Norm::None,
            "layers[1] (average-pool): needs [channels, height, width], but its input is [192]: move it before \"flatten\" or pooling, or leave it out",
        ),
        (
            r#"[{"average-pool":{"kernel":9}}]"#,
            Norm::None,
            "layers[0] (average-pool): a kernel of 9 does not fit into input [3, 8, 8] with padding 0: write a kernel of at most 8, or more padding",
        ),
        (
            r#"[{"residual":{"body":[{"repeat":{"times":0,"layers":["relu"]}}]}}]"#,
            Norm::None,
            "layers[0].residual.body[0] (repeat): times is 0: write at least 1",
        ),
        (
            r#"[{"conv2d":{"channels":4000000000,"kernel":1}}]"#,
            Norm::None,
            "layers[0] (conv2d): the output is larger than 2147483647 elements: make the layer or its input smaller",
        ),
        (
            r#"["flatten",{"linear":{"features":2000000000}}]"#,
            Norm::None,
            "layers[1] (linear): the weight is larger than 2147483647 elements: make the layer or its input smaller",
        ),
        (
            r#"[{"repeat":{"times":1000000000,"layers":["relu"]}}]"#,
            Norm::None,
            "layers[0].repeat.layers[0] (relu): the model has more than 4096 layers: lower `times`",
        ),
    ] {
        assert_eq!(message(layers, norm), expected);
    }
}

#[test]
fn mistakes_with_tokens_name_their_layer_too() {
    let embedding = r#"{"embedding":{"vocabulary":9,"features":6,"padding":0}}"#;
    for (layers, expected) in [
        (
            r#"["relu",{"embedding":{"vocabulary":9,"features":6}}]"#.to_owned(),
            "layers[1] (embedding): its input is [5], not the model's tokens: put it first, and write `input = [length]`",
        ),
        (
            r#"[{"embedding":{"vocabulary":9,"features":6,"padding":9}}]"#.to_owned(),
            "layers[0] (embedding): padding 9 is not one of 9 tokens: write at most 8",
        ),
        (
            r#"[{"embedding":{"vocabulary":9,"features":0}}]"#.to_owned(),
            "layers[0] (embedding): features is 0: write at least 1",
        ),
        (
            r#"[{"embedding":{"vocabulary":99999999,"features":6}}]"#.to_owned(),
            "layers[0] (embedding): the vocabulary is larger than 16777216 tokens: write fewer",
        ),
        (
            r#"["positions"]"#.to_owned(),
            "layers[0] (positions): needs tokens: put { embedding = { vocabulary = \"classes\", features = ... } } first",
        ),
        (
            r#"[{"attention":{"heads":2}}]"#.to_owned(),
            "layers[0] (attention): needs tokens: put { embedding = { vocabulary = \"classes\", features = ... } } first",
        ),
        (
            format!(r#"[{embedding},{{"attention":{{"heads":4}}}}]"#),
            "layers[1] (attention): 4 heads do not divide 6 features: write one of 1, 2, 3 or 6",
        ),
        (
            format!(r#"[{embedding},{{"attention":{{"heads":0}}}}]"#),
            "layers[1] (attention): heads is 0: write at least 1",
        ),
        (
            format!(r#"[{embedding},{{"attention":{{"heads":2,"dropout":1.5}}}}]"#),
            "layers[1] (attention): dropout = 1.5 is out of range: write 0 to 1",
        ),
        (
            format!(r#"[{embedding},{{"linear":{{"features":7,"tied":true}}}}]"#),
            "layers[1] (linear): the weight is tied to a table of 9 tokens by 6, but it must be 7 by 6: make `features` the vocabulary \
             and the input as wide as the embedding, or write `tied = false`",
        ),
        (
            r#"[{"embedding":{"vocabulary":9,"features":6}},{"batch-norm":{"padding":"masked"}}]"#
                .to_owned(),
            "layers[1] (batch-norm): padding = \"masked\", but the embedding has no padding: write which token it is there, or leave \
             it out here",
        ),
    ] {
        let spec = ModelSpec {
            input: vec![5],
            ..spec(&layers)
        };
        let found = lower(&spec, &[5], 9, Norm::None, &NormOptions::default()).expect_err(&layers);
        assert_eq!(found.to_string(), expected);
    }
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

#[test]
fn numbers_at_the_end_of_the_range_are_refused_and_do_not_overflow() {
    let max = usize::MAX >> 1;
    for layers in [
        format!(r#"[{{"conv2d":{{"channels":4,"kernel":{max}}}}}]"#),
        format!(r#"[{{"conv2d":{{"channels":4,"kernel":3,"padding":{max}}}}}]"#),
        format!(r#"[{{"conv2d":{{"channels":{max},"kernel":3}}}}]"#),
        format!(r#"[{{"max-pool":{{"kernel":{max},"padding":1}}}}]"#),
        format!(r#"["flatten",{{"linear":{{"features":{max}}}}}]"#),
        format!(r#"[{{"group-norm":{{"groups":{max}}}}}]"#),
    ] {
        message(&layers, Norm::None);
    }
    // A stride past the end leaves one position.
    let stride = lowered(
        &format!(r#"[{{"conv2d":{{"channels":4,"kernel":3,"stride":{max}}}}}]"#),
        Norm::None,
    );
    assert_eq!(stride.output, Shape::Image { c: 4, h: 1, w: 1 });
}

#[test]
fn inputs_and_outputs_must_fit_the_data() {
    let spec = spec(r#"["flatten",{"linear":{"features":7}}]"#);
    let of = |input: &[usize]| {
        resolve(&spec, input, 10, Norm::Batch, &NormOptions::default()).expect_err("refused")
    };
    assert_eq!(
        of(&[3, 8, 8]),
        ModelError::Output {
            output: Shape::Features(7),
            classes: 10
        }
    );
    assert_eq!(
        of(&[3, 8, 8]).to_string(),
        "the model's output is [7], but the data has 10 classes: end with { linear = { features = \"classes\" } }"
    );
    for input in [
        &[][..],
        &[3, 0],
        &[0, 8, 8],
        &[3, 8, 8, 1],
        &[usize::MAX, 2, 2],
    ] {
        assert_eq!(
            of(input),
            ModelError::Input {
                dimensions: input.to_vec()
            }
        );
    }
}

#[test]
fn one_element_per_statistic_is_refused_where_there_are_no_other_ranks() {
    let spec = spec(r#"["flatten",{"linear":{"features":"classes"}},"norm"]"#);
    let with = |norm, samples| check(&spec, &[3, 8, 8], 10, norm, Some(samples)).map(|_| ());
    assert_eq!(
        with(Norm::Batch, 1).expect_err("refused").to_string(),
        "layers[2] (batch-norm): 1 sample of [10] is one element per channel, which has no variance: write a batch of at \
         least 2 per device (or per normalization chunk), or another norm"
    );
    assert_eq!(with(Norm::Batch, 2), Ok(()));
    assert_eq!(with(Norm::SyncBatch, 1), Ok(()));
    assert_eq!(with(Norm::Layer, 1), Ok(()));
}
