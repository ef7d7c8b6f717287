//! Norms that look at one sample at a time, with what comes before or after them done while the sample is in the cache.
//!
//! Contract: the shortcut and the rectifier that follow a norm are applied to each sample's output right after it is written; in
//! backward the gradient of the output goes through the rectifier right before it is read.
//! Reference: [`crate::kernel::Then`].
use std::array::from_fn;

use crate::backend::cpu::elementwise;

/// How a batch is cut.
#[derive(Clone, Copy)]
pub(super) struct Samples {
    pub(super) batch: usize,
    /// Elements of a sample.
    pub(super) size: usize,
    /// Numbers that are kept for each sample, in each of the kept arrays.
    pub(super) kept: usize,
}

/// The gradient of a norm's output.
pub(super) enum Gated<'a> {
    /// As it is.
    Open(&'a [f32]),
    /// Zero where `y` is not positive, which is yet to be done.
    Closed { y: &'a [f32], d_y: &'a mut [f32] },
}

impl Samples {
    /// Calls `norm` for each sample of x and y with its part of what is kept.
    #[inline(always)]
    pub(super) fn forward<const K: usize>(
        self,
        x: &[f32],
        shortcut: &[f32],
        relu: bool,
        y: &mut [f32],
        mut kept: [&mut [f32]; K],
        mut norm: impl FnMut(&[f32], &mut [f32], [&mut [f32]; K]),
    ) {
        let Self {
            batch,
            size,
            kept: each,
        } = self;
        if shortcut.is_empty() && !relu {
            let all = kept.each_mut().map(|kept| &mut kept[..batch * each]);
            return norm(&x[..batch * size], &mut y[..batch * size], all);
        }
        for sample in 0..batch {
            let own = sample * size..(sample + 1) * size;
            let to = &mut y[own.clone()];
            let part = kept
                .each_mut()
                .map(|kept| &mut kept[sample * each..][..each]);
            norm(&x[own.clone()], to, part);
            let shortcut = if shortcut.is_empty() {
                shortcut
            } else {
                &shortcut[own]
            };
            elementwise::finish(to, shortcut, relu);
        }
    }

    /// Calls `norm` for each sample of x, d_y and d_x, which may be empty, with its part of what was kept.
    #[inline(always)]
    pub(super) fn backward<const K: usize>(
        self,
        x: &[f32],
        gradient: Gated<'_>,
        d_x: &mut [f32],
        kept: [&[f32]; K],
        mut norm: impl FnMut(&[f32], &[f32], &mut [f32], [&[f32]; K]),
    ) {
        let Self {
            batch,
            size,
            kept: each,
        } = self;
        match gradient {
            Gated::Open(d_y) => {
                let all = kept.map(|kept| &kept[..batch * each]);
                norm(&x[..batch * size], d_y, d_x, all);
            }
            Gated::Closed { y, d_y } => {
                for sample in 0..batch {
                    let own = sample * size..(sample + 1) * size;
                    let d_y = &mut d_y[own.clone()];
                    elementwise::gate(&y[own.clone()], d_y);
                    let part = from_fn(|k| &kept[k][sample * each..][..each]);
                    let d_x = if d_x.is_empty() {
                        &mut *d_x
                    } else {
                        &mut d_x[own.clone()]
                    };
                    norm(&x[own], d_y, d_x, part);
                }
            }
        }
    }
}
