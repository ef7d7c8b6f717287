//! Every message that a wrong model gets.
use syncmark_engine::model::spec::{ModelSpec, Norm};
use syncmark_engine::model::{ModelError, NormOptions, check, lower, resolve};
use syncmark_engine::shape::Shape;

use super::{lowered, message, spec};

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
