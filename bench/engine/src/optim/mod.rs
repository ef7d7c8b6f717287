//! Optimizers: one kernel over the whole arena of parameters.
pub mod sgd;

pub use sgd::{Sgd, SgdSettings};
