//! Products that no kernel asks for, on a GPU; without one it says why nothing was run, and fails if SYNCMARK_REQUIRE_GPU=1.
use crate::backend::cuda::blas::{Matrix, Product};
use crate::backend::cuda::{CudaBackend, CudaDevice, Matmul, Precision};
use crate::backend::{Backend, BackendError, Category, HostSlice, HostSliceMut, Stream};
use crate::kernel::Write;
use crate::tensor::{Dtype, Span};

fn gpu(precision: Precision) -> Option<CudaBackend> {
    let device = CudaDevice {
        precision,
        matmul: Matmul::CublasLt,
        ..CudaDevice::default()
    };
    match CudaBackend::new(device) {
        Ok(backend) => Some(backend),
        Err(reason) => {
            let required = std::env::var_os("SYNCMARK_REQUIRE_GPU").is_some_and(|on| on == "1");
            assert!(!required, "there is no GPU: {reason}");
            println!("not run on a GPU: {reason}");
            None
        }
    }
}

/// Whole numbers so small that TF32 has them and f32 every sum.
fn whole(len: usize, seed: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0)
        .collect()
}

fn given(gpu: &mut CudaBackend, values: &[f32]) -> Span {
    let span = gpu
        .allocate(Category::Workspace, Dtype::F32, values.len())
        .unwrap();
    let from = HostSlice::F32(values);
    gpu.upload(Stream::Compute, from, span).unwrap();
    span
}

#[test]
fn batches_lie_strides_apart_and_are_scaled() {
    let Some(mut gpu) = gpu(Precision::Tf32) else {
        return;
    };
    let (m, n, k, batch) = (24, 40, 56, 3);
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        for write in [Write::Overwrite, Write::Accumulate] {
            // Rows and matrices with something between them, and one A for all.
            let row_a = if transpose_a { m } else { k } + 8;
            let row_b = if transpose_b { k } else { n } + 4;
            let row_c = n + 12;
            let stride_b = row_b * if transpose_b { n } else { k } + 16;
            let stride_c = row_c * m + 4;
            let a = whole(row_a * if transpose_a { k } else { m }, 1);
            let (b, c) = (whole(batch * stride_b, 2), whole(batch * stride_c, 3));
            let [at_a, at_b, at_c] = [&a, &b, &c].map(|values| given(&mut gpu, values));
            let matrix = |span, row, stride, transposed| Matrix {
                at: gpu.address(span),
                row,
                stride,
                dtype: Dtype::F32,
                transposed,
            };
            let of = [
                matrix(at_a, row_a, 0, transpose_a),
                matrix(at_b, row_b, stride_b, transpose_b),
                matrix(at_c, row_c, stride_c, false),
            ];
            let product = Product {
                m,
                n,
                k,
                scale: 0.5,
                batch,
                write,
            };
            gpu.blas[0].product(product, of[0], of[1], of[2]).unwrap();
            let mut found = vec![0.0; c.len()];
            let to = HostSliceMut::F32(&mut found);
            gpu.download(at_c, to).unwrap();
            let mut expected = c.clone();
            for (s, i, j) in (0..batch * m * n).map(|at| (at / (m * n), at / n % m, at % n)) {
                let sum = (0..k).map(|l| {
                    let of_a = if transpose_a {
                        l * row_a + i
                    } else {
                        i * row_a + l
                    };
                    let of_b = if transpose_b {
                        j * row_b + l
                    } else {
                        l * row_b + j
                    };
                    a[of_a] * b[s * stride_b + of_b]
                });
                let to = &mut expected[s * stride_c + i * row_c + j];
                let before = if write == Write::Accumulate { *to } else { 0.0 };
                *to = before + 0.5 * sum.sum::<f32>();
            }
            assert!(found == expected, "{transpose_a} {transpose_b} {write:?}");
        }
    }
    let choices = gpu.choices();
    assert_eq!(choices.len(), 8, "one for each shape: {choices:#?}");
    assert!(
        choices.iter().all(|one| one.library == "cuBLASLt"),
        "{choices:#?}"
    );
}

#[test]
fn in_fp32_there_is_nothing_for_it_to_multiply() {
    if gpu(Precision::Bf16).is_none() {
        return;
    }
    let device = CudaDevice {
        matmul: Matmul::CublasLt,
        ..CudaDevice::default()
    };
    let refused = CudaBackend::new(device).err();
    assert!(
        matches!(refused, Some(BackendError::Unsupported(_))),
        "{refused:?}"
    );
}
