//! The engine against PyTorch: fixtures of every layer, norm and loss in f64, of Philox numbers, and of training runs.
//!
//! The fixtures and the conventions they follow are described in `scripts/pytorch/README.md`.
mod devices;
#[path = "golden/fixture.rs"]
mod fixture;
#[path = "golden/imagenet.rs"]
mod imagenet;
mod instructions;
#[path = "golden/inventory.rs"]
mod inventory;
#[path = "golden/layer.rs"]
mod layer;
#[path = "golden/learning.rs"]
mod learning;
#[path = "golden/schedules.rs"]
mod schedules;
#[path = "golden/sync.rs"]
mod sync;
#[path = "golden/training.rs"]
mod training;
#[path = "golden/values.rs"]
mod values;

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
