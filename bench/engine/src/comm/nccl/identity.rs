//! How ranks agree on what they find each other by in NCCL: over whatever they have met over before.
//!
//! Contract: every rank calls it, on the thread that has the rank's communicator; a rank that cannot go on aborts the job, so that the
//! others hear its words in place of a number. Rank 0 brings its NCCL's version, then the identity's 128 bytes in 16 words.
//! Reference: NCCL user guide, "Creating a Communicator".
use std::ffi::c_char;

use cudarc::nccl::sys::ncclUniqueId as UniqueId;

use super::library::Nccl;
use crate::backend::{BackendError, Result};
use crate::comm::Communicator;

/// Words of an identity.
const WORDS: usize = 16;

/// The identity that rank 0 has made, on every rank. Blocks until all ranks are here.
///
/// # Errors
/// A job that was aborted; an NCCL that makes no identity, or is not rank 0's version. The caller tells the others.
pub(super) fn exchange(control: &mut dyn Communicator, nccl: &dyn Nccl) -> Result<UniqueId> {
    let version = nccl.version().map_err(BackendError::Communication)?;
    let own = if control.rank() == 0 {
        nccl.unique_id().map_err(BackendError::Communication)?
    } else {
        UniqueId { internal: [0; 128] }
    };
    let first = control.agree(version)?;
    if first != version {
        return Err(BackendError::Communication(format!(
            "rank {} has NCCL {} while rank 0 has NCCL {}: ranks must have the same",
            control.rank(),
            dotted(version),
            dotted(first)
        )));
    }
    let mut agreed = [0; WORDS];
    for (word, own) in agreed.iter_mut().zip(words(&own)) {
        *word = control.agree(own)?;
    }
    Ok(identity(&agreed))
}

/// 22809 is 2.28.9.
pub(super) fn dotted(version: u64) -> String {
    format!(
        "{}.{}.{}",
        version / 10_000,
        version / 100 % 100,
        version % 100
    )
}

fn words(id: &UniqueId) -> [u64; WORDS] {
    std::array::from_fn(|word| {
        let bytes = std::array::from_fn(|byte| id.internal[8 * word + byte] as u8);
        u64::from_le_bytes(bytes)
    })
}

fn identity(words: &[u64; WORDS]) -> UniqueId {
    UniqueId {
        internal: std::array::from_fn(|byte| words[byte / 8].to_le_bytes()[byte % 8] as c_char),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_words() {
        let id = UniqueId {
            internal: std::array::from_fn(|byte| (byte * 37 + 200) as u8 as c_char),
        };
        assert_eq!(identity(&words(&id)), id);
        assert_eq!(dotted(22809), "2.28.9");
    }
}
