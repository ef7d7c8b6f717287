//! From one effective scenario to a trial, or to the reason why it means nothing.
//!
//! Contract: keys that the combination does not use do not reach the configuration, so equal work is an equal
//! configuration. What means nothing is named, never silently dropped. Reference: "What is compared" in
//! METHODOLOGY.md.
use syncmark_engine::data::tokens::{FIRST_WORD, PADDING};
use syncmark_engine::model::spec::ModelSpec;

use crate::plan::backend::{resolved, transport, unsuited};
use crate::plan::config::{
    Backend, Batch, DataConfig, DdpConfig, DpConfig, LearningConfig, Length, MaskingConfig,
    MeasureConfig, PROTOCOL_VERSION, SourceConfig, StrategyConfig, TrialConfig, Work, Zero1Config,
};
use crate::plan::meaningless::{Refused, meaningless};
use crate::plan::{batch_norm, collectives, model};
use crate::scenario::check::{Checker, check};
use crate::scenario::file::{
    BUCKET_CAP, DpTransport, FIRST_BUCKET_CAP, HIDDEN, Kind, Optimizer, Parallel, Predict, Scaling,
    Scenario, Source, Strategy, TimeSpan,
};
use crate::scenario::problem::Problem;
use crate::scenario::tree::Node;

/// Longest life of a child that learns, where the scenario has no timeout.
const LEARNING_TIMEOUT: TimeSpan = TimeSpan::seconds(24 * 3600);

/// What a trial without buffer broadcasts must say.
const OWN_STATISTICS: &str = "without buffer broadcasts each rank keeps running statistics of its own; rank 0's alone are gated";

/// What became of a combination.
pub enum Combination {
    /// A trial: its configuration, the model's parameters and what a reader must know.
    Trial {
        /// What the child receives.
        config: Box<TrialConfig>,
        /// Scalar parameters of the model.
        parameters: u64,
        /// What a reader must know.
        notes: Vec<String>,
    },
    /// It means nothing.
    LeftOut(Refused),
}

/// Resolves one effective scenario; `tree` is what it was read from, `auto` what computes where it leaves that open.
///
/// # Errors
/// When the scenario is wrong, as opposed to meaningless.
pub fn combine(scenario: &Scenario, tree: &Node, auto: Backend) -> Result<Combination, Problem> {
    check(scenario, tree)?;
    let checker = Checker(tree);
    if scenario.kind == Kind::Collectives {
        return Ok(collectives::combine(scenario, auto));
    }
    let spec = model::spec(scenario, &checker)?;
    let batch = batch(scenario);
    let normalized = normalized(scenario, &batch);
    let norm = model::norm(scenario, &spec, &normalized);
    let work = match scenario.kind {
        Kind::LayerCost => Work::LayerCost,
        // Nodes are timed on one device; what ranks exchange for a norm shows in whole steps.
        Kind::NormCost if scenario.parallel.strategy == Strategy::Single => Work::LayerCost,
        Kind::NormCost => Work::Train,
        _ if scenario.learns() => Work::Learning(learning(scenario, &spec)),
        Kind::Train | Kind::Collectives | Kind::Learning | Kind::Acceptance => Work::Train,
    };
    let synchronizes = model::synchronizes(&spec, norm.norm);
    let wrong = unsuited(scenario, auto)
        .or_else(|| meaningless(scenario, synchronizes))
        .or_else(|| batch_norm::unfit(scenario, &spec, &norm));
    if let Some(refused) = wrong {
        return Ok(Combination::LeftOut(refused));
    }
    let data = data(scenario, &spec, &checker)?;
    let parameters = model::parameters(&spec, norm, &normalized, &checker)?;
    let backend = resolved(scenario.parallel.backend, auto);
    let strategy = strategy(scenario, backend);
    let mut notes = notes(scenario, &batch);
    if strategy.broadcast_buffers() == Some(false) && model::keeps_own_statistics(&spec, norm.norm)
    {
        notes.push(OWN_STATISTICS.to_owned());
    }
    let config = TrialConfig {
        protocol: PROTOCOL_VERSION,
        work,
        model: spec,
        norm: norm.norm,
        norm_groups: norm.groups,
        norm_padding: norm.padding,
        norm_momentum: norm.momentum,
        data,
        optimizer: optimizer(scenario, &batch),
        schedule: scenario.train.schedule.clone(),
        accumulation: scenario.train.accumulation,
        precision: scenario.train.precision,
        cuda_graph: scenario.train.cuda_graph,
        cuda_batch_norm: scenario.train.cuda_batch_norm,
        cuda_matmul: scenario.train.cuda_matmul,
        train_seed: scenario.train.seed,
        strategy,
        backend,
        devices: scenario.parallel.devices,
        threads: scenario.parallel.threads,
        scaling: scenario.parallel.scaling,
        batch,
        measure: match scenario.learns() {
            true => learning_measure(scenario, tree),
            false => measure(scenario),
        },
    };
    Ok(Combination::Trial {
        config: Box::new(config),
        parameters,
        notes,
    })
}

/// The optimizer, its learning rate made to fit the samples of a step where the scenario says what it is meant for.
fn optimizer(scenario: &Scenario, batch: &Batch) -> Optimizer {
    let mut optimizer = scenario.train.optimizer.clone();
    if let Some(meant_for) = scenario.train.learning_rate_batch {
        let samples = scenario.train.accumulation * batch.global;
        let rate = match &mut optimizer {
            Optimizer::Sgd(sgd) => &mut sgd.learning_rate,
            Optimizer::Adamw(adamw) => &mut adamw.learning_rate,
        };
        *rate *= samples as f64 / meant_for as f64;
    }
    optimizer
}

/// The batch as batch norms see it: in ghost batches, where one device has them.
fn normalized(scenario: &Scenario, batch: &Batch) -> Batch {
    match scenario.train.normalization_batch {
        Some(own) => Batch {
            global: batch.global,
            chunks: vec![own; batch.global / own],
        },
        None => batch.clone(),
    }
}

/// Nothing of a trial that learns is timed but its whole; without a word about it, it may take a day.
fn learning_measure(scenario: &Scenario, tree: &Node) -> MeasureConfig {
    let said = tree
        .entry("measure")
        .and_then(|measure| measure.node.entry("timeout"));
    let timeout_ns = match said {
        Some(_) => scenario.measure.timeout.as_ns(),
        None => LEARNING_TIMEOUT.as_ns(),
    };
    MeasureConfig {
        steps: 0,
        min_time_ns: 0,
        warmup_steps: 0,
        warmup_time_ns: 0,
        timeout_ns,
        trace_steps: 0,
        unsynchronized: false,
        nvtx: scenario.measure.nvtx,
        smoke: scenario.measure.smoke,
    }
}

/// How long it learns, by keys that were checked.
fn learning(scenario: &Scenario, spec: &ModelSpec) -> LearningConfig {
    let (train, evaluate) = (&scenario.train, &scenario.evaluate);
    let length = match (train.epochs, train.steps) {
        (Some(epochs), _) => Length::Epochs(epochs),
        (None, steps) => Length::Steps(steps.unwrap_or_default()),
    };
    // All of the batch is what a device does anyway: said or not, it is the same trial.
    let own = train
        .normalization_batch
        .filter(|own| *own != scenario.data.batch_size);
    LearningConfig {
        length,
        normalization_batch: own,
        every: evaluate.every,
        split: evaluate.split,
        validation: evaluate.validation,
        batch_statistics: evaluate.batch_statistics,
        precise_batches: evaluate.precise_batches,
        dropout_masks: if model::drops(spec) {
            evaluate.dropout_masks
        } else {
            0
        },
    }
}

fn strategy(scenario: &Scenario, backend: Backend) -> StrategyConfig {
    let parallel = &scenario.parallel;
    let launch = parallel.launch;
    let transport = transport(parallel.transport, backend);
    let (bucket_cap_bytes, first_bucket_cap_bytes) = bucket_caps(parallel);
    let broadcast_buffers = parallel.broadcast_buffers;
    match parallel.strategy {
        Strategy::Single => StrategyConfig::Single,
        Strategy::Independent => StrategyConfig::Independent { launch },
        Strategy::Dp => {
            let device_ids = match &parallel.device_ids {
                Some(order) => order.clone(),
                None => (0..parallel.devices).collect(),
            };
            StrategyConfig::Dp(DpConfig {
                loss: parallel.dp_loss,
                // One device replicates and reduces nothing.
                transport: match parallel.devices {
                    1 => DpTransport::PeerCopy,
                    _ => parallel.dp_transport,
                },
                output_device: parallel.output_device.unwrap_or(device_ids[0]),
                device_ids,
                dim: parallel.dim,
            })
        }
        Strategy::Ddp => StrategyConfig::Ddp(DdpConfig {
            launch,
            transport,
            bucket_cap_bytes,
            first_bucket_cap_bytes,
            overlap: parallel.overlap,
            no_sync: parallel.no_sync || scenario.train.accumulation == 1,
            compression: parallel.compression,
            broadcast_buffers,
        }),
        Strategy::Zero1 => StrategyConfig::Zero1(Zero1Config {
            launch,
            transport,
            bucket_cap_bytes,
            first_bucket_cap_bytes,
            broadcast_buffers,
        }),
    }
}

/// As PyTorch: the first bucket is smaller only as long as nobody chose a cap.
fn bucket_caps(parallel: &Parallel) -> (u64, u64) {
    let cap = parallel.bucket_cap;
    let usual = if cap == BUCKET_CAP {
        FIRST_BUCKET_CAP
    } else {
        cap
    };
    (cap.0, parallel.first_bucket_cap.unwrap_or(usual).0)
}

/// The samples of a micro-batch. DP scatters chunks of ceil(B/N), as torch.chunk does, so the last can be smaller and
/// some devices can get none; the others share evenly.
fn batch(scenario: &Scenario) -> Batch {
    let (devices, batch) = (scenario.parallel.devices, scenario.data.batch_size);
    let global = match scenario.parallel.scaling {
        Scaling::Weak => batch * devices,
        Scaling::Strong => batch,
    };
    let chunk = global.div_ceil(devices);
    let chunks = (0..global)
        .step_by(chunk)
        .map(|start| chunk.min(global - start))
        .collect();
    Batch { global, chunks }
}

/// Where samples come from, which the model's input may say.
fn data(scenario: &Scenario, spec: &ModelSpec, checker: &Checker) -> Result<DataConfig, Problem> {
    let tokens = model::takes_tokens(spec);
    // A sweep over models may carry what only some of them use.
    let swept = checker.0.entry("sweep").is_some() || checker.0.entry("variant").is_some();
    if let Some((layer, token)) = model::other_padding(spec) {
        let message = format!(
            "layer {layer} takes token {token} for padding, but sequences are filled up with token {PADDING}"
        );
        let help = format!("write padding = {PADDING}, or leave it out where there is none");
        return Err(checker.problem("model", message, help));
    }
    let source = match scenario.data.source {
        Source::Synthetic if tokens => synthetic_tokens(scenario, spec, checker)?,
        Source::Text if tokens => {
            length(spec, checker)?;
            if scenario.data.shortest.is_some() && !swept {
                let message =
                    "words are as long as they are, and `data.shortest` is about synthetic tokens";
                let help = "leave it out, or write source = \"synthetic\"";
                return Err(checker.problem("data.shortest", message, help));
            }
            SourceConfig::Text {
                path: scenario.data.path.clone(),
                masking: masking(scenario, checker)?,
            }
        }
        Source::Text => {
            let message = "text is for a model with an embedding";
            let help = "write preset = \"char-encoder\", or another source";
            return Err(checker.problem("data.source", message, help));
        }
        _ if tokens => {
            let message = "the model has an embedding, and this data set has images";
            let help = "write source = \"text\" or \"synthetic\", or another model";
            return Err(checker.problem("data.source", message, help));
        }
        Source::Digits => SourceConfig::Digits,
        Source::FashionMnist => SourceConfig::FashionMnist {
            path: scenario.data.path.clone(),
        },
        Source::Cifar10 => SourceConfig::Cifar10 {
            path: scenario.data.path.clone(),
        },
        Source::Synthetic => SourceConfig::Synthetic,
    };
    let given = [
        ("data.shortest", scenario.data.shortest.is_some()),
        ("data.hidden", scenario.data.hidden.is_some()),
        ("data.predict", scenario.data.predict.is_some()),
        ("model.norm_padding", scenario.model.norm_padding.is_some()),
    ];
    let useless = given.iter().find(|(_, given)| *given && !tokens && !swept);
    if let Some((key, _)) = useless {
        let message = format!("`{key}` is about tokens, and the model has none");
        let help =
            "leave it out, or write a model with an embedding, such as preset = \"char-encoder\"";
        return Err(checker.problem(key, message, help));
    }
    Ok(DataConfig {
        source,
        seed: scenario.data.seed,
    })
}

/// Positions of a sequence.
fn length(spec: &ModelSpec, checker: &Checker) -> Result<usize, Problem> {
    match spec.input[..] {
        [length] => Ok(length),
        _ => {
            let message = format!("a sample of tokens is [length], not {:?}", spec.input);
            let help = "write one number, such as shape = [128]";
            Err(checker.problem("data.shape", message, help))
        }
    }
}

/// How tokens are hidden.
fn masking(scenario: &Scenario, checker: &Checker) -> Result<MaskingConfig, Problem> {
    let share = scenario.data.hidden.unwrap_or(HIDDEN);
    if !(0.0..=1.0).contains(&share) {
        let message = format!("`data.hidden` is {share}");
        return Err(checker.problem("data.hidden", message, "write a share from 0 to 1"));
    }
    let predict = scenario.data.predict.unwrap_or(Predict::Hidden);
    Ok(MaskingConfig { share, predict })
}

fn synthetic_tokens(
    scenario: &Scenario,
    spec: &ModelSpec,
    checker: &Checker,
) -> Result<SourceConfig, Problem> {
    let length = length(spec, checker)?;
    if spec.classes <= FIRST_WORD {
        let message = format!("a vocabulary of {}", spec.classes);
        let help = "write at least 3: padding, mask and a word";
        return Err(checker.problem("data.classes", message, help));
    }
    let shortest = scenario.data.shortest.unwrap_or(length);
    if shortest == 0 || shortest > length {
        let message = format!("the shortest of sequences of {length} has {shortest} words");
        let help =
            format!("write 1 to {length}: a sequence of padding alone has nothing to learn from");
        return Err(checker.problem("data.shortest", message, help));
    }
    let masking = masking(scenario, checker)?;
    Ok(SourceConfig::SyntheticTokens { shortest, masking })
}

pub(super) fn measure(scenario: &Scenario) -> MeasureConfig {
    let measure = &scenario.measure;
    let synchronizes = matches!(
        scenario.parallel.strategy,
        Strategy::Dp | Strategy::Ddp | Strategy::Zero1
    );
    MeasureConfig {
        steps: measure.steps,
        min_time_ns: measure.min_time.as_ns(),
        warmup_steps: measure.warmup_steps,
        warmup_time_ns: measure.warmup_time.as_ns(),
        timeout_ns: measure.timeout.as_ns(),
        trace_steps: measure.trace_steps,
        unsynchronized: measure.unsynchronized && synchronizes && scenario.parallel.devices > 1,
        nvtx: measure.nvtx,
        smoke: measure.smoke,
    }
}

pub(super) fn notes(scenario: &Scenario, batch: &Batch) -> Vec<String> {
    let mut notes = Vec::new();
    let (devices, chunks) = (scenario.parallel.devices, &batch.chunks);
    if chunks.len() < devices {
        notes.push(format!(
            "{} of {devices} devices get no samples",
            devices - chunks.len()
        ));
    }
    if chunks.first() != chunks.last() {
        notes.push(format!("uneven chunks: {chunks:?}"));
    }
    if scenario.measure.smoke {
        notes.push("smoke size: too short to cite".to_owned());
    }
    notes
}
