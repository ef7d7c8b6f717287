//! The arguments of the command line.
//!
//! Contract: this file says what can be asked for; `cmd` does it. Each verb has a struct of its own.
//! The verbs are those of "Commands" in README.md.
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::agent::launcher::LauncherArg;

const EXIT_STATUSES: &str = "Exit status: 0 all passed; 1 a trial failed, timed out or was invalid; \
2 bad usage or scenario; 4 nothing could run here; 130 interrupted.";

/// Measures DataParallel, DistributedDataParallel and norms on this machine.
#[derive(Debug, Parser)]
#[command(name = "syncmark", version, after_help = EXIT_STATUSES, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure scenarios: gates, blocks of repeats, records and a report.
    #[command(mut_arg("scenarios", |scenarios| scenarios.required(false).required_unless_present("resume")))]
    Run(RunArgs),
    /// Show the trials, what is left out and why, and the expected time; run nothing.
    Plan(PlanArgs),
    /// Check that every trial runs here and trains like one device does; no timing.
    Verify(VerifyArgs),
    /// Render a run folder's report again from its records.
    Report(ReportArgs),
    /// Show what this machine can run, and for what it cannot, why.
    Doctor(DoctorArgs),
    /// Measure what this machine could do at best: arithmetic, memory, and the ways between two cores; takes some seconds.
    Ceilings(CeilingsArgs),
    /// Print the JSON Schema of scenario files.
    Schema,
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Print the manual page, in roff.
    Man,
    /// One child of a run: reads its assignment from standard input. Started by the conductor, see CONTRIBUTING.md.
    #[command(hide = true)]
    Rank,
}

/// Which scenarios, and what to change in them.
#[derive(Args, Clone, Debug, Default)]
pub struct ScenarioArgs {
    /// Scenario files, or names of shipped ones such as quickstart and dp-vs-ddp; a name that is none lists them all.
    #[arg(required = true, value_name = "SCENARIO")]
    pub scenarios: Vec<String>,
    /// What computes; the same as `--set parallel.backend=...`.
    #[arg(long, value_enum)]
    pub backend: Option<BackendArg>,
    /// Keep only trials whose effective KEY has this VALUE. Repeated: the same key may have any of its values,
    /// different keys must all match.
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    pub filters: Vec<String>,
    /// Override a KEY of the scenario, whatever its sweep and variants say. VALUE is TOML; quotes around a
    /// plain word can be left out.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// Values of `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// GPUs where all is there that the scenario needs, with one for each device, and else the CPU; the run says which and why.
    Auto,
    /// Sets of CPU cores.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// `syncmark run`.
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    /// Scenarios and overrides.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// Folder that receives the run's folder.
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub out: PathBuf,
    /// Finish the interrupted run in this run folder, which says what was run; on the same machine, with the same build. A scenario
    /// beside it must be the same, with the same overrides. --out is not used then.
    #[arg(long, value_name = "RUN_DIR")]
    pub resume: Option<PathBuf>,
    /// No progress on stderr.
    #[arg(long, short)]
    pub quiet: bool,
    /// In place of the scenario, profile its models: every node of each, on one device, with its share of what the machine could do
    /// at best; as a scenario of kind layer-cost would.
    #[arg(long)]
    pub profile: bool,
    /// Who started this process and gives it a rank: found by itself from the variables that launchers set.
    #[arg(long, value_enum, default_value_t)]
    pub launcher: LauncherArg,
}

/// `syncmark plan`.
#[derive(Args, Clone, Debug, Default)]
pub struct PlanArgs {
    /// Scenarios and overrides.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// The plan of `syncmark run --profile`.
    #[arg(long)]
    pub profile: bool,
}

/// `syncmark verify`.
#[derive(Args, Clone, Debug, Default)]
pub struct VerifyArgs {
    /// Scenarios and overrides.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// No progress on stderr.
    #[arg(long, short)]
    pub quiet: bool,
    /// Who started this process and gives it a rank: found by itself from the variables that launchers set.
    #[arg(long, value_enum, default_value_t)]
    pub launcher: LauncherArg,
}

/// `syncmark report`.
#[derive(Args, Clone, Debug, Default)]
pub struct ReportArgs {
    /// A run folder.
    #[arg(value_name = "RUN_DIR")]
    pub folder: PathBuf,
    /// A Typst template in place of the built-in one.
    #[arg(long, value_name = "FILE", conflicts_with = "no_pdf")]
    pub template: Option<PathBuf>,
    /// Leave report.pdf out.
    #[arg(long)]
    pub no_pdf: bool,
}

/// `syncmark doctor`.
#[derive(Args, Clone, Debug, Default)]
pub struct DoctorArgs {
    /// Folder that runs would be written to.
    #[arg(long, value_name = "DIR", default_value = "reports")]
    pub out: PathBuf,
}

/// `syncmark ceilings`.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct CeilingsArgs {
    /// Threads that work at once, each on a core of its own, beside one alone; one per core that may be used, unless given.
    #[arg(long, value_name = "N")]
    pub devices: Option<usize>,
    /// JSON for machines in place of the table; rates are in operations or bytes per second, times in nanoseconds.
    #[arg(long)]
    pub json: bool,
}

/// `syncmark completions`.
#[derive(Args, Clone, Copy, Debug)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

impl BackendArg {
    /// The value of `parallel.backend`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}
