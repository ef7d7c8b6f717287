//! Plans: their trials, what is merged and left out, their ids, and their order.
use std::collections::HashSet;

use proptest::prelude::*;
use syncmark::args::ScenarioArgs;
use syncmark::cmd::plan::describe;
use syncmark::plan::backend::Choice;
use syncmark::plan::build::{Request, build};
use syncmark::plan::config::{StrategyConfig, TrialConfig};
use syncmark::plan::{Plan, plans};
use syncmark::scenario::file::Optimizer;
use syncmark::scenario::preset::SCENARIOS;
use syncmark_engine::data::{Dataset, Digits, Split};
use syncmark_engine::model::spec::Momentum;

fn shipped(name: &str, overrides: &[&str], filters: &[&str]) -> Plan {
    let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let scenarios = vec![name.to_owned()];
    let args = ScenarioArgs {
        scenarios,
        backend: None,
        filters: owned(filters),
        overrides: owned(overrides),
    };
    plans(&args, false, &|_| Choice::cpu("is a test"))
        .expect("a shipped scenario is good")
        .remove(0)
}

fn plan(text: &str) -> Plan {
    build(&Request {
        name: "test.toml".to_owned(),
        text: text.to_owned(),
        ..Request::default()
    })
    .unwrap_or_else(|error| panic!("{}", error.render(false)))
}

#[test]
fn quickstart() {
    insta::assert_snapshot!(describe(&shipped("quickstart", &[], &[])));
}

#[test]
fn dp_vs_ddp() {
    insta::assert_snapshot!(describe(&shipped("dp-vs-ddp", &[], &[])));
}

#[test]
fn dp_vs_ddp_smoke() {
    insta::assert_snapshot!(describe(&shipped("dp-vs-ddp-smoke", &[], &[])));
}

/// A run of one variant alone is no mistake, but its reader must know why nothing is compared.
#[test]
fn a_baseline_that_is_filtered_or_set_away_is_noted_in_every_trial() {
    let wanted = "no trial has `variant` = ddp-processes, so nothing can be compared with it; values in this plan: dp";
    let filtered = shipped("quickstart", &[], &["variant=dp"]);
    assert!(
        filtered
            .trials
            .iter()
            .all(|trial| trial.notes.iter().any(|note| note.contains(wanted))),
        "{:?}",
        filtered.trials[0].notes
    );
    let kept = shipped("quickstart", &[], &["variant=dp", "variant=ddp-processes"]);
    assert!(!describe(&kept).contains("so nothing"));
    let set = shipped(
        "bucket-size",
        &["sweep.\"parallel.bucket_cap\"=[\"1MiB\", \"2MiB\"]"],
        &[],
    );
    assert!(describe(&set).contains("so nothing can be compared with it; values in this plan:"));
}

const DIGITS: &str = "name = \"t\"\nquestion = \"?\"\nkind = \"train\"\n[model]\npreset = \"convnet\"\n[data]\nsource = \"digits\"\nbatch_size = 8\n";

#[test]
fn keys_that_a_strategy_does_not_use_are_dropped_and_equal_trials_merged() {
    let plan = plan(&format!(
        "{DIGITS}[sweep]\n\"parallel.strategy\" = [\"single\", \"dp\", \"ddp\"]\n\"parallel.launch\" = [\"threads\", \"processes\"]\n\"parallel.dp_loss\" = [\"gathered\", \"replica\"]\n"
    ));
    let strategies: Vec<StrategyConfig> = plan
        .trials
        .iter()
        .map(|trial| trial.config.strategy.clone())
        .collect();
    assert_eq!(
        strategies.len(),
        5,
        "one single, dp with two losses, ddp with two launches"
    );
    assert_eq!(plan.merged.len(), 12 - 5);
    assert!(
        strategies
            .iter()
            .any(|strategy| strategy.ddp().is_some() && strategy.launch() == Some("threads"))
    );
    insta::assert_snapshot!(describe(&plan));
}

#[test]
fn what_means_nothing_is_left_out_and_named() {
    let plan = plan(&format!(
        "{DIGITS}[parallel]\nscaling = \"strong\"\n[sweep]\n\"model.norm\" = [\"batch\", \"sync-batch\"]\n\"parallel.strategy\" = [\"single\", \"independent\", \"dp\", \"ddp\"]\n\"parallel.devices\" = [1, 3]\n"
    ));
    insta::assert_snapshot!(describe(&plan));
}

#[test]
fn dp_scatters_uneven_chunks_as_torch_does() {
    let chunks = |batch: usize, devices: usize| {
        let text = format!(
            "{DIGITS}[parallel]\nstrategy = \"dp\"\nscaling = \"strong\"\n[sweep]\n\"data.batch_size\" = [{batch}]\n\"parallel.devices\" = [{devices}]\n"
        );
        let trial = plan(&text).trials.remove(0);
        (trial.config.batch.chunks, trial.notes)
    };
    assert_eq!(chunks(10, 4).0, [3, 3, 3, 1]);
    let (nine, notes) = chunks(9, 4);
    assert_eq!(nine, [3, 3, 3]);
    assert_eq!(notes, ["1 of 4 devices get no samples"]);
    assert_eq!(chunks(8, 4), (vec![2; 4], Vec::new()));
}

#[test]
fn weak_scaling_gives_each_device_the_whole_batch() {
    let plan = shipped("quickstart", &[], &["parallel.devices=2"]);
    for trial in plan.trials {
        assert_eq!(
            (trial.config.batch.global, trial.config.batch.chunks),
            (64, vec![32, 32])
        );
    }
}

#[test]
fn a_step_has_the_samples_of_all_its_micro_batches() {
    let plan = plan(&format!(
        "{DIGITS}[train]\naccumulation = 3\n[parallel]\nstrategy = \"ddp\"\ndevices = 2\n"
    ));
    let config = &plan.trials[0].config;
    assert_eq!((config.accumulation, config.batch.global), (3, 16));
    assert_eq!((config.step_samples(), config.device_samples()), (48, 24));
}

#[test]
fn no_sync_is_a_setting_of_several_micro_batches_alone() {
    let plan = plan(&format!(
        "{DIGITS}[parallel]\nstrategy = \"ddp\"\ndevices = 2\n[sweep]\n\"train.accumulation\" = [1, 2]\n\"parallel.no_sync\" = [true, false]\n"
    ));
    let settings: Vec<_> = plan
        .trials
        .iter()
        .map(|trial| {
            (
                trial.config.accumulation,
                trial.settings.get("parallel.no_sync"),
            )
        })
        .map(|(count, setting)| (count, setting.map(String::as_str)))
        .collect();
    assert_eq!(settings, [(1, None), (2, Some("true")), (2, Some("false"))]);
    assert_eq!(plan.merged.len(), 1);
}

#[test]
fn ranks_that_keep_their_own_statistics_say_so() {
    let notes = |norm: &str| {
        let text = DIGITS.replace(
            "preset = \"convnet\"",
            &format!("preset = \"convnet\"\nnorm = \"{norm}\""),
        );
        let mut plan = plan(&format!(
            "{text}[parallel]\nstrategy = \"ddp\"\ndevices = 2\nbroadcast_buffers = false\n"
        ));
        plan.trials.remove(0).notes
    };
    assert_eq!(notes("batch").len(), 1);
    assert!(notes("batch")[0].contains("running statistics of its own"));
    assert!(notes("sync-batch").is_empty() && notes("group").is_empty());
}

#[test]
fn norms_that_the_model_does_not_have_make_no_trials() {
    let text = DIGITS.replace(
        "preset = \"convnet\"",
        "layers = [\"flatten\", { linear = { features = \"classes\" } }]",
    );
    let plan = plan(&format!(
        "{text}[sweep]\n\"model.norm\" = [\"batch\", \"group\", \"none\"]\n"
    ));
    assert_eq!((plan.trials.len(), plan.merged.len()), (1, 2));
    assert_eq!(plan.trials[0].parameters, 64 * 10 + 10);
}

#[test]
fn set_wins_over_sweep_and_variants() {
    let plan = shipped(
        "quickstart",
        &["parallel.devices=2", "parallel.strategy=dp"],
        &[],
    );
    assert_eq!(plan.trials.len(), 1);
    assert_eq!(plan.trials[0].config.devices, 2);
    assert_eq!(plan.trials[0].config.strategy.name(), "dp");
}

#[test]
fn set_reaches_into_a_swept_table() {
    let text = format!(
        "{DIGITS}[sweep]\n\"train.optimizer\" = [{{ sgd = {{ momentum = 0.5 }} }}, {{ sgd = {{}} }}]\n"
    );

    let overrides = vec![(
        "--set".to_owned(),
        "train.optimizer.sgd.learning_rate=0.25".to_owned(),
    )];
    let request = Request {
        name: "test.toml".to_owned(),
        text,
        overrides,
        ..Request::default()
    };
    let plan = build(&request).unwrap_or_else(|error| panic!("{}", error.render(false)));
    let rates: Vec<(f64, f64)> = plan
        .trials
        .iter()
        .map(|trial| {
            let Optimizer::Sgd(sgd) = &trial.config.optimizer else {
                panic!("another optimizer: {:?}", trial.config.optimizer)
            };
            (sgd.learning_rate, sgd.momentum)
        })
        .collect();
    assert_eq!(rates, [(0.25, 0.5), (0.25, 0.9)]);
    let again = build(&Request {
        text: plan.toml,
        overrides: Vec::new(),
        ..request
    });
    assert_eq!(again.expect("it reads back").trials, plan.trials);
}

#[test]
fn the_limit_of_a_batch_is_what_the_digits_have() {
    let images = include_bytes!("../../../scenarios/data/digits.images.idx3-ubyte");
    let labels = include_bytes!("../../../scenarios/data/digits.labels.idx1-ubyte");
    let digits = Digits::parse(images, labels, Split::Train).expect("the shipped digits are whole");
    assert_eq!(digits.len(), syncmark::scenario::check::DIGITS);
}

#[test]
fn set_can_replace_a_sweep() {
    let plan = shipped(
        "dp-vs-ddp",
        &["sweep.\"parallel.devices\"=[2, 4]"],
        &["model.preset=mlp"],
    );
    let devices: HashSet<usize> = plan
        .trials
        .iter()
        .map(|trial| trial.config.devices)
        .collect();
    assert_eq!(devices, HashSet::from([2, 4]));
}

#[test]
fn filters_of_one_key_widen_and_of_several_narrow() {
    let filters = [
        "parallel.strategy=dp",
        "parallel.strategy=single",
        "parallel.devices=1",
    ];
    let plan = shipped("quickstart", &[], &filters);
    let labels: Vec<&str> = plan
        .trials
        .iter()
        .map(|trial| trial.label.as_str())
        .collect();
    assert_eq!(labels, ["single", "dp ×1"]);
}

#[test]
fn labels_of_shipped_scenarios_tell_trials_apart() {
    for (name, _) in SCENARIOS {
        let plan = shipped(name, &[], &[]);
        let labels: HashSet<&str> = plan
            .trials
            .iter()
            .map(|trial| trial.label.as_str())
            .collect();
        assert_eq!(labels.len(), plan.trials.len(), "{name}: {labels:?}");
    }
}

#[test]
fn the_scenario_as_run_gives_the_same_plan() {
    let plan = shipped(
        "dp-vs-ddp",
        &[
            "parallel.devices=2",
            "measure.repeats=7",
            "measure.min_time=6s",
        ],
        &[],
    );
    let again = build(&Request {
        name: "again.toml".to_owned(),
        text: plan.toml.clone(),
        ..Request::default()
    })
    .unwrap_or_else(|error| panic!("{}", error.render(false)));
    // The scenario is written anew with its keys sorted, so the sweep may multiply out in another order.
    let sorted = |plan: &Plan| {
        let mut trials = plan.trials.clone();
        trials.sort_by(|a, b| a.id.cmp(&b.id));
        trials
    };
    assert_eq!(sorted(&again), sorted(&plan));
    assert_eq!(again.scenario, plan.scenario);
    assert!(
        plan.toml
            .starts_with("# dp-vs-ddp.toml (shipped), as run with --set parallel.devices=2")
    );
}

#[test]
fn a_scenario_without_overrides_is_kept_as_written() {
    assert_eq!(plan(DIGITS).toml, DIGITS);
}

#[test]
fn a_configuration_survives_its_journey_to_the_child() {
    for trial in shipped("dp-vs-ddp", &[], &[]).trials {
        let json = serde_json::to_string(&trial.config).expect("it is JSON");
        assert_eq!(
            serde_json::from_str::<TrialConfig>(&json).expect("it reads back"),
            trial.config
        );
    }
}

#[test]
fn there_is_nothing_to_switch_off_without_synchronization() {
    for trial in shipped("quickstart", &[], &[]).trials {
        let synchronizes = matches!(
            trial.config.strategy,
            StrategyConfig::Dp { .. } | StrategyConfig::Ddp { .. }
        );
        assert_eq!(
            trial.config.measure.unsynchronized,
            synchronizes && trial.config.devices == 2,
            "{}",
            trial.label
        );
    }
}

#[test]
fn the_id_of_a_known_trial_does_not_change() {
    // Runs of different days are compared by id: a change here breaks every such comparison and belongs in the changelog.
    insta::assert_snapshot!(plan(DIGITS).trials[0].id);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ids_are_unique_and_complete(
        strategies in proptest::sample::subsequence(vec!["single", "independent", "dp", "ddp"], 1..=4),
        norms in proptest::sample::subsequence(vec!["none", "batch", "sync-batch", "layer", "group"], 1..=5),
        devices in proptest::collection::vec(1_usize..5, 1..4),
        batches in proptest::collection::vec(4_usize..40, 1..3),
        strong: bool,
    ) {
        let combinations = strategies.len() * norms.len() * devices.len() * batches.len();
        let scaling = if strong { "strong" } else { "weak" };
        let text = format!(
            "{DIGITS}[parallel]\nscaling = \"{scaling}\"\n[sweep]\n\"parallel.strategy\" = {strategies:?}\n\"model.norm\" = {norms:?}\n\"parallel.devices\" = {devices:?}\n\"data.batch_size\" = {batches:?}\n"
        );
        let request = Request { name: "test.toml".to_owned(), text, ..Request::default() };
        // Only a plan without any trial is refused: single on several devices alone.
        let Ok(plan) = build(&request) else {
            prop_assert!(!strategies.contains(&"ddp") || strong);
            return Ok(());
        };
        let ids: HashSet<&str> = plan.trials.iter().map(|trial| trial.id.as_str()).collect();
        let labels: HashSet<&str> = plan.trials.iter().map(|trial| trial.label.as_str()).collect();
        prop_assert_eq!(ids.len(), plan.trials.len());
        prop_assert_eq!(labels.len(), plan.trials.len());
        prop_assert_eq!(plan.trials.len() + plan.merged.len() + plan.left_out.len(), combinations);
        for trial in &plan.trials {
            let batch = &trial.config.batch;
            prop_assert_eq!(batch.chunks.iter().sum::<usize>(), batch.global);
            prop_assert!(batch.chunks.len() <= trial.config.devices && !batch.chunks.contains(&0));
        }
        for merged in &plan.merged {
            prop_assert!(ids.contains(merged.into.as_str()));
        }
    }

    #[test]
    fn the_order_of_keys_does_not_change_an_id(
        order in Just((0..5_usize).collect::<Vec<_>>()).prop_shuffle(),
        parallel in Just(vec!["strategy = \"ddp\"", "devices = 2", "launch = \"threads\""]).prop_shuffle(),
        data in Just(vec!["source = \"digits\"", "batch_size = 8", "seed = 4"]).prop_shuffle(),
        sgd in Just(vec!["learning_rate = 0.3", "momentum = 0.5", "weight_decay = 0.0"]).prop_shuffle(),
    ) {
        let sections = [
            "[model]\npreset = \"convnet\"\n".to_owned(),
            format!("[data]\n{}\n", data.join("\n")),
            format!("[train]\noptimizer = {{ sgd = {{ {} }} }}\n", sgd.join(", ")),
            format!("[parallel]\n{}\n", parallel.join("\n")),
            "[measure]\nsteps = 40\n".to_owned(),
        ];
        let head = "kind = \"train\"\nquestion = \"?\"\nname = \"t\"\n";
        let text = |order: &[usize]| order.iter().fold(head.to_owned(), |text, index| text + &sections[*index]);
        let id = |text: &str| plan(text).trials[0].id.clone();
        prop_assert_eq!(id(&text(&order)), id(&text(&[0, 1, 2, 3, 4])));
    }
}

const LEARNING: &str = "name = \"test\"\nquestion = \"?\"\nkind = \"learning\"\n[data]\nsource = \"digits\"\nbatch_size = 32\n";

/// The linear rule: a rate that is meant for 64 samples a step is halved for 32, and kept for two micro-batches of them.
#[test]
fn a_learning_rate_is_made_to_fit_the_samples_of_a_step() {
    let rate = |train: &str| {
        let text = format!("{LEARNING}[model]\npreset = \"convnet\"\n[train]\nsteps = 5\n{train}");
        let plan = plan(&text);
        let trial = &plan.trials[0];
        let key = trial
            .settings
            .keys()
            .find(|key| key.ends_with("learning_rate"));
        let shown = trial.settings[key.expect("a rate")].clone();
        assert!(!trial.settings.contains_key("train.learning_rate_batch"));
        match &trial.config.optimizer {
            Optimizer::Sgd(sgd) => (sgd.learning_rate, shown),
            Optimizer::Adamw(adamw) => (adamw.learning_rate, shown),
        }
    };
    assert_eq!(rate(""), (0.1, "0.1".to_owned()));
    assert_eq!(rate("learning_rate_batch = 64"), (0.05, "0.05".to_owned()));
    assert_eq!(rate("learning_rate_batch = 64\naccumulation = 2").0, 0.1);
    let adamw = "learning_rate_batch = 16\noptimizer = { adamw = { learning_rate = 0.25 } }";
    assert_eq!(rate(adamw), (0.5, "0.5".to_owned()));
}

/// A momentum that is meant for 32 samples remembers as many of them where 8 are taken together.
#[test]
fn momentum_of_running_statistics_is_made_to_fit_the_normalization_batch() {
    let momentum = |model: &str, train: &str| {
        let text = format!(
            "{LEARNING}[model]\npreset = \"convnet\"\n{model}\n[train]\nsteps = 5\n{train}"
        );
        let trial = plan(&text).trials.remove(0);
        let weight = match trial.config.norm_options().batch.momentum {
            Momentum::Exponential(weight) => Some(f64::from(weight)),
            Momentum::Cumulative => None,
        };
        (weight, trial.settings.get("model.norm_momentum").cloned())
    };
    let near = |found: Option<f64>, expected: f64| {
        assert!(
            found.is_some_and(|found| (found - expected).abs() < 1e-6),
            "{found:?}, not {expected}"
        );
    };
    let batch = "norm = \"batch\"\nnorm_momentum_batch = 32";
    let (whole, shown) = momentum(batch, "");
    near(whole, 0.1);
    assert_eq!(shown, None, "the usual one is not said");
    let (own, shown) = momentum(batch, "normalization_batch = 8");
    near(own, 1.0 - 0.9f64.powf(0.25));
    assert!(shown.is_some());
    near(
        momentum(
            "norm = \"batch\"\nnorm_momentum = 0.5",
            "normalization_batch = 8",
        )
        .0,
        0.5,
    );
    let cumulative = momentum("norm = \"batch\"\nnorm_momentum = \"cumulative\"", "");
    assert_eq!(cumulative, (None, Some("cumulative".to_owned())));
    let (group, shown) = momentum("norm = \"group\"\nnorm_momentum = 0.5", "");
    near(group, 0.1);
    assert_eq!(shown, None, "group norm has none");
}
