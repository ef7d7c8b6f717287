//! What computes the trials of a plan: what `auto` stands for, what trials on GPUs need, and what a backend cannot do.
//!
//! Contract: pure. What a machine has is looked at elsewhere ([`crate::run::backend`]) and given to the plan as a [`Choice`].
use crate::plan::config::{Backend, TrialConfig};
use crate::plan::meaningless::Refused;
use crate::scenario::file::{
    BackendChoice, CudaBatchNorm, CudaMatmul, DpTransport, Kind, Precision, Scenario, Strategy,
    Transport,
};

/// What `parallel.backend = "auto"` stands for in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What computes.
    pub backend: Backend,
    /// Why, as what `auto` did: `found no CUDA driver`.
    pub why: String,
}

/// What trials on GPUs need together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Devices of the largest trial.
    pub devices: usize,
    /// Whether ranks exchange, or DP's devices do so by NCCL.
    pub nccl: bool,
    /// Whether ranks are to exchange over TCP, which those with GPUs cannot.
    pub over_tcp: bool,
}

impl Choice {
    /// The choice of a machine that has nothing else.
    pub fn cpu(why: impl Into<String>) -> Self {
        Self {
            backend: Backend::Cpu,
            why: why.into(),
        }
    }

    /// `Backend cpu: `auto` found no CUDA driver.`
    pub fn sentence(&self) -> String {
        format!("Backend {}: `auto` {}.", self.backend.name(), self.why)
    }
}

impl Needs {
    /// Of trials on GPUs, or of what would be.
    pub fn of<'a>(trials: impl IntoIterator<Item = &'a TrialConfig>) -> Option<Self> {
        let one = |config: &TrialConfig| Self {
            devices: config.devices,
            nccl: config.strategy.needs_nccl(),
            over_tcp: config.strategy.ranks_transport() == Some(Transport::Tcp),
        };
        trials.into_iter().map(one).reduce(|a, b| Self {
            devices: a.devices.max(b.devices),
            nccl: a.nccl || b.nccl,
            over_tcp: a.over_tcp || b.over_tcp,
        })
    }
}

/// What computes where a scenario says `choice` and `auto` stands for the other.
pub(super) fn resolved(choice: BackendChoice, auto: Backend) -> Backend {
    match choice {
        BackendChoice::Auto => auto,
        BackendChoice::Cpu => Backend::Cpu,
        BackendChoice::Cuda => Backend::Cuda,
    }
}

/// Ranks with GPUs share no memory, so what is not said otherwise is NCCL.
pub(super) fn transport(said: Transport, backend: Backend) -> Transport {
    match (said, backend) {
        (Transport::Shared, Backend::Cuda) => Transport::Nccl,
        _ => said,
    }
}

/// Why what computes cannot do what the scenario says, and what to write instead. What is wrong only for what `auto` stands for on a
/// machine without GPUs stays in the plan, and is refused where it would run.
pub(super) fn unsuited(scenario: &Scenario, auto: Backend) -> Option<Refused> {
    let parallel = &scenario.parallel;
    let collectives = scenario.kind == Kind::Collectives;
    let ranks = collectives || matches!(parallel.strategy, Strategy::Ddp | Strategy::Zero1);
    let on_gpus = resolved(parallel.backend, auto) == Backend::Cuda;
    let on_cpus = parallel.backend == BackendChoice::Cpu;
    let lt = scenario.train.cuda_matmul == CudaMatmul::CublasLt && !collectives;
    let dp_over_nccl = parallel.strategy == Strategy::Dp
        && parallel.dp_transport == DpTransport::Nccl
        && parallel.devices > 1;
    let (key, why, instead) = match parallel.transport {
        Transport::Tcp if ranks && on_gpus => (
            "parallel.transport",
            "ranks with GPUs exchange over NCCL",
            "write transport = \"nccl\", or backend = \"cpu\"",
        ),
        Transport::Nccl if ranks && on_cpus => (
            "parallel.transport",
            "NCCL is for GPUs",
            "write transport = \"shared\", or backend = \"cuda\"",
        ),
        _ if dp_over_nccl && on_cpus && !collectives => (
            "parallel.dp_transport",
            "NCCL is for GPUs",
            "write dp_transport = \"peer-copy\", or backend = \"cuda\"",
        ),
        _ if scenario.train.precision != Precision::Fp32 && on_cpus && !collectives => (
            "train.precision",
            "CPUs compute products in fp32",
            "write precision = \"fp32\", or backend = \"cuda\"",
        ),
        _ if scenario.train.cuda_graph && on_cpus && !collectives => (
            "train.cuda_graph",
            "CPUs have no CUDA graphs",
            "leave cuda_graph out, or write backend = \"cuda\"",
        ),
        _ if scenario.train.cuda_batch_norm != CudaBatchNorm::Own && on_cpus && !collectives => (
            "train.cuda_batch_norm",
            "CPUs have no cuDNN",
            "leave cuda_batch_norm out, or write backend = \"cuda\"",
        ),
        _ if lt && on_cpus => (
            "train.cuda_matmul",
            "CPUs have no cuBLASLt",
            "leave cuda_matmul out, or write backend = \"cuda\"",
        ),
        _ if lt && scenario.train.precision == Precision::Fp32 => (
            "train.cuda_matmul",
            "in fp32 all products are cuBLAS's, and cuBLASLt would multiply nothing",
            "write precision = \"tf32\" or \"bf16\", or cuda_matmul = \"cublas\"",
        ),
        _ => return None,
    };
    Some(Refused {
        key,
        why: why.to_owned(),
        instead,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::StrategyConfig;
    use crate::run::mock;
    use crate::scenario::file::{DpLoss, Launch};

    #[test]
    fn only_auto_is_left_to_the_machine() {
        for auto in [Backend::Cpu, Backend::Cuda] {
            assert_eq!(resolved(BackendChoice::Auto, auto), auto);
            assert_eq!(resolved(BackendChoice::Cpu, auto), Backend::Cpu);
            assert_eq!(resolved(BackendChoice::Cuda, auto), Backend::Cuda);
        }
    }

    #[test]
    fn needs_are_those_of_the_largest_and_of_any_that_exchange() {
        let single = mock::trial("single", StrategyConfig::Single, 1).config;
        let dp = mock::trial("dp", mock::dp(DpLoss::Gathered, 4), 4).config;
        let ddp = mock::trial("ddp", mock::ddp(Launch::Processes), 2).config;
        let alone = mock::trial("ddp", mock::ddp(Launch::Processes), 1).config;
        let needs = |trials: &[&TrialConfig]| {
            Needs::of(trials.iter().copied()).map(|needs| (needs.devices, needs.nccl))
        };
        assert_eq!(needs(&[]), None);
        assert_eq!(needs(&[&single, &dp]), Some((4, false)));
        assert_eq!(
            needs(&[&single, &alone]),
            Some((1, true)),
            "a rank alone connects as others do"
        );
        assert_eq!(needs(&[&dp, &ddp, &single]), Some((4, true)));
        let over_nccl = mock::trial("dp", mock::dp_over_nccl(4), 4).config;
        assert_eq!(needs(&[&single, &over_nccl]), Some((4, true)));
    }

    #[test]
    fn a_choice_says_what_and_why() {
        let sentence = Choice::cpu("found no CUDA driver").sentence();
        assert_eq!(sentence, "Backend cpu: `auto` found no CUDA driver.");
    }
}
