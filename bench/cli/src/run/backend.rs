//! Which backend a plan's trials get on this machine, and whether it can be used.
//!
//! Contract: looks at libraries and GPUs only where a trial is on GPUs or may be; nothing of it panics. `auto` takes GPUs where
//! everything a plan needs is there, with a GPU for each device, since trials that share one show no performance; a whole plan
//! is on one backend, or its trials could not be compared. Under a launcher each agent decides for its host, and agents that
//! differ refuse each other.
//! Reference: `syncmark_engine::backend::cuda::discovery`.
use syncmark_engine::backend::cuda::discovery::{self, Lack};
use syncmark_engine::backend::cuda::library::{self, Library};
use syncmark_engine::backend::cuda::nvtx;
use syncmark_engine::comm::nccl;

use crate::agent::launcher::{self, LauncherArg, Start};
use crate::error::{CliError, Result};
use crate::plan::backend::{Choice, Needs};
use crate::plan::config::{Backend, TrialConfig};
use crate::plan::{LeftOut, Plan, Trial};
use crate::scenario::file::{CudaBatchNorm, Launch, Precision, Transport};

/// What `auto` stands for in `plan` on this machine.
pub fn choose(plan: &Plan) -> Choice {
    let automatic = plan.trials.iter().filter(|trial| trial.automatic);
    let Some(needs) = Needs::of(automatic.map(|trial| &trial.config)) else {
        return Choice::cpu("is not asked");
    };
    // Nothing else is loaded where there is no driver, so that machines without GPUs do not wait for it.
    if let Err(missing) = library::find(Library::Driver) {
        return judge(&needs, Err(vec![missing.into()]), all_here());
    }
    judge(&needs, discovery::available(needs.nccl), all_here())
}

/// Decides; `all_here` says that all devices are this host's.
fn judge(
    needs: &Needs,
    available: std::result::Result<usize, Vec<Lack>>,
    all_here: bool,
) -> Choice {
    match available {
        Err(lacks) => Choice::cpu(why_not(&lacks)),
        Ok(_) if needs.over_tcp => Choice::cpu(
            "keeps to the CPU, since ranks are to exchange over tcp, and those with GPUs exchange over NCCL",
        ),
        Ok(gpus) if all_here && gpus < needs.devices => Choice::cpu(format!(
            "takes GPUs where each device has one, and there are {gpus} for {} devices; `--backend cuda` lets devices share one where a trial allows it, which shows no performance",
            needs.devices
        )),
        Ok(gpus) => Choice {
            backend: Backend::Cuda,
            why: format!(
                "found {gpus} GPU{} and all libraries",
                if gpus == 1 { "" } else { "s" }
            ),
        },
    }
}

/// What `auto` did not find, in short: `doctor` has the rest.
fn why_not(lacks: &[Lack]) -> String {
    let driver =
        |lack: &Lack| matches!(lack, Lack::Library(missing) if missing.library == Library::Driver);
    if lacks.iter().any(driver) {
        return "found no CUDA driver that can be used".to_owned();
    }
    let names: Vec<&str> = lacks
        .iter()
        .map(|lack| match lack {
            Lack::Library(missing) => missing.library.name(),
            Lack::Gpu { .. } => "GPU",
        })
        .collect();
    format!(
        "found no {}; `syncmark doctor` says why, and what to install",
        names.join(", no ")
    )
}

/// Whether all devices of a run are those of this host, as far as a launcher tells.
fn all_here() -> bool {
    let lookup =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    match launcher::find(LauncherArg::Auto, &lookup) {
        Ok(Start::Agent(place)) => place.one_host,
        // What is wrong with the variables is told by whoever needs them.
        Ok(Start::Ordinary(_)) | Err(_) => true,
    }
}

/// Whether this process sees the GPUs of all ranks: under a launcher each agent may have been given its own, and on other hosts there
/// are others.
fn sees_all_gpus() -> bool {
    let lookup =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    !matches!(
        launcher::find(LauncherArg::Auto, &lookup),
        Ok(Start::Agent(_))
    )
}

/// Whether the backends that `plan` asks for can be used here.
///
/// # Errors
/// Exit status 4 with everything that is missing, and how to get it.
pub fn require(plan: &Plan) -> Result<()> {
    for trial in &plan.trials {
        if let Some(why) = refused_on_cpus(&trial.config) {
            let mut help =
                "leave it out, or run it on a GPU: `syncmark doctor` says what that needs"
                    .to_owned();
            // Why it would not run on one that is here.
            if let Some(choice) = plan.auto.as_ref().filter(|_| trial.automatic) {
                help += &format!("; {}", choice.sentence());
            }
            return Err(CliError::nothing_runs(format!("{}: {why}", trial.label)).help(help));
        }
    }
    match Needs::of(on_gpus(plan)) {
        None => Ok(()),
        Some(needs) => match discovery::available(needs.nccl) {
            Ok(gpus) if sees_all_gpus() => {
                on_gpus(plan).try_for_each(|config| can_share(config, gpus))
            }
            Ok(_) => Ok(()),
            Err(lacks) => Err(refusal(&lacks)),
        },
    }
}

fn on_gpus(plan: &Plan) -> impl Iterator<Item = &TrialConfig> {
    let configs = plan.trials.iter().map(|trial| &trial.config);
    configs.filter(|config| config.backend == Backend::Cuda)
}

/// Refuses ranks that NCCL refuses: threads of one process on one GPU.
fn can_share(config: &TrialConfig, gpus: usize) -> Result<()> {
    let threads = config.strategy.launched() == Some(Launch::Threads);
    let meet = config.strategy.ranks_transport().is_some();
    if threads && meet && config.devices > gpus {
        let message = format!(
            "{} ranks that are threads on {gpus} GPU{}: NCCL refuses two of one process on one GPU",
            config.devices,
            if gpus == 1 { "" } else { "s" }
        );
        return Err(CliError::nothing_runs(message).help(
            "write launch = \"processes\" or `--filter parallel.launch=processes`: several of these may share a GPU, which shows no performance",
        ));
    }
    Ok(())
}

/// What the process of rank `rank` needs in its environment where ranks share a GPU: NCCL takes such ranks for those of different
/// hosts. What the user has set stays.
pub fn rank_variables(config: &TrialConfig, rank: usize) -> Vec<(&'static str, String)> {
    let meet = config.backend == Backend::Cuda && config.strategy.ranks_transport().is_some();
    if !meet || !sees_all_gpus() {
        return Vec::new();
    }
    match discovery::gpus() {
        Ok(gpus) => sharing(config.devices, gpus, rank)
            .into_iter()
            .filter(|(name, _)| std::env::var_os(name).is_none())
            .collect(),
        // Without GPUs the rank itself says what is missing.
        Err(_) => Vec::new(),
    }
}

/// What rank `rank` of so many needs on so many GPUs.
fn sharing(devices: usize, gpus: usize, rank: usize) -> Vec<(&'static str, String)> {
    match devices > gpus {
        true => nccl::one_gpu(rank, true),
        false => Vec::new(),
    }
}

fn refusal(lacks: &[Lack]) -> CliError {
    let mut message = "the backend cuda cannot be used here:".to_owned();
    for lack in lacks {
        message.push_str(&format!("\n    {lack}"));
    }
    let help = discovery::help(lacks);
    CliError::nothing_runs(message)
        .help(format!("{help}; `--backend cpu` runs what of it a CPU can"))
}

/// What a trial on CPUs cannot do.
fn refused_on_cpus(config: &TrialConfig) -> Option<String> {
    if config.backend != Backend::Cpu {
        return None;
    }
    if config.precision != Precision::Fp32 {
        let name = config.precision.name();
        return Some(format!(
            "`train.precision` is {name}, and CPUs compute products in fp32"
        ));
    }
    if config.cuda_graph {
        return Some("`train.cuda_graph` is true, and CPUs have no CUDA graphs".to_owned());
    }
    if config.cuda_batch_norm != CudaBatchNorm::Own {
        return Some("`train.cuda_batch_norm` is cudnn, and CPUs have no cuDNN".to_owned());
    }
    if config.strategy.is_dp_over_nccl() {
        return Some("`parallel.dp_transport` is nccl, which is for GPUs".to_owned());
    }
    (config.strategy.ranks_transport() == Some(Transport::Nccl))
        .then(|| "`parallel.transport` is nccl, which is for GPUs".to_owned())
}

/// Leaves out, with the reason, trials whose devices outnumber the GPUs here and cannot or may not share one: before anything else looks at the plan.
pub fn leave_out_shared_gpus(plan: &mut Plan) {
    let alone = |trial: &Trial| why_a_gpu_each(trial).is_some();
    if !plan.trials.iter().any(alone) || !sees_all_gpus() {
        return;
    }
    // Without GPUs the plan is refused as a whole.
    if let Ok(gpus) = discovery::gpus() {
        leave_out(plan, gpus);
    }
}

/// Why devices of a trial share no GPU, and what to write instead.
fn why_a_gpu_each(trial: &Trial) -> Option<(&'static str, &'static str)> {
    let config = &trial.config;
    if config.backend != Backend::Cuda {
        return None;
    }
    if config.strategy.is_dp_over_nccl() {
        return Some((
            ": NCCL refuses two devices of one process on one",
            "write dp_transport = \"peer-copy\", which lets devices share a GPU, or fewer devices",
        ));
    }
    (!trial.shares_gpus).then_some((
        "",
        "run it where there are as many, or write share_gpus = true for a run that shows no performance",
    ))
}

fn leave_out(plan: &mut Plan, gpus: usize) {
    let short = |trial: &Trial| trial.config.devices > gpus && why_a_gpu_each(trial).is_some();
    let (left, kept) = std::mem::take(&mut plan.trials)
        .into_iter()
        .partition::<Vec<_>, _>(short);
    plan.trials = kept;
    plan.left_out.extend(left.into_iter().filter_map(|trial| {
        let (reason, instead) = why_a_gpu_each(&trial)?;
        let here = match gpus {
            1 => "is 1".to_owned(),
            _ => format!("are {gpus}"),
        };
        let devices = trial.config.devices;
        Some(LeftOut {
            what: trial.label,
            why: format!("{devices} devices need a GPU each, and here {here}{reason}"),
            instead,
        })
    }));
}

/// Notes of trials whose devices outnumber the GPUs that this process has.
pub fn note_shared_gpus(plan: &mut Plan) {
    if on_gpus(plan).next().is_none() || !sees_all_gpus() {
        return;
    }
    if let Ok(gpus) = discovery::gpus() {
        note(plan, gpus);
    }
}

/// Notes of trials that name ranges for profilers where the library for it is missing.
pub fn note_missing_nvtx(plan: &mut Plan) {
    if !plan.trials.iter().any(|trial| trial.config.measure.nvtx) {
        return;
    }
    if let Err(reason) = nvtx::available() {
        let note = format!("no NVTX ranges (PyPI's nvidia-nvtx has the library): {reason}");
        for trial in &mut plan.trials {
            if trial.config.measure.nvtx {
                trial.notes.push(note.clone());
            }
        }
    }
}

fn note(plan: &mut Plan, gpus: usize) {
    for trial in &mut plan.trials {
        let devices = trial.config.devices;
        if trial.config.backend == Backend::Cuda && devices > gpus {
            let shared = format!(
                "{devices} devices on {gpus} GPU{}: several share one, which shows that it works and says nothing about performance",
                if gpus == 1 { "" } else { "s" }
            );
            trial.notes.push(shared);
        }
    }
}

#[cfg(test)]
mod tests;
