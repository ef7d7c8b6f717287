//! Whether what a strategy trained agrees with what one device trained.
//!
//! Contract: each rank dumped its parameters, buffers and optimizer state as `before.<name>` and `after.<name>`. Compared
//! are the *updates*, tensor by tensor and norm-wise, because a parameter that hardly moved agrees with any other to many
//! digits. All ranks of DDP must hold the same bits. Reference: SEMANTICS of the gates in METHODOLOGY.md.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// An update is compared with at least this share of the tensor's own norm: rounding of the parameter that carries it
/// (6e-8 of its norm) must stay well below the tolerances of [`super::gate::STAGES`].
const FLOOR: f64 = 3e-4;

/// Why two sides could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    /// A dump cannot be read.
    #[error("failed to read the dump {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A dump is not what it should be.
    #[error("the dump {} is not usable: {what}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// In what way.
        what: String,
    },
}

/// How far two sides agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Tensors compared.
    pub tensors: usize,
    /// The one with the largest error.
    pub worst_tensor: Option<String>,
    /// Its error.
    pub error: f64,
    /// Whether all ranks hold the same bits; `None` with one dump.
    pub bit_equal: Option<bool>,
    /// What is wrong, in words; `None` when they agree.
    pub complaint: Option<String>,
    /// Whether all that is wrong is that `error` is too large.
    pub only_error: bool,
}

/// The values of one tensor. Integers are counters and compared exactly.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// What one rank wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dump {
    before: BTreeMap<String, Values>,
    after: BTreeMap<String, Values>,
}

impl Dump {
    /// Reads a dump.
    ///
    /// # Errors
    /// [`AgreementError`].
    pub fn read(path: &Path) -> Result<Self, AgreementError> {
        let bytes = std::fs::read(path).map_err(|source| AgreementError::Io {
            path: path.to_owned(),
            source,
        })?;
        let format = |what: String| AgreementError::Format {
            path: path.to_owned(),
            what,
        };
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|error| format(error.to_string()))?;
        let mut dump = Self::default();
        for (name, view) in tensors.tensors() {
            // SyncBatchNorm is gated against BatchNorm over the whole batch, whose tensors are its own but for the name.
            let name = name.replace(".sync-batch-norm.", ".batch-norm.");
            let values = Values::decode(view.dtype(), view.data()).ok_or_else(|| {
                format(format!(
                    "tensor {name} has type {:?}, not f32 or i64",
                    view.dtype()
                ))
            })?;
            match name.split_once('.') {
                Some(("before", name)) => dump.before.insert(name.to_owned(), values),
                Some(("after", name)) => dump.after.insert(name.to_owned(), values),
                _ => {
                    return Err(format(format!(
                        "tensor {name} begins with neither `before.` nor `after.`"
                    )));
                }
            };
        }
        Ok(dump)
    }
}

impl Values {
    fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        Some(match dtype {
            // By arrays: millions of values are read, and a check of each slice's length is most of the time where little is inlined.
            Dtype::F32 => {
                let (values, _) = bytes.as_chunks();
                Self::Floats(values.iter().copied().map(f32::from_le_bytes).collect())
            }
            Dtype::I64 => {
                let (values, _) = bytes.as_chunks();
                Self::Integers(values.iter().copied().map(i64::from_le_bytes).collect())
            }
            _ => return None,
        })
    }

    /// Equality of bits, so that NaN equals itself and 0 differs from −0.
    fn same_bits(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Floats(a), Self::Floats(b)) => a
                .iter()
                .map(|x| x.to_bits())
                .eq(b.iter().map(|x| x.to_bits())),
            (Self::Integers(a), Self::Integers(b)) => a == b,
            _ => false,
        }
    }
}

/// Compares rank 0 with the reference, to a norm-wise relative error of `tolerance` per tensor, and the other ranks with
/// rank 0, bit by bit.
pub fn compare(reference: &Dump, ranks: &[Dump], tolerance: f64) -> Agreement {
    let mut agreement = Agreement {
        tensors: 0,
        worst_tensor: None,
        error: 0.0,
        bit_equal: None,
        complaint: None,
        only_error: false,
    };
    let Some(first) = ranks.first() else {
        agreement.complaint = Some("no rank wrote a dump".into());
        return agreement;
    };
    agreement.complaint = compare_tensors(reference, first, tolerance, &mut agreement);
    if ranks.len() > 1 {
        let differing = ranks[1..]
            .iter()
            .zip(1..)
            .find_map(|(dump, rank)| Some((rank, differing_tensor(first, dump)?)));
        agreement.bit_equal = Some(differing.is_none());
        agreement.only_error &= differing.is_none();
        if let Some((rank, name)) = differing {
            agreement.complaint.get_or_insert(format!(
                "rank {rank} does not hold the same bits of {name} as rank 0"
            ));
        }
    }
    agreement
}

/// Compares every tensor with the reference; returns what is wrong.
fn compare_tensors(
    reference: &Dump,
    rank: &Dump,
    tolerance: f64,
    agreement: &mut Agreement,
) -> Option<String> {
    if !reference.after.keys().eq(rank.after.keys()) {
        let lacks = |a: &Dump, b: &Dump| {
            a.after
                .keys()
                .find(|name| !b.after.contains_key(*name))
                .cloned()
        };
        let name = lacks(reference, rank)
            .or_else(|| lacks(rank, reference))
            .unwrap_or_default();
        return Some(format!("only one side has a tensor {name}"));
    }
    if let Some((name, _)) = reference
        .before
        .iter()
        .find(|(name, values)| !same_start(rank, name, values))
    {
        return Some(format!(
            "{name} did not begin with the values that it has on one device"
        ));
    }
    let mut moved = false;
    for (name, expected) in &reference.after {
        let (error, update) = update_error(
            reference.before.get(name),
            expected,
            rank.before.get(name),
            &rank.after[name],
        );
        agreement.tensors += 1;
        moved |= update > 0.0;
        if agreement.worst_tensor.is_none() || is_worse(error, agreement.error) {
            agreement.error = error;
            agreement.worst_tensor = Some(name.clone());
        }
    }
    if !moved {
        return Some(
            "the reference did not change any tensor, so there is nothing to agree with".into(),
        );
    }
    let worst = agreement.worst_tensor.as_deref().unwrap_or_default();
    agreement.only_error = is_worse(agreement.error, tolerance);
    agreement.only_error.then(|| {
        format!("the update of {worst} differs from that of one device by {:.1e}, more than {tolerance:.0e}", agreement.error)
    })
}

fn same_start(rank: &Dump, name: &str, expected: &Values) -> bool {
    rank.before
        .get(name)
        .is_some_and(|values| values.same_bits(expected))
}

/// Whether `error` is larger than `other`; NaN is larger than everything but itself.
fn is_worse(error: f64, other: f64) -> bool {
    !other.is_nan() && (error.is_nan() || error > other)
}

/// Norm-wise relative error of a tensor's update, and the norm of the reference's update.
fn update_error(
    before: Option<&Values>,
    expected: &Values,
    rank_before: Option<&Values>,
    actual: &Values,
) -> (f64, f64) {
    match (expected, actual) {
        (Values::Integers(a), Values::Integers(b)) => {
            (if a == b { 0.0 } else { f64::INFINITY }, 0.0)
        }
        (Values::Floats(a), Values::Floats(b)) if a.len() == b.len() => {
            let (start, rank_start) = (floats(before), floats(rank_before));
            // A tensor without a beginning (momentum) began as zero.
            let at = |values: &[f32], i: usize| f64::from(values.get(i).copied().unwrap_or(0.0));
            let (mut difference, mut update, mut size) = (0.0, 0.0, 0.0);
            for i in 0..a.len() {
                let delta = f64::from(a[i]) - at(start, i);
                let rank_delta = f64::from(b[i]) - at(rank_start, i);
                difference += (rank_delta - delta).powi(2);
                update += delta.powi(2);
                size += f64::from(a[i]).powi(2);
            }
            let scale = update.sqrt().max(FLOOR * size.sqrt());
            (
                if difference == 0.0 {
                    0.0
                } else {
                    difference.sqrt() / scale
                },
                update.sqrt(),
            )
        }
        _ => (f64::INFINITY, 0.0),
    }
}

fn floats(values: Option<&Values>) -> &[f32] {
    match values {
        Some(Values::Floats(values)) => values,
        _ => &[],
    }
}

/// The first tensor whose bits differ. Buffers are left out: a rank's own running statistics are replaced by rank 0's at
/// the next forward, as in PyTorch.
fn differing_tensor(first: &Dump, other: &Dump) -> Option<String> {
    let trained = |dump: &Dump| {
        dump.after
            .keys()
            .filter(|name| !is_buffer(name))
            .cloned()
            .collect::<Vec<_>>()
    };
    let names = trained(first);
    if names != trained(other) {
        return Some("some tensor".into());
    }
    names
        .into_iter()
        .find(|name| !first.after[name].same_bits(&other.after[name]))
}

fn is_buffer(name: &str) -> bool {
    [".running_mean", ".running_var", ".num_batches_tracked"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(reference: &Dump, ranks: &[Dump]) -> Agreement {
        compare(reference, ranks, 1e-3)
    }

    fn dump(tensors: &[(&str, [f32; 2])]) -> Dump {
        let side = |values: fn([f32; 2]) -> [f32; 2]| {
            tensors
                .iter()
                .map(|&(name, v)| (name.to_owned(), Values::Floats(values(v).to_vec())))
                .collect()
        };
        Dump {
            before: side(|_| [1.0, 1.0]),
            after: side(|v| v),
        }
    }

    #[test]
    fn equal_updates_agree() {
        let reference = dump(&[("0.weight", [1.5, 0.5]), ("1.weight", [2.0, 1.0])]);
        let agreement = judged(&reference, &[reference.clone(), reference.clone()]);
        assert_eq!(
            (agreement.complaint, agreement.bit_equal, agreement.tensors),
            (None, Some(true), 2)
        );
    }

    #[test]
    fn a_small_error_of_a_large_parameter_is_a_large_error_of_its_update() {
        let reference = dump(&[("0.weight", [1.01, 1.0])]);
        let agreement = judged(&reference, &[dump(&[("0.weight", [1.0101, 1.0])])]);
        assert!((agreement.error - 0.01).abs() < 1e-4, "{}", agreement.error);
        let complaint = agreement.complaint.unwrap();
        assert_eq!(
            complaint,
            "the update of 0.weight differs from that of one device by 1.0e-2, more than 1e-3"
        );
        assert_eq!(agreement.worst_tensor.as_deref(), Some("0.weight"));
    }

    #[test]
    fn rounding_of_a_parameter_that_hardly_moves_is_not_held_against_it() {
        // One unit in the last place of 1.0 against an update of 4 of them: 25 % of the update, nothing in truth.
        let ulp = f32::EPSILON;
        let reference = dump(&[("0.bias", [1.0 + 4.0 * ulp, 1.0]), ("1.bias", [2.0, 2.0])]);
        let agreement = judged(
            &reference,
            &[dump(&[
                ("0.bias", [1.0 + 5.0 * ulp, 1.0]),
                ("1.bias", [2.0, 2.0]),
            ])],
        );
        assert_eq!(agreement.complaint, None);
        assert!(agreement.error > 1e-4);
    }

    #[test]
    fn nan_never_passes() {
        let reference = dump(&[("0.weight", [1.5, 0.5]), ("1.weight", [1.5, 0.5])]);
        let agreement = judged(
            &reference,
            &[dump(&[
                ("0.weight", [f32::NAN, 0.5]),
                ("1.weight", [1.5, 0.5]),
            ])],
        );
        assert!(agreement.complaint.is_some());
        assert_eq!(agreement.worst_tensor.as_deref(), Some("0.weight"));
    }

    #[test]
    fn ranks_must_hold_the_same_bits_but_for_their_running_statistics() {
        let reference = dump(&[("0.weight", [1.5, 0.5]), ("1.running_mean", [0.1, 0.2])]);
        let other = dump(&[("0.weight", [1.5, 0.5]), ("1.running_mean", [0.3, 0.2])]);
        assert_eq!(
            judged(&reference, &[reference.clone(), other]).bit_equal,
            Some(true)
        );
        let other = dump(&[
            ("0.weight", [1.5, 0.5 + f32::EPSILON]),
            ("1.running_mean", [0.1, 0.2]),
        ]);
        let agreement = judged(&reference, &[reference.clone(), other]);
        assert_eq!(agreement.bit_equal, Some(false));
        assert_eq!(
            agreement.complaint.unwrap(),
            "rank 1 does not hold the same bits of 0.weight as rank 0"
        );
    }

    #[test]
    fn a_missing_tensor_and_a_reference_that_stood_still_are_complaints() {
        let reference = dump(&[("0.weight", [1.5, 0.5])]);
        let complaint = judged(&reference, &[dump(&[("0.bias", [1.5, 0.5])])])
            .complaint
            .unwrap();
        assert_eq!(complaint, "only one side has a tensor 0.weight");
        let still = dump(&[("0.weight", [1.0, 1.0])]);
        assert!(
            judged(&still, std::slice::from_ref(&still))
                .complaint
                .unwrap()
                .contains("did not change any tensor")
        );
    }

    #[test]
    fn both_sides_must_begin_alike() {
        let reference = dump(&[("0.weight", [1.5, 0.5])]);
        let mut shifted = reference.clone();
        shifted
            .before
            .insert("0.weight".into(), Values::Floats(vec![1.25, 1.0]));
        let complaint = judged(&reference, &[shifted]).complaint.unwrap();
        assert_eq!(
            complaint,
            "0.weight did not begin with the values that it has on one device"
        );
    }

    #[test]
    fn counters_are_compared_exactly() {
        let with = |count| {
            let mut dump = dump(&[("0.weight", [1.5, 0.5])]);
            dump.after.insert(
                "1.num_batches_tracked".into(),
                Values::Integers(vec![count]),
            );
            dump
        };
        assert_eq!(judged(&with(3), &[with(3)]).complaint, None);
        assert!(judged(&with(3), &[with(4)]).complaint.is_some());
    }
}
