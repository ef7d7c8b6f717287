//! Who used the cores of a measured window: this job, others, or the hypervisor.
//!
//! Contract: looks twice, before the barrier that opens a window and after its last step, so nothing of it lies in the hot
//! path. A core was busy while it neither idled, nor served interrupts, nor was stolen. What of that was not this job's is
//! foreign. Ours are the threads that are pinned to the core, and those of this process and of its conductor that are pinned
//! to none of the job's cores, because they could have run on any. Where /proc does not say, there is no event.
//!
//! Idle time is the kernel's own, exact but read in ticks of 10 ms, where user and system time are sampled at timer
//! interrupts. Switching between threads and waking from idle is in no thread's time; it is counted as ours where our threads were
//! switched to. The other hardware thread of a core counts with the core, unless it is a device of its own.
//! A rank on GPUs has them watched as well ([`super::gpus`]), from before the first look until after the last one.
//! Reference: proc_stat(5), proc_pid_status(5), the kernel's Documentation/scheduler/sched-stats and accounting/psi.
use std::collections::BTreeMap;

use syncmark_engine::probe::now_ns;

use super::gpus::Watch;
use crate::environment::{Root, cores};
use crate::run::protocol::Assignment;
use crate::run::spool::Event;

/// What a switch to one of our threads costs beyond the thread's own time. Measured: 0.44 µs to 0.61 µs a switch of 100,000 to 170,000 a
/// second, in collectives of some bytes on a virtual machine that ran nothing else (Linux 6.18).
const SWITCH_NS: u64 = 600;

/// The cores of one device, and those of its hyper-threads that no other device has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// First device on these cores.
    device: usize,
    own: Vec<u32>,
    siblings: Vec<u32>,
}

/// Looks at the devices of one rank, or of the one controller.
#[derive(Debug)]
pub struct Witness {
    root: Root,
    /// Nanoseconds of a tick of /proc.
    tick_ns: u64,
    conductor: u32,
    groups: Vec<Group>,
    /// Cores of every device of the job, to tell pinned threads from others.
    devices: Vec<Vec<u32>>,
    gpus: Watch,
}

/// What one look saw.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    at_ns: u64,
    cores: BTreeMap<u32, CoreTimes>,
    threads: BTreeMap<u32, ThreadTimes>,
    conductor_ns: u64,
    pressure_ns: Option<u64>,
}

/// A core's time since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CoreTimes {
    /// Idle, waiting for input, serving interrupts, stolen.
    away_ns: u64,
    stolen_ns: u64,
}

/// A thread's time since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ThreadTimes {
    cores: Vec<u32>,
    cpu_ns: u64,
    voluntary_switches: u64,
    involuntary_switches: u64,
}

impl Witness {
    /// A witness for the rank whose first device is `device`.
    pub fn new(assignment: &Assignment, device: usize) -> Self {
        let parent = rustix::process::getppid();
        let tick = rustix::param::clock_ticks_per_second().max(1);
        let devices: Vec<Vec<u32>> = assignment
            .cores
            .iter()
            .map(|cores| cores.iter().map(|&core| core as u32).collect())
            .collect();
        let local = match assignment.trial.strategy.launched() {
            // One controller, or one device.
            None => 0..devices.len(),
            Some(_) => device..device + 1,
        };
        let root = Root::machine();
        let groups = groups(&root, &devices, local, assignment.rank as usize);
        Self {
            root,
            tick_ns: 1_000_000_000 / tick,
            conductor: parent.map_or(0, |pid| pid.as_raw_nonzero().get() as u32),
            groups,
            devices,
            gpus: Watch::new(assignment, device),
        }
    }

    /// Looks before the barrier that opens a pass.
    pub fn begin(&mut self, pass: u8) -> Option<Look> {
        self.gpus.begin(pass);
        self.look()
    }

    /// What happened since [`Witness::begin`] gave `first`.
    pub fn end(&mut self, first: &Option<Look>) -> Vec<Event> {
        let mut events = self.between(first, &self.look());
        events.extend(self.gpus.end());
        events
    }

    /// Looks; `None` where the machine does not say.
    fn look(&self) -> Option<Look> {
        if self.groups.is_empty() {
            return None;
        }
        let stat = self.root.read("proc/stat")?;
        let conductor = self.threads(&format!("proc/{}", self.conductor));
        Some(Look {
            at_ns: now_ns(),
            cores: core_times(&stat, self.tick_ns),
            threads: self.threads("proc/self")?,
            conductor_ns: conductor?.values().map(|thread| thread.cpu_ns).sum(),
            pressure_ns: self
                .root
                .read("proc/pressure/cpu")
                .and_then(|text| pressure_ns(&text)),
        })
    }

    /// What happened between two looks, an event for each group of cores.
    fn between(&self, first: &Option<Look>, last: &Option<Look>) -> Vec<Event> {
        let (Some(first), Some(last)) = (first, last) else {
            return Vec::new();
        };
        let used = |group: &Group| used(group, &self.devices, first, last);
        self.groups.iter().filter_map(used).collect()
    }

    /// The threads of a process.
    fn threads(&self, process: &str) -> Option<BTreeMap<u32, ThreadTimes>> {
        let tasks = format!("{process}/task");
        let one = |name: String| {
            let status = self.root.read(&format!("{tasks}/{name}/status"))?;
            let cpu_ns = self.cpu_ns(&format!("{tasks}/{name}"))?;
            Some((name.parse().ok()?, thread_times(&status, cpu_ns)?))
        };
        // A thread that ends between the listing and the look at it is left out.
        Some(
            self.root
                .list(&tasks)?
                .into_iter()
                .filter_map(one)
                .collect(),
        )
    }

    /// CPU time of a thread: in nanoseconds where the kernel has scheduler information, else in ticks.
    fn cpu_ns(&self, thread: &str) -> Option<u64> {
        let exact = self
            .root
            .read(&format!("{thread}/schedstat"))
            .and_then(|text| text.split_whitespace().next()?.parse().ok());
        exact
            .or_else(|| Some(ticks_of(&self.root.read(&format!("{thread}/stat"))?)? * self.tick_ns))
    }
}

/// The groups of `local` devices. Devices of this process that share cores are one group, which its first rank watches.
fn groups(
    root: &Root,
    devices: &[Vec<u32>],
    local: std::ops::Range<usize>,
    first_rank: usize,
) -> Vec<Group> {
    let taken = |core: &u32| devices.iter().flatten().any(|other| other == core);
    let first_on =
        |cores: &Vec<u32>| (first_rank..devices.len()).find(|&other| devices[other] == *cores);
    local
        .filter(|&device| device < devices.len() && first_on(&devices[device]) == Some(device))
        .map(|device| {
            let own = devices[device].clone();
            let siblings = own.iter().flat_map(|&core| cores::siblings(root, core));
            let mut siblings: Vec<u32> = siblings.filter(|core| !taken(core)).collect();
            siblings.sort_unstable();
            siblings.dedup();
            Group {
                device,
                own,
                siblings,
            }
        })
        .collect()
}

/// The use of one group's cores between two looks.
fn used(group: &Group, devices: &[Vec<u32>], first: &Look, last: &Look) -> Option<Event> {
    let elapsed_ns = last.at_ns.saturating_sub(first.at_ns);
    let (mut busy_ns, mut stolen_ns) = (0u64, 0u64);
    for core in group.own.iter().chain(&group.siblings) {
        let (before, after) = (first.cores.get(core)?, last.cores.get(core)?);
        // Ticks can lie a little beside the clock: a core is never busy for less than no time.
        busy_ns += elapsed_ns.saturating_sub(after.away_ns.saturating_sub(before.away_ns));
        if group.own.contains(core) {
            stolen_ns += after.stolen_ns.saturating_sub(before.stolen_ns);
        }
    }
    let within = |cores: &[u32], of: &[u32]| cores.iter().all(|core| of.contains(core));
    let (mut pinned_ns, mut elsewhere_ns, mut switches) = (0, 0, 0);
    for (id, thread) in &last.threads {
        let before = first.threads.get(id);
        let cpu_ns = thread.cpu_ns.saturating_sub(before.map_or(0, |t| t.cpu_ns));
        if within(&thread.cores, &group.own) {
            let earlier = before.map_or([0; 2], |t| [t.voluntary_switches, t.involuntary_switches]);
            let involuntary = thread.involuntary_switches.saturating_sub(earlier[1]);
            let all = involuntary + thread.voluntary_switches.saturating_sub(earlier[0]);
            pinned_ns += cpu_ns + all * SWITCH_NS;
            switches += involuntary;
        } else if !devices.iter().any(|device| within(&thread.cores, device)) {
            elsewhere_ns += cpu_ns;
        }
    }
    elsewhere_ns += last.conductor_ns.saturating_sub(first.conductor_ns);
    let pressure = first.pressure_ns.zip(last.pressure_ns);
    Some(Event::Cores {
        device: group.device as u16,
        cores: group.own.len() as u16,
        elapsed_ns,
        busy_ns,
        pinned_ns,
        elsewhere_ns,
        stolen_ns,
        involuntary_switches: switches,
        pressure_ns: pressure.map(|(first, last)| last.saturating_sub(first)),
    })
}

/// Per-core lines of /proc/stat: `cpu3 user nice system idle iowait irq softirq steal ...`.
fn core_times(stat: &str, tick_ns: u64) -> BTreeMap<u32, CoreTimes> {
    let core = |line: &str| {
        let (name, ticks) = line.strip_prefix("cpu")?.split_once(' ')?;
        let ticks: Vec<u64> = ticks
            .split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect();
        let stolen = ticks.get(7).copied().unwrap_or(0);
        let away: u64 = ticks.get(3..7)?.iter().sum::<u64>() + stolen;
        let times = CoreTimes {
            away_ns: away * tick_ns,
            stolen_ns: stolen * tick_ns,
        };
        Some((name.parse().ok()?, times))
    };
    stat.lines().filter_map(core).collect()
}

/// What a thread's `status` tells.
fn thread_times(status: &str, cpu_ns: u64) -> Option<ThreadTimes> {
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
    };
    let count = |name: &str| field(name)?.trim().parse().ok();
    Some(ThreadTimes {
        cores: cores::list(field("Cpus_allowed_list")?)?,
        cpu_ns,
        voluntary_switches: count("voluntary_ctxt_switches")?,
        involuntary_switches: count("nonvoluntary_ctxt_switches")?,
    })
}

/// User and system ticks of a thread's `stat`. Its name can hold anything, so the fields are counted from its last bracket.
fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

/// The total of the line `some` of /proc/pressure/cpu, in microseconds there.
fn pressure_ns(text: &str) -> Option<u64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some
        .split_whitespace()
        .find_map(|word| word.strip_prefix("total="))?;
    total.parse::<u64>().ok()?.checked_mul(1000)
}

#[cfg(test)]
mod tests;
