//! IDX files of unsigned bytes, plain or gzip-compressed: the format of MNIST and its successors.
//!
//! Contract: whatever the bytes, reading ends in the data or in an [`IdxError`] that says what is wrong; memory grows
//! with what is there, never with what a header claims, and never beyond [`LARGEST`].
//! Reference: "The IDX file format" in Y. LeCun's description of MNIST.
use std::io::{self, Read};

use flate2::bufread::GzDecoder;

/// More bytes of data than this are refused: ten times the largest file of this family.
pub const LARGEST: u64 = 1 << 30;
/// First bytes of a gzip file (RFC 1952).
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Type of the elements: unsigned bytes.
const UNSIGNED_BYTE: u8 = 8;

/// Why bytes are not the IDX file that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdxError {
    /// Not an IDX file of unsigned bytes with so many dimensions.
    #[error(
        "begins with {found:02x?}, not with {expected:02x?}: no IDX file of unsigned bytes with {} dimensions", expected[3]
    )]
    Magic {
        /// The first bytes, at most four.
        found: Vec<u8>,
        /// Two zeros, the type, the number of dimensions.
        expected: [u8; 4],
    },
    /// Another size than expected.
    #[error("has dimensions {found:?}, expected {}", sizes(expected))]
    Dimensions {
        /// By the header.
        found: Vec<u32>,
        /// What would do; `None` is any size.
        expected: Vec<Option<u32>>,
    },
    /// A header that claims more than any file of this family holds.
    #[error("claims {0:?} bytes, more than any such file holds")]
    TooLarge(Vec<u32>),
    /// Cut off, or something follows.
    #[error("holds {found} bytes after the header, which says {expected}")]
    Length {
        /// There; where more follow, one more than expected.
        found: u64,
        /// By the header.
        expected: u64,
    },
    /// A value out of range.
    #[error("value {value} at offset {offset} is larger than {largest}")]
    Value {
        /// The value.
        value: u8,
        /// Where, after the header.
        offset: usize,
        /// The largest allowed.
        largest: u8,
    },
    /// It cannot be decompressed: damaged or cut off.
    #[error("cannot be decompressed: {0}")]
    Unreadable(String),
}

/// Dimensions and elements of an IDX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// Outermost first.
    pub dimensions: Vec<u32>,
    /// Row-major.
    pub data: Vec<u8>,
}

/// Reads an IDX file, decompressing it where it is gzip. `dimensions` are the sizes that it must have (`None`: any),
/// `largest` is the largest element allowed.
///
/// # Errors
/// [`IdxError`].
pub fn read(bytes: &[u8], dimensions: &[Option<u32>], largest: u8) -> Result<Idx, IdxError> {
    let idx = if bytes.starts_with(&GZIP) {
        parse(GzDecoder::new(bytes), dimensions)?
    } else {
        parse(bytes, dimensions)?
    };
    match idx.data.iter().position(|value| *value > largest) {
        Some(offset) => Err(IdxError::Value {
            value: idx.data[offset],
            offset,
            largest,
        }),
        None => Ok(idx),
    }
}

fn parse(mut from: impl Read, dimensions: &[Option<u32>]) -> Result<Idx, IdxError> {
    let expected = [0, 0, UNSIGNED_BYTE, dimensions.len() as u8];
    let magic = take(&mut from, 4)?;
    if magic != expected {
        return Err(IdxError::Magic {
            found: magic,
            expected,
        });
    }
    let header = take(&mut from, 4 * dimensions.len() as u64)?;
    let found: Vec<u32> = header
        .chunks_exact(4)
        .map(|size| u32::from_be_bytes([size[0], size[1], size[2], size[3]]))
        .collect();
    let fits = found.len() == dimensions.len()
        && found
            .iter()
            .zip(dimensions)
            .all(|(size, wanted)| wanted.is_none_or(|wanted| wanted == *size));
    if !fits {
        return Err(IdxError::Dimensions {
            found,
            expected: dimensions.to_vec(),
        });
    }
    let product = |all: &[u32]| {
        all.iter()
            .try_fold(1_u64, |all, size| all.checked_mul(u64::from(*size)))
    };
    let expected = match product(&found).filter(|bytes| *bytes <= LARGEST) {
        Some(bytes) => bytes,
        None => return Err(IdxError::TooLarge(found)),
    };
    // One byte more than there may be, so that something behind the data is noticed.
    let data = take(&mut from, expected + 1)?;
    if data.len() as u64 != expected {
        return Err(IdxError::Length {
            found: data.len() as u64,
            expected,
        });
    }
    Ok(Idx {
        dimensions: found,
        data,
    })
}

/// At most `limit` bytes; fewer where the source ends.
fn take(from: &mut impl Read, limit: u64) -> Result<Vec<u8>, IdxError> {
    let mut bytes = Vec::new();
    match from.take(limit).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(IdxError::Unreadable("it is cut off".to_owned()))
        }
        Err(error) => Err(IdxError::Unreadable(error.to_string())),
    }
}

fn sizes(expected: &[Option<u32>]) -> String {
    let sizes: Vec<String> = expected
        .iter()
        .map(|size| size.map_or_else(|| "any".to_owned(), |size| size.to_string()))
        .collect();
    format!("[{}]", sizes.join(", "))
}
