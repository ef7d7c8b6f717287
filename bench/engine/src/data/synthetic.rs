//! Samples of any shape, made from nothing: uniform inputs of mean 0 and variance 1, uniform labels.
//!
//! Sample `s` is a function of seed and `s` alone. The numbers are in channel-major order, so that PyTorch makes the
//! same ones (`scripts/pytorch/philox.py`).
use super::Dataset;
use crate::philox::{self, Purpose};
use crate::shape::Shape;

/// √3: uniform within ±√3 has variance 1.
const BOUND: f32 = 1.732_050_8;

/// A synthetic data set.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Number of samples.
    pub len: usize,
    /// Shape of an input.
    pub shape: Shape,
    /// Number of classes.
    pub classes: usize,
    /// Seed.
    pub seed: u64,
}

impl Dataset for Synthetic {
    fn len(&self) -> usize {
        self.len
    }
    fn shape(&self) -> Shape {
        self.shape
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        assert!(
            index < self.len && to.len() == self.shape.elements(),
            "sample {index} of {}",
            self.len
        );
        let first = index as u64 * to.len() as u64;
        let (channels, spatial) = (self.shape.channels(), self.shape.spatial());
        if channels == 1 || spatial == 1 {
            return philox::fill_symmetric(self.seed, Purpose::Inputs, 0, first, BOUND, to);
        }
        // In pieces on the stack, each written to its place: no second buffer, so that loading allocates nothing.
        let mut piece = [0.0; 256];
        for start in (0..to.len()).step_by(piece.len()) {
            let values = &mut piece[..(to.len() - start).min(256)];
            philox::fill_symmetric(
                self.seed,
                Purpose::Inputs,
                0,
                first + start as u64,
                BOUND,
                values,
            );
            for (element, value) in (start..).zip(values) {
                to[element % spatial * channels + element / spatial] = *value;
            }
        }
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        to[0] = (philox::word(self.seed, Purpose::Labels, 0, index as u64) % self.classes as u32)
            as i32;
    }
}
