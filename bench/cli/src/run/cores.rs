//! Which core each device gets.
//!
//! Contract: cores come from the affinity mask of the process, so taskset(1), cgroups and batch systems are respected.
//! A device has a core for each of its compute threads, and no more, whatever else is idle, so that one device of `single` and one
//! device of eight are the same hardware. Devices take the cores in turn, and begin again where there are too few; those on GPUs get cores near them ([`super::binding`]). The conductor itself is pinned nowhere: it sleeps while a job runs.

use crate::plan::config::TrialConfig;

/// Cores that this process may run on, in ascending order.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn usable() -> std::io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect())
}

/// Which of `wanted` a thread of this process may really be pinned to: a batch system can narrow the mask of a process with
/// or without forbidding it the other cores.
///
/// # Errors
/// What sched_getaffinity(2) says, or that no thread can be started.
pub fn reachable(wanted: &[usize]) -> std::io::Result<Vec<usize>> {
    let mut set = rustix::thread::CpuSet::new();
    wanted.iter().for_each(|&core| set.set(core));
    let attempt = std::thread::Builder::new()
        .name("cores".into())
        .spawn(move || {
            // A mask that the system refuses as a whole leaves the old one, which is what the next line reads.
            let _ = rustix::thread::sched_setaffinity(None, &set);
            usable()
        })?;
    attempt
        .join()
        .map_err(|_| std::io::Error::other("a thread panicked"))?
}

/// Cores of each of `devices` devices of `threads` compute threads.
pub fn assign(devices: usize, threads: usize, usable: &[usize]) -> Vec<Vec<usize>> {
    let core = |device: usize, thread: usize| usable[(device * threads + thread) % usable.len()];
    (0..devices)
        .map(|device| {
            let mut cores: Vec<usize> = (0..threads).map(|thread| core(device, thread)).collect();
            cores.dedup();
            cores
        })
        .collect()
}

/// Whether some cores serve more than one compute thread.
pub fn oversubscribed(trial: &TrialConfig, cores: usize) -> bool {
    trial.devices.saturating_mul(trial.threads) > cores
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_take_the_cores_of_the_mask_in_turn() {
        assert_eq!(assign(3, 1, &[4, 6]), [[4], [6], [4]]);
        assert_eq!(assign(2, 2, &[4, 6, 7, 9]), [[4, 6], [7, 9]]);
        assert_eq!(assign(2, 2, &[4, 6, 7]), [[4, 6], [7, 4]]);
        assert_eq!(assign(1, 2, &[4]), [[4]]);
    }

    #[test]
    fn this_process_may_run_somewhere() {
        let usable = usable().unwrap();
        assert!(!usable.is_empty());
        assert_eq!(reachable(&usable[..1]).unwrap(), usable[..1]);
        assert_eq!(
            super::usable().unwrap(),
            usable,
            "only a scratch thread was pinned"
        );
    }
}
