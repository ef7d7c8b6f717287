//! From an assignment to the ranks of this child: communicators, devices pinned to their cores, strategies, data.
use std::net::TcpListener;
use std::ops::Range;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use syncmark_engine::backend::cpu::pin_to_cores;
use syncmark_engine::backend::{Backend, BackendError};
use syncmark_engine::comm::Communicator;
use syncmark_engine::comm::nccl::NcclCommunicator;
use syncmark_engine::comm::shared::{DEFAULT_SLOT_BYTES, Region, SharedCommunicator, Waiting};
use syncmark_engine::comm::tcp::{self, TcpCommunicator};
use syncmark_engine::data::{Ahead, Batches, Place};
use syncmark_engine::model::{Model, resolve};
use syncmark_engine::strategy::{
    BucketCaps, Ddp, DdpSettings, Dp, DpInputs, DpLoss, DpSettings, Independent,
    IndependentSettings, Single, SingleSettings, Strategy, Zero1, Zero1Settings,
};

use super::device::{compute_core, cores, device, links, spins};
use super::{RankError, data, settings};
use crate::plan::config::{StrategyConfig, TrialConfig};
use crate::run::protocol::{Assignment, Meeting, Purpose};
use crate::run::spool::Writer;
use crate::scenario::file;

/// The ranks that live in this child.
pub struct Ranks {
    seats: Vec<Option<Seat>>,
}

/// A rank before its thread has started.
pub struct Seat {
    /// The rank.
    pub rank: u32,
    /// Its end of what the ranks meet over, where they meet at all.
    communicator: Option<Box<dyn Communicator>>,
}

/// A rank, built and ready to step.
pub struct Participant {
    /// What trains.
    pub strategy: Box<dyn Strategy>,
    /// Its batches.
    pub loader: Batches,
    /// Where they were at the strategy's snapshot.
    pub snapshot_place: Option<Place>,
    /// Whether steps with exchanges are captured, so that each kind of them has to come often enough before it is timed.
    pub captures: bool,
    /// Its events.
    pub spool: Writer,
    /// First device of the strategy: the rank, or 0 for a controller of several.
    pub device: usize,
    /// Whether this rank speaks for its child.
    pub first_rank: bool,
    /// How replicas that train without each other still start together.
    meeting: Option<Box<dyn Communicator>>,
}

impl Ranks {
    /// Meets the other ranks, for every rank of this child.
    ///
    /// # Errors
    /// When the ranks do not meet.
    pub fn new(assignment: &Assignment) -> Result<Self, RankError> {
        let devices = assignment.trial.devices;
        if assignment.trial.strategy.launched().is_none() {
            return Ok(Self {
                seats: vec![Some(Seat {
                    rank: assignment.rank,
                    communicator: None,
                })],
            });
        }
        // A rank that waits too long says for whom; the conductor's own limit is the trial's timeout, which comes later.
        let waiting = Waiting {
            spin: spins(assignment),
            timeout: Duration::from_nanos(assignment.trial.measure.timeout_ns)
                .max(Duration::from_secs(1)),
        };
        let first = assignment.rank;
        let (local, communicators) = match &assignment.meeting {
            Some(Meeting::Region { fd }) => {
                // SAFETY: the conductor promises an open descriptor of this number, inherited over exec and used by
                // nobody else in this process.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                let region = Region::from_fd(fd).map_err(unmet)?;
                (
                    first..first + 1,
                    in_region(region, first..first + 1, at_hand(assignment, waiting))?,
                )
            }
            Some(meeting @ Meeting::Tcp { .. }) => {
                let joined = TcpCommunicator::join(tcp_settings(assignment, meeting, waiting)?);
                let joined: Box<dyn Communicator> = Box::new(joined.map_err(unmet)?);
                (first..first + 1, vec![joined])
            }
            None if assignment.trial.strategy.ranks_transport() == Some(file::Transport::Tcp) => {
                let joined = TcpCommunicator::for_threads(devices, waiting).map_err(unmet)?;
                let boxed = |joined| Box::new(joined) as Box<dyn Communicator>;
                (0..devices as u32, joined.into_iter().map(boxed).collect())
            }
            None => {
                let region = Region::for_threads(devices, DEFAULT_SLOT_BYTES).map_err(unmet)?;
                (
                    0..devices as u32,
                    in_region(region, 0..devices as u32, at_hand(assignment, waiting))?,
                )
            }
        };
        // What they met over becomes what NCCL's ranks agree and fail over.
        let nccl = assignment.trial.strategy.ranks_transport() == Some(file::Transport::Nccl);
        let seat = |(rank, communicator): (u32, Box<dyn Communicator>)| {
            let communicator = match nccl {
                true => Box::new(NcclCommunicator::new(communicator)),
                false => communicator,
            };
            Some(Seat {
                rank,
                communicator: Some(communicator),
            })
        };
        Ok(Self {
            seats: local.zip(communicators).map(seat).collect(),
        })
    }

    /// Ranks of this child.
    pub fn local(&self) -> usize {
        self.seats.len()
    }

    /// Gives the seat of the `index`-th rank to its thread.
    ///
    /// # Panics
    /// When it was taken before.
    pub fn take(&mut self, index: usize) -> Seat {
        self.seats[index].take().expect("each seat is taken once")
    }
}

fn unmet(error: impl std::fmt::Display) -> RankError {
    RankError::Assignment(error.to_string())
}

/// Joins a region for every rank of this child.
fn in_region(
    region: Region,
    ranks: Range<u32>,
    waiting: Waiting,
) -> Result<Vec<Box<dyn Communicator>>, RankError> {
    let region = Arc::new(region);
    ranks
        .map(|rank| {
            let joined = SharedCommunicator::join(Arc::clone(&region), rank as usize, waiting);
            Ok(Box::new(joined.map_err(unmet)?) as Box<dyn Communicator>)
        })
        .collect()
}

/// How this child's rank meets the others over TCP.
fn tcp_settings(
    assignment: &Assignment,
    meeting: &Meeting,
    waiting: Waiting,
) -> Result<tcp::Settings, RankError> {
    let Meeting::Tcp {
        address,
        listener_fd,
        interface,
        token,
    } = *meeting
    else {
        return Err(RankError::Assignment("not a meeting over TCP".to_owned()));
    };
    let (rank, world) = (assignment.rank as usize, assignment.world_size as usize);
    let listener = listener_fd.map(inherited_listener).transpose()?;
    Ok(tcp::Settings {
        listener,
        interface,
        // Children of one job start together; what is slow is the start of the last agent's child.
        join_timeout: waiting.timeout.min(Duration::from_secs(60)),
        waiting,
        ..tcp::Settings::new(rank, world, address, token)
    })
}

/// The socket that rank 0 listens on, after a look whether it is one.
fn inherited_listener(fd: i32) -> Result<TcpListener, RankError> {
    // SAFETY: the conductor promises an open descriptor of this number, inherited over exec and used by nobody else in
    // this process.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    match rustix::net::sockopt::socket_acceptconn(&fd) {
        Ok(true) => Ok(fd.into()),
        Ok(false) => Err(RankError::Assignment(format!(
            "the inherited descriptor {fd:?} is a socket that does not listen"
        ))),
        Err(error) => Err(RankError::Assignment(format!(
            "the inherited descriptor {fd:?} is no listening socket: {error}"
        ))),
    }
}

/// A rank that only communicates.
pub struct Bench {
    /// Its device.
    pub backend: Box<dyn Backend>,
    /// Its end of the group.
    pub communicator: Box<dyn Communicator>,
    /// Its events.
    pub spool: Writer,
}

impl Bench {
    /// Builds a rank on the calling thread, pinned to its device's cores.
    ///
    /// # Errors
    /// When the device or the spool cannot be had.
    pub fn build(assignment: &Assignment, seat: Seat) -> Result<Self, RankError> {
        let rank = seat.rank as usize;
        pin_to_cores(cores(assignment, rank))?;
        let communicator = seat
            .communicator
            .ok_or_else(|| RankError::Assignment("a rank without a group".to_owned()))?;
        Ok(Self {
            backend: device(assignment, rank)?,
            communicator,
            spool: spool(assignment, rank)?,
        })
    }
}

/// The spool of a rank of this child.
fn spool(assignment: &Assignment, rank: usize) -> Result<Writer, RankError> {
    let path = assignment
        .spools
        .get(rank - assignment.rank as usize)
        .ok_or_else(|| RankError::Assignment(format!("no spool for rank {rank}")))?;
    Ok(Writer::open(path)?)
}

/// How ranks wait for ranks whose memory they see: these have cores of their own unless there are too few, and mostly come
/// sooner than a wait in the kernel would end, so that it pays to look a little first even with one core per device.
fn at_hand(assignment: &Assignment, waiting: Waiting) -> Waiting {
    Waiting {
        spin: !assignment.oversubscribed,
        ..waiting
    }
}

impl Participant {
    /// Builds a rank on the calling thread, which becomes its device's compute thread and is pinned to its cores.
    ///
    /// # Errors
    /// When the model, a device, the data or the spool cannot be had.
    pub fn build(assignment: &Assignment, seat: Seat) -> Result<Self, RankError> {
        let config = &assignment.trial;
        let rank = seat.rank as usize;
        // DP's controller is the thread of its master device.
        let master = config.strategy.dp().map_or(rank, |dp| dp.device_ids[0]);
        pin_to_cores(compute_core(assignment, master))?;
        let model = model(config)?;
        let samples = data::dataset(config)?;
        let loader = match &assignment.purpose {
            Purpose::Measure { .. } | Purpose::Choices { .. } => {
                data::timed(config, samples, rank)?
            }
            Purpose::Gate { global_batch, .. } => data::gate(config, samples, rank, *global_batch)?,
        };
        // A CPU device's cores are its own; the host thread of a GPU has others beside it.
        let loader = match config.backend {
            crate::plan::config::Backend::Cuda => {
                let ahead = Ahead::new(loader).map_err(|error| {
                    RankError::Engine(BackendError::Thread(format!(
                        "no thread for the loader: {error}"
                    )))
                })?;
                Batches::Ahead(ahead)
            }
            _ => Batches::Here(loader),
        };
        let mut spool = spool(assignment, rank)?;
        let (mut strategy, meeting) =
            strategy(assignment, &model, rank, seat.communicator, &mut spool)?;
        if config.cuda_graph {
            strategy.capture_steps()?;
        }
        let first_rank = seat.rank == assignment.rank;
        Ok(Self {
            strategy,
            loader,
            snapshot_place: None,
            captures: config.cuda_graph && config.strategy.ranks_transport().is_some(),
            spool,
            device: rank,
            first_rank,
            meeting,
        })
    }

    /// Blocks until all ranks are here.
    ///
    /// # Errors
    /// When the job was aborted.
    pub fn barrier(&mut self) -> Result<(), RankError> {
        match &mut self.meeting {
            Some(meeting) => Ok(meeting.barrier()?),
            None => Ok(self.strategy.barrier()?),
        }
    }

    /// What rank 0 brought, on every rank.
    ///
    /// # Errors
    /// When the job was aborted.
    pub fn agree(&mut self, value: u64) -> Result<u64, RankError> {
        match &mut self.meeting {
            Some(meeting) => Ok(meeting.agree(value)?),
            None => Ok(self.strategy.agree(value)?),
        }
    }
}

fn model(config: &TrialConfig) -> Result<Model, RankError> {
    let options = config.norm_options();
    resolve(
        &config.model,
        &config.model.input,
        config.model.classes,
        config.norm,
        &options,
    )
    .map_err(|e| RankError::Model(e.to_string()))
}

/// The chunks that one device normalizes apart: ghost batches.
fn normalization_chunks(config: &TrialConfig) -> Vec<usize> {
    let own = config
        .learning()
        .and_then(|learning| learning.normalization_batch);
    own.map_or_else(Vec::new, |own| vec![own; config.batch.global / own])
}

type Built = (Box<dyn Strategy>, Option<Box<dyn Communicator>>);

/// The strategy of one rank, and the meeting of replicas that have no communicator of their own.
fn strategy(
    assignment: &Assignment,
    model: &Model,
    rank: usize,
    communicator: Option<Box<dyn Communicator>>,
    spool: &mut Writer,
) -> Result<Built, RankError> {
    let config = &assignment.trial;
    let (seed, optimizer, global) = (
        config.train_seed,
        settings::optimizer(config),
        config.batch.global,
    );
    let accumulation = config.accumulation;
    let own = config.batch.chunks.get(rank).copied().unwrap_or(0);
    Ok(match &config.strategy {
        StrategyConfig::Single => {
            let chunks = match &assignment.purpose {
                Purpose::Gate { chunks, .. } => chunks.clone(),
                Purpose::Measure { .. } | Purpose::Choices { .. } => normalization_chunks(config),
            };
            let settings = SingleSettings {
                max_batch: global,
                accumulation,
                chunks,
                seed,
                optimizer,
            };
            (
                Box::new(Single::new(device(assignment, 0)?, model, &settings)?),
                None,
            )
        }
        StrategyConfig::Independent { .. } => {
            let sample_offset = config.batch.chunks[..rank].iter().sum();
            let settings = IndependentSettings {
                index: rank,
                sample_offset,
                global_batch: global,
                max_batch: own,
                accumulation,
                seed,
                optimizer,
            };
            (
                Box::new(Independent::new(
                    device(assignment, rank)?,
                    model,
                    &settings,
                )?),
                communicator,
            )
        }
        StrategyConfig::Dp(dp) => {
            let mut devices: Vec<_> = (0..config.devices)
                .map(|index| device(assignment, index))
                .collect::<Result<_, _>>()?;
            let (links, peers) = links(config, &mut devices)?;
            peers.into_iter().for_each(|event| spool.push(event));
            let loss = match dp.loss {
                file::DpLoss::Gathered => DpLoss::Gathered,
                file::DpLoss::Replica => DpLoss::Replica,
            };
            // A CPU's devices model a batch that device 0 holds; GPUs get theirs from the host, as PyTorch's do.
            let inputs = match config.backend {
                crate::plan::config::Backend::Cpu => DpInputs::Master,
                crate::plan::config::Backend::Cuda => DpInputs::Host,
            };
            let cores = (0..config.devices)
                .map(|index| compute_core(assignment, index).to_vec())
                .collect();
            let settings = DpSettings {
                max_batch: global,
                accumulation,
                loss,
                inputs,
                seed,
                optimizer,
                device_ids: dp.device_ids.clone(),
                output_device: Some(dp.output_device),
                cores,
            };
            (Box::new(Dp::new(devices, links, model, &settings)?), None)
        }
        StrategyConfig::Zero1(zero1) => {
            let communicator = communicator
                .ok_or_else(|| RankError::Assignment("zero1 without a meeting".to_owned()))?;
            let settings = Zero1Settings {
                max_batch: own,
                sample_offset: config.batch.chunks[..rank].iter().sum(),
                global_batch: global,
                accumulation,
                seed,
                optimizer,
                bucket_caps: BucketCaps {
                    bytes: zero1.bucket_cap_bytes as usize,
                    first_bytes: zero1.first_bucket_cap_bytes as usize,
                },
                broadcast_buffers: zero1.broadcast_buffers,
            };
            let device = device(assignment, rank)?;
            let zero1 = Zero1::new(device, communicator, model, &settings)?;
            (Box::new(zero1), None)
        }
        StrategyConfig::Ddp(ddp) => {
            let communicator = communicator
                .ok_or_else(|| RankError::Assignment("ddp without a meeting".to_owned()))?;
            let sample_offset = config.batch.chunks[..rank].iter().sum();
            let settings = DdpSettings {
                max_batch: own,
                sample_offset,
                global_batch: global,
                seed,
                optimizer,
                options: settings::distributed(ddp, accumulation, &assignment.purpose),
            };
            let ddp = Ddp::new(device(assignment, rank)?, communicator, model, &settings)?;
            (Box::new(ddp), None)
        }
    })
}
