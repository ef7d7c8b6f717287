//! Taking up a run again: what is left of repeats that did not come to their end is taken out, so that they can be repeated.
//!
//! Contract: each file is replaced in one move; rows that stay keep their bytes' meaning and their order. Files without rows of such
//! repeats are left alone.
use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek},
    path::Path,
};

use crate::{
    error::FolderError,
    folder::RunFolder,
    rows::{
        AlgorithmRow, CeilingRow, CollectiveRow, CommRow, CompressionRow, DeviceRow, GpuRow,
        LayerRow, LearningRow, NormStatisticsRow, PhaseRow, RepeatRow, StepRow,
    },
    table::{Row, complete_length},
};

/// The files that have rows of repeats, `repeats.csv` first: what is taken out of it is known to be no whole repeat.
const FILES: [&str; 13] = [
    RepeatRow::FILE,
    StepRow::FILE,
    PhaseRow::FILE,
    CommRow::FILE,
    DeviceRow::FILE,
    GpuRow::FILE,
    AlgorithmRow::FILE,
    LearningRow::FILE,
    NormStatisticsRow::FILE,
    CollectiveRow::FILE,
    LayerRow::FILE,
    CeilingRow::FILE,
    CompressionRow::FILE,
];

/// Trial and repeat.
pub type RepeatKey = (String, u32);

impl RunFolder {
    /// Takes the rows of all repeats but `kept` out of every file. Gives the number of rows that were taken out.
    ///
    /// # Errors
    /// [`FolderError::Io`], [`FolderError::Row`]; the file at hand is then as it was.
    pub fn keep_repeats(&self, kept: &BTreeSet<RepeatKey>) -> Result<u64, FolderError> {
        FILES
            .iter()
            .map(|name| keep_in(&self.path().join(name), kept))
            .sum()
    }
}

fn keep_in(path: &Path, kept: &BTreeSet<RepeatKey>) -> Result<u64, FolderError> {
    if !path.exists() {
        return Ok(0);
    }
    let read = |error| FolderError::io("read", path, error);
    let mut file = File::open(path).map_err(read)?;
    let (complete, total) = complete_length(&mut file).map_err(read)?;
    let mut removed = 0;
    let mut count = |row: &csv::StringRecord, columns: [usize; 2]| {
        let stays = is_kept(row, columns, kept);
        removed += u64::from(!stays);
        stays
    };
    // Most files of most runs have nothing to lose: they are only read.
    copy(&mut file, complete, path, None, &mut count)?;
    if removed == 0 && complete == total {
        return Ok(0);
    }
    let draft = path.with_extension("csv.part");
    let written = (|| {
        let to = File::create(&draft).map_err(|error| FolderError::io("write", &draft, error))?;
        copy(&mut file, complete, path, Some(&to), &mut |row, columns| {
            is_kept(row, columns, kept)
        })?;
        to.sync_data()
            .and_then(|()| std::fs::rename(&draft, path))
            .map_err(|error| FolderError::io("write", path, error))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written.map(|()| removed)
}

fn is_kept(
    row: &csv::StringRecord,
    [trial, repeat]: [usize; 2],
    kept: &BTreeSet<RepeatKey>,
) -> bool {
    let key = row
        .get(trial)
        .zip(row.get(repeat).and_then(|repeat| repeat.parse().ok()));
    key.is_some_and(|(trial, repeat)| kept.contains(&(trial.to_owned(), repeat)))
}

/// Goes through the rows of a file, and writes those that `stays` says.
fn copy(
    file: &mut File,
    complete: u64,
    path: &Path,
    to: Option<&File>,
    stays: &mut dyn FnMut(&csv::StringRecord, [usize; 2]) -> bool,
) -> Result<(), FolderError> {
    let failed = |error: csv::Error| {
        let line = error.position().map_or(1, csv::Position::line);
        match error.into_kind() {
            csv::ErrorKind::Io(source) => FolderError::io("read", path, source),
            other => FolderError::Row {
                path: path.to_owned(),
                line,
                column: None,
                message: format!("{other:?}"),
            },
        }
    };
    file.rewind()
        .map_err(|error| FolderError::io("read", path, error))?;
    let mut reader = csv::Reader::from_reader(BufReader::new(file.take(complete)));
    let headers = reader.headers().map_err(failed)?.clone();
    let column = |name: &str| headers.iter().position(|header| header == name);
    let Some(columns) = column("trial").zip(column("repeat")) else {
        return Ok(());
    };
    let sink: Box<dyn io::Write> = match to {
        Some(to) => Box::new(BufWriter::new(to)),
        None => Box::new(io::sink()),
    };
    let mut writer = csv::Writer::from_writer(sink);
    writer.write_record(&headers).map_err(failed)?;
    let mut row = csv::StringRecord::new();
    while reader.read_record(&mut row).map_err(failed)? {
        if stays(&row, columns.into()) {
            writer.write_record(&row).map_err(failed)?;
        }
    }
    writer
        .flush()
        .map_err(|error| FolderError::io("write", path, error))
}
