//! Models: their description as data ([`spec`]), and its resolution to a straight line of nodes ([`resolve()`]).
//!
//! Nothing here needs a device, so a scenario's models are checked before anything runs.
pub mod cost;
pub mod error;
pub mod facts;
mod layers;
pub mod node;
pub mod resolve;
pub mod spec;

pub use cost::{NodeCost, Work};
pub use error::ModelError;
pub use facts::{LayerFacts, ModelFacts, check};
pub use node::{GroupKind, Init, Node, Op, ParameterSlot};
pub use resolve::{Model, NormOptions, lower, resolve};
