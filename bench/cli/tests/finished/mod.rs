//! Runs the built binary to its end, and finds the folder that it wrote.
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use crate::running::command;

/// `syncmark run SCENARIO ARGUMENTS --quiet`, to its end.
pub fn run(scenario: &Path, arguments: &[&str]) -> Output {
    command()
        .arg("run")
        .arg(scenario)
        .args(arguments)
        .arg("--quiet")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The one run folder below `out`.
pub fn folder(out: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(out).ok()?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_dir())
}
