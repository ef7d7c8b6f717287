//! A step of a rank as one piece, with what the ranks exchange in it.
//!
//! Contract: to whoever carries collectives out, a captured step is another thing than its calls one by one, so all ranks must go the same way in
//! every step. A rank's way follows from the kinds of its steps so far. All that a kind is made of is equal on all ranks, but for the samples
//! of the batch: ranks may have different numbers of them, but a number that changes from one step to the next must change on all ranks
//! or on none, as it does where ranks have equal shares. Over NCCL ranks find out at the next barrier whether they went different ways.
//! What a step does on the host alone is done in a replayed one as well: [`Rank::pass_over`].
//! Reference: NCCL user guide, "Using NCCL with CUDA Graphs".
use super::super::micro_batch::MicroBatch;
use super::super::replica::Replica;
use super::{Exchange, Kind, Way};
use crate::backend::{Captured, Stream};
use crate::comm::Communicator;
use crate::data::HostBatch;
use crate::strategy::Result;

/// A rank whose step can be one piece.
pub(in crate::strategy) trait Rank {
    /// Its device, and who it exchanges with.
    fn ends(&mut self) -> (&mut Replica, &mut dyn Communicator);

    /// What it is going to exchange in the present step; none where that is not to be captured.
    fn exchange(&self) -> Option<Exchange>;

    /// A step that is enqueued one by one.
    ///
    /// # Errors
    /// The failure of a stream.
    fn take_step(&mut self, batch: HostBatch<'_>) -> Result<()>;

    /// All kernels and collectives of a step whose data lies on the device: nothing here may depend on its number, or block.
    ///
    /// # Errors
    /// The failure of a stream.
    fn compute(&mut self, micro: &MicroBatch<'_>) -> Result<()>;

    /// What [`Rank::compute`] leaves behind on the host.
    fn pass_over(&mut self);
}

/// A step, the way that its turn is.
///
/// # Errors
/// The failure of a stream, or what cannot be captured.
pub(in crate::strategy) fn step(rank: &mut impl Rank, batch: HostBatch<'_>) -> Result<()> {
    let replays = rank.ends().0.replays();
    let Some(exchange) = replays.then(|| rank.exchange()).flatten() else {
        return rank.take_step(batch);
    };
    let (replica, _) = rank.ends();
    let kind = Kind {
        len: batch.len,
        exchange,
    };
    let captured = match replica.way(kind) {
        Way::OneByOne => return rank.take_step(batch),
        Way::Replay(captured) => {
            replica.upload_step(batch)?;
            rank.pass_over();
            captured
        }
        Way::Capture => {
            let micro = replica.upload_step(batch)?;
            let captured = capture(rank, &micro)?;
            rank.ends().0.keep(kind, captured);
            captured
        }
    };
    let (replica, communicator) = rank.ends();
    replica.backend.replay(captured)?;
    let end = replica.backend.record(Stream::Compute);
    communicator.replayed(&mut *replica.backend, captured, end)?;
    replica.step += 1;
    Ok(())
}

fn capture(rank: &mut impl Rank, micro: &MicroBatch<'_>) -> Result<Captured> {
    let (replica, communicator) = rank.ends();
    replica.backend.begin_capture()?;
    communicator.begin_capture();
    let done = rank.compute(micro);
    let (replica, communicator) = rank.ends();
    // Also after a failure: the streams would write down for ever.
    let captured = replica.backend.end_capture();
    let all = done.is_ok().then(|| captured.as_ref().ok().copied());
    communicator.end_capture(all.flatten());
    done?;
    Ok(captured?)
}
