//! CIFAR-10: 60,000 colour images of 32×32 pixels in ten classes, from the files of its "binary version", which the user has.
//!
//! A record is a label and 3072 pixels: 1024 red, 1024 green, 1024 blue, each row by row. Six files of 10,000 records;
//! shorter ones of whole records are read too. The files have no header, so their length is all that can be checked.
//! Reference: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, and the page of the data set.
use std::path::{Path, PathBuf};

use super::files::{self, FilesError};
use super::{Pixels, Split};
use crate::shape::Shape;

/// Folder inside of the published archive.
pub const ARCHIVE_FOLDER: &str = "cifar-10-batches-bin";
/// Per-sample shape, NCHW without N.
pub const SHAPE: [usize; 3] = [CHANNELS, SIDE, SIDE];
/// Kinds of things.
pub const CLASSES: usize = 10;
/// Images for training.
pub const TRAINING: usize = 50_000;
const CHANNELS: usize = 3;
const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + CHANNELS * PLANE;
/// Ten times what a published file holds.
const LARGEST: u64 = 10 * 10_000 * RECORD as u64;

const TRAIN_FILES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];
const TEST_FILE: &str = "test_batch.bin";

/// Whether `folder` holds a file of training images.
pub fn is_in(folder: &Path) -> bool {
    folder.join(TRAIN_FILES[0]).is_file()
}

/// Whether `folder` holds the version for Python, which is another format.
pub fn is_python_version(folder: &Path) -> bool {
    folder.join("data_batch_1").is_file()
}

/// Reads the images of `split` from the files in `folder`.
///
/// # Errors
/// [`FilesError`] that names the file and what is wrong with it.
pub fn open(folder: &Path, split: Split) -> Result<Pixels, FilesError> {
    let test = split != Split::Train;
    let train = split != Split::Test;
    let names = TRAIN_FILES
        .iter()
        .filter(|_| train)
        .chain(test.then_some(&TEST_FILE));
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for name in names {
        let path: PathBuf = folder.join(name);
        let bytes = files::read(&path, LARGEST)?;
        records(&bytes, &mut pixels, &mut labels)
            .map_err(|problem| FilesError::Records { path, problem })?;
    }
    let [c, h, w] = SHAPE;
    Ok(Pixels::new(
        Shape::Image { c, h, w },
        CLASSES,
        u8::MAX,
        pixels,
        labels,
    ))
}

/// Appends the images (NHWC) and labels of a file's bytes.
///
/// # Errors
/// What is wrong, in words that follow the file's name; nothing is appended then.
pub fn records(bytes: &[u8], pixels: &mut Vec<u8>, labels: &mut Vec<u8>) -> Result<(), String> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return Err("is compressed: extract the archive first".to_owned());
    }
    let (records, rest) = bytes.as_chunks::<RECORD>();
    if records.is_empty() || !rest.is_empty() {
        return Err(format!(
            "holds {} bytes, which is no whole number of records of {RECORD} bytes: cut off, or not the binary version",
            bytes.len()
        ));
    }
    if let Some(index) = records
        .iter()
        .position(|record| usize::from(record[0]) >= CLASSES)
    {
        return Err(format!(
            "has label {} in record {index}, and labels end at {}: not the binary version",
            records[index][0],
            CLASSES - 1
        ));
    }
    for record in records {
        labels.push(record[0]);
        let planes = &record[1..];
        pixels.extend((0..PLANE).flat_map(|at| (0..CHANNELS).map(move |c| planes[c * PLANE + at])));
    }
    Ok(())
}
