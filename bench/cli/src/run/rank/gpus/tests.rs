//! The sampler's thread, driven with GPUs that are made up.
use super::source::{Counters, Process, Sample};
use super::*;
use crate::environment::tests::root;
use crate::run::spool::{GpuState, GpuTraffic};

/// A GPU whose clock falls for good after so many samples.
struct Fake {
    samples: u32,
    falls_after: u32,
    others: Vec<u32>,
    moved: u64,
}

impl Source for Fake {
    fn gpus(&self) -> usize {
        1
    }
    fn sample(&mut self, _: usize) -> Sample {
        self.samples += 1;
        let fallen = self.samples > self.falls_after;
        Sample {
            sm_mhz: Some(if fallen { 990 } else { 1980 }),
            ..Sample::default()
        }
    }
    fn processes(&mut self, _: usize) -> Option<Vec<Process>> {
        let pids = std::iter::once(1000).chain(self.others.iter().copied());
        Some(
            pids.map(|pid| Process {
                pid,
                memory_bytes: Some(5),
            })
            .collect(),
        )
    }
    fn counters(&mut self, _: usize) -> Counters {
        self.moved += 4096;
        Counters {
            nvlink_bytes: [Some(self.moved), None],
            ..Counters::default()
        }
    }
}

fn watch(mut fake: Fake) -> (tempfile::TempDir, Watch) {
    let (folder, root) = root(&[("proc/1000/stat", "1000 (rank) S 999 1 1 0\n")]);
    let kin = Kin::new(root, 1000, false, vec![1]);
    let sampler = Sampler::start(move |commands, replies| {
        serve(&mut fake, &[3], &kin, commands, replies);
    });
    let watch = Watch {
        places: vec![Event::Warmup { steps: 1 }],
        sampler,
    };
    (folder, watch)
}

fn fake() -> Fake {
    Fake {
        samples: 0,
        falls_after: u32::MAX,
        others: Vec::new(),
        moved: 0,
    }
}

/// State and traffic of a pass of some time.
fn passed(watch: &mut Watch, pass: u8, time: Duration) -> (GpuState, GpuTraffic) {
    watch.begin(pass);
    std::thread::sleep(time);
    match watch.end()[..] {
        [
            Event::Warmup { .. },
            Event::GpuState(state),
            Event::GpuTraffic(traffic),
        ] => (state, traffic),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn a_pass_is_sampled_from_its_beginning_to_its_end() {
    let (_folder, mut watch) = watch(Fake {
        falls_after: 4,
        ..fake()
    });
    let (state, traffic) = passed(&mut watch, 1, Duration::from_millis(1050));
    assert_eq!((state.pass, state.device), (1, 3));
    assert!(state.watched_ns >= 1_000_000_000, "{state:?}");
    assert!(state.samples >= 6, "{state:?}");
    assert_eq!(state.sm_mhz[1], 990);
    assert!(state.spread.unwrap() > 0.3, "{state:?}");
    assert_eq!(state.foreign, Some(0));
    assert_eq!(traffic.nvlink_bytes, [Some(4096), None]);
    // The next pass knows nothing of this one.
    let (state, traffic) = passed(&mut watch, 0, Duration::from_millis(50));
    assert_eq!((state.pass, state.spread), (0, None));
    assert_eq!(traffic.nvlink_bytes, [Some(4096), None]);
}

#[test]
fn others_are_seen_however_short_the_pass() {
    let (_folder, mut watch) = watch(Fake {
        others: vec![77],
        ..fake()
    });
    let (state, _) = passed(&mut watch, 0, Duration::ZERO);
    assert_eq!((state.foreign, state.foreign_bytes), (Some(1), Some(5)));
}

#[test]
fn without_nvml_only_the_places_are_told() {
    let mut watch = Watch {
        places: vec![Event::Warmup { steps: 1 }],
        sampler: Sampler::start(|_, _| {}),
    };
    for _ in 0..2 {
        watch.begin(0);
        assert_eq!(watch.end(), [Event::Warmup { steps: 1 }]);
    }
}

#[test]
fn the_thread_ends_with_its_watch_even_within_a_pass() {
    let (done, ended) = channel();
    let (_folder, root) = root(&[]);
    let kin = Kin::new(root, 1000, false, vec![1]);
    let sampler = Sampler::start(move |commands, replies| {
        serve(&mut fake(), &[0], &kin, commands, replies);
        done.send(()).unwrap();
    });
    let mut watch = Watch {
        places: Vec::new(),
        sampler,
    };
    watch.begin(0);
    drop(watch);
    ended
        .try_recv()
        .expect("the thread has ended before the watch was gone");
}

/// Prints what NVML tells, so that a run on hardware shows which columns it fills.
#[test]
fn nvml_tells_of_every_gpu_that_cuda_gives() {
    let places = binding::places();
    let nvml = gpus::nvml();
    let nvml = match (places, &nvml) {
        ([_, ..], Ok(nvml)) => nvml,
        (_, lack) => {
            let why = lack.as_ref().err().map_or("CUDA gives no GPU", |why| why);
            assert!(
                std::env::var_os("SYNCMARK_REQUIRE_GPU").is_none_or(|value| value != "1"),
                "a GPU is required: {why}"
            );
            eprintln!("skipped: {why}");
            return;
        }
    };
    let mut source = NvmlSource::new(nvml, places);
    for (gpu, place) in places.iter().enumerate() {
        let near = binding::locality(&Root::machine(), &place.to_string());
        let sample = source.sample(gpu);
        eprintln!(
            "{place}: {near:?}\n{sample:?}\n{:?}\n{:?}",
            source.processes(gpu),
            source.counters(gpu)
        );
        assert!(sample.sm_mhz.is_some_and(|mhz| mhz > 0), "{sample:?}");
        assert!(sample.reasons.is_some() && sample.milliwatts.is_some());
    }
}
