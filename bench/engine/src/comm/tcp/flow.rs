//! Moving bytes: one message out and one in at the same time, on non-blocking sockets, so that no ring can deadlock
//! however large the payload and however small the kernel's buffers.
//!
//! Bytes are counted here, at the system calls. A message opens with a header that says what its sender calls; ranks that
//! call different things end with an error instead of a wrong result. Waiting polls, with the descriptors of both
//! directions, the one that an abort makes readable. References: send(2), recv(2), poll(2).
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::accept::timespec;
use super::control::Control;
use super::ends::Ends;
use super::info::carried;
use super::wire::{HEADER_BYTES, Header};
use crate::comm::error::{CommError, Waiting, invalid};
use crate::comm::fault::Fault;
use crate::comm::ledger::Tally;
use crate::comm::signature::Signature;
use crate::comm::{Collective, CollectiveCall};
use crate::probe::now_ns;

/// Attempts without success before parking in poll(2): an attempt takes about half a microsecond.
const SPINS: u32 = 100;
/// Bytes of what has just come and is not combined yet: within a core's second-level cache.
pub(super) const STAGING_BYTES: usize = 256 << 10;

/// A data connection to one other rank.
pub(super) struct Line {
    stream: TcpStream,
    /// Messages sent and received.
    sent: u64,
    received: u64,
    /// The kernel's count of what it took from this program until the last look.
    taken_bytes: Option<u64>,
    /// Whether this call has sent on it.
    used: bool,
}

/// What a rank needs for its calls: its data connections and the memory to work with.
pub(super) struct Lines {
    lines: Vec<Option<Line>>,
    /// For [`Ends`] that combine.
    pub(super) staging: Vec<u64>,
    /// For [`Ends`] that pass on; grows when a call needs more than any before.
    pub(super) buffer: Vec<u64>,
}

impl Lines {
    pub(super) fn new(streams: Vec<Option<TcpStream>>) -> Self {
        let line = |stream: TcpStream| Line {
            taken_bytes: carried(&stream).map(|c| c.sent_bytes + c.unsent_bytes),
            stream,
            sent: 0,
            received: 0,
            used: false,
        };
        Self {
            lines: streams.into_iter().map(|stream| stream.map(line)).collect(),
            staging: vec![0; STAGING_BYTES / size_of::<u64>()],
            buffer: Vec::new(),
        }
    }

    fn line(&mut self, peer: usize) -> &mut Line {
        self.lines[peer]
            .as_mut()
            .expect("there is a connection to every other rank")
    }

    /// What the kernel took since the last look on the connections that were used.
    fn measure(&mut self) -> Option<u64> {
        let mut bytes = Some(0);
        for line in self.lines.iter_mut().flatten().filter(|line| line.used) {
            line.used = false;
            let now = carried(&line.stream).map(|c| c.sent_bytes + c.unsent_bytes);
            let grown = now
                .zip(line.taken_bytes)
                .and_then(|(now, before)| now.checked_sub(before));
            line.taken_bytes = now;
            bytes = bytes.zip(grown).map(|(sum, grown)| sum + grown);
        }
        bytes
    }

    /// Waits until the kernel has sent all it took; false when it does not within `limit`. What was measured is then
    /// what went out, to the byte.
    pub(super) fn drain(&self, limit: Duration) -> bool {
        let until = now_ns() + limit.as_nanos() as u64;
        self.lines.iter().flatten().all(|line| {
            loop {
                match carried(&line.stream) {
                    Some(carried) if carried.unsent_bytes > 0 => {}
                    _ => return true,
                }
                if now_ns() > until {
                    return false;
                }
                std::thread::sleep(Duration::from_micros(200));
            }
        })
    }
}

/// One call under way.
pub(super) struct Exchange<'a> {
    pub(super) lines: &'a mut Lines,
    pub(super) control: &'a Control,
    pub(super) call: CollectiveCall,
    pub(super) tally: Tally,
    waiting: Waiting,
    fault: &'a Fault,
    signature: Signature,
}

/// One direction of a flow.
struct Way {
    peer: usize,
    /// Header and payload.
    header: [u8; HEADER_BYTES],
    header_done: usize,
    total: usize,
    done: usize,
}

impl Way {
    fn new(peer: usize, total: usize, header: [u8; HEADER_BYTES]) -> Self {
        Self {
            peer,
            header,
            header_done: 0,
            total,
            done: 0,
        }
    }
    fn opened(&self) -> bool {
        self.header_done == HEADER_BYTES
    }
    fn over(&self) -> bool {
        self.opened() && self.done == self.total
    }
}

/// What goes out and what comes in: peer and payload bytes.
#[derive(Clone, Copy, Default)]
pub(super) struct Ways {
    pub(super) to: Option<(usize, usize)>,
    pub(super) from: Option<(usize, usize)>,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        lines: &'a mut Lines,
        control: &'a Control,
        call: CollectiveCall,
        waiting: Waiting,
        fault: &'a Fault,
    ) -> Self {
        // Only the root of a scatter or gather knows the total; headers carry it, and everyone checks its own part.
        let elements = match call.collective {
            Collective::Scatter | Collective::Gather => 0,
            _ => call.from.len(),
        };
        // A receive expects what its peer's send announces: the same word, with the receiver as root.
        let (collective, root) = match call.collective {
            Collective::Receive => (Collective::Send, control.rank),
            other => (other, call.root),
        };
        Self {
            signature: Signature::new(collective, root, call.from.dtype(), call.reduce, elements),
            tally: Tally {
                elements: call.from.len(),
                ..Tally::default()
            },
            lines,
            control,
            call,
            waiting,
            fault,
        }
    }

    /// Enters what the kernel counted.
    pub(super) fn finish(mut self) -> Tally {
        self.tally.measured_sent_bytes = self.lines.measure();
        self.tally
    }

    /// Moves a message each way, or one only, and returns what the header that came says about elements.
    pub(super) fn flow(
        &mut self,
        ways: Ways,
        elements: usize,
        ends: &mut impl Ends,
    ) -> Result<u64, CommError> {
        let mut out = ways.to.map(|(peer, total)| {
            let line = self.lines.line(peer);
            line.used = true;
            line.sent += 1;
            let header = Header {
                signature: self.signature.0,
                elements: elements as u64,
                number: line.sent,
            };
            Way::new(peer, total, header.encode())
        });
        let mut into = ways
            .from
            .map(|(peer, total)| Way::new(peer, total, [0; HEADER_BYTES]));
        let (mut idle, mut since) = (0, now_ns());
        loop {
            let mut moved = false;
            // Before anything moves: whether what has come so far leaves a rank unheard of.
            let waits = into
                .as_ref()
                .is_some_and(|way| !way.over() && (!way.opened() || ends.waits()));
            if let Some(way) = out.as_mut().filter(|way| !way.over()) {
                moved |= self.push(way, ends)?;
            }
            if let Some(way) = into.as_mut().filter(|way| !way.over()) {
                moved |= self.pull(way, ends)?;
            }
            if moved && idle > 0 && waits {
                self.tally.wait_ns += now_ns() - since;
            }
            let over = |way: &Option<Way>| way.as_ref().is_none_or(Way::over);
            if over(&out) && over(&into) {
                return Ok(into.map_or(0, |way| Header::decode(&way.header).elements));
            }
            if moved {
                self.fault.point();
                idle = 0;
                continue;
            }
            if idle == 0 {
                since = now_ns();
            }
            idle += 1;
            if !(self.waiting.spin && idle < SPINS) {
                self.park(out.as_ref(), into.as_ref(), ends, since)?;
            }
        }
    }

    /// Sends what is ready; false when there is nothing, or no room for it.
    fn push(&mut self, way: &mut Way, ends: &mut impl Ends) -> Result<bool, CommError> {
        let line = self.lines.lines[way.peer]
            .as_ref()
            .expect("checked by flow");
        let quiet = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let mut moved = false;
        if !way.opened() {
            // The header waits for the first bytes of payload, so that it costs no packet of its own.
            let more = if ends.ready().is_empty() {
                SendFlags::empty()
            } else {
                SendFlags::MORE
            };
            match attempt(send(
                &line.stream,
                &way.header[way.header_done..],
                quiet | more,
            )) {
                Attempt::Moved(bytes) => way.header_done += bytes,
                Attempt::Blocked => return Ok(false),
                Attempt::Gone => return Err(self.gone(way.peer)),
            }
            moved = true;
        }
        if !way.opened() || way.done == way.total {
            return Ok(moved);
        }
        let ready = ends.ready();
        if ready.is_empty() {
            return Ok(moved);
        }
        match attempt(send(&line.stream, ready, quiet)) {
            Attempt::Moved(bytes) => {
                ends.sent(bytes);
                way.done += bytes;
                self.tally.sent_bytes += bytes as u64;
                Ok(true)
            }
            Attempt::Blocked => Ok(moved),
            Attempt::Gone => Err(self.gone(way.peer)),
        }
    }

    /// Receives what has come; false when there is nothing, or no room for it.
    fn pull(&mut self, way: &mut Way, ends: &mut impl Ends) -> Result<bool, CommError> {
        let line = self.lines.lines[way.peer]
            .as_ref()
            .expect("checked by flow");
        if !way.opened() {
            let part = &mut way.header[way.header_done..];
            match attempt(recv(&line.stream, part, RecvFlags::DONTWAIT).map(|(bytes, _)| bytes)) {
                Attempt::Moved(0) | Attempt::Gone => return Err(self.gone(way.peer)),
                Attempt::Moved(bytes) => way.header_done += bytes,
                Attempt::Blocked => return Ok(false),
            }
            if way.opened() {
                self.compare(way)?;
            }
            return Ok(true);
        }
        let room = ends.room();
        let most = room.len().min(way.total - way.done);
        if most == 0 {
            return Ok(false);
        }
        let came =
            recv(&line.stream, &mut room[..most], RecvFlags::DONTWAIT).map(|(bytes, _)| bytes);
        match attempt(came) {
            Attempt::Moved(0) | Attempt::Gone => Err(self.gone(way.peer)),
            Attempt::Moved(bytes) => {
                ends.arrived(bytes);
                way.done += bytes;
                self.tally.received_bytes += bytes as u64;
                Ok(true)
            }
            Attempt::Blocked => Ok(false),
        }
    }

    /// Whether the peer makes the same call.
    fn compare(&mut self, way: &Way) -> Result<(), CommError> {
        let header = Header::decode(&way.header);
        let line = self.lines.line(way.peer);
        line.received += 1;
        let expected = line.received;
        let theirs = Signature(header.signature);
        if header.number == expected && theirs == self.signature {
            return Ok(());
        }
        let both_point_to_point = self.call.collective == Collective::Receive && theirs.is_send();
        let size = self.call.from.dtype().size();
        let (ours, theirs) = if both_point_to_point {
            (
                format!("receive of {} bytes", self.call.to.len() * size),
                format!(
                    "send of {} bytes",
                    theirs.elements() * theirs.element_bytes()
                ),
            )
        } else if theirs == self.signature {
            (
                format!("its message {expected}"),
                format!("its message {}", header.number),
            )
        } else {
            (self.signature.describe(), theirs.describe())
        };
        Err(self.control.fail(CommError::Mismatch {
            rank: self.control.rank,
            peer: way.peer,
            ours,
            theirs,
        }))
    }

    /// Blocks until something may have changed.
    fn park(
        &self,
        out: Option<&Way>,
        into: Option<&Way>,
        ends: &mut impl Ends,
        since_ns: u64,
    ) -> Result<(), CommError> {
        let wants_out =
            out.filter(|way| !way.over() && (!way.opened() || !ends.ready().is_empty()));
        let wants_in = into.filter(|way| !way.over() && (!way.opened() || !ends.room().is_empty()));
        let stream = |way: &Way| {
            self.lines.lines[way.peer]
                .as_ref()
                .expect("checked by flow")
                .stream
                .as_fd()
        };
        let alarm = self.control.alarm();
        let of = |way: Option<&Way>, flags| match way {
            Some(way) => PollFd::from_borrowed_fd(stream(way), flags),
            // Not asked for anything; it would be reported even so if it were broken, which an event descriptor never is.
            None => PollFd::from_borrowed_fd(alarm, PollFlags::empty()),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(alarm, PollFlags::IN),
            of(wants_out, PollFlags::OUT),
            of(wants_in, PollFlags::IN),
        ];
        let waited = Duration::from_nanos(now_ns() - since_ns);
        let left = self.waiting.timeout.saturating_sub(waited);
        if left.is_zero() {
            return Err(self.timeout(wants_out, wants_in));
        }
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => self.control.refuse_aborted(),
            Err(error) => Err(self
                .control
                .fail(invalid(self.call.collective, &format!("poll: {error}")))),
        }
    }

    fn timeout(&self, wants_out: Option<&Way>, wants_in: Option<&Way>) -> CommError {
        // Whoever is late to send is late to receive; only a flow that has nothing to receive waits for its receiver.
        let peer = wants_in
            .or(wants_out)
            .map_or(self.control.rank, |way| way.peer);
        self.control.stuck(peer, self.describe())
    }

    fn gone(&self, peer: usize) -> CommError {
        self.control.gone(peer, self.describe())
    }

    fn describe(&self) -> String {
        format!(
            "{} of {} elements ({})",
            self.call.collective.name(),
            self.tally.elements,
            self.call.phase.name()
        )
    }
}

enum Attempt {
    Moved(usize),
    Blocked,
    Gone,
}

fn attempt(result: Result<usize, Errno>) -> Attempt {
    match result {
        Ok(bytes) => Attempt::Moved(bytes),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Attempt::Blocked,
        Err(_) => Attempt::Gone,
    }
}
