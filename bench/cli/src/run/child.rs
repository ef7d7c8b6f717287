//! One child process: how it is started, what it says, and how it ended.
//!
//! Contract: reading never blocks and a child can never block on a full pipe, because whatever it writes is read and
//! bounded here. It has a process group of its own, so that a terminal's ctrl-C reaches only the conductor, and it dies
//! with the conductor (PR_SET_PDEATHSIG), so that no orphan goes on computing. References: pidfd_open(2), prctl(2).
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::backend::rank_variables;
use super::nccl_choices;
use super::protocol::{Assignment, Message};

/// Lines of standard error that are kept.
const TAIL_LINES: usize = 20;
/// Bytes of a line that are kept. A longer line of standard output is no message.
const LINE_BYTES: usize = 64 << 10;

/// A child and everything that it said.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    pidfd: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    messages_line: Lines,
    tail_line: Lines,
    /// What it said on standard output.
    pub messages: Vec<Message>,
    /// Last lines of standard error, and of standard output that is no message.
    pub tail: VecDeque<String>,
    /// How it ended, and when that was noticed.
    pub ended: Option<(ExitStatus, Instant)>,
    /// Ranks that it runs.
    pub ranks: std::ops::Range<usize>,
}

impl Child {
    /// Starts `binary rank` with its assignment on standard input.
    ///
    /// # Errors
    /// What the system says; no process is left then.
    pub fn start(
        binary: &Path,
        assignment: &Assignment,
        ranks: std::ops::Range<usize>,
    ) -> std::io::Result<Self> {
        let mut command = Command::new(binary);
        command
            .arg("rank")
            .envs(rank_variables(&assignment.trial, assignment.rank as usize))
            .envs(nccl_choices::of_process(
                &assignment.purpose,
                assignment.rank,
            ))
            .stdin(input(assignment)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let conductor = std::process::id();
        // SAFETY: the closure runs between fork and exec and makes two system calls, nothing that takes a lock.
        unsafe { command.pre_exec(move || die_with(conductor)) };
        let mut process = command.spawn()?;
        match watch(&process) {
            Ok(pidfd) => Ok(Self {
                pidfd,
                stdout: process.stdout.take(),
                stderr: process.stderr.take(),
                process,
                messages_line: Lines::default(),
                tail_line: Lines::default(),
                messages: Vec::new(),
                tail: VecDeque::new(),
                ended: None,
                ranks,
            }),
            Err(error) => {
                process.kill().and_then(|()| process.wait())?;
                Err(error)
            }
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Descriptors that become readable when there is something to do: its end, and what it writes.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let end = self.ended.is_none().then(|| self.pidfd.as_fd());
        end.into_iter()
            .chain(self.stdout.as_ref().map(AsFd::as_fd))
            .chain(self.stderr.as_ref().map(AsFd::as_fd))
    }

    /// Reads what there is, and reaps the process if it has ended. Never blocks.
    pub fn attend(&mut self) {
        if self.ended.is_none() {
            self.reap();
        }
        self.read();
        if self.ended.is_some() {
            // A grandchild may hold the pipes open: what was written until now is all that is waited for.
            (self.stdout, self.stderr) = (None, None);
        }
    }

    fn reap(&mut self) {
        if !has_exited(&self.pidfd) {
            return;
        }
        // The process is a zombie still, so its id is its own: whatever it started goes with it.
        self.signal(Signal::KILL);
        if let Ok(Some(status)) = self.process.try_wait() {
            self.ended = Some((status, Instant::now()));
        }
    }

    fn read(&mut self) {
        let (messages, tail) = (&mut self.messages, &mut self.tail);
        if let Some(stdout) = &mut self.stdout {
            let open = drain(
                stdout,
                &mut self.messages_line,
                |line| match serde_json::from_slice(line) {
                    Ok(message) => messages.push(message),
                    Err(_) => keep(tail, line),
                },
            );
            if !open {
                self.stdout = None;
            }
        }
        if let Some(stderr) = &mut self.stderr {
            let open = drain(stderr, &mut self.tail_line, |line| keep(tail, line));
            if !open {
                self.stderr = None;
            }
        }
    }

    /// Sends a signal to the child's process group; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none()
            && let Some(group) = Pid::from_raw(self.pid() as i32)
        {
            // The group can be gone in this very moment, which is what a signal is sent for.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Child {
    /// A child that is still there, because supervising it failed, is killed and reaped.
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.signal(Signal::KILL);
            let _ = self.process.wait();
        }
    }
}

/// The assignment as a file in memory: unlike a pipe it never fills, however large the model.
fn input(assignment: &Assignment) -> std::io::Result<Stdio> {
    let mut file = File::from(rustix::fs::memfd_create(
        "syncmark-assignment",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    serde_json::to_writer(&mut file, assignment)?;
    file.write_all(b"\n")?;
    file.rewind()?;
    Ok(file.into())
}

/// Makes the kernel kill this process when the conductor ends, and ends at once if it has ended already.
fn die_with(conductor: u32) -> std::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get() as u32);
    if parent == conductor {
        Ok(())
    } else {
        Err(ErrorKind::NotConnected.into())
    }
}

/// A descriptor for the process's end; its pipes are made not to block.
fn watch(process: &std::process::Child) -> std::io::Result<OwnedFd> {
    let nonblocking = |fd: BorrowedFd<'_>| -> rustix::io::Result<()> {
        rustix::fs::fcntl_setfl(
            fd,
            rustix::fs::fcntl_getfl(fd)? | rustix::fs::OFlags::NONBLOCK,
        )
    };
    process
        .stdout
        .as_ref()
        .map(|pipe| nonblocking(pipe.as_fd()))
        .transpose()?;
    process
        .stderr
        .as_ref()
        .map(|pipe| nonblocking(pipe.as_fd()))
        .transpose()?;
    let pid = Pid::from_raw(process.id() as i32).ok_or(ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether the process has ended; it need not be reaped yet.
fn has_exited(pidfd: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0
            })
        ),
        Ok(1)
    )
}

/// Puts lines together from pieces.
#[derive(Debug, Default)]
struct Lines {
    part: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, complete) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LINE_BYTES - self.part.len();
            self.part.extend_from_slice(&text[..text.len().min(room)]);
            if complete {
                line(&self.part);
                self.part.clear();
            }
        }
    }

    /// What came after the last line end.
    fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.part.is_empty() {
            line(&self.part);
            self.part.clear();
        }
    }
}

/// Reads what a pipe holds; false once it is closed.
fn drain(pipe: &mut impl Read, lines: &mut Lines, mut line: impl FnMut(&[u8])) -> bool {
    let mut bytes = [0; 8192];
    loop {
        match pipe.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => lines.push(&bytes[..read], &mut line),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => break,
        }
    }
    lines.finish(line);
    false
}

fn keep(tail: &mut VecDeque<String>, line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_end();
    if line.is_empty() {
        return;
    }
    if tail.len() == TAIL_LINES {
        tail.pop_front();
    }
    tail.push_back(line.chars().take(400).collect());
}

/// `killed by signal 9 (SIGKILL)` or `exit status 101`.
pub fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by {}", signal_words(signal)),
        (None, Some(code)) => format!("ended with exit status {code}"),
        (None, None) => format!("ended with {status}"),
    }
}

/// `signal 9 (SIGKILL)`.
pub fn signal_words(signal: i32) -> String {
    match signal_hook::low_level::signal_name(signal) {
        Some(name) => format!("signal {signal} ({name})"),
        None => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_pieces() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in ["one\ntw", "o\n", "\nthree"] {
            lines.push(piece.as_bytes(), |line| {
                seen.push(String::from_utf8_lossy(line).into_owned())
            });
        }
        lines.finish(|line| seen.push(String::from_utf8_lossy(line).into_owned()));
        assert_eq!(seen, ["one", "two", "", "three"]);
    }

    #[test]
    fn a_line_without_end_does_not_grow_without_end() {
        let mut lines = Lines::default();
        (0..40).for_each(|_| lines.push(&[b'x'; 8192], |_| panic!("no line has ended")));
        assert_eq!(lines.part.len(), LINE_BYTES);
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = VecDeque::new();
        (0..30).for_each(|n| keep(&mut tail, format!("line {n}").as_bytes()));
        assert_eq!(
            (tail.len(), tail[0].as_str(), tail[19].as_str()),
            (20, "line 10", "line 29")
        );
    }

    #[test]
    fn ends_are_described_as_a_person_would() {
        assert_eq!(
            describe(ExitStatus::from_raw(9)),
            "was killed by signal 9 (SIGKILL)"
        );
        assert_eq!(
            describe(ExitStatus::from_raw(101 << 8)),
            "ended with exit status 101"
        );
    }
}
