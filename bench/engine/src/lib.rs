//! What trains: the engine of syncmark. It imports no sibling crate.
//!
//! Each module uses only those before it:
//! shape -> tensor -> kernel -> backend -> comm -> layer, norm -> program, model -> optim, data -> strategy.
//! [`probe`] is what the engine hands over about a step; [`ceiling`] stands beside all that and measures what a machine can do at best.
pub mod backend;
pub mod ceiling;
pub mod comm;
pub mod data;
pub mod half;
pub mod kernel;
pub mod layer;
pub mod layout;
pub mod loss;
pub mod model;
pub mod norm;
pub mod optim;
pub mod philox;
pub mod probe;
pub mod program;
pub mod shape;
pub mod strategy;
pub mod tensor;
