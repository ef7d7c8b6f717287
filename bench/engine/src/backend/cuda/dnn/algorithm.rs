//! Which of cuDNN's algorithms is taken for a convolution.
//!
//! Contract: the first of cuDNN's own ranking that it calls deterministic and that fits, so no clock has a say.
use std::fmt::Debug;

use cudarc::cudnn::sys::cudnnMathType_t;

use super::Of;
use crate::backend::cuda::choice::Choice;
use crate::kernel::Window;
use crate::tensor::Dtype;

/// Most workspace that an algorithm may want.
pub(super) const MOST_WORKSPACE: usize = 2 << 30;
/// Algorithms of one direction that cuDNN may name.
pub(super) const NAMED: usize = 8;

/// An algorithm with what it needs.
#[derive(Clone, Copy)]
pub(super) struct Taken<A> {
    pub(super) algorithm: A,
    pub(super) workspace: usize,
    pub(super) math: cudnnMathType_t,
}

impl<A: Debug> Taken<A> {
    /// In words, for the records.
    pub(super) fn choice(&self, operation: &'static str, (window, batch, dtype): Of<'_>) -> Choice {
        let Window { h, w, c, .. } = window;
        let (out_c, kernel) = (window.out_c, window.kernel);
        let (stride, padding) = (window.stride, window.padding);
        Choice {
            library: "cuDNN",
            operation,
            shape: format!(
                "x {batch}×{h}×{w}×{c}, w {out_c}×{kernel}×{kernel}×{c}, stride {stride}, padding {padding}, {}",
                type_name(dtype)
            ),
            algorithm: bare(&self.algorithm),
            workspace_bytes: self.workspace,
            // Nothing else is taken.
            deterministic: true,
            math: bare(&self.math),
        }
    }
}

/// A name of cuDNN's without what all of them begin with.
pub(super) fn bare(name: &impl Debug) -> String {
    let name = format!("{name:?}");
    let prefixes = ["CUDNN_CONVOLUTION_", "CUDNN_"];
    let bare = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
    bare.unwrap_or(&name).to_owned()
}

/// `f32` or `bf16`.
pub(super) fn type_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bf16 => "bf16",
        _ => "f32",
    }
}

/// The first of cuDNN's ranking that may be taken.
macro_rules! choose {
    ($dnn:expr, $dtype:expr, $function:ident, $shape:expr, [$($descriptor:ident),*], $what:literal) => {{
        // SAFETY: results are plain numbers, which the call overwrites as far as it says.
        let mut found: [_; NAMED] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: the descriptors are alive; the array is as long as said.
        let ranked = unsafe {
            cudnn::$function($dnn.handle, $($shape.$descriptor,)* NAMED as i32, &mut count, found.as_mut_ptr())
        };
        check(ranked, concat!("failed to rank algorithms of a convolution's ", $what))?;
        let any = $dnn.tensor_cores($dtype);
        found[..count as usize]
            .iter()
            .find(|one| {
                one.status == cudnnStatus_t::CUDNN_STATUS_SUCCESS
                    && one.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC
                    && one.memory <= MOST_WORKSPACE
                    && (any || one.mathType == cudnnMathType_t::CUDNN_FMA_MATH)
            })
            .map(|one| Taken { algorithm: one.algo, workspace: one.memory, math: one.mathType })
            .ok_or_else(|| BackendError::Device(format!(
                concat!("cuDNN has no deterministic algorithm for a convolution's ", $what, " of {:?} in {:?}; it names {:?}"),
                $dtype,
                $dnn.precision,
                found[..count as usize].iter().map(|one| (one.algo, one.status, one.mathType)).collect::<Vec<_>>(),
            )))?
    }};
}
pub(super) use choose;

#[cfg(test)]
mod tests {
    use super::*;
    use cudarc::cudnn::sys::cudnnConvolutionBwdDataAlgo_t as DataAlgorithm;

    #[test]
    fn what_was_taken_is_told_in_cudnns_own_names() {
        let taken = Taken {
            algorithm: DataAlgorithm::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
            workspace: 512,
            math: cudnnMathType_t::CUDNN_FMA_MATH,
        };
        let window = Window {
            h: 56,
            w: 28,
            c: 64,
            out_h: 28,
            out_w: 14,
            out_c: 128,
            kernel: 3,
            stride: 2,
            padding: 1,
        };
        let choice = taken.choice("convolution input gradient", (&window, 32, Dtype::Bf16));
        assert_eq!(
            choice.shape,
            "x 32×56×28×64, w 128×3×3×64, stride 2, padding 1, bf16"
        );
        assert_eq!(
            (&choice.algorithm[..], &choice.math[..]),
            ("BWD_DATA_ALGO_1", "FMA_MATH")
        );
        assert_eq!((choice.workspace_bytes, choice.deterministic), (512, true));
    }
}
