//! The agents of a job as rank 0's agent knows them: who is where, which cores they have, which trials they can run.
//!
//! Contract: a trial whose ranks are processes has rank r on agent r; any other runs wholly on rank 0's agent, on all
//! cores that the launcher gave to this host, while the others idle. When the crew is dropped the agents are told that
//! the job is over.
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use syncmark_record::environment::{AgentRecord, Launched};

use super::launcher::Place;
use super::link::Link;
use super::machine::Machine;
use super::meet::{self, MeetError};
use super::message::{Hello, Order, Start};
use super::remote::{Places, RemoteChild};
use super::seating::{Candidate, Seats, assign};
use crate::run::child::signal_words;
use crate::run::cores;
use crate::run::signals::Signals;

/// All agents of a job.
#[derive(Debug)]
pub struct Crew {
    place: Place,
    own: Hello,
    /// From rank 1.
    links: Vec<Rc<RefCell<Link>>>,
    local_cores: Vec<usize>,
}

impl Crew {
    /// Waits for the other agents.
    ///
    /// # Errors
    /// [`MeetError`] when they do not all come, or differ.
    pub fn gather(place: Place, own: Hello, signals: &Signals) -> Result<Self, MeetError> {
        let links = meet::gather(&place, &own, signals)?;
        let here = links
            .iter()
            .map(|link| &link.hello().machine)
            .filter(|machine| machine.is(&own.machine));
        let mut local_cores: Vec<usize> = here
            .chain([&own.machine])
            .flat_map(|m| m.cores.clone())
            .collect();
        local_cores.sort_unstable();
        local_cores.dedup();
        let reachable = cores::reachable(&local_cores).map_err(|source| MeetError::System {
            what: "find out which cores can be used here",
            source,
        })?;
        Ok(Self {
            place,
            own,
            links: links
                .into_iter()
                .map(|link| Rc::new(RefCell::new(link)))
                .collect(),
            local_cores: reachable,
        })
    }

    /// Number of agents.
    pub fn size(&self) -> usize {
        self.links.len() + 1
    }

    /// Cores of this host for what runs on rank 0's agent alone: those of all its agents.
    pub fn local_cores(&self) -> &[usize] {
        &self.local_cores
    }

    /// The job's token.
    pub fn token(&self) -> &str {
        &self.place.token
    }

    /// The address of this host at which all agents reached rank 0; unspecified, which is every one, where they used
    /// several.
    pub fn interface(&self) -> IpAddr {
        let reached = self.links.iter().map(|link| {
            let local = link.borrow().stream().local_addr();
            local.map_or(Ipv6Addr::UNSPECIFIED.into(), |address| address.ip())
        });
        common_interface(reached)
    }

    /// Why these agents cannot run a trial of `ranks` processes.
    pub fn refuses(&self, ranks: usize, shares_memory: bool) -> Option<String> {
        if ranks > self.size() {
            let (launcher, size) = (self.place.family.name(), self.size());
            return Some(format!(
                "it has {ranks} ranks in processes, but {launcher} started {size}: start as many, or set parallel.devices = {size}"
            ));
        }
        if !shares_memory {
            return None;
        }
        let apart =
            (1..ranks).find(|&rank| !self.machine(rank).shares_memory_with(&self.own.machine))?;
        let (here, there) = (&self.own.machine, self.machine(apart));
        Some(if here.is(&there) {
            format!(
                "its ranks share memory, but rank {apart} runs in a container of its own and sees other processes than rank 0; \
                 set parallel.transport = \"tcp\""
            )
        } else {
            format!(
                "its ranks share memory, but rank 0 runs on {} and rank {apart} on {}; set parallel.transport = \"tcp\"",
                here.host, there.host
            )
        })
    }

    /// The first agent of `ranks` that is gone, and why.
    pub fn lost(&self, ranks: usize) -> Option<String> {
        self.listen();
        let others = self.links.iter().take(ranks.saturating_sub(1));
        others
            .into_iter()
            .find_map(|link| link.borrow().lost().map(str::to_owned))
    }

    /// Takes in what idle agents have said: that they leave, or nothing.
    fn listen(&self) {
        for link in &self.links {
            // Only a child's words are frames to be kept, and no child runs now.
            link.borrow_mut().receive();
        }
    }

    /// The cores of the first `ranks` ranks.
    pub fn seats(&self, ranks: usize) -> Seats {
        let machines: Vec<(Machine, Option<u32>)> = (0..ranks)
            .map(|rank| (self.machine(rank), self.local_rank(rank)))
            .collect();
        let candidates: Vec<Candidate> = machines
            .iter()
            .map(|(machine, local_rank)| Candidate {
                machine,
                local_rank: *local_rank,
            })
            .collect();
        assign(&candidates)
    }

    /// The clock of each of the first `ranks` ranks, named after its host; empty when there is only one.
    pub fn clocks(&self, ranks: usize) -> Vec<String> {
        let machines: Vec<Machine> = (0..ranks).map(|rank| self.machine(rank)).collect();
        if machines.iter().all(|machine| machine.is(&machines[0])) {
            return Vec::new();
        }
        let namesake = |machine: &Machine| {
            machines
                .iter()
                .any(|other| other.host == machine.host && !other.is(machine))
        };
        let name = |machine: &Machine| match namesake(machine) {
            true => format!("{} {}", machine.host, machine.boot_id),
            false => machine.host.clone(),
        };
        machines.iter().map(name).collect()
    }

    fn machine(&self, rank: usize) -> Machine {
        match rank.checked_sub(1) {
            Some(index) => self.links[index].borrow().hello().machine.clone(),
            None => self.own.machine.clone(),
        }
    }

    fn local_rank(&self, rank: usize) -> Option<u32> {
        match rank.checked_sub(1) {
            Some(index) => self.links[index].borrow().hello().local_rank,
            None => self.own.local_rank,
        }
    }

    /// Lets the agent of a rank above 0 start a child.
    pub fn start(&self, start: Start, places: Places) -> RemoteChild {
        let rank = start.assignment.rank as usize;
        RemoteChild::start(&self.links[rank - 1], start, places)
    }

    /// How many agents were told to end by a signal.
    pub fn leaving(&self) -> usize {
        self.links
            .iter()
            .filter(|link| link.borrow().leaving().is_some())
            .count()
    }

    /// As [`Crew::leaving`], while no job runs.
    pub fn leaving_now(&self) -> usize {
        self.listen();
        self.leaving()
    }

    /// Which agent was told to end, and by which signal.
    pub fn departure(&self) -> Option<String> {
        self.links.iter().find_map(|link| {
            let link = link.borrow();
            let signal = link.leaving()?;
            Some(format!(
                "{} was stopped by {}",
                link.name(),
                signal_words(signal)
            ))
        })
    }

    /// What `environment.json` says of the agents.
    pub fn record(&self) -> Launched {
        let seats = self.seats(self.size());
        let agent = |rank: usize| {
            let machine = self.machine(rank);
            AgentRecord {
                rank: rank as u32,
                host: machine.host,
                cpu_model: machine.cpu_model,
                affinity: machine.cores.iter().map(|&core| core as u32).collect(),
                cores: seats.cores[rank].iter().map(|&core| core as u32).collect(),
            }
        };
        Launched {
            launcher: self.place.family.name().to_owned(),
            agents: (0..self.size()).map(agent).collect(),
        }
    }

    /// Whether ranks must share cores, in words.
    pub fn crowding(&self) -> Option<String> {
        let seats = self.seats(self.size());
        (seats.own < self.size()).then(|| {
            format!(
                "{} ranks have only {} cores of their own: trials on all of them are oversubscribed (the launcher's binding and \
                 the affinity masks are respected; mpirun takes --bind-to core, --map-by or --bind-to none)",
                self.size(),
                seats.own
            )
        })
    }
}

/// The one address of all, or else the unspecified one of their family: that of IPv6 takes connections over IPv4 as well.
fn common_interface(addresses: impl Iterator<Item = IpAddr>) -> IpAddr {
    let common = |one: IpAddr, other: IpAddr| match (one, other) {
        _ if one == other => one,
        (IpAddr::V4(_), IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    addresses
        .map(|address| address.to_canonical())
        .reduce(common)
        .unwrap_or(Ipv4Addr::LOCALHOST.into())
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.links
            .iter()
            .for_each(|link| link.borrow_mut().order(&Order::Goodbye));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_0_listens_where_all_agents_found_it() {
        let of = |addresses: &[&str]| {
            common_interface(addresses.iter().map(|ip| ip.parse().unwrap())).to_string()
        };
        assert_eq!(of(&[]), "127.0.0.1");
        assert_eq!(of(&["10.0.0.1", "::ffff:10.0.0.1"]), "10.0.0.1");
        assert_eq!(of(&["10.0.0.1", "127.0.0.1", "10.0.0.1"]), "0.0.0.0");
        assert_eq!(of(&["10.0.0.1", "fe80::1"]), "::");
    }
}
