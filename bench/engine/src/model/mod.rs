//! Models: their description as data, and their lowering to a program.
pub mod spec;
