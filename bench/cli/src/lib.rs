//! The parts of the `syncmark` binary, as a library so that they can be tested one by one.
//!
//! Data flows one way: scenario file, scenario, plan, run, records. See ARCHITECTURE.md.
pub mod acceptance;
pub mod agent;
pub mod args;
pub mod cmd;
pub mod environment;
pub mod error;
pub mod plan;
pub mod run;
pub mod scenario;
