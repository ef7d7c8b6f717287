//! `syncmark man`: the manual page in roff, every verb included: `syncmark man | man -l -`.
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::cmd::print;
use crate::error::{CliError, Result, Status};

/// Prints the page.
///
/// # Errors
/// When stdout cannot be written.
pub fn execute() -> Result<Status> {
    let mut command = Cli::command();
    command.build();
    let page = page(&command)
        .map_err(|error| CliError::failed(format!("cannot write the manual page: {error}")))?;
    print(&String::from_utf8_lossy(&page))
}

fn page(command: &Command) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    for verb in command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
    {
        let man = Man::new(verb.clone());
        // The head of a page would start a new one, so the verbs bring their sections alone.
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    Ok(page)
}
