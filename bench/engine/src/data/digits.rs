//! The digits of scikit-learn: 1797 grey images of 8×8 pixels, ten classes, from two IDX files.
//!
//! The bytes come from the caller (the binary embeds `scenarios/data`; see the README there for source and licence).
//! Pixels of 0 to 16 are scaled to 0 to 1. The files are not shuffled and the writers seem to stand together, so the
//! split by position, the first 80 % for training and the rest for testing, is nearly one by writer.
use super::Dataset;
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

/// Why bytes are not the digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigitsError {
    /// The header of an IDX file is wrong.
    #[error("{file}: not an IDX file of unsigned bytes with dimensions {expected:?}")]
    Header {
        /// `images` or `labels`.
        file: &'static str,
        /// What the header should say.
        expected: Vec<u32>,
    },
    /// The file is longer or shorter than its header says.
    #[error("{file}: {found} bytes after the header, expected {expected}")]
    Length {
        /// `images` or `labels`.
        file: &'static str,
        /// There.
        found: usize,
        /// By the header.
        expected: usize,
    },
    /// A value out of range.
    #[error("{file}: value {value} at offset {offset} is larger than {largest}")]
    Value {
        /// `images` or `labels`.
        file: &'static str,
        /// The value.
        value: u8,
        /// Where, after the header.
        offset: usize,
        /// The largest allowed.
        largest: u8,
    },
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

/// The data of an IDX file of unsigned bytes: two zeros, type 8, the number of dimensions, each of them big-endian.
fn idx<'a>(
    bytes: &'a [u8],
    file: &'static str,
    dimensions: &[u32],
    largest: u8,
) -> Result<&'a [u8], DigitsError> {
    let mut header = vec![0, 0, 8, dimensions.len() as u8];
    dimensions
        .iter()
        .for_each(|dimension| header.extend(dimension.to_be_bytes()));
    let wrong = || DigitsError::Header {
        file,
        expected: dimensions.to_vec(),
    };
    let data = bytes.strip_prefix(header.as_slice()).ok_or_else(wrong)?;
    let expected = dimensions
        .iter()
        .map(|dimension| *dimension as usize)
        .product();
    if data.len() != expected {
        return Err(DigitsError::Length {
            file,
            found: data.len(),
            expected,
        });
    }
    match data.iter().position(|value| *value > largest) {
        Some(offset) => Err(DigitsError::Value {
            file,
            value: data[offset],
            offset,
            largest,
        }),
        None => Ok(data),
    }
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
    fn label(&self, index: usize) -> i32 {
        i32::from(self.labels[index])
    }
}
