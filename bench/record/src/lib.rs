//! The file format of a run folder: row types, environment, writers, readers, and the byte formulas.
//!
//! This crate is a leaf. The engine, which counts bytes at its own copies, never depends on it, so a
//! counted figure can never be a prediction in disguise.
pub mod acceptance;
pub mod bytes;
pub mod columns;
pub mod disturbance;
pub mod environment;
pub mod error;
pub mod folder;
mod only;
pub mod outcome;
pub mod resume;
#[allow(
    missing_docs,
    reason = "a column's name and unit say what it holds; each struct says what a row is"
)]
pub mod rows;
pub mod size;
pub mod table;

pub use environment::Environment;
pub use error::FolderError;
pub use folder::{Records, RepeatRecord, RunFolder};
pub use outcome::Outcome;
