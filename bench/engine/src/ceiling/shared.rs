//! What two cores give each other through memory: the floor under every collective over shared memory.
//!
//! Contract: one thread writes 64 MiB and hands them over, the other copies them into memory of its own: the copy alone is timed, and its
//! bytes count once. What was copied is compared element by element after the last window. The round trip is that of a cache line on
//! which both spin; on one core, where each would wait for the other's time slice, there is none.
//! Reference: Molka et al., *Memory performance and cache coherency effects on an Intel Nehalem multiprocessor*, 2009.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::tcp::per_second;
use super::{Ceiling, CeilingError, MESSAGE_BYTES, Measured, Result, WINDOWS};
use crate::backend::cpu::pin_to_cores;
use crate::probe::now_ns;

/// Round trips of a window.
const ROUND_TRIPS: u64 = 5_000;
/// Looks at the line before the core is offered to others: without it, two threads would stand still where others are at work.
const SPINS: u32 = 1 << 16;

const ELEMENTS: usize = MESSAGE_BYTES / size_of::<f32>();

/// Elements that differ by place and window.
fn element(index: usize, window: usize) -> f32 {
    ((index + window) % 1024) as f32
}

/// Writes what the other thread copies: memory goes to it and comes back, so nobody has it twice.
fn write(windows: &Sender<Vec<f32>>, back: &Receiver<Vec<f32>>) {
    let mut memory = vec![0.0; ELEMENTS];
    for window in 0..=WINDOWS {
        for (index, value) in memory.iter_mut().enumerate() {
            *value = element(index, window);
        }
        // Who no longer listens has failed and says so.
        let Ok(returned) = windows
            .send(memory)
            .map_err(|_| ())
            .and_then(|()| back.recv().map_err(|_| ()))
        else {
            return;
        };
        memory = returned;
    }
}

/// Bytes per second of copying what the other thread wrote.
fn copy(windows: &Receiver<Vec<f32>>, back: &Sender<Vec<f32>>) -> Result<Vec<f64>> {
    let mut own = vec![0.0f32; ELEMENTS];
    let mut figures = Vec::with_capacity(WINDOWS + 1);
    while figures.len() <= WINDOWS {
        let Ok(memory) = windows.recv() else {
            break;
        };
        let begin = now_ns();
        std::hint::black_box(&mut own).copy_from_slice(std::hint::black_box(&memory));
        figures.push(per_second(MESSAGE_BYTES, now_ns() - begin));
        // The writer has ended after the last one.
        let _ = back.send(memory);
    }
    let right = own.iter().enumerate();
    let right = right.filter(|(index, value)| **value == element(*index, WINDOWS));
    match right.count() {
        ELEMENTS => Ok(figures),
        right => Err(CeilingError::Wrong {
            ceiling: Ceiling::SharedCopy,
            found: right as f64,
            expected: ELEMENTS as f64,
        }),
    }
}

/// A word alone on its cache line, and on the neighbour that prefetchers take with it.
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    /// Waits until the word is `value`.
    fn wait_for(&self, value: u64) {
        let mut spins = 0;
        while self.0.load(Ordering::Acquire) != value {
            std::hint::spin_loop();
            spins += 1;
            if spins == SPINS {
                std::thread::yield_now();
                spins = 0;
            }
        }
    }
}

/// Nanoseconds of a word to the other core and one back.
fn round_trips(own: &Line, other: &Line) -> Vec<f64> {
    let window = |window: u64| {
        let first = window * ROUND_TRIPS + 1;
        let begin = now_ns();
        for word in first..first + ROUND_TRIPS {
            own.0.store(word, Ordering::Release);
            other.wait_for(word);
        }
        (now_ns() - begin) as f64 / ROUND_TRIPS as f64
    };
    (0..=WINDOWS as u64).map(window).collect()
}

/// Answers each word with itself.
fn answer(own: &Line, other: &Line) {
    for word in 1..=(WINDOWS as u64 + 1) * ROUND_TRIPS {
        other.wait_for(word);
        own.0.store(word, Ordering::Release);
    }
}

/// Runs two threads, each on its cores; gives what the second one measured. Both are pinned before either begins.
fn between<A: Send, B: Send>(
    cores: [&[usize]; 2],
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> Result<B> {
    let pinned = AtomicU64::new(0);
    let pin = |cores: &[usize]| {
        let done = pin_to_cores(cores);
        // A failure counts too, so that the other does not wait for ever.
        pinned.fetch_add(if done.is_ok() { 1 } else { 100 }, Ordering::AcqRel);
        while pinned.load(Ordering::Acquire) < 2 {
            std::thread::yield_now();
        }
        done.map(|()| pinned.load(Ordering::Acquire) == 2)
    };
    std::thread::scope(|scope| {
        let pin = &pin;
        let named = std::thread::Builder::new().name("ceiling".to_owned());
        let thread = named.spawn_scoped(scope, move || -> Result<Option<B>> {
            Ok(pin(cores[1])?.then(second))
        });
        let thread = thread.map_err(CeilingError::system("start a thread"))?;
        let named = std::thread::Builder::new().name("ceiling".to_owned());
        let other = named.spawn_scoped(scope, move || -> Result<Option<A>> {
            Ok(pin(cores[0])?.then(first))
        });
        let other = match other {
            Ok(other) => other,
            Err(error) => {
                pinned.fetch_add(100, Ordering::AcqRel);
                return Err(CeilingError::system("start a thread")(error));
            }
        };
        other.join().expect("a ceiling's loop does not panic")?;
        let measured = thread.join().expect("a ceiling's loop does not panic")?;
        Ok(measured.expect("both were pinned"))
    })
}

/// Whether the two can run at once.
fn apart(cores: [&[usize]; 2]) -> bool {
    match cores {
        // Wherever the scheduler puts them.
        [[], []] => std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1),
        [a, b] => {
            a.iter()
                .chain(b)
                .any(|core| !(a.contains(core) && b.contains(core)))
                || a.len() > 1
        }
    }
}

/// Bandwidth of copying 64 MiB that the other core has written, and the round trip of a cache line where the two have cores of
/// their own.
///
/// # Errors
/// When a thread cannot be pinned or started.
pub fn shared(cores: [&[usize]; 2]) -> Result<Vec<Measured>> {
    let (windows, copied) = (channel(), channel());
    let ((to_copy, written), (to_write, returned)) = (windows, copied);
    let copies = between(
        cores,
        move || write(&to_copy, &returned),
        move || copy(&written, &to_write),
    )??;
    let mut ceilings = vec![Measured::between(Ceiling::SharedCopy, copies)];
    if apart(cores) {
        let lines = [Line(AtomicU64::new(0)), Line(AtomicU64::new(0))];
        let trips = between(
            cores,
            || answer(&lines[0], &lines[1]),
            || round_trips(&lines[1], &lines[0]),
        )?;
        ceilings.push(Measured::between(Ceiling::SharedRoundTrip, trips));
    }
    Ok(ceilings)
}
