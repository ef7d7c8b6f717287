//! Where the data sets lie that the user has: a scenario's `data.path`, else `SYNCMARK_DATA`, else the known places.
//!
//! Contract: a place that was named is the only one looked at, so that no run takes other data than it was told to.
//! Every rank looks for itself, because agents can be on hosts with other folders. What is missing is said once, before
//! anything runs, together with how to get it.
use std::path::{Path, PathBuf};

use syncmark_engine::data::{cifar10, fashion_mnist};

use crate::plan::config::SourceConfig;

/// Names the folder of data sets.
pub const VARIABLE: &str = "SYNCMARK_DATA";

/// A data set that the user brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataSet {
    /// Four IDX files.
    FashionMnist,
    /// Six files of records.
    Cifar10,
}

/// A data set is in none of the places where it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {} in {}{}", set.name(), places(looked), hint(*python_version))]
pub struct MissingData {
    /// Which.
    pub set: DataSet,
    /// Where it was looked for.
    pub looked: Vec<PathBuf>,
    /// Whether there was CIFAR-10's version for Python, which is another format.
    pub python_version: bool,
}

impl MissingData {
    /// How to get it.
    pub fn help(&self) -> &'static str {
        match self.set {
            DataSet::FashionMnist => {
                "install Debian's package dataset-fashion-mnist, or put the four files (train-images-idx3-ubyte.gz, \
                 train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz) of \
                 https://github.com/zalandoresearch/fashion-mnist into a folder and name it: data.path = \"DIR\" in the \
                 scenario, or SYNCMARK_DATA=DIR. Digits, which need no files: --set 'data.source=\"digits\"'"
            }
            DataSet::Cifar10 => {
                "get the binary version (cifar-10-binary.tar.gz) from https://www.cs.toronto.edu/~kriz/cifar.html, \
                 extract it, and name its folder: data.path = \"DIR/cifar-10-batches-bin\" in the scenario, or \
                 SYNCMARK_DATA=DIR"
            }
        }
    }
}

impl DataSet {
    /// The data set of a source that reads files.
    pub fn of(source: &SourceConfig) -> Option<(Self, Option<&Path>)> {
        match source {
            SourceConfig::FashionMnist { path } => {
                Some((Self::FashionMnist, path.as_deref().map(Path::new)))
            }
            SourceConfig::Cifar10 { path } => Some((Self::Cifar10, path.as_deref().map(Path::new))),
            SourceConfig::Digits
            | SourceConfig::Text { .. }
            | SourceConfig::Synthetic
            | SourceConfig::SyntheticTokens { .. } => None,
        }
    }

    /// As a scenario names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FashionMnist => "fashion-mnist",
            Self::Cifar10 => "cifar10",
        }
    }

    /// Whether its files are in `folder`.
    fn is_in(self, folder: &Path) -> bool {
        match self {
            Self::FashionMnist => fashion_mnist::is_in(folder),
            Self::Cifar10 => cifar10::is_in(folder),
        }
    }

    /// Folders to look in below one that was named: itself, and what people and archives call it.
    fn below(self, folder: &Path) -> Vec<PathBuf> {
        let names: &[&str] = match self {
            Self::FashionMnist => &["fashion-mnist", "FashionMNIST/raw"],
            Self::Cifar10 => &[cifar10::ARCHIVE_FOLDER, "cifar10"],
        };
        let itself = std::iter::once(folder.to_owned());
        itself
            .chain(names.iter().map(|name| folder.join(name)))
            .collect()
    }

    /// Its folder: below `path` where the scenario names one, else below `variable`, else where it is installed.
    ///
    /// # Errors
    /// [`MissingData`] with all places.
    pub fn find(
        self,
        path: Option<&Path>,
        variable: Option<&Path>,
    ) -> Result<PathBuf, MissingData> {
        let looked = match (path.or(variable), self) {
            (Some(folder), _) => self.below(folder),
            (None, Self::FashionMnist) => vec![PathBuf::from(fashion_mnist::DEBIAN_FOLDER)],
            (None, Self::Cifar10) => Vec::new(),
        };
        match looked.iter().find(|folder| self.is_in(folder)) {
            Some(folder) => Ok(folder.clone()),
            None => Err(MissingData {
                set: self,
                python_version: self == Self::Cifar10
                    && looked
                        .iter()
                        .any(|folder| cifar10::is_python_version(folder)),
                looked,
            }),
        }
    }

    /// [`DataSet::find`] with the environment's variable.
    ///
    /// # Errors
    /// [`MissingData`].
    pub fn locate(self, path: Option<&Path>) -> Result<PathBuf, MissingData> {
        let variable = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        self.find(path, variable.as_deref().map(Path::new))
    }
}

fn places(looked: &[PathBuf]) -> String {
    if looked.is_empty() {
        return format!("sight: neither data.path nor {VARIABLE} names a folder");
    }
    let names: Vec<String> = looked
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    names.join(", ")
}

fn hint(python_version: bool) -> &'static str {
    if python_version {
        " (only its version for Python, which is another format)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, b"x").expect("written");
        }
        folder
    }

    #[test]
    fn a_named_folder_is_the_only_one_looked_at() {
        let (named, other) = (
            with(&["FashionMNIST/raw/train-images-idx3-ubyte"]),
            with(&["train-images-idx3-ubyte.gz"]),
        );
        let find = |path, variable| DataSet::FashionMnist.find(path, variable);
        assert_eq!(
            find(Some(named.path()), Some(other.path())),
            Ok(named.path().join("FashionMNIST/raw"))
        );
        assert_eq!(
            find(None, Some(other.path())),
            Ok(other.path().to_path_buf())
        );
        let empty = with(&[]);
        let missing = find(Some(empty.path()), Some(other.path())).expect_err("not there");
        assert_eq!(missing.looked.len(), 3);
        assert!(missing.help().contains("dataset-fashion-mnist"));
    }

    #[test]
    fn the_archive_of_cifar_10_is_found_and_the_wrong_one_is_named() {
        let (binary, python) = (
            with(&["cifar-10-batches-bin/data_batch_1.bin"]),
            with(&["data_batch_1"]),
        );
        assert_eq!(
            DataSet::Cifar10.find(None, Some(binary.path())),
            Ok(binary.path().join("cifar-10-batches-bin"))
        );
        let wrong = DataSet::Cifar10
            .find(Some(python.path()), None)
            .expect_err("another format");
        assert!(wrong.to_string().contains("version for Python"), "{wrong}");
        let nowhere = DataSet::Cifar10.find(None, None).expect_err("nowhere");
        assert_eq!(
            nowhere.to_string(),
            "no cifar10 in sight: neither data.path nor SYNCMARK_DATA names a folder"
        );
    }
}
