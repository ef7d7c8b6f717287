//! Whether figures of several GPUs of a machine were held against other programs, and how each comparison ended.
//!
//! Contract: an acceptance is made by a run that compared, and by nothing else. It is about the GPUs, the driver and the NCCL that it names, and
//! about no more devices than it had. What was not compared is `skipped` with its reason, never passed.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::environment::gpu::Cuda;

/// Fewest GPUs of their own that accept anything about several.
const FEWEST: u32 = 2;

/// How a comparison ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// Within its tolerance.
    Passed,
    /// Outside of it, or one of the two gave no figure.
    Failed,
    /// It was not made.
    Skipped,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was compared, such as `bus bandwidth beside nccl-tests'`.
    pub name: String,
    /// How it ended.
    pub state: CheckState,
    /// Whether a machine is accepted only with it; the others must not have failed.
    pub required: bool,
    /// What was found, or why it was skipped, and the tolerance.
    pub words: String,
    /// The figures, units in their names.
    pub figures: BTreeMap<String, f64>,
}

/// What a machine's several GPUs were held against.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Acceptance {
    /// When: UTC, RFC 3339.
    pub date: String,
    /// The scenario that compared.
    pub scenario: String,
    /// Version of syncmark, and the commit that it was built from.
    pub syncmark: String,
    /// Devices of its trials.
    pub devices: u32,
    /// Whether each of them had a GPU of its own, all on one host.
    pub own_gpus: bool,
    /// Names and identities of the machine's GPUs, sorted by identity.
    pub gpus: Vec<[String; 2]>,
    /// Driver.
    pub driver: Option<String>,
    /// NCCL.
    pub nccl: Option<String>,
    /// The comparisons.
    pub checks: Vec<Check>,
    /// Whether all this accepts the machine: see [`Acceptance::accepts`].
    pub accepted: bool,
}

impl Acceptance {
    /// Takes up what the machine is.
    pub fn on(mut self, cuda: &Cuda) -> Self {
        (self.gpus, self.driver, self.nccl) = identity(cuda);
        self
    }

    /// Whether every required comparison passed, none failed, and there were several GPUs.
    pub fn accepts(&self) -> bool {
        let passed = |check: &Check| match check.state {
            CheckState::Passed => true,
            CheckState::Failed => false,
            CheckState::Skipped => !check.required,
        };
        let required = self.checks.iter().any(|check| check.required);
        let known = !self.gpus.is_empty() && self.driver.is_some() && self.nccl.is_some();
        self.devices >= FEWEST
            && self.own_gpus
            && self.gpus.len() >= self.devices as usize
            && known
            && required
            && self.checks.iter().all(passed)
    }

    /// Whether it speaks for a run with so many devices on the machine `cuda`.
    pub fn covers(&self, cuda: &Cuda, devices: u32) -> bool {
        let own = (self.gpus.clone(), self.driver.clone(), self.nccl.clone());
        self.accepted && self.accepts() && own == identity(cuda) && devices <= self.devices
    }
}

/// GPUs, driver and NCCL of a machine; GPUs without an identity are none.
fn identity(cuda: &Cuda) -> (Vec<[String; 2]>, Option<String>, Option<String>) {
    let gpu = |gpu: &crate::environment::gpu::Gpu| Some([gpu.name.clone(), gpu.uuid.clone()?]);
    let mut gpus: Vec<[String; 2]> = cuda.gpus.iter().filter_map(gpu).collect();
    gpus.sort_by(|a, b| a[1].cmp(&b[1]));
    let nccl = cuda.libraries.iter().find(|library| library.name == "NCCL");
    let nccl = nccl.and_then(|library| library.version.clone());
    (gpus, cuda.driver.clone(), nccl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::gpu::{CudaLibrary, Gpu};

    fn machine(uuids: &[&str]) -> Cuda {
        let gpu = |uuid: &&str| Gpu {
            name: "Example GPU".into(),
            uuid: Some((*uuid).into()),
            ..Gpu::default()
        };
        Cuda {
            driver: Some("580.82.07".into()),
            gpus: uuids.iter().map(gpu).collect(),
            libraries: vec![CudaLibrary {
                name: "NCCL".into(),
                version: Some("2.28.9".into()),
                ..CudaLibrary::default()
            }],
            ..Cuda::default()
        }
    }

    fn check(state: CheckState, required: bool) -> Check {
        Check {
            name: "a comparison".into(),
            state,
            required,
            words: String::new(),
            figures: BTreeMap::new(),
        }
    }

    fn acceptance(checks: Vec<Check>) -> Acceptance {
        let mut acceptance = Acceptance {
            devices: 2,
            own_gpus: true,
            checks,
            ..Acceptance::default()
        }
        .on(&machine(&["GPU-b", "GPU-a"]));
        acceptance.accepted = acceptance.accepts();
        acceptance
    }

    #[test]
    fn only_what_was_compared_accepts() {
        use CheckState::{Failed, Passed, Skipped};
        let accepts = |checks: &[(CheckState, bool)]| {
            let checks = checks
                .iter()
                .map(|(state, required)| check(*state, *required));
            acceptance(checks.collect()).accepts()
        };
        assert!(accepts(&[(Passed, true), (Skipped, false)]));
        assert!(!accepts(&[(Passed, true), (Failed, false)]));
        assert!(!accepts(&[(Passed, true), (Skipped, true)]));
        assert!(
            !accepts(&[(Passed, false)]),
            "nothing required was compared"
        );
        assert!(!accepts(&[]));
    }

    #[test]
    fn several_gpus_are_accepted_by_several_alone() {
        let passed = || vec![check(CheckState::Passed, true)];
        let one = Acceptance {
            devices: 1,
            ..acceptance(passed())
        };
        assert!(!one.accepts());
        let shared = Acceptance {
            own_gpus: false,
            ..acceptance(passed())
        };
        assert!(!shared.accepts());
        let more = Acceptance {
            devices: 3,
            ..acceptance(passed())
        };
        assert!(!more.accepts(), "three devices on two GPUs");
    }

    #[test]
    fn it_speaks_for_the_machine_that_it_names() {
        let accepted = acceptance(vec![check(CheckState::Passed, true)]);
        assert!(
            accepted.covers(&machine(&["GPU-a", "GPU-b"]), 2),
            "in any order"
        );
        assert!(!accepted.covers(&machine(&["GPU-a", "GPU-b"]), 4));
        assert!(!accepted.covers(&machine(&["GPU-a", "GPU-c"]), 2));
        let other_driver = Cuda {
            driver: Some("590.1".into()),
            ..machine(&["GPU-a", "GPU-b"])
        };
        assert!(!accepted.covers(&other_driver, 2));
        let other_nccl = Cuda {
            libraries: Vec::new(),
            ..machine(&["GPU-a", "GPU-b"])
        };
        assert!(!accepted.covers(&other_nccl, 2));
        let claimed = Acceptance {
            accepted: true,
            ..acceptance(vec![check(CheckState::Skipped, true)])
        };
        assert!(
            !claimed.covers(&machine(&["GPU-a", "GPU-b"]), 2),
            "a word is no comparison"
        );
    }
}
