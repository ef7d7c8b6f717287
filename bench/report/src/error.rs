//! What can go wrong between a run folder and its report.
use std::{io, path::PathBuf};

use syncmark_record::FolderError;

use crate::chart::raster::RasterError;

/// An error of the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The run folder cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The scenario in the run folder is no TOML.
    #[error("{path}: {message}")]
    Scenario {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the place.
        message: String,
    },
    /// A chart cannot become a PNG.
    #[error("chart {name}: {source}")]
    Raster {
        /// File stem of the chart.
        name: String,
        /// Why.
        source: RasterError,
    },
    /// A file of the report cannot be written.
    #[error(
        "write {path}: {source}; the records are untouched, so `syncmark report` can be run again"
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}
