//! Batch norm over the rows whose token is not padding: batch norm's own loops over each run of such rows.
//!
//! Contract: what padding holds changes neither statistics nor gradients; forward and backward write zeros there. Statistics of
//! several runs are merged in their order.
//! Reference: [`crate::backend::cpu::batch_norm`]; PyTorch's `batch_norm` of the rows that a mask selects.
use std::cell::RefCell;
use std::ops::Range;

use crate::backend::cpu::batch_norm;
use crate::kernel::Write;

thread_local! {
    /// Sums of one run, and of those before it: kept from call to call, so that a step allocates nothing.
    static SUMS: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) };
}

/// Which rows of a matrix count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// Of each row.
    pub(super) tokens: &'a [f32],
    /// The token of those that do not.
    pub(super) padding: usize,
}

impl<'a> Rows<'a> {
    fn counts(self, row: usize) -> bool {
        self.tokens[row] != self.padding as f32
    }

    /// How many count.
    pub(super) fn count(self) -> usize {
        (0..self.tokens.len())
            .filter(|row| self.counts(*row))
            .count()
    }

    /// Neighbouring rows that are alike, and whether they count.
    fn runs(self) -> impl Iterator<Item = (Range<usize>, bool)> + use<'a> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let counts = (start < self.tokens.len()).then(|| self.counts(start))?;
            let alike = (start..self.tokens.len()).take_while(|row| self.counts(*row) == counts);
            let run = start..start + alike.count();
            start = run.end;
            Some((run, counts))
        })
    }

    fn counted(self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        self.runs()
            .filter_map(|(run, counts)| counts.then_some(run))
    }
}

fn rows(matrix: &[f32], run: &Range<usize>, width: usize) -> Range<usize> {
    debug_assert!(matrix.len() >= run.end * width);
    run.start * width..run.end * width
}

/// mean[c], biased variance[c] and count[0] of the rows that count; zeros without any.
pub(super) fn statistics(
    x: &[f32],
    of: Rows<'_>,
    mean: &mut [f32],
    variance: &mut [f32],
    count: &mut [f32],
) {
    let width = mean.len();
    SUMS.with_borrow_mut(|sums| {
        sums.clear();
        sums.resize(4 * width, 0.0);
        let (total, run) = sums.split_at_mut(2 * width);
        let counted = partial_statistics(x, of, total, run);
        finish(total, counted, mean, variance);
        count[0] = counted as f32;
    });
}

/// What [`batch_norm::partial_statistics`] keeps, of the rows that count; returns how many these are. `room` is as large as `kept`,
/// which comes in as zeros.
pub(super) fn partial_statistics(
    x: &[f32],
    of: Rows<'_>,
    kept: &mut [f64],
    room: &mut [f64],
) -> usize {
    let width = kept.len() / 2;
    let mut counted = 0;
    for run in of.counted() {
        let own = &x[rows(x, &run, width)];
        if counted == 0 {
            batch_norm::partial_statistics(own, kept, run.len());
        } else {
            batch_norm::partial_statistics(own, room, run.len());
            batch_norm::merge_statistics(kept, counted, room, run.len());
        }
        counted += run.len();
    }
    counted
}

/// Means and variances from what was kept of `counted` rows.
pub(super) fn finish(kept: &[f64], counted: usize, mean: &mut [f32], variance: &mut [f32]) {
    let (means, squares) = kept.split_at(mean.len());
    let n = counted.max(1) as f64;
    mean.iter_mut()
        .zip(means)
        .for_each(|(to, mean)| *to = *mean as f32);
    variance
        .iter_mut()
        .zip(squares)
        .for_each(|(to, squares)| *to = (squares / n) as f32);
}

/// y = γ·(x − mean)·rstd + β where a row counts, 0 elsewhere.
pub(super) fn normalize(
    x: &[f32],
    of: Rows<'_>,
    [mean, rstd, gamma, beta]: [&[f32]; 4],
    y: &mut [f32],
) {
    let width = mean.len();
    for (run, counts) in of.runs() {
        let range = rows(x, &run, width);
        let (x, y) = (&x[range.clone()], &mut y[range]);
        if counts {
            batch_norm::normalize(x, mean, rstd, gamma, beta, &[], false, y, run.len());
        } else {
            y.fill(0.0);
        }
    }
}

/// sums[..c] += Σ d_y, sums[c..] += Σ d_y·(x − mean), of the rows that count. `room` is as large as `sums`.
pub(super) fn partial_backward_reduce(
    x: &[f32],
    d_y: &[f32],
    of: Rows<'_>,
    mean: &[f32],
    sums: &mut [f64],
    room: &mut [f64],
) {
    for run in of.counted() {
        let range = rows(x, &run, mean.len());
        let (x, d_y) = (&x[range.clone()], &d_y[range]);
        batch_norm::backward_reduce(x, d_y, mean, None, room, run.len());
        sums.iter_mut()
            .zip(&*room)
            .for_each(|(sum, own)| *sum += own);
    }
}

/// sums[..c] = Σ d_y, sums[c..] = Σ d_y·(x − mean), of the rows that count.
pub(super) fn backward_reduce(
    x: &[f32],
    d_y: &[f32],
    of: Rows<'_>,
    mean: &[f32],
    sums: &mut [f32],
) {
    let width = mean.len();
    SUMS.with_borrow_mut(|room| {
        room.clear();
        room.resize(4 * width, 0.0);
        let (total, run) = room.split_at_mut(2 * width);
        partial_backward_reduce(x, d_y, of, mean, total, run);
        sums.iter_mut()
            .zip(&*total)
            .for_each(|(to, total)| *to = *total as f32);
    });
}

/// What the gradient of the input needs besides x and d_y.
#[derive(Clone, Copy)]
pub(super) struct Kept<'a> {
    pub(super) mean: &'a [f32],
    pub(super) rstd: &'a [f32],
    pub(super) gamma: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) count: f32,
}

/// dx (+)= batch norm's gradient where a row counts, 0 elsewhere.
pub(super) fn backward_input(
    x: &[f32],
    d_y: &[f32],
    of: Rows<'_>,
    kept: Kept<'_>,
    d_x: &mut [f32],
    write: Write,
) {
    let Kept {
        mean,
        rstd,
        gamma,
        sums,
        count,
    } = kept;
    for (run, counts) in of.runs() {
        let range = rows(x, &run, mean.len());
        let (x, d_y, d_x) = (&x[range.clone()], &d_y[range.clone()], &mut d_x[range]);
        if counts {
            let rows = run.len();
            batch_norm::backward_input(
                x, d_y, mean, rstd, gamma, None, sums, count, d_x, rows, write,
            );
        } else if write == Write::Overwrite {
            d_x.fill(0.0);
        }
    }
}

/// dx (+)= γ·rstd·d_y where a row counts, 0 elsewhere.
pub(super) fn backward_eval(
    d_y: &[f32],
    of: Rows<'_>,
    [rstd, gamma]: [&[f32]; 2],
    d_x: &mut [f32],
    write: Write,
) {
    for (run, counts) in of.runs() {
        let range = rows(d_y, &run, rstd.len());
        let (d_y, d_x) = (&d_y[range.clone()], &mut d_x[range]);
        if counts {
            batch_norm::backward_eval(d_y, rstd, gamma, d_x, run.len(), write);
        } else if write == Write::Overwrite {
            d_x.fill(0.0);
        }
    }
}
