//! Norms whose blocks wait for each other on a GPU: with another device's beside them, and with samples that no team can hold.
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::kernel::{Affine, Kernel, Then, Write};
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::tensor::{Dtype, Span};

use crate::gpu::gpu;

const EPS: f32 = 1e-5;
/// Launches that are under way together: enough for the devices' to meet.
const ROUNDS: usize = 30;
/// Seeds.
const X: u64 = 5;
const SLOPES: u64 = 6;

/// A norm of images on a device, forward and backward.
struct Norm {
    backend: Box<dyn Backend>,
    shape: [usize; 4],
    x: Span,
    d_y: Span,
    y: Span,
    d_x: Span,
    gamma: Span,
    gradients: [Span; 2],
    statistics: [Span; 2],
}

impl Norm {
    fn new(mut backend: Box<dyn Backend>, shape: [usize; 4]) -> Self {
        let [batch, spatial, channels, groups] = shape;
        let len = batch * spatial * channels;
        let mut floats = |len: usize| {
            backend
                .allocate(Category::Workspace, Dtype::F32, len)
                .unwrap()
        };
        let [x, d_y, y, d_x] = [(); 4].map(|()| floats(len));
        let [gamma, d_gamma, d_beta] = [(); 3].map(|()| floats(channels));
        let statistics = [(); 2].map(|()| floats(batch * groups));
        for (seed, to) in [(X, x), (SLOPES, d_y)] {
            let values = random(seed, len);
            backend
                .upload(Stream::Compute, HostSlice::F32(&values), to)
                .unwrap();
        }
        let ones = Kernel::Fill {
            to: gamma,
            value: 1.0,
        };
        backend.launch(Stream::Compute, ones).unwrap();
        Self {
            backend,
            shape,
            x,
            d_y,
            y,
            d_x,
            gamma,
            gradients: [d_gamma, d_beta],
            statistics,
        }
    }

    /// Enqueues both directions; γ's and β's gradients grow.
    fn enqueue(&mut self) {
        let [batch, spatial, channels, groups] = self.shape;
        let (x, y, d_y, d_x, gamma) = (self.x, self.y, self.d_y, self.d_x, self.gamma);
        let ([mean, rstd], [d_gamma, d_beta]) = (self.statistics, self.gradients);
        let affine = Affine::Channel;
        let forward = Kernel::GroupNormForward {
            x,
            gamma,
            beta: gamma,
            y,
            mean,
            rstd,
            batch,
            spatial,
            channels,
            groups,
            affine,
            eps: EPS,
            then: Then::NOTHING,
        };
        let backward = Kernel::GroupNormBackward {
            x,
            y: Span::EMPTY,
            d_y,
            gamma,
            mean,
            rstd,
            d_x,
            d_gamma,
            d_beta,
            batch,
            spatial,
            channels,
            groups,
            affine,
            write: Write::Overwrite,
        };
        for kernel in [forward, backward] {
            self.backend.launch(Stream::Compute, kernel).unwrap();
        }
    }

    fn bits(&mut self) -> Vec<Vec<u32>> {
        let [mean, rstd] = self.statistics;
        let [d_gamma, d_beta] = self.gradients;
        [self.y, self.d_x, mean, rstd, d_gamma, d_beta]
            .into_iter()
            .map(|span| self.read(span).into_iter().map(f32::to_bits).collect())
            .collect()
    }

    fn read(&mut self, span: Span) -> Vec<f32> {
        let mut values = vec![0.0; span.len()];
        self.backend
            .download(span, HostSliceMut::F32(&mut values))
            .unwrap();
        values
    }
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    fill_symmetric(seed, Purpose::Inputs, 0, 0, 1.0, &mut values);
    values
}

#[test]
fn teams_of_two_devices_on_a_gpu_do_not_hold_each_other_up() {
    for shape in [[24, 3136, 64, 1], [24, 3136, 64, 64], [3, 12_544, 64, 16]] {
        let (Some(one), Some(other)) = (gpu(), gpu()) else {
            return;
        };
        let mut norms = [one, other].map(|backend| Norm::new(backend, shape));
        for _ in 0..ROUNDS {
            norms.iter_mut().for_each(Norm::enqueue);
        }
        let [first, second] = norms.each_mut().map(Norm::bits);
        assert!(
            first == second,
            "{shape:?}: two devices, two results of the same"
        );
        // Alone, and from the beginning, the same comes out.
        let mut alone = Norm::new(gpu().unwrap(), shape);
        for _ in 0..ROUNDS {
            alone.enqueue();
        }
        assert!(alone.bits() == first, "{shape:?}: alone it is not the same");
    }
}

/// 40 MB a sample: more than all blocks of a GPU keep, in either direction.
#[test]
fn samples_that_no_team_holds_are_normalized_all_the_same() {
    let Some(backend) = gpu() else { return };
    let shape = [2, 160_000, 64, 1];
    let size = shape[1] * shape[2];
    let mut norm = Norm::new(backend, shape);
    norm.enqueue();
    let (y, d_x) = (norm.read(norm.y), norm.read(norm.d_x));
    let [x, slopes] = [X, SLOPES].map(|seed| random(seed, 2 * size));
    for sample in 0..shape[0] {
        let of = sample * size..(sample + 1) * size;
        let pairs = || {
            let pair = |(x, slope): (&f32, &f32)| (f64::from(*x), f64::from(*slope));
            x[of.clone()].iter().zip(&slopes[of.clone()]).map(pair)
        };
        let average = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / size as f64;
        let mean = average(&mut pairs().map(|(x, _)| x));
        let variance = average(&mut pairs().map(|(x, _)| (x - mean).powi(2)));
        let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
        let slope = average(&mut pairs().map(|(_, slope)| slope));
        let projection = average(&mut pairs().map(|(x, slope)| slope * (x - mean) * rstd));
        // γ and β are 1.
        for (i, (x, own)) in pairs().enumerate().step_by(997) {
            let hat = (x - mean) * rstd;
            let gradient = rstd * (own - slope - hat * projection);
            for (found, expected) in [(y[of.start + i], hat + 1.0), (d_x[of.start + i], gradient)] {
                let error = (f64::from(found) - expected).abs();
                assert!(error < 1e-5, "{found} and {expected} at {i}");
            }
        }
    }
}
