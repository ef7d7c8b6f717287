//! The meeting as rank 0's agent holds it.
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::MeetError;
use crate::agent::launcher::Place;
use crate::agent::link::{Link, keep_alive, name};
use crate::agent::message::{AGENT_PROTOCOL_VERSION, Hello, Order, Report, Work};
use crate::agent::wire::{Frame, Inbox, PREAMBLE};
use crate::run::signals::Signals;
use crate::run::watch::time_until;

/// Connections that may wait to introduce themselves: strangers must not exhaust the descriptors.
const WAITING: usize = 256;
/// How long agents that come after the job was refused are told why.
const COURTESY: Duration = Duration::from_secs(5);
/// What an agent of another job is told.
const FOREIGN: &str = "another job meets here: the job's token differs (SYNCMARK_JOB_TOKEN, or what the launcher calls the job)";

/// Waits for all other agents and welcomes them, in the order of their ranks.
///
/// # Errors
/// [`MeetError`]; whoever had come has been told then.
pub fn gather(place: &Place, own: &Hello, signals: &Signals) -> Result<Vec<Link>, MeetError> {
    let (listener, address) = listen(place)?;
    let mut room = Room::new(place, own, address);
    let met = room.wait(&listener, signals);
    let order = match &met {
        Ok(()) => Order::Welcome,
        Err(error) => Order::Refused {
            reason: error.to_string(),
        },
    };
    let mut links: Vec<Link> = room.seats.into_iter().flatten().collect();
    links.iter_mut().for_each(|link| link.order(&order));
    met.map(|()| links)
}

/// Listens on every interface, or on the loopback one alone where all ranks are here.
fn listen(place: &Place) -> Result<(TcpListener, String), MeetError> {
    let system = |source| MeetError::System {
        what: "set the agents' meeting up",
        source,
    };
    let listener = bind(place).map_err(|source| MeetError::Listen {
        port: place.port,
        source,
    })?;
    listener.set_nonblocking(true).map_err(system)?;
    Ok((listener, place.address()))
}

fn bind(place: &Place) -> std::io::Result<TcpListener> {
    let port = place.port;
    match place.master.as_str() {
        "::1" if place.one_host => TcpListener::bind((Ipv6Addr::LOCALHOST, port)),
        "127.0.0.1" | "localhost" if place.one_host => {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        }
        // The wildcard of version 6 takes version 4 as well, unless the kernel has no version 6.
        _ => match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
            Err(error) if error.kind() != ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            }
            bound => bound,
        },
    }
}

/// Somebody who has not introduced itself yet.
struct Stranger {
    stream: TcpStream,
    inbox: Inbox,
}

/// What became of a connection after a look at it.
enum Look {
    /// It has not said everything yet.
    Waiting(Stranger),
    /// It belongs to the job.
    Seated(Box<Link>),
    /// It belongs to the job but cannot take part, and why.
    Refused(String),
    /// It does not belong to the job.
    TurnedAway,
}

struct Room<'a> {
    place: &'a Place,
    own: &'a Hello,
    address: String,
    /// By rank, from rank 1.
    seats: Vec<Option<Link>>,
    strangers: Vec<Stranger>,
    turned_away: usize,
    /// Why the job does not begin; the agents that are still to come are told.
    refusal: Option<String>,
    refused: usize,
    deadline: Instant,
}

impl<'a> Room<'a> {
    fn new(place: &'a Place, own: &'a Hello, address: String) -> Self {
        Self {
            place,
            own,
            address,
            seats: (1..place.world_size).map(|_| None).collect(),
            strangers: Vec::new(),
            turned_away: 0,
            refusal: None,
            refused: 0,
            deadline: Instant::now() + place.patience,
        }
    }

    fn wait(&mut self, listener: &TcpListener, signals: &Signals) -> Result<(), MeetError> {
        if let Work::Failed { reason } = &self.own.work {
            self.refuse(format!("rank 0 cannot take part: {reason}"));
        }
        while self.seats.iter().flatten().count() + self.refused < self.seats.len() {
            if signals.received() > 0 {
                return Err(MeetError::Interrupted);
            }
            if Instant::now() >= self.deadline {
                break;
            }
            self.sleep(listener, signals)?;
            self.accept(listener)?;
            for stranger in std::mem::take(&mut self.strangers) {
                match self.look(stranger) {
                    Look::Waiting(stranger) => self.strangers.push(stranger),
                    Look::Seated(link) => {
                        let seat = link.hello().rank as usize - 1;
                        self.seats[seat] = Some(*link);
                    }
                    Look::Refused(reason) => {
                        self.refused += 1;
                        self.refuse(reason);
                    }
                    Look::TurnedAway => self.turned_away += 1,
                }
            }
            self.still_here()?;
        }
        match self.refusal.take() {
            Some(reason) => Err(MeetError::Differs(reason)),
            None if self.seats.iter().any(Option::is_none) => Err(self.absent()),
            None => Ok(()),
        }
    }

    /// The job does not begin. For a short while those who come are told why.
    fn refuse(&mut self, reason: String) {
        if self.refusal.is_none() {
            self.refusal = Some(reason);
            self.deadline = self.deadline.min(Instant::now() + COURTESY);
        }
    }

    fn absent(&self) -> MeetError {
        let absent = (1..).zip(&self.seats).filter(|(_, seat)| seat.is_none());
        MeetError::Absent {
            absent: absent.map(|(rank, _)| rank).collect(),
            address: self.address.clone(),
            waited: self.place.patience,
            strangers: match self.turned_away {
                0 => self.unknown_host(),
                n => format!("; {n} connections that were no agents of this job were turned away"),
            },
        }
    }

    /// The name by which the others look for this host, if not even it knows it by that name.
    fn unknown_host(&self) -> String {
        let host = &self.place.master;
        match (host.as_str(), 0).to_socket_addrs() {
            Ok(_) => String::new(),
            Err(error) => format!(
                "; they look for the host \"{host}\", which is not known here either: {error}"
            ),
        }
    }

    fn sleep(&self, listener: &TcpListener, signals: &Signals) -> Result<(), MeetError> {
        let seated = self.seats.iter().flatten().map(AsFd::as_fd);
        let strangers = self
            .strangers
            .iter()
            .map(|stranger| stranger.stream.as_fd());
        let all = [listener.as_fd(), signals.as_fd()]
            .into_iter()
            .chain(seated)
            .chain(strangers);
        let mut fds: Vec<PollFd<'_>> = all
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&time_until(self.deadline))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(MeetError::System {
                what: "wait for the other agents",
                source: error.into(),
            }),
        }
    }

    fn accept(&mut self, listener: &TcpListener) -> Result<(), MeetError> {
        while self.strangers.len() < WAITING {
            match listener.accept() {
                Ok((stream, _)) => {
                    // Whoever is gone already, or does not listen, is met again when it is looked at.
                    let greeted = keep_alive(&stream).and_then(|()| (&stream).write_all(&PREAMBLE));
                    if greeted.is_ok() {
                        self.strangers.push(Stranger {
                            stream,
                            inbox: Inbox::default(),
                        });
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(source) => {
                    return Err(MeetError::System {
                        what: "accept the connection of an agent",
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    fn look(&self, mut stranger: Stranger) -> Look {
        if stranger.inbox.fill(&stranger.stream).is_err() {
            return Look::TurnedAway;
        }
        match stranger.inbox.next_frame::<Report>() {
            Ok(Some(Frame::Message(Report::Hello(hello)))) => self.introduce(stranger, *hello),
            Ok(None) if !stranger.inbox.is_closed() => Look::Waiting(stranger),
            _ => Look::TurnedAway,
        }
    }

    /// Seats an agent of this job, turns away one of another.
    fn introduce(&self, stranger: Stranger, hello: Hello) -> Look {
        let foreign = hello.token != self.own.token;
        let refusal = if foreign {
            Some(FOREIGN.to_owned())
        } else {
            self.refusal
                .clone()
                .or_else(|| difference(&hello, self.own))
                .or_else(|| self.taken(&hello))
        };
        let mut link = Link::new(stranger.stream, stranger.inbox, hello);
        let Some(reason) = refusal else {
            return Look::Seated(Box::new(link));
        };
        link.order(&Order::Refused {
            reason: reason.clone(),
        });
        if foreign {
            Look::TurnedAway
        } else {
            Look::Refused(reason)
        }
    }

    fn taken(&self, hello: &Hello) -> Option<String> {
        let rank = hello.rank as usize;
        let Some(seat) = rank.checked_sub(1).and_then(|seat| self.seats.get(seat)) else {
            return Some(format!(
                "{} claims a rank that {} has",
                name(hello),
                name(self.own)
            ));
        };
        let holder = seat.as_ref()?;
        Some(format!(
            "two processes claim rank {rank}: {} and {}",
            holder.name(),
            name(hello)
        ))
    }

    /// Nobody says anything before the welcome, so whoever does is leaving or gone.
    fn still_here(&mut self) -> Result<(), MeetError> {
        for link in self.seats.iter_mut().flatten() {
            link.receive();
            if let Some(why) = link.lost() {
                return Err(MeetError::Left(why.to_owned()));
            }
        }
        Ok(())
    }
}

/// In what an agent differs from rank 0's.
fn difference(hello: &Hello, own: &Hello) -> Option<String> {
    let who = name(hello);
    if hello.protocol_version != AGENT_PROTOCOL_VERSION
        || hello.syncmark_version != own.syncmark_version
    {
        return Some(format!(
            "{who} is syncmark {} with agent protocol {}, but rank 0 is syncmark {} with agent protocol {}",
            hello.syncmark_version,
            hello.protocol_version,
            own.syncmark_version,
            own.protocol_version
        ));
    }
    if hello.world_size != own.world_size {
        return Some(format!(
            "{who} was told of {} processes, but rank 0 of {}",
            hello.world_size, own.world_size
        ));
    }
    match (&hello.work, &own.work) {
        (Work::Failed { reason }, _) => Some(format!("{who} cannot take part: {reason}")),
        (Work::Planned { verb, .. }, Work::Planned { verb: ours, .. }) if verb != ours => Some(
            format!("{who} was started as `syncmark {verb}`, but rank 0 as `syncmark {ours}`"),
        ),
        (Work::Planned { plans, .. }, Work::Planned { plans: ours, .. }) if plans != ours => {
            let unlike = ours.iter().find(|plan| !plans.contains(plan));
            let which = unlike.or(plans.first()).map_or("", |(name, _)| name);
            Some(format!(
                "{who} plans other trials than rank 0: its scenario `{which}` or its options differ"
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
