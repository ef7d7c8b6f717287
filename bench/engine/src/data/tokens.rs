//! Sequences of tokens with some of them hidden, which a model predicts, and such sequences made from nothing.
//!
//! Tokens are whole numbers in f32; 0 fills sequences up, 1 stands for a hidden token, the words of a vocabulary begin at 2. What is
//! hidden is a function of seed and sample alone, so every epoch and every strategy hides the same. `scripts/pytorch/philox.py` makes
//! the same ones. Reference: Devlin et al. 2018, 3.1 (masked language model; all that is hidden becomes the mask here).
use super::Dataset;
use crate::loss::UNLABELLED;
use crate::philox::{self, Purpose};
use crate::shape::Shape;

/// What sequences are filled up with.
pub const PADDING: usize = 0;
/// What a hidden token is replaced by.
pub const MASK: usize = 1;
/// The first token that is a word.
pub const FIRST_WORD: usize = 2;

/// Which positions are to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predict {
    /// The hidden ones.
    Hidden,
    /// All but padding.
    All,
}

/// How tokens are hidden.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// Probability that a token is; one in each sample always is.
    pub share: f32,
    /// What has a label.
    pub predict: Predict,
    /// Seed.
    pub seed: u64,
}

/// Streams of [`Purpose::Tokens`].
mod stream {
    /// The words of synthetic sequences.
    pub(super) const WORDS: u32 = 0;
    /// Their lengths.
    pub(super) const LENGTHS: u32 = 1;
    /// Which positions are hidden.
    pub(super) const HIDDEN: u32 = 2;
    /// The position that always is.
    pub(super) const ALWAYS: u32 = 3;
}

impl Masking {
    /// Whether position `t` of sample `index` is hidden, which has `words` words of at most `length`.
    fn hides(&self, index: usize, t: usize, words: usize, length: usize) -> bool {
        let draw = |stream, element: usize| {
            philox::word(self.seed, Purpose::Tokens, stream, element as u64)
        };
        let always = draw(stream::ALWAYS, index) as usize % words;
        t == always || philox::uniform(draw(stream::HIDDEN, index * length + t)) < self.share
    }

    /// The input of sample `index` from its words: hidden ones masked, padding behind them.
    pub fn write(&self, index: usize, words: impl ExactSizeIterator<Item = usize>, to: &mut [f32]) {
        let (count, length) = (words.len(), to.len());
        to.fill(PADDING as f32);
        for (t, (to, word)) in to.iter_mut().zip(words).enumerate() {
            let hidden = self.hides(index, t, count, length);
            *to = if hidden { MASK } else { word } as f32;
        }
    }

    /// The labels of sample `index` from its words.
    pub fn write_labels(
        &self,
        index: usize,
        words: impl ExactSizeIterator<Item = usize>,
        to: &mut [i32],
    ) {
        let (count, length) = (words.len(), to.len());
        to.fill(UNLABELLED);
        for (t, (to, word)) in to.iter_mut().zip(words).enumerate() {
            if self.predict == Predict::All || self.hides(index, t, count, length) {
                *to = word as i32;
            }
        }
    }
}

/// Sequences of words that are equally likely, each of its own length.
#[derive(Clone, Debug)]
pub struct SyntheticTokens {
    /// Number of samples.
    pub len: usize,
    /// Positions.
    pub length: usize,
    /// Fewest words of a sequence; lengths from there to `length` are equally likely.
    pub shortest: usize,
    /// Tokens that there are, with padding and mask.
    pub vocabulary: usize,
    /// How they are hidden.
    pub masking: Masking,
}

impl SyntheticTokens {
    fn words(&self, index: usize) -> impl ExactSizeIterator<Item = usize> + '_ {
        assert!(index < self.len, "sample {index} of {}", self.len);
        let draw = |stream, element: usize| {
            philox::word(self.masking.seed, Purpose::Tokens, stream, element as u64) as usize
        };
        let more = draw(stream::LENGTHS, index) % (self.length - self.shortest + 1);
        (0..self.shortest + more).map(move |t| {
            let word = draw(stream::WORDS, index * self.length + t);
            FIRST_WORD + word % (self.vocabulary - FIRST_WORD)
        })
    }
}

impl Dataset for SyntheticTokens {
    fn len(&self) -> usize {
        self.len
    }
    fn shape(&self) -> Shape {
        Shape::Features(self.length)
    }
    fn classes(&self) -> usize {
        self.vocabulary
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        self.masking.write(index, self.words(index), to);
    }
    fn labels_per_sample(&self) -> usize {
        self.length
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        self.masking.write_labels(index, self.words(index), to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(predict: Predict) -> SyntheticTokens {
        SyntheticTokens {
            len: 200,
            length: 12,
            shortest: 3,
            vocabulary: 30,
            masking: Masking {
                share: 0.15,
                predict,
                seed: 5,
            },
        }
    }

    fn sample(of: &SyntheticTokens, index: usize) -> (Vec<f32>, Vec<i32>) {
        let (mut input, mut labels) = (vec![-1.0; of.length], vec![-1; of.length]);
        of.write(index, &mut input);
        of.write_labels(index, &mut labels);
        (input, labels)
    }

    #[test]
    fn hidden_words_are_labelled_and_padding_is_not() {
        let (hidden, all) = (sequences(Predict::Hidden), sequences(Predict::All));
        let (mut masked, mut words, mut lengths) = (0, 0, [0; 13]);
        for index in 0..hidden.len() {
            let (input, labels) = sample(&hidden, index);
            let (same, all_labels) = sample(&all, index);
            assert_eq!(input, same);
            let length = input
                .iter()
                .filter(|token| **token != PADDING as f32)
                .count();
            lengths[length] += 1;
            assert!(input[length..].iter().all(|token| *token == PADDING as f32));
            for t in 0..hidden.length {
                let is_masked = input[t] == MASK as f32;
                assert_eq!(labels[t] != UNLABELLED, is_masked);
                assert_eq!(all_labels[t] != UNLABELLED, t < length);
                if !is_masked && t < length {
                    assert_eq!(all_labels[t], input[t] as i32);
                }
                assert!(all_labels[t] == UNLABELLED || (2..30).contains(&all_labels[t]));
                masked += usize::from(is_masked);
            }
            assert!(
                input.contains(&(MASK as f32)),
                "each sample predicts something"
            );
            words += length;
        }
        assert!(lengths[..3].iter().all(|count| *count == 0));
        assert!(lengths[3..].iter().all(|count| *count > 5), "{lengths:?}");
        // One in each sample, and 15 % of the others.
        let expected = 200.0 + 0.15 * (words - 200) as f64;
        assert!(
            (masked as f64 / expected - 1.0).abs() < 0.15,
            "{masked} of {words}"
        );
    }
}
