//! Runs a test program again with each set of vector instructions that the first run did not choose.
//!
//! Contract: the program's own run is one of the widest set; a set that this processor lacks is told on stderr, where test runners
//! show it, and is a failure where SYNCMARK_REQUIRE_INSTRUCTIONS is set. The environment's variable wins: when it is set, only that
//! set is run. Matrix products of the `gemm` crate run with what the processor has in every case: they make their own choice.
use std::io::Write;
use std::process::Command;

use syncmark_engine::backend::cpu::instructions::{Instructions, VARIABLE};

/// Runs all tests of this program but those whose name has `this` in it, once for each other set.
///
/// # Panics
/// When one of those runs fails, with its output.
#[allow(
    dead_code,
    reason = "programs with a main of their own have no filters"
)]
pub fn run_again_without(this: &str) {
    for (set, told) in again(&["--skip", this]) {
        assert!(
            !told.contains(" 0 passed"),
            "nothing was run with {set}: {told}"
        );
    }
}

/// The same for a program whose own `main` runs all that it has.
///
/// # Panics
/// When one of those runs fails, with its output.
#[allow(dead_code, reason = "most programs have the main of the test runner")]
pub fn run_again_without_filters() {
    for (set, told) in again(&[]) {
        assert!(
            told.contains("... ok"),
            "nothing was run with {set}: {told}"
        );
    }
}

/// What the runs print, by set.
fn again(arguments: &[&str]) -> Vec<(&'static str, String)> {
    if std::env::var_os(VARIABLE).is_some() {
        return Vec::new();
    }
    let widest = Instructions::asked_for(None).expect("there is always one");
    let others = Instructions::ALL.into_iter().filter(|set| *set != widest);
    others
        .filter_map(|set| Some((set.name(), with(set, arguments)?)))
        .collect()
}

fn with(set: Instructions, arguments: &[&str]) -> Option<String> {
    let name = set.name();
    if !set.available() {
        let required =
            std::env::var("SYNCMARK_REQUIRE_INSTRUCTIONS").is_ok_and(|value| !value.is_empty());
        assert!(
            !required,
            "SYNCMARK_REQUIRE_INSTRUCTIONS is set, but this processor has no {name}"
        );
        // Not by a macro: what those print of a test that passes nobody sees.
        writeln!(std::io::stderr(), "skipped: this processor has no {name}")
            .expect("stderr is open");
        return None;
    }
    let program = std::env::current_exe().expect("a program knows where it lies");
    let run = Command::new(program)
        .args(arguments)
        .env(VARIABLE, name)
        .output()
        .expect("a test program starts");
    let told = String::from_utf8_lossy(&run.stdout).into_owned();
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "with {name}: {told}\n{errors}");
    Some(told)
}
