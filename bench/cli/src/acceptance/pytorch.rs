//! DDP's losses and its step beside those of PyTorch's DistributedDataParallel, by `scripts/pytorch/gpu_ddp.py`.
//!
//! Contract: for losses PyTorch starts from the same parameters and takes the very batches of every rank, which are handed over in files, in
//! fp32. For the step it trains the same model at the same batch in the same precision on random samples, as `gpu_step_speed.py`. Where
//! there is no Python with PyTorch, or it does not run, nothing is compared, and the reason is told.
//! Reference: torch.nn.parallel.DistributedDataParallel.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use syncmark_engine::model::spec::Norm;
use syncmark_record::rows::LearningRow;

use super::{Found, Scene, program};
use crate::plan::Trial;
use crate::plan::config::{Backend, Length, TrialConfig, Work};
use crate::run::rank::batches;
use crate::scenario::file::{Optimizer, Precision};

const SCRIPT: &str = "gpu_ddp.py";
/// Where the scripts are, where they are not found otherwise.
const SCRIPTS: &str = "SYNCMARK_SCRIPTS";
/// A Python other than `python3` of the path.
const PYTHON: &str = "SYNCMARK_PYTHON";
const LIMIT: Duration = Duration::from_secs(240);
/// Largest relative distance of a step's loss. On CPUs it is 1e-7 over 20 steps (two ranks, convnet); batches dealt to the wrong ranks, a sum
/// for a mean or gradients that were not exchanged are beyond this after a few. Not tried on GPUs yet, whose convolutions round otherwise.
const LOSS_TOLERANCE: f64 = 1e-3;
/// Losses below this are compared with it, not with themselves.
const LOSS_FLOOR: f64 = 0.1;
/// Our step over PyTorch's: what is slower than that hides something.
const STEP_TOLERANCE: f64 = 1.25;
/// Longest curve: the script reads batches of all of it.
const MOST_STEPS: usize = 500;

/// What the script is to do, as `job.json`.
#[derive(Serialize)]
struct Job {
    /// `losses` or `step`.
    what: &'static str,
    device: &'static str,
    /// Whether ranks share a GPU, which PyTorch's NCCL refuses.
    shared: bool,
    ranks: usize,
    /// Samples of each rank.
    batch: usize,
    steps: usize,
    model: String,
    input: Vec<usize>,
    classes: usize,
    norm: Norm,
    seed: u64,
    tf32: bool,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    nesterov: bool,
}

/// What it found.
#[derive(Deserialize)]
struct Answer {
    torch: String,
    /// Of each step, the mean over ranks.
    #[serde(default)]
    losses: Vec<f64>,
    step_ms: Option<f64>,
}

/// The ranks' mean loss, step by step.
pub(super) fn losses(scene: &Scene<'_>, no_gpus: Option<&str>) -> Found {
    let learns = |trial: &Trial| {
        matches!(trial.config.work, Work::Learning(_)) && trial.config.strategy.ddp().is_some()
    };
    let Some(trial) = scene.trial(learns) else {
        return Found::skipped("no trial of DDP learned");
    };
    if let Err(why) = scene.measured(trial) {
        return Found::judged(false, why, []);
    }
    let rows: Vec<LearningRow> = match scene.folder.read() {
        Ok(rows) => rows,
        Err(error) => return Found::skipped(error.to_string()),
    };
    // Repeats have seeds of their own; the first one's are the scenario's.
    let ours: Vec<f64> = rows
        .iter()
        .filter(|row| row.trial == trial.id && row.repeat == 0)
        .filter_map(|row| row.train_loss)
        .collect();
    let config = trial.config.of_repeat(0);
    let steps = match &config.work {
        Work::Learning(learning) if learning.every == Some(1) => match learning.length {
            Length::Steps(steps) if steps == ours.len() && steps <= MOST_STEPS => steps,
            _ => 0,
        },
        _ => 0,
    };
    if steps == 0 {
        return Found::skipped(format!(
            "the trial has no loss of each step: write train.steps of at most {MOST_STEPS} and evaluate.every = 1"
        ));
    }
    let asked = job("losses", &config, steps, no_gpus).and_then(|job| ask(scene, &job, &config));
    let answer = match asked {
        Ok(answer) => answer,
        Err(why) => return Found::skipped(why),
    };
    judge_losses(&ours, &answer)
}

fn judge_losses(ours: &[f64], answer: &Answer) -> Found {
    if ours.len() != answer.losses.len() {
        let (ours, theirs) = (ours.len(), answer.losses.len());
        return Found::skipped(format!(
            "{theirs} losses of PyTorch's beside {ours} of ours"
        ));
    }
    let distance =
        |(ours, theirs): (&f64, &f64)| (ours - theirs).abs() / theirs.abs().max(LOSS_FLOOR);
    let distances: Vec<f64> = ours.iter().zip(&answer.losses).map(distance).collect();
    // A loss that is no number is as far as can be.
    let furthest = distances.iter().fold(0.0, |furthest: f64, distance| {
        if distance.is_nan() {
            f64::INFINITY
        } else {
            furthest.max(*distance)
        }
    });
    let (first, last) = (ours[0], ours[ours.len() - 1]);
    Found::judged(
        furthest <= LOSS_TOLERANCE && last < first,
        format!(
            "the ranks' mean loss over {} steps, from {first:.4} to {last:.4}, is {furthest:.1e} from that of PyTorch {} at the furthest; up to {LOSS_TOLERANCE} passes, and it must fall",
            ours.len(),
            answer.torch
        ),
        [
            ("relative_distance", furthest),
            ("first_loss", first),
            ("last_loss", last),
        ],
    )
}

/// Time of a step.
pub(super) fn step(scene: &Scene<'_>, no_gpus: Option<&str>) -> Found {
    if let Some(why) = no_gpus {
        return Found::skipped(why);
    }
    let timed =
        |trial: &Trial| trial.config.work == Work::Train && trial.config.strategy.ddp().is_some();
    let Some(trial) = scene.trial(timed) else {
        return Found::skipped("no trial of DDP was timed");
    };
    let ours = match scene.measured(trial).map(|row| row.step_ms) {
        Ok(Some(ours)) => ours,
        Ok(None) => return Found::skipped("the trial has no time of a step"),
        Err(why) => return Found::judged(false, why, []),
    };
    let config = &trial.config;
    let asked = job("step", config, 0, no_gpus).and_then(|job| ask(scene, &job, config));
    match asked.map(|answer| (answer.step_ms, answer)) {
        Ok((Some(theirs), answer)) if theirs > 0.0 => {
            let ratio = ours / theirs;
            Found::judged(
                ratio <= STEP_TOLERANCE,
                format!(
                    "{ours:.2} ms, {ratio:.3} of PyTorch {}'s {theirs:.2} ms; up to {STEP_TOLERANCE} passes",
                    answer.torch
                ),
                [
                    ("step_ms", ours),
                    ("pytorch_step_ms", theirs),
                    ("ratio", ratio),
                ],
            )
        }
        Ok(_) => Found::skipped("PyTorch gave no time"),
        Err(why) => Found::skipped(why),
    }
}

/// # Errors
/// What the script cannot do.
fn job(
    what: &'static str,
    config: &TrialConfig,
    steps: usize,
    no_gpus: Option<&str>,
) -> Result<Job, String> {
    let Optimizer::Sgd(sgd) = &config.optimizer else {
        return Err("the script has SGD alone".to_owned());
    };
    let uneven = config
        .batch
        .chunks
        .iter()
        .any(|own| *own != config.batch.chunks[0]);
    if uneven || config.accumulation > 1 {
        return Err("the script has even batches, and no micro-batches".to_owned());
    }
    if config.precision == Precision::Bf16 {
        return Err("the script has no bf16: leave `train.precision` out".to_owned());
    }
    Ok(Job {
        what,
        device: match config.backend {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
        },
        shared: no_gpus.is_some(),
        ranks: config.devices,
        batch: config.batch.chunks[0],
        steps,
        model: config.model.name.clone(),
        input: config.model.input.clone(),
        classes: config.model.classes,
        norm: config.norm,
        seed: config.train_seed,
        tf32: config.precision == Precision::Tf32,
        learning_rate: sgd.learning_rate,
        momentum: sgd.momentum,
        weight_decay: sgd.weight_decay,
        nesterov: sgd.nesterov,
    })
}

/// Lets the script do it.
fn ask(scene: &Scene<'_>, job: &Job, config: &TrialConfig) -> Result<Answer, String> {
    let script = script()?;
    let folder = scene.folder.path().join(".acceptance");
    let answer = hand_over(&folder, job, config).and_then(|()| {
        let python = std::env::var_os(PYTHON).unwrap_or_else(|| "python3".into());
        let mut command = Command::new(python);
        command.arg(script).arg(&folder);
        program::output(&mut command, LIMIT, scene.signals)
    });
    // Batches are large, and can be had again.
    let _ = std::fs::remove_dir_all(&folder);
    let text = answer?;
    let last = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(last).map_err(|error| format!("{SCRIPT} said no answer: {error}"))
}

/// Writes `job.json`, and for losses every rank's samples: `inputs.f32` of shape (steps, ranks, batch, ...) and `labels.i32`, little-endian.
fn hand_over(folder: &Path, job: &Job, config: &TrialConfig) -> Result<(), String> {
    let write = |name: &str, bytes: Vec<u8>| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    write("job.json", serde_json::to_vec(job).expect("plain data"))?;
    if job.steps == 0 {
        return Ok(());
    }
    let (inputs, labels) = batches(config, job.steps).map_err(|error| error.to_string())?;
    write(
        "inputs.f32",
        inputs
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    )?;
    write(
        "labels.i32",
        labels
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    )
}

/// The script of this repository, which needs its neighbours.
fn script() -> Result<PathBuf, String> {
    let told = std::env::var_os(SCRIPTS).map(PathBuf::from);
    let binary = std::env::current_exe().ok();
    // target/<profile>/syncmark of a checkout.
    let checkout = binary.as_ref().and_then(|binary| binary.ancestors().nth(3));
    let folders = told
        .into_iter()
        .chain([PathBuf::from("scripts/pytorch")])
        .chain(checkout.map(|root| root.join("scripts/pytorch")));
    let mut files = folders.map(|folder| folder.join(SCRIPT));
    files.find(|file| file.is_file()).ok_or_else(|| {
        format!(
            "{SCRIPT} was not found: run in a checkout, or name its scripts/pytorch in {SCRIPTS}"
        )
    })
}

#[cfg(test)]
mod tests {
    use syncmark_record::acceptance::CheckState;

    use super::*;

    fn state(ours: &[f64], theirs: &[f64]) -> CheckState {
        let answer = Answer {
            torch: "2.11.0".into(),
            losses: theirs.to_vec(),
            step_ms: None,
        };
        judge_losses(ours, &answer).state
    }

    #[test]
    fn losses_pass_where_they_are_close_and_fall() {
        assert_eq!(state(&[2.0, 1.0], &[2.001, 1.001]), CheckState::Passed);
        assert_eq!(state(&[2.0, 1.0], &[2.0, 1.2]), CheckState::Failed);
        assert_eq!(state(&[1.0, 2.0], &[1.0, 2.0]), CheckState::Failed);
        assert_eq!(state(&[2.0, 1.0], &[2.0, f64::NAN]), CheckState::Failed);
        assert_eq!(state(&[2.0, 1.0], &[2.0]), CheckState::Skipped);
    }
}
