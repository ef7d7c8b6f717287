//! Ctrl-C and its kin, as a descriptor that poll(2) can wait for.
//!
//! Contract: a signal is remembered and wakes whoever polls; nothing else happens in the handler. The signals are
//! SIGINT, SIGTERM and SIGHUP, so that a closed terminal or a batch system's end stops a run as cleanly as ctrl-C. Once
//! released (while a report is written, say) a signal ends the process at once.
//! Reference: the self-pipe trick, <https://cr.yp.to/docs/selfpipe.html>.
use std::cell::Cell;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Signals that stop a run.
const STOPPING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// The signals received so far.
#[derive(Debug)]
pub struct Signals {
    pipe: UnixStream,
    received: Cell<usize>,
    released: Arc<AtomicBool>,
    last: Arc<AtomicUsize>,
}

/// Exit status of a process that a signal ends once it is released.
const INTERRUPTED: i32 = 130;

impl Signals {
    /// Takes over the stopping signals of this process.
    ///
    /// # Errors
    /// What the system says to a socket pair or a handler.
    pub fn install() -> std::io::Result<Self> {
        let signals = Self::new()?;
        for signal in STOPPING {
            let released = Arc::clone(&signals.0.released);
            signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED, released)?;
            let last = Arc::clone(&signals.0.last);
            signal_hook::flag::register_usize(signal, last, signal as usize)?;
            signal_hook::low_level::pipe::register(signal, signals.1.try_clone()?)?;
        }
        Ok(signals.0)
    }

    fn new() -> std::io::Result<(Self, UnixStream)> {
        let (pipe, write) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        Ok((
            Self {
                pipe,
                received: Cell::new(0),
                released: Arc::default(),
                last: Arc::default(),
            },
            write,
        ))
    }

    /// From now on a signal ends the process at once.
    pub fn release(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// From now on a signal is remembered again.
    pub fn hold(&self) {
        self.released.store(false, Ordering::Relaxed);
    }

    /// The number of the one that came last; 0 for none.
    pub fn last(&self) -> i32 {
        self.last.load(Ordering::Relaxed) as i32
    }

    /// How many came until now. Never blocks.
    pub fn received(&self) -> usize {
        let mut bytes = [0; 64];
        while let Ok(read @ 1..) = (&self.pipe).read(&mut bytes) {
            self.received.set(self.received.get() + read);
        }
        self.received.get()
    }
}

impl AsFd for Signals {
    /// Readable when a signal has come that [`Signals::received`] has not counted yet.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// Signals that a test sends by writing bytes.
    pub(crate) fn by_hand() -> (Signals, UnixStream) {
        Signals::new().unwrap()
    }

    #[test]
    fn signals_are_counted_and_never_waited_for() {
        let (signals, mut write) = by_hand();
        assert_eq!(signals.received(), 0);
        write.write_all(b"x").unwrap();
        write.write_all(b"x").unwrap();
        assert_eq!(signals.received(), 2);
        assert_eq!(signals.received(), 2);
    }
}
