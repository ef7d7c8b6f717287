//! Our kernels on a GPU, by name: looked up once, so that a launch is a field. Those that touch values are there for each type of them.
use crate::backend::cuda::api::driver;
use std::ffi::CString;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute};

use super::compile::{Source, compile_ahead, machine_code};
use super::gpu::check;
use super::launch::{STASH, THREADS};
use crate::backend::{BackendError, Result};
use crate::tensor::Dtype;

macro_rules! modules {
    ($($module:ident { $($function:ident),* $(,)? })*) => {
        $(
            #[allow(non_snake_case, reason = "modules are named as their types")]
            #[derive(Clone, Copy)]
            pub(crate) struct $module { $(pub(crate) $function: CUfunction),* }
            impl $module {
                fn load(source: Source, capability: (u32, u32)) -> Result<Self> {
                    let code = machine_code(source, capability)?;
                    let mut module = std::ptr::null_mut();
                    // SAFETY: NVRTC's cubin is complete; modules are never unloaded.
                    unsafe {
                        check(
                            driver::cuModuleLoadData(&mut module, code.as_ptr().cast()),
                            concat!("failed to load the kernels of ", stringify!($module)),
                        )?;
                    }
                    let function = |name: &str| {
                        let named = CString::new(name).expect("names hold no zero");
                        let mut function = std::ptr::null_mut();
                        // SAFETY: the module was loaded.
                        let found = unsafe { driver::cuModuleGetFunction(&mut function, module, named.as_ptr()) };
                        check(found, &format!("failed to find the kernel {name}")).map(|()| function)
                    };
                    Ok(Self { $($function: function(stringify!($function))?),* })
                }
            }
        )*
    };
}

modules! {
    Elementwise {
        fill, copy, add_two, scale, scale_by, subtract, relu_forward, relu_backward, gate, rectify, gelu_forward, gelu_backward, dropout, transpose, add_bias,
    }
    Columns {
        moments, finish_statistics, reciprocal_deviation, update_running, normalize, backward_sums, finish_sums, backward_affine,
        backward_input, backward_eval, sync_pack, sync_merge, column_sums, finish_column_sums,
    }
    Groups {
        finish_groups, group_normalize, finish_group_sums, group_affine, group_backward_input, element_sums, element_affine,
        element_backward_input,
    }
    Samples { team_forward, team_rms_forward, team_backward }
    Rows { run_forward, rms_forward, warp_forward, run_backward, rows_backward, run_affine, finish_run_affine }
    Loss { label_shares, row_loss, sample_losses, count_errors }
    Optimizer { sgd, adamw }
    Pool {
        max_forward, max_backward, average_forward, average_backward, global_average_forward, global_average_backward,
    }
    Embedding { token_ranks, token_starts, token_places, embedding_sums, embedding_rest }
    Tokens { embedding_forward, attention_softmax, attention_softmax_backward, addresses }
    Attention { dropout_bits, flash_forward, flash_queries, flash_keys }
    Compression {
        narrow_f16, narrow_bf16, widen_f16, widen_bf16, add_bf16, fill_normal, gram_schmidt, householder,
    }
}

/// Those that read or write values of one type: activations and their gradients.
pub(crate) struct OfValues {
    pub(crate) elementwise: Elementwise,
    /// With one channel a thread, with two, and with four.
    pub(crate) columns: [Columns; 3],
    /// As `columns`.
    pub(crate) groups: [Groups; 3],
    /// As `columns`.
    pub(crate) samples: [Samples; 3],
    /// Blocks of `samples` that a multiprocessor holds at a time.
    pub(crate) resident: usize,
    pub(crate) rows: Rows,
    pub(crate) loss: Loss,
    pub(crate) pool: Pool,
    pub(crate) embedding: Embedding,
    pub(crate) tokens: Tokens,
    /// For heads of 32 and of 64 elements: of values in bfloat16, on sm_80 and newer.
    pub(crate) attention: Option<[Attention; 2]>,
}

impl OfValues {
    fn load(capability: (u32, u32), form: impl Fn(Source) -> Source) -> Result<Self> {
        let columns = |which: usize| Columns::load(form(Source::COLUMNS[which]), capability);
        let groups = |which: usize| Groups::load(form(Source::GROUPS[which]), capability);
        let samples = |which: usize| Samples::load(form(Source::SAMPLES[which]), capability);
        let samples = [samples(0)?, samples(1)?, samples(2)?];
        let attention = |source: Source| Attention::load(source, capability);
        let [small, large] = Source::ATTENTION;
        let narrow = form(Source::TOKENS).is_narrow() && capability >= (8, 0);
        Ok(Self {
            attention: match narrow {
                true => Some([attention(small)?, attention(large)?]),
                false => None,
            },
            resident: resident(&samples)?,
            samples,
            elementwise: Elementwise::load(form(Source::ELEMENTWISE), capability)?,
            columns: [columns(0)?, columns(1)?, columns(2)?],
            groups: [groups(0)?, groups(1)?, groups(2)?],
            rows: Rows::load(form(Source::ROWS), capability)?,
            loss: Loss::load(form(Source::LOSS), capability)?,
            pool: Pool::load(form(Source::POOL), capability)?,
            embedding: Embedding::load(form(Source::EMBEDDING), capability)?,
            tokens: Tokens::load(form(Source::TOKENS), capability)?,
        })
    }
}

/// All of them.
pub(crate) struct Kernels {
    /// For values in f32; parameters and their gradients, which are always that, have theirs here too.
    pub(crate) wide: OfValues,
    /// For values in bfloat16: loaded by the first device that has such.
    narrow: OnceLock<OfValues>,
    pub(crate) optimizer: Optimizer,
    pub(crate) compression: Compression,
    capability: (u32, u32),
}

impl Kernels {
    /// Those of a compute capability, on the calling thread's context.
    pub(super) fn load(capability: (u32, u32)) -> Result<Self> {
        Self::compile(capability, false);
        Ok(Self {
            wide: OfValues::load(capability, |source| source)?,
            narrow: OnceLock::new(),
            optimizer: Optimizer::load(Source::OPTIMIZER, capability)?,
            compression: Compression::load(Source::COMPRESSION, capability)?,
            capability,
        })
    }

    /// Has the sources of the one form or the other compiled, all at once.
    fn compile(capability: (u32, u32), narrow: bool) {
        let of_form = |source: &Source| source.is_narrow() == narrow;
        let sources: Vec<Source> = Source::all().filter(of_form).collect();
        compile_ahead(&sources, capability);
    }

    /// Loads those for values in bfloat16, if that was not done before.
    pub(super) fn load_narrow(&self) -> Result<()> {
        // One device at a time, so that none compiles what another is compiling.
        static LOADING: Mutex<()> = Mutex::new(());
        let _one = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if self.narrow.get().is_none() {
            Self::compile(self.capability, true);
            let loaded = OfValues::load(self.capability, Source::narrow)?;
            let _ = self.narrow.set(loaded);
        }
        Ok(())
    }

    /// Those for values of a type.
    ///
    /// # Errors
    /// A type that values of this device do not have.
    pub(crate) fn of(&self, values: Dtype) -> Result<&OfValues> {
        let of = match values {
            Dtype::Bf16 => self.narrow.get(),
            _ => Some(&self.wide),
        };
        of.ok_or(BackendError::Unsupported(
            "values in bfloat16 on a device that was made for others",
        ))
    }
}

/// Lets blocks of `samples` keep as much as they may, and asks how many of them a multiprocessor holds.
fn resident(samples: &[Samples; 3]) -> Result<usize> {
    let mut least = i32::MAX;
    for of in samples {
        for function in [of.team_forward, of.team_rms_forward, of.team_backward] {
            let mut blocks = 0;
            // SAFETY: the functions were loaded.
            unsafe {
                for (attribute, value) in [
                    (
                        CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        STASH as i32,
                    ),
                    // Per cent of what there is.
                    (
                        CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                        100,
                    ),
                ] {
                    let set = driver::cuFuncSetAttribute(function, attribute, value);
                    check(set, "failed to let a kernel have shared memory")?;
                }
                let asked = driver::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &mut blocks,
                    function,
                    THREADS as i32,
                    STASH,
                );
                check(asked, "failed to ask how many blocks of a kernel fit")?;
            }
            least = least.min(blocks);
        }
    }
    Ok(least.max(0) as usize)
}
