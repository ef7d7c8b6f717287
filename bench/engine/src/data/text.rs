//! Words as sequences of characters, from a list with a word a line, some characters of which are hidden.
//!
//! Words of 2 to `length` letters a to z are taken, others (names, plurals with an apostrophe, longer ones) are left out. Which are for
//! testing, a tenth, depends on their number alone. Nothing is read here: the bytes come from the caller.
//! Reference: Debian's package `wamerican`, of which `scenarios/data/words.txt` is a sixteenth.
use std::ops::Range;

use super::tokens::{FIRST_WORD, Masking};
use super::{Dataset, Random, Sampler, Split};
use crate::shape::Shape;

/// Padding, mask and 26 letters.
pub const VOCABULARY: usize = FIRST_WORD + 26;
/// Fewer words than this are no list.
const FEWEST: usize = 100;
/// Share of the words that is for testing.
const TEST: usize = 10;
/// Seed of the permutation whose head is for testing.
const SPLIT_SEED: u64 = 0x3a0d_5eed;

/// A list with too few words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "has {found} words of 2 to {length} letters a to z in {lines} lines: expected a word a line, and at least {FEWEST}"
)]
pub struct TextError {
    /// Words that could be taken.
    pub found: usize,
    /// Lines.
    pub lines: usize,
    /// Positions of a sequence.
    pub length: usize,
}

/// Words, or a part of them.
#[derive(Clone, Debug)]
pub struct Words {
    letters: Vec<u8>,
    words: Vec<Range<usize>>,
    length: usize,
    masking: Masking,
}

impl Words {
    /// Takes the words of a list for sequences of `length`.
    ///
    /// # Errors
    /// [`TextError`] when it has too few of them.
    pub fn parse(
        text: &[u8],
        length: usize,
        masking: Masking,
        split: Split,
    ) -> Result<Self, TextError> {
        let fits = |word: &&[u8]| {
            (2..=length).contains(&word.len()) && word.iter().all(u8::is_ascii_lowercase)
        };
        let lines = || text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let all: Vec<&[u8]> = lines().filter(fits).collect();
        if all.len() < FEWEST {
            return Err(TextError {
                found: all.len(),
                lines: lines().filter(|line| !line.is_empty()).count(),
                length,
            });
        }
        let mut order = Vec::new();
        Random {
            len: all.len(),
            seed: SPLIT_SEED,
        }
        .indices(0, &mut order);
        let test = all.len() / TEST;
        let chosen = match split {
            Split::Train => &order[test..],
            Split::Test => &order[..test],
            Split::All => &order[..],
        };
        let mut of_list = chosen.to_vec();
        of_list.sort_unstable();
        let (mut letters, mut words) = (Vec::new(), Vec::with_capacity(of_list.len()));
        for index in of_list {
            let start = letters.len();
            letters.extend_from_slice(all[index]);
            words.push(start..letters.len());
        }
        Ok(Self {
            letters,
            words,
            length,
            masking,
        })
    }

    fn tokens(&self, index: usize) -> impl ExactSizeIterator<Item = usize> + '_ {
        let letters = &self.letters[self.words[index].clone()];
        letters
            .iter()
            .map(|letter| FIRST_WORD + usize::from(letter - b'a'))
    }
}

impl Dataset for Words {
    fn len(&self) -> usize {
        self.words.len()
    }
    fn shape(&self) -> Shape {
        Shape::Features(self.length)
    }
    fn classes(&self) -> usize {
        VOCABULARY
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        self.masking.write(index, self.tokens(index), to);
    }
    fn labels_per_sample(&self) -> usize {
        self.length
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        self.masking.write_labels(index, self.tokens(index), to);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::Predict;

    const MASKING: Masking = Masking {
        share: 0.0,
        predict: Predict::All,
        seed: 1,
    };

    fn list() -> Vec<u8> {
        let mut text = b"Name\na\nit's\nextraordinarily\n".to_vec();
        for first in b'a'..=b'z' {
            for second in b'a'..=b'h' {
                text.extend([first, second, b'o', b'\r', b'\n']);
            }
        }
        text
    }

    /// The word of a sample, from its labels.
    fn word(of: &Words, index: usize) -> String {
        let mut labels = vec![0; of.length];
        of.write_labels(index, &mut labels);
        let letter = |label: &i32| (b'a' + (*label as usize - FIRST_WORD) as u8) as char;
        labels
            .iter()
            .filter(|label| **label >= 0)
            .map(letter)
            .collect()
    }

    #[test]
    fn words_that_fit_are_taken_and_split_without_overlap() {
        let of = |split| Words::parse(&list(), 8, MASKING, split).unwrap();
        let (train, test, all) = (of(Split::Train), of(Split::Test), of(Split::All));
        assert_eq!((all.len(), test.len(), train.len()), (208, 20, 188));
        let words = |of: &Words| -> HashSet<String> {
            (0..of.len()).map(|index| word(of, index)).collect()
        };
        assert!(words(&train).is_disjoint(&words(&test)));
        assert_eq!(words(&train).len() + words(&test).len(), 208);
        assert!(words(&all).contains("cho") && !words(&all).contains("a"));
        let mut input = [9.0; 8];
        all.write(0, &mut input);
        assert_eq!(input[3..], [0.0; 5], "padding follows");
        assert_eq!(
            input.iter().filter(|token| **token == 1.0).count(),
            1,
            "one letter is hidden"
        );
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let error = Words::parse(b"one\ntwo\n", 8, MASKING, Split::All).unwrap_err();
        assert_eq!(
            error.to_string(),
            "has 2 words of 2 to 8 letters a to z in 2 lines: expected a word a line, and at least 100"
        );
    }
}
