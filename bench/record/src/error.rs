//! What can go wrong while a run folder is read or written, with the place and the way out.
//!
//! Contract: every variant names the path; messages are lower-case fragments that fit after "failed to run: ".
use std::{io, path::PathBuf};

/// An error of a run folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The path does not exist.
    #[error(
        "no run folder at {path}: give the folder that `syncmark run` printed, such as reports/quickstart-…"
    )]
    Missing {
        /// The path asked for.
        path: PathBuf,
    },
    /// The path is a file or something else.
    #[error("{path} is not a folder: give a run folder, not one of its files")]
    NotAFolder {
        /// The path asked for.
        path: PathBuf,
    },
    /// A new run would overwrite the records of an older one.
    #[error("{path} already holds records ({file}): give another --out")]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// A record file found in it.
        file: &'static str,
    },
    /// The folder has neither trials nor repeats.
    #[error(
        "{path} holds no records: neither trials.csv nor repeats.csv has a row, so there is nothing to report"
    )]
    NoRecords {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{action} {path}: {}{}", explain(source), kept.as_deref().map(|k| format!("; {k}")).unwrap_or_default())]
    Io {
        /// `create`, `write`, `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
        /// What of the run is still on disk.
        kept: Option<String>,
    },
    /// A cell does not hold what its column must hold.
    #[error("{path}, line {line}{}: {message}", column.as_deref().map(|c| format!(", column `{c}`")).unwrap_or_default())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1, the header included.
        line: u64,
        /// Name of the column, where one is to blame.
        column: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// Rows would be appended below another header.
    #[error(
        "{path} has other columns than this version writes (first difference: {difference}); start a new folder instead of resuming this one"
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// The first column that differs.
        difference: String,
    },
    /// A JSON file does not parse.
    #[error("{path}, line {line}, column {column}: {message}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The folder was written by a newer syncmark.
    #[error(
        "{path} has format version {found}, and this syncmark reads up to {supported}: use the syncmark that wrote it, or a newer one"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Newest version that can be read.
        supported: u32,
    },
}

impl FolderError {
    /// An [`FolderError::Io`] without a note on what was kept.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io {
            action,
            path: path.into(),
            source,
            kept: None,
        }
    }
}

/// Puts the common kinds of an I/O error into words that say what to do.
fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            "the disk is full; free some space or give --out on another disk".into()
        }
        io::ErrorKind::QuotaExceeded => {
            "the disk quota is used up; free some space or give --out elsewhere".into()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; give --out a folder that you may write to".into()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the file system is read-only; give --out a folder on another one".into()
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_what_to_do_and_what_was_kept() {
        let error = FolderError::Io {
            action: "write",
            path: "out/steps.csv".into(),
            source: io::Error::from(io::ErrorKind::StorageFull),
            kept: Some("7 repeats are kept".into()),
        };
        assert_eq!(
            error.to_string(),
            "write out/steps.csv: the disk is full; free some space or give --out on another disk; 7 repeats are kept"
        );
    }
}
