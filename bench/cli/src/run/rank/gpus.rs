//! Watches the GPUs of this rank beside its timed passes, on a thread of its own.
//!
//! Contract: the thread has NVML's handle to itself, shares nothing with the rank but two channels that are used before a pass's barrier
//! and after its last step, keeps away from the cores of devices where there are others, and takes bounded memory. NVML that is
//! missing or hangs leaves the columns empty and holds nothing up for more than [`PATIENCE`]. The thread ends with its [`Watch`], and
//! with the process.
//! Reference: METHODOLOGY.md, "On GPUs".
mod kin;
mod series;
mod source;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::CpuSet;
use syncmark_engine::backend::cuda::discovery::PciPlace;

use self::kin::Kin;
use self::series::Series;
use self::source::{NvmlSource, Source};
use super::device;
use crate::agent::launcher::{self, LauncherArg, Start};
use crate::environment::{Root, gpus};
use crate::plan::config::Backend;
use crate::run::binding;
use crate::run::protocol::Assignment;
use crate::run::spool::{Event, GpuPlace, name_bytes};
use crate::scenario::file::Launch;

/// Between two samples.
const INTERVAL: Duration = Duration::from_millis(100);
/// Before the first: the ranks have met by then.
const FIRST: Duration = Duration::from_millis(20);
/// Samples from one look at the GPU's processes to the next.
const PROCESSES_EVERY: u32 = 10;
/// How long a rank waits for the sampler before it goes on without.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// The GPUs of a rank's devices.
#[derive(Debug, Default)]
pub(super) struct Watch {
    places: Vec<Event>,
    sampler: Option<Sampler>,
}

impl Watch {
    /// Of the rank whose first device is `device`; of nothing where it is on a CPU.
    pub(super) fn new(assignment: &Assignment, device: usize) -> Self {
        let known = binding::places();
        if assignment.trial.backend != Backend::Cuda || known.is_empty() {
            return Self::default();
        }
        let devices = match assignment.trial.strategy.launched() {
            None => 0..assignment.trial.devices,
            Some(_) => device..device + 1,
        };
        let mut watched: Vec<Gpu> = Vec::new();
        for device in devices.clone() {
            let ordinal = device % known.len();
            if !watched.iter().any(|gpu| gpu.ordinal == ordinal) {
                watched.push(Gpu {
                    ordinal,
                    device: device as u16,
                    place: known[ordinal],
                });
            }
        }
        let beside = watched
            .iter()
            .map(|gpu| match assignment.trial.strategy.launched() {
                Some(Launch::Processes) => (0..assignment.trial.devices)
                    .filter(|other| other % known.len() == gpu.ordinal)
                    .count(),
                _ => 1,
            });
        let kin = Kin::new(
            Root::machine(),
            std::process::id(),
            launched(),
            beside.collect(),
        );
        let taken = assignment.cores.iter().flatten().copied().collect();
        Self {
            places: devices
                .map(|device| placed(assignment, device, known[device % known.len()]))
                .collect(),
            sampler: Sampler::of_nvml(watched, kin, taken),
        }
    }

    /// Begins to look; a pass may start once this returns.
    pub(super) fn begin(&mut self, pass: u8) {
        if let Some(sampler) = &self.sampler
            && sampler.ask(Command::Begin { pass }).is_none()
        {
            self.sampler = None;
        }
    }

    /// Ends looking: where the GPUs sit and what was seen of them since [`Watch::begin`].
    pub(super) fn end(&mut self) -> Vec<Event> {
        let mut events = self.places.clone();
        match self
            .sampler
            .as_ref()
            .map(|sampler| sampler.ask(Command::End))
        {
            Some(Some(seen)) => events.extend(seen),
            Some(None) => self.sampler = None,
            None => {}
        }
        events
    }
}

/// Whether a launcher started this run: agents are then several, and have a parent in common.
fn launched() -> bool {
    let lookup =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    matches!(
        launcher::find(LauncherArg::Auto, &lookup),
        Ok(Start::Agent(_))
    )
}

/// Where the GPU of a device sits, and whether the device's cores are near it.
fn placed(assignment: &Assignment, device: usize, place: PciPlace) -> Event {
    let root = Root::machine();
    let near = binding::locality(&root, &place.to_string());
    let given = given_cores();
    let unbound = binding::unbound(
        &near,
        device::cores(assignment, device),
        &given,
        binding::nodes(&root),
        binding::switched_off(),
    );
    Event::GpuPlace(GpuPlace {
        device: device as u16,
        place: (place.domain, place.bus, place.device),
        node: near.node,
        unbound: unbound.map_or(0, |reason| reason as u8),
        network: name_bytes(near.network.as_deref()),
        rdma: name_bytes(near.rdma.as_deref()),
    })
}

/// Cores that the run was given: those of this process's parent, which is pinned nowhere.
fn given_cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(rustix::process::getppid());
    set.map_or_else(|_| Vec::new(), |set| listed(&set))
}

fn listed(set: &CpuSet) -> Vec<usize> {
    (0..CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect()
}

/// A GPU that is watched, and the first device on it.
#[derive(Clone, Copy, Debug)]
struct Gpu {
    ordinal: usize,
    device: u16,
    place: PciPlace,
}

#[derive(Clone, Copy, Debug)]
enum Command {
    Begin { pass: u8 },
    End,
}

/// The rank's end of the thread.
#[derive(Debug)]
struct Sampler {
    commands: Option<Sender<Command>>,
    replies: Receiver<Vec<Event>>,
    thread: JoinHandle<()>,
}

impl Sampler {
    /// Of GPUs that NVML tells of; `None` where no thread can be started.
    fn of_nvml(gpus: Vec<Gpu>, kin: Kin, taken: Vec<usize>) -> Option<Self> {
        Self::start(move |commands, replies| {
            keep_away(&taken);
            // Where there is none, the conductor has said why; the channels close, and columns stay empty.
            let Ok(nvml) = gpus::nvml() else { return };
            let places: Vec<PciPlace> = gpus.iter().map(|gpu| gpu.place).collect();
            let devices: Vec<u16> = gpus.iter().map(|gpu| gpu.device).collect();
            let mut source = NvmlSource::new(&nvml, &places);
            serve(&mut source, &devices, &kin, commands, replies);
        })
    }

    fn start(
        body: impl FnOnce(&Receiver<Command>, &Sender<Vec<Event>>) + Send + 'static,
    ) -> Option<Self> {
        let (commands, received) = channel();
        let (answers, replies) = channel();
        let thread = std::thread::Builder::new()
            .name("gpu watch".into())
            .spawn(move || body(&received, &answers))
            .ok()?;
        Some(Self {
            commands: Some(commands),
            replies,
            thread,
        })
    }

    /// What the thread answers; `None` when it is gone or does not answer in time.
    fn ask(&self, command: Command) -> Option<Vec<Event>> {
        self.commands.as_ref()?.send(command).ok()?;
        self.replies.recv_timeout(PATIENCE).ok()
    }
}

impl Drop for Sampler {
    /// Lets the thread end. NVML must not be in a call while the process takes itself down, but a driver that hangs is not waited for.
    fn drop(&mut self) {
        self.commands = None;
        let until = Instant::now() + PATIENCE;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Pins the calling thread to those of the run's cores that no device has, if there are any.
fn keep_away(taken: &[usize]) {
    let mut set = CpuSet::new();
    let free = given_cores()
        .into_iter()
        .filter(|core| !taken.contains(core));
    free.for_each(|core| set.set(core));
    if set.count() > 0 {
        // Where the system refuses, the thread stays where it is.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// Does as it is told until nobody tells it anything any more.
fn serve(
    source: &mut dyn Source,
    devices: &[u16],
    kin: &Kin,
    commands: &Receiver<Command>,
    replies: &Sender<Vec<Event>>,
) {
    while let Ok(command) = commands.recv() {
        let Command::Begin { pass } = command else {
            // An end without a beginning: nothing was seen.
            if replies.send(Vec::new()).is_err() {
                return;
            }
            continue;
        };
        let mut series: Vec<Series> = (0..source.gpus())
            .map(|gpu| Series::new(source.counters(gpu)))
            .collect();
        let began = Instant::now();
        look_for_others(source, kin, &mut series);
        if replies.send(Vec::new()).is_err() {
            return;
        }
        let (mut wait, mut samples) = (FIRST, 0u32);
        loop {
            match commands.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(_) => break,
            }
            for (gpu, series) in series.iter_mut().enumerate() {
                series.add(source.sample(gpu));
            }
            samples += 1;
            if samples.is_multiple_of(PROCESSES_EVERY) {
                look_for_others(source, kin, &mut series);
            }
            wait = INTERVAL;
        }
        let after: Vec<_> = (0..source.gpus()).map(|gpu| source.counters(gpu)).collect();
        let watched_ns = began.elapsed().as_nanos() as u64;
        look_for_others(source, kin, &mut series);
        let seen = series.iter().zip(devices).zip(after);
        let events = seen.flat_map(|((series, &device), after)| {
            [
                Event::GpuState(series.state(pass, device, watched_ns)),
                Event::GpuTraffic(series.traffic(pass, device, after)),
            ]
        });
        if replies.send(events.collect()).is_err() {
            return;
        }
    }
}

fn look_for_others(source: &mut dyn Source, kin: &Kin, series: &mut [Series]) {
    for (gpu, series) in series.iter_mut().enumerate() {
        let listed = source.processes(gpu);
        series.see(listed.and_then(|listed| kin.foreign(gpu, &listed)));
    }
}

#[cfg(test)]
mod tests;
