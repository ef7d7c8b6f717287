//! Bytes of one collective call, per rank, for each named algorithm.
//!
//! Contract: [`Call::traffic`] returns `None` where the algorithm has no such collective, never a guess.
//! Reference: Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
use super::{Traffic, split};

/// Which collective a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collective {
    /// Root's elements reach every rank.
    Broadcast {
        /// The sender.
        root: u64,
    },
    /// The sum over ranks reaches the root.
    Reduce {
        /// The receiver.
        root: u64,
    },
    /// The sum over ranks reaches every rank.
    AllReduce,
    /// Every rank contributes `elements`, and all contributions reach every rank.
    AllGather,
    /// Of the sum of `elements`, rank r receives chunk r.
    ReduceScatter,
    /// Root's `elements` are split, and rank r receives chunk r.
    Scatter {
        /// The sender.
        root: u64,
    },
    /// Chunk r of `elements` in all comes from rank r and reaches the root.
    Gather {
        /// The receiver.
        root: u64,
    },
    /// One rank sends `elements` to another.
    SendRecv {
        /// The sender.
        from: u64,
        /// The receiver.
        to: u64,
    },
    /// No payload.
    Barrier,
}

/// How ranks do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// One memory region visible to all ranks: each reduces its own chunk out of the others' contributions, and the
    /// others read the result from it.
    SharedDirect,
    /// Neighbours on a ring, chunk after chunk; scatter, gather and messages go straight.
    Ring,
    /// One binary tree over the ranks (in heap order from the root): up for a sum, down for a result. NCCL's double
    /// tree runs each half of the payload over its own tree, which bounds a rank's bytes by twice the payload.
    BinaryTree,
    /// Everything goes straight to the root, and from it straight to everyone.
    Root,
}

impl Algorithm {
    /// The name in `comm.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::SharedDirect => "shared-direct",
            Self::Ring => "ring",
            Self::BinaryTree => "binary-tree",
            Self::Root => "root",
        }
    }

    /// The algorithm of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::SharedDirect, Self::Ring, Self::BinaryTree, Self::Root]
            .into_iter()
            .find(|a| a.name() == name)
    }
}

/// One call of a collective by all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which collective.
    pub collective: Collective,
    /// By which algorithm.
    pub algorithm: Algorithm,
    /// Elements, as the collective's documentation counts them.
    pub elements: u64,
    /// Bytes of one element.
    pub element_bytes: u64,
    /// Number of ranks.
    pub ranks: u64,
}

impl Call {
    /// What `rank` sends and receives; `None` where the algorithm has no such collective.
    pub fn traffic(&self, rank: u64) -> Option<Traffic> {
        if self.ranks <= 1 || self.collective == Collective::Barrier {
            return Some(Traffic::default());
        }
        let (sent, received) = match self.algorithm {
            Algorithm::SharedDirect => self.shared_direct(rank),
            Algorithm::Ring => self.ring(rank),
            Algorithm::BinaryTree => self.binary_tree(rank)?,
            Algorithm::Root => self.root(rank)?,
        };
        Some(Traffic {
            sent: sent * self.element_bytes,
            received: received * self.element_bytes,
        })
    }

    /// The sum over all ranks.
    pub fn total(&self) -> Option<Traffic> {
        (0..self.ranks)
            .map(|rank| self.traffic(rank))
            .sum::<Option<Traffic>>()
    }

    fn chunk(&self, index: u64) -> u64 {
        split(self.elements, self.ranks, index % self.ranks)
    }

    /// Elements (sent, received) by direct copies: the same for every collective whose bytes take one hop.
    fn shared_direct(&self, rank: u64) -> (u64, u64) {
        let (len, others, own) = (self.elements, self.ranks - 1, self.chunk(rank));
        match self.collective {
            Collective::Broadcast { root } if rank == root => (len * others, 0),
            Collective::Broadcast { .. } => (0, len),
            Collective::Reduce { root } if rank == root => (0, len * others),
            Collective::Reduce { .. } => (len, 0),
            Collective::AllReduce => (len - own + own * others, own * others + len - own),
            Collective::AllGather => (len * others, len * others),
            Collective::ReduceScatter => (len - own, own * others),
            Collective::Scatter { root } if rank == root => (len - own, 0),
            Collective::Scatter { .. } => (0, own),
            Collective::Gather { root } if rank == root => (0, len - own),
            Collective::Gather { .. } => (own, 0),
            Collective::SendRecv { from, to } if from != to => (
                if rank == from { len } else { 0 },
                if rank == to { len } else { 0 },
            ),
            Collective::SendRecv { .. } | Collective::Barrier => (0, 0),
        }
    }

    fn ring(&self, rank: u64) -> (u64, u64) {
        let (len, n) = (self.elements, self.ranks);
        let previous = rank + n - 1;
        match self.collective {
            // The reduce-scatter half leaves chunk r out of what rank r sends, the all-gather half chunk r + 1.
            Collective::AllReduce => (
                2 * len - self.chunk(rank) - self.chunk(rank + 1),
                2 * len - self.chunk(previous) - self.chunk(rank),
            ),
            Collective::ReduceScatter => (len - self.chunk(rank), len - self.chunk(previous)),
            Collective::AllGather => (len * (n - 1), len * (n - 1)),
            // A pipeline from the root: the rank before the root ends it.
            Collective::Broadcast { root } => (
                if (rank + 1) % n == root { 0 } else { len },
                if rank == root { 0 } else { len },
            ),
            Collective::Reduce { root } => (
                if rank == root { 0 } else { len },
                if rank == (root + 1) % n { 0 } else { len },
            ),
            // Straight between the root, or the sender, and each other rank.
            Collective::SendRecv { .. }
            | Collective::Scatter { .. }
            | Collective::Gather { .. }
            | Collective::Barrier => self.shared_direct(rank),
        }
    }

    fn binary_tree(&self, rank: u64) -> Option<(u64, u64)> {
        let (len, n) = (self.elements, self.ranks);
        let edges = |root: u64| {
            let place = (rank + n - root) % n;
            let children = [2 * place + 1, 2 * place + 2]
                .into_iter()
                .filter(|&child| child < n)
                .count() as u64;
            (u64::from(place > 0), children)
        };
        Some(match self.collective {
            Collective::AllReduce => {
                let (parent, children) = edges(0);
                (len * (parent + children), len * (parent + children))
            }
            Collective::Broadcast { root } => {
                let (parent, children) = edges(root);
                (len * children, len * parent)
            }
            Collective::Reduce { root } => {
                let (parent, children) = edges(root);
                (len * parent, len * children)
            }
            _ => return None,
        })
    }

    fn root(&self, rank: u64) -> Option<(u64, u64)> {
        match self.collective {
            Collective::AllReduce if rank == 0 => Some((
                self.elements * (self.ranks - 1),
                self.elements * (self.ranks - 1),
            )),
            Collective::AllReduce => Some((self.elements, self.elements)),
            Collective::AllGather | Collective::ReduceScatter => None,
            _ => Some(self.shared_direct(rank)),
        }
    }
}

/// The factor that turns payload over time into bus bandwidth, as nccl-tests defines it.
pub fn bus_factor(collective: Collective, ranks: u64) -> f64 {
    let n = ranks as f64;
    match collective {
        Collective::AllReduce => 2.0 * (n - 1.0) / n,
        Collective::ReduceScatter
        | Collective::AllGather
        | Collective::Gather { .. }
        | Collective::Scatter { .. } => (n - 1.0) / n,
        Collective::Broadcast { .. } | Collective::Reduce { .. } | Collective::SendRecv { .. } => {
            1.0
        }
        Collective::Barrier => 0.0,
    }
}
