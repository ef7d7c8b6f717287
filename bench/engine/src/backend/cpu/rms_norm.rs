//! RMS norm: each sample over the root of the mean of its squares, without a mean and without β.
//!
//! Contract: a sample is [spatial, channels] and normalized as a whole. γ is per channel, per element of a sample in memory
//! order, or absent. Sums as in [`crate::backend::cpu::columns`]; d_gamma accumulates over the batch.
//! Reference: Zhang and Sennrich, *Root mean square layer normalization*, 2019; PyTorch's `nn.RMSNorm`.
use crate::backend::cpu::columns::{Columns, map, reduce, widest};
use crate::backend::cpu::group_runs::sums;
use crate::kernel::{Affine, Write};

/// Shape of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) spatial: usize,
    pub(super) channels: usize,
    pub(super) affine: Affine,
}

impl Shape {
    fn sample(self) -> usize {
        self.spatial * self.channels
    }
    fn columns(self) -> Columns {
        Columns::all(self.spatial, self.channels)
    }
    /// Whether γ follows the channels of more than one position; otherwise it follows the elements, or is absent.
    fn per_channel(self) -> bool {
        self.affine == Affine::Channel && self.spatial > 1
    }
}

widest! {
    /// y = γ·x·rstd, with rstd [batch] kept.
    pub(super) fn forward(x: &[f32], gamma: &[f32], y: &mut [f32], rstd: &mut [f32], shape: Shape, eps: f32) {
        let size = shape.sample();
        for ((x, y), rstd) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)).zip(rstd) {
            let [squares] = sums([x], |[x]| [x * x]);
            *rstd = (1.0 / (squares / size as f64 + f64::from(eps)).sqrt()) as f32;
            let rstd = *rstd;
            if shape.per_channel() {
                map(shape.columns(), [x], y, Write::Overwrite, |c| [rstd * gamma[c]], |[x], [scale]| x * scale);
            } else if gamma.is_empty() {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = x * rstd);
            } else {
                y.iter_mut().zip(x).zip(gamma).for_each(|((y, x), gamma)| *y = x * rstd * gamma);
            }
        }
    }
}

widest! {
    /// dx (+)= rstd·[g − x̂·mean(g·x̂)], g = γ·d_y; d_gamma += Σ d_y·x̂. An empty `d_x` is not wanted.
    pub(super) fn backward(
        x: &[f32], d_y: &[f32], gamma: &[f32], rstd: &[f32], d_x: &mut [f32], d_gamma: &mut [f32], shape: Shape, write: Write,
    ) {
        let size = shape.sample();
        for (index, (x, &rstd)) in x.chunks_exact(size).zip(rstd).enumerate() {
            let d_y = &d_y[index * size..][..size];
            let product = if shape.per_channel() {
                project_channels([x, d_y], gamma, rstd, shape, d_gamma)
            } else {
                project_elements([x, d_y], gamma, rstd, d_gamma)
            };
            if d_x.is_empty() {
                continue;
            }
            let rstd_wide = f64::from(rstd);
            let projection = (product * rstd_wide * rstd_wide / size as f64) as f32;
            let d_x = &mut d_x[index * size..][..size];
            if shape.per_channel() {
                map(shape.columns(), [x, d_y], d_x, write, |c| [gamma[c]], |[x, d_y], [gamma]| {
                    rstd * (gamma * d_y - x * projection)
                });
            } else {
                input_gradient([x, d_y], gamma, d_x, rstd, projection, write);
            }
        }
    }
}

/// Σ g·x of a sample, from the channels' sums, which are also what γ gets.
#[inline(always)]
fn project_channels(
    [x, d_y]: [&[f32]; 2],
    gamma: &[f32],
    rstd: f32,
    shape: Shape,
    d_gamma: &mut [f32],
) -> f64 {
    let mut total = 0.0;
    reduce(
        shape.columns(),
        [x, d_y],
        |_| [],
        |[x, d_y], []| [d_y * x],
        |c, [sum]| {
            d_gamma[c] += (sum * f64::from(rstd)) as f32;
            total += f64::from(gamma[c]) * sum;
        },
    );
    total
}

/// Σ g·x of a sample where γ follows its elements or is absent.
#[inline(always)]
fn project_elements([x, d_y]: [&[f32]; 2], gamma: &[f32], rstd: f32, d_gamma: &mut [f32]) -> f64 {
    if gamma.is_empty() {
        let [total] = sums([x, d_y], |[x, d_y]| [d_y * x]);
        return total;
    }
    let pairs = d_gamma.iter_mut().zip(x.iter().zip(d_y));
    pairs.for_each(|(d_gamma, (x, d_y))| *d_gamma += d_y * x * rstd);
    let [total] = sums([x, d_y, gamma], |[x, d_y, gamma]| [gamma * d_y * x]);
    total
}

/// dx (+)= rstd·(g − x·projection).
#[inline(always)]
fn input_gradient(
    [x, d_y]: [&[f32]; 2],
    gamma: &[f32],
    d_x: &mut [f32],
    rstd: f32,
    projection: f32,
    write: Write,
) {
    let gradient = |x: f32, g: f32| rstd * (g - x * projection);
    let pairs = d_x.iter_mut().zip(x.iter().zip(d_y));
    match (gamma.is_empty(), write) {
        (true, Write::Overwrite) => pairs.for_each(|(to, (x, d_y))| *to = gradient(*x, *d_y)),
        (true, Write::Accumulate) => pairs.for_each(|(to, (x, d_y))| *to += gradient(*x, *d_y)),
        (false, Write::Overwrite) => {
            let triples = pairs.zip(gamma);
            triples.for_each(|((to, (x, d_y)), gamma)| *to = gradient(*x, gamma * d_y));
        }
        (false, Write::Accumulate) => {
            let triples = pairs.zip(gamma);
            triples.for_each(|((to, (x, d_y)), gamma)| *to += gradient(*x, gamma * d_y));
        }
    }
}
