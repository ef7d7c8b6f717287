//! Where acceptances are remembered: a file for each machine in `syncmark/acceptance` of the user's data.
//!
//! Contract: what cannot be read, or speaks for another machine, is as if it were not there. The newest of a machine counts.
use std::path::{Path, PathBuf};

use syncmark_engine::backend::cuda::library;
use syncmark_record::acceptance::Acceptance;
use syncmark_record::environment::gpu::Cuda;

/// The folder; none where the user has no home.
fn folder() -> Option<PathBuf> {
    // Beside the libraries that syncmark installs.
    Some(library::installed()?.parent()?.join("acceptance"))
}

/// Keeps an acceptance, and says where.
///
/// # Errors
/// In words.
pub(super) fn remember(acceptance: &Acceptance, text: &[u8]) -> Result<PathBuf, String> {
    let folder = folder().ok_or("there is no HOME to remember the acceptance in")?;
    remember_in(&folder, acceptance, text)
}

fn remember_in(folder: &Path, acceptance: &Acceptance, text: &[u8]) -> Result<PathBuf, String> {
    // A colon is no part of a name everywhere.
    let name = format!("{}.json", acceptance.date.replace(':', ""));
    let path = folder.join(name);
    let failed = |error| {
        format!(
            "cannot remember the acceptance in {}: {error}",
            path.display()
        )
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    std::fs::write(&path, text).map_err(failed)?;
    Ok(path)
}

/// What accepts `devices` GPUs of this machine, if anything has.
pub fn remembered(cuda: &Cuda, devices: u32) -> Option<Acceptance> {
    remembered_in(&folder()?, cuda, devices)
}

fn remembered_in(folder: &Path, cuda: &Cuda, devices: u32) -> Option<Acceptance> {
    let files = std::fs::read_dir(folder).ok()?;
    let read = |path: PathBuf| -> Option<Acceptance> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    };
    let all = files.filter_map(|entry| read(entry.ok()?.path()));
    all.filter(|acceptance| acceptance.covers(cuda, devices))
        .max_by(|a, b| a.date.cmp(&b.date))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use syncmark_record::acceptance::{Check, CheckState};
    use syncmark_record::environment::gpu::{CudaLibrary, Gpu};

    use super::*;

    fn machine(uuid: &str) -> Cuda {
        let gpu = |uuid: String| Gpu {
            uuid: Some(uuid),
            ..Gpu::default()
        };
        Cuda {
            driver: Some("580".into()),
            gpus: vec![gpu(format!("{uuid}-0")), gpu(format!("{uuid}-1"))],
            libraries: vec![CudaLibrary {
                name: "NCCL".into(),
                version: Some("2.28.9".into()),
                ..CudaLibrary::default()
            }],
            ..Cuda::default()
        }
    }

    fn acceptance(date: &str, state: CheckState) -> Acceptance {
        let mut acceptance = Acceptance {
            date: date.into(),
            devices: 2,
            own_gpus: true,
            checks: vec![Check {
                name: "losses".into(),
                state,
                required: true,
                words: String::new(),
                figures: BTreeMap::new(),
            }],
            ..Acceptance::default()
        }
        .on(&machine("GPU"));
        acceptance.accepted = acceptance.accepts();
        acceptance
    }

    #[test]
    fn the_newest_that_speaks_for_the_machine_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let keep = |acceptance: &Acceptance| {
            let text = serde_json::to_vec(acceptance).unwrap();
            remember_in(folder.path(), acceptance, &text).unwrap();
        };
        assert_eq!(remembered_in(folder.path(), &machine("GPU"), 2), None);
        keep(&acceptance("2026-01-01T00:00:00Z", CheckState::Passed));
        keep(&acceptance("2026-02-01T00:00:00Z", CheckState::Passed));
        keep(&acceptance("2026-03-01T00:00:00Z", CheckState::Skipped));
        std::fs::write(folder.path().join("torn.json"), "{").unwrap();
        let found = remembered_in(folder.path(), &machine("GPU"), 2).expect("one of them");
        assert_eq!(found.date, "2026-02-01T00:00:00Z");
        assert_eq!(remembered_in(folder.path(), &machine("other"), 2), None);
        assert_eq!(remembered_in(folder.path(), &machine("GPU"), 3), None);
    }
}
