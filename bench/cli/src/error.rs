//! What the command line says when it fails: one error with its message, its help and its exit status.
//!
//! Contract: every failure that a user can meet ends here, so exit statuses are decided in one place.
//! The statuses are listed in the README and in `syncmark --help`.
use std::fmt;
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};

/// How a run of the binary ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// All passed.
    Passed = 0,
    /// A trial failed, timed out or was invalid, or an output could not be written.
    TrialFailed = 1,
    /// Bad usage or a bad scenario.
    Usage = 2,
    /// A regression against the baseline.
    Regression = 3,
    /// Nothing could run here.
    NothingRuns = 4,
    /// Stopped by ctrl-C.
    Interrupted = 130,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        ExitCode::from(status as u8)
    }
}

/// A failure of the command line.
#[derive(Debug)]
pub struct CliError {
    status: Status,
    message: String,
    help: Option<String>,
    diagnostic: Option<Box<dyn Diagnostic + Send + Sync>>,
}

/// Result of a command.
pub type Result<T> = std::result::Result<T, CliError>;

impl CliError {
    /// A failure with a status and a message: a lower-case fragment that fits after "error: ".
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            help: None,
            diagnostic: None,
        }
    }

    /// Bad usage: exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::Usage, message)
    }

    /// Something that was to be done failed: exit status 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Status::TrialFailed, message)
    }

    /// Nothing could run here: exit status 4.
    pub fn nothing_runs(message: impl Into<String>) -> Self {
        Self::new(Status::NothingRuns, message)
    }

    /// Stopped by ctrl-C: exit status 130.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Status::Interrupted, message)
    }

    /// Bad usage that can point at its place in a scenario: exit status 2.
    pub fn diagnostic(diagnostic: impl Diagnostic + Send + Sync + 'static) -> Self {
        let help = diagnostic.help().map(|help| help.to_string());
        let message = diagnostic.to_string();
        Self {
            status: Status::Usage,
            message,
            help,
            diagnostic: Some(Box::new(diagnostic)),
        }
    }

    /// The same failure with what to do instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Exit status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What went wrong, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do instead.
    pub fn advice(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The whole text for stderr, with the excerpt of the scenario where there is one.
    pub fn render(&self, colour: bool) -> String {
        if let Some(diagnostic) = &self.diagnostic {
            let theme = if colour {
                GraphicalTheme::unicode()
            } else {
                GraphicalTheme::unicode_nocolor()
            };
            let handler = GraphicalReportHandler::new_themed(theme)
                .with_width(110)
                .with_links(false);
            let mut text = String::new();
            if handler
                .render_report(&mut text, diagnostic.as_ref())
                .is_ok()
            {
                return text;
            }
        }
        match &self.help {
            Some(help) => format!("error: {}\n  help: {help}\n", self.message),
            None => format!("error: {}\n", self.message),
        }
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}
