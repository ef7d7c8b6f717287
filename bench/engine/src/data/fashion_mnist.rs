//! Fashion-MNIST: 70,000 grey images of 28×28 pixels in ten classes of clothing, from the four IDX files that the user has.
//!
//! The files are found under their published names, compressed or not. Debian's package `dataset-fashion-mnist` installs
//! them into [`DEBIAN_FOLDER`]. MNIST and its other successors of the same shape can be read as well.
//! Reference: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
//! Algorithms", arXiv 1708.07747 (MIT licence).
use std::path::{Path, PathBuf};

use super::files::{self, FilesError};
use super::idx::{self, Idx, IdxError};
use super::{Pixels, Split};
use crate::shape::Shape;

/// Where Debian's package puts the files.
pub const DEBIAN_FOLDER: &str = "/usr/share/datasets/fashion-mnist";
/// Per-sample shape, NCHW without N.
pub const SHAPE: [usize; 3] = [1, SIDE, SIDE];
/// Kinds of clothing.
pub const CLASSES: usize = 10;
/// Images for training.
pub const TRAINING: usize = 60_000;
const SIDE: usize = 28;

/// The published names of images and labels for training and for testing.
const NAMES: [[&str; 2]; 2] = [
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"],
    ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"],
];

/// Whether `folder` holds a file of training images.
pub fn is_in(folder: &Path) -> bool {
    file(folder, NAMES[0][0]).is_file()
}

/// Reads the images of `split` from the files in `folder`.
///
/// # Errors
/// [`FilesError`] that names the file and what is wrong with it.
pub fn open(folder: &Path, split: Split) -> Result<Pixels, FilesError> {
    let parts = match split {
        Split::Train => &NAMES[..1],
        Split::Test => &NAMES[1..],
        Split::All => &NAMES[..],
    };
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for [images, their_labels] in parts {
        let (images_path, labels_path) = (file(folder, images), file(folder, their_labels));
        let part = parsed(&images_path, images_of)?;
        let of_part = parsed(&labels_path, labels_of)?;
        let (count, labelled) = (part.dimensions[0] as usize, of_part.data.len());
        if count != labelled {
            return Err(FilesError::Count {
                images_path,
                images: count,
                labels_path,
                labels: labelled,
            });
        }
        pixels.extend(part.data);
        labels.extend(of_part.data);
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

/// Images from the bytes of an IDX file, compressed or not.
///
/// # Errors
/// [`IdxError`].
pub fn images_of(bytes: &[u8]) -> Result<Idx, IdxError> {
    let side = Some(SIDE as u32);
    idx::read(bytes, &[None, side, side], u8::MAX)
}

/// Labels from the bytes of an IDX file, compressed or not.
///
/// # Errors
/// [`IdxError`].
pub fn labels_of(bytes: &[u8]) -> Result<Idx, IdxError> {
    idx::read(bytes, &[None], CLASSES as u8 - 1)
}

/// The compressed file where there is one, else the plain one.
fn file(folder: &Path, name: &str) -> PathBuf {
    let plain = folder.join(name);
    let compressed = folder.join(format!("{name}.gz"));
    if plain.is_file() { plain } else { compressed }
}

fn parsed(path: &Path, parse: impl Fn(&[u8]) -> Result<Idx, IdxError>) -> Result<Idx, FilesError> {
    let bytes = files::read(path, idx::LARGEST)?;
    parse(&bytes).map_err(|source| FilesError::Idx {
        path: path.to_owned(),
        source,
    })
}
