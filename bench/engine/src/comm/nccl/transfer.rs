//! Which transfers of NCCL's a call is made of.
//!
//! Contract: pure; the same list on every rank up to what a rank's place in the call changes, so that ranks that make the same calls in
//! the same order make the same transfers in the same order. A transfer of nothing is left out on all ranks that would take part in it.
//! NCCL scatters equal chunks only, so that where the standard split ([`chunk`]) is uneven each chunk is a reduce to its rank, all in one
//! group.
//! Reference: NCCL user guide, "Collective Operations", "In-place Operations" and "Point-to-point communication".
use super::library::Operator;
use crate::comm::{Collective, CollectiveCall, chunk};
use crate::tensor::Dtype;

/// What a transfer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Broadcast { root: usize },
    Reduce { operator: Operator, root: usize },
    AllReduce { operator: Operator },
    AllGather,
    ReduceScatter { operator: Operator },
    Send { peer: usize },
    Receive { peer: usize },
}

/// One function call of NCCL's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) kind: Kind,
    /// Address on the rank's GPU that is read; 0 where the function takes none.
    pub(super) from: u64,
    /// Address that is written, of a reduce on its root only; 0 where the function takes none.
    pub(super) to: u64,
    /// Elements, as the function counts them: of an all-gather one rank's block, of a reduce-scatter one rank's chunk.
    pub(super) count: usize,
    pub(super) dtype: Dtype,
}

/// Where a call takes place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) rank: usize,
    pub(super) world: usize,
    /// Address of the call's `from`; 0 where the rank's is not used.
    pub(super) from: u64,
    /// As `from`, of its `to`.
    pub(super) to: u64,
    /// A number on the GPU for calls that have none of their own: a barrier.
    pub(super) scratch: u64,
}

/// Whether the transfers of `call` go as one group: where there may be several.
pub(super) fn is_grouped(call: &CollectiveCall, world: usize) -> bool {
    match call.collective {
        Collective::Scatter | Collective::Gather => true,
        Collective::ReduceScatter => !call.from.len().is_multiple_of(world),
        _ => false,
    }
}

/// Hands the transfers of `call` to `each`, in order.
pub(super) fn transfers<E>(
    call: &CollectiveCall,
    place: &Place,
    operator: Operator,
    each: &mut dyn FnMut(Transfer) -> Result<(), E>,
) -> Result<(), E> {
    let Place {
        rank,
        world,
        from,
        to,
        ..
    } = *place;
    let (dtype, root, len) = (call.from.dtype(), call.root, call.from.len());
    let mut hand = |kind, from, to, count| {
        if count == 0 {
            return Ok(());
        }
        each(Transfer {
            kind,
            from,
            to,
            count,
            dtype,
        })
    };
    let at = |address: u64, element: usize| address + (element * dtype.size()) as u64;
    match call.collective {
        Collective::Barrier => each(Transfer {
            kind: Kind::AllReduce {
                operator: Operator::SUM,
            },
            from: place.scratch,
            to: place.scratch,
            count: 1,
            dtype: Dtype::I32,
        }),
        Collective::Broadcast => hand(Kind::Broadcast { root }, from, to, len),
        Collective::Reduce => hand(Kind::Reduce { operator, root }, from, to, len),
        Collective::AllReduce => hand(Kind::AllReduce { operator }, from, to, len),
        Collective::AllGather => hand(Kind::AllGather, from, to, len),
        Collective::ReduceScatter if len.is_multiple_of(world) => {
            hand(Kind::ReduceScatter { operator }, from, to, len / world)
        }
        Collective::ReduceScatter => (0..world).try_for_each(|root| {
            let part = chunk(len, world, root);
            let own = at(from, part.start);
            // Only the root writes; in place, the others have nowhere else to name.
            let result = if root == rank { to } else { own };
            hand(Kind::Reduce { operator, root }, own, result, part.len())
        }),
        Collective::Scatter => {
            if rank == root {
                for peer in 0..world {
                    let part = chunk(len, world, peer);
                    hand(Kind::Send { peer }, at(from, part.start), 0, part.len())?;
                }
            }
            hand(Kind::Receive { peer: root }, 0, to, call.to.len())
        }
        Collective::Gather => {
            hand(Kind::Send { peer: root }, from, 0, len)?;
            if rank != root {
                return Ok(());
            }
            (0..world).try_for_each(|peer| {
                let part = chunk(call.to.len(), world, peer);
                hand(Kind::Receive { peer }, 0, at(to, part.start), part.len())
            })
        }
        Collective::Send => hand(Kind::Send { peer: root }, from, 0, len),
        Collective::Receive => hand(Kind::Receive { peer: root }, 0, to, call.to.len()),
        // `check` has refused it.
        Collective::Copy => Ok(()),
    }
}
