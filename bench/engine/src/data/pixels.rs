//! Images of unsigned bytes in host memory, scaled to 0 to 1 as they are handed over, as torchvision's `ToTensor` does.
//!
//! Bytes take a quarter of the memory of floats, and every rank holds the whole data set. Stored in memory order (NHWC),
//! so that handing over is one pass.
use super::Dataset;
use crate::shape::Shape;

/// Labelled images.
#[derive(Clone, Debug)]
pub struct Pixels {
    shape: Shape,
    classes: usize,
    /// A pixel times this is its value.
    scale: f32,
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Pixels {
    /// Images of `shape`, whose pixels (NHWC) lie between 0 and `largest` and labels below `classes`.
    ///
    /// # Panics
    /// When there are not as many images as labels, or a label is too large: bugs of the reader.
    pub fn new(
        shape: Shape,
        classes: usize,
        largest: u8,
        pixels: Vec<u8>,
        labels: Vec<u8>,
    ) -> Self {
        assert_eq!(pixels.len(), labels.len() * shape.elements());
        assert!(labels.iter().all(|label| usize::from(*label) < classes));
        Self {
            shape,
            classes,
            scale: 1.0 / f32::from(largest),
            pixels,
            labels,
        }
    }
}

impl Dataset for Pixels {
    fn len(&self) -> usize {
        self.labels.len()
    }
    fn shape(&self) -> Shape {
        self.shape
    }
    fn classes(&self) -> usize {
        self.classes
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        let elements = self.shape.elements();
        let image = &self.pixels[index * elements..(index + 1) * elements];
        assert_eq!(to.len(), elements, "an image has {elements} pixels");
        to.iter_mut()
            .zip(image)
            .for_each(|(value, pixel)| *value = f32::from(*pixel) * self.scale);
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        to[0] = i32::from(self.labels[index]);
    }
}
