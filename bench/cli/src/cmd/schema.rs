//! `syncmark schema`: the JSON Schema of scenario files, for editors that check TOML against one.
use crate::cmd::print;
use crate::error::{CliError, Result, Status};
use crate::scenario::file::Scenario;

/// Prints the schema.
///
/// # Errors
/// When stdout cannot be written.
pub fn execute() -> Result<Status> {
    let schema = schemars::schema_for!(Scenario);
    let text = serde_json::to_string_pretty(&schema)
        .map_err(|error| CliError::failed(format!("cannot write the schema: {error}")))?;
    print(&format!("{text}\n"))
}
