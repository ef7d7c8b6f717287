//! What trains: the engine of syncmark. It imports no sibling crate.
pub mod model;
