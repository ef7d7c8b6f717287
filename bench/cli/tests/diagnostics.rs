//! One test for each way in which a scenario or an argument can be wrong: what, where, and what to write instead.
use proptest::strategy::Strategy;
use syncmark::error::Status;
use syncmark::plan::build::{Request, build};

const GOOD: &str = r#"name = "test"
question = "Does it run?"
kind = "train"
[model]
preset = "convnet"
[data]
source = "digits"
batch_size = 8
[parallel]
strategy = "ddp"
devices = 2
[measure]
smoke = true
min_time = "1s"
"#;

/// The message for a scenario that is good but for one replacement.
fn replaced(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "the replacement changes nothing");
    message(&GOOD.replace(old, new), &[], &[])
}

/// The message for a good scenario with more below it.
fn appended(more: &str) -> String {
    message(&format!("{GOOD}{more}"), &[], &[])
}

/// The message for a good scenario whose `[parallel]` says something else, with more below it.
fn parallel(options: &str, more: &str) -> String {
    let text = GOOD.replace("strategy = \"ddp\"\ndevices = 2\n", options);
    assert_ne!(text, GOOD);
    message(&format!("{text}{more}"), &[], &[])
}

/// The message for a scenario of collectives alone.
fn collectives(options: &str) -> String {
    let head = "name = \"test\"\nquestion = \"How fast?\"\nkind = \"collectives\"\n";
    let text =
        format!("{head}[collectives]\n{options}[parallel]\nstrategy = \"ddp\"\ndevices = 2\n");
    message(&text, &[], &[])
}

/// The message for the shipped scenario of norm costs.
fn norm_cost(overrides: &[&str]) -> String {
    message(
        include_str!("../../../scenarios/norm-cost.toml"),
        overrides,
        &[],
    )
}

fn collectives_with(section: &str, overrides: &[&str]) -> String {
    let head = "name = \"test\"\nquestion = \"How fast?\"\nkind = \"collectives\"\n";
    message(
        &format!("{head}[parallel]\ndevices = 2\n{section}"),
        overrides,
        &[],
    )
}

fn set(argument: &str) -> String {
    message(GOOD, &[argument], &[])
}

fn message(text: &str, overrides: &[&str], filters: &[&str]) -> String {
    let request = Request {
        name: "test.toml".to_owned(),
        text: text.to_owned(),
        overrides: overrides
            .iter()
            .map(|text| ("--set".to_owned(), (*text).to_owned()))
            .collect(),
        filters: filters.iter().map(|text| (*text).to_owned()).collect(),
        ..Request::default()
    };
    let error = build(&request).expect_err("the scenario is wrong");
    assert_eq!(error.status(), Status::Usage);
    error.render(false)
}

#[test]
fn the_scenario_that_the_others_break_is_good() {
    let request = Request {
        name: "test.toml".to_owned(),
        text: GOOD.to_owned(),
        ..Request::default()
    };
    assert_eq!(build(&request).expect("it is good").trials.len(), 1);
}

/// The message for a study that learns.
fn study(model: &str, data: &str, train: &str) -> String {
    let text = format!(
        "name = \"test\"\nquestion = \"Which norm learns?\"\nkind = \"learning\"\n[model]\n{model}\n[data]\n{data}\n[train]\n{train}\n[evaluate]\nsplit = \"test\"\n"
    );
    message(&text, &[], &[])
}

/// A snapshot of the message of each case, under the case's name.
macro_rules! cases {
    ($($name:ident: $message:expr;)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(stringify!($name), $message);
        }
    )*};
}

cases! {
    one_sample_normalized_together: study(
        "preset = \"mlp\"\nnorm = \"batch\"",
        "source = \"digits\"\nbatch_size = 32",
        "steps = 10\nnormalization_batch = 1",
    );
    shortest_words_of_text: study(
        "preset = \"char-encoder\"\nnorm = \"layer\"",
        "source = \"text\"\nbatch_size = 32\nshortest = 20",
        "steps = 10",
    );
    another_padding: study(
        "layers = [{ embedding = { vocabulary = \"classes\", features = 8, padding = 5 } }, { linear = { features = \"classes\" } }]\ninput = [16]\nclasses = 29",
        "source = \"text\"\nbatch_size = 32",
        "steps = 10",
    );
    no_toml: replaced("devices = 2", "devices = = 2");
    duplicate_key: replaced("devices = 2", "devices = 2\ndevices = 3");
    whole_number_too_large: replaced("devices = 2", "devices = 99999999999999999999");
    misspelt_key: replaced("strategy", "stratgy");
    misspelt_section: replaced("[parallel]", "[paralel]");
    unknown_key_without_a_likeness: replaced("devices = 2", "devices = 2\nzzz = 1");
    missing_key: replaced("batch_size = 8\n", "");
    missing_section: replaced("[data]\nsource = \"digits\"\nbatch_size = 8\n", "");
    wrong_type: replaced("devices = 2", "devices = \"two\"");
    negative_number: replaced("devices = 2", "devices = -1");
    fraction: replaced("batch_size = 8", "batch_size = 8.5");
    table_in_place_of_a_value: replaced("devices = 2", "devices = { n = 2 }");
    unknown_kind: replaced("\"train\"", "\"trian\"");
    no_kind: replaced("kind = \"train\"\n", "");
    unknown_strategy: replaced("\"ddp\"", "\"dpp\"");
    unknown_norm: replaced("preset = \"convnet\"", "preset = \"convnet\"\nnorm = \"bach\"");
    unknown_preset: replaced("\"convnet\"", "\"convnets\"");
    no_model: replaced("preset = \"convnet\"", "norm = \"batch\"");
    preset_and_layers: replaced("preset = \"convnet\"", "preset = \"convnet\"\nlayers = [\"relu\"]");
    input_of_a_preset: replaced("preset = \"convnet\"", "preset = \"convnet\"\ninput = [1, 8, 8]");
    unknown_layer: replaced("preset = \"convnet\"", "layers = [\"flatten\", { liner = { features = 10 } }]");
    unknown_key_of_a_layer: replaced("preset = \"convnet\"", "layers = [\"flatten\", { linear = { feature = 10 } }]");
    layer_without_its_settings: replaced("preset = \"convnet\"", "layers = [\"conv2d\"]");
    layer_whose_settings_have_defaults: replaced("preset = \"convnet\"", "layers = [\"flatten\", \"gelu\"]");
    layer_with_settings_it_does_not_take: replaced("preset = \"convnet\"", "layers = [{ relu = {} }]");
    shapes_that_do_not_chain: replaced(
        "preset = \"convnet\"",
        "layers = [\n  \"flatten\",\n  { linear = { features = 32 } },\n  { conv2d = { channels = 8, kernel = 3 } },\n]"
    );
    shapes_that_do_not_chain_within_a_residual: replaced(
        "preset = \"convnet\"",
        "layers = [\n  { residual = { body = [\n    { conv2d = { channels = 8, kernel = 3, padding = 1 } },\n    { conv2d = { channels = 8, kernel = 30 } },\n  ] } },\n]"
    );
    output_that_is_not_the_classes: replaced("preset = \"convnet\"", "layers = [\"flatten\", { linear = { features = 7 } }]");
    groups_that_do_not_divide: replaced("preset = \"convnet\"", "preset = \"convnet\"\nnorm = \"group\"\nnorm_groups = 3");
    momentum_of_a_cumulative_average: replaced("preset = \"convnet\"", "preset = \"convnet\"\nnorm = \"batch\"\nnorm_momentum = \"cumulative\"\nnorm_momentum_batch = 32");
    no_groups: replaced("preset = \"convnet\"", "preset = \"convnet\"\nnorm = \"group\"\nnorm_groups = 0");
    one_element_per_statistic: replaced(
        "preset = \"convnet\"\n[data]\nsource = \"digits\"\nbatch_size = 8",
        "preset = \"mlp\"\n[data]\nsource = \"digits\"\nbatch_size = 1"
    );
    one_element_over_all_ranks: replaced(
        "preset = \"convnet\"\n[data]\nsource = \"digits\"\nbatch_size = 8\n[parallel]\nstrategy = \"ddp\"\ndevices = 2",
        "preset = \"mlp\"\nnorm = \"sync-batch\"\n[data]\nsource = \"digits\"\nbatch_size = 1\n[parallel]\nstrategy = \"ddp\""
    );
    synthetic_samples_of_no_shape: replaced(
        "preset = \"convnet\"\n[data]\nsource = \"digits\"",
        "layers = [\"flatten\", { linear = { features = \"classes\" } }]\n[data]\nsource = \"synthetic\""
    );
    shape_with_a_zero: replaced("source = \"digits\"", "source = \"synthetic\"\nshape = [1, 0, 8]");
    no_devices: replaced("devices = 2", "devices = 0");
    too_many_devices: replaced("devices = 2", "devices = 100000");
    no_batch: replaced("batch_size = 8", "batch_size = 0");
    batch_smaller_than_devices: replaced("devices = 2", "devices = 9\nscaling = \"strong\"");
    batch_larger_than_the_data: replaced("batch_size = 8", "batch_size = 1000");
    micro_batches_larger_than_the_data: replaced("batch_size = 8", "batch_size = 100\n[train]\naccumulation = 8");
    no_micro_batch: replaced("batch_size = 8", "batch_size = 8\n[train]\naccumulation = 0");
    workers: replaced("batch_size = 8", "batch_size = 8\nworkers = 2");
    no_repeats: replaced("smoke = true", "smoke = true\nrepeats = 0");
    no_steps: replaced("smoke = true", "smoke = true\nsteps = 0");
    negative_learning_rate: appended("[train]\noptimizer = { sgd = { learning_rate = -0.1 } }\n");
    learning_rate_that_is_no_number: appended("[train]\noptimizer = { sgd = { learning_rate = nan } }\n");
    unknown_optimizer: appended("[train]\noptimizer = { adam = { learning_rate = 0.1 } }\n");
    bad_duration: replaced("\"1s\"", "\"1 parsec\"");
    negative_duration: replaced("\"1s\"", "\"-1s\"");
    duration_without_a_unit: replaced("\"1s\"", "1");
    window_too_short_to_cite: replaced("smoke = true\n", "");
    timeout_shorter_than_the_window: replaced("smoke = true", "smoke = true\ntimeout = \"2s\"");
    name_that_names_no_folder: replaced("\"test\"", "\"a/b\"");
    empty_sweep: appended("[sweep]\n");
    empty_list_in_a_sweep: appended("[sweep]\n\"parallel.devices\" = []\n");
    no_list_in_a_sweep: appended("[sweep]\n\"parallel.devices\" = 2\n");
    misspelt_key_in_a_sweep: appended("[sweep]\n\"parallel.device\" = [1, 2]\n");
    bad_value_in_a_sweep: appended("[sweep]\n\"parallel.devices\" = [1, 2, 0]\n");
    unknown_name_in_a_sweep: appended("[sweep]\n\"parallel.strategy\" = [\"dp\", \"dddp\"]\n");
    key_of_the_whole_run_in_a_sweep: appended("[sweep]\n\"measure.repeats\" = [1, 2]\n");
    sweep_too_large: appended(&format!(
        "[sweep]\n\"data.seed\" = {0:?}\n\"train.seed\" = {0:?}\n", (0..101).collect::<Vec<_>>()
    ));
    misspelt_key_in_a_variant: appended("[[variant]]\nname = \"a\"\nset = { \"parallel.lunch\" = \"threads\" }\n");
    bad_value_in_a_variant: appended("[[variant]]\nname = \"a\"\nset = { \"parallel.launch\" = \"thread\" }\n");
    two_variants_of_one_name: appended("[[variant]]\nname = \"a\"\nset = {}\n[[variant]]\nname = \"a\"\nset = {}\n");
    everything_left_out: replaced("\"ddp\"", "\"single\"");
    answer_about_an_unknown_key: appended("[answer]\nfactor = \"parallel.strateg\"\nbaseline = \"dp\"\nmetric = \"step_ms\"\n");
    answer_without_its_baseline: appended("[answer]\nfactor = \"parallel.strategy\"\nbaseline = \"dp\"\nmetric = \"step_ms\"\n");
    answer_about_an_unknown_metric: appended("[answer]\nfactor = \"parallel.strategy\"\nbaseline = \"ddp\"\nmetric = \"speed\"\n");
    sync_batch_norm_under_dp: message(
        &GOOD.replace("preset = \"convnet\"", "preset = \"convnet\"\nnorm = \"sync-batch\"").replace("\"ddp\"", "\"dp\""), &[], &[]
    );
    sync_batch_norm_of_independent_replicas: message(
        &GOOD.replace("preset = \"convnet\"", "preset = \"convnet\"\nnorm = \"sync-batch\"").replace("\"ddp\"", "\"independent\""), &[], &[]
    );
    uneven_ranks: parallel("strategy = \"ddp\"\ndevices = 3\nscaling = \"strong\"\n", "");
    uneven_replicas: parallel("strategy = \"independent\"\ndevices = 3\nscaling = \"strong\"\n", "");
    powersgd_with_micro_batches_that_are_not_synchronized: parallel(
        "strategy = \"ddp\"\ndevices = 2\nno_sync = true\ncompression = { powersgd = { rank = 1 } }\n", "[train]\naccumulation = 2\n"
    );
    powersgd_before_buckets_are_rebuilt: parallel(
        "strategy = \"ddp\"\ndevices = 2\ncompression = { powersgd = { rank = 1, start_step = 1 } }\n", ""
    );
    powersgd_of_rank_0: parallel("strategy = \"ddp\"\ndevices = 2\ncompression = { powersgd = { rank = 0 } }\n", "");
    compressed_zero1: parallel("strategy = \"zero1\"\ndevices = 2\ncompression = \"fp16\"\n", "");
    zero1_that_reduces_every_micro_batch: parallel("strategy = \"zero1\"\ndevices = 2\nno_sync = false\n", "[train]\naccumulation = 2\n");
    bucket_smaller_than_an_element: parallel("strategy = \"ddp\"\ndevices = 2\nbucket_cap = \"3B\"\n", "");
    first_bucket_larger_than_the_others: parallel(
        "strategy = \"ddp\"\ndevices = 2\nbucket_cap = \"1MiB\"\nfirst_bucket_cap = \"2MiB\"\n", ""
    );
    device_named_twice: parallel("strategy = \"dp\"\ndevices = 2\ndevice_ids = [1, 1]\n", "");
    output_on_no_device: parallel("strategy = \"dp\"\ndevices = 2\noutput_device = 2\n", "");
    scattered_along_another_dimension: parallel("strategy = \"dp\"\ndevices = 2\ndim = 1\n", "");
    nesterov_without_momentum: appended("[train]\noptimizer = { sgd = { learning_rate = 0.1, momentum = 0.0, nesterov = true } }\n");
    adamw_beta_of_1: appended("[train]\noptimizer = { adamw = { learning_rate = 0.1, beta2 = 1.0 } }\n");
    warm_up_from_more_than_all: appended("[train]\nschedule = { warm-up = { steps = 5, start = 1.5 } }\n");
    schedule_that_never_steps: appended("[train]\nschedule = { step = { every = 0, factor = 0.1 } }\n");
    path_of_data_without_files: replaced("source = \"digits\"", "source = \"digits\"\npath = \"/data\"");
    unknown_transport: replaced("devices = 2", "devices = 2\ntransport = \"udp\"");
    unknown_compression: replaced("devices = 2", "devices = 2\ncompression = \"fp8\"");
    collectives_of_no_size: collectives("from = \"3B\"\n");
    collectives_from_large_to_small: collectives("from = \"1MiB\"\nto = \"1KiB\"\n");
    collectives_by_a_factor_of_1: collectives("factor = 1\n");
    collectives_without_an_operation: collectives("operations = []\n");
    set_without_a_value: set("parallel.devices");
    set_of_an_unknown_key: set("parallel.device=2");
    set_of_the_kind: set("kind=norm-cost");
    set_to_a_bad_value: set("parallel.devices=0");
    norm_cost_of_another_strategy: norm_cost(&["parallel.strategy=dp"]);
    norm_cost_without_norms: norm_cost(&["model.norm=none"]);
    set_to_an_unknown_name: set("parallel.strategy=ddq");
    set_to_no_toml: set("sweep.\"parallel.devices\"=[1, 2");
    filter_without_a_value: message(GOOD, &[], &["parallel.devices"]);
    filter_by_an_unknown_key: message(GOOD, &[], &["parallel.device=2"]);
    filter_that_leaves_nothing: message(GOOD, &[], &["parallel.devices=3"]);
    filter_for_what_was_left_out: message(
        &GOOD.replace("devices = 2", "devices = 2\nbackend = \"cpu\"\n[sweep]\n\"train.precision\" = [\"fp32\", \"bf16\"]"),
        &[],
        &["train.precision=bf16"],
    );
    graph_of_a_step_on_cpus: message(
        &GOOD.replace("devices = 2", "devices = 2\nbackend = \"cpu\"\n[train]\ncuda_graph = true"),
        &[],
        &[],
    );
    last_part_of_a_key: message(GOOD, &[], &["strategy=ddp"]);
    optimizer_beside_that_of_the_file: message(
        &GOOD.replace("devices = 2", "devices = 2\n[train]\noptimizer = { sgd = { learning_rate = 0.1 } }"),
        &["train.optimizer.adamw.learning_rate=0.1"],
        &[],
    );
    data_of_collectives: collectives_with("[data]\nsource = \"digits\"\nbatch_size = 8\n", &[]);
    data_of_collectives_set: collectives_with("", &["data.batch_size=8"]);
    baseline_that_is_set_wrong: message(
        &format!("{GOOD}[answer]\nfactor = \"parallel.strategy\"\nbaseline = \"ddp\"\nmetric = \"step_ms\"\n"),
        &["answer.baseline=dpp"],
        &[],
    );
    layer_cost_of_several_devices: replaced("\"train\"", "\"layer-cost\"");
    filter_by_a_key_that_no_trial_uses: message(GOOD, &[], &["parallel.dp_loss=gathered"]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]

    /// Whatever is typed over a good scenario gives a plan or a message, never a panic.
    #[test]
    fn slips_of_the_hand_never_panic(
        at in 0..GOOD.len(),
        len in 0_usize..12,
        typed in proptest::prop_oneof![
            "[a-z\\[\\]{}=\"'.,# \\n0-9-]{0,10}",
            "\\PC{0,4}",
            proptest::sample::select(vec!["= -9223372036854775808", "= 1e400", "= 1979-05-27", "= [[]]", "= {}", "= \"\""])
                .prop_map(str::to_owned),
        ],
        key in proptest::sample::select(syncmark::scenario::keys::SETTINGS.to_vec()),
        value in "\\PC{0,8}",
    ) {
        let end = (at + len).min(GOOD.len());
        let text = format!("{}{typed}{}", &GOOD[..at], &GOOD[end..]);
        let overrides = vec![("--set".to_owned(), format!("{key}={value}"))];
        for overrides in [Vec::new(), overrides] {
            let request = Request { name: "slip.toml".to_owned(), text: text.clone(), overrides, ..Request::default() };
            match build(&request) {
                Ok(plan) => proptest::prop_assert!(!plan.trials.is_empty()),
                Err(error) => proptest::prop_assert!(!error.render(false).is_empty()),
            }
        }
    }
}
