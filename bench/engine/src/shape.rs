//! Per-sample shapes: what a model file and PyTorch call `[features]`, `[channels, length]` or `[channels, height, width]`.
//!
//! A sequence is laid out like an image of height 1: its positions are its length, and channels come last in memory.
//! The batch dimension is never part of a shape: it changes from call to call, shapes are fixed when a model is built.

/// Shape of one sample of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// `[features]`.
    Features(usize),
    /// `[c, length]`; in memory `[length, c]`.
    Sequence {
        /// Channels.
        c: usize,
        /// Length.
        length: usize,
    },
    /// `[c, h, w]`; in memory `[h, w, c]`.
    Image {
        /// Channels.
        c: usize,
        /// Height.
        h: usize,
        /// Width.
        w: usize,
    },
}

/// Largest number of elements of one sample, so that offsets within it fit the i32 of pooling's index.
pub const MAX_ELEMENTS: usize = i32::MAX as usize;

impl Shape {
    /// The shape that `dimensions` say, when there are one to three, none is zero, and their product is at most [`MAX_ELEMENTS`].
    pub fn from_dimensions(dimensions: &[usize]) -> Option<Self> {
        let shape = match *dimensions {
            [features] => Self::Features(features),
            [c, length] => Self::Sequence { c, length },
            [c, h, w] => Self::Image { c, h, w },
            _ => return None,
        };
        shape.checked_elements().map(|_| shape)
    }
    /// Number of elements, if it is at least 1 and at most [`MAX_ELEMENTS`].
    pub fn checked_elements(self) -> Option<usize> {
        let (c, h, w) = self.chw();
        let elements = c.checked_mul(h)?.checked_mul(w)?;
        (1..=MAX_ELEMENTS).contains(&elements).then_some(elements)
    }
    /// Number of elements.
    pub const fn elements(self) -> usize {
        let (c, h, w) = self.chw();
        c * h * w
    }
    /// Channels (or features), height and width; features have height and width 1, sequences height 1.
    pub const fn chw(self) -> (usize, usize, usize) {
        match self {
            Self::Features(features) => (features, 1, 1),
            Self::Sequence { c, length } => (c, 1, length),
            Self::Image { c, h, w } => (c, h, w),
        }
    }
    /// Channels, or features.
    pub const fn channels(self) -> usize {
        self.chw().0
    }
    /// Height times width, or length; 1 for features.
    pub const fn spatial(self) -> usize {
        self.chw().1 * self.chw().2
    }
    /// As written in files: NCHW without N.
    pub fn dimensions(self) -> Vec<usize> {
        match self {
            Self::Features(features) => vec![features],
            Self::Sequence { c, length } => vec![c, length],
            Self::Image { c, h, w } => vec![c, h, w],
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Features(features) => write!(f, "[{features}]"),
            Self::Sequence { c, length } => write!(f, "[{c}, {length}]"),
            Self::Image { c, h, w } => write!(f, "[{c}, {h}, {w}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_read_and_printed_as_in_files() {
        let image = Shape::from_dimensions(&[3, 32, 16]).expect("three dimensions");
        assert_eq!(
            (image.elements(), image.spatial(), image.channels()),
            (1536, 512, 3)
        );
        assert_eq!(image.to_string(), "[3, 32, 16]");
        assert_eq!(image.dimensions(), [3, 32, 16]);
        assert_eq!(Shape::from_dimensions(&[784]), Some(Shape::Features(784)));
        let sequence = Shape::from_dimensions(&[4, 9]).expect("two dimensions");
        assert_eq!((sequence.chw(), sequence.spatial()), ((4, 1, 9), 9));
        assert_eq!(
            (sequence.to_string(), sequence.dimensions()),
            ("[4, 9]".to_owned(), vec![4, 9])
        );
    }

    #[test]
    fn zero_wrong_and_overflowing_dimensions_are_refused() {
        for wrong in [
            &[][..],
            &[0],
            &[3, 0, 2],
            &[2, 0],
            &[MAX_ELEMENTS, 2],
            &[1, 2, 3, 4],
            &[usize::MAX, 2, 2],
            &[MAX_ELEMENTS + 1],
        ] {
            assert_eq!(Shape::from_dimensions(wrong), None, "{wrong:?}");
        }
    }
}
