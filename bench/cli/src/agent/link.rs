//! Rank 0's end of the connection to another agent.
//!
//! Contract: reading never blocks. A link that has failed stays failed and says why; whoever waits for something from it
//! must look. The kernel probes an idle connection ([`keep_alive`]), so that a host that vanishes without a word is
//! noticed on both sides within [`SILENCE`].
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::message::{Hello, Order, Report};
use super::wire::{Frame, Inbox, send};
use crate::run::child::signal_words;

/// How long an agent at work, or the kernel of an idle one, may be silent before it counts as lost.
pub const SILENCE: Duration = Duration::from_secs(15);
/// How long an order may take to be accepted by the other side's kernel.
const ACCEPTANCE: Duration = Duration::from_secs(5);

/// The connection to one agent.
#[derive(Debug)]
pub struct Link {
    stream: Rc<TcpStream>,
    inbox: Inbox,
    hello: Hello,
    lost: Option<String>,
    leaving: Option<i32>,
    heard: Instant,
}

impl Link {
    /// The link to the agent that said `hello`.
    pub fn new(stream: TcpStream, inbox: Inbox, hello: Hello) -> Self {
        Self {
            stream: Rc::new(stream),
            inbox,
            hello,
            lost: None,
            leaving: None,
            heard: Instant::now(),
        }
    }

    /// Who it is.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The connection, for poll(2).
    pub fn stream(&self) -> Rc<TcpStream> {
        Rc::clone(&self.stream)
    }

    /// Gives an order. If it cannot be given the link is lost.
    pub fn order(&mut self, order: &Order) {
        if self.lost.is_none()
            && let Err(error) = send(&self.stream, order)
        {
            self.lose(&format!("an order could not be sent to it: {error}"));
        }
    }

    /// What has come since the last call. Never blocks.
    pub fn receive(&mut self) -> Vec<Frame<Report>> {
        let mut frames = Vec::new();
        if self.lost.is_some() {
            return frames;
        }
        let filled = self.inbox.fill(&self.stream);
        loop {
            match self.inbox.next_frame::<Report>() {
                Ok(Some(frame)) => {
                    self.heard = Instant::now();
                    match frame {
                        Frame::Message(Report::Leaving { signal }) => self.leaving = Some(signal),
                        other => frames.push(other),
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.lose(&error.to_string());
                    break;
                }
            }
        }
        match (filled, self.leaving) {
            (Err(error), _) => self.lose(&error.to_string()),
            (Ok(()), Some(signal)) if self.inbox.is_closed() => {
                self.lose(&format!("it was stopped by {}", signal_words(signal)));
            }
            (Ok(()), None) if self.inbox.is_closed() => {
                self.lose("its connection was closed without a word, as when it is killed");
            }
            (Ok(()), _) => {}
        }
        frames
    }

    /// Gives it up.
    pub fn lose(&mut self, why: &str) {
        if self.lost.is_none() {
            self.lost = Some(format!("{}: {why}", self.name()));
            // The other side learns of it by the end of the connection; it may have ended already.
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Why nothing can come from it any more.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// The signal that told the agent to end.
    pub fn leaving(&self) -> Option<i32> {
        self.leaving
    }

    /// From now on its silence counts.
    pub fn listen(&mut self) {
        self.heard = Instant::now();
    }

    /// When a silence that goes on becomes a loss.
    pub fn deadline(&self) -> Instant {
        self.heard + SILENCE
    }

    /// `the agent of rank 1 (process 77 on node3)`.
    pub fn name(&self) -> String {
        name(&self.hello)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// `the agent of rank 1 (process 77 on node3)`.
pub fn name(hello: &Hello) -> String {
    format!(
        "the agent of rank {} (process {} on {})",
        hello.rank, hello.process, hello.machine.host
    )
}

/// Sets a control connection up: no delay, a bound on sending, and probes by the kernel while it is idle.
///
/// # Errors
/// What setsockopt(2) says.
pub fn keep_alive(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(ACCEPTANCE))?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepcnt(stream, 2)?;
    sockopt::set_tcp_user_timeout(stream, SILENCE.as_millis() as u32)?;
    Ok(())
}
