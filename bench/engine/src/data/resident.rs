//! A data set copied into host memory once, in memory order: loading a batch is then a copy, whatever the source costs.
//!
//! Timed trials use it, so that `data` measures handing over a batch and not making one up.
use super::Dataset;
use crate::shape::Shape;

/// Samples of another data set, in host memory.
#[derive(Clone, Debug)]
pub struct Resident {
    shape: Shape,
    classes: usize,
    labels_per_sample: usize,
    inputs: Vec<f32>,
    labels: Vec<i32>,
}

impl Resident {
    /// Copies all samples of `source`.
    pub fn of(source: &dyn Dataset) -> Self {
        let elements = source.shape().elements();
        let mut inputs = vec![0.0; source.len() * elements];
        for (index, input) in inputs.chunks_exact_mut(elements).enumerate() {
            source.write(index, input);
        }
        let labels_per_sample = source.labels_per_sample();
        let mut labels = vec![0; source.len() * labels_per_sample];
        for (index, labels) in labels.chunks_exact_mut(labels_per_sample).enumerate() {
            source.write_labels(index, labels);
        }
        Self {
            shape: source.shape(),
            classes: source.classes(),
            labels_per_sample,
            inputs,
            labels,
        }
    }
}

impl Dataset for Resident {
    fn len(&self) -> usize {
        self.labels.len() / self.labels_per_sample
    }
    fn shape(&self) -> Shape {
        self.shape
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        let elements = self.shape.elements();
        to.copy_from_slice(&self.inputs[index * elements..(index + 1) * elements]);
    }
    fn labels_per_sample(&self) -> usize {
        self.labels_per_sample
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        let each = self.labels_per_sample;
        to.copy_from_slice(&self.labels[index * each..(index + 1) * each]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;

    #[test]
    fn holds_what_its_source_makes() {
        let source = Synthetic {
            len: 5,
            shape: Shape::Features(3),
            classes: 4,
            seed: 7,
        };
        let resident = Resident::of(&source);
        let (mut theirs, mut ours) = ([0.0; 3], [0.0; 3]);
        for index in 0..5 {
            source.write(index, &mut theirs);
            resident.write(index, &mut ours);
            assert_eq!((theirs, source.label(index)), (ours, resident.label(index)));
        }
    }
}
