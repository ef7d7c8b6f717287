//! Every layer and norm whose gradients are checked.
use syncmark_engine::layer::Mode;

/// Layers, and what they are given.
pub struct Case {
    pub name: &'static str,
    /// JSON of the layers of a model file.
    pub layers: &'static str,
    pub input: &'static [usize],
    pub mode: Mode,
    pub chunks: &'static [usize],
}

const fn train(
    name: &'static str,
    layers: &'static str,
    input: &'static [usize],
    chunks: &'static [usize],
) -> Case {
    Case {
        name,
        layers,
        input,
        mode: Mode::Train,
        chunks,
    }
}

const fn eval(
    name: &'static str,
    layers: &'static str,
    input: &'static [usize],
    chunks: &'static [usize],
) -> Case {
    Case {
        name,
        layers,
        input,
        mode: Mode::Eval,
        chunks,
    }
}

pub const CASES: &[Case] = &[
    train("linear", r#"[{"linear":{"features":3}}]"#, &[5], &[4]),
    train(
        "linear without bias",
        r#"[{"linear":{"features":3,"bias":false}}]"#,
        &[5],
        &[4],
    ),
    train(
        "conv2d",
        r#"[{"conv2d":{"channels":3,"kernel":3,"padding":1}}]"#,
        &[2, 4, 3],
        &[2],
    ),
    train(
        "conv2d with stride",
        r#"[{"conv2d":{"channels":3,"kernel":3,"stride":2,"padding":1,"bias":false}}]"#,
        &[2, 5, 4],
        &[2],
    ),
    train(
        "conv2d of one pixel",
        r#"[{"conv2d":{"channels":3,"kernel":1,"stride":2}}]"#,
        &[2, 4, 3],
        &[2],
    ),
    train("relu", r#"["relu"]"#, &[2, 3, 3], &[2]),
    train(
        "max-pool",
        r#"[{"max-pool":{"kernel":3,"stride":2,"padding":1}}]"#,
        &[2, 5, 4],
        &[2],
    ),
    train(
        "global-average-pool",
        r#"["global-average-pool"]"#,
        &[3, 2, 4],
        &[2],
    ),
    train(
        "flatten",
        r#"["flatten",{"linear":{"features":3}}]"#,
        &[2, 3, 2],
        &[3],
    ),
    train("dropout", r#"[{"dropout":{"p":0.4}}]"#, &[3, 3, 2], &[3]),
    eval(
        "dropout in evaluation",
        r#"[{"dropout":{"p":0.4}}]"#,
        &[3, 3, 2],
        &[3],
    ),
    train("batch-norm", r#"[{"batch-norm":{}}]"#, &[3, 2, 3], &[4]),
    train(
        "batch-norm of features",
        r#"[{"batch-norm":{}}]"#,
        &[4],
        &[6],
    ),
    train(
        "batch-norm without affine",
        r#"[{"batch-norm":{"affine":false}}]"#,
        &[3, 2, 3],
        &[4],
    ),
    train(
        "batch-norm in even chunks",
        r#"[{"batch-norm":{}}]"#,
        &[3, 2, 3],
        &[2, 2],
    ),
    train(
        "batch-norm in uneven chunks",
        r#"[{"batch-norm":{}}]"#,
        &[3, 2, 3],
        &[3, 3, 1],
    ),
    train(
        "batch-norm with an empty chunk",
        r#"[{"batch-norm":{}}]"#,
        &[3, 2, 3],
        &[2, 0, 1],
    ),
    eval(
        "batch-norm in evaluation",
        r#"[{"batch-norm":{}}]"#,
        &[3, 2, 3],
        &[3],
    ),
    eval(
        "batch-norm in evaluation in chunks",
        r#"[{"batch-norm":{}}]"#,
        &[3, 2, 3],
        &[2, 1],
    ),
    train(
        "sync-batch-norm alone",
        r#"[{"sync-batch-norm":{}}]"#,
        &[3, 2, 3],
        &[4],
    ),
    train(
        "sync-batch-norm alone in chunks",
        r#"[{"sync-batch-norm":{}}]"#,
        &[3, 2, 3],
        &[3, 1],
    ),
    train("layer-norm", r#"[{"layer-norm":{}}]"#, &[3, 2, 3], &[3]),
    train(
        "layer-norm per element",
        r#"[{"layer-norm":{"affine":"element"}}]"#,
        &[3, 2, 3],
        &[3],
    ),
    train(
        "layer-norm without affine",
        r#"[{"layer-norm":{"affine":"none"}}]"#,
        &[3, 2, 3],
        &[3],
    ),
    train(
        "layer-norm in chunks",
        r#"[{"layer-norm":{}}]"#,
        &[3, 2, 3],
        &[2, 1],
    ),
    train(
        "layer-norm of features",
        r#"[{"layer-norm":{}}]"#,
        &[7],
        &[3],
    ),
    train(
        "group-norm",
        r#"[{"group-norm":{"groups":2}}]"#,
        &[4, 2, 3],
        &[3],
    ),
    train(
        "group-norm in chunks",
        r#"[{"group-norm":{"groups":2}}]"#,
        &[4, 2, 3],
        &[1, 2],
    ),
    train(
        "group-norm of one group per channel",
        r#"[{"group-norm":{"groups":4}}]"#,
        &[4, 2, 3],
        &[2],
    ),
    train("gelu", r#"[{"gelu":{}}]"#, &[2, 3, 3], &[2]),
    train(
        "gelu by tanh",
        r#"[{"gelu":{"approximate":"tanh"}}]"#,
        &[2, 3, 3],
        &[2],
    ),
    train(
        "average-pool",
        r#"[{"average-pool":{"kernel":3,"stride":2,"padding":1}}]"#,
        &[2, 5, 4],
        &[2],
    ),
    train(
        "average-pool of the image alone",
        r#"[{"average-pool":{"kernel":3,"stride":2,"padding":1,"count_include_pad":false}}]"#,
        &[2, 5, 4],
        &[2],
    ),
    train(
        "global-average-pool of a sequence",
        r#"["global-average-pool"]"#,
        &[3, 5],
        &[2],
    ),
    train(
        "conv2d with wide padding",
        r#"[{"conv2d":{"channels":2,"kernel":3,"stride":2,"padding":3}}]"#,
        &[2, 3, 4],
        &[2],
    ),
    train(
        "instance-norm",
        r#"[{"instance-norm":{}}]"#,
        &[3, 2, 3],
        &[3],
    ),
    train(
        "instance-norm without affine",
        r#"[{"instance-norm":{"affine":false}}]"#,
        &[3, 2, 3],
        &[3],
    ),
    train(
        "instance-norm of sequences in chunks",
        r#"[{"instance-norm":{}}]"#,
        &[3, 5],
        &[2, 1],
    ),
    train(
        "batch-norm of sequences",
        r#"[{"batch-norm":{}}]"#,
        &[3, 4],
        &[4],
    ),
    train(
        "layer-norm of sequences per element",
        r#"[{"layer-norm":{"affine":"element"}}]"#,
        &[3, 4],
        &[3],
    ),
    train(
        "group-norm of sequences",
        r#"[{"group-norm":{"groups":2}}]"#,
        &[4, 3],
        &[3],
    ),
    train("rms-norm", r#"[{"rms-norm":{}}]"#, &[3, 2, 3], &[3]),
    train(
        "rms-norm per element",
        r#"[{"rms-norm":{"affine":"element"}}]"#,
        &[3, 2, 3],
        &[3],
    ),
    train(
        "rms-norm without affine in chunks",
        r#"[{"rms-norm":{"affine":"none"}}]"#,
        &[3, 2, 3],
        &[2, 1],
    ),
    train("rms-norm of features", r#"[{"rms-norm":{}}]"#, &[7], &[3]),
    train(
        "rms-norm of sequences",
        r#"[{"rms-norm":{}}]"#,
        &[3, 4],
        &[2],
    ),
    train(
        "repeats of residuals",
        r#"[{"repeat":{"times":2,"layers":[{"residual":{"body":[{"conv2d":{"channels":2,"kernel":3,"padding":1}},{"rms-norm":{}}]}}]}}]"#,
        &[2, 3, 3],
        &[2],
    ),
    train(
        "residual of the identity",
        r#"[{"residual":{"body":[{"conv2d":{"channels":2,"kernel":3,"padding":1}},{"batch-norm":{}}]}}]"#,
        &[2, 3, 3],
        &[3],
    ),
    train(
        "residual of a norm alone, before a rectifier",
        r#"["flatten",{"residual":{"body":[{"rms-norm":{}}]}},"relu"]"#,
        &[2, 3, 3],
        &[3],
    ),
    train(
        "residual with a projection",
        r#"[{"residual":{"body":[{"conv2d":{"channels":3,"kernel":3,"stride":2,"padding":1}},{"batch-norm":{}}],
            "shortcut":[{"conv2d":{"channels":3,"kernel":1,"stride":2}},{"group-norm":{"groups":1}}]}}]"#,
        &[2, 4, 4],
        &[2, 2],
    ),
    train(
        "residuals within residuals",
        r#"[{"conv2d":{"channels":2,"kernel":1}},
            {"residual":{"body":[{"residual":{"body":[{"conv2d":{"channels":2,"kernel":1}}]}},{"conv2d":{"channels":2,"kernel":1}}]}},
            {"residual":{"body":[{"conv2d":{"channels":2,"kernel":1}}],"shortcut":[{"residual":{"body":[{"layer-norm":{}}]}}]}}]"#,
        &[2, 3, 2],
        &[2],
    ),
];
