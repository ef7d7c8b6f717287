//! What a plan makes of GPUs: precision and transports on each backend, what is left out and what changes a trial's id.
//!
//! Contract: no GPU is looked for. What `run` makes of such plans on a machine without GPUs is in `backends.rs`.
use syncmark::cmd::plan::describe;
use syncmark::plan::Plan;
use syncmark::plan::build::{Request, build};
use syncmark::plan::config::{Backend, Work};
use syncmark::scenario::file::{Precision, Transport};
use syncmark_engine::model::spec::Norm;

const DIGITS: &str = "[model]\npreset = \"mlp\"\n[data]\nsource = \"digits\"\nbatch_size = 8\n";

/// A plan of `rest` where `auto` stands for `auto`; what is said of it where there is none.
fn planned(kind: &str, rest: &str, auto: Backend) -> Result<Plan, String> {
    let work = if kind == "train" { DIGITS } else { "" };
    let request = Request {
        name: "test.toml".to_owned(),
        text: format!("name = \"t\"\nquestion = \"?\"\nkind = \"{kind}\"\n{work}{rest}"),
        auto,
        ..Request::default()
    };
    build(&request).map_err(|error| error.render(false))
}

fn plan(rest: &str, auto: Backend) -> Plan {
    planned("train", rest, auto).unwrap_or_else(|error| panic!("{error}"))
}

fn id(rest: &str, auto: Backend) -> String {
    plan(rest, auto).trials.remove(0).id
}

fn reasons(plan: &Plan) -> Vec<&str> {
    plan.left_out.iter().map(|left| left.why.as_str()).collect()
}

const ALL: &str = "[sweep]\n\"train.precision\" = [\"fp32\", \"tf32\", \"bf16\"]\n";

#[test]
fn precisions_of_gpus_are_left_out_on_cpus_with_their_reason() {
    let all = plan(
        &format!("[parallel]\nbackend = \"cpu\"\n{ALL}"),
        Backend::Cpu,
    );
    assert_eq!(all.trials.len(), 1);
    assert_eq!(reasons(&all), ["CPUs compute products in fp32"; 2]);
    for left_out in &all.left_out {
        assert_eq!(
            left_out.instead,
            "write precision = \"fp32\", or backend = \"cuda\""
        );
    }
    assert!(describe(&all).contains("CPUs compute products in fp32"));
    for precision in ["tf32", "bf16"] {
        let alone =
            format!("[train]\nprecision = \"{precision}\"\n[parallel]\nbackend = \"cpu\"\n");
        let error = planned("train", &alone, Backend::Cpu).unwrap_err();
        assert!(error.contains("CPUs compute products in fp32"), "{error}");
    }
}

#[test]
fn precisions_are_trials_of_their_own_and_fp32_is_what_was_there_before() {
    for auto in [Backend::Cpu, Backend::Cuda] {
        let usual = id("", auto);
        assert_eq!(id("[train]\nprecision = \"fp32\"\n", auto), usual);
        let [tf32, bf16] =
            ["tf32", "bf16"].map(|name| id(&format!("[train]\nprecision = \"{name}\"\n"), auto));
        assert!(tf32 != usual && bf16 != usual && tf32 != bf16);
    }
    let on_gpus = plan(ALL, Backend::Cuda);
    let precisions: Vec<_> = on_gpus
        .trials
        .iter()
        .map(|trial| {
            (
                trial.config.precision,
                trial.settings["train.precision"].as_str(),
            )
        })
        .collect();
    assert_eq!(
        precisions,
        [
            (Precision::Fp32, "fp32"),
            (Precision::Tf32, "tf32"),
            (Precision::Bf16, "bf16")
        ]
    );
    assert_ne!(on_gpus.trials[0].label, on_gpus.trials[1].label);
    // Where `auto` found no GPU, such a trial stays in the plan, and `run` refuses it.
    let on_cpus = plan(ALL, Backend::Cpu);
    let said: Vec<_> = on_cpus
        .trials
        .iter()
        .map(|trial| trial.settings.get("train.precision").map(String::as_str))
        .collect();
    assert_eq!(said, [None, Some("tf32"), Some("bf16")]);
}

#[test]
fn cublaslt_is_a_trial_of_its_own_with_rounded_products_on_gpus() {
    let lt = "[train]\nprecision = \"bf16\"\ncuda_matmul = \"cublaslt\"\n";
    let usual = "[train]\nprecision = \"bf16\"\n";
    for auto in [Backend::Cpu, Backend::Cuda] {
        let named = format!("{usual}cuda_matmul = \"cublas\"\n");
        assert_eq!(id(&named, auto), id(usual, auto));
        assert_ne!(id(lt, auto), id(usual, auto));
    }
    let all = "[sweep]\n\"train.precision\" = [\"fp32\", \"tf32\"]\n\"train.cuda_matmul\" = [\"cublas\", \"cublaslt\"]\n";
    let on_gpus = plan(all, Backend::Cuda);
    let labels: Vec<_> = on_gpus.trials.iter().map(|trial| &*trial.label).collect();
    assert_eq!(
        labels,
        [
            "single cublas fp32",
            "single cublas tf32",
            "single cublaslt tf32"
        ]
    );
    assert_eq!(
        reasons(&on_gpus),
        ["in fp32 all products are cuBLAS's, and cuBLASLt would multiply nothing"]
    );
    assert_eq!(
        on_gpus.left_out[0].instead,
        "write precision = \"tf32\" or \"bf16\", or cuda_matmul = \"cublas\""
    );
    let error = planned(
        "train",
        "[train]\ncuda_matmul = \"cublaslt\"\n[parallel]\nbackend = \"cpu\"\n",
        Backend::Cpu,
    )
    .unwrap_err();
    assert!(error.contains("CPUs have no cuBLASLt"), "{error}");
    assert!(error.contains("leave cuda_matmul out"), "{error}");
}

#[test]
fn a_graph_of_a_step_is_a_trial_of_its_own_on_gpus_and_nowhere_else() {
    let graph = "[train]\ncuda_graph = true\n";
    for auto in [Backend::Cpu, Backend::Cuda] {
        let usual = id("", auto);
        assert_eq!(id("[train]\ncuda_graph = false\n", auto), usual);
        assert_ne!(id(graph, auto), usual);
    }
    let both = "[sweep]\n\"train.cuda_graph\" = [false, true]\n";
    let labels: Vec<_> = plan(both, Backend::Cuda)
        .trials
        .into_iter()
        .map(|trial| (trial.config.cuda_graph, trial.label))
        .collect();
    assert_eq!(
        labels,
        [
            (false, "single graph off".to_owned()),
            (true, "single graph".to_owned())
        ]
    );
    let on_cpus = plan(
        &format!("[parallel]\nbackend = \"cpu\"\n{both}"),
        Backend::Cpu,
    );
    assert_eq!(reasons(&on_cpus), ["CPUs have no CUDA graphs"]);
    assert_eq!(
        on_cpus.left_out[0].instead,
        "leave cuda_graph out, or write backend = \"cuda\""
    );
    for strategy in ["independent", "ddp", "zero1"] {
        let text = on_two(strategy, None, "cuda") + graph;
        let config = &plan(&text, Backend::Cpu).trials[0].config;
        assert!(config.cuda_graph, "{strategy}");
        let transport = config.strategy.ranks_transport();
        assert!(matches!(transport, None | Some(Transport::Nccl)));
    }
    for (rest, why) in [
        (on_two("dp", None, "cuda"), "its controller joins"),
        ("accumulation = 2\n".to_owned(), "several micro-batches"),
    ] {
        // What stands in front of a section belongs to [train].
        let text = match rest.starts_with('[') {
            true => format!("{graph}{rest}"),
            false => format!("{graph}{rest}[parallel]\nbackend = \"cuda\"\n"),
        };
        let error = planned("train", &text, Backend::Cuda).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(error.contains("leave cuda_graph out"), "{error}");
    }
    // Over tcp ranks keep to the CPU, whatever there is.
    let over_tcp = on_two("zero1", Some("tcp"), "auto") + graph;
    let error = planned("train", &over_tcp, Backend::Cpu).unwrap_err();
    assert!(
        error.contains("the host takes part in every collective"),
        "{error}"
    );
    let error = planned("layer-cost", &format!("{DIGITS}{graph}"), Backend::Cuda).unwrap_err();
    assert!(error.contains("only kind = \"train\""), "{error}");
}

/// `norm` for the `norm` layers of a small model, and cuDNN for its batch norms.
fn by_cudnn(norm: &str, rest: &str) -> String {
    format!("[sweep]\n\"model.norm\" = [\"{norm}\"]\n[train]\ncuda_batch_norm = \"cudnn\"\n{rest}")
}

/// A plan of a model with norms, whose first trial has its own.
fn normed(kind: &str, rest: &str) -> Result<Plan, String> {
    let model = "[model]\nlayers = [{ conv2d = { channels = 4, kernel = 3 } }, \"norm\", \"relu\", \"flatten\", { linear = { features = \"classes\" } }]\n\
[data]\nsource = \"digits\"\nbatch_size = 8\n";
    let request = Request {
        name: "test.toml".to_owned(),
        text: format!("name = \"t\"\nquestion = \"?\"\nkind = \"{kind}\"\n{model}{rest}"),
        auto: Backend::Cuda,
        ..Request::default()
    };
    build(&request).map_err(|error| error.render(false))
}

#[test]
fn batch_norm_by_cudnn_is_a_trial_of_its_own_where_there_is_batch_norm() {
    let both = "[sweep]\n\"model.norm\" = [\"batch\", \"group\"]\n\"train.cuda_batch_norm\" = [\"own\", \"cudnn\"]\n";
    let plan = normed("train", both).unwrap();
    let trials: Vec<_> = plan
        .trials
        .iter()
        .map(|trial| {
            let said = trial.settings.get("train.cuda_batch_norm");
            (trial.config.norm, said.map(String::as_str))
        })
        .collect();
    assert_eq!(
        trials,
        [
            (Norm::Batch, Some("own")),
            (Norm::Batch, Some("cudnn")),
            (Norm::Group, None)
        ]
    );
    assert_eq!(
        reasons(&plan),
        ["the model has no batch norm for cuDNN to compute"]
    );
    let id = |rest: &str| normed("train", rest).unwrap().trials.remove(0).id;
    let batch = "[sweep]\n\"model.norm\" = [\"batch\"]\n";
    let own = id(&format!("{batch}[train]\ncuda_batch_norm = \"own\"\n"));
    assert_eq!(own, id(batch), "what was there before");
    assert_ne!(own, id(&by_cudnn("batch", "")));
    // As the fastest of kernels it may be captured, and its nodes are timed.
    assert!(normed("train", &by_cudnn("batch", "cuda_graph = true\n")).is_ok());
    assert!(normed("norm-cost", &by_cudnn("batch", "")).is_ok());
}

#[test]
fn what_cudnn_cannot_do_is_refused_with_the_reason() {
    let ddp = "[parallel]\nstrategy = \"ddp\"\ndevices = 2\nlaunch = \"processes\"\n";
    let learning = "epochs = 1\n";
    for (kind, rest, why) in [
        (
            "train",
            by_cudnn("sync-batch", ddp),
            "cuDNN's batch norm is one call",
        ),
        ("train", by_cudnn("layer", ""), "no batch norm for cuDNN"),
        (
            "train",
            by_cudnn("batch", "[parallel]\nbackend = \"cpu\"\n"),
            "CPUs have no cuDNN",
        ),
        (
            "learning",
            by_cudnn("batch", learning),
            "trials that learn have ours",
        ),
    ] {
        let error = normed(kind, &rest).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert!(error.contains("cuda_batch_norm out"), "{error}");
    }
}

/// On two devices, with a transport or without a word about it.
fn on_two(strategy: &str, transport: Option<&str>, backend: &str) -> String {
    let transport = transport.map_or(String::new(), |name| format!("transport = \"{name}\"\n"));
    format!(
        "[parallel]\nstrategy = \"{strategy}\"\ndevices = 2\nbackend = \"{backend}\"\n{transport}"
    )
}

#[test]
fn ranks_with_gpus_exchange_over_nccl_whether_it_is_said_or_not() {
    for strategy in ["ddp", "zero1"] {
        let said = on_two(strategy, Some("nccl"), "cuda");
        for transport in [None, Some("shared"), Some("nccl")] {
            for (backend, auto) in [("cuda", Backend::Cpu), ("auto", Backend::Cuda)] {
                let rest = on_two(strategy, transport, backend);
                let trial = plan(&rest, auto).trials.remove(0);
                assert_eq!(trial.config.backend, Backend::Cuda);
                let found = trial.config.strategy.ranks_transport();
                assert_eq!(found, Some(Transport::Nccl), "{rest}");
                assert_eq!(trial.settings["parallel.transport"], "nccl");
                assert_eq!(trial.id, id(&said, Backend::Cpu));
            }
        }
        let trial = plan(&on_two(strategy, None, "auto"), Backend::Cpu)
            .trials
            .remove(0);
        let found = trial.config.strategy.ranks_transport();
        assert_eq!(found, Some(Transport::Shared));
    }
    // Others have no transport to choose.
    for strategy in ["dp", "independent"] {
        for transport in ["shared", "tcp", "nccl"] {
            let rest = on_two(strategy, Some(transport), "cuda");
            let trial = plan(&rest, Backend::Cpu).trials.remove(0);
            assert_eq!(trial.config.strategy.ranks_transport(), None, "{rest}");
        }
    }
}

#[test]
fn transports_that_a_backend_does_not_have_are_left_out_with_the_reason() {
    let all = "[sweep]\n\"parallel.transport\" = [\"shared\", \"tcp\", \"nccl\"]\n";
    let transports = |plan: &Plan| -> Vec<_> {
        let trials = plan.trials.iter();
        trials
            .filter_map(|trial| trial.config.strategy.transport())
            .collect()
    };
    for strategy in ["ddp", "zero1"] {
        let rest = on_two(strategy, None, "cpu") + all;
        let on_cpus = plan(&rest, Backend::Cpu);
        assert_eq!(transports(&on_cpus), ["shared", "tcp"]);
        assert_eq!(reasons(&on_cpus), ["NCCL is for GPUs"]);
        for (backend, auto) in [("cuda", Backend::Cpu), ("auto", Backend::Cuda)] {
            let on_gpus = plan(&(on_two(strategy, None, backend) + all), auto);
            assert_eq!(transports(&on_gpus), ["nccl"]);
            assert_eq!(reasons(&on_gpus), ["ranks with GPUs exchange over NCCL"]);
            assert_eq!(on_gpus.merged.len(), 1, "shared stands for nccl");
        }
    }
    for (transport, backend, why) in [
        ("nccl", "cpu", "NCCL is for GPUs"),
        ("tcp", "cuda", "ranks with GPUs exchange over NCCL"),
    ] {
        for kind in ["train", "collectives"] {
            let rest = on_two("ddp", Some(transport), backend);
            let rest = rest.replace("strategy = \"ddp\"\n", "");
            let rest = match kind {
                "train" => rest + "strategy = \"ddp\"\n",
                _ => rest,
            };
            let error = planned(kind, &rest, Backend::Cpu).unwrap_err();
            assert!(error.contains(why), "{kind}: {error}");
        }
    }
}

#[test]
fn collectives_alone_go_over_nccl_on_gpus() {
    let rest = "[parallel]\ndevices = 2\nbackend = \"cuda\"\n";
    let plan = planned("collectives", rest, Backend::Cpu).unwrap_or_else(|error| panic!("{error}"));
    let config = &plan.trials[0].config;
    assert!(matches!(config.work, Work::Collectives(_)));
    assert_eq!(config.strategy.transport(), Some("nccl"));
    assert_eq!(plan.trials[0].settings["parallel.transport"], "nccl");
}

/// What accepts GPUs exchanges alone, learns where an end is given, and is timed where none is: all on the same devices.
#[test]
fn an_acceptance_exchanges_learns_and_is_timed() {
    let variants = "[parallel]\nstrategy = \"ddp\"\ndevices = 4\nbackend = \"cuda\"\n\
        [[variant]]\nname = \"losses\"\nset = { \"train.steps\" = 5 }\n\
        [[variant]]\nname = \"step\"\nset = { \"data.batch_size\" = 16 }\n";
    let request = format!("{DIGITS}{variants}");
    let plan = planned("acceptance", &request, Backend::Cpu).unwrap_or_else(|e| panic!("{e}"));
    let works: Vec<&Work> = plan.trials.iter().map(|trial| &trial.config.work).collect();
    assert!(
        matches!(
            works[..],
            [Work::Learning(_), Work::Train, Work::Collectives(_)]
        ),
        "{works:?}"
    );
    for trial in &plan.trials {
        assert_eq!(trial.config.devices, 4, "{}", trial.label);
        let transport = trial.config.strategy.ranks_transport();
        assert_eq!(transport, Some(Transport::Nccl), "{}", trial.label);
    }
    let error = planned("acceptance", "", Backend::Cpu).unwrap_err();
    assert!(error.contains("the section `data` is missing"), "{error}");
    // Its collectives are checked as those of the kind `collectives` are.
    let slip = format!("{request}[collectives]\nfactor = 1\n");
    let error = planned("acceptance", &slip, Backend::Cpu).unwrap_err();
    assert!(error.contains("collectives.factor"), "{error}");
}

#[test]
fn dp_over_nccl_is_a_trial_of_its_own_on_gpus_and_peer_copies_are_what_was_there_before() {
    let dp = |devices: usize, backend: &str, transport: &str| {
        format!(
            "[parallel]\nstrategy = \"dp\"\ndevices = {devices}\nbackend = \"{backend}\"\n{transport}"
        )
    };
    let (nccl, copies) = (
        "dp_transport = \"nccl\"\n",
        "dp_transport = \"peer-copy\"\n",
    );
    for (devices, differs) in [(1, false), (2, true)] {
        let id = |transport| id(&dp(devices, "cuda", transport), Backend::Cuda);
        let usual = id("");
        assert_eq!(id(copies), usual);
        // One device replicates nothing.
        assert_eq!(id(nccl) != usual, differs);
    }
    let both = "[sweep]\n\"parallel.dp_transport\" = [\"peer-copy\", \"nccl\"]\n";
    let swept = plan(&(dp(2, "cuda", "") + both), Backend::Cuda);
    let labels: Vec<_> = swept.trials.iter().map(|trial| &*trial.label).collect();
    assert_eq!(labels, ["dp ×2 peer-copy", "dp ×2 nccl"]);
    let said: Vec<_> = swept
        .trials
        .iter()
        .map(|trial| &*trial.settings["parallel.dp_transport"])
        .collect();
    assert_eq!(said, ["peer-copy", "nccl"]);
    let on_cpus = plan(&(dp(2, "cpu", "") + both), Backend::Cpu);
    assert_eq!(reasons(&on_cpus), ["NCCL is for GPUs"]);
    assert_eq!(
        on_cpus.left_out[0].instead,
        "write dp_transport = \"peer-copy\", or backend = \"cuda\""
    );
    let settings = &on_cpus.trials[0].settings;
    assert!(!settings.contains_key("parallel.dp_transport"));
    let error = planned("train", &dp(2, "cpu", nccl), Backend::Cpu).unwrap_err();
    assert!(error.contains("NCCL is for GPUs"), "{error}");
    // Of other strategies it is an option that nobody uses.
    let ddp = "[parallel]\nstrategy = \"ddp\"\ndevices = 2\ndp_transport = \"nccl\"\n";
    let notes = &plan(ddp, Backend::Cuda).trials[0].notes;
    let expected = "parallel.dp_transport is not used: it belongs to dp, and no trial here is one";
    assert!(notes.iter().any(|note| note == expected), "{notes:?}");
}
