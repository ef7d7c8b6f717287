//! Two network namespaces joined by a virtual cable, as two hosts that reach each other over a network and nothing else.
//!
//! Contract: they are gone when this is dropped. References: ip-netns(8), veth(4).
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static MADE: AtomicU32 = AtomicU32::new(0);

/// The two of them.
pub struct Hosts {
    names: [String; 2],
}

impl Hosts {
    /// Makes two; says why where that takes more rights or tools than the test has.
    pub fn make() -> Result<Self, String> {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let job = format!("{}-{number}", std::process::id());
        let hosts = Self {
            names: ["a", "b"].map(|name| format!("syncmark-{job}-{name}")),
        };
        // Names of interfaces have at most 15 characters, and these live in namespaces of their own at once.
        for name in &hosts.names {
            ip(&["netns", "add", name])?;
        }
        let [a, b] = &hosts.names;
        ip(&[
            "link", "add", "veth", "netns", a, "type", "veth", "peer", "name", "veth", "netns", b,
        ])?;
        for (rank, name) in hosts.names.iter().enumerate() {
            let address = format!("{}/24", hosts.address(rank));
            ip(&["-n", name, "address", "add", &address, "dev", "veth"])?;
            ip(&["-n", name, "link", "set", "veth", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(hosts)
    }

    /// The address of a host: of the range reserved for tests of networks.
    pub fn address(&self, rank: usize) -> String {
        format!("198.18.0.{}", rank + 1)
    }

    /// Starts `program` on a host.
    pub fn command(&self, rank: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[rank], program]);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // It may never have been made.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("there is no ip(8): {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`ip {}` failed: {said}", arguments.join(" ")))
}
