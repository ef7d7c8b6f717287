//! Speed of the CPU's kernels at the shapes of training, on one thread.
//!
//! Products and convolutions report elements as multiply-adds, norms report bytes of the activation (times the passes of
//! [`syncmark_engine::model::cost`] they are the bytes that must move), optimizers the bytes that they move: compare with the machine's peak and with its memory
//! bandwidth. Run with `cargo bench -p syncmark-engine --bench kernels` on an idle machine.
use criterion::{Criterion, criterion_group, criterion_main};

#[path = "kernels/device.rs"]
mod device;
#[path = "kernels/norms.rs"]
mod norms;
#[path = "kernels/optimizers.rs"]
mod optimizers;
#[path = "kernels/products.rs"]
mod products;

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(20);
    targets = products::matmul, products::convolution, norms::norm, optimizers::optimizer
}
criterion_main!(kernels);
