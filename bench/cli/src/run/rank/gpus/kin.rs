//! Which processes on a GPU are the run's own.
//!
//! Contract: a process is the run's if it is this one, its conductor, or another child of that; under a launcher, whose agents are
//! children of one parent on a host, also a grandchild of that. In a container NVML may list processes by the host's numbers, among
//! which this one is not: they are only counted then, and as many taken off as the run has there.
//! Reference: proc_pid_stat(5).
use super::source::Process;
use crate::environment::Root;

/// Tells own processes from others.
#[derive(Debug)]
pub(super) struct Kin {
    root: Root,
    own: u32,
    /// Whether the conductor, or the agent, was started by a launcher.
    launched: bool,
    /// Processes of the run on each of the GPUs.
    beside: Vec<usize>,
}

/// Others on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) processes: u64,
    /// What they hold; `None` where that is not known of one of them.
    pub(super) memory_bytes: Option<u64>,
}

impl Kin {
    pub(super) fn new(root: Root, own: u32, launched: bool, beside: Vec<usize>) -> Self {
        Self {
            root,
            own,
            launched,
            beside,
        }
    }

    /// Those of the processes on a GPU that are not the run's; `None` where they are hidden.
    pub(super) fn foreign(&self, gpu: usize, listed: &[Process]) -> Option<Foreign> {
        if listed.is_empty() {
            // This process is there.
            return None;
        }
        if !listed.iter().any(|process| process.pid == self.own) {
            let own = self.beside.get(gpu).copied().unwrap_or(1);
            let processes = listed.len().saturating_sub(own) as u64;
            return Some(Foreign {
                processes,
                memory_bytes: (processes == 0).then_some(0),
            });
        }
        let parent = self.parent(self.own);
        let mut found = Foreign {
            processes: 0,
            memory_bytes: Some(0),
        };
        for process in listed {
            if self.is_own(process.pid, parent) {
                continue;
            }
            found.processes += 1;
            found.memory_bytes = found
                .memory_bytes
                .zip(process.memory_bytes)
                .map(|(sum, more)| sum + more);
        }
        Some(found)
    }

    fn is_own(&self, pid: u32, parent: Option<u32>) -> bool {
        if pid == self.own || Some(pid) == parent {
            return true;
        }
        let (Some(theirs), Some(ours)) = (self.parent(pid), parent) else {
            return false;
        };
        let above = |pid| self.parent(pid).filter(|pid| *pid > 1);
        let cousins = || above(theirs).is_some() && above(theirs) == above(ours);
        theirs == ours || (self.launched && cousins())
    }

    /// The parent of a process: the fourth field of its `stat`, counted from the last bracket, since its name can hold anything.
    fn parent(&self, pid: u32) -> Option<u32> {
        let stat = self.root.read(&format!("proc/{pid}/stat"))?;
        let after = stat.rsplit_once(')')?.1;
        after.split_whitespace().nth(1)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::tests::root;

    fn process(pid: u32) -> Process {
        Process {
            pid,
            memory_bytes: Some(1 << 20),
        }
    }

    /// Conductor 10 with ranks 11 and 12, another run's conductor 20 with rank 21, both of shell 5.
    fn kin(launched: bool) -> (tempfile::TempDir, Kin) {
        let stat = |pid: u32, parent: u32| {
            (
                format!("proc/{pid}/stat"),
                format!("{pid} (a (strange) name) S {parent} 1 1 0\n"),
            )
        };
        let all = [
            stat(10, 5),
            stat(11, 10),
            stat(12, 10),
            stat(20, 5),
            stat(21, 20),
        ];
        let all: Vec<(&str, &str)> = all.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let (folder, root) = root(&all);
        (folder, Kin::new(root, 11, launched, vec![2]))
    }

    #[test]
    fn ranks_of_the_same_conductor_are_own_and_all_else_is_not() {
        let (_folder, kin) = kin(false);
        let foreign = |pids: &[u32]| {
            let listed: Vec<Process> = pids.iter().map(|&pid| process(pid)).collect();
            kin.foreign(0, &listed)
        };
        let found = |processes: u64| Foreign {
            processes,
            memory_bytes: Some(processes << 20),
        };
        assert_eq!(foreign(&[10, 11, 12]), Some(found(0)));
        assert_eq!(foreign(&[11, 21, 99]), Some(found(2)), "99 hides itself");
        assert_eq!(foreign(&[]), None, "not even this process is shown");
    }

    #[test]
    fn under_a_launcher_agents_of_one_parent_are_one_run() {
        let (_folder, kin) = kin(true);
        let listed = [process(11), process(21)];
        assert_eq!(kin.foreign(0, &listed).unwrap().processes, 0);
    }

    #[test]
    fn numbers_of_another_namespace_are_counted() {
        let (_folder, kin) = kin(false);
        let many = [process(7001), process(7002), process(7003)];
        let found = kin.foreign(0, &many).unwrap();
        assert_eq!((found.processes, found.memory_bytes), (1, None));
        assert_eq!(kin.foreign(0, &many[..1]).unwrap().processes, 0);
    }
}
