//! What can be wrong with a model, said so that a person can repair the file.
//!
//! Every variant names the layer by its path in the file, such as `layers[3].residual.body[1] (conv2d)`, and says what
//! to write instead.
use crate::shape::Shape;

/// Why a model could not be lowered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The input is not `[features]`, `[channels, length]` or `[channels, height, width]`.
    #[error(
        "input {dimensions:?}: expected [features], [channels, length] or [channels, height, width], each at least 1 and together at most {}",
        crate::shape::MAX_ELEMENTS
    )]
    Input {
        /// As written.
        dimensions: Vec<usize>,
    },
    /// A list without layers, where there must be some.
    #[error("{path}: no layers; write at least one")]
    Empty {
        /// The list.
        path: String,
    },
    /// A layer for features got an image or a sequence.
    #[error(
        "{path}: needs [features], but its input is {input}: put \"flatten\" or \"global-average-pool\" before it"
    )]
    NeedsFeatures {
        /// The layer.
        path: String,
        /// Its input.
        input: Shape,
    },
    /// A layer for images got features or a sequence.
    #[error(
        "{path}: needs [channels, height, width], but its input is {input}: {}",
        to_image(*input)
    )]
    NeedsImage {
        /// The layer.
        path: String,
        /// Its input.
        input: Shape,
    },
    /// A setting must be positive.
    #[error("{path}: {key} is 0: write at least 1")]
    Zero {
        /// The layer.
        path: String,
        /// The setting.
        key: &'static str,
    },
    /// A window larger than what it slides over.
    #[error(
        "{path}: a kernel of {kernel} does not fit into input {input} with padding {padding}: write a kernel of at most {largest}, or more padding"
    )]
    Kernel {
        /// The layer.
        path: String,
        /// Side of the kernel.
        kernel: usize,
        /// The input.
        input: Shape,
        /// Zeros on each side.
        padding: usize,
        /// Largest side that fits.
        largest: usize,
    },
    /// Pooling windows that could lie in the padding alone.
    #[error("{path}: padding {padding} is more than half of the kernel {kernel}: write at most {}", kernel / 2)]
    PoolPadding {
        /// The layer.
        path: String,
        /// Side of the window.
        kernel: usize,
        /// Padding on each side.
        padding: usize,
    },
    /// Groups that don't divide the channels.
    #[error("{path}: {groups} groups do not divide {channels} channels: write one of {}", divisors(*channels))]
    Groups {
        /// The layer.
        path: String,
        /// Groups, as written or by default.
        groups: usize,
        /// Channels of the input.
        channels: usize,
    },
    /// Statistics of one element, whatever the batch.
    #[error(
        "{path}: {input} has one position per channel, which has no variance: put it where there are more, or write another norm"
    )]
    OnePosition {
        /// The norm.
        path: String,
        /// Shape of a sample.
        input: Shape,
    },
    /// Branches that cannot be added.
    #[error(
        "{path}: the body gives {body}, the shortcut {shortcut}: make them equal, with a conv2d of kernel 1 in the shortcut where channels or size change"
    )]
    Branches {
        /// The residual.
        path: String,
        /// Output of the body.
        body: Shape,
        /// Output of the shortcut; of the identity: the input.
        shortcut: Shape,
    },
    /// A number outside its range.
    #[error("{path}: {key} = {value} is out of range: write {allowed}")]
    Range {
        /// The layer.
        path: String,
        /// The setting.
        key: &'static str,
        /// As written.
        value: f32,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A value or parameter too large for the engine.
    #[error(
        "{path}: {what} is larger than {} elements: make the layer or its input smaller",
        crate::shape::MAX_ELEMENTS
    )]
    TooLarge {
        /// The layer.
        path: String,
        /// `the output` or a parameter.
        what: &'static str,
    },
    /// More layers than can be meant.
    #[error("{path}: the model has more than {limit} layers: lower `times`")]
    TooManyLayers {
        /// The layer at which there were too many.
        path: String,
        /// The limit.
        limit: usize,
    },
    /// The last output does not fit the data.
    #[error(
        "the model's output is {output}, but the data has {classes} classes: end with {{ linear = {{ features = \"classes\" }} }}"
    )]
    Output {
        /// Output of the last layer.
        output: Shape,
        /// Classes of the data.
        classes: usize,
    },
    /// An embedding elsewhere than at the start.
    #[error(
        "{path}: its input is {input}, not the model's tokens: put it first, and write `input = [length]`"
    )]
    NotTokens {
        /// The embedding.
        path: String,
        /// Its input.
        input: Shape,
    },
    /// A layer for tokens in a model without an embedding.
    #[error(
        "{path}: needs tokens: put {{ embedding = {{ vocabulary = \"classes\", features = ... }} }} first"
    )]
    NeedsTokens {
        /// The layer.
        path: String,
    },
    /// More tokens than f32 can tell apart.
    #[error("{path}: the vocabulary is larger than 16777216 tokens: write fewer")]
    Vocabulary {
        /// The embedding.
        path: String,
    },
    /// Padding that is no token.
    #[error("{path}: padding {padding} is not one of {vocabulary} tokens: write at most {}", vocabulary.saturating_sub(1))]
    Padding {
        /// The embedding.
        path: String,
        /// As written.
        padding: usize,
        /// Tokens.
        vocabulary: usize,
    },
    /// Padding that is to be left out where the embedding knows none.
    #[error(
        "{path}: padding = \"masked\", but the embedding has no padding: write which token it is there, or leave it out here"
    )]
    NoPadding {
        /// The norm.
        path: String,
    },
    /// Heads that don't divide the features.
    #[error("{path}: {heads} heads do not divide {features} features: write one of {}", divisors(*features))]
    Heads {
        /// The attention.
        path: String,
        /// As written.
        heads: usize,
        /// Features of each position.
        features: usize,
    },
    /// A tied weight of another shape.
    #[error(
        "{path}: the weight is tied to a table of {vocabulary} tokens by {table}, but it must be {outputs} by {inputs}: make `features` the vocabulary and the input as wide as the embedding, or write `tied = false`"
    )]
    Tied {
        /// The layer.
        path: String,
        /// Rows of the table.
        vocabulary: usize,
        /// Features of the table.
        table: usize,
        /// Output features.
        outputs: usize,
        /// Input features.
        inputs: usize,
    },
    /// Batch statistics of one element, in training.
    #[error(
        "{path}: {samples} sample of {input} is one element per channel, which has no variance: write a batch of at least 2 per device (or per normalization chunk), or another norm"
    )]
    OneElement {
        /// The norm.
        path: String,
        /// Samples of the chunk.
        samples: usize,
        /// Shape of a sample.
        input: Shape,
    },
}

/// How a layer for images gets one.
fn to_image(input: Shape) -> &'static str {
    match input {
        Shape::Sequence { .. } => {
            "write the model's input as [channels, 1, length], or leave the layer out"
        }
        _ => "move it before \"flatten\" or pooling, or leave it out",
    }
}

/// The divisors of `n` in words: `1, 2, 4 or 8`.
fn divisors(n: usize) -> String {
    let small = (1..=n.isqrt()).filter(|d| n.is_multiple_of(*d));
    let mut all: Vec<usize> = small.flat_map(|d| [d, n / d]).collect();
    all.sort_unstable();
    all.dedup();
    let words: Vec<String> = all.iter().map(usize::to_string).collect();
    match words.as_slice() {
        [head @ .., last] if !head.is_empty() => format!("{} or {last}", head.join(", ")),
        only => only.join(""),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn divisors_are_listed_in_words() {
        assert_eq!(super::divisors(12), "1, 2, 3, 4, 6 or 12");
        assert_eq!(super::divisors(1), "1");
        assert_eq!(super::divisors(7), "1 or 7");
    }
}
