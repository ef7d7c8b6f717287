//! The one place that converts between the layouts of files and of memory.
//!
//! Files, fixtures and PyTorch have activations NCHW and convolution weights OIHW. In memory they are NHWC and OHWI, so
//! that the innermost loop of every kernel runs over channels. Linear weights (`[out, in]`) are the same in both.
use crate::shape::Shape;

/// How the elements of a parameter or activation are ordered in memory, compared with its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// The same order in both.
    Same,
    /// `outer` blocks of `[channels, spatial]` in files and `[spatial, channels]` in memory: an activation with `outer`
    /// samples, a convolution weight with `outer` output channels, or γ and β per element with `outer` = 1.
    ChannelsLast {
        /// Blocks.
        outer: usize,
        /// Channels.
        channels: usize,
        /// Height times width.
        spatial: usize,
    },
}

impl Layout {
    /// Layout of `batch` samples of `shape`.
    pub const fn activation(shape: Shape, batch: usize) -> Self {
        Self::channels_last(batch, shape.channels(), shape.spatial())
    }
    /// Layout of a convolution weight `[out_c, c, kernel, kernel]`.
    pub const fn convolution(out_c: usize, c: usize, kernel: usize) -> Self {
        Self::channels_last(out_c, c, kernel * kernel)
    }
    const fn channels_last(outer: usize, channels: usize, spatial: usize) -> Self {
        if channels == 1 || spatial == 1 {
            Self::Same
        } else {
            Self::ChannelsLast {
                outer,
                channels,
                spatial,
            }
        }
    }

    /// Copies from the order of files to that of memory.
    ///
    /// # Panics
    /// When the lengths differ from the layout's: a bug of the caller.
    pub fn to_memory<T: Copy>(self, file: &[T], memory: &mut [T]) {
        match self {
            Self::Same => memory.copy_from_slice(file),
            Self::ChannelsLast {
                outer,
                channels,
                spatial,
            } => transpose(file, memory, outer, channels, spatial),
        }
    }
    /// Copies from the order of memory to that of files.
    ///
    /// # Panics
    /// As [`Layout::to_memory`].
    pub fn to_file<T: Copy>(self, memory: &[T], file: &mut [T]) {
        match self {
            Self::Same => file.copy_from_slice(memory),
            Self::ChannelsLast {
                outer,
                channels,
                spatial,
            } => transpose(memory, file, outer, spatial, channels),
        }
    }
}

/// Transposes `outer` matrices `[rows, columns]`.
fn transpose<T: Copy>(from: &[T], to: &mut [T], outer: usize, rows: usize, columns: usize) {
    let size = rows * columns;
    assert!(
        from.len() == outer * size && to.len() == outer * size,
        "{outer}×{rows}×{columns}: {} to {}",
        from.len(),
        to.len()
    );
    for (from, to) in from.chunks_exact(size).zip(to.chunks_exact_mut(size)) {
        for (column, line) in to.chunks_exact_mut(rows).enumerate() {
            for (row, value) in line.iter_mut().enumerate() {
                *value = from[row * columns + column];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_move_last_and_back() {
        // Two samples of two channels of 1×3: file order is channel-major.
        let shape = Shape::Image { c: 2, h: 1, w: 3 };
        let file: Vec<i32> = (0..12).collect();
        let mut memory = vec![0; 12];
        Layout::activation(shape, 2).to_memory(&file, &mut memory);
        assert_eq!(memory, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        let mut back = vec![0; 12];
        Layout::activation(shape, 2).to_file(&memory, &mut back);
        assert_eq!(back, file);
    }

    #[test]
    fn one_channel_or_one_pixel_needs_no_transpose() {
        assert_eq!(Layout::convolution(8, 1, 3), Layout::Same);
        assert_eq!(Layout::convolution(8, 4, 1), Layout::Same);
        assert_eq!(Layout::activation(Shape::Features(7), 3), Layout::Same);
    }
}
