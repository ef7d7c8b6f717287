//! Made-up configurations, an executor that starts nothing and a clock that only jobs move: for tests of the conductor.
use std::cell::Cell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use safetensors::tensor::{Dtype, TensorView};
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_record::rows::{GateRow, RepeatRow, TrialRow};
use syncmark_record::{FolderError, Outcome};

use super::job::{Clock, Executor, Job, JobResult, StopError};
use super::ledger::{Ledger, Verdict};
use super::progress::Progress;
use super::protocol::Purpose;
use super::recorder::RepeatFacts;
use super::spool::Event;
use super::standing::{Standing, Unrun};
use crate::plan::config::{
    Backend, Batch, CollectivesConfig, DataConfig, DdpConfig, DpConfig, MeasureConfig,
    PROTOCOL_VERSION, SourceConfig, StrategyConfig, TrialConfig, Work,
};
use crate::plan::{Plan, Trial};
use crate::scenario::file::{
    BUCKET_CAP, Compression, CudaBatchNorm, CudaMatmul, DpLoss, DpTransport, FIRST_BUCKET_CAP,
    Launch, Operation, Optimizer, Precision, Scaling, Scenario, Schedule, Transport,
};

/// A configuration with 32 samples on each device.
pub(crate) fn config(strategy: StrategyConfig, devices: usize) -> TrialConfig {
    TrialConfig {
        protocol: PROTOCOL_VERSION,
        work: Work::Train,
        model: ModelSpec {
            name: "test".into(),
            input: vec![4],
            classes: 2,
            layers: vec![LayerSpec::Relu],
        },
        norm: Norm::None,
        norm_groups: None,
        norm_padding: None,
        norm_momentum: None,
        data: DataConfig {
            source: SourceConfig::Synthetic,
            seed: 0,
        },
        optimizer: Optimizer::default(),
        schedule: Schedule::Constant,
        accumulation: 1,
        precision: Precision::Fp32,
        cuda_graph: false,
        cuda_batch_norm: CudaBatchNorm::Own,
        cuda_matmul: CudaMatmul::Cublas,
        train_seed: 0,
        strategy: strategy.clone(),
        backend: Backend::Cpu,
        devices,
        threads: 1,
        scaling: Scaling::Weak,
        batch: Batch {
            global: 32 * devices,
            chunks: vec![32; devices],
        },
        measure: MeasureConfig {
            steps: 10,
            min_time_ns: 0,
            warmup_steps: 1,
            warmup_time_ns: 0,
            timeout_ns: 5_000_000_000,
            trace_steps: 2,
            unsynchronized: strategy != StrategyConfig::Single,
            nvtx: false,
            smoke: true,
        },
    }
}

/// DP with the usual order of devices.
pub(crate) fn dp(loss: DpLoss, devices: usize) -> StrategyConfig {
    StrategyConfig::Dp(DpConfig {
        loss,
        transport: DpTransport::PeerCopy,
        device_ids: (0..devices).collect(),
        output_device: 0,
        dim: 0,
    })
}

/// DP that replicates and reduces by NCCL.
pub(crate) fn dp_over_nccl(devices: usize) -> StrategyConfig {
    let mut strategy = dp(DpLoss::Gathered, devices);
    if let StrategyConfig::Dp(dp) = &mut strategy {
        dp.transport = DpTransport::Nccl;
    }
    strategy
}

/// DDP with PyTorch's defaults.
pub(crate) fn ddp(launch: Launch) -> StrategyConfig {
    StrategyConfig::Ddp(DdpConfig {
        launch,
        transport: Transport::Shared,
        bucket_cap_bytes: BUCKET_CAP.0,
        first_bucket_cap_bytes: FIRST_BUCKET_CAP.0,
        overlap: true,
        no_sync: true,
        compression: Compression::None,
        broadcast_buffers: true,
    })
}

/// A trial of collectives between two ranks.
pub(crate) fn collectives(transport: Transport) -> Trial {
    let mut trial = trial("collectives", ddp(Launch::Processes), 2);
    if let StrategyConfig::Ddp(ddp) = &mut trial.config.strategy {
        ddp.transport = transport;
    }
    trial.config.work = Work::Collectives(CollectivesConfig {
        operations: vec![Operation::AllReduce],
        sizes_bytes: vec![1024],
        warmup: 1,
        iterations: 1,
        min_time_ns: 0,
    });
    trial.config.measure.unsynchronized = false;
    trial
}

/// A trial of a made-up configuration.
pub(crate) fn trial(label: &str, strategy: StrategyConfig, devices: usize) -> Trial {
    Trial {
        id: format!("id-{label}"),
        label: label.into(),
        variant: None,
        model: "test".into(),
        config: config(strategy, devices),
        settings: Default::default(),
        parameters: 1,
        notes: Vec::new(),
        automatic: false,
        shares_gpus: true,
    }
}

/// A plan of `single`, `dp` and `ddp` on two devices.
pub(crate) fn plan(repeats: usize) -> Plan {
    let toml = format!(
        "name = \"test\"\nquestion = \"?\"\nkind = \"train\"\n[data]\nsource = \"synthetic\"\nbatch_size = 32\n[measure]\nrepeats = {repeats}\nseed = 5\n"
    );
    Plan {
        scenario: toml::from_str::<Scenario>(&toml).unwrap(),
        toml,
        auto: None,
        trials: vec![
            trial("single", StrategyConfig::Single, 1),
            trial("dp", dp(DpLoss::Gathered, 2), 2),
            trial("ddp", ddp(Launch::Processes), 2),
        ],
        left_out: Vec::new(),
        merged: Vec::new(),
    }
}

/// The row of a repeat that passed with a steady window.
pub(crate) fn repeat_row() -> RepeatRow {
    RepeatRow {
        trial: "t".into(),
        repeat: 0,
        order: 0,
        outcome: Outcome::Passed,
        reason: None,
        started: "2026-01-02T03:04:05Z".into(),
        warmup_steps: 1,
        steps: 9,
        samples: 288,
        window_ns: Some(9_000_000),
        unsynchronized_steps: None,
        unsynchronized_window_ns: None,
        unsynchronized_order: None,
        traced_steps: None,
        traced_window_ns: None,
        first_third_ns: Some(1_000_000),
        last_third_ns: Some(1_000_000),
        loss: Some(0.5),
        parameters_equal: None,
        watched_ns: None,
        foreign_cpu_share: None,
        steal_share: None,
        cpu_pressure_share: None,
        involuntary_switches: None,
        gpu_samples: None,
        gpu_clock_spread: None,
        gpu_slowdown_share: None,
        gpu_slowdown: None,
        gpu_foreign_processes: None,
    }
}

/// The row of a trial without figures.
pub(crate) fn trial_row(label: &str, outcome: Outcome) -> TrialRow {
    let mut plan = plan(1);
    plan.trials[0].label = label.into();
    let standing = Standing::default();
    let row = super::trial_row::row(&plan, &plan.trials[0], &standing, 1, 2, &Unrun::Complete);
    TrialRow {
        outcome,
        reason: None,
        warnings: None,
        ..row
    }
}

/// What a scripted job does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Ends like this.
    End(Outcome, &'static str),
    /// Passes, while the user presses ctrl-C.
    PassAndInterrupt,
    /// Cannot even begin.
    Stop,
}

/// A clock that stands still unless a job runs.
#[derive(Clone, Default)]
pub(crate) struct FakeClock(Rc<Cell<Duration>>);

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        self.0.get()
    }
    fn utc(&self) -> String {
        format!("T+{}s", self.0.get().as_secs())
    }
}

/// Notes every job; passes all but those for which `script` says otherwise.
pub(crate) struct MockExecutor {
    /// `label#repeat` of measuring jobs, labels of gate jobs, in order.
    pub(crate) jobs: Vec<String>,
    /// Whether the paired arm came first, of measuring jobs.
    pub(crate) arms: Vec<(String, bool)>,
    /// Takes the first entry whose name fits a job.
    pub(crate) script: VecDeque<(&'static str, Act)>,
    /// Factor on the updates of gates of this label.
    pub(crate) wrong: Option<&'static str>,
    /// Factors on the updates of the next gates.
    pub(crate) factors: VecDeque<f32>,
    /// Strategy that this executor refuses.
    pub(crate) refused: Option<&'static str>,
    /// What the ranks of every job leave.
    pub(crate) events: Vec<Vec<Event>>,
    /// What NCCL writes where it is asked.
    pub(crate) nccl_log: Option<&'static str>,
    clock: FakeClock,
    interrupted: bool,
}

impl MockExecutor {
    pub(crate) fn new(clock: &FakeClock, script: &[(&'static str, Act)]) -> Self {
        Self {
            jobs: Vec::new(),
            arms: Vec::new(),
            script: script.iter().cloned().collect(),
            wrong: None,
            factors: VecDeque::new(),
            refused: None,
            events: Vec::new(),
            nccl_log: None,
            clock: clock.clone(),
            interrupted: false,
        }
    }

    fn act(&mut self, name: &str) -> Act {
        match self.script.iter().position(|(wanted, _)| *wanted == name) {
            Some(at) => self.script.remove(at).expect("it is there").1,
            None => Act::End(Outcome::Passed, ""),
        }
    }
}

impl Executor for MockExecutor {
    fn execute(&mut self, job: &Job) -> Result<JobResult, StopError> {
        let name = match &job.purpose {
            Purpose::Measure {
                unsynchronized_first,
            } => {
                self.arms.push((job.label.clone(), *unsynchronized_first));
                format!("{}#{}", job.label, job.repeat)
            }
            Purpose::Gate { outputs, .. } => {
                let wrong = self
                    .wrong
                    .is_some_and(|label| job.label.starts_with(&format!("{label}, gate")));
                let factor = match job.label.contains(", gate") {
                    _ if wrong => 0.5,
                    true => self.factors.pop_front().unwrap_or(1.0),
                    false => 1.0,
                };
                outputs.iter().for_each(|path| dump(path, factor));
                job.label.clone()
            }
            Purpose::Choices { log, .. } => {
                if let Some(text) = self.nccl_log {
                    std::fs::write(log, text).expect("a log");
                }
                job.label.clone()
            }
        };
        self.clock
            .0
            .set(self.clock.0.get() + Duration::from_secs(10));
        self.jobs.push(name.clone());
        let (outcome, reason) = match self.act(&name) {
            Act::End(outcome, reason) => (outcome, reason),
            Act::PassAndInterrupt => {
                self.interrupted = true;
                (Outcome::Passed, "")
            }
            Act::Stop => {
                let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
                return Err(StopError::System {
                    what: "make a spool",
                    source,
                });
            }
        };
        let reason = (outcome != Outcome::Passed).then(|| reason.to_owned());
        Ok(JobResult {
            outcome,
            reason,
            events: self.events.clone(),
            cores: Vec::new(),
            clocks: Vec::new(),
            spools: None,
        })
    }

    fn interrupted(&self) -> bool {
        self.interrupted
    }

    fn refuses(&self, trial: &TrialConfig) -> Option<String> {
        self.refused
            .filter(|name| *name == trial.strategy.name())
            .map(|name| format!("no {name} here"))
    }

    fn cores(&self, _: &TrialConfig) -> usize {
        2
    }
}

/// Writes a dump of one tensor whose update is `scale` times (1, 2).
fn dump(path: &Path, scale: f32) {
    let bytes = |values: [f32; 2]| {
        values
            .into_iter()
            .flat_map(f32::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let (before, after) = (bytes([1.0, 1.0]), bytes([1.0 + scale, 1.0 + 2.0 * scale]));
    let view = |data| TensorView::new(Dtype::F32, vec![2], data).unwrap();
    let tensors = [
        ("before.0.linear.weight", view(&before)),
        ("after.0.linear.weight", view(&after)),
    ];
    std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// Keeps outcomes instead of writing rows.
#[derive(Default)]
pub(crate) struct MockLedger {
    pub(crate) repeats: Vec<(String, u32, u32, Outcome, Option<bool>)>,
    pub(crate) gates: Vec<GateRow>,
    /// Of each repeat, whether it was known what NCCL takes.
    pub(crate) nccl: Vec<bool>,
    /// Fails at this repeat row.
    pub(crate) full_at: Option<usize>,
}

impl Ledger for MockLedger {
    fn repeat(
        &mut self,
        facts: &RepeatFacts<'_>,
        _: &[Vec<Event>],
    ) -> Result<Verdict, FolderError> {
        if self.full_at == Some(self.repeats.len()) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            let kept = Some(format!("{} repeats are kept", self.repeats.len()));
            return Err(FolderError::Io {
                action: "write",
                path: "steps.csv".into(),
                source,
                kept,
            });
        }
        self.nccl.push(facts.nccl.is_some());
        self.repeats.push((
            facts.trial.into(),
            facts.repeat,
            facts.order,
            facts.outcome,
            facts.unsynchronized_first,
        ));
        Ok(Verdict {
            outcome: facts.outcome,
            reason: facts.reason.clone(),
        })
    }

    fn gates(&mut self, rows: &[GateRow]) -> Result<(), FolderError> {
        self.gates = rows.to_vec();
        Ok(())
    }
}

/// Notes what the user would see.
#[derive(Default)]
pub(crate) struct MockProgress {
    pub(crate) jobs: usize,
    pub(crate) finished: usize,
    pub(crate) remaining: Vec<Duration>,
    pub(crate) problems: Vec<String>,
    pub(crate) ended: bool,
}

impl Progress for MockProgress {
    fn begin(&mut self, jobs: usize) {
        self.jobs = jobs;
    }
    fn start(&mut self, _: &str, remaining: Duration) {
        self.remaining.push(remaining);
    }
    fn finish(&mut self) {
        self.finished += 1;
    }
    fn problem(&mut self, what: &str, outcome: Outcome, reason: &str) {
        self.problems.push(format!("{what}: {outcome:?}: {reason}"));
    }
    fn end(&mut self) {
        self.ended = true;
    }
}
