//! What batch norm learns, and what it keeps from forward to backward.
use crate::backend::{Backend, Category};
use crate::layer::Result;
use crate::tensor::{Dtype, Span};

/// γ or β, and its gradient; both empty without affine.
#[derive(Clone, Copy, Debug)]
pub struct Learnable {
    /// The parameter.
    pub value: Span,
    /// Its gradient.
    pub gradient: Span,
}

impl Learnable {
    /// No parameter.
    pub const NONE: Self = Self {
        value: Span::EMPTY,
        gradient: Span::EMPTY,
    };
}

/// The statistics of one chunk, and room for its sums in backward.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// `[C]`.
    pub mean: Span,
    /// `[C]`, biased.
    pub variance: Span,
    /// `[C]`.
    pub rstd: Span,
    /// `[2C]`: Σ dy and Σ dy·(x − mean).
    pub sums: Span,
    /// One element: values per channel.
    pub count: Span,
}

impl Statistics {
    /// Room for `chunks` chunks of `channels` channels.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(
        backend: &mut dyn Backend,
        channels: usize,
        chunks: usize,
    ) -> Result<Vec<Self>> {
        let each = 5 * channels + 1;
        let all = backend.allocate(Category::Activations, Dtype::F32, chunks * each)?;
        let chunk = |k: usize| {
            let own = all.slice(k * each..(k + 1) * each);
            Self {
                mean: own.slice(0..channels),
                variance: own.slice(channels..2 * channels),
                rstd: own.slice(2 * channels..3 * channels),
                sums: own.slice(3 * channels..5 * channels),
                count: own.slice(5 * channels..each),
            }
        };
        Ok((0..chunks).map(chunk).collect())
    }
}
