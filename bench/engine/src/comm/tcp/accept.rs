//! Taking connections: each is read until it has said hello, and a silent or foreign one holds nobody up.
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::{HELLO_BYTES, Hello};

/// How long a connection may take to say hello.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may be about to say hello at a time; the oldest is dropped for one more.
const MOST: usize = 512;

/// A connection that has not said all of its hello.
struct Knock {
    stream: TcpStream,
    from: SocketAddr,
    bytes: [u8; HELLO_BYTES],
    len: usize,
    since: Instant,
}

/// One connection that said hello.
pub(super) struct Visitor {
    pub(super) stream: TcpStream,
    pub(super) from: SocketAddr,
    pub(super) hello: Hello,
}

/// Takes connections from a listener.
pub(super) struct Acceptor<'a> {
    listener: &'a TcpListener,
    knocks: Vec<Knock>,
    /// Addresses of those that were no ranks.
    pub(super) strangers: Vec<SocketAddr>,
}

impl<'a> Acceptor<'a> {
    pub(super) fn new(listener: &'a TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            knocks: Vec::new(),
            strangers: Vec::new(),
        })
    }

    /// The next connection with a hello, whatever that says; `None` when the deadline passes.
    pub(super) fn next(&mut self, deadline: Instant) -> io::Result<Option<Visitor>> {
        loop {
            if let Some(visitor) = self.heard() {
                return Ok(Some(visitor));
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            self.sleep((deadline - now).min(Duration::from_secs(1)))?;
            self.take()?;
        }
    }

    fn sleep(&self, longest: Duration) -> io::Result<()> {
        let knocks = self.knocks.iter().map(|knock| knock.stream.as_fd());
        let mut fds: Vec<_> = std::iter::once(self.listener.as_fd())
            .chain(knocks)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        match poll(&mut fds, Some(&timespec(longest))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    stream.set_nonblocking(true)?;
                    if self.knocks.len() == MOST {
                        let oldest = self.knocks.remove(0);
                        self.strangers.push(oldest.from);
                    }
                    self.knocks.push(Knock {
                        stream,
                        from,
                        bytes: [0; HELLO_BYTES],
                        len: 0,
                        since: Instant::now(),
                    });
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Whoever gave up while waiting in the queue is none of our business.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what has come; the first whose hello is complete leaves the list.
    fn heard(&mut self) -> Option<Visitor> {
        let mut index = 0;
        while index < self.knocks.len() {
            match self.knocks[index].read() {
                Heard::Part => index += 1,
                Heard::Nonsense => {
                    let knock = self.knocks.remove(index);
                    self.strangers.push(knock.from);
                }
                Heard::Hello(hello) => {
                    let Knock { stream, from, .. } = self.knocks.remove(index);
                    return Some(Visitor {
                        stream,
                        from,
                        hello,
                    });
                }
            }
        }
        None
    }
}

enum Heard {
    Part,
    Nonsense,
    Hello(Hello),
}

impl Knock {
    fn read(&mut self) -> Heard {
        loop {
            match self.stream.read(&mut self.bytes[self.len..]) {
                Ok(0) => return Heard::Nonsense,
                Ok(read) => {
                    self.len += read;
                    if self.len == HELLO_BYTES {
                        return Hello::decode(&self.bytes).map_or(Heard::Nonsense, Heard::Hello);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && self.since.elapsed() < PATIENCE =>
                {
                    return Heard::Part;
                }
                Err(_) => return Heard::Nonsense,
            }
        }
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
