//! One CSV file of a run folder: its columns, a streaming reader and an appending writer.
//!
//! Contract: one row is one line, and a row counts once its line end is on disk. A last line that an interruption
//! tore is left out by the reader and cut off by the writer, so it can neither be misread nor swallow the next row.
//! Reference: RFC 4180.
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Take, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    columns::columns,
    error::FolderError,
    only::{Only, Wanted},
    rows,
};

/// A row type that has a file of its own.
pub trait Row: Serialize + DeserializeOwned {
    /// Name of the file in the run folder.
    const FILE: &'static str;
}

macro_rules! files {
    ($($row:ident => $file:literal),+ $(,)?) => {$(impl Row for rows::$row { const FILE: &'static str = $file; })+};
}
files! {
    TrialRow => "trials.csv", RepeatRow => "repeats.csv", StepRow => "steps.csv", PhaseRow => "phases.csv",
    CommRow => "comm.csv", DeviceRow => "devices.csv", LearningRow => "learning.csv", GateRow => "gates.csv",
    CollectiveRow => "collectives.csv", LayerRow => "layers.csv", CompressionRow => "compression.csv",
    CeilingRow => "ceilings.csv", NormStatisticsRow => "norm_statistics.csv",
    GpuRow => "gpus.csv", AlgorithmRow => "algorithms.csv",
}

/// Length of the file up to and including its last line end, and its whole length.
pub(crate) fn complete_length(file: &mut File) -> std::io::Result<(u64, u64)> {
    let total = file.seek(SeekFrom::End(0))?;
    let mut end = total;
    let mut block = [0u8; 8192];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(at) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok((start + at as u64 + 1, total));
        }
        end = start;
    }
    Ok((0, total))
}

/// The rows of one file, read one at a time.
pub struct Rows<R> {
    path: PathBuf,
    reader: Option<csv::Reader<Only<Take<File>>>>,
    headers: csv::StringRecord,
    record: csv::StringRecord,
    torn: bool,
    row: PhantomData<R>,
}

impl<R: Row> Rows<R> {
    /// Opens `folder`'s file of this row type. A file that does not exist has no rows.
    ///
    /// # Errors
    /// [`FolderError::Io`] when the file cannot be read, [`FolderError::Row`] when its header is no CSV.
    pub fn open(folder: &Path) -> Result<Self, FolderError> {
        Self::open_where(folder, None)
    }

    /// As [`Rows::open`], but only rows with this value in this column, if one is given. The others are not even parsed, so a
    /// mistake in them is not found.
    ///
    /// # Errors
    /// As [`Rows::open`].
    pub fn open_where(
        folder: &Path,
        wanted: Option<(&str, &'static str)>,
    ) -> Result<Self, FolderError> {
        let path = folder.join(R::FILE);
        let mut rows = Self {
            path,
            reader: None,
            headers: Default::default(),
            record: Default::default(),
            torn: false,
            row: PhantomData,
        };
        let mut file = match File::open(&rows.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(rows),
            opened => opened.map_err(|error| FolderError::io("read", &rows.path, error))?,
        };
        let (complete, total) = complete_length(&mut file)
            .and_then(|lengths| file.rewind().map(|()| lengths))
            .map_err(|error| FolderError::io("read", &rows.path, error))?;
        rows.torn = complete < total;
        let wanted = wanted
            .map(|(column, value)| Wanted::by_header(&mut file, column, value))
            .transpose()
            .map_err(|error| FolderError::io("read", &rows.path, error))?
            .flatten();
        let mut reader = csv::Reader::from_reader(Only::new(file.take(complete), wanted));
        rows.headers = reader
            .headers()
            .map_err(|error| row_error(&rows.path, &rows.headers, error, |line| line))?
            .clone();
        rows.reader = Some(reader);
        Ok(rows)
    }

    /// Whether the file ended in a torn row, which was left out.
    pub fn torn(&self) -> bool {
        self.torn
    }

    fn advance(&mut self) -> Result<Option<R>, FolderError> {
        let Some(reader) = &mut self.reader else {
            return Ok(None);
        };
        let row = match reader.read_record(&mut self.record) {
            Ok(false) => return Ok(None),
            Ok(true) => self.record.deserialize(Some(&self.headers)),
            Err(error) => Err(error),
        };
        let line = |line| reader.get_ref().line(line);
        row.map(Some)
            .map_err(|error| row_error(&self.path, &self.headers, error, line))
    }
}

impl<R: Row> Iterator for Rows<R> {
    type Item = Result<R, FolderError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if matches!(next, None | Some(Err(_))) {
            self.reader = None;
        }
        next
    }
}

/// Turns an error of the CSV reader into one that names line and column.
fn row_error(
    path: &Path,
    headers: &csv::StringRecord,
    error: csv::Error,
    line_in_file: impl Fn(u64) -> u64,
) -> FolderError {
    let line = line_in_file(error.position().map_or(1, csv::Position::line));
    let (column, message) = match error.into_kind() {
        csv::ErrorKind::Io(source) => return FolderError::io("read", path, source),
        csv::ErrorKind::Deserialize { err, .. } => {
            let column = err
                .field()
                .and_then(|field| headers.get(field as usize))
                .map(str::to_string);
            (column, err.kind().to_string())
        }
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => (
            None,
            format!("the row has {len} cells where the header has {expected_len}"),
        ),
        csv::ErrorKind::Utf8 { err, .. } => (
            headers.get(err.field()).map(str::to_string),
            "the cell is not UTF-8".to_string(),
        ),
        other => (None, format!("{other:?}")),
    };
    FolderError::Row {
        path: path.into(),
        line,
        column,
        message,
    }
}

/// Renders rows as CSV text, with or without the header row.
pub(crate) fn encode<R: Row>(rows: &[R], header: bool) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(Vec::new());
    let infallible = "writing flat rows into memory cannot fail";
    if header {
        writer.write_record(columns::<R>()).expect(infallible);
    }
    for row in rows {
        writer.serialize(row).expect(infallible);
    }
    one_line_a_row(writer.into_inner().expect(infallible))
}

/// Replaces line breaks inside cells (an error text can have them) by spaces, so that a line is always a row.
fn one_line_a_row(mut text: Vec<u8>) -> Vec<u8> {
    let mut quoted = false;
    for byte in &mut text {
        match *byte {
            b'"' => quoted = !quoted,
            b'\n' | b'\r' if quoted => *byte = b' ',
            _ => {}
        }
    }
    text
}

/// Appends whole blocks of rows to one file.
pub(crate) struct Appender<R> {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    row: PhantomData<R>,
}

impl<R: Row> Appender<R> {
    /// Prepares to append to `folder`'s file; the file itself is made by the first rows.
    /// A torn last row is cut off and an existing header is checked.
    pub(crate) fn open(folder: &Path) -> Result<Self, FolderError> {
        let path = folder.join(R::FILE);
        if !path.exists() {
            return Ok(Self {
                path,
                file: None,
                length: 0,
                row: PhantomData,
            });
        }
        check_header::<R>(folder)?;
        let io = |error| FolderError::io("write", &path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(io)?;
        let (complete, total) = complete_length(&mut file).map_err(io)?;
        if complete < total {
            file.set_len(complete).map_err(io)?;
        }
        file.seek(SeekFrom::Start(complete)).map_err(io)?;
        Ok(Self {
            path,
            file: Some(file),
            length: complete,
            row: PhantomData,
        })
    }

    /// Appends rows and hands them to the operating system. Returns the path and error of a failure.
    pub(crate) fn append(&mut self, rows: &[R]) -> Result<(), FolderError> {
        let text = encode(rows, self.length == 0);
        let io = |error| FolderError::io("write", self.path.clone(), error);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::create(&self.path).map_err(io)?),
        };
        file.write_all(&text).map_err(io)?;
        self.length += text.len() as u64;
        Ok(())
    }

    /// As [`Appender::append`], but a file without any rows is not made.
    pub(crate) fn append_some(&mut self, rows: &[R]) -> Result<(), FolderError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.append(rows)
    }

    /// The present length, for [`Appender::cut`].
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Takes back everything after `length`. Shortening a file works on a full disk, too.
    pub(crate) fn cut(&mut self, length: u64) {
        if let Some(file) = &mut self.file
            && file
                .set_len(length)
                .and_then(|()| file.seek(SeekFrom::Start(length)))
                .is_ok()
        {
            self.length = length;
        }
    }
}

/// Checks that an existing file has exactly the columns that this version writes.
fn check_header<R: Row>(folder: &Path) -> Result<(), FolderError> {
    let rows = Rows::<R>::open(folder)?;
    let expected = columns::<R>();
    if rows.headers.is_empty() || rows.headers.iter().eq(expected.iter().copied()) {
        return Ok(());
    }
    let at = (0..)
        .find(|&i| rows.headers.get(i) != expected.get(i).copied())
        .unwrap_or(0);
    let difference = format!(
        "`{}` where `{}` is expected",
        rows.headers.get(at).unwrap_or("nothing"),
        expected.get(at).unwrap_or(&"nothing")
    );
    Err(FolderError::Header {
        path: rows.path,
        difference,
    })
}
