//! One suite for every backend: each kernel against a plain f64 reference, and the order of streams and events.
//!
//! A backend passes when its results are within [`device::TOLERANCE`] of the references, for odd sizes and both ways of
//! writing. A new backend is added in [`device::on_every_backend`].
mod chains;
mod compression;
mod device;
mod elementwise;
#[path = "../gpu/mod.rs"]
mod gpu;
mod gpu_order;
mod gpu_teams;
#[path = "../instructions/mod.rs"]
mod instructions;
mod library_norm;
mod loss;
mod narrow;
mod norms;
mod optimizers;
mod pooling;
mod products;
mod rms;
mod streams;
mod tokens;

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
