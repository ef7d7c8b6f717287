//! Any text as a scenario file, and any text as `--set` and `--filter`: a plan or an error that can be shown, never a panic.
//!
//! Contract: the input is a scenario, optionally followed by a line of four dashes and one override a line.
#![no_main]
use libfuzzer_sys::fuzz_target;
use syncmark::plan::build::{Request, build};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (scenario, arguments) = text.split_once("\n----\n").unwrap_or((text, ""));
    let overrides = arguments
        .lines()
        .map(|line| ("--set".to_owned(), line.to_owned()));
    let request = Request {
        name: "fuzzed.toml".to_owned(),
        text: scenario.to_owned(),
        overrides: overrides.collect(),
        ..Request::default()
    };
    match build(&request) {
        Ok(plan) => {
            assert!(!plan.trials.is_empty());
            // What is written into the run folder must be read as the same plan.
            let again = build(&Request {
                name: "again.toml".to_owned(),
                text: plan.toml.clone(),
                ..Request::default()
            });
            // Written anew, keys are sorted, and a sweep may multiply out in another order.
            let ids = |trials: &[syncmark::plan::Trial]| {
                let ids = trials.iter().map(|trial| trial.id.clone());
                ids.collect::<std::collections::BTreeSet<_>>()
            };
            let again = again.expect("the scenario of a plan is a scenario");
            assert_eq!(ids(&plan.trials), ids(&again.trials));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
