//! Threads that do the same at the same time, each on its cores.
//!
//! Contract: a window begins at a barrier and lasts from the first thread's begin to the last one's end, so that what the threads
//! take from each other is in it. A thread that cannot begin stops all of them before the first window.
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use super::{CeilingError, Result};
use crate::backend::cpu::pin_to_cores;
use crate::probe::now_ns;

/// What a thread does in each window.
pub(super) trait Work {
    /// Does it once; gives how much it was.
    fn window(&mut self) -> f64;
    /// Compares the results with what they must be, after the last window.
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self) -> Result<()>;
}

/// How many windows, and of how many parts of a work that takes some ten milliseconds. One thread alone has many that are shorter
/// than a time slice, so that most of them are whole where the core has other users; several have long ones, beside which it is little
/// that they do not begin at the same moment.
pub(super) fn windows(threads: usize) -> (usize, u64) {
    match threads {
        1 => (48, 16),
        _ => (10, 4),
    }
}

/// Amounts per second of each window, of all threads together. A thread without cores stays where its parent is.
///
/// # Errors
/// The first failure of a thread.
pub(super) fn together<W: Work>(
    cores: &[Vec<usize>],
    windows: usize,
    prepare: impl Fn() -> Result<W> + Sync,
) -> Result<Vec<f64>> {
    let barrier = Barrier::new(cores.len());
    let failed = AtomicBool::new(false);
    let thread = |cores: &[usize]| -> Result<Vec<(u64, u64, f64)>> {
        let prepared = pin_to_cores(cores)
            .map_err(CeilingError::from)
            .and_then(|()| prepare());
        failed.fetch_or(prepared.is_err(), Ordering::SeqCst);
        barrier.wait();
        let mut work = prepared?;
        if failed.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let measured = (0..=windows).map(|_| {
            barrier.wait();
            let begin = now_ns();
            let amount = work.window();
            (begin, now_ns(), amount)
        });
        let measured = measured.collect();
        work.check()?;
        Ok(measured)
    };
    let measured: Vec<Vec<(u64, u64, f64)>> = std::thread::scope(|scope| {
        let (mut starts, mut threads) = (Vec::new(), Vec::new());
        for cores in cores {
            // Nobody waits at a barrier for a thread that could not be started: without a start signal they end.
            let (start, started) = channel();
            let thread = &thread;
            let named = std::thread::Builder::new().name("ceiling".to_owned());
            let spawned = named.spawn_scoped(scope, move || match started.recv() {
                Ok(()) => thread(cores),
                Err(_) => Ok(Vec::new()),
            });
            starts.push(start);
            threads.push(spawned.map_err(CeilingError::system("start a thread"))?);
        }
        // Every thread has its receiver until it has received.
        for start in starts {
            let _ = start.send(());
        }
        let ended = threads.into_iter().map(|thread| thread.join());
        ended
            .map(|ended| ended.expect("a ceiling's loop does not panic"))
            .collect::<Result<_>>()
    })?;
    // The first one warmed up.
    Ok((1..=windows)
        .map(|window| rate(measured.iter().map(|thread| thread[window])))
        .collect())
}

/// Amount per second of one window over all threads.
fn rate(threads: impl Iterator<Item = (u64, u64, f64)>) -> f64 {
    let (mut first, mut last, mut amount) = (u64::MAX, 0, 0.0);
    for (begin, end, own) in threads {
        (first, last) = (first.min(begin), last.max(end));
        amount += own;
    }
    amount / (last.saturating_sub(first).max(1) as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lasts_from_the_first_begin_to_the_last_end() {
        let threads = [(1_000, 2_000, 3.0), (1_500, 3_000, 1.0)];
        assert_eq!(rate(threads.into_iter()), 4.0 / 2e-6);
    }

    #[test]
    fn a_thread_that_cannot_begin_stops_all() {
        struct Never;
        impl Work for Never {
            fn window(&mut self) -> f64 {
                unreachable!("nobody begins")
            }
            fn check(&self) -> Result<()> {
                Ok(())
            }
        }
        let ends = together(&[vec![], vec![usize::MAX]], 1, || Ok(Never));
        assert!(matches!(ends, Err(CeilingError::Device(_))), "{ends:?}");
    }
}
