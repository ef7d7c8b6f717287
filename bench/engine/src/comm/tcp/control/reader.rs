//! The thread that reads a rank's control connections.
//!
//! Contract: it alone reads them, so that a frame is heard wherever the rank is. A connection that ends without a good-bye aborts the
//! job, unless this rank is leaving itself.
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::Control;
use crate::comm::tcp::accept::timespec;
use crate::comm::tcp::wire::{FRAME_BYTES, Frame};

/// The reading thread of a rank.
pub(super) struct Reader {
    control: Arc<Control>,
    /// What has come from each rank and is no whole frame yet.
    buffers: Vec<VecDeque<u8>>,
}

impl Reader {
    pub(super) fn new(control: &Arc<Control>) -> Self {
        Self {
            control: Arc::clone(control),
            buffers: (0..control.world).map(|_| VecDeque::new()).collect(),
        }
    }

    /// Reads until this rank has left.
    pub(super) fn serve(mut self) {
        let mut open: Vec<bool> = self.control.links.iter().map(Option::is_some).collect();
        while !self.control.state().over {
            self.sleep(&open);
            for (peer, open) in open.iter_mut().enumerate().filter(|(_, open)| **open) {
                *open = self.read(peer);
            }
            if self.control.rank == 0
                && let Some(error) = self.control.overdue().or_else(|| self.control.culprits())
            {
                self.control.abort(Some(0), &error.to_string());
            }
        }
    }

    fn sleep(&self, open: &[bool]) {
        let links = self.control.links.iter().zip(open);
        let links = links.filter_map(|(link, open)| link.as_ref().filter(|_| *open));
        let mut fds: Vec<_> = std::iter::once(self.control.end.as_fd())
            .chain(links.map(AsFd::as_fd))
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        // Looking at a barrier that is under way, or at who is stuck, is rank 0's business, and only then does time matter.
        let watching = self.control.rank == 0 && self.control.state().is_urgent();
        let pause = Duration::from_millis(if watching { 20 } else { 1000 });
        // Whatever ends the call, the look at everything follows.
        let _ = poll(&mut fds, Some(&timespec(pause)));
    }

    /// Reads what has come from `peer`; false once nothing more can.
    fn read(&mut self, peer: usize) -> bool {
        let Some(mut link) = self.control.links[peer].as_ref() else {
            return false;
        };
        let mut bytes = [0; 4096];
        let open = loop {
            match link.read(&mut bytes) {
                Ok(0) => break false,
                Ok(read) => self.buffers[peer].extend(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(_) => break false,
            }
        };
        while let Some((frame, text)) = take_frame(&mut self.buffers[peer]) {
            self.hear(peer, frame, &text);
        }
        let (left, leaving) = {
            let state = self.control.state();
            (state.left[peer], state.leaving)
        };
        if !open && !left && !leaving {
            let reason =
                format!("rank {peer} is gone: its control connection ended without a word");
            self.control.abort(Some(self.control.rank), &reason);
        }
        open && !left
    }

    fn hear(&self, peer: usize, frame: Option<Frame>, text: &[u8]) {
        let control = &self.control;
        match frame {
            Some(Frame::Arrive { number }) => control.arrive(&mut control.state(), peer, number),
            Some(Frame::Release { number, word }) => {
                let mut state = control.state();
                (state.released, state.word) = (number, word);
                control.changed.notify_all();
            }
            Some(Frame::Abort { by, .. }) => control.abort(by, &String::from_utf8_lossy(text)),
            Some(Frame::Stuck { peer: awaited, .. }) => {
                control.hear_stuck(peer, awaited, &String::from_utf8_lossy(text));
            }
            Some(Frame::Leave) => {
                control.state().left[peer] = true;
                control.changed.notify_all();
            }
            None => control.abort(
                Some(control.rank),
                &format!("rank {peer} sent what is no control frame"),
            ),
        }
    }
}

/// The first whole frame of a buffer, with its text; the frame is `None` when it is none of ours.
fn take_frame(buffer: &mut VecDeque<u8>) -> Option<(Option<Frame>, Vec<u8>)> {
    if buffer.len() < FRAME_BYTES {
        return None;
    }
    let start: [u8; FRAME_BYTES] = std::array::from_fn(|i| buffer[i]);
    let frame = Frame::decode(&start);
    let text = match frame {
        Some(Frame::Abort { len, .. } | Frame::Stuck { len, .. }) => len,
        _ => 0,
    };
    if buffer.len() < FRAME_BYTES + text {
        return None;
    }
    buffer.drain(..FRAME_BYTES);
    Some((frame, buffer.drain(..text).collect()))
}
