//! What every transport does for a call: refuse what cannot be, find the memory, and hand it to the algorithm.
use crate::backend::HostMemory;
use crate::comm::error::{CommError, invalid};
use crate::comm::number::Number;
use crate::comm::{Collective, CollectiveCall, Reduce, chunk};
use crate::half::{Bf16, F16};
use crate::tensor::{Dtype, Span};

/// One transport's way to do each collective, for one call under way.
pub(super) trait Algorithm {
    fn rank(&self) -> usize;
    fn barrier(&mut self) -> Result<(), CommError>;
    fn broadcast<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError>;
    fn reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError>;
    fn all_reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError>;
    /// `data` is a block of equal size from each rank; the own one is there.
    fn all_gather<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError>;
    fn reduce_scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError>;
    /// The result replaces the own chunk of `data`; the other chunks are of no use afterwards.
    fn reduce_scatter_in_place<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError>;
    /// `from` is empty but on the root.
    fn scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError>;
    /// `to` is empty but on the root.
    fn gather<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError>;
    fn send<T: Number>(&mut self, data: &[T]) -> Result<(), CommError>;
    fn receive<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError>;
}

/// Runs `call` by `algorithm`; `memory` is that of the rank's device.
///
/// # Safety
/// Nobody else touches the call's spans until it returns, and [`check`] has passed the call.
pub(super) unsafe fn perform(
    algorithm: &mut impl Algorithm,
    call: &CollectiveCall,
    memory: &HostMemory,
) -> Result<(), CommError> {
    // SAFETY: the caller's promise.
    unsafe {
        match call.from.dtype() {
            Dtype::F32 => perform_typed::<f32>(algorithm, call, memory),
            Dtype::I32 => perform_typed::<i32>(algorithm, call, memory),
            Dtype::I64 => perform_typed::<i64>(algorithm, call, memory),
            Dtype::F16 => perform_typed::<F16>(algorithm, call, memory),
            Dtype::Bf16 => perform_typed::<Bf16>(algorithm, call, memory),
        }
    }
}

/// # Safety
/// As [`perform`].
unsafe fn perform_typed<T: Number>(
    algorithm: &mut impl Algorithm,
    call: &CollectiveCall,
    memory: &HostMemory,
) -> Result<(), CommError> {
    let CollectiveCall { from, to, .. } = *call;
    let rank = algorithm.rank();
    let on_root = rank == call.root;
    let own_part = overlap(from, to);
    let only_on_root = |span: Span| if on_root { span } else { span.first(0) };
    // SAFETY: the caller keeps others off the spans; calls in place take one slice only, and for the others `check` has
    // refused spans that overlap.
    unsafe {
        match call.collective {
            Collective::Barrier => algorithm.barrier(),
            Collective::Broadcast => algorithm.broadcast(memory.write::<T>(to)),
            Collective::Reduce => algorithm.reduce(memory.write::<T>(to)),
            Collective::AllReduce => algorithm.all_reduce(memory.write::<T>(to)),
            Collective::AllGather => {
                let whole = memory.write::<T>(to);
                if !own_part {
                    let block = rank * from.len()..(rank + 1) * from.len();
                    whole[block].copy_from_slice(memory.read::<T>(from));
                }
                algorithm.all_gather(whole)
            }
            Collective::ReduceScatter if own_part => {
                algorithm.reduce_scatter_in_place(memory.write::<T>(from))
            }
            Collective::ReduceScatter => {
                algorithm.reduce_scatter(memory.read::<T>(from), memory.write::<T>(to))
            }
            Collective::Scatter => {
                algorithm.scatter(memory.read::<T>(only_on_root(from)), memory.write::<T>(to))
            }
            Collective::Gather => {
                algorithm.gather(memory.read::<T>(from), memory.write::<T>(only_on_root(to)))
            }
            Collective::Send => algorithm.send(memory.read::<T>(from)),
            Collective::Receive => algorithm.receive(memory.write::<T>(to)),
            Collective::Copy => Err(invalid(
                call.collective,
                "a copy between devices is not a collective",
            )),
        }
    }
}

/// Refuses calls that no transport can make: `rank` of `world` is about to make `call`.
pub(super) fn check(call: &CollectiveCall, rank: usize, world: usize) -> Result<(), CommError> {
    let CollectiveCall {
        collective,
        from,
        to,
        root,
        ..
    } = *call;
    let wrong = |problem: String| Err(invalid(collective, &problem));
    if root >= world {
        return wrong(format!(
            "root or peer {root} is not below the world size {world}"
        ));
    }
    if from.dtype() != to.dtype() {
        return wrong(format!(
            "from holds {:?}, to {:?}",
            from.dtype(),
            to.dtype()
        ));
    }
    let integers = matches!(from.dtype(), Dtype::I32 | Dtype::I64);
    if matches!(call.reduce, Reduce::ScaledSum(_)) && integers {
        return wrong("only floats can be scaled".into());
    }
    let lengths = match collective {
        Collective::Barrier => true,
        Collective::Broadcast | Collective::Reduce | Collective::AllReduce => from == to,
        Collective::AllGather => to.len() == from.len() * world,
        Collective::ReduceScatter => to.len() == chunk(from.len(), world, rank).len(),
        Collective::Scatter => rank != root || to.len() == chunk(from.len(), world, rank).len(),
        Collective::Gather => rank != root || from.len() == chunk(to.len(), world, rank).len(),
        Collective::Send | Collective::Receive => root != rank,
        Collective::Copy => false,
    };
    if !lengths {
        return wrong(format!(
            "from {} to {} elements on rank {rank} of {world}",
            from.len(),
            to.len()
        ));
    }
    let in_place = matches!(
        collective,
        Collective::Broadcast | Collective::Reduce | Collective::AllReduce
    );
    let one_sided = matches!(
        collective,
        Collective::Barrier | Collective::Send | Collective::Receive
    );
    let own_part = match collective {
        Collective::AllGather => from == to.slice(rank * from.len()..(rank + 1) * from.len()),
        Collective::ReduceScatter => to == from.slice(chunk(from.len(), world, rank)),
        _ => false,
    };
    if !in_place && !one_sided && !own_part && overlap(from, to) {
        return wrong("from and to overlap, and neither is the rank's part of the other".into());
    }
    Ok(())
}

fn overlap(a: Span, b: Span) -> bool {
    let apart = a.start() + a.len() <= b.start() || b.start() + b.len() <= a.start();
    a.arena() == b.arena() && !a.is_empty() && !b.is_empty() && !apart
}
