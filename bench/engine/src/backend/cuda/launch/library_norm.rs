//! Batch norm by cuDNN, which has one handle, on the compute stream.
use super::{Launch, Span};
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::dnn::Dnn;
use crate::backend::cuda::dnn::batch_norm::{Backward, Eval, Forward, NormOf};
use crate::backend::cuda::memory::{Memory, Scratch};
use crate::backend::{Backend, BackendError, Result, Stream};
use crate::kernel::Kernel;

fn of(x: Span, channels: usize, samples: usize, spatial: usize) -> NormOf {
    assert!(
        x.len() == samples * spatial * channels,
        "{x:?} is not {samples} × {spatial} × {channels}"
    );
    NormOf {
        samples,
        spatial,
        channels,
        dtype: x.dtype(),
    }
}

fn with(
    l: &mut Launch<'_>,
    work: impl FnOnce(&mut Dnn, (&mut Scratch, &mut Memory)) -> Result<()>,
) -> Result<()> {
    assert!(
        l.on == Stream::Compute,
        "batch norms are on the compute stream"
    );
    let CudaBackend {
        dnn,
        scratch,
        memory,
        ..
    } = &mut *l.device;
    work(dnn, (&mut scratch[Stream::Compute as usize], memory))
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    // The functions are loaded where a device is made that asks for them.
    if !l.device.library_batch_norm() {
        return Err(BackendError::Unsupported("batch norm by cuDNN on a device that was not made for it"));
    }
    match *kernel {
        Kernel::LibraryBatchNorm { x, gamma, beta, y, mean, rstd, running_mean, running_variance, samples, spatial, eps, momentum } => {
            let of = of(x, mean.len(), samples, spatial);
            let at = Forward {
                x: l.at(x),
                affine: [gamma, beta].map(|span| l.at(span)),
                y: l.at(y),
                kept: [mean, rstd].map(|span| l.at(span)),
                running: [running_mean, running_variance].map(|span| l.at(span)),
                eps,
                momentum,
            };
            with(l, |dnn, room| dnn.norm_forward(of, &at, room))
        }
        Kernel::LibraryBatchNormBackward { x, d_y, gamma, mean, rstd, d_gamma, d_beta, d_x, samples, spatial, eps, write } => {
            let of = of(x, mean.len(), samples, spatial);
            let at = Backward {
                x: l.at(x),
                d_y: l.at(d_y),
                gamma: l.at(gamma),
                kept: [mean, rstd].map(|span| l.at(span)),
                d_affine: [d_gamma, d_beta].map(|span| l.at(span)),
                d_x: l.at(d_x),
                eps,
                write,
            };
            with(l, |dnn, room| dnn.norm_backward(of, &at, room))
        }
        Kernel::LibraryBatchNormEval { x, gamma, beta, running_mean, running_variance, y, samples, spatial, eps } => {
            let of = of(x, running_mean.len(), samples, spatial);
            let at = Eval {
                x: l.at(x),
                affine: [gamma, beta].map(|span| l.at(span)),
                running: [running_mean, running_variance].map(|span| l.at(span)),
                y: l.at(y),
                eps,
            };
            with(l, |dnn, _| dnn.norm_eval(of, &at))
        }
        _ => unreachable!("only these are a library's"),
    }
}
