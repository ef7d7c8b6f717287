//! Each judgement of the doctor, on made-up machines.
//!
//! Contract: the quiet machine below has nothing but `ok`, apart from GPUs; each test spoils one
//! fact. Reference: [`super`].
mod gpus;

use super::space::bytes;
use super::*;
use crate::environment::cores::Turbo;
use crate::environment::{Root, describe};
use syncmark_engine::backend::cuda::discovery::Lack;
use syncmark_record::environment::gpu::Cuda;
use syncmark_record::environment::machine::{Cache, NumaNode};

/// Eight cores, tuned, idle, on bare metal.
fn quiet() -> Facts {
    let mut environment = describe(&Root::at("/nonexistent"), []);
    environment.cpu_model = "Example CPU".into();
    environment.logical_cores = 8;
    environment.affinity = (0..8).collect();
    environment.memory_bytes = 64 << 30;
    environment.simd_features = ["avx2", "fma", "avx512f"].map(String::from).to_vec();
    environment.kernel_instructions = Some("avx512".into());
    environment.load_average = Some([0.1, 0.1, 0.1]);
    Facts {
        environment,
        physical_cores: 8,
        governors: vec!["performance".into(); 8],
        turbo: Turbo::Off,
        is_virtual: false,
        steal: Some(0.0),
        memory_available_bytes: Some(60 << 30),
        memfd: Ok(()),
        tcp: Ok(true),
        shm_free_bytes: Some(32 << 30),
        tmp: "/tmp".into(),
        tmp_free_bytes: Some(100 << 30),
        out: "reports".into(),
        out_free_bytes: Ok(100 << 30),
        nvidia_driver: false,
        cuda: Cuda::default(),
        gpus: Err(vec![Lack::Gpu {
            reason: "the driver gives this process none".into(),
        }]),
        pdf: true,
    }
}

/// The finding about `subject` on the quiet machine after `spoil`.
fn found(subject: &str, spoil: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = quiet();
    spoil(&mut facts);
    examine(&facts)
        .into_iter()
        .find(|finding| finding.subject == subject)
        .expect("a subject of the table")
}

#[test]
fn a_quiet_machine_lacks_only_gpus() {
    let findings = examine(&quiet());
    let others: Vec<_> = findings
        .iter()
        .filter(|finding| finding.level != Level::Ok)
        .collect();
    assert_eq!(
        others
            .iter()
            .map(|finding| finding.subject)
            .collect::<Vec<_>>(),
        ["CUDA backend"]
    );
    assert!(
        others
            .iter()
            .all(|finding| finding.level == Level::No && finding.found.contains("missing: a GPU"))
    );
}

#[test]
fn devices_are_counted_by_cores_limits_and_siblings() {
    let devices = |spoil: fn(&mut Facts)| found("CPU devices", spoil);
    assert!(devices(|_| {}).meaning.contains("up to 8 devices"));

    let one = devices(|facts| facts.environment.affinity = vec![3]);
    assert_eq!(one.level, Level::Warning);
    assert!(one.meaning.contains("oversubscribed"), "{one:?}");

    let limited = devices(|facts| facts.environment.cpu_limit_cores = Some(2.5));
    assert_eq!(limited.level, Level::Warning);
    assert!(
        limited.meaning.contains("up to 2 devices") && limited.found.contains("2.50 cores"),
        "{limited:?}"
    );

    let threads = devices(|facts| facts.physical_cores = 4);
    assert_eq!(threads.level, Level::Warning);
    assert!(
        threads
            .meaning
            .contains("more than 4 of them share physical cores"),
        "{threads:?}"
    );
}

#[test]
fn the_vector_path_is_named() {
    let simd = |features: &[&str], kernels: Option<&str>| {
        let features = features.iter().map(|name| name.to_string()).collect();
        found("SIMD", |facts| {
            facts.environment.simd_features = features;
            facts.environment.kernel_instructions = kernels.map(String::from);
        })
    };
    let widest = simd(&["avx2", "fma", "avx512f"], Some("avx512"));
    assert!(widest.meaning.contains("AVX-512"));
    let asked_for = simd(&["avx2", "fma", "avx512f"], Some("avx2"));
    assert!(asked_for.meaning.contains("AVX2"));
    let arm = simd(&["neon"], Some("portable"));
    assert_eq!((arm.level, arm.meaning.contains("NEON")), (Level::Ok, true));
    assert_eq!(simd(&["avx2"], Some("portable")).level, Level::Warning);
    assert_eq!(simd(&[], Some("portable")).level, Level::Warning);
    let impossible = simd(&["avx2", "fma"], None);
    assert_eq!(
        (impossible.level, impossible.needed_by_all),
        (Level::No, true)
    );
}

#[test]
fn without_memory_files_process_ranks_do_not_run_and_threads_do() {
    let finding = found("shared memory", |facts| {
        facts.memfd = Err("Operation not permitted".into())
    });
    assert_eq!((finding.level, finding.needed_by_all), (Level::No, false));
    assert!(
        finding.found.contains("Operation not permitted") && finding.meaning.contains("threads"),
        "{finding:?}"
    );
}

#[test]
fn without_connections_tcp_does_not_run_and_without_counters_it_measures_nothing() {
    let none = found("TCP", |facts| {
        facts.tcp = Err("Operation not permitted".into())
    });
    assert_eq!((none.level, none.needed_by_all), (Level::No, false));
    assert!(
        none.found.contains("Operation not permitted") && none.meaning.contains("shared"),
        "{none:?}"
    );
    let old = found("TCP", |facts| facts.tcp = Ok(false));
    assert_eq!(old.level, Level::Warning);
    assert!(old.meaning.contains("4.19"), "{old:?}");
}

#[test]
fn memory_counts_what_the_control_group_leaves() {
    assert_eq!(found("memory", |_| {}).level, Level::Ok);
    assert_eq!(
        found("memory", |facts| facts.memory_available_bytes =
            Some(1 << 30))
        .level,
        Level::Warning
    );
    let limited = found("memory", |facts| {
        facts.environment.memory_limit_bytes = Some(1 << 30)
    });
    assert_eq!(limited.level, Level::Warning);
    assert!(limited.found.contains("1.0 GiB"), "{limited:?}");
}

#[test]
fn folders_without_space_are_warned_about_and_an_unwritable_output_stops_runs() {
    assert_eq!(
        found("temporary files", |facts| facts.tmp_free_bytes =
            Some(1 << 20))
        .level,
        Level::Warning
    );
    assert_eq!(
        found("temporary files", |facts| facts.tmp_free_bytes = None).level,
        Level::Warning
    );
    assert_eq!(
        found("output folder", |facts| facts.out_free_bytes = Ok(1 << 20)).level,
        Level::Warning
    );
    let denied = found("output folder", |facts| {
        facts.out_free_bytes = Err("Permission denied".into())
    });
    assert_eq!((denied.level, denied.needed_by_all), (Level::No, true));
    assert!(
        denied.found.contains("reports: Permission denied"),
        "{denied:?}"
    );
}

#[test]
fn a_changing_clock_is_warned_about() {
    let slow = found("frequency governor", |facts| {
        facts.governors[5] = "powersave".into()
    });
    assert_eq!(slow.level, Level::Warning);
    assert!(slow.found.contains("`powersave` on 1 of 8"), "{slow:?}");
    assert_eq!(
        found("frequency governor", |facts| facts.governors.clear()).level,
        Level::Warning
    );
    assert_eq!(
        found("turbo", |facts| facts.turbo = Turbo::On).level,
        Level::Warning
    );
    assert_eq!(
        found("turbo", |facts| facts.turbo = Turbo::Unknown).level,
        Level::Warning
    );
}

#[test]
fn other_work_on_the_machine_is_warned_about() {
    let load = |load| {
        found("other load", move |facts| {
            facts.environment.load_average = load
        })
    };
    assert_eq!(
        load(Some([2.0, 0.0, 0.0])).level,
        Level::Ok,
        "0.25 per core"
    );
    assert_eq!(
        load(Some([4.0, 0.0, 0.0])).level,
        Level::Warning,
        "0.5 per core"
    );
    assert_eq!(load(None).level, Level::Warning);
    assert_eq!(
        found("virtual machine", |facts| facts.is_virtual = true).level,
        Level::Warning
    );
    let stolen = found("virtual machine", |facts| facts.steal = Some(0.05));
    assert_eq!(stolen.level, Level::Warning);
    assert!(stolen.found.contains("5.00 %"), "{stolen:?}");
}

#[test]
fn a_build_without_pdf_says_so() {
    assert_eq!(
        found("PDF reports", |facts| facts.pdf = false).level,
        Level::No
    );
}

#[test]
fn sizes_are_rounded_to_one_decimal() {
    assert_eq!(
        [bytes(512), bytes(1536), bytes(3 << 30)],
        ["512 B", "1.5 KiB", "3.0 GiB"]
    );
}

#[test]
fn hardware_is_shown_and_warned_of_only_where_it_slows() {
    let cache = Cache {
        level: 3,
        kind: "unified".into(),
        size_bytes: 32 << 20,
        shared_by: (0..8).collect(),
    };
    let caches = found("caches", |facts| {
        facts.environment.machine.caches = vec![cache]
    });
    assert_eq!(
        (caches.level, caches.found.as_str()),
        (Level::Ok, "L3 32 MiB for 8 cores")
    );
    let node = |node, cores: std::ops::Range<u32>| NumaNode {
        node,
        cores: cores.collect(),
        memory_bytes: None,
    };
    let two =
        |facts: &mut Facts| facts.environment.machine.numa = vec![node(0, 0..4), node(1, 4..8)];
    assert_eq!(found("memory nodes", two).level, Level::Warning);
    let one = found("memory nodes", |facts| {
        two(facts);
        facts.environment.affinity = vec![0, 1];
    });
    assert_eq!(
        (one.level, one.found.as_str()),
        (Level::Ok, "usable cores on 1 of 2")
    );
    let clock = |name: &'static str| {
        found("clock source", |facts| {
            facts.environment.machine.clock_source = Some(name.into())
        })
        .level
    };
    assert_eq!((clock("tsc"), clock("hpet")), (Level::Ok, Level::Warning));
}
