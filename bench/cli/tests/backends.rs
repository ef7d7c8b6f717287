//! Which backend computes: what `auto` makes of a plan, what is said where there are no GPUs, and what a folder is finished with.
//!
//! Contract: programs are started with no GPU to see (CUDA_VISIBLE_DEVICES is empty) and no libraries of NVIDIA's but the
//! system's, so that a machine with GPUs answers as one without.
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod running;

use std::path::Path;
use std::process::{Command, Output};

use syncmark::args::{BackendArg, ScenarioArgs};
use syncmark::plan::backend::Choice;
use syncmark::plan::build::{Request, build};
use syncmark::plan::config::Backend;
use syncmark::plan::{Plan, plans, with_choice};
use syncmark::scenario::file::Transport;
use syncmark::scenario::preset::SCENARIOS;
use syncmark_record::RunFolder;
use syncmark_record::rows::TrialRow;

use running::{TURN, command};

/// One device, a few steps.
const ONE: &str = r#"name = "one"
question = "Where?"
kind = "train"
[model]
preset = "mlp"
[data]
source = "digits"
batch_size = 4
[measure]
smoke = true
repeats = 1
steps = 2
min_time = "1ms"
warmup_steps = 1
warmup_time = "1ms"
trace_steps = 1
"#;

fn gpus(_: &Plan) -> Choice {
    Choice {
        backend: Backend::Cuda,
        why: "found 2 GPUs and all libraries".to_owned(),
    }
}

fn cpu(_: &Plan) -> Choice {
    Choice::cpu("found no CUDA driver that can be used")
}

fn quickstart(choose: &dyn Fn(&Plan) -> Choice, overrides: &[&str]) -> Plan {
    let args = ScenarioArgs {
        scenarios: vec!["quickstart".to_owned()],
        overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
        ..ScenarioArgs::default()
    };
    let plans = plans(&args, false, choose);
    plans
        .unwrap_or_else(|error| panic!("{}", error.render(false)))
        .remove(0)
}

/// A plan for GPUs needs none; what has to be on the CPU says so.
#[test]
fn every_shipped_scenario_can_be_planned_for_gpus() {
    for (name, _) in SCENARIOS {
        let args = ScenarioArgs {
            scenarios: vec![name.to_owned()],
            backend: Some(BackendArg::Cuda),
            ..ScenarioArgs::default()
        };
        let asked = |_: &Plan| -> Choice { panic!("nothing is open") };
        let plan = plans(&args, false, &asked)
            .unwrap_or_else(|error| panic!("{name}: {}", error.render(false)))
            .remove(0);
        for trial in &plan.trials {
            assert_eq!(trial.config.backend, Backend::Cuda, "{name}");
            let transport = trial.config.strategy.ranks_transport();
            let nccl = transport.is_none_or(|transport| transport == Transport::Nccl);
            assert!(nccl, "{name}: {} over {transport:?}", trial.label);
        }
    }
}

fn backends(plan: &Plan) -> Vec<Backend> {
    let trials = plan.trials.iter();
    trials.map(|trial| trial.config.backend).collect()
}

#[test]
fn auto_is_what_the_machine_chose_in_every_trial_and_its_id() {
    let (here, there) = (quickstart(&cpu, &[]), quickstart(&gpus, &[]));
    assert!(
        backends(&here)
            .iter()
            .all(|backend| *backend == Backend::Cpu)
    );
    assert!(
        backends(&there)
            .iter()
            .all(|backend| *backend == Backend::Cuda)
    );
    for (here, there) in here.trials.iter().zip(&there.trials) {
        assert_ne!(here.id, there.id);
        assert_eq!(there.settings["parallel.backend"], "cuda");
        assert_eq!(here.label, there.label);
    }
    // The scenario is the same: another machine answers it otherwise.
    assert_eq!(here.toml, there.toml);
    let sentence = there.auto.expect("it was left to the machine").sentence();
    assert_eq!(
        sentence,
        "Backend cuda: `auto` found 2 GPUs and all libraries."
    );
}

#[test]
fn what_a_scenario_says_is_not_left_to_the_machine() {
    let asked = |_: &Plan| -> Choice { panic!("nothing is open") };
    let on_cpus = quickstart(&asked, &["parallel.backend=cpu"]);
    assert_eq!(
        (on_cpus.auto.is_none(), backends(&on_cpus)[0]),
        (true, Backend::Cpu)
    );
    let on_gpus = quickstart(&asked, &["parallel.backend=cuda"]);
    assert_eq!(
        (on_gpus.auto.is_none(), backends(&on_gpus)[0]),
        (true, Backend::Cuda)
    );
    // The same work has the same id, however it came to be.
    let ids = |plan: &Plan| -> Vec<String> { plan.trials.iter().map(|t| t.id.clone()).collect() };
    assert_eq!(ids(&on_gpus), ids(&quickstart(&gpus, &[])));
    assert_eq!(ids(&on_cpus), ids(&quickstart(&cpu, &[])));
}

#[test]
fn auto_beside_the_cpu_is_a_trial_of_its_own_only_where_there_are_gpus() {
    let request = || Request {
        name: "test.toml".to_owned(),
        text: format!("{ONE}[sweep]\n\"parallel.backend\" = [\"cpu\", \"auto\"]\n"),
        ..Request::default()
    };
    let with = |choose| with_choice(request(), choose).expect("the scenario is good");
    assert_eq!(backends(&with(&gpus)), [Backend::Cpu, Backend::Cuda]);
    let merged = with(&cpu);
    assert_eq!(
        (backends(&merged), merged.merged.len()),
        (vec![Backend::Cpu], 1)
    );
    assert!(merged.auto.is_some(), "one of the two left it open");
}

#[test]
fn a_plan_alone_takes_the_cpu() {
    let request = Request {
        text: ONE.to_owned(),
        ..Request::default()
    };
    let plan = build(&request).expect("the scenario is good");
    assert_eq!(
        (backends(&plan), plan.auto, plan.trials[0].automatic),
        (vec![Backend::Cpu], None, true)
    );
}

/// A program that sees neither GPUs nor what was installed for them.
fn blind(arguments: &[&str], folder: &Path) -> Command {
    let mut blind = command();
    blind
        .args(arguments)
        .current_dir(folder)
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("SYNCMARK_CUDA_LIBRARIES", folder)
        .env("XDG_DATA_HOME", folder);
    blind
}

fn text(output: &Output) -> (String, String) {
    (
        String::from_utf8(output.stdout.clone()).unwrap(),
        String::from_utf8(output.stderr.clone()).unwrap(),
    )
}

/// That `stderr` says what is missing, and how to get it.
fn is_told(stderr: &str) {
    assert!(
        stderr.contains("error: the backend cuda cannot be used here:\n    "),
        "{stderr}"
    );
    for word in ["  help: ", "--backend cpu"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
    // What is on the system's own paths is no business of this test.
    let reason = |name: &str| {
        stderr
            .lines()
            .any(|line| line.starts_with(&format!("    {name}: ")))
    };
    assert!(reason("CUDA driver") || reason("GPU"), "{stderr}");
    if reason("CUDA driver") {
        assert!(
            stderr.contains("libcuda.so.1") && stderr.contains("release 580"),
            "{stderr}"
        );
    }
    for (library, wheel) in [
        ("NVRTC", "nvidia-cuda-nvrtc"),
        ("cuDNN", "nvidia-cudnn-cu13"),
    ] {
        let helped = stderr.contains("scripts/cuda_libraries.sh") && stderr.contains(wheel);
        assert_eq!(reason(library), helped, "{library}: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn without_gpus_cuda_is_exit_status_four_with_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("one.toml"),
        format!("{ONE}[parallel]\nbackend = \"cuda\"\n"),
    )
    .unwrap();
    for arguments in [
        &["run", "quickstart", "--backend", "cuda"][..],
        &["run", "one.toml"],
        &["run", "quickstart", "--set", "parallel.backend=cuda"],
        &["verify", "quickstart", "--backend", "cuda"],
    ] {
        let output = blind(arguments, folder.path()).output().unwrap();
        let (stdout, stderr) = text(&output);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {stderr}");
        assert_eq!(stdout, "", "{arguments:?}");
        is_told(&stderr);
        assert!(
            !folder.path().join("reports").exists(),
            "nothing is written"
        );
    }
    // Ranks that exchange need more than one device does.
    let nccl = |arguments: &[&str]| {
        let output = blind(arguments, folder.path()).output().unwrap();
        text(&output).1.contains("\n    NCCL: ")
    };
    let ranks = nccl(&["run", "quickstart", "--backend", "cuda"]);
    assert!(
        !nccl(&["run", "one.toml"]),
        "one device exchanges with nobody"
    );
    if !ranks {
        eprintln!("skipped: NCCL is on the system's own paths");
    }
}

#[test]
fn a_plan_shows_what_run_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let output = blind(&["plan", "quickstart", "--backend", "cuda"], folder.path())
        .output()
        .unwrap();
    let (stdout, stderr) = text(&output);
    assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""));
    let (_, refused) = stdout
        .split_once("`syncmark run` would refuse it here:\n")
        .unwrap_or_else(|| panic!("{stdout}"));
    is_told(refused);

    let output = blind(&["plan", "quickstart"], folder.path())
        .output()
        .unwrap();
    let (stdout, _) = text(&output);
    assert!(
        stdout.contains("\nBackend cpu: `auto` found no"),
        "{stdout}"
    );
}

/// What only GPUs do is not done by something else where there are none.
#[test]
fn without_gpus_what_needs_them_is_exit_status_four() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one.toml"), ONE).unwrap();
    let (tf32, bf16) = (["train.precision=tf32"], ["train.precision=bf16"]);
    let graph = ["train.cuda_graph=true"];
    let cudnn = ["train.cuda_batch_norm=cudnn", "model.norm=batch"];
    let transport = [
        "parallel.strategy=ddp",
        "parallel.devices=2",
        "parallel.transport=nccl",
    ];
    for (set, why) in [
        (
            &tf32[..],
            "`train.precision` is tf32, and CPUs compute products in fp32",
        ),
        (
            &bf16,
            "`train.precision` is bf16, and CPUs compute products in fp32",
        ),
        (
            &graph,
            "`train.cuda_graph` is true, and CPUs have no CUDA graphs",
        ),
        (
            &cudnn,
            "`train.cuda_batch_norm` is cudnn, and CPUs have no cuDNN",
        ),
        (
            &transport,
            "`parallel.transport` is nccl, which is for GPUs",
        ),
    ] {
        for verb in ["run", "verify", "plan"] {
            let set = set.iter().flat_map(|text| ["--set", text]);
            let arguments: Vec<&str> = [verb, "one.toml"].into_iter().chain(set).collect();
            let output = blind(&arguments, folder.path()).output().unwrap();
            let (stdout, stderr) = text(&output);
            let (status, said) = match verb {
                "plan" => (0, &stdout),
                _ => (4, &stderr),
            };
            assert_eq!(output.status.code(), Some(status), "{stdout}{stderr}");
            assert!(said.contains(why), "{verb}: {said}");
            assert!(
                said.contains("  help: leave it out, or run it on a GPU"),
                "{said}"
            );
            assert!(
                !folder.path().join("reports").exists(),
                "nothing is written"
            );
        }
    }
}

#[test]
fn without_gpus_auto_takes_the_cpu_says_why_and_is_finished_so() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one.toml"), ONE).unwrap();
    let output = blind(&["run", "one.toml", "--quiet"], folder.path())
        .output()
        .unwrap();
    let (stdout, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(
        stdout.contains("\nBackend cpu: `auto` found no"),
        "{stdout}"
    );
    let path = running::run_folder(&folder.path().join("reports")).expect("a run folder");
    let run = RunFolder::open(&path).unwrap();
    let mut environment = run.environment().unwrap().expect("it was written");
    assert_eq!(environment.auto_backend.as_deref(), Some("cpu"));
    let rows: Vec<TrialRow> = run.read().unwrap();
    assert_eq!(rows[0].backend, "cpu");

    // A run that was begun on GPUs is not finished on the CPU.
    environment.auto_backend = Some("cuda".into());
    run.write_environment(&environment).unwrap();
    let begun = path.to_str().unwrap();
    for arguments in [
        &["run", "--resume", begun][..],
        &["run", "one.toml", "--resume", begun],
    ] {
        let output = blind(arguments, folder.path()).output().unwrap();
        let (_, stderr) = text(&output);
        assert_eq!(output.status.code(), Some(4), "{stderr}");
        is_told(&stderr);
    }
}

#[test]
fn a_run_on_the_cpu_by_request_has_nothing_to_explain() {
    let _turn = TURN.lock();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("one.toml"), ONE).unwrap();
    let arguments = ["run", "one.toml", "--quiet", "--backend", "cpu"];
    let output = blind(&arguments, folder.path()).output().unwrap();
    let (stdout, stderr) = text(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(!stdout.contains("Backend "), "{stdout}");
    let path = running::run_folder(&folder.path().join("reports")).expect("a run folder");
    let environment = RunFolder::open(&path).unwrap().environment().unwrap();
    assert_eq!(environment.expect("it was written").auto_backend, None);
}
