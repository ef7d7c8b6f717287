//! How the ranks of a job find each other: through rank 0's address, then each connects to every other.
//!
//! 1. Every rank connects to rank 0 and says who it is, of which job, and where it takes data connections.
//! 2. When all have, rank 0 sends each the table of those addresses. These connections stay as control connections.
//! 3. Rank r connects to every rank below it, so there is one data connection per pair.
//!
//! Contract: ends within the time limit, with words on every rank that can be reached. Whoever does not speak the
//! protocol, or belongs to another job, is turned away and otherwise ignored; a rank of this job that does not fit
//! (another version, world size, a rank taken twice) fails the job on all ranks. The token keeps jobs apart that meet
//! by accident; it does not authenticate. Reference: `TCPStore` and Gloo's full mesh in PyTorch's c10d.
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::Settings;
use super::accept::{Acceptor, Visitor};
use super::error::{JoinError, system};
use super::wire::{
    ADDRESS_BYTES, Answer, Hello, Purpose, TEXT_BYTES, VERSION, decode_address, decode_answer,
    encode_address, encode_answer, unspecified,
};

/// Pause between two attempts to reach rank 0.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest single attempt.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The connections of a rank; its own place is empty.
pub(super) struct Connections {
    /// Rank 0: one to every other rank. Others: the one to rank 0.
    pub(super) control: Vec<Option<TcpStream>>,
    /// One to every other rank.
    pub(super) data: Vec<Option<TcpStream>>,
}

/// Meets all other ranks.
pub(super) fn meet(settings: &mut Settings) -> Result<Connections, JoinError> {
    let deadline = Instant::now() + settings.join_timeout;
    let none = || {
        (0..settings.world)
            .map(|_| None)
            .collect::<Vec<Option<TcpStream>>>()
    };
    let (mut control, mut data) = (none(), none());
    if settings.world == 1 {
        return Ok(Connections { control, data });
    }
    let (listener, table) = if settings.rank == 0 {
        let listener = listen(settings)?;
        let table = gather(settings, &listener, &mut control, deadline)?;
        (listener, table)
    } else {
        let (stream, listener, table) = join(settings, deadline)?;
        control[0] = Some(stream);
        (listener, table)
    };
    for (peer, address) in table.iter().enumerate().take(settings.rank) {
        data[peer] = Some(connect_to(settings, peer, *address, deadline)?);
    }
    accept_above(settings, &listener, &mut data, deadline)?;
    Ok(Connections { control, data })
}

fn listen(settings: &mut Settings) -> Result<TcpListener, JoinError> {
    match settings.listener.take() {
        Some(listener) => Ok(listener),
        None => TcpListener::bind(settings.rendezvous).map_err(|source| JoinError::Listen {
            address: settings.rendezvous,
            source,
        }),
    }
}

fn hello(settings: &Settings, purpose: Purpose, listens: SocketAddr) -> Hello {
    Hello {
        version: VERSION,
        purpose,
        token: settings.token,
        rank: settings.rank as u32,
        world: settings.world as u32,
        listens,
    }
}

/// Rank 0: takes every other rank, then sends all the table.
fn gather(
    settings: &Settings,
    listener: &TcpListener,
    control: &mut [Option<TcpStream>],
    deadline: Instant,
) -> Result<Vec<SocketAddr>, JoinError> {
    let mut acceptor = Acceptor::new(listener).map_err(system("take connections"))?;
    let mut notes = Vec::new();
    let mut table = vec![settings.rendezvous; settings.world];
    while control.iter().flatten().count() < settings.world - 1 {
        let visitor = acceptor
            .next(deadline)
            .map_err(system("take connections"))?;
        let Some(visitor) = visitor else {
            let error = missing(settings, control, &acceptor.strangers, &notes);
            return Err(refuse_all(control, error));
        };
        match admit(settings, &visitor, control) {
            Verdict::Welcome => {
                let rank = visitor.hello.rank as usize;
                table[rank] = visitor.hello.listens;
                control[rank] = Some(visitor.stream);
            }
            Verdict::Elsewhere(reason) => {
                notes.push(format!("{} was turned away: {reason}", visitor.from));
                refuse(visitor.stream, &reason);
            }
            Verdict::Conflict(reason) => {
                refuse(visitor.stream, &reason);
                return Err(refuse_all(control, JoinError::Conflict(reason)));
            }
        }
    }
    let mut message = encode_answer(Answer::Table, settings.world * ADDRESS_BYTES).to_vec();
    for address in &table {
        message.extend_from_slice(&encode_address(*address));
    }
    for (peer, stream) in control.iter_mut().enumerate() {
        if let Some(stream) = stream {
            blocking(stream, deadline)
                .and_then(|()| stream.write_all(&message))
                .map_err(|source| peer_error(0, peer, "send the table of addresses to", source))?;
        }
    }
    Ok(table)
}

enum Verdict {
    Welcome,
    /// Belongs to another job.
    Elsewhere(String),
    /// Belongs to this one, but does not fit.
    Conflict(String),
}

fn admit(settings: &Settings, visitor: &Visitor, control: &[Option<TcpStream>]) -> Verdict {
    let Hello {
        version,
        purpose,
        token,
        rank,
        world,
        ..
    } = visitor.hello;
    if token != settings.token {
        return Verdict::Elsewhere(format!(
            "its token is that of another job: two jobs use {}, give each a port of its own",
            settings.rendezvous
        ));
    }
    if version != VERSION {
        return Verdict::Conflict(format!(
            "rank {rank} at {} speaks version {version} of the TCP transport, rank 0 version {VERSION}: start the same syncmark everywhere",
            visitor.from
        ));
    }
    if world as usize != settings.world {
        return Verdict::Conflict(format!(
            "rank {rank} at {} was told of {world} ranks, rank 0 of {}: start all with the same world size",
            visitor.from, settings.world
        ));
    }
    if rank >= world {
        return Verdict::Conflict(format!(
            "{} claims to be rank {rank} of {world}: ranks are 0 to {}",
            visitor.from,
            world - 1
        ));
    }
    let known = control[rank as usize]
        .as_ref()
        .and_then(|stream| stream.peer_addr().ok());
    match (rank, known) {
        (0, _) => Verdict::Conflict(format!(
            "{} claims to be rank 0, as the process at {} does: give each rank its own number",
            visitor.from, settings.rendezvous
        )),
        (_, Some(other)) => Verdict::Conflict(format!(
            "{} and {other} both claim to be rank {rank}: give each rank its own number",
            visitor.from
        )),
        (_, None) if purpose == Purpose::Join => Verdict::Welcome,
        _ => Verdict::Conflict(format!("rank {rank} sent payload before it had joined")),
    }
}

fn missing(
    settings: &Settings,
    control: &[Option<TcpStream>],
    strangers: &[SocketAddr],
    notes: &[String],
) -> JoinError {
    let missing: Vec<usize> = (1..settings.world)
        .filter(|rank| control[*rank].is_none())
        .collect();
    let mut notes: String = notes.iter().map(|note| format!("; {note}")).collect();
    if let Some(last) = strangers.last() {
        let (count, last) = (strangers.len(), last);
        notes += &format!(
            "; {count} other connection(s) did not speak the protocol, the last from {last}"
        );
    }
    JoinError::Missing {
        address: settings.rendezvous,
        missing: crate::comm::error::ranks(&missing),
        seconds: settings.join_timeout.as_secs(),
        notes,
    }
}

/// Tells one that it does not belong here. Whether it still listens does not matter.
fn refuse(mut stream: TcpStream, reason: &str) {
    let text = &reason.as_bytes()[..reason.floor_char_boundary(TEXT_BYTES)];
    let mut message = encode_answer(Answer::Refused, text.len()).to_vec();
    message.extend_from_slice(text);
    let _ = blocking(&stream, Instant::now() + Duration::from_secs(1))
        .and_then(|()| stream.write_all(&message));
}

fn refuse_all(control: &mut [Option<TcpStream>], error: JoinError) -> JoinError {
    let reason = error.to_string();
    for stream in control.iter_mut().filter_map(Option::take) {
        refuse(stream, &reason);
    }
    error
}

/// Any other rank: reaches rank 0, says where it listens, and waits for the table.
fn join(
    settings: &Settings,
    deadline: Instant,
) -> Result<(TcpStream, TcpListener, Vec<SocketAddr>), JoinError> {
    let (rank, address) = (settings.rank, settings.rendezvous);
    let to_zero = |what| move |source| peer_error(rank, 0, what, source);
    let mut stream = reach(address, deadline).map_err(|source| JoinError::Unreachable {
        rank,
        address,
        seconds: settings.join_timeout.as_secs(),
        source,
    })?;
    let own = stream.local_addr().map_err(to_zero("connect to"))?;
    // The interface that leads to rank 0 is where the others find this rank too, unless told otherwise.
    let interface = SocketAddr::new(settings.interface.unwrap_or(own.ip()), 0);
    let listener = TcpListener::bind(interface).map_err(|source| JoinError::Listen {
        address: interface,
        source,
    })?;
    let listens = listener.local_addr().map_err(system("listen"))?;
    let hello = hello(settings, Purpose::Join, listens).encode();
    blocking(&stream, deadline)
        .and_then(|()| stream.write_all(&hello))
        .map_err(to_zero("send its address to"))?;
    let mut start = [0; 8];
    let said = stream.read_exact(&mut start);
    said.map_err(|source| match source.kind() {
        // Rank 0 tells everyone when time is up; only a rank 0 that hangs gets here.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => JoinError::Aborted(format!(
            "rank {rank} waited {} s for the answer of rank 0 at {address}",
            settings.join_timeout.as_secs()
        )),
        _ => JoinError::Aborted(format!(
            "rank 0 at {address} closed the connection before all ranks had joined: it ended, or {address} is no syncmark rank 0 ({source})"
        )),
    })?;
    let unknown = || {
        JoinError::Aborted(format!(
            "{address} is no syncmark rank 0: it answers in another protocol"
        ))
    };
    let (answer, len) = decode_answer(&start).ok_or_else(unknown)?;
    let expected = match answer {
        Answer::Table => len == settings.world * ADDRESS_BYTES,
        Answer::Refused => len <= TEXT_BYTES,
    };
    if !expected {
        return Err(unknown());
    }
    let mut body = vec![0; len];
    stream
        .read_exact(&mut body)
        .map_err(to_zero("read the answer of"))?;
    if answer == Answer::Refused {
        return Err(JoinError::Refused {
            rank,
            address,
            reason: String::from_utf8_lossy(&body).into_owned(),
        });
    }
    let entry = |bytes: &[u8]| decode_address(bytes.try_into().expect("entries are of one size"));
    let mut table: Vec<SocketAddr> = body.chunks_exact(ADDRESS_BYTES).map(entry).collect();
    // Where this rank reached rank 0 is where rank 0 is, whatever it calls itself.
    table[0] = address;
    Ok((stream, listener, table))
}

/// Connects to `address`, again and again until somebody listens there.
fn reach(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::from(ErrorKind::TimedOut);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(last);
        }
        match TcpStream::connect_timeout(&address, left.min(ATTEMPT)) {
            // Where nobody listens on a port of the ephemeral range, the kernel may connect a socket to itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {}
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
        std::thread::sleep(PAUSE.min(left));
    }
}

fn connect_to(
    settings: &Settings,
    peer: usize,
    address: SocketAddr,
    deadline: Instant,
) -> Result<TcpStream, JoinError> {
    let failed = |source| peer_error(settings.rank, peer, "connect to", source);
    let mut stream = reach(address, deadline).map_err(failed)?;
    let nowhere = SocketAddr::new(unspecified(address), 0);
    blocking(&stream, deadline)
        .and_then(|()| stream.write_all(&hello(settings, Purpose::Data, nowhere).encode()))
        .map_err(failed)?;
    Ok(stream)
}

/// Takes the data connection of every rank above this one.
fn accept_above(
    settings: &Settings,
    listener: &TcpListener,
    data: &mut [Option<TcpStream>],
    deadline: Instant,
) -> Result<(), JoinError> {
    let (rank, world) = (settings.rank, settings.world);
    let mut acceptor = Acceptor::new(listener).map_err(system("take connections"))?;
    while let Some(peer) = (rank + 1..world).find(|peer| data[*peer].is_none()) {
        let visitor = acceptor
            .next(deadline)
            .map_err(system("take connections"))?
            .ok_or_else(|| {
                peer_error(
                    rank,
                    peer,
                    "get a connection from",
                    ErrorKind::TimedOut.into(),
                )
            })?;
        let Hello {
            purpose,
            token,
            rank: from,
            ..
        } = visitor.hello;
        let (from, ours) = (from as usize, token == settings.token);
        if ours && purpose == Purpose::Data && from > rank && from < world && data[from].is_none() {
            data[from] = Some(visitor.stream);
        } else {
            let reason = format!(
                "the job at {} is complete: all its {world} ranks have joined",
                settings.rendezvous
            );
            refuse(visitor.stream, &reason);
        }
    }
    Ok(())
}

fn peer_error(rank: usize, peer: usize, what: &'static str, source: io::Error) -> JoinError {
    JoinError::Peer {
        rank,
        peer,
        what,
        source,
    }
}

/// Makes reads and writes block, but not past the deadline.
fn blocking(stream: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = deadline
        .saturating_duration_since(Instant::now())
        // A little more than rank 0 waits, so that its words arrive rather than our own guess.
        + Duration::from_secs(1);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))
}
