//! Scenario files: their types, how they are read with places kept, and what they must mean.
//!
//! `tree` keeps places, `read` fills the types of `file`, `keys` knows dotted keys, `check` says what is
//! meaningful, `problem` shows what is not, `preset` holds what is shipped in the binary.
pub mod check;
pub mod contradictions;
pub mod file;
pub mod keys;
pub mod preset;
pub mod problem;
pub mod read;
pub mod size;
pub mod tree;
