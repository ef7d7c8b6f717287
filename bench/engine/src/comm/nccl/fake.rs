//! An NCCL for tests, and a device without a GPU: what ranks enqueue is written down, and carried out on the host as NCCL's documents say.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use cudarc::nccl::sys::ncclUniqueId as UniqueId;

use super::device::{Device, Enter, Interval, OnGpu, Target};
use super::library::{Handle, Nccl, Operator, RawStream};
use super::transfer::{Kind, Transfer};
use crate::backend::{BackendError, Event, Stream};
use crate::tensor::{Dtype, Span};

/// What one rank has done with its communicator.
#[derive(Debug, PartialEq)]
pub(super) enum Done {
    /// Transfers that began together.
    Group(Vec<Transfer>),
    Scaled(Dtype, f32),
    Abort,
    Revoke,
    Destroy,
}

/// An NCCL that one test has for itself; `rank` of a handle is its number less one.
#[derive(Default)]
pub(super) struct Fake {
    /// What is said instead of an identity, an initialisation, a transfer, or by the threads.
    pub(super) no_identity: Option<&'static str>,
    pub(super) no_init: Option<(usize, &'static str)>,
    pub(super) no_transfer: Option<&'static str>,
    pub(super) async_error: Mutex<Option<&'static str>>,
    /// The only rank that says so; none for all.
    pub(super) failing: Mutex<Option<usize>>,
    /// What the end of a group says once it has more than one rank in it.
    pub(super) no_group: Mutex<Option<&'static str>>,
    /// Ranks whose initialisation waits for ever, as if a rank did not come.
    pub(super) stuck_init: Option<usize>,
    pub(super) revokes: bool,
    /// A call of this rank stays in NCCL until it is revoked or aborted.
    pub(super) stuck_call: Option<usize>,
    pub(super) released: Mutex<bool>,
    pub(super) release: Condvar,
    pub(super) versions: HashMap<usize, u64>,
    pub(super) next_rank: AtomicUsize,
    pub(super) identities: Mutex<Vec<UniqueId>>,
    pub(super) written: Mutex<HashMap<usize, Vec<Done>>>,
    pub(super) open: Mutex<HashMap<std::thread::ThreadId, Vec<(usize, Transfer)>>>,
}

impl Fake {
    pub(super) fn done(&self, rank: usize) -> Vec<Done> {
        let mut done = self.written.lock().unwrap();
        done.remove(&rank).unwrap_or_default()
    }

    fn add(&self, rank: usize, what: Done) {
        self.written
            .lock()
            .unwrap()
            .entry(rank)
            .or_default()
            .push(what);
    }

    /// One thread has enqueued for several ranks: they are all there, and it is carried out at once.
    fn end_together(&self, group: &[(usize, Transfer)], ranks: usize) -> Result<(), String> {
        if let Some(words) = *self.no_group.lock().unwrap() {
            return Err(words.into());
        }
        let of = |rank| {
            let own = group.iter().filter(|(of, _)| *of == rank);
            own.map(|(_, transfer)| *transfer).collect()
        };
        let each: Vec<Vec<Transfer>> = (0..ranks).map(of).collect();
        carry_out(&each.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for (rank, transfers) in each.into_iter().enumerate() {
            self.add(rank, Done::Group(transfers));
        }
        Ok(())
    }

    fn let_go(&self) {
        *self.released.lock().unwrap() = true;
        self.release.notify_all();
    }

    /// Carries out what `world` ranks have enqueued, whose addresses are of the host and hold f32 or i32.
    pub(super) fn perform(&self, world: usize) {
        let done: Vec<Vec<Vec<Transfer>>> = (0..world).map(|rank| self.groups(rank)).collect();
        for index in 0..done[0].len() {
            let groups: Vec<&[Transfer]> = done.iter().map(|all| &all[index][..]).collect();
            carry_out(&groups);
        }
    }

    fn groups(&self, rank: usize) -> Vec<Vec<Transfer>> {
        let group = |done| match done {
            Done::Group(transfers) => Some(transfers),
            _ => None,
        };
        self.done(rank).into_iter().filter_map(group).collect()
    }
}

fn rank_of(comm: Handle) -> usize {
    comm.0 as usize - 1
}

/// The factor that the fake's operators carry: its bits, above NCCL's own.
fn factor_of(operator: Operator) -> f32 {
    match operator {
        Operator::SUM | Operator::MAX => 1.0,
        Operator(made) => 1.0 / (made - 5) as f32,
    }
}

fn read(address: u64, count: usize) -> Vec<f32> {
    assert!(address != 0, "a transfer reads nowhere");
    // SAFETY: tests give addresses of their own memory.
    unsafe { std::slice::from_raw_parts(address as *const f32, count) }.to_vec()
}

fn write(address: u64, values: &[f32]) {
    assert!(address != 0, "a transfer writes nowhere");
    // SAFETY: as above; nobody reads while this is written.
    unsafe { std::slice::from_raw_parts_mut(address as *mut f32, values.len()) }
        .copy_from_slice(values);
}

fn read_bytes(address: u64, count: usize) -> Vec<u8> {
    assert!(address != 0, "a transfer reads nowhere");
    // SAFETY: as in `read`.
    unsafe { std::slice::from_raw_parts(address as *const u8, count) }.to_vec()
}

fn write_bytes(address: u64, values: &[u8]) {
    assert!(address != 0, "a transfer writes nowhere");
    // SAFETY: as in `write`.
    unsafe { std::slice::from_raw_parts_mut(address as *mut u8, values.len()) }
        .copy_from_slice(values);
}

fn combine(transfers: &[Transfer], operator: Operator, count: usize) -> Vec<f32> {
    let inputs: Vec<Vec<f32>> = transfers.iter().map(|t| read(t.from, count)).collect();
    let factor = factor_of(operator);
    (0..count)
        .map(|i| {
            let all = inputs.iter().map(|input| input[i]);
            if operator == Operator::MAX {
                all.fold(f32::NEG_INFINITY, f32::max)
            } else {
                all.map(|value| value * factor).sum()
            }
        })
        .collect()
}

/// One group of every rank, at once.
fn carry_out(groups: &[&[Transfer]]) {
    let is_point = |t: &&Transfer| matches!(t.kind, Kind::Send { .. } | Kind::Receive { .. });
    let collectives: Vec<Vec<Transfer>> = groups
        .iter()
        .map(|group| group.iter().filter(|t| !is_point(t)).copied().collect())
        .collect();
    for index in 0..collectives[0].len() {
        let each: Vec<Transfer> = collectives.iter().map(|group| group[index]).collect();
        let (first, count) = (each[0], each[0].count);
        for other in &each {
            assert_eq!(
                (other.kind, other.count, other.dtype),
                (first.kind, count, first.dtype)
            );
        }
        match first.kind {
            Kind::Broadcast { root } => {
                let bytes = count * first.dtype.size();
                let values = read_bytes(each[root].from, bytes);
                each.iter().for_each(|t| write_bytes(t.to, &values));
            }
            Kind::Reduce { operator, root } => {
                write(each[root].to, &combine(&each, operator, count));
            }
            Kind::AllReduce { operator } => {
                let values = combine(&each, operator, count);
                each.iter().for_each(|t| write(t.to, &values));
            }
            Kind::AllGather => {
                let values: Vec<f32> = each.iter().flat_map(|t| read(t.from, count)).collect();
                each.iter().for_each(|t| write(t.to, &values));
            }
            Kind::ReduceScatter { operator } => {
                let all = combine(&each, operator, count * each.len());
                for (t, part) in each.iter().zip(all.chunks(count)) {
                    write(t.to, part);
                }
            }
            Kind::Send { .. } | Kind::Receive { .. } => unreachable!("set apart above"),
        }
    }
    let mut sent: HashMap<(usize, usize), Vec<Vec<f32>>> = HashMap::new();
    for (rank, group) in groups.iter().enumerate() {
        for t in group.iter() {
            if let Kind::Send { peer } = t.kind {
                let mail = sent.entry((rank, peer)).or_default();
                mail.push(read(t.from, t.count));
            }
        }
    }
    for (rank, group) in groups.iter().enumerate() {
        for t in group.iter() {
            if let Kind::Receive { peer } = t.kind {
                let mail = sent.get_mut(&(peer, rank)).expect("somebody sends it");
                let values = mail.remove(0);
                assert_eq!(values.len(), t.count);
                write(t.to, &values);
            }
        }
    }
    assert!(sent.values().all(Vec::is_empty), "somebody receives it");
}

impl Nccl for Fake {
    fn version(&self) -> Result<u64, String> {
        let asked = self.next_rank.fetch_add(1, Ordering::SeqCst);
        Ok(self.versions.get(&asked).copied().unwrap_or(22809))
    }

    fn unique_id(&self) -> Result<UniqueId, String> {
        match self.no_identity {
            Some(words) => Err(words.into()),
            None => Ok(UniqueId {
                internal: std::array::from_fn(|byte| (byte as u8).wrapping_mul(3) as _),
            }),
        }
    }

    fn init(&self, id: UniqueId, world: usize, rank: usize) -> Result<Handle, String> {
        assert!(rank < world);
        self.identities.lock().unwrap().push(id);
        if let Some((failing, words)) = self.no_init
            && failing == rank
        {
            return Err(words.into());
        }
        if self.stuck_init == Some(rank) {
            let mut released = self.released.lock().unwrap();
            while !*released {
                released = self.release.wait(released).unwrap();
            }
        }
        Ok(Handle((rank + 1) as *mut _))
    }

    fn init_together(
        &self,
        id: UniqueId,
        world: usize,
        enter: &dyn Fn(usize) -> Result<(), String>,
    ) -> Result<Vec<Handle>, String> {
        let one = |rank| {
            enter(rank)?;
            self.init(id, world, rank)
        };
        (0..world).map(one).collect()
    }

    unsafe fn async_error(&self, comm: Handle) -> Result<(), String> {
        if self
            .failing
            .lock()
            .unwrap()
            .is_some_and(|rank| rank != rank_of(comm))
        {
            return Ok(());
        }
        match *self.async_error.lock().unwrap() {
            Some(words) => Err(words.into()),
            None => Ok(()),
        }
    }

    unsafe fn abort(&self, comm: Handle) -> Result<(), String> {
        self.add(rank_of(comm), Done::Abort);
        self.let_go();
        Ok(())
    }

    unsafe fn revoke(&self, comm: Handle) -> Option<Result<(), String>> {
        if !self.revokes {
            return None;
        }
        self.add(rank_of(comm), Done::Revoke);
        self.let_go();
        Some(Ok(()))
    }

    unsafe fn destroy(&self, comm: Handle) -> Result<(), String> {
        self.add(rank_of(comm), Done::Destroy);
        Ok(())
    }

    unsafe fn scaled_sum(
        &self,
        comm: Handle,
        dtype: Dtype,
        factor: f32,
    ) -> Result<Operator, String> {
        self.add(rank_of(comm), Done::Scaled(dtype, factor));
        Ok(Operator((1.0 / factor) as i32 + 5))
    }

    unsafe fn transfer(
        &self,
        comm: Handle,
        _: RawStream,
        transfer: &Transfer,
    ) -> Result<(), String> {
        if let Some(words) = self.no_transfer {
            return Err(words.into());
        }
        if self.stuck_call == Some(rank_of(comm)) {
            let mut released = self.released.lock().unwrap();
            let stuck = !*released;
            while !*released {
                released = self.release.wait(released).unwrap();
            }
            if stuck {
                return Err("it was stuck".into());
            }
        }
        let mut open = self.open.lock().unwrap();
        match open.get_mut(&std::thread::current().id()) {
            Some(group) => group.push((rank_of(comm), *transfer)),
            None => self.add(rank_of(comm), Done::Group(vec![*transfer])),
        }
        Ok(())
    }

    fn group_start(&self) -> Result<(), String> {
        let thread = std::thread::current().id();
        let before = self.open.lock().unwrap().insert(thread, Vec::new());
        assert!(before.is_none(), "a group in a group");
        Ok(())
    }

    fn group_end(&self) -> Result<(), String> {
        let thread = std::thread::current().id();
        let group = self.open.lock().unwrap().remove(&thread);
        let group = group.expect("a group was begun");
        let ranks = group.iter().map(|(rank, _)| rank + 1).max().unwrap_or(0);
        if group.iter().any(|(rank, _)| *rank != group[0].0) {
            return self.end_together(&group, ranks);
        }
        if let Some((rank, _)) = group.first() {
            let transfers = group.iter().map(|(_, transfer)| *transfer).collect();
            self.add(*rank, Done::Group(transfers));
        }
        Ok(())
    }
}

/// When the fake's device is done with a call.
#[derive(Clone)]
pub(super) struct FakeInterval(
    pub(super) Arc<AtomicBool>,
    /// What the device has failed at.
    pub(super) Arc<Mutex<Option<String>>>,
);

impl FakeInterval {
    pub(super) fn is_done(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.1.lock().unwrap().clone()
    }

    pub(super) fn elapsed_ns(&self) -> Option<u64> {
        self.is_done().then_some(1000)
    }
}

/// A device whose memory is the host's and whose stream runs when the test says so.
pub(super) struct FakeDevice {
    loss: Arc<OnceLock<String>>,
    /// The memory of arena i + 1; the first is the scratch.
    memory: Vec<Box<[f32]>>,
    pub(super) done: Arc<AtomicBool>,
    sequence: u64,
}

impl FakeDevice {
    pub(super) fn new() -> Self {
        Self {
            loss: Arc::default(),
            memory: vec![vec![0.0; 1].into()],
            done: Arc::new(AtomicBool::new(true)),
            sequence: 0,
        }
    }

    pub(super) fn span(&mut self, values: &[f32]) -> Span {
        self.memory.push(values.into());
        Span::of_arena(self.memory.len() as u16 - 1, Dtype::F32, values.len())
    }

    pub(super) fn values(&self, span: Span) -> Vec<f32> {
        let arena = &self.memory[usize::from(span.arena())];
        arena[span.start()..span.start() + span.len()].to_vec()
    }

    pub(super) fn after() -> Event {
        Event {
            stream: Stream::Compute,
            sequence: 0,
        }
    }

    /// As a GPU's `synchronize`, which blocks until the stream is empty.
    pub(super) fn synchronize(&self) -> crate::backend::Result<()> {
        while !self.done.load(Ordering::SeqCst) && self.loss.get().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        match self.loss.get() {
            Some(reason) => Err(BackendError::Communication(reason.clone())),
            None => Ok(()),
        }
    }
}

impl OnGpu for FakeDevice {
    fn loss(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.loss)
    }

    fn enter(&self) -> Enter {
        Arc::new(|| Ok(()))
    }
}

impl Device for FakeDevice {
    fn scratch(&mut self) -> crate::backend::Result<Span> {
        Ok(Span::of_arena(0, Dtype::F32, 1))
    }

    fn enqueue(
        &mut self,
        _: Event,
        work: &mut dyn FnMut(&Target<'_>) -> crate::backend::Result<()>,
    ) -> crate::backend::Result<(Event, Interval)> {
        let bases: Vec<u64> = self
            .memory
            .iter_mut()
            .map(|arena| arena.as_mut_ptr() as u64)
            .collect();
        work(&Target {
            stream: RawStream(std::ptr::null_mut()),
            address: &|span| match span.is_empty() {
                true => 0,
                false => bases[usize::from(span.arena())] + 4 * span.start() as u64,
            },
        })?;
        self.sequence += 1;
        let event = Event {
            stream: Stream::Communication,
            sequence: self.sequence,
        };
        let interval = self.interval(event);
        Ok((event, interval))
    }

    fn interval(&self, _: Event) -> Interval {
        Interval::Fake(FakeInterval(Arc::clone(&self.done), Arc::default()))
    }
}
