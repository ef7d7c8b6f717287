//! Made-up /proc texts, and this very process.
use super::*;
use crate::environment::tests::root;

const TICK: u64 = 10_000_000;

/// A look at core 0 and its hyper-thread 4, with two threads of ours on core 0 and one that may run anywhere.
fn look(at_ms: u64, stat: &str, cpu_ms: [u64; 3], conductor_ms: u64) -> Look {
    let pinned = [vec![0], vec![0], vec![0, 1, 4]];
    let threads = pinned
        .into_iter()
        .zip(cpu_ms)
        .enumerate()
        .map(|(id, (cores, ms))| {
            let times = ThreadTimes {
                cores,
                cpu_ns: ms * 1_000_000,
                voluntary_switches: ms,
                involuntary_switches: ms / 10,
            };
            (id as u32, times)
        });
    Look {
        at_ns: at_ms * 1_000_000,
        cores: core_times(stat, TICK),
        threads: threads.collect(),
        conductor_ns: conductor_ms * 1_000_000,
        pressure_ns: Some(at_ms),
    }
}

fn group() -> Group {
    Group {
        device: 0,
        own: vec![0],
        siblings: vec![4],
    }
}

#[test]
fn busy_is_what_neither_idled_nor_served_interrupts_nor_was_stolen() {
    let before = look(
        1000,
        "cpu  9 9 9\ncpu0 10 0 10 100 5 1 1 2 0 0\ncpu4 0 0 0 500 0 0 0 0 0 0\n",
        [100, 50, 10],
        7,
    );
    // One second later: 20 ticks idle, 5 waiting for input, 3 of interrupts, 2 stolen; the hyper-thread idled 90 of 100.
    let after = look(
        2000,
        "cpu0 90 0 10 120 10 2 3 4 0 0\ncpu4 9 0 0 590 0 0 0 0 0 0\nintr 1\n",
        [600, 130, 40],
        17,
    );
    let event = used(&group(), &[vec![0], vec![1]], &before, &after).unwrap();
    let expected = Event::Cores {
        device: 0,
        cores: 1,
        elapsed_ns: 1_000_000_000,
        busy_ns: 700_000_000 + 100_000_000,
        pinned_ns: 500_000_000 + 80_000_000 + (500 + 50 + 80 + 8) * SWITCH_NS,
        elsewhere_ns: 30_000_000 + 10_000_000,
        stolen_ns: 20_000_000,
        involuntary_switches: 50 + 8,
        pressure_ns: Some(1000),
    };
    assert_eq!(event, expected);
}

#[test]
fn a_core_that_vanished_between_the_looks_is_not_watched() {
    let before = look(1, "cpu0 1 1 1 1 1 1 1 1\n", [0; 3], 0);
    assert_eq!(used(&group(), &[], &before, &before), None);
}

#[test]
fn texts_of_proc_are_read_as_the_kernel_writes_them() {
    let name = "42 (a) b (c)) R 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0 9";
    assert_eq!(ticks_of(name), Some(300));
    let pressure = "some avg10=0.00 avg60=0.00 avg300=0.00 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0";
    assert_eq!(pressure_ns(pressure), Some(123_000));
    let status = "Name:\tx\nCpus_allowed_list:\t2-3\nvoluntary_ctxt_switches:\t9\nnonvoluntary_ctxt_switches:\t4\n";
    let thread = thread_times(status, 5).unwrap();
    assert_eq!(thread.cores, [2, 3]);
    let switches = [thread.voluntary_switches, thread.involuntary_switches];
    assert_eq!(switches, [9, 4]);
    // Kernels before 2.6.11 know no stolen time.
    let old = core_times("cpu1 1 2 3 4 5 6 7", TICK);
    assert_eq!(
        old[&1],
        CoreTimes {
            away_ns: 22 * TICK,
            stolen_ns: 0
        }
    );
}

#[test]
fn a_core_is_watched_with_its_hyper_thread_unless_that_is_a_device_of_its_own() {
    let (_folder, root) = root(&[
        (
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
            "0,4\n",
        ),
        (
            "sys/devices/system/cpu/cpu4/topology/thread_siblings_list",
            "0,4\n",
        ),
    ]);
    let own = |device, own: &[u32], siblings: &[u32]| Group {
        device,
        own: own.to_vec(),
        siblings: siblings.to_vec(),
    };
    let (apart, together) = ([vec![0], vec![1]], [vec![0], vec![4]]);
    assert_eq!(
        groups(&root, &apart, 0..2, 0),
        [own(0, &[0], &[4]), own(1, &[1], &[])]
    );
    assert_eq!(groups(&root, &together, 1..2, 1), [own(1, &[4], &[])]);
    let shared = [vec![0], vec![1], vec![0]];
    assert_eq!(
        groups(&root, &shared, 2..3, 0),
        [],
        "the first thread rank on a core watches it"
    );
    assert_eq!(groups(&root, &shared, 2..3, 2), [own(2, &[0], &[4])]);
}

/// Spins for a while on the calling thread and gives the time that it took.
fn spin(milliseconds: u64) -> u64 {
    let begin = now_ns();
    while now_ns() - begin < milliseconds * 1_000_000 {
        std::hint::spin_loop();
    }
    now_ns() - begin
}

#[cfg(target_os = "linux")]
#[test]
fn what_this_process_computes_on_a_core_is_its_own_however_noisy_the_machine() {
    let core = crate::run::cores::usable().unwrap()[0];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            syncmark_engine::backend::cpu::pin_to_cores(&[core]).unwrap();
            let witness = Witness {
                root: Root::machine(),
                tick_ns: TICK,
                conductor: std::process::id(),
                groups: vec![Group {
                    device: 0,
                    own: vec![core as u32],
                    siblings: Vec::new(),
                }],
                devices: vec![vec![core as u32]],
                gpus: Watch::default(),
            };
            let before = witness.look();
            let begin = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            spin(400);
            let end = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let events = witness.between(&before, &witness.look());
            let [
                Event::Cores {
                    pinned_ns,
                    busy_ns,
                    stolen_ns,
                    elapsed_ns,
                    ..
                },
            ] = events[..]
            else {
                panic!("{events:?}");
            };
            let ns = |time: rustix::time::Timespec| time.tv_sec * 1_000_000_000 + time.tv_nsec;
            let spent = (ns(end) - ns(begin)) as u64;
            // The kernel brings a running thread's time up to date at every timer interrupt: 100 Hz at the least.
            let slack = 2 * TICK + spent / 10;
            assert!(pinned_ns.abs_diff(spent) <= slack, "{pinned_ns} of {spent}");
            // The core did at least what this thread did; each of five counters is cut to whole ticks. Some kernels count
            // stolen time as the thread's.
            assert!(
                busy_ns + stolen_ns + 5 * TICK >= spent && busy_ns <= elapsed_ns,
                "{busy_ns} of {spent}"
            );
        });
    });
}
