//! What an agent tells about the machine that it runs on.
//!
//! Contract: two agents are on one host when they run under one boot of one kernel, whatever the host is called; they can
//! share memory when they also see the same processes. Reference: proc(5), `/proc/sys/kernel/random/boot_id`;
//! pid_namespaces(7).
use serde::{Deserialize, Serialize};

use crate::environment::{Root, cores as processors};
use crate::run::cores;

/// The machine of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its name.
    pub host: String,
    /// Identity of the running kernel.
    pub boot_id: String,
    /// Identity of the set of processes that the agent sees.
    pub process_namespace: String,
    /// CPU model as the kernel names it.
    pub cpu_model: String,
    /// Cores that the agent may run on, in ascending order.
    pub cores: Vec<usize>,
}

impl Machine {
    /// The machine of this process.
    ///
    /// # Errors
    /// What the system says when it hides the cores of this process or who it is.
    pub fn here() -> std::io::Result<Self> {
        let root = Root::machine();
        let missing = |what: &str| std::io::Error::other(format!("{what} cannot be read"));
        let namespace = std::fs::read_link("/proc/self/ns/pid")?;
        let boot_id = root.read("proc/sys/kernel/random/boot_id");
        Ok(Self {
            host: root
                .read("proc/sys/kernel/hostname")
                .ok_or_else(|| missing("the name of the host"))?,
            boot_id: boot_id.ok_or_else(|| missing("/proc/sys/kernel/random/boot_id"))?,
            process_namespace: namespace.to_string_lossy().into_owned(),
            cpu_model: processors::model(&root).unwrap_or_else(|| "unknown".to_owned()),
            cores: cores::usable()?,
        })
    }

    /// Whether two agents run on one host, so that their cores are the same cores.
    pub fn is(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id
    }

    /// Whether ranks of two agents can share memory.
    pub fn shares_memory_with(&self, other: &Self) -> bool {
        self.is(other) && self.process_namespace == other.process_namespace
    }
}
