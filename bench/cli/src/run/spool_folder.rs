//! The spools of one job on disk: made with all their blocks before its processes start, gone after recording.
//!
//! Contract: the folder is new, holds nothing but spools, and is removed when the value is dropped.
use std::path::{Path, PathBuf};

use super::spool::{Event, Reader, SpoolError, Writer};

/// A folder with one spool per rank.
#[derive(Debug)]
pub struct SpoolFolder {
    path: PathBuf,
    spools: Vec<PathBuf>,
}

impl SpoolFolder {
    /// Makes `root/name` with `ranks` spools of `capacity` events. What an earlier, killed run left there is replaced.
    ///
    /// # Errors
    /// [`SpoolError::Io`]; nothing is left behind then.
    pub fn create(
        root: &Path,
        name: &str,
        ranks: usize,
        capacity: usize,
    ) -> Result<Self, SpoolError> {
        let path = root.join(name);
        let _ = std::fs::remove_dir_all(&path);
        let io = |source| SpoolError::Io {
            what: "create the folder of",
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(&path).map_err(io)?;
        let spools = (0..ranks)
            .map(|rank| path.join(format!("rank{rank}.spool")))
            .collect();
        let folder = Self { path, spools };
        for spool in &folder.spools {
            Writer::create(spool, capacity)?;
        }
        Ok(folder)
    }

    /// Paths in rank order.
    pub fn spools(&self) -> &[PathBuf] {
        &self.spools
    }

    /// What each rank has written so far, and how many events found no place.
    ///
    /// # Errors
    /// [`SpoolError`] when a spool has been damaged.
    pub fn read(&self) -> Result<(Vec<Vec<Event>>, u64), SpoolError> {
        let mut dropped = 0;
        let mut events = Vec::with_capacity(self.spools.len());
        for spool in &self.spools {
            let reader = Reader::open(spool)?;
            events.push(reader.events().collect());
            dropped += reader.dropped();
        }
        Ok((events, dropped))
    }

    /// When each rank last said that it is alive; 0 for never, or for a spool that cannot be read.
    pub fn heartbeats_ns(&self) -> Vec<u64> {
        self.spools
            .iter()
            .map(|spool| Reader::open(spool).map_or(0, |reader| reader.heartbeat_ns()))
            .collect()
    }
}

impl Drop for SpoolFolder {
    fn drop(&mut self) {
        // A spool that cannot be removed costs room and nothing else; the next run of the same name replaces it.
        let _ = std::fs::remove_dir_all(&self.path);
        if let Some(root) = self.path.parent() {
            let _ = std::fs::remove_dir(root);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_goes_with_its_value() {
        let root = tempfile::tempdir().unwrap();
        let spool_root = root.path().join(".spool");
        let folder = SpoolFolder::create(&spool_root, "a-0", 2, 4).unwrap();
        let mut writer = Writer::open(&folder.spools()[1]).unwrap();
        (0..5).for_each(|steps| writer.push(Event::Warmup { steps }));
        let (events, dropped) = folder.read().unwrap();
        assert_eq!((events[0].len(), events[1].len(), dropped), (0, 4, 1));
        drop(folder);
        assert!(!spool_root.exists(), "an empty root goes as well");
    }

    #[test]
    fn a_root_that_is_a_file_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = SpoolFolder::create(file.path(), "a-0", 1, 4)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("failed to create the folder of the spool"),
            "{error}"
        );
    }
}
