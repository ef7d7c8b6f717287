//! Scenario files: their types, how they are read with places kept, and what they must mean.
pub mod file;
