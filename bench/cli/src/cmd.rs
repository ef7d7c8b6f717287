//! The verbs of the command line, one file each.
//!
//! Contract: a command prints its result on stdout and returns its exit status; errors are printed by `main`.
pub mod ceilings;
pub mod completions;
pub mod doctor;
pub mod launch;
pub mod man;
pub mod plan;
pub mod report;
pub mod run;
pub mod runnable;
pub mod schema;
pub mod verify;

use std::io::Write;

use crate::error::{CliError, Result, Status};

/// Writes a command's result to stdout.
///
/// A reader that has gone away (`syncmark plan ... | head`) is not a failure of the command.
///
/// # Errors
/// Any other failure to write.
pub fn print(text: &str) -> Result<Status> {
    let mut stdout = std::io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CliError::failed(
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(Status::Passed),
    }
}
