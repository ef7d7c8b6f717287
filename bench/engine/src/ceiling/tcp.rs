//! What a loopback connection between two cores carries: the floor under every collective over TCP on one host.
//!
//! Contract: plain sockets without anything of a communicator: no headers, no checks, no reduction. A message lies in memory of its own;
//! what comes in goes to memory that stays in the caches, over and over, because a collective need not keep it. A window ends when
//! the sender has the receiver's word that all has arrived. After the last window a message is received whole and compared byte by
//! byte. Reference: tcp(7), poll(2).
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Ceiling, CeilingError, MESSAGE_BYTES, Measured, Result, SMALL_MESSAGE_BYTES, WINDOWS};
use crate::backend::cpu::pin_to_cores;
use crate::probe::now_ns;

/// Bytes of the memory that receives: within a core's second-level cache.
const ROOM_BYTES: usize = 256 << 10;
const _: () = assert!(MESSAGE_BYTES.is_multiple_of(ROOM_BYTES));
/// Attempts to go on before waiting in poll(2).
const SPINS: usize = 100;
/// Messages to and fro in a window.
const ROUND_TRIPS: usize = 100;
/// An end that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the ends say to each other between messages.
const WORD: [u8; 1] = [0x5a];

fn failed(error: std::io::Error) -> CeilingError {
    CeilingError::system("use the loopback interface")(error)
}

/// Two ends of a connection over the loopback interface.
///
/// # Errors
/// Where this host cannot connect to itself.
pub fn socket_pair() -> std::io::Result<[TcpStream; 2]> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    for end in [&near, &far] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(PATIENCE))?;
        end.set_write_timeout(Some(PATIENCE))?;
    }
    Ok([near, far])
}

/// A byte that differs by place and end.
fn byte(index: usize, end: usize) -> u8 {
    (index ^ (index >> 8)) as u8 ^ end as u8
}

/// A message of such bytes.
fn message(end: usize) -> Vec<u8> {
    (0..MESSAGE_BYTES).map(|i| byte(i, end)).collect()
}

/// Whether the other end's message is there.
fn arrived(ceiling: Ceiling, found: &[u8], end: usize) -> Result<()> {
    let differs = |(i, found): &(usize, &u8)| **found != byte(*i, end);
    let wrong = found.iter().enumerate().filter(differs);
    match wrong.count() {
        0 => Ok(()),
        wrong => Err(CeilingError::Wrong {
            ceiling,
            found: (found.len() - wrong) as f64,
            expected: found.len() as f64,
        }),
    }
}

/// Runs the two ends, each on its cores; gives what the near one measured.
fn between(
    cores: [&[usize]; 2],
    near: impl FnOnce(TcpStream) -> Result<Vec<f64>> + Send,
    far: impl FnOnce(TcpStream) -> Result<()> + Send,
) -> Result<Vec<f64>> {
    let [near_end, far_end] = socket_pair().map_err(failed)?;
    std::thread::scope(|scope| {
        let named = std::thread::Builder::new().name("ceiling".to_owned());
        let far = named.spawn_scoped(scope, move || {
            pin_to_cores(cores[1])?;
            far(far_end)
        });
        let far = far.map_err(CeilingError::system("start a thread"))?;
        let named = std::thread::Builder::new().name("ceiling".to_owned());
        let near = named.spawn_scoped(scope, move || {
            pin_to_cores(cores[0])?;
            near(near_end)
        });
        let near = near.map_err(CeilingError::system("start a thread"))?;
        let near = near.join().expect("an end does not panic");
        // An end that is left alone fails too: what counts is why the other one left.
        match far.join().expect("an end does not panic") {
            Err(error @ CeilingError::Device(_)) => Err(error),
            Err(error) => near.and(Err(error)),
            Ok(()) => near,
        }
    })
}

/// Bytes per second from the near end to the far one.
fn one_way(cores: [&[usize]; 2]) -> Result<Vec<f64>> {
    let near = |mut end: TcpStream| {
        let message = message(0);
        let window = |_| {
            let begin = now_ns();
            end.write_all(&message).map_err(failed)?;
            end.read_exact(&mut [0]).map_err(failed)?;
            Ok(per_second(MESSAGE_BYTES, now_ns() - begin))
        };
        let figures = (0..=WINDOWS).map(window).collect();
        end.write_all(&message).map_err(failed)?;
        figures
    };
    let far = |mut end: TcpStream| {
        let (mut message, mut room) = (vec![0; MESSAGE_BYTES], vec![0; ROOM_BYTES]);
        for _ in 0..=WINDOWS {
            for _ in 0..MESSAGE_BYTES / ROOM_BYTES {
                end.read_exact(&mut room).map_err(failed)?;
            }
            end.write_all(&WORD).map_err(failed)?;
        }
        end.read_exact(&mut message).map_err(failed)?;
        arrived(Ceiling::TcpOneWay, &message, 0)
    };
    between(cores, near, far)
}

/// Bytes per second in each direction, both at once.
fn both_ways(cores: [&[usize]; 2]) -> Result<Vec<f64>> {
    let near = |mut end: TcpStream| {
        let (own, mut other) = (message(0), vec![0; MESSAGE_BYTES]);
        let mut room = vec![0; ROOM_BYTES];
        let mut figures = Vec::with_capacity(WINDOWS + 1);
        for _ in 0..=WINDOWS {
            let begin = now_ns();
            end.write_all(&WORD).map_err(failed)?;
            exchange(&mut end, &own, &mut room).map_err(failed)?;
            end.read_exact(&mut [0]).map_err(failed)?;
            figures.push(per_second(MESSAGE_BYTES, now_ns() - begin));
        }
        exchange(&mut end, &own, &mut other).map_err(failed)?;
        arrived(Ceiling::TcpBothWays, &other, 1)?;
        Ok(figures)
    };
    let far = |mut end: TcpStream| {
        let (own, mut other) = (message(1), vec![0; MESSAGE_BYTES]);
        let mut room = vec![0; ROOM_BYTES];
        for _ in 0..=WINDOWS {
            end.read_exact(&mut [0]).map_err(failed)?;
            exchange(&mut end, &own, &mut room).map_err(failed)?;
            end.write_all(&WORD).map_err(failed)?;
        }
        exchange(&mut end, &own, &mut other).map_err(failed)?;
        arrived(Ceiling::TcpBothWays, &other, 0)
    };
    between(cores, near, far)
}

/// Sends one message and receives another of its length, whichever of the two can go on. `room` takes what comes, from its
/// start again whenever it is full.
///
/// # Errors
/// A broken connection, or an end that hears nothing for ten seconds.
pub fn exchange(end: &mut TcpStream, own: &[u8], room: &mut [u8]) -> std::io::Result<()> {
    end.set_nonblocking(true)?;
    let (mut sent, mut received, mut idle) = (0, 0, 0);
    while sent < own.len() || received < own.len() {
        idle += 1;
        if sent < own.len()
            && let Some(bytes) = progress(end.write(&own[sent..]))?
        {
            (sent, idle) = (sent + bytes, 0);
        }
        if received < own.len() {
            let at = received % room.len();
            let until = room.len().min(at + own.len() - received);
            if let Some(bytes) = progress(end.read(&mut room[at..until]))? {
                (received, idle) = (received + bytes, 0);
            }
        }
        if idle > SPINS {
            wait(end, sent < own.len(), received < own.len())?;
        }
    }
    end.set_nonblocking(false)
}

/// Bytes that moved; none where the socket has to be waited for.
fn progress(moved: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match moved {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    }
}

fn wait(end: &TcpStream, sends: bool, receives: bool) -> std::io::Result<()> {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::OUT, sends);
    flags.set(PollFlags::IN, receives);
    let patience = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(end, flags)], Some(&patience)) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Nanoseconds of a small message to the far end and one back.
fn round_trip(cores: [&[usize]; 2]) -> Result<Vec<f64>> {
    let near = |mut end: TcpStream| {
        let mut message = [0x3c; SMALL_MESSAGE_BYTES];
        let window = |_| {
            let begin = now_ns();
            for _ in 0..ROUND_TRIPS {
                end.write_all(&message).map_err(failed)?;
                end.read_exact(&mut message).map_err(failed)?;
            }
            Ok((now_ns() - begin) as f64 / ROUND_TRIPS as f64)
        };
        let figures: Result<Vec<f64>> = (0..=WINDOWS).map(window).collect();
        let same = message.iter().filter(|byte| **byte == 0x3c).count();
        match same {
            SMALL_MESSAGE_BYTES => figures,
            same => Err(CeilingError::Wrong {
                ceiling: Ceiling::TcpRoundTrip,
                found: same as f64,
                expected: SMALL_MESSAGE_BYTES as f64,
            }),
        }
    };
    let far = |mut end: TcpStream| {
        let mut message = [0; SMALL_MESSAGE_BYTES];
        for _ in 0..(WINDOWS + 1) * ROUND_TRIPS {
            end.read_exact(&mut message).map_err(failed)?;
            end.write_all(&message).map_err(failed)?;
        }
        Ok(())
    };
    between(cores, near, far)
}

pub(super) fn per_second(bytes: usize, ns: u64) -> f64 {
    bytes as f64 / (ns.max(1) as f64 / 1e9)
}

/// Bandwidth of 64 MiB one way and both ways at once (bytes of one direction), and the round trip of 4 KiB, between two threads
/// on the given cores.
///
/// # Errors
/// When a thread cannot be pinned or started, and where this host cannot connect to itself.
pub fn tcp(cores: [&[usize]; 2]) -> Result<[Measured; 3]> {
    Ok([
        Measured::between(Ceiling::TcpOneWay, one_way(cores)?),
        Measured::between(Ceiling::TcpBothWays, both_ways(cores)?),
        Measured::between(Ceiling::TcpRoundTrip, round_trip(cores)?),
    ])
}
