//! In which order samples are taken: sequential, random, or a rank's share, as PyTorch's samplers.
//!
//! A permutation is a function of seed + epoch: Fisher–Yates over Philox numbers. It is not `torch.randperm`'s, which
//! nothing depends on; how it is padded, truncated and dealt to ranks is PyTorch's.
//! Reference: `torch/utils/data/{sampler,distributed}.py`.
use crate::philox::Sequence;

/// An order of samples.
pub trait Sampler: Send {
    /// Number of indices of an epoch.
    fn len(&self) -> usize;
    /// Whether an epoch has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Replaces `to` by the indices of `epoch`. Allocates nothing once `to` has room for an epoch's indices twice.
    fn indices(&self, epoch: u64, to: &mut Vec<usize>);
}

/// 0, 1, 2, …
#[derive(Clone, Copy, Debug)]
pub struct Sequential {
    /// Samples of the data set.
    pub len: usize,
}

impl Sampler for Sequential {
    fn len(&self) -> usize {
        self.len
    }
    fn indices(&self, _epoch: u64, to: &mut Vec<usize>) {
        to.clear();
        to.extend(0..self.len);
    }
}

/// A permutation, another one in each epoch.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Samples of the data set.
    pub len: usize,
    /// Seed.
    pub seed: u64,
}

impl Sampler for Random {
    fn len(&self) -> usize {
        self.len
    }
    fn indices(&self, epoch: u64, to: &mut Vec<usize>) {
        Sequential { len: self.len }.indices(epoch, to);
        Sequence::shuffle(self.seed.wrapping_add(epoch), 0).shuffle_slice(to);
    }
}

/// One rank's share, as PyTorch's `DistributedSampler`: every rank the same number of samples.
///
/// Without `drop_last` the order is padded by repeating its head, so up to `ranks − 1` samples come twice; with it the
/// tail is left out. Rank r takes positions r, r + R, r + 2R, …
#[derive(Clone, Copy, Debug)]
pub struct Distributed {
    /// Samples of the data set.
    pub len: usize,
    /// Number of ranks R; at least 1.
    pub ranks: usize,
    /// This rank.
    pub rank: usize,
    /// Seed, the same on every rank; none goes through the data in order.
    pub seed: Option<u64>,
    /// Truncate instead of padding.
    pub drop_last: bool,
}

impl Distributed {
    /// The order that all ranks share, padded or truncated to a multiple of their number.
    fn shared(&self, epoch: u64, to: &mut Vec<usize>) {
        match self.seed {
            Some(seed) => Random {
                len: self.len,
                seed,
            }
            .indices(epoch, to),
            None => Sequential { len: self.len }.indices(epoch, to),
        }
        let total = self.len() * self.ranks;
        to.truncate(total);
        // PyTorch repeats the head, several times where there are fewer samples than ranks.
        for position in to.len()..total {
            to.push(to[position % self.len]);
        }
    }
}

impl Sampler for Distributed {
    fn len(&self) -> usize {
        if self.drop_last {
            self.len / self.ranks
        } else {
            self.len.div_ceil(self.ranks)
        }
    }
    fn indices(&self, epoch: u64, to: &mut Vec<usize>) {
        self.shared(epoch, to);
        let own = self.len();
        for position in 0..own {
            to[position] = to[self.rank + position * self.ranks];
        }
        to.truncate(own);
    }
}

/// What all ranks of a [`Distributed`] take, as global batches: the ranks' k-th batches one after the other in rank order.
/// `single` and `dp` see with it the same global batches as `ddp`. A last batch that is not full on every rank is left out.
#[derive(Clone, Copy, Debug)]
pub struct RankOrder {
    /// The ranks' sampler; its `rank` does not matter.
    pub ranks: Distributed,
    /// Samples of a rank's batch.
    pub batch: usize,
}

impl Sampler for RankOrder {
    fn len(&self) -> usize {
        self.ranks.len() / self.batch * self.batch * self.ranks.ranks
    }
    fn indices(&self, epoch: u64, to: &mut Vec<usize>) {
        self.ranks.shared(epoch, to);
        let (ranks, batch, len) = (self.ranks.ranks, self.batch, self.len());
        to.truncate(len);
        // Position i of a global batch holds element i % batch of rank i / batch. The elements of a global batch are a
        // contiguous block of the shared order, so each block is permuted within itself, from a copy behind the order.
        to.extend_from_within(..);
        for position in 0..len {
            let (block, i) = (
                position / (ranks * batch) * ranks * batch,
                position % (ranks * batch),
            );
            to[position] = to[len + block + i / batch + i % batch * ranks];
        }
        to.truncate(len);
    }
}
