//! Group norm per sample; layer norm is one group, instance norm a group per channel.
//!
//! Contract: a sample is [spatial, channels], group g its channels g·C/G..(g+1)·C/G. γ and β are per channel, per element
//! of a sample, or absent. Sums as in [`crate::backend::cpu::columns`]. d_gamma and d_beta accumulate over the batch.
//! Reference: Wu and He, *Group normalization*, 2018; PyTorch's `native_group_norm`.
use crate::backend::cpu::batch_norm::affine as or;
use crate::backend::cpu::columns::{Columns, map, reduce, reduce_again, widest};
use crate::backend::cpu::{elementwise, group_runs};
use crate::kernel::{Affine, Write};

/// Groups whose sums are kept on the stack at a time.
const GROUPS: usize = 512;

/// Shape of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    pub(super) spatial: usize,
    pub(super) channels: usize,
    pub(super) groups: usize,
    pub(super) affine: Affine,
}

impl Groups {
    /// The length of a group's run of memory, where each is one and γ and β follow its elements.
    fn run(self) -> Option<usize> {
        let one_run = self.spatial == 1 || (self.groups == 1 && self.affine != Affine::Channel);
        one_run.then_some(self.sample() / self.groups)
    }
    fn sample(self) -> usize {
        self.spatial * self.channels
    }
    fn width(self) -> usize {
        self.channels / self.groups
    }
    /// Elements of a group of one sample.
    fn count(self) -> f64 {
        (self.sample() / self.groups) as f64
    }
}

widest! {
    /// y = γ·(x − mean)·rstd + β, with mean and rstd [batch·groups] kept.
    pub(super) fn forward(
        x: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32], mean: &mut [f32], rstd: &mut [f32], shape: Groups, eps: f32,
    ) {
        if let Some(run) = shape.run() {
            return group_runs::forward(x, gamma, beta, y, mean, rstd, run, eps);
        }
        let samples = x.chunks_exact(shape.sample()).zip(y.chunks_exact_mut(shape.sample()));
        let kept = mean.chunks_exact_mut(shape.groups).zip(rstd.chunks_exact_mut(shape.groups));
        for ((x, y), (mean, rstd)) in samples.zip(kept) {
            statistics(x, mean, rstd, shape, eps);
            normalize(x, gamma, beta, y, mean, rstd, shape);
        }
    }
}

/// mean and rstd of each group of one sample.
#[inline(always)]
fn statistics(x: &[f32], mean: &mut [f32], rstd: &mut [f32], shape: Groups, eps: f32) {
    let columns = Columns::all(shape.spatial, shape.channels);
    let (width, n) = (shape.width(), shape.count());
    let mut total = 0.0;
    reduce(
        columns,
        [x],
        |_| [],
        |[x], []| [x],
        |c, [sum]| {
            total += sum;
            if (c + 1).is_multiple_of(width) {
                mean[c / width] = (total / n) as f32;
                total = 0.0;
            }
        },
    );
    let (mut deviation, mut squares) = (0.0, 0.0);
    reduce_again(
        columns,
        [x],
        |c| [mean[c / width]],
        |[x], [mean]| [x - mean, (x - mean) * (x - mean)],
        |c, sums| {
            deviation += sums[0];
            squares += sums[1];
            if (c + 1).is_multiple_of(width) {
                let variance = ((squares - deviation * deviation / n) / n).max(0.0);
                rstd[c / width] = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
                (deviation, squares) = (0.0, 0.0);
            }
        },
    );
}

#[inline(always)]
fn normalize(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    y: &mut [f32],
    mean: &[f32],
    rstd: &[f32],
    shape: Groups,
) {
    let columns = Columns::all(shape.spatial, shape.channels);
    let width = shape.width();
    let of_group = |c: usize| [mean[c / width], rstd[c / width]];
    match shape.affine {
        Affine::Element => map(
            columns,
            [x, gamma, beta],
            y,
            Write::Overwrite,
            of_group,
            |[x, gamma, beta], [mean, rstd]| (x - mean) * rstd * gamma + beta,
        ),
        Affine::Channel | Affine::None => {
            let coefficients = |c: usize| {
                let [mean, rstd] = of_group(c);
                [mean, rstd * or(gamma, c, 1.0), or(beta, c, 0.0)]
            };
            map(
                columns,
                [x],
                y,
                Write::Overwrite,
                coefficients,
                |[x], [mean, scale, beta]| (x - mean) * scale + beta,
            );
        }
    }
}

/// Operands of the backward pass of one sample.
struct Sample<'a> {
    x: &'a [f32],
    d_y: &'a [f32],
    gamma: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
}

/// Means over each group of g and of g·(x − mean)·rstd², from group `first` on.
struct Projections {
    first: usize,
    means: [[f32; 2]; GROUPS],
}

impl Projections {
    #[inline(always)]
    fn set(&mut self, group: usize, sums: [f64; 2], rstd: f32, n: f64) {
        let rstd = f64::from(rstd);
        self.means[group - self.first] = [(sums[0] / n) as f32, (sums[1] * rstd * rstd / n) as f32];
    }
}

widest! {
    /// dx (+)= rstd·[g − mean(g) − x̂·mean(g·x̂)], g = γ·d_y; d_gamma += Σ d_y·x̂, d_beta += Σ d_y. An empty
    /// `d_x` is not wanted.
    pub(super) fn backward(
        x: &[f32], d_y: &[f32], gamma: &[f32], mean: &[f32], rstd: &[f32], d_x: &mut [f32], d_gamma: &mut [f32],
        d_beta: &mut [f32], shape: Groups, write: Write,
    ) {
        if let Some(run) = shape.run() {
            return group_runs::backward(x, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, run, write);
        }
        let (size, width) = (shape.sample(), shape.width());
        let mut projections = Projections { first: 0, means: [[0.0; 2]; GROUPS] };
        for (b, x) in x.chunks_exact(size).enumerate() {
            let kept = b * shape.groups..(b + 1) * shape.groups;
            let (mean, rstd) = (&mean[kept.clone()], &rstd[kept]);
            let sample = Sample { x, d_y: &d_y[b * size..][..size], gamma, mean, rstd };
            for first in (0..shape.groups).step_by(GROUPS) {
                let groups = GROUPS.min(shape.groups - first);
                let columns = Columns::some(shape.spatial, shape.channels, first * width, groups * width);
                projections.first = first;
                if shape.affine == Affine::Element {
                    project_elements(&sample, shape, columns, &mut projections);
                } else {
                    project_channels(&sample, shape, columns, &mut projections, d_gamma, d_beta);
                }
                if !d_x.is_empty() {
                    input_gradient(&sample, shape, columns, &projections, &mut d_x[b * size..][..size], write);
                }
            }
            if shape.affine == Affine::Element {
                let of_group = |c: usize| [sample.mean[c / width], sample.rstd[c / width]];
                let columns = Columns::all(shape.spatial, shape.channels);
                map(columns, [sample.x, sample.d_y], d_gamma, Write::Accumulate, of_group, |[x, d_y], [mean, rstd]| {
                    d_y * (x - mean) * rstd
                });
                elementwise::copy(sample.d_y, d_beta, Write::Accumulate);
            }
        }
    }
}

/// The groups' means from the channels' sums, which are also what γ and β of a channel get.
#[inline(always)]
fn project_channels(
    sample: &Sample<'_>,
    shape: Groups,
    columns: Columns,
    projections: &mut Projections,
    d_gamma: &mut [f32],
    d_beta: &mut [f32],
) {
    let (width, n) = (shape.width(), shape.count());
    let mut sums = [0.0; 2];
    reduce(
        columns,
        [sample.x, sample.d_y],
        |c| [sample.mean[c / width]],
        |[x, d_y], [mean]| [d_y, d_y * (x - mean)],
        |c, [first, second]| {
            let rstd = sample.rstd[c / width];
            if shape.affine == Affine::Channel {
                d_beta[c] += first as f32;
                d_gamma[c] += (second * f64::from(rstd)) as f32;
            }
            let gamma = f64::from(or(sample.gamma, c, 1.0));
            sums = [sums[0] + gamma * first, sums[1] + gamma * second];
            if (c + 1).is_multiple_of(width) {
                projections.set(c / width, std::mem::take(&mut sums), rstd, n);
            }
        },
    );
}

/// The groups' means where γ differs from element to element.
#[inline(always)]
fn project_elements(
    sample: &Sample<'_>,
    shape: Groups,
    columns: Columns,
    projections: &mut Projections,
) {
    let (width, n) = (shape.width(), shape.count());
    let mut sums = [0.0; 2];
    reduce(
        columns,
        [sample.x, sample.d_y, sample.gamma],
        |c| [sample.mean[c / width]],
        |[x, d_y, gamma], [mean]| [gamma * d_y, gamma * d_y * (x - mean)],
        |c, [first, second]| {
            sums = [sums[0] + first, sums[1] + second];
            if (c + 1).is_multiple_of(width) {
                projections.set(
                    c / width,
                    std::mem::take(&mut sums),
                    sample.rstd[c / width],
                    n,
                );
            }
        },
    );
}

#[inline(always)]
fn input_gradient(
    sample: &Sample<'_>,
    shape: Groups,
    columns: Columns,
    projections: &Projections,
    d_x: &mut [f32],
    write: Write,
) {
    let width = shape.width();
    let of_group = |c: usize| {
        let group = c / width;
        let [mean_g, projection] = projections.means[group - projections.first];
        (sample.mean[group], sample.rstd[group], mean_g, projection)
    };
    if shape.affine == Affine::Element {
        let coefficients = |c: usize| {
            let (mean, rstd, mean_g, projection) = of_group(c);
            [mean, rstd, mean_g, projection]
        };
        let inputs = [sample.x, sample.d_y, sample.gamma];
        map(
            columns,
            inputs,
            d_x,
            write,
            coefficients,
            |[x, d_y, gamma], [mean, rstd, mean_g, projection]| {
                rstd * (gamma * d_y - mean_g - (x - mean) * projection)
            },
        );
    } else {
        let coefficients = |c: usize| {
            let (mean, rstd, mean_g, projection) = of_group(c);
            [mean, rstd, or(sample.gamma, c, 1.0), mean_g, projection]
        };
        map(
            columns,
            [sample.x, sample.d_y],
            d_x,
            write,
            coefficients,
            |[x, d_y], [mean, rstd, gamma, mean_g, projection]| {
                rstd * (gamma * d_y - mean_g - (x - mean) * projection)
            },
        );
    }
}
