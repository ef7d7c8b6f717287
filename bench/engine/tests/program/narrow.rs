//! Programs of a device whose values are bfloat16: what lies where, in which type, and which types each kernel meets.
#[path = "../delegate/mod.rs"]
mod delegate;

use std::sync::{Arc, Mutex};

use super::{NET, model};
use delegate::delegated;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{
    Backend, Category, Completion, Event, HostSlice, HostSliceMut, HostTask, MemoryUse, Result,
    Stream,
};
use syncmark_engine::comm::HostCall;
use syncmark_engine::kernel::Kernel;
use syncmark_engine::layer::{Mode, State, Step};
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, NormOptions, lower};
use syncmark_engine::program::Program;
use syncmark_engine::tensor::{Dtype, Span};

/// A device that has memory and runs nothing: it keeps what it was asked for.
struct Recorder {
    memory: CpuBackend,
    values: Dtype,
    kernels: Arc<Mutex<Vec<Kernel>>>,
}

impl Recorder {
    fn new(values: Dtype) -> Self {
        Self {
            memory: CpuBackend::new(CpuDevice::default()).expect("a progress thread starts"),
            values,
            kernels: Arc::default(),
        }
    }
}

impl Backend for Recorder {
    delegated!(memory);
    fn launch(&mut self, _: Stream, kernel: Kernel) -> Result<()> {
        self.kernels.lock().expect("one thread").push(kernel);
        Ok(())
    }
    fn values(&self) -> Dtype {
        self.values
    }
    fn name(&self) -> &'static str {
        "recorder"
    }
}

const BATCH: usize = 3;

/// A training step's forward and backward: the program, the device's memory, and the kernels.
fn step(model: &Model, values: Dtype) -> (Program, MemoryUse, Vec<Kernel>) {
    let mut backend = Recorder::new(values);
    let mut program = Program::build(&mut backend, model, BATCH, 1, 1, 11).expect("enough memory");
    let memory = backend.memory_use();
    let state = State::allocate(&mut backend).expect("a few bytes");
    let kernels = Arc::clone(&backend.kernels);
    let mut step = Step {
        backend: &mut backend,
        group: None,
        mode: Mode::Train,
        batch: BATCH,
        chunks: &[BATCH],
        state,
        fresh: true,
    };
    program.forward(&mut step).expect("nothing runs");
    program.backward(&mut step).expect("nothing runs");
    let kernels = kernels.lock().expect("one thread").clone();
    (program, memory, kernels)
}

fn tokens() -> Model {
    let layers: Vec<LayerSpec> = serde_json::from_str(
        r#"[{"embedding":{"vocabulary":"classes","features":8,"padding":0}},"positions","norm",{"attention":{"heads":2,"dropout":0.1}},
            {"linear":{"features":"classes"}}]"#,
    )
    .expect("layers");
    let spec = ModelSpec {
        name: "test".into(),
        input: vec![5],
        classes: 7,
        layers,
    };
    lower(&spec, &[5], 7, Norm::Layer, &NormOptions::default()).expect("a model")
}

#[test]
fn values_are_narrow_and_what_the_host_and_the_optimizer_see_is_not() {
    let model = model(NET, Norm::Batch);
    let (wide, wide_memory, _) = step(&model, Dtype::F32);
    let (narrow, memory, kernels) = step(&model, Dtype::Bf16);
    for span in [narrow.output(), narrow.d_output()] {
        assert_eq!(span.dtype(), Dtype::Bf16);
    }
    for span in [
        narrow.input(),
        narrow.parameters(),
        narrow.gradients(),
        narrow.buffers().floats,
    ] {
        assert_eq!(span.dtype(), Dtype::F32);
    }
    assert_eq!(narrow.output().len(), wide.output().len());
    let bytes = |memory: MemoryUse, category: Category| memory[category as usize];
    for category in [Category::Parameters, Category::Gradients, Category::Buffers] {
        assert_eq!(
            bytes(memory, category),
            bytes(wide_memory, category),
            "{category:?}"
        );
    }
    // Statistics of two norms of 4 channels, 5 numbers each and a count, and the winners' offsets of a maximum stay as wide as they were.
    let kept = 2 * (5 * 4 + 1) * 4 + BATCH * 4 * 2 * 3 * 4;
    let [values, halves] = [wide_memory, memory].map(|m| bytes(m, Category::Activations) - kept);
    // Each value begins at a multiple of 64 bytes, so that half is not exact.
    assert!(
        halves.abs_diff(values / 2) <= 64 * 20,
        "{halves} of {values}"
    );
    // The host's images, and weights as products read them.
    let weights = [4 * 9 * 2, 4 * 4, 4 * 4, 24 * 3]
        .map(|elements: usize| (2 * elements).next_multiple_of(64));
    let images = (BATCH * 2 * 4 * 6 * 4usize).next_multiple_of(64);
    let more = bytes(memory, Category::Workspace) - bytes(wide_memory, Category::Workspace);
    assert!(
        more.abs_diff(images + weights.iter().sum::<usize>()) <= 128,
        "{more} bytes, of {images} and {weights:?}"
    );
    let first = kernels.first();
    assert!(
        matches!(first, Some(Kernel::Narrow { from, .. }) if *from == narrow.input().first(BATCH * 48)),
        "{first:?}"
    );
    let rounded = kernels
        .iter()
        .filter(|kernel| matches!(kernel, Kernel::Narrow { .. }));
    assert_eq!(
        rounded.count(),
        1 + weights.len(),
        "the input once, each weight once for both directions"
    );
}

/// What the kernels of a narrow program are given.
#[test]
fn each_kernel_meets_the_types_that_it_is_for() {
    let (wide, narrow) = (Dtype::F32, Dtype::Bf16);
    let mut kinds = 0;
    for model in [model(NET, Norm::Batch), model(NET, Norm::Group), tokens()] {
        for kernel in step(&model, narrow).2 {
            let of = |spans: &[Span]| -> Vec<Dtype> {
                let there = spans.iter().filter(|span| !span.is_empty());
                there.map(|span| span.dtype()).collect()
            };
            let (values, floats) = match kernel {
                Kernel::Narrow { from, to, .. } => (vec![to], vec![from]),
                Kernel::Matmul {
                    a,
                    b,
                    c,
                    transpose_a: true,
                    ..
                } => (vec![a, b], vec![c]),
                Kernel::Matmul { a, b, c, .. } => (vec![a, b, c], Vec::new()),
                Kernel::AddBias { y, bias, .. } => (vec![y], vec![bias]),
                Kernel::BiasBackward { d_y, d_bias, .. } => (vec![d_y], vec![d_bias]),
                Kernel::Conv2dForward {
                    x, weight, y, bias, ..
                } => (vec![x, weight, y], vec![bias]),
                Kernel::Conv2dBackwardInput {
                    d_y, weight, d_x, ..
                } => (vec![d_y, weight, d_x], Vec::new()),
                Kernel::Conv2dBackwardWeight {
                    x, d_y, d_weight, ..
                } => (vec![x, d_y], vec![d_weight]),
                Kernel::BatchStatistics {
                    x, mean, variance, ..
                } => (vec![x], vec![mean, variance]),
                Kernel::BatchNormalize {
                    x,
                    y,
                    mean,
                    rstd,
                    gamma,
                    beta,
                    then,
                    ..
                } => (vec![x, y, then.shortcut], vec![mean, rstd, gamma, beta]),
                Kernel::BatchBackwardInput {
                    x,
                    d_y,
                    d_x,
                    mean,
                    sums,
                    ..
                } => (vec![x, d_y, d_x], vec![mean, sums]),
                Kernel::GroupNormForward {
                    x,
                    y,
                    gamma,
                    mean,
                    rstd,
                    ..
                } => (vec![x, y], vec![gamma, mean, rstd]),
                Kernel::GroupNormBackward {
                    x,
                    d_y,
                    d_x,
                    d_gamma,
                    mean,
                    ..
                } => (vec![x, d_y, d_x], vec![d_gamma, mean]),
                Kernel::EmbeddingForward {
                    tokens, table, y, ..
                } => (vec![y], vec![tokens, table]),
                Kernel::EmbeddingBackward {
                    tokens,
                    d_y,
                    d_table,
                    ..
                } => (vec![d_y], vec![tokens, d_table]),
                Kernel::AttentionForward {
                    qkv,
                    y,
                    tokens,
                    kept,
                    ..
                } => (vec![qkv, y], vec![tokens, kept]),
                Kernel::AttentionBackward {
                    qkv,
                    y,
                    d_y,
                    d_qkv,
                    tokens,
                    kept,
                    ..
                } => (vec![qkv, y, d_y, d_qkv], vec![tokens, kept]),
                Kernel::MaxPoolForward { x, y, .. } => (vec![x, y], Vec::new()),
                Kernel::MaxPoolBackward { d_y, d_x, .. } => (vec![d_y, d_x], Vec::new()),
                Kernel::Copy { from, to, .. } | Kernel::Transpose { from, to, .. } => {
                    (vec![from, to], Vec::new())
                }
                _ => continue,
            };
            kinds += 1;
            assert!(
                of(&values).iter().all(|dtype| *dtype == narrow),
                "{kernel:?}"
            );
            assert!(of(&floats).iter().all(|dtype| *dtype == wide), "{kernel:?}");
        }
    }
    assert!(kinds > 50, "{kinds}");
}

/// Whole numbers of more than 8 bits are none of bfloat16's.
#[test]
fn tokens_are_not_rounded() {
    let (program, _, kernels) = step(&tokens(), Dtype::Bf16);
    assert_eq!(program.input().dtype(), Dtype::F32);
    let reads = kernels.iter().any(|kernel| {
        matches!(kernel, Kernel::EmbeddingForward { tokens, .. } if *tokens == program.input().first(BATCH * 5))
    });
    assert!(reads, "the embedding reads what the host has sent");
}

/// Backward reads outputs and masks where forward wrote them. Masks are kept where values are bfloat16.
#[test]
fn attention_finds_what_forward_left() {
    for (values, kept) in [(Dtype::F32, 0), (Dtype::Bf16, BATCH)] {
        let (_, _, kernels) = step(&tokens(), values);
        let mut left = Vec::new();
        let mut found = Vec::new();
        for kernel in &kernels {
            match *kernel {
                Kernel::AttentionForward {
                    y, masks, heads, ..
                } => {
                    assert!(heads.dropout > 0.0);
                    assert_eq!(masks.len(), kept * heads.masks());
                    left.push((y, masks));
                }
                Kernel::AttentionBackward {
                    y,
                    masks,
                    d_y,
                    d_qkv,
                    ..
                } => {
                    assert!(y != d_y && y != d_qkv);
                    found.insert(0, (y, masks));
                }
                _ => {}
            }
        }
        assert!(!left.is_empty());
        assert_eq!(left, found);
    }
}
