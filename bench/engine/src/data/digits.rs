//! The digits of scikit-learn: 1797 grey images of 8×8 pixels, ten classes, from two IDX files.
//!
//! The bytes come from the caller (the binary embeds `scenarios/data`; see the README there for source and licence).
//! Pixels of 0 to 16 are scaled to 0 to 1. The files are not shuffled and the writers seem to stand together, so the
//! split by position, the first 80 % for training and the rest for testing, is nearly one by writer.
use super::Dataset;
use super::idx::{self, IdxError};
use crate::shape::Shape;

/// Images for training: 80 % of 1797, rounded down.
const TRAINING: usize = 1437;
/// Largest pixel in the file.
const INK: f32 = 16.0;
const CLASSES: usize = 10;

/// Which images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The first 1437.
    Train,
    /// The last 360.
    Test,
    /// All 1797.
    All,
}

/// Which of the two embedded files is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} {source}")]
pub struct DigitsError {
    /// `images` or `labels`.
    pub file: &'static str,
    /// What is wrong.
    pub source: IdxError,
}

/// The digits, or a part of them.
#[derive(Clone, Debug)]
pub struct Digits {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

impl Digits {
    /// Pixels of an image.
    pub const PIXELS: usize = 64;
    /// Images in the files.
    pub const LEN: usize = 1797;

    /// Reads the bytes of `digits.images.idx3-ubyte` and `digits.labels.idx1-ubyte`.
    ///
    /// # Errors
    /// [`DigitsError`] when they are not those files.
    pub fn parse(images: &[u8], labels: &[u8], split: Split) -> Result<Self, DigitsError> {
        let pixels = idx(images, "images", &[Self::LEN as u32, 8, 8], INK as u8)?;
        let labels = idx(labels, "labels", &[Self::LEN as u32], CLASSES as u8 - 1)?;
        let range = match split {
            Split::Train => 0..TRAINING,
            Split::Test => TRAINING..Self::LEN,
            Split::All => 0..Self::LEN,
        };
        let pixels = pixels[range.start * Self::PIXELS..range.end * Self::PIXELS].to_vec();
        Ok(Self {
            pixels,
            labels: labels[range].to_vec(),
        })
    }
}

fn idx(
    bytes: &[u8],
    file: &'static str,
    dimensions: &[u32],
    largest: u8,
) -> Result<Vec<u8>, DigitsError> {
    let dimensions: Vec<Option<u32>> = dimensions.iter().copied().map(Some).collect();
    idx::read(bytes, &dimensions, largest)
        .map(|idx| idx.data)
        .map_err(|source| DigitsError { file, source })
}

impl Dataset for Digits {
    fn len(&self) -> usize {
        self.labels.len()
    }
    fn shape(&self) -> Shape {
        Shape::Image { c: 1, h: 8, w: 8 }
    }
    fn classes(&self) -> usize {
        CLASSES
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        let pixels = &self.pixels[index * Self::PIXELS..(index + 1) * Self::PIXELS];
        assert_eq!(
            to.len(),
            pixels.len(),
            "an image has {} pixels",
            Self::PIXELS
        );
        to.iter_mut()
            .zip(pixels)
            .for_each(|(value, pixel)| *value = f32::from(*pixel) / INK);
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        to[0] = i32::from(self.labels[index]);
    }
}
