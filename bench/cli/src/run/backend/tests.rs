//! What is decided and refused, with made-up machines.
use syncmark_engine::backend::cuda::library::Missing;

use super::*;
use crate::error::Status;
use crate::plan::build::Request;
use crate::plan::config::StrategyConfig;
use crate::plan::with_choice;
use crate::run::mock;
use crate::scenario::file::DpLoss;
use crate::scenario::preset::SCENARIOS;

const PAIR: Needs = Needs {
    devices: 2,
    nccl: true,
    over_tcp: false,
};

fn missing(library: Library) -> Lack {
    Lack::Library(Missing {
        library,
        reason: format!("{}: not there", library.soname()),
    })
}

fn choice(available: std::result::Result<usize, Vec<Lack>>) -> (Backend, String) {
    let choice = judge(&PAIR, available, true);
    (choice.backend, choice.sentence())
}

#[test]
fn auto_takes_gpus_where_each_device_has_one() {
    let (backend, sentence) = choice(Ok(2));
    assert_eq!(backend, Backend::Cuda);
    assert_eq!(
        sentence,
        "Backend cuda: `auto` found 2 GPUs and all libraries."
    );
    let (backend, sentence) = choice(Ok(1));
    assert_eq!(backend, Backend::Cpu);
    assert!(sentence.contains("there are 1 for 2 devices"), "{sentence}");
    assert_eq!(
        judge(&PAIR, Ok(1), false).backend,
        Backend::Cuda,
        "other hosts have more"
    );
}

#[test]
fn auto_takes_the_cpu_and_says_what_was_not_found() {
    let without = |lacks: Vec<Lack>| {
        let (backend, sentence) = choice(Err(lacks));
        assert_eq!(backend, Backend::Cpu);
        sentence
    };
    assert_eq!(
        without(vec![missing(Library::Driver), missing(Library::Cudnn)]),
        "Backend cpu: `auto` found no CUDA driver that can be used."
    );
    let gpu = Lack::Gpu {
        reason: "none".into(),
    };
    let some = without(vec![missing(Library::Cudnn), missing(Library::Nccl), gpu]);
    assert!(
        some.contains("found no cuDNN, no NCCL, no GPU; `syncmark doctor`"),
        "{some}"
    );
}

#[test]
fn a_refusal_names_everything_that_is_missing_and_its_reason() {
    let error = refusal(&[missing(Library::Driver), missing(Library::Cudnn)]);
    assert_eq!(error.status(), Status::NothingRuns);
    let text = error.render(false);
    for word in [
        "\n    CUDA driver: libcuda.so.1: not there",
        "\n    cuDNN: libcudnn.so.9: not there",
        "release 580 or later",
        "scripts/cuda_libraries.sh",
        "--backend cpu",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn devices_that_share_a_gpu_are_noted_and_nothing_else_is() {
    let mut plan = mock::plan(1);
    note(&mut plan, 1);
    assert!(
        plan.trials.iter().all(|trial| trial.notes.is_empty()),
        "on the CPU"
    );
    for trial in &mut plan.trials {
        trial.config.backend = Backend::Cuda;
    }
    note(&mut plan, 2);
    assert!(
        plan.trials.iter().all(|trial| trial.notes.is_empty()),
        "one each"
    );
    note(&mut plan, 1);
    for trial in &plan.trials {
        assert_eq!(trial.notes.len(), usize::from(trial.config.devices > 1));
    }
    assert!(plan.trials[1].notes[0].starts_with("2 devices on 1 GPU: several share one"));
}

#[test]
fn devices_that_may_share_no_gpu_are_left_out_with_the_reason() {
    let mut plan = mock::plan(1);
    for trial in &mut plan.trials {
        trial.config.backend = Backend::Cuda;
    }
    let all = plan.clone();
    leave_out(&mut plan, 1);
    assert_eq!(plan, all, "they may share");
    plan.trials[0].shares_gpus = false;
    plan.trials[1].shares_gpus = false;
    assert_eq!(plan.trials[1].config.devices, 2);
    let asked = plan.clone();
    leave_out(&mut plan, 2);
    assert_eq!(plan, asked, "one each");
    leave_out(&mut plan, 1);
    let [left] = &plan.left_out[..] else {
        panic!("{:?}", plan.left_out)
    };
    assert_eq!(left.what, asked.trials[1].label);
    assert_eq!(left.why, "2 devices need a GPU each, and here is 1");
    assert_eq!(plan.trials.len(), asked.trials.len() - 1);
    plan.trials[0].config.backend = Backend::Cpu;
    leave_out(&mut plan, 0);
    assert_eq!(plan.left_out.len(), 1, "no GPU is asked for");
}

#[test]
fn a_plan_on_the_cpu_needs_nothing() {
    require(&mock::plan(1)).unwrap();
}

#[test]
fn auto_keeps_a_plan_over_tcp_on_the_cpu() {
    let needs = Needs {
        over_tcp: true,
        ..PAIR
    };
    let choice = judge(&needs, Ok(2), true);
    assert_eq!(choice.backend, Backend::Cpu);
    let sentence = choice.sentence();
    assert!(sentence.contains("exchange over tcp"), "{sentence}");
}

/// On a machine with GPUs too, whatever the scenario leaves open.
#[test]
fn every_shipped_scenario_has_a_plan_on_a_machine_with_gpus() {
    for (name, text) in SCENARIOS {
        let request = Request {
            name: name.to_owned(),
            text: text.to_owned(),
            ..Request::default()
        };
        let choose = |plan: &Plan| {
            let open = plan.trials.iter().filter(|trial| trial.automatic);
            let needs = Needs::of(open.map(|trial| &trial.config)).expect("one is open");
            judge(&needs, Ok(8), true)
        };
        let plan = with_choice(request, &choose)
            .unwrap_or_else(|error| panic!("{name}: {}", error.render(false)));
        for trial in &plan.trials {
            let transport = trial.config.strategy.ranks_transport();
            let fits = match trial.config.backend {
                Backend::Cpu => transport != Some(Transport::Nccl),
                Backend::Cuda => transport.is_none_or(|transport| transport == Transport::Nccl),
            };
            assert!(fits, "{name}: {} over {transport:?}", trial.label);
        }
    }
}

fn on_gpus_of(strategy: StrategyConfig) -> TrialConfig {
    TrialConfig {
        backend: Backend::Cuda,
        ..mock::config(strategy, 2)
    }
}

#[test]
fn threads_that_share_a_gpu_are_refused_where_they_exchange() {
    let threads = on_gpus_of(mock::ddp(Launch::Threads));
    let error = can_share(&threads, 1).unwrap_err();
    assert_eq!(error.status(), Status::NothingRuns);
    let text = error.render(false);
    for word in [
        "2 ranks that are threads on 1 GPU: NCCL refuses",
        "launch = \"processes\"",
        "--filter parallel.launch=processes",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    can_share(&threads, 2).unwrap();
    for strategy in [
        mock::ddp(Launch::Processes),
        mock::dp(DpLoss::Gathered, 2),
        StrategyConfig::Independent {
            launch: Launch::Threads,
        },
    ] {
        can_share(&on_gpus_of(strategy), 1).unwrap();
    }
}

#[test]
fn ranks_that_share_a_gpu_are_told_apart_and_others_are_left_alone() {
    assert_eq!(sharing(2, 2, 1), []);
    for rank in 0..2 {
        assert_eq!(sharing(2, 1, rank), nccl::one_gpu(rank, true));
    }
    // Nobody else's ranks are looked at.
    for strategy in [
        mock::dp(DpLoss::Gathered, 2),
        StrategyConfig::Independent {
            launch: Launch::Processes,
        },
    ] {
        assert_eq!(rank_variables(&on_gpus_of(strategy), 0), []);
    }
    assert_eq!(
        rank_variables(&mock::config(mock::ddp(Launch::Processes), 2), 0),
        []
    );
}

#[test]
fn what_cpus_cannot_do_is_refused_with_the_trial_that_asks_for_it() {
    let mut plan = mock::plan(1);
    plan.trials[1].config.precision = Precision::Tf32;
    let text = require(&plan).unwrap_err().render(false);
    assert!(
        text.contains("dp: `train.precision` is tf32, and CPUs compute products in fp32"),
        "{text}"
    );
    let mut plan = mock::plan(1);
    plan.trials[1].config.strategy = mock::dp_over_nccl(2);
    let text = require(&plan).unwrap_err().render(false);
    let expected = "dp: `parallel.dp_transport` is nccl, which is for GPUs";
    assert!(text.contains(expected), "{text}");
    let mut plan = mock::plan(1);
    if let StrategyConfig::Ddp(ddp) = &mut plan.trials[2].config.strategy {
        ddp.transport = Transport::Nccl;
    }
    let error = require(&plan).unwrap_err();
    assert_eq!(error.status(), Status::NothingRuns);
    let text = error.render(false);
    assert!(
        text.contains("ddp: `parallel.transport` is nccl, which is for GPUs"),
        "{text}"
    );
}

#[test]
fn dp_over_nccl_is_left_out_where_devices_would_share_a_gpu() {
    let on_gpus = || {
        let mut plan = mock::plan(1);
        plan.trials[1].config.strategy = mock::dp_over_nccl(2);
        for trial in &mut plan.trials {
            trial.config.backend = Backend::Cuda;
        }
        plan
    };
    let mut plan = on_gpus();
    leave_out(&mut plan, 2);
    assert_eq!(plan, on_gpus());
    leave_out(&mut plan, 1);
    let labels: Vec<_> = plan.trials.iter().map(|trial| &*trial.label).collect();
    assert_eq!(labels, ["single", "ddp"]);
    let [left] = &plan.left_out[..] else {
        panic!("{:?}", plan.left_out);
    };
    assert_eq!(left.what, "dp");
    assert_eq!(
        left.why,
        "2 devices need a GPU each, and here is 1: NCCL refuses two devices of one process on one"
    );
    assert!(left.instead.contains("dp_transport = \"peer-copy\""));
    // By copies devices may share one.
    let mut plan = mock::plan(1);
    leave_out(&mut plan, 1);
    assert_eq!(plan.left_out, []);
}
