//! Bytes that network interfaces have carried, by the kernel's own counters: the only count of NCCL's traffic where it uses sockets.
//!
//! Contract: all traffic of the interface counts, with its headers, whoever sent it. On the loopback interface every byte is received
//! by it as well as sent. Traffic over NVLink, PCIe or InfiniBand is not seen.
//! Reference: proc_pid_net(5), `/proc/net/dev`.

/// What an interface has carried since it came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes received.
    pub received_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
}

impl Carried {
    /// What came on top since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            received_bytes: self.received_bytes.wrapping_sub(earlier.received_bytes),
            sent_bytes: self.sent_bytes.wrapping_sub(earlier.sent_bytes),
        }
    }
}

/// What the interface `name` has carried; none if there is no such interface.
///
/// # Errors
/// When the kernel's table cannot be read.
pub fn carried(name: &str) -> std::io::Result<Option<Carried>> {
    let table = std::fs::read_to_string("/proc/net/dev")?;
    Ok(find(&table, name))
}

fn find(table: &str, name: &str) -> Option<Carried> {
    let of = |line: &str| {
        let (interface, counters) = line.split_once(':')?;
        if interface.trim() != name {
            return None;
        }
        // Eight counters of what was received, then those of what was sent; bytes come first.
        let mut counters = counters.split_whitespace().map(str::parse);
        Some(Carried {
            received_bytes: counters.next()?.ok()?,
            sent_bytes: counters.nth(7)?.ok()?,
        })
    };
    table.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1234567    8901    0    0    0     0          0         0  7654321    8902    0    0    0     0       0          0
  eth0:18446744073709551615 1 0 0 0 0 0 0 42 1 0 0 0 0 0 0
";

    #[test]
    fn counters_are_found_by_name() {
        let lo = find(TABLE, "lo").unwrap();
        assert_eq!((lo.received_bytes, lo.sent_bytes), (1_234_567, 7_654_321));
        let eth0 = find(TABLE, "eth0").unwrap();
        assert_eq!((eth0.received_bytes, eth0.sent_bytes), (u64::MAX, 42));
        assert_eq!(find(TABLE, "eth"), None);
        assert_eq!(lo.since(lo), Carried::default());
    }

    #[test]
    fn what_loopback_carries_is_counted() {
        let Some(before) = carried("lo").unwrap() else {
            println!("skipped: this machine has no loopback interface");
            return;
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        std::io::Write::write_all(&mut sender, &[0; 10_000]).unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        std::io::Read::read_exact(&mut receiver, &mut [0; 10_000]).unwrap();
        let more = carried("lo").unwrap().unwrap().since(before);
        assert!(more.sent_bytes >= 10_000, "{more:?}");
    }
}
