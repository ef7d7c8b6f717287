//! A product as cuBLASLt is asked for it again and again: descriptor, layouts and algorithm.
use std::ffi::c_void;
use std::ptr::null_mut;

use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t as LtEpilogue, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulAlgoConfigAttributes_t as Setting, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t as Preferred,
    cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
    cublasLtReductionScheme_t as Reduction, cublasStatus_t, cudaDataType_t,
};
use cudarc::driver::sys::CUdeviceptr;

use super::key::{Epilogue, Key, Layout};
use super::{WORKSPACE, check};
use crate::backend::Result;
use crate::backend::cuda::api::cublaslt;
use crate::tensor::Dtype;

/// Algorithms that the heuristic may name.
const NAMED: usize = 8;
/// Parts of a long sum lie in the workspace in f32 and are added in a step of their own, or there is one part. Left out are those that add in
/// the result, in the order in which blocks come to it, and those that round parts to the result's type.
const REDUCTIONS: u32 = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// Descriptors; those not made yet are null.
struct Described {
    descriptor: cublasLtMatmulDesc_t,
    layouts: [cublasLtMatrixLayout_t; 3],
    preference: cublasLtMatmulPreference_t,
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: nobody else has them.
        unsafe {
            if !self.descriptor.is_null() {
                let _ = cublaslt::cublasLtMatmulDescDestroy(self.descriptor);
            }
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = cublaslt::cublasLtMatrixLayoutDestroy(layout);
            }
            if !self.preference.is_null() {
                let _ = cublaslt::cublasLtMatmulPreferenceDestroy(self.preference);
            }
        }
    }
}

fn value<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

impl Described {
    fn new(key: &Key, compute: cublasComputeType_t, bias: CUdeviceptr) -> Result<Self> {
        let mut described = Self {
            descriptor: null_mut(),
            layouts: [null_mut(); 3],
            preference: null_mut(),
        };
        // SAFETY: the pointer is ours to write.
        let made = unsafe {
            cublaslt::cublasLtMatmulDescCreate(
                &mut described.descriptor,
                compute,
                cudaDataType_t::CUDA_R_32F,
            )
        };
        check(made, "failed to describe a product")?;
        let operation = |transposed: bool| i32::from(transposed);
        let epilogue = match key.epilogue {
            Epilogue::None => LtEpilogue::CUBLASLT_EPILOGUE_DEFAULT,
            Epilogue::Bias => LtEpilogue::CUBLASLT_EPILOGUE_BIAS,
            // Its second operand is A, whose sums are wanted.
            Epilogue::BiasGradient => LtEpilogue::CUBLASLT_EPILOGUE_BGRADB,
        } as u32;
        described.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            value(&operation(key.b.transposed)),
        )?;
        described.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            value(&operation(key.a.transposed)),
        )?;
        described.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, value(&epilogue))?;
        if key.epilogue != Epilogue::None {
            // The heuristic takes its alignment from it.
            described.set_bias(bias)?;
        }
        for (to, layout) in described.layouts.iter_mut().zip(key.layouts()) {
            make_layout(to, &layout)?;
        }
        // SAFETY: the pointer is ours to write.
        let made = unsafe { cublaslt::cublasLtMatmulPreferenceCreate(&mut described.preference) };
        check(made, "failed to say what algorithms may be taken")?;
        described.prefer(
            Preferred::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            value(&(WORKSPACE as u64)),
        )?;
        described.prefer(
            Preferred::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            value(&REDUCTIONS),
        )?;
        for (which, alignment) in [
            (
                Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                key.b.alignment,
            ),
            (
                Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                key.a.alignment,
            ),
            (
                Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                key.c.alignment,
            ),
            (
                Preferred::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                key.c.alignment,
            ),
        ] {
            described.prefer(which, value(&alignment))?;
        }
        Ok(described)
    }

    fn set(&self, which: Attribute, (at, bytes): (*const c_void, usize)) -> Result<()> {
        // SAFETY: the descriptor is alive; the value is read before the call returns.
        let set =
            unsafe { cublaslt::cublasLtMatmulDescSetAttribute(self.descriptor, which, at, bytes) };
        check(set, "failed to describe a product")
    }

    fn set_bias(&self, bias: CUdeviceptr) -> Result<()> {
        self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, value(&bias))
    }

    fn prefer(&self, which: Preferred, (at, bytes): (*const c_void, usize)) -> Result<()> {
        // SAFETY: as in `set`.
        let set = unsafe {
            cublaslt::cublasLtMatmulPreferenceSetAttribute(self.preference, which, at, bytes)
        };
        check(set, "failed to say what algorithms may be taken")
    }
}

fn make_layout(to: &mut cublasLtMatrixLayout_t, layout: &Layout) -> Result<()> {
    let dtype = match layout.dtype {
        Dtype::Bf16 => cudaDataType_t::CUDA_R_16BF,
        _ => cudaDataType_t::CUDA_R_32F,
    };
    let (rows, columns) = (layout.rows as u64, layout.columns as u64);
    let (batch, stride) = (layout.batch as i32, layout.stride as i64);
    let what = "failed to describe a matrix";
    // SAFETY: it is made before it is set; values are read before the calls return.
    unsafe {
        check(
            cublaslt::cublasLtMatrixLayoutCreate(to, dtype, rows, columns, layout.leading as i64),
            what,
        )?;
        for (which, (at, bytes)) in [
            (
                LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                value(&batch),
            ),
            (
                LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                value(&stride),
            ),
        ] {
            check(
                cublaslt::cublasLtMatrixLayoutSetAttribute(*to, which, at, bytes),
                what,
            )?;
        }
    }
    Ok(())
}

/// One of the numbers that an algorithm consists of; none where it has no such.
fn setting(algorithm: &cublasLtMatmulAlgo_t, which: Setting) -> Option<u32> {
    let bytes = match which {
        Setting::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID
        | Setting::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID => 2,
        _ => 4,
    };
    let (mut number, mut written) = ([0u8; 4], 0);
    // SAFETY: there is room for as many bytes as are asked for.
    let status = unsafe {
        cublaslt::cublasLtMatmulAlgoConfigGetAttribute(
            algorithm,
            which,
            number.as_mut_ptr().cast(),
            bytes,
            &mut written,
        )
    };
    (status == cublasStatus_t::CUBLAS_STATUS_SUCCESS).then(|| u32::from_le_bytes(number))
}

fn reduction(algorithm: &cublasLtMatmulAlgo_t) -> Option<u32> {
    setting(algorithm, Setting::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
}

/// How a product is computed.
pub(super) struct Plan {
    described: Described,
    algorithm: cublasLtMatmulAlgo_t,
    /// Bytes that the algorithm needs.
    pub(super) workspace: usize,
}

impl Plan {
    /// The first of the heuristic's ranking that repeats to the bit; none where there is no such. `bias` as [`Key::new`] has it.
    pub(super) fn new(
        handle: cublasLtHandle_t,
        key: &Key,
        compute: cublasComputeType_t,
        bias: CUdeviceptr,
    ) -> Result<Option<Self>> {
        let described = Described::new(key, compute, bias)?;
        let [a, b, c] = described.layouts;
        // SAFETY: results are plain numbers, which the call overwrites as far as it says.
        let mut found: [cublasLtMatmulHeuristicResult_t; NAMED] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: the descriptors are alive; the array is as long as said.
        let ranked = unsafe {
            cublaslt::cublasLtMatmulAlgoGetHeuristic(
                handle,
                described.descriptor,
                a,
                b,
                c,
                c,
                described.preference,
                NAMED as i32,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if ranked == cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(None);
        }
        check(ranked, "failed to rank algorithms of a product")?;
        let taken = found[..count as usize].iter().find(|one| {
            one.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS
                && one.workspaceSize <= WORKSPACE
                && reduction(&one.algo).is_none_or(|scheme| scheme & !REDUCTIONS == 0)
        });
        Ok(taken.map(|one| Self {
            described,
            algorithm: one.algo,
            workspace: one.workspaceSize,
        }))
    }

    /// Enqueues it: C (+)= scale·op(A)·op(B), with what the key says besides.
    #[allow(clippy::too_many_arguments, reason = "as the library has it")]
    pub(super) fn enqueue(
        &self,
        handle: cublasLtHandle_t,
        [a, b, c]: [CUdeviceptr; 3],
        [scale, beta]: [f32; 2],
        bias: CUdeviceptr,
        workspace: CUdeviceptr,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<()> {
        if bias != 0 {
            self.described.set_bias(bias)?;
        }
        let [first, second, result] = self.described.layouts;
        // SAFETY: the caller's spans are as large as the key says; scalars and descriptors are read before the call returns.
        let status = unsafe {
            cublaslt::cublasLtMatmul(
                handle,
                self.described.descriptor,
                (&raw const scale).cast(),
                b as *const _,
                first,
                a as *const _,
                second,
                (&raw const beta).cast(),
                c as *const _,
                result,
                c as *mut _,
                result,
                &self.algorithm,
                workspace as *mut _,
                WORKSPACE,
                stream.cast(),
            )
        };
        check(status, "failed to enqueue a matrix product")
    }

    /// Whether the library says how it adds up.
    pub(super) fn is_deterministic(&self) -> bool {
        reduction(&self.algorithm).is_some_and(|scheme| scheme & !REDUCTIONS == 0)
    }

    /// The algorithm's numbers, by NVIDIA's names; one that it does not tell is left out.
    pub(super) fn algorithm(&self) -> String {
        let all = [
            ("id", Setting::CUBLASLT_ALGO_CONFIG_ID),
            ("tile", Setting::CUBLASLT_ALGO_CONFIG_TILE_ID),
            ("stages", Setting::CUBLASLT_ALGO_CONFIG_STAGES_ID),
            ("split_k", Setting::CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
            ("reduction", Setting::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME),
            ("swizzling", Setting::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
            ("custom", Setting::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
            ("inner", Setting::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID),
            ("cluster", Setting::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
        ];
        let said = |(name, which)| {
            setting(&self.algorithm, which).map(|number| format!("{name}={number}"))
        };
        all.into_iter()
            .filter_map(said)
            .collect::<Vec<_>>()
            .join(" ")
    }
}
