//! Runs a test program again with each set of vector instructions that the first run did not choose.
//!
//! Contract: the program's own run is one of the widest set; a set that this processor lacks is told, not passed over in
//! silence. The environment's variable wins: when it is set, only that set is run.
use std::process::Command;

use syncmark_engine::backend::cpu::instructions::{Instructions, VARIABLE};

/// Runs all tests of this program but those whose name has `this` in it, once for each other set.
///
/// # Panics
/// When one of those runs fails, with its output.
pub fn run_again_without(this: &str) {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    let widest = Instructions::asked_for(None).expect("there is always one");
    for set in Instructions::ALL.into_iter().filter(|set| *set != widest) {
        if !set.available() {
            println!("skipped: this processor has no {}", set.name());
            continue;
        }
        let program = std::env::current_exe().expect("a program knows where it lies");
        let run = Command::new(program)
            .args(["--skip", this])
            .env(VARIABLE, set.name())
            .output()
            .expect("a test program starts");
        let told = String::from_utf8_lossy(&run.stdout);
        assert!(
            run.status.success(),
            "with {}: {told}\n{}",
            set.name(),
            String::from_utf8_lossy(&run.stderr)
        );
        assert!(!told.contains(" 0 passed"), "nothing was run: {told}");
    }
}
