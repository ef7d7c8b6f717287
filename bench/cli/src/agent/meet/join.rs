//! The meeting as every other agent sees it.
use std::io::Write;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::MeetError;
use crate::agent::launcher::Place;
use crate::agent::link::keep_alive;
use crate::agent::message::{Hello, Order, Report};
use crate::agent::wire::{Frame, Inbox, PREAMBLE, send};
use crate::run::signals::Signals;
use crate::run::watch::time_until;

/// Time between two attempts to reach rank 0.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest attempt.
const ATTEMPT: Duration = Duration::from_secs(3);
/// How much longer than its own patience an agent waits for the welcome, so that rank 0 can say who is missing.
const COURTESY: Duration = Duration::from_secs(5);

/// Goes to rank 0's agent and waits until it has welcomed all.
///
/// # Errors
/// [`MeetError`].
pub fn join(
    place: &Place,
    hello: &Hello,
    signals: &Signals,
) -> Result<(TcpStream, Inbox), MeetError> {
    let system = |what| move |source| MeetError::System { what, source };
    let stream = reach(place, signals)?;
    keep_alive(&stream).map_err(system("set the connection to rank 0 up"))?;
    let sent = (&stream)
        .write_all(&PREAMBLE)
        .and_then(|()| send(&stream, &Report::Hello(Box::new(hello.clone()))));
    // Whoever closes the connection that early is no rank 0.
    sent.map_err(|error| unreachable(place, &error.to_string()))?;
    let mut inbox = Inbox::default();
    let deadline = Instant::now() + place.patience + COURTESY;
    match answer(place, &stream, &mut inbox, signals, deadline)? {
        Order::Welcome => Ok((stream, inbox)),
        Order::Refused { reason } => Err(MeetError::Refused {
            rank: place.rank,
            reason,
        }),
        _ => Err(unreachable(place, "it gave an order before the welcome")),
    }
}

/// Connects as soon as rank 0 listens.
fn reach(place: &Place, signals: &Signals) -> Result<TcpStream, MeetError> {
    let deadline = Instant::now() + place.patience;
    loop {
        let last = match addresses(place) {
            Ok(addresses) => match connect(&addresses) {
                Ok(stream) => return Ok(stream),
                Err(error) => error.to_string(),
            },
            // A name may become known while a cluster's hosts start; what never does is told as such.
            Err(source) if Instant::now() >= deadline => {
                return Err(MeetError::Resolve {
                    rank: place.rank,
                    host: place.master.clone(),
                    source,
                });
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            let tried = place.patience.as_secs();
            return Err(unreachable(place, &format!("{last} (tried for {tried} s)")));
        }
        pause(signals)?;
    }
}

fn addresses(place: &Place) -> std::io::Result<Vec<SocketAddr>> {
    Ok((place.master.as_str(), place.port)
        .to_socket_addrs()?
        .collect())
}

/// The first address that answers.
fn connect(addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, ATTEMPT) {
            // A connection to a free port of one's own host can meet itself.
            Ok(stream) if stream.local_addr().is_ok_and(|own| own == *address) => {}
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn pause(signals: &Signals) -> Result<(), MeetError> {
    wait(&[signals.as_fd()], Instant::now() + PAUSE)?;
    if signals.received() > 0 {
        Err(MeetError::Interrupted)
    } else {
        Ok(())
    }
}

/// Rank 0's first order.
fn answer(
    place: &Place,
    stream: &TcpStream,
    inbox: &mut Inbox,
    signals: &Signals,
    deadline: Instant,
) -> Result<Order, MeetError> {
    loop {
        if signals.received() > 0 {
            return Err(MeetError::Interrupted);
        }
        inbox
            .fill(stream)
            .map_err(|error| unreachable(place, &error.to_string()))?;
        match inbox.next_frame::<Order>() {
            Ok(Some(Frame::Message(order))) => return Ok(order),
            Ok(Some(Frame::Data(_))) => return Err(unreachable(place, "it sent a file")),
            Ok(None) if inbox.is_closed() => {
                return Err(unreachable(
                    place,
                    "whoever listens there closed the connection without an answer",
                ));
            }
            Ok(None) if Instant::now() >= deadline => {
                return Err(unreachable(place, "whoever listens there gave no answer"));
            }
            Ok(None) => wait(&[stream.as_fd(), signals.as_fd()], deadline)?,
            Err(error) => return Err(unreachable(place, &error.to_string())),
        }
    }
}

fn wait(fds: &[std::os::fd::BorrowedFd<'_>], deadline: Instant) -> Result<(), MeetError> {
    let mut fds: Vec<PollFd<'_>> = fds
        .iter()
        .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    match poll(&mut fds, Some(&time_until(deadline))) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(MeetError::System {
            what: "wait for rank 0",
            source: error.into(),
        }),
    }
}

fn unreachable(place: &Place, why: &str) -> MeetError {
    MeetError::Unreachable {
        rank: place.rank,
        address: place.address(),
        why: why.to_owned(),
    }
}
