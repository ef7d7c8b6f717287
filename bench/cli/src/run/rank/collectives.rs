//! The child's side of the kind `collectives`: every operation at every size, checked first and then timed.
//!
//! Contract: as nccl-tests. Calls go back to back in batches; a batch begins at a barrier and ends when the rank's last
//! call is complete; a call's time is the batch's over its calls, on the slowest rank. Buffers are used again, so
//! messages that fit a cache are measured warm. Before anything of a size is timed, two calls with other contributions
//! in each are compared element by element: the contributions are small whole numbers, so every sum is exact.
//! Broadcast, reduce and all-reduce are in place, as DDP's; the others have two buffers. On GPUs a batch has at least as many calls as the
//! scenario has iterations, as nccl-tests has: the host enqueues them all, and the batch ends once its stream is empty.
//! Reference: NVIDIA nccl-tests, `doc/PERFORMANCE.md`.
use std::ops::Range;

use syncmark_engine::backend::{Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::{Collective, CollectiveCall, Reduce, chunk};
use syncmark_engine::probe::{Phase, now_ns};
use syncmark_engine::tensor::{Dtype, Span};
use syncmark_record::rows::Pass;

use super::RankError;
use super::build::Bench;
use super::ceilings;
use super::witness::Witness;
use crate::plan::config::CollectivesConfig;
use crate::run::protocol::Assignment;
use crate::run::recorder::{ALGORITHMS, COLLECTIVES, pass_number};
use crate::run::spool::Event;

/// Calls of a batch take about this long, so that the barrier and the clock weigh little.
const BATCH_NS: u64 = 1_000_000;
/// Most calls of a batch: more would fill the stream's queue.
const MOST_CALLS: u64 = 64;
/// Fewest and most batches of a size: room for their times is made beforehand.
const BATCHES: Range<u64> = 5..100_001;
/// Batches after which the conductor is told that this rank still works.
const BEAT: u64 = 200;
/// Rounds of the check, each with other contributions.
const ROUNDS: usize = 2;
/// Most elements of an upload: as much is kept as pinned memory, some times over, on the way to a GPU.
const UPLOAD: usize = 1 << 24;
const ELEMENT: u64 = size_of::<f32>() as u64;

/// Checks and times all operations and sizes.
///
/// # Errors
/// The first failure of this rank.
pub fn run(
    assignment: &Assignment,
    config: &CollectivesConfig,
    bench: Bench,
    witness: &mut Witness,
) -> Result<(), RankError> {
    let mut room = Room::new(bench, config)?;
    // Before anyone watches for other load: the floor's threads are no rank's.
    if room.rank() == 0 {
        let floor = ceilings::between_ranks(assignment)?;
        floor
            .into_iter()
            .for_each(|event| room.bench.spool.push(event));
    }
    room.bench.communicator.barrier()?;
    room.bench.spool.beat(now_ns());
    let before = witness.begin(pass_number(Pass::Window));
    for case in cases(config, room.world()) {
        case.measure(&mut room, config)?;
        room.bench.spool.beat(now_ns());
    }
    let used = witness.end(&before);
    used.into_iter()
        .for_each(|event| room.bench.spool.push(event));
    Ok(())
}

/// Makes each call once, unchecked and untimed, for whoever watches NCCL.
///
/// # Errors
/// The first failure of this rank.
pub fn each_once(config: &CollectivesConfig, bench: Bench) -> Result<(), RankError> {
    let mut room = Room::new(bench, config)?;
    // A barrier is the control plane's, and what it is over.
    let calls = cases(config, room.world()).filter(|case| case.operation != Collective::Barrier);
    for case in calls {
        case.call(&mut room)?;
        room.bench.backend.synchronize()?;
        room.bench.spool.beat(now_ns());
    }
    // Nobody leaves while another still waits for it.
    Ok(room.bench.communicator.barrier()?)
}

/// Every operation at every size that divides among the ranks; a barrier has none, and is one.
fn cases(config: &CollectivesConfig, world: usize) -> impl Iterator<Item = Case> {
    config.operations.iter().flat_map(move |operation| {
        let operation = operation.collective();
        let sizes: &[u64] = match operation {
            Collective::Barrier => &[0],
            _ => &config.sizes_bytes,
        };
        sizes.iter().filter_map(move |size| {
            Some(Case {
                operation,
                elements: elements(operation, *size, world)?,
                size_bytes: *size,
            })
        })
    })
}

/// Elements of the whole message; `None` where a rank's part would be empty or parts would be unequal.
fn elements(operation: Collective, size: u64, world: usize) -> Option<usize> {
    let elements = (size / ELEMENT) as usize;
    let shared = matches!(
        operation,
        Collective::AllGather
            | Collective::ReduceScatter
            | Collective::Scatter
            | Collective::Gather
    );
    match shared {
        true => (elements >= world && elements.is_multiple_of(world)).then_some(elements),
        false => Some(elements),
    }
}

/// A rank with its buffers.
struct Room {
    bench: Bench,
    from: Span,
    to: Span,
    /// Times of batches, for their maximum over ranks.
    times: Span,
    /// Words of this rank and of all, for sums over ranks.
    word: Span,
    words: Span,
    host: Vec<f32>,
    expected: Vec<f32>,
}

impl Room {
    fn new(mut bench: Bench, config: &CollectivesConfig) -> Result<Self, RankError> {
        let largest = config
            .sizes_bytes
            .iter()
            .max()
            .map_or(1, |size| size / ELEMENT) as usize;
        let largest = largest.max(1);
        let world = bench.communicator.world_size();
        let backend = &mut *bench.backend;
        let mut floats = |len| backend.allocate(Category::Workspace, Dtype::F32, len);
        let (from, to, times) = (
            floats(largest)?,
            floats(largest)?,
            floats(BATCHES.end as usize)?,
        );
        let word = backend.allocate(Category::Workspace, Dtype::I64, WORDS)?;
        let words = backend.allocate(Category::Workspace, Dtype::I64, WORDS * world)?;
        let (host, expected) = (vec![0.0; largest], vec![0.0; largest]);
        Ok(Self {
            bench,
            from,
            to,
            times,
            word,
            words,
            host,
            expected,
        })
    }

    fn world(&self) -> usize {
        self.bench.communicator.world_size()
    }
    fn rank(&self) -> usize {
        self.bench.communicator.rank()
    }

    /// Copies the first `len` elements of the host's to the start of `to`, piece by piece.
    fn upload(&mut self, len: usize, to: Span) -> Result<(), RankError> {
        for start in (0..len).step_by(UPLOAD) {
            let piece = start..len.min(start + UPLOAD);
            let source = HostSlice::F32(&self.host[piece.clone()]);
            self.bench
                .backend
                .upload(Stream::Compute, source, to.slice(piece))?;
        }
        Ok(())
    }

    /// Sums of words over all ranks.
    fn sums(&mut self, own: [i64; WORDS]) -> Result<[i64; WORDS], RankError> {
        let Bench {
            backend,
            communicator,
            ..
        } = &mut self.bench;
        backend.upload(Stream::Compute, HostSlice::I64(&own), self.word)?;
        let after = backend.record(Stream::Compute);
        communicator.all_gather(&mut **backend, Phase::Setup, self.word, self.words, after)?;
        let mut all = vec![0; self.words.len()];
        backend.download(self.words, HostSliceMut::I64(&mut all))?;
        Ok(std::array::from_fn(|index| {
            all.iter().skip(index).step_by(WORDS).sum()
        }))
    }
}

/// Wrong elements, sent bytes, measured bytes, ranks without a counter.
const WORDS: usize = 4;

/// One operation at one size.
struct Case {
    operation: Collective,
    elements: usize,
    size_bytes: u64,
}

impl Case {
    fn measure(&self, room: &mut Room, config: &CollectivesConfig) -> Result<(), RankError> {
        let mut wrong = 0;
        for round in 0..ROUNDS {
            wrong += self.check(room, round)?;
        }
        // What the timed calls add up is zero, so that no number grows from call to call.
        room.host[..self.elements].fill(0.0);
        for span in [room.from, room.to] {
            room.upload(self.elements, span)?;
        }
        let once = self.warm_up(room, config.warmup)?;
        let fewest = match room.bench.backend.cuda() {
            Some(_) => config.iterations.clamp(1, MOST_CALLS),
            None => 1,
        };
        let calls = (BATCH_NS / once.max(1)).clamp(fewest, MOST_CALLS);
        let wanted = config.min_time_ns / (once * calls).max(1);
        let enough = wanted.max(config.iterations.div_ceil(calls));
        let batches = enough.clamp(BATCHES.start, BATCHES.end - 1);
        room.bench.communicator.reset_counts();
        let mut times = Vec::with_capacity(batches as usize);
        for batch in 0..batches {
            if batch % BEAT == BEAT - 1 {
                room.bench.spool.beat(now_ns());
            }
            times.push(self.batch(room, calls)? as f32 / calls as f32);
        }
        let counted = self.counted(room);
        let times = self.slowest(room, &times)?;
        let [wrong, sent, measured, without] = room.sums([
            wrong as i64,
            counted.sent,
            counted.measured,
            counted.without,
        ])?;
        if room.rank() > 0 {
            return Ok(());
        }
        let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize] as u64;
        let collective = COLLECTIVES
            .iter()
            .position(|known| *known == self.operation)
            .expect("every collective is listed") as u8;
        room.bench.spool.push(Event::CollectiveTime {
            collective,
            algorithm: counted.algorithm,
            elements: self.elements as u64,
            size_bytes: self.size_bytes,
            iterations: batches * calls,
            time_ns: [quantile(0.1), quantile(0.5), quantile(0.9)],
        });
        room.bench.spool.push(Event::CollectiveCheck {
            collective,
            elements: self.elements as u64,
            wrong: wrong as u64,
            calls: batches * calls,
            sent_bytes: (!counted.unseen).then_some(sent as u64),
            measured_sent_bytes: (without == 0).then_some(measured as u64),
        });
        Ok(())
    }

    /// Time of a call, after the first ones, as rank 0 sees it.
    fn warm_up(&self, room: &mut Room, warmup: u64) -> Result<u64, RankError> {
        let first = self.batch(room, warmup.max(1))? / warmup.max(1);
        let once = self.batch(room, 2)? / 2;
        Ok(room.bench.communicator.agree(first.min(once).max(1))?)
    }

    /// Nanoseconds of `calls` calls back to back.
    fn batch(&self, room: &mut Room, calls: u64) -> Result<u64, RankError> {
        room.bench.communicator.barrier()?;
        let begin = now_ns();
        for _ in 0..calls {
            self.call(room)?;
        }
        room.bench.backend.synchronize()?;
        Ok(now_ns() - begin)
    }

    /// The spans of a call: what this rank brings and where its result goes.
    fn spans(&self, room: &Room) -> (Span, Span) {
        let (world, rank, n) = (room.world(), room.rank(), self.elements);
        let part = chunk(n, world, rank).len();
        let (from, to) = (|len| room.from.slice(0..len), |len| room.to.slice(0..len));
        match self.operation {
            Collective::AllGather | Collective::Gather => (from(part), to(n)),
            Collective::ReduceScatter | Collective::Scatter => (from(n), to(part)),
            _ => (from(n), from(n)),
        }
    }

    fn call(&self, room: &mut Room) -> Result<(), RankError> {
        let (from, to) = self.spans(room);
        let (world, rank) = (room.world(), room.rank());
        let Bench {
            backend,
            communicator,
            ..
        } = &mut room.bench;
        let (collective, root) = match self.operation {
            Collective::Barrier => return Ok(communicator.barrier()?),
            // From rank 0 to the last rank; the others take no part.
            Collective::Send => match rank {
                0 => (Collective::Send, world - 1),
                _ if rank == world - 1 => (Collective::Receive, 0),
                _ => return Ok(()),
            },
            other => (other, 0),
        };
        let after = backend.record(Stream::Compute);
        let call = CollectiveCall {
            collective,
            phase: Phase::AllReduce,
            from,
            to,
            reduce: Reduce::Sum,
            root,
        };
        communicator.enqueue(&mut **backend, call, after)?;
        Ok(())
    }

    /// One call whose result is compared with what it must be; gives the number of wrong elements on this rank.
    fn check(&self, room: &mut Room, round: usize) -> Result<usize, RankError> {
        if self.operation == Collective::Barrier {
            room.bench.communicator.barrier()?;
            return Ok(0);
        }
        let (rank, n) = (room.rank(), self.elements);
        for (index, value) in room.host[..n].iter_mut().enumerate() {
            *value = contribution(rank, index, round);
        }
        // Each rank brings its own part of what is gathered.
        let brought = self.spans(room).0.len();
        room.upload(brought, room.from)?;
        self.call(room)?;
        room.bench.backend.synchronize()?;
        self.compare(room, round)
    }

    fn compare(&self, room: &mut Room, round: usize) -> Result<usize, RankError> {
        let (world, rank) = (room.world(), room.rank());
        let has_result = match self.operation {
            Collective::Reduce | Collective::Gather => rank == 0,
            Collective::Send => rank == world - 1,
            _ => true,
        };
        if !has_result {
            return Ok(0);
        }
        let (_, result) = self.spans(room);
        let len = result.len();
        let own = chunk(self.elements, world, rank);
        let part = own.len().max(1);
        // Contributions come again after so many elements, and their sums with them.
        let sums: [f32; PERIOD] = std::array::from_fn(|index| {
            (0..world)
                .map(|rank| contribution(rank, index, round))
                .sum()
        });
        let sum = |index: usize| sums[index % PERIOD];
        for (index, value) in room.expected[..len].iter_mut().enumerate() {
            *value = match self.operation {
                Collective::AllReduce | Collective::Reduce => sum(index),
                Collective::ReduceScatter => sum(own.start + index),
                Collective::Scatter => contribution(0, own.start + index, round),
                Collective::AllGather | Collective::Gather => {
                    contribution(index / part, index % part, round)
                }
                _ => contribution(0, index, round),
            };
        }
        let found = HostSliceMut::F32(&mut room.host[..len]);
        room.bench.backend.download(result, found)?;
        let pairs = room.host[..len].iter().zip(&room.expected[..len]);
        Ok(pairs.filter(|(found, expected)| found != expected).count())
    }

    fn counted(&self, room: &Room) -> Counted {
        let mut counted = Counted::default();
        for count in room.bench.communicator.counts() {
            if count.phase != Phase::AllReduce {
                continue;
            }
            match count.sent_bytes {
                Some(bytes) => counted.sent += bytes as i64,
                None => counted.unseen = true,
            }
            match count.measured_sent_bytes {
                Some(bytes) => counted.measured += bytes as i64,
                None => counted.without = 1,
            }
            counted.algorithm = ALGORITHMS
                .iter()
                .position(|known| *known == count.algorithm)
                .unwrap_or_default() as u8;
        }
        counted
    }

    /// Each batch's time on its slowest rank, sorted.
    fn slowest(&self, room: &mut Room, times: &[f32]) -> Result<Vec<f32>, RankError> {
        let span = room.times.slice(0..times.len());
        let Bench {
            backend,
            communicator,
            ..
        } = &mut room.bench;
        backend.upload(Stream::Compute, HostSlice::F32(times), span)?;
        let after = backend.record(Stream::Compute);
        communicator.all_reduce(&mut **backend, Phase::Setup, span, Reduce::Max, after)?;
        let mut slowest = vec![0.0; times.len()];
        backend.download(span, HostSliceMut::F32(&mut slowest))?;
        slowest.sort_by(f32::total_cmp);
        Ok(slowest)
    }
}

/// What this rank counted over the timed calls.
#[derive(Default)]
struct Counted {
    sent: i64,
    measured: i64,
    /// 1 where there is no counter but ours.
    without: i64,
    /// Whether the transport cannot count, which is the same on all ranks.
    unseen: bool,
    algorithm: u8,
}

/// Elements after which the contributions of a rank come again.
const PERIOD: usize = 61;

/// Whole numbers from −30 to 30 that differ by rank, place and round: their sums over up to 2^18 ranks are exact in f32.
fn contribution(rank: usize, index: usize, round: usize) -> f32 {
    ((index * 7 + rank * 13 + round * 5) % PERIOD) as f32 - 30.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_and_have_a_part_for_every_rank() {
        assert_eq!(elements(Collective::AllReduce, 4, 2), Some(1));
        assert_eq!(elements(Collective::AllGather, 4, 2), None);
        assert_eq!(elements(Collective::AllGather, 8, 2), Some(2));
        assert_eq!(elements(Collective::Scatter, 16, 3), None);
        assert_eq!(elements(Collective::Barrier, 0, 3), Some(0));
    }

    #[test]
    fn contributions_come_again_and_not_sooner() {
        let row = |start: usize| (start..start + PERIOD).map(|index| contribution(1, index, 0));
        assert!(row(0).eq(row(PERIOD)) && !row(0).eq(row(1)));
    }

    #[test]
    fn contributions_differ_by_rank_place_and_round() {
        let base = contribution(0, 0, 0);
        for other in [
            contribution(1, 0, 0),
            contribution(0, 1, 0),
            contribution(0, 0, 1),
        ] {
            assert!(other != base && other.abs() <= 30.0 && other.fract() == 0.0);
        }
    }
}
