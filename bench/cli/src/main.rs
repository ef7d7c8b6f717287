//! The binary `syncmark`: parses the arguments, hands them to a verb, and turns its outcome into an exit status.
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use syncmark::args::{Cli, Command};
use syncmark::cmd;
use syncmark::error::{Result, Status};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::Rank) {
        return syncmark::run::rank::main();
    }
    match dispatch(command) {
        Ok(status) => status.into(),
        Err(error) => {
            eprint!("{}", error.render(std::io::stderr().is_terminal()));
            error.status().into()
        }
    }
}

fn dispatch(command: Command) -> Result<Status> {
    match command {
        Command::Run(args) => cmd::run::execute(&args),
        Command::Plan(args) => cmd::plan::execute(&args),
        Command::Verify(args) => cmd::verify::execute(&args),
        Command::Report(args) => cmd::report::execute(&args),
        Command::Doctor(args) => cmd::doctor::execute(args),
        Command::Ceilings(args) => cmd::ceilings::execute(args),
        Command::Schema => cmd::schema::execute(),
        Command::Completions(args) => cmd::completions::execute(args),
        Command::Man => cmd::man::execute(),
        Command::Rank => unreachable!("a child speaks another protocol and was handled before"),
    }
}
