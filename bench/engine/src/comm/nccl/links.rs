//! DataParallel's links where NCCL replicates and reduces: as PyTorch's, which scatters and gathers by copies, broadcasts parameters and
//! buffers by `ncclBroadcast`, and sums gradients by `ncclReduce`.
//!
//! Contract: [`Links`]' and [`Controller`]'s; copies are those of other links. Devices lie on GPUs of their own. A communicator is made for
//! the devices of a call when they first come together, and kept: a step on fewer devices, for want of samples, has one of its own, as in
//! PyTorch. Ranks in it are the devices in their order, the root first. What NCCL does is not counted where it is copied, as for ranks:
//! sent and received bytes are none.
//! Reference: `torch/csrc/cuda/comm.cpp` and `nccl.cpp` (`broadcast_coalesced`, `get_communicators`), `torch/nn/parallel/comm.py`
//! (`reduce_add_coalesced`).
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::connect::connect_together;
use super::device::Member;
use super::library::{self, Nccl, Operator};
use super::record::Record;
use super::session::{End, Owner, Session, blame};
use super::transfer::{Place, transfers};
use crate::backend::cuda::gpu::has_left;
use crate::backend::{Backend, BackendError, Completion, Event, Result};
use crate::comm::controller::{Controller, Failed, Members};
use crate::comm::links::{Copy, Links, pieces};
use crate::comm::{Aborter, Collective, CollectiveCall, Count, Reduce, Seen, Watch};
use crate::probe::Phase;
use crate::tensor::Span;

type Work<'a> = &'a mut dyn FnMut(&mut dyn Member) -> Result<()>;
/// Does something with the device of a number, whose backend it is.
pub(super) type Visit = Box<dyn Fn(usize, &mut dyn Backend, Work<'_>) -> Result<()> + Send + Sync>;

/// [`Links`] between GPUs whose controller calls NCCL.
pub struct NcclLinks {
    // Communicators go before what keeps the GPUs.
    team: Mutex<Team>,
    failure: Arc<OnceLock<String>>,
    copies: Box<dyn Links>,
}

/// What the controller's thread has, which alone locks it within a step.
struct Team {
    nccl: Arc<dyn Nccl>,
    visit: Visit,
    connected: Vec<Connected>,
    /// By device.
    records: Vec<Record>,
    failure: Arc<OnceLock<String>>,
}

/// Devices with a communicator.
struct Connected {
    devices: Box<[usize]>,
    session: Arc<Session>,
}

impl NcclLinks {
    /// Links between `devices` in their order, that make `copies`. Communicators come with the first calls.
    ///
    /// # Errors
    /// [`BackendError::Library`] without NCCL, [`BackendError::Unsupported`] where a device is no GPU's, or devices that share one.
    pub fn new<'a>(
        devices: impl IntoIterator<Item = &'a mut dyn Backend>,
        copies: Box<dyn Links>,
    ) -> Result<Self> {
        let nccl = library::load()?;
        Self::over(nccl, Box::new(on_gpu), devices, copies)
    }

    pub(super) fn over<'a>(
        nccl: Arc<dyn Nccl>,
        visit: Visit,
        devices: impl IntoIterator<Item = &'a mut dyn Backend>,
        copies: Box<dyn Links>,
    ) -> Result<Self> {
        let mut gpus = Vec::new();
        for (device, backend) in devices.into_iter().enumerate() {
            visit(device, backend, &mut |member| {
                gpus.push(member.gpu());
                Ok(())
            })?;
        }
        apart(&gpus)?;
        let failure = Arc::new(OnceLock::new());
        Ok(Self {
            team: Mutex::new(Team {
                nccl,
                visit,
                connected: Vec::new(),
                records: gpus.iter().map(|_| Record::default()).collect(),
                failure: Arc::clone(&failure),
            }),
            failure,
            copies,
        })
    }

    fn team(&self) -> MutexGuard<'_, Team> {
        self.team.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn on_gpu(_: usize, backend: &mut dyn Backend, work: Work<'_>) -> Result<()> {
    let device = backend
        .cuda()
        .ok_or(BackendError::Unsupported("NCCL without a GPU"))?;
    work(device)
}

/// Whether each device has a GPU to itself.
fn apart(gpus: &[usize]) -> Result<()> {
    let shares = |(place, gpu): (usize, &usize)| gpus[..place].contains(gpu);
    let Some(second) = gpus.iter().enumerate().position(shares) else {
        return Ok(());
    };
    let first = gpus.iter().position(|gpu| *gpu == gpus[second]);
    Err(BackendError::Communication(format!(
        "devices {} and {second} are both on GPU {}, and NCCL refuses two of one process on one GPU: write dp_transport = \"peer-copy\", or fewer devices",
        first.unwrap_or(second),
        gpus[second]
    )))
}

/// A failure of no device in particular, or of one that it names itself.
fn of_all(source: BackendError) -> Failed {
    Failed {
        device: None,
        source,
    }
}

impl Team {
    /// Does something with the device at `place`.
    fn at(
        &self,
        members: &mut dyn Members,
        place: usize,
        work: Work<'_>,
    ) -> std::result::Result<usize, Failed> {
        let (device, backend) = members.device(place);
        let done = (self.visit)(device, backend, work);
        done.map(|()| device).map_err(|source| Failed {
            device: Some(device),
            source,
        })
    }

    fn owner(&self) -> Owner {
        let (seen, failed) = (Arc::clone(&self.failure), Arc::clone(&self.failure));
        Owner {
            // Devices of one process leave together or not at all.
            watch: Watch(Arc::new(move || Seen {
                failure: seen.get().cloned(),
                left: Vec::new(),
            })),
            aborter: Aborter(Arc::new(move |reason| {
                let _ = failed.set(reason.to_owned());
            })),
            rank: 0,
        }
    }

    /// The communicator of these devices among those there are.
    fn find(&self, members: &mut dyn Members) -> Option<usize> {
        let mut is_of = |connected: &Connected| {
            connected.devices.len() == members.count()
                && (0..members.count())
                    .all(|place| connected.devices[place] == members.device(place).0)
        };
        self.connected.iter().position(&mut is_of)
    }

    /// The communicator of these devices, made if it must be.
    fn connected(&mut self, members: &mut dyn Members) -> std::result::Result<usize, Failed> {
        if let Some(found) = self.find(members) {
            return Ok(found);
        }
        let (mut devices, mut enters) = (Vec::new(), Vec::new());
        let mut ends = Vec::new();
        for place in 0..members.count() {
            let mut there = None;
            let device = self.at(members, place, &mut |member| {
                there = Some((member.loss(), member.enter(), member.gpu()));
                Ok(())
            })?;
            let (loss, enter, gpu) = there.expect("a device that is visited is seen");
            devices.push(device);
            enters.push(enter);
            ends.push((loss, format!("device {device} (GPU {gpu})")));
        }
        let names: Vec<&str> = ends.iter().map(|(_, name)| name.as_str()).collect();
        let (who, owner, enter) = (names.join(", "), self.owner(), Arc::clone(&enters[0]));
        let made = connect_together(&self.nccl, &who, &owner.watch, enters).map_err(of_all)?;
        let end = |((loss, name), handle)| End { handle, loss, name };
        let ends = ends.into_iter().zip(made).map(end).collect();
        let session = Session::start(Arc::clone(&self.nccl), ends, owner, enter).map_err(of_all)?;
        self.connected.push(Connected {
            devices: devices.into(),
            session,
        });
        Ok(self.connected.len() - 1)
    }

    /// One piece, on all devices.
    fn call(
        &mut self,
        connected: usize,
        members: &mut dyn Members,
        call: &dyn Fn(&mut dyn Members, usize) -> CollectiveCall,
    ) -> std::result::Result<(), Failed> {
        let world = members.count();
        for place in 0..world {
            self.at(members, place, &mut |member| member.begin())?;
        }
        let session = Arc::clone(&self.connected[connected].session);
        let enqueued = session.call(|nccl, ends| {
            nccl.group_start()?;
            let begun = (0..world).try_for_each(|place| {
                let call = call(members, place);
                let (comm, mut said) = (ends[place].handle, Ok(()));
                let visited = self.at(members, place, &mut |member| {
                    let at = Place {
                        rank: place,
                        world,
                        from: member.address(call.from),
                        to: member.address(call.to),
                        scratch: 0,
                    };
                    said = transfers(&call, &at, Operator::SUM, &mut |transfer| {
                        // SAFETY: the session has the communicators used by this thread alone; the spans are the device's, as long as
                        // the call says, and whoever uses them next comes after the call on its stream.
                        unsafe { nccl.transfer(comm, member.stream(), &transfer) }
                    });
                    Ok(())
                });
                visited.map_err(|failed| failed.to_string())?;
                said.map_err(|words| format!("{}: {words}", ends[place].name))
            });
            // A group that was begun is ended, whatever happened in it.
            let ended = nccl.group_end();
            has_left();
            begun.and(ended.map_err(|words| {
                // SAFETY: the session has the communicators alive, and used by this thread alone.
                match unsafe { blame(nccl, ends) } {
                    Err(blamed) => format!("{words}: {blamed}"),
                    Ok(()) => words,
                }
            }))
        });
        enqueued.map_err(of_all)?;
        for place in 0..world {
            let call = call(members, place);
            let mut interval = None;
            let device = self.at(members, place, &mut |member| {
                interval = Some(member.end()?);
                Ok(())
            })?;
            let interval = interval.expect("a device that is visited is seen");
            session.follow(place, &call, interval.clone(), None);
            self.records[device].enter(&call, Some(interval));
        }
        Ok(())
    }

    /// All pieces, each an operation of its own, as PyTorch's coalesced buffers are.
    fn call_in_pieces(
        &mut self,
        collective: Collective,
        phase: Phase,
        members: &mut dyn Members,
    ) -> std::result::Result<(), Failed> {
        if members.count() < 2 {
            return Ok(());
        }
        if let Some(reason) = self.failure.get() {
            return Err(of_all(BackendError::Communication(reason.clone())));
        }
        let whole = members.span(0);
        for place in 1..members.count() {
            let other = members.span(place);
            if (other.len(), other.dtype()) != (whole.len(), whole.dtype()) {
                return Err(of_all(BackendError::Communication(format!(
                    "a {} of {whole:?} and {other:?}, which must be alike",
                    collective.name()
                ))));
            }
        }
        if whole.is_empty() {
            return Ok(());
        }
        let connected = self.connected(members)?;
        for index in 0..pieces(whole).count() {
            self.call(connected, members, &|members, place| {
                let span: Span = pieces(members.span(place))
                    .nth(index)
                    .expect("spans are as long as the root's");
                CollectiveCall {
                    collective,
                    phase,
                    from: span,
                    to: span,
                    reduce: Reduce::Sum,
                    root: 0,
                }
            })?;
        }
        Ok(())
    }

    fn close(&mut self) {
        for connected in self.connected.drain(..) {
            connected.session.close();
        }
        has_left();
    }
}

impl Controller for NcclLinks {
    fn broadcast(
        &self,
        phase: Phase,
        members: &mut dyn Members,
    ) -> std::result::Result<(), Failed> {
        let done = self
            .team()
            .call_in_pieces(Collective::Broadcast, phase, members);
        done.inspect_err(|error| self.abort(&error.to_string()))
    }

    fn reduce(&self, phase: Phase, members: &mut dyn Members) -> std::result::Result<(), Failed> {
        let done = self
            .team()
            .call_in_pieces(Collective::Reduce, phase, members);
        done.inspect_err(|error| self.abort(&error.to_string()))
    }

    /// The watching threads do the rest.
    fn abort(&self, reason: &str) {
        let _ = self.failure.set(reason.to_owned());
    }

    fn close(&self) {
        self.team().close();
    }
}

impl Links for NcclLinks {
    fn copy(&self, destination: &mut dyn Backend, after: &Completion, copy: Copy) -> Result<Event> {
        self.copies.copy(destination, after, copy)
    }

    fn controller(&self) -> Option<&dyn Controller> {
        Some(self)
    }

    fn counts(&self) -> Vec<(usize, Count)> {
        let mut all = self.copies.counts();
        for (device, record) in self.team().records.iter().enumerate() {
            all.extend(record.counts().into_iter().map(|count| (device, count)));
        }
        all.sort_by_key(|(device, count)| (*device, count.phase, count.root, count.size_bytes));
        all
    }

    fn reset_counts(&self) {
        self.copies.reset_counts();
        self.team().records.iter_mut().for_each(Record::reset);
    }
}

impl Drop for NcclLinks {
    fn drop(&mut self) {
        self.team().close();
    }
}
