//! The kernel's own counters of a connection: what is called *measured* in records.
//!
//! Reference: tcp(7), TCP_INFO; `struct tcp_info` in `include/uapi/linux/tcp.h`. Kernels before 4.19 do not count sent
//! bytes, and then there is no figure.
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Bytes that one connection has carried, from its beginning, by the kernel's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Sent for the first time (`tcpi_bytes_sent - tcpi_bytes_retrans`).
    pub sent_bytes: u64,
    /// Taken from this program, not sent yet (`tcpi_notsent_bytes`).
    pub unsent_bytes: u64,
    /// Acknowledged by the other side (`tcpi_bytes_acked`).
    pub acknowledged_bytes: u64,
    /// Received in order (`tcpi_bytes_received`).
    pub received_bytes: u64,
    /// Sent again after a loss (`tcpi_bytes_retrans`).
    pub retransmitted_bytes: u64,
}

/// Offsets within `struct tcp_info`, which only ever grows at its end.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;
const NOTSENT_BYTES: usize = 144;
const BYTES_SENT: usize = 200;
const BYTES_RETRANS: usize = 208;
const NEEDED: usize = 216;

/// Bytes that this program has sent and the other side's kernel has not acknowledged; 0 where that cannot be told.
pub(super) fn unacknowledged(stream: &TcpStream) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one integer (SIOCOUTQ of tcp(7), the same number as TIOCOUTQ).
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    match done {
        0 => usize::try_from(bytes).unwrap_or(0),
        _ => 0,
    }
}

/// Reads the counters; `None` where the kernel has none.
pub fn carried(stream: &TcpStream) -> Option<Carried> {
    let mut bytes = [0_u8; 256];
    let mut len = bytes.len() as libc::socklen_t;
    // SAFETY: the descriptor is open, the buffer is as long as said, and the kernel writes at most that.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            bytes.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if done != 0 || (len as usize) < NEEDED {
        return None;
    }
    let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    Some(Carried {
        sent_bytes: word(BYTES_SENT).saturating_sub(word(BYTES_RETRANS)),
        unsent_bytes: u64::from(half(NOTSENT_BYTES)),
        // The kernel counts the SYN's sequence number as acknowledged on the side that connected.
        acknowledged_bytes: word(BYTES_ACKED),
        received_bytes: word(BYTES_RECEIVED),
        retransmitted_bytes: word(BYTES_RETRANS),
    })
}
