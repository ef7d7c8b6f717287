//! Bandwidth of memory: one stream that is read, and one that is read beside one that is written.
//!
//! Contract: a thread's working set is at least 4 times the last-level cache, and it goes over it part by part, again and again, so it finds
//! nothing of the time before. Bytes are
//! those that the loop asks for. An ordinary store first fetches the line that it writes to, which is traffic but is not
//! counted: the same holds for the kernels that are held against this. The pages are those of the kernels' memory, huge where the
//! system has such: a ceiling that missed the TLB where they don't would be none. All elements are compared after the last window.
use std::hint::black_box;
use std::ops::Range;

use super::together::{Work, together, windows};
use super::{Ceiling, CeilingError, Measured, Result, Spread};
use crate::backend::BackendError;
use crate::backend::cpu::ceiling::{read, read_write};
use crate::backend::cpu::instructions;
use crate::backend::cpu::memory::Owned;

/// Working set where the size of the last-level cache is not known.
pub const UNKNOWN_CACHE_BYTES: u64 = 256 << 20;

const ELEMENT: u64 = size_of::<f32>() as u64;
/// What is read, and what becomes of it.
const VALUE: f32 = 1.0;
const FACTOR: f32 = 0.5;
const SUMMAND: f32 = 0.25;

/// Bytes that a thread goes over: 4 times the last-level cache, or [`UNKNOWN_CACHE_BYTES`].
pub fn working_set(last_level_cache_bytes: Option<u64>) -> u64 {
    let four_times = last_level_cache_bytes.map(|bytes| bytes.saturating_mul(4));
    four_times.unwrap_or(UNKNOWN_CACHE_BYTES)
}

/// So many elements of one value, in such memory as devices compute in: in pages as large as theirs.
fn filled(elements: u64, value: f32) -> Result<Owned> {
    let memory = usize::try_from(elements).map(|elements| Owned::filled(elements, value));
    memory.ok().flatten().ok_or(CeilingError::Memory {
        bytes: elements * ELEMENT,
    })
}

/// Where in its memory a thread goes on: each window takes the next part, and the first one again after the last.
struct Place {
    parts: usize,
    next: usize,
}

impl Place {
    fn new(parts: u64) -> Self {
        let parts = parts as usize;
        Self { parts, next: 0 }
    }

    /// The part of `len` elements whose turn it is.
    fn take(&mut self, len: usize) -> Range<usize> {
        let at = |part: usize| len * part / self.parts;
        let range = at(self.next)..at(self.next + 1);
        self.next = (self.next + 1) % self.parts;
        range
    }
}

struct Reading {
    x: Owned,
    place: Place,
    total: f64,
    /// What the total should be.
    expected: f64,
}

impl Work for Reading {
    fn window(&mut self) -> f64 {
        let x = self.x.elements();
        let part = &x[self.place.take(x.len())];
        let mut total = 0.0;
        read(black_box(part), &mut total);
        self.total += total;
        self.expected += part.len() as f64 * f64::from(VALUE);
        (part.len() as u64 * ELEMENT) as f64
    }

    fn check(&self) -> Result<()> {
        same(Ceiling::MemoryRead, self.total, self.expected)
    }
}

struct Streaming {
    x: Owned,
    y: Owned,
    place: Place,
}

impl Work for Streaming {
    fn window(&mut self) -> f64 {
        let (factor, summand) = (black_box(FACTOR), black_box(SUMMAND));
        let part = self.place.take(self.x.elements().len());
        let x = &self.x.elements()[part.clone()];
        let y = &mut self.y.elements_mut()[part.clone()];
        read_write(black_box(x), black_box(y), factor, summand);
        (2 * part.len() as u64 * ELEMENT) as f64
    }

    fn check(&self) -> Result<()> {
        let expected = VALUE * FACTOR + SUMMAND;
        let wrong = self.y.elements().iter().find(|value| **value != expected);
        same(
            Ceiling::MemoryReadWrite,
            f64::from(*wrong.unwrap_or(&expected)),
            f64::from(expected),
        )
    }
}

fn same(ceiling: Ceiling, found: f64, expected: f64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(CeilingError::Wrong {
        ceiling,
        found,
        expected,
    })
}

/// Bytes per second of reading, and of reading and writing, of as many threads as there are lists of cores, all at once. Each has a
/// working set of its own.
///
/// # Errors
/// When a thread cannot be pinned or there is no memory for its working set, and for instructions that cannot be had.
pub fn memory(cores: &[Vec<usize>], working_set_bytes: u64) -> Result<[Measured; 2]> {
    let instructions = instructions::from_environment().map_err(BackendError::Instructions)?;
    let elements = working_set_bytes.div_ceil(ELEMENT);
    let (windows, parts) = windows(cores.len());
    let reading = together(cores, windows, || {
        Ok(Reading {
            x: filled(elements, VALUE)?,
            place: Place::new(parts),
            total: 0.0,
            expected: 0.0,
        })
    })?;
    let streaming = together(cores, windows, || {
        let half = elements.div_ceil(2);
        Ok(Streaming {
            x: filled(half, VALUE)?,
            y: filled(half, 0.0)?,
            place: Place::new(parts),
        })
    })?;
    let measured = |ceiling, rates| Measured {
        ceiling,
        threads: cores.len(),
        instructions: Some(instructions),
        working_set_bytes: Some(elements * ELEMENT),
        spread: Spread::of(rates, false),
    };
    Ok([
        measured(Ceiling::MemoryRead, reading),
        measured(Ceiling::MemoryReadWrite, streaming),
    ])
}
