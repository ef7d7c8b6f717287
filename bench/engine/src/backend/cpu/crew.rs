//! Kernels in parts, one for each thread of a device.
//!
//! Contract: parts write disjoint memory, whole cache lines but at the ends. Where a part's result is a sum that others have parts
//! of (statistics, gradients of parameters), each sums into memory of its own, and the sums are added in the order of the
//! parts. What is too small to be worth handing over runs on the calling thread.
//! Reference: [`crate::kernel::Kernel`].
mod elementwise;
mod products;
mod rows;
mod samples;

use std::cell::UnsafeCell;
use std::ops::Range;

use crate::backend::cpu::launch;
use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::team::Team;
use crate::kernel::Kernel;

/// Elements of a part below which handing it over costs more than it saves: a microsecond against some.
const FEWEST: usize = 8 << 10;
/// Multiply-adds of a product that take as long as an element of another kernel.
const PRODUCTS: usize = 8;
/// Elements of a cache line.
const LINE: usize = 16;

/// Runs kernels on a team, with memory for the sums of parts.
pub(super) struct Crew {
    team: Team,
    /// Of each part; written by its thread during a kernel, read by the caller after it.
    sums: Vec<Sums>,
    smallest_part: usize,
}

/// Sums of one part, on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Sums {
    wide: UnsafeCell<Vec<f64>>,
    narrow: UnsafeCell<Vec<f32>>,
}

// SAFETY: part `i` alone touches sums `i` while a kernel runs, and the caller alone between kernels.
unsafe impl Sync for Sums {}

/// `width` zeros in memory that is kept from kernel to kernel.
///
/// # Safety
/// Nobody else uses the cell.
#[allow(
    clippy::mut_from_ref,
    reason = "exclusive access is the caller's promise"
)]
unsafe fn zeroed<T: Copy + Default>(cell: &UnsafeCell<Vec<T>>, width: usize) -> &mut [T] {
    // SAFETY: the caller's promise.
    let sums = unsafe { &mut *cell.get() };
    sums.clear();
    sums.resize(width, T::default());
    sums
}

impl Crew {
    pub(super) fn new(team: Team, smallest_part: Option<usize>) -> Self {
        let sums = (0..team.size()).map(|_| Sums::default()).collect();
        Self {
            team,
            sums,
            smallest_part: smallest_part.unwrap_or(FEWEST),
        }
    }

    /// Threads, with the caller.
    pub(super) fn parts(&self) -> usize {
        self.team.size()
    }

    /// Part `part` of `len`, in units of `unit` but for the end.
    fn part(&self, part: usize, len: usize, unit: usize) -> Range<usize> {
        let units = len.div_ceil(unit);
        let at = |part: usize| (units * part / self.parts() * unit).min(len);
        at(part)..at(part + 1)
    }

    /// Each thread runs the kernel that `cut` makes of its number and its part of `len`; an empty part runs nothing.
    ///
    /// # Safety
    /// As [`launch::run`], for all parts at once.
    unsafe fn each(
        &self,
        memory: &HostMemory,
        len: usize,
        unit: usize,
        cut: impl Fn(usize, Range<usize>) -> Kernel + Sync,
    ) {
        self.team.run(&|part| {
            let range = self.part(part, len, unit);
            if !range.is_empty() {
                // SAFETY: the caller's promise.
                unsafe { launch::run(memory, &cut(part, range)) }
            }
        });
    }

    /// Each thread sums its part of `len` into `width` zeroed numbers of its own. [`Crew::merge`] is for what comes of it.
    fn sum(&mut self, len: usize, width: usize, part: impl Fn(Range<usize>, &mut [f64]) + Sync) {
        let this = &*self;
        this.team.run(&|index| {
            // SAFETY: this part's own sums.
            let sums = unsafe { zeroed(&this.sums[index].wide, width) };
            part(this.part(index, len, 1), sums);
        });
    }

    /// Merges the sums of all parts into those of the first, in order, and returns these.
    fn merge(&mut self, mut merge: impl FnMut(usize, &mut [f64], &[f64])) -> &[f64] {
        let (first, others) = self.sums.split_first_mut().expect("there is a first part");
        for (index, other) in others.iter_mut().enumerate() {
            merge(index + 1, first.wide.get_mut(), other.wide.get_mut());
        }
        first.wide.get_mut()
    }

    /// Each thread sums its part of `len` into zeroed numbers of its own, which are added to `to` in the order of the parts.
    fn accumulate(
        &mut self,
        len: usize,
        to: &mut [&mut [f32]],
        part: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) {
        let width = to.iter().map(|to| to.len()).sum();
        let this = &*self;
        this.team.run(&|index| {
            // SAFETY: this part's own sums.
            let sums = unsafe { zeroed(&this.sums[index].narrow, width) };
            part(this.part(index, len, 1), sums);
        });
        for sums in &mut self.sums {
            let mut rest = &sums.narrow.get_mut()[..];
            for to in &mut *to {
                let (own, others) = rest.split_at(to.len());
                to.iter_mut().zip(own).for_each(|(to, own)| *to += own);
                rest = others;
            }
        }
    }

    /// Runs `kernel` on all threads, or on the caller where that is faster.
    ///
    /// # Safety
    /// Nobody else touches what the kernel writes, nobody writes what it reads.
    pub(super) unsafe fn run(&mut self, memory: &HostMemory, kernel: &Kernel) {
        // SAFETY: the caller's promise; parts are disjoint.
        let done = unsafe {
            self.elementwise(memory, kernel)
                || self.by_sample(memory, kernel)
                || self.by_row(memory, kernel)
                || self.product(memory, kernel)
        };
        if !done {
            // SAFETY: the caller's promise.
            unsafe { launch::run(memory, kernel) }
        }
    }

    fn worthwhile(&self, elements: usize) -> bool {
        elements >= self.smallest_part * self.parts()
    }
}
