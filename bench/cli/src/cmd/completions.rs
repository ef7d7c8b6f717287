//! `syncmark completions SHELL`: the completion script of a shell, for its completion folder.
use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::cmd::print;
use crate::error::{Result, Status};

/// Prints the script.
///
/// # Errors
/// When stdout cannot be written.
pub fn execute(args: CompletionsArgs) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "syncmark", &mut script);
    print(&String::from_utf8_lossy(&script))
}
