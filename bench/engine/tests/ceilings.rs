//! Ceilings of this machine: they can be measured with every set of instructions, and what they say can be.
//!
//! Nothing here says how fast a machine must be; what cannot be on any is refused.
mod instructions;

use syncmark_engine::backend::cpu::instructions::Instructions;
use syncmark_engine::ceiling::{
    self, Ceiling, CeilingError, Measured, UNKNOWN_CACHE_BYTES, WINDOWS, working_set,
};

fn ordered(measured: &Measured) {
    let spread = measured.spread;
    let [low, high] = spread.quartiles;
    assert!(spread.windows >= WINDOWS, "{measured:?}");
    assert!(
        low > 0.0 && low <= spread.median && spread.median <= high,
        "{measured:?}"
    );
    match measured.ceiling.is_time() {
        true => assert!(spread.best <= low, "{measured:?}"),
        false => assert!(spread.best >= high, "{measured:?}"),
    }
}

#[test]
fn arithmetic_has_a_peak_of_plausible_size() {
    let peak = ceiling::arithmetic(&[vec![]]).expect("arithmetic");
    ordered(&peak);
    // No core does less than an operation a microsecond, none does more than 128 at 10 GHz.
    let rate = peak.spread.median;
    assert!((1e6..1.28e12).contains(&rate), "{peak:?}");
    assert_eq!((peak.threads, peak.ceiling), (1, Ceiling::MultiplyAdd));
    assert!(peak.instructions.is_some_and(Instructions::available));
}

#[test]
fn memory_is_streamed_by_one_thread_and_by_two() {
    for cores in [vec![vec![]], vec![vec![]; 2]] {
        let found = ceiling::memory(&cores, 1 << 20).expect("memory");
        for measured in &found {
            ordered(measured);
            assert_eq!(
                (measured.threads, measured.working_set_bytes),
                (cores.len(), Some(1 << 20))
            );
        }
    }
}

#[test]
fn a_working_set_is_four_caches_or_says_that_none_is_known() {
    assert_eq!(working_set(Some(32 << 20)), 128 << 20);
    assert_eq!(working_set(None), UNKNOWN_CACHE_BYTES);
    assert_eq!(working_set(Some(u64::MAX)), u64::MAX);
}

#[test]
fn memory_that_cannot_be_had_is_an_error() {
    let error = ceiling::memory(&[vec![]], u64::MAX / 2).expect_err("no machine has that");
    assert!(matches!(error, CeilingError::Memory { .. }), "{error}");
}

#[test]
fn a_core_that_is_none_is_an_error_everywhere() {
    let none = [usize::MAX];
    assert!(ceiling::arithmetic(&[none.to_vec()]).is_err());
    assert!(ceiling::tcp([&[], &none]).is_err());
    assert!(ceiling::shared([&none, &[]]).is_err());
}

#[test]
fn two_threads_exchange_over_tcp_and_through_memory() {
    let tcp = ceiling::tcp([&[], &[]]).expect("this host connects to itself");
    let shared = ceiling::shared([&[], &[]]).expect("two threads");
    tcp.iter().chain(&shared).for_each(ordered);
    assert_eq!(shared[0].ceiling, Ceiling::SharedCopy);
}

#[test]
fn a_core_that_both_share_has_no_round_trip_of_a_cache_line() {
    let set = rustix::thread::sched_getaffinity(None).expect("an affinity mask");
    let core = (0..rustix::thread::CpuSet::MAX_CPU)
        .find(|core| set.is_set(*core))
        .expect("a core");
    let shared = ceiling::shared([&[core], &[core]]).expect("one core");
    let ceilings: Vec<Ceiling> = shared.iter().map(|found| found.ceiling).collect();
    assert_eq!(ceilings, [Ceiling::SharedCopy]);
}

#[test]
fn the_other_instructions_reach_their_own_ceilings() {
    instructions::run_again_without("the_other_instructions");
}
