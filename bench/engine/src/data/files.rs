//! Files of data sets that the user has: which ones a folder must hold, and what is wrong with one.
use std::path::{Path, PathBuf};

use super::idx::IdxError;

/// Why a data set cannot be read from a folder.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file is not there.
    #[error("{} is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// An IDX file is damaged, or another one.
    #[error("{} {source}; get the file again", path.display())]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: IdxError,
    },
    /// A file of records is damaged, or another one.
    #[error("{} {problem}; get the file again", path.display())]
    Records {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Images and labels that do not belong together.
    #[error("{} has {images} images, {} has {labels} labels", images_path.display(), labels_path.display())]
    Count {
        /// The file of images.
        images_path: PathBuf,
        /// Its images.
        images: usize,
        /// The file of labels.
        labels_path: PathBuf,
        /// Its labels.
        labels: usize,
    },
}

/// All bytes of a file that is no larger than `largest`.
pub(super) fn read(path: &Path, largest: u64) -> Result<Vec<u8>, FilesError> {
    use std::io::Read;
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => FilesError::Missing {
            path: path.to_owned(),
        },
        _ => FilesError::Read {
            path: path.to_owned(),
            source,
        },
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(largest + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > largest {
        return Err(FilesError::Records {
            path: path.to_owned(),
            problem: format!("holds more than {largest} bytes, more than any such file"),
        });
    }
    Ok(bytes)
}
