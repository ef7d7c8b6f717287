//! `syncmark ceilings`: what this machine could do at best, by loops that do nothing else.
//!
//! Contract: one thread alone, then as many at once as there are devices, and what two cores give each other; on the cores that a run
//! would take. Takes some seconds and writes no file. The result goes to stdout, as a table or as JSON.
//! Reference: METHODOLOGY.md, "Ceilings"; the loops are `syncmark_engine::ceiling`.
use std::time::Instant;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use syncmark_engine::backend::cpu::instructions::{self, Instructions};
use syncmark_engine::ceiling::{self, CeilingError, Measured, WINDOWS};
use syncmark_report::ceilings::meaning;
use syncmark_report::format;

use crate::args::CeilingsArgs;
use crate::cmd::print;
use crate::environment::{Root, cores as processor, machine, memory_bytes};
use crate::error::{CliError, Result, Status};
use crate::run::cores;
use crate::run::summary::{fit, terminal_width};

/// Width of the table where stdout is no terminal.
const WIDTH: u16 = 140;

/// Measures and prints.
///
/// # Errors
/// Exit status 2 for more devices than cores or instructions that cannot be had, 4 where the machine lacks what a loop needs.
pub fn execute(args: CeilingsArgs) -> Result<Status> {
    let chosen = instructions::from_environment().map_err(CliError::usage)?;
    let usable = cores::usable()
        .map_err(|error| CliError::failed(format!("cannot find the usable cores: {error}")))?;
    let devices = devices(args.devices, usable.len())?;
    let begin = Instant::now();
    let found = measure(&usable[..devices], &usable)?;
    let report = Report {
        instructions: chosen,
        seconds: begin.elapsed().as_secs_f64(),
        ..found
    };
    match args.json {
        true => print(&format!("{}\n", report.json()?)),
        false => print(&report.table()),
    }
}

/// How many threads work at once.
fn devices(wanted: Option<usize>, cores: usize) -> Result<usize> {
    match wanted {
        Some(0) => Err(CliError::usage("--devices is 0").help("write at least 1")),
        Some(wanted) if wanted > cores => Err(CliError::usage(format!(
            "--devices is {wanted}, but this process may run on {}",
            format::count(cores, "core")
        ))
        .help("a ceiling is what cores can do that are not shared: write no more than there are")),
        Some(wanted) => Ok(wanted),
        None => Ok(cores.max(1)),
    }
}

/// All ceilings: `own` are the cores that work at once, and two of `usable` exchange.
fn measure(own: &[usize], usable: &[usize]) -> Result<Report> {
    let root = Root::machine();
    let cache = machine::last_level_cache(&root, own[0] as u32);
    let working_set = ceiling::working_set(cache);
    let needed = working_set.saturating_mul(own.len() as u64);
    if let Some(free) = memory_bytes(&root, "MemAvailable").filter(|free| needed > free / 2) {
        return Err(CliError::nothing_runs(format!(
            "{} need {} of memory, a working set of 4 times the last-level cache each, and {} can be had",
            format::count(own.len(), "thread"),
            format::bytes(needed as f64),
            format::bytes(free as f64)
        ))
        .help("write fewer with --devices"));
    }
    let all: Vec<Vec<usize>> = own.iter().map(|core| vec![*core]).collect();
    let mut groups = vec![&all[..1]];
    groups.extend((all.len() > 1).then_some(&all[..]));
    let mut ceilings = Vec::new();
    for cores in &groups {
        ceilings.push(ceiling::arithmetic(cores).map_err(failure)?);
    }
    for cores in &groups {
        ceilings.extend(ceiling::memory(cores, working_set).map_err(failure)?);
    }
    ceilings.sort_by_key(|found| (found.ceiling, found.threads));
    // Two cores where there are two, even if only one is to compute.
    let pair = [&usable[..1], usable.get(1..2).unwrap_or(&usable[..1])];
    ceilings.extend(ceiling::tcp(pair).map_err(failure)?);
    ceilings.extend(ceiling::shared(pair).map_err(failure)?);
    Ok(Report {
        cpu_model: processor::model(&root),
        cores: own.to_vec(),
        pair: [pair[0][0], pair[1][0]],
        instructions: Instructions::Portable,
        cache,
        working_set,
        ceilings,
        seconds: 0.0,
    })
}

fn failure(error: CeilingError) -> CliError {
    match error {
        CeilingError::Wrong { .. } => CliError::failed(error.to_string()),
        _ => CliError::nothing_runs(format!("a ceiling cannot be measured here: {error}")),
    }
}

/// What was found, and on what.
struct Report {
    cpu_model: Option<String>,
    cores: Vec<usize>,
    pair: [usize; 2],
    instructions: Instructions,
    cache: Option<u64>,
    working_set: u64,
    ceilings: Vec<Measured>,
    seconds: f64,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    cpu_model: Option<&'a str>,
    instructions: &'a str,
    cores: &'a [usize],
    exchanging_cores: [usize; 2],
    last_level_cache_bytes: Option<u64>,
    working_set_bytes: u64,
    seconds: f64,
    ceilings: Vec<CeilingJson>,
}

#[derive(Serialize)]
struct CeilingJson {
    ceiling: &'static str,
    threads: usize,
    unit: &'static str,
    windows: usize,
    median: f64,
    best: f64,
    p25: f64,
    p75: f64,
    meaning: &'static str,
}

impl Report {
    fn json(&self) -> Result<String> {
        let one = |found: &Measured| CeilingJson {
            ceiling: found.ceiling.name(),
            threads: found.threads,
            unit: found.ceiling.unit(),
            windows: found.spread.windows,
            median: found.spread.median,
            best: found.spread.best,
            p25: found.spread.quartiles[0],
            p75: found.spread.quartiles[1],
            meaning: meaning(found.ceiling.name()),
        };
        let json = ReportJson {
            cpu_model: self.cpu_model.as_deref(),
            instructions: self.instructions.name(),
            cores: &self.cores,
            exchanging_cores: self.pair,
            last_level_cache_bytes: self.cache,
            working_set_bytes: self.working_set,
            seconds: self.seconds,
            ceilings: self.ceilings.iter().map(one).collect(),
        };
        serde_json::to_string_pretty(&json)
            .map_err(|error| CliError::failed(format!("cannot write JSON: {error}")))
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        fit(&mut table, terminal_width().or(Some(WIDTH)));
        table.set_header([
            "ceiling",
            "threads",
            "median",
            "middle half",
            "best",
            "what it is",
        ]);
        for found in &self.ceilings {
            let show = |value| format::ceiling(value, found.ceiling.unit());
            let [low, high] = found.spread.quartiles;
            table.add_row([
                found.ceiling.name().to_owned(),
                found.threads.to_string(),
                show(found.spread.median),
                format!("{} to {}", show(low), show(high)),
                show(found.spread.best),
                meaning(found.ceiling.name()).to_owned(),
            ]);
        }
        for column in 1..5 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{}\n{table}\n{}", self.head(), self.foot())
    }

    fn head(&self) -> String {
        let list = |cores: &[usize]| {
            let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
            cores.join(", ")
        };
        let cache = match self.cache {
            Some(bytes) => format!("last-level cache {}", format::bytes(bytes as f64)),
            None => "the size of the last-level cache is not known".to_owned(),
        };
        format!(
            "{}, {} instructions, cores {}; {cache}, so each thread streams through {}.\n",
            self.cpu_model.as_deref().unwrap_or("unknown CPU"),
            self.instructions.name(),
            list(&self.cores),
            format::bytes(self.working_set as f64),
        )
    }

    fn foot(&self) -> String {
        let shared = match self.pair {
            [a, b] if a == b => {
                " Only one core may be used: both ends of an exchange ran on it, and a cache line went nowhere."
            }
            _ => "",
        };
        format!(
            "At least {WINDOWS} short windows each, in {:.1} s: median, the half of the windows in the middle, and the best one. Several threads work at once, \
             and their rates are added up.{shared}\n",
            self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syncmark_engine::ceiling::{Ceiling, Spread};

    fn report() -> Report {
        let found = |ceiling: Ceiling, threads, median: f64| Measured {
            ceiling,
            threads,
            instructions: None,
            working_set_bytes: None,
            spread: Spread {
                windows: WINDOWS,
                median,
                best: median * if ceiling.is_time() { 0.9 } else { 1.1 },
                quartiles: [median * 0.95, median * 1.05],
            },
        };
        Report {
            cpu_model: Some("Made-up CPU".into()),
            cores: vec![0, 2],
            pair: [0, 2],
            instructions: Instructions::Avx2,
            cache: Some(32 << 20),
            working_set: 128 << 20,
            ceilings: vec![
                found(Ceiling::MultiplyAdd, 1, 78.2e9),
                found(Ceiling::MultiplyAdd, 2, 150e9),
                found(Ceiling::MemoryReadWrite, 1, 10e9),
                found(Ceiling::SharedRoundTrip, 2, 200.0),
            ],
            seconds: 2.5,
        }
    }

    #[test]
    fn the_table_has_every_ceiling_with_its_spread_and_what_it_means() {
        insta::assert_snapshot!(report().table());
    }

    #[test]
    fn json_has_the_same_in_whole_units() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        let first = &json["ceilings"][0];
        assert_eq!(
            (first["ceiling"].as_str(), first["unit"].as_str()),
            (Some("multiply-add"), Some("flop/s"))
        );
        assert_eq!(first["median"].as_f64(), Some(78.2e9));
        assert_eq!(json["last_level_cache_bytes"].as_u64(), Some(32 << 20));
        assert!(
            first["meaning"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        );
    }

    #[test]
    fn every_ceiling_of_the_engine_has_a_meaning() {
        for ceiling in Ceiling::ALL {
            assert!(!meaning(ceiling.name()).is_empty(), "{}", ceiling.name());
        }
    }

    #[test]
    fn devices_are_cores() {
        assert_eq!(devices(None, 4).unwrap(), 4);
        assert_eq!(devices(Some(2), 4).unwrap(), 2);
        for wrong in [0, 5] {
            assert_eq!(devices(Some(wrong), 4).unwrap_err().status(), Status::Usage);
        }
    }

    #[test]
    fn one_core_and_an_unknown_cache_are_said() {
        let table = Report {
            pair: [3, 3],
            cache: None,
            ..report()
        }
        .table();
        assert!(table.contains("the size of the last-level cache is not known"));
        assert!(table.contains("Only one core may be used"));
    }
}
