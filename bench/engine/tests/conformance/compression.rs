//! Kernels of gradient compression.
use syncmark_engine::backend::{Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::half::{Bf16, F16, Half};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::Dtype;

use crate::device::{Device, TOLERANCE, on_every_backend};

#[test]
fn every_binary16_and_bfloat16_number_survives_a_round_trip() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    on_every_backend(|device| {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let halves = |device: &mut Device| {
                let workspace = Category::Workspace;
                device
                    .backend
                    .allocate(workspace, dtype, all.len())
                    .unwrap()
            };
            let (from, to) = (halves(device), halves(device));
            let wide = device.zeros(all.len());
            upload(device, from, &all);
            device.launch(Kernel::Widen { from, to: wide });
            let values = device.read(wide);
            device.launch(Kernel::Narrow {
                from: wide,
                to,
                divisor: 1.0,
            });
            let found = download(device, to);
            for ((bits, value), found) in all.iter().zip(values).zip(found) {
                let expected = match dtype {
                    Dtype::F16 => F16(*bits).widen(),
                    _ => Bf16(*bits).widen(),
                };
                assert!(value == expected || (value.is_nan() && expected.is_nan()));
                if value.is_nan() {
                    // A quiet NaN of the same sign.
                    assert!(found & 0x7fff > if dtype == Dtype::F16 { 0x7c00 } else { 0x7f80 });
                } else {
                    assert_eq!(found, *bits, "{dtype:?} {bits:#06x}, {value:e}");
                }
            }
        }
    });
}

fn upload(device: &mut Device, to: syncmark_engine::tensor::Span, bits: &[u16]) {
    let f16: Vec<F16> = bits.iter().map(|bits| F16(*bits)).collect();
    let bf16: Vec<Bf16> = bits.iter().map(|bits| Bf16(*bits)).collect();
    let from = match to.dtype() {
        Dtype::F16 => HostSlice::F16(&f16),
        _ => HostSlice::Bf16(&bf16),
    };
    device.backend.upload(Stream::Compute, from, to).unwrap();
}

fn download(device: &mut Device, from: syncmark_engine::tensor::Span) -> Vec<u16> {
    let (mut f16, mut bf16) = (vec![F16(0); from.len()], vec![Bf16(0); from.len()]);
    let to = match from.dtype() {
        Dtype::F16 => HostSliceMut::F16(&mut f16),
        _ => HostSliceMut::Bf16(&mut bf16),
    };
    device.backend.download(from, to).unwrap();
    match from.dtype() {
        Dtype::F16 => f16.iter().map(|half| half.0).collect(),
        _ => bf16.iter().map(|half| half.0).collect(),
    }
}

#[test]
fn narrowing_rounds_before_and_after_it_divides() {
    on_every_backend(|device| {
        // 1 + 2⁻¹¹ + 2⁻²⁰ rounds up to 1 + 2⁻¹⁰; 70000 is infinite, although a third of it would not be.
        let values = [1.0 + 2f32.powi(-11) + 2f32.powi(-20), 70000.0, -3.0, 1e-7];
        let from = device.given(&values).span;
        let to = device
            .backend
            .allocate(Category::Workspace, Dtype::F16, 4)
            .unwrap();
        let divisor = 3.0;
        device.launch(Kernel::Narrow { from, to, divisor });
        let third = F16::narrow((1.0 + 2f32.powi(-10)) / 3.0);
        let small = F16::narrow(2.0 * 2f32.powi(-24) / 3.0);
        let expected = [third.0, 0x7c00, 0xbc00, small.0];
        assert_eq!(download(device, to), expected);
    });
}

#[test]
fn subtract() {
    on_every_backend(|device| {
        for n in [1, 7, 1003] {
            let (from, to) = (device.random(n), device.random(n));
            device.launch(Kernel::Subtract {
                from: from.span,
                to: to.span,
            });
            let expected: Vec<f64> = to
                .values
                .iter()
                .zip(&from.values)
                .map(|(a, b)| a - b)
                .collect();
            device.expect("subtract", to.span, &expected);
        }
    });
}

#[test]
fn normal_numbers_depend_on_seed_stream_and_step_and_are_normal() {
    on_every_backend(|device| {
        let n = 40_001;
        let mut draw = |seed, stream, step| {
            let (to, state) = (device.zeros(n), device.given_i32(&[step, 9]));
            device.launch(Kernel::FillNormal {
                to,
                seed,
                stream,
                state,
            });
            device.read(to)
        };
        let first = draw(1, 2, 3);
        assert_eq!(first, draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 10, "{same} of {n} numbers are the same");
        }
        let moment = |power| {
            let sum: f64 = first.iter().map(|v| f64::from(*v).powi(power)).sum();
            sum / n as f64
        };
        // Five deviations of each estimate: their variances are 1, 2, 15 and 96 over n.
        for (power, expected, variance) in
            [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)]
        {
            let allowed = 5.0 * f64::sqrt(variance / n as f64);
            let off = f64::abs(moment(power) - expected);
            assert!(off < allowed, "moment {power} is off by {off}");
        }
        // Neighbours come from one pair of uniform numbers.
        let pairs: f64 = first
            .windows(2)
            .map(|w| f64::from(w[0]) * f64::from(w[1]))
            .sum();
        assert!((pairs / n as f64).abs() < 5.0 / f64::sqrt(n as f64));
    });
}

/// Qᵀ·Q − 1 and A − Q·Qᵀ·A, as the norms of the one and of the other over that of A.
fn off(q: &[f32], a: &[f64], columns: usize) -> [f64; 2] {
    let q: Vec<f64> = q.iter().map(|v| f64::from(*v)).collect();
    let inner = |x: &[f64], i: usize, y: &[f64], j: usize| -> f64 {
        let rows = x.chunks_exact(columns).zip(y.chunks_exact(columns));
        rows.map(|(x, y)| x[i] * y[j]).sum()
    };
    let (mut unit, mut span, mut size) = (0.0, 0.0, 0.0);
    for i in 0..columns {
        for j in 0..columns {
            let expected = f64::from(u8::from(i == j));
            unit += (inner(&q, i, &q, j) - expected).powi(2);
        }
        let parts: Vec<f64> = (0..columns).map(|j| inner(&q, j, a, i)).collect();
        for (q, a) in q.chunks_exact(columns).zip(a.chunks_exact(columns)) {
            let projected: f64 = q.iter().zip(&parts).map(|(q, part)| q * part).sum();
            span += (a[i] - projected).powi(2);
            size += a[i].powi(2);
        }
    }
    [
        unit.sqrt(),
        (span / f64::max(size, f64::MIN_POSITIVE)).sqrt(),
    ]
}

fn orthogonalized(device: &mut Device, matrix: &[f32], columns: usize) -> Vec<f32> {
    let matrix = device.given(matrix).span;
    let workspace = device.random(2 * columns).span;
    device.launch(Kernel::Orthogonalize {
        matrix,
        columns,
        workspace,
    });
    device.read(matrix)
}

#[test]
fn columns_become_orthonormal_and_span_what_they_did() {
    on_every_backend(|device| {
        for (rows, columns) in [
            (1, 1),
            (9, 1),
            (2, 2),
            (50, 2),
            (3, 3),
            (7, 4),
            (64, 5),
            (40, 40),
        ] {
            let given = device.random(rows * columns).values;
            let matrix: Vec<f32> = given.iter().map(|v| *v as f32).collect();
            let q = orthogonalized(device, &matrix, columns);
            let [unit, span] = off(&q, &given, columns);
            let what = format!("{rows}×{columns}: {unit:.1e}, {span:.1e}");
            // Gram-Schmidt loses as many digits as the columns are alike; random ones are not.
            assert!(
                unit <= columns as f64 * TOLERANCE && span <= TOLERANCE,
                "{what}"
            );
        }
    });
}

#[test]
fn signs_are_those_of_torch_linalg_qr_and_of_gram_schmidt() {
    on_every_backend(|device| {
        // Column 0 is (3, 4, 0): Gram-Schmidt keeps its direction, a reflection turns it round.
        let two = orthogonalized(device, &[3.0, 0.0, 4.0, 0.0, 0.0, 2.0], 2);
        let expected = [0.6, 0.0, 0.8, 0.0, 0.0, 1.0];
        assert!(
            two.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6),
            "{two:?}"
        );
        let three = [3.0, 1.0, 0.0, 4.0, 0.0, 1.0, 0.0, 2.0, 5.0];
        let q = orthogonalized(device, &three, 3);
        // Of torch.linalg.qr.
        let expected = [
            -0.6,
            0.297_112_55,
            -0.742_781_4,
            -0.8,
            -0.222_834_42,
            0.557_086_05,
            0.0,
            0.928_476_75,
            0.371_390_58,
        ];
        assert!(
            q.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5),
            "{q:?}"
        );
    });
}

#[test]
fn more_than_two_columns_become_orthonormal_whatever_their_rank() {
    on_every_backend(|device| {
        let (rows, columns) = (12, 4);
        let one = device.random(rows).values;
        let alike: Vec<f32> = one.iter().flat_map(|v| [*v as f32; 4]).collect();
        let zero = vec![0.0; rows * columns];
        for matrix in [alike, zero] {
            let q = orthogonalized(device, &matrix, columns);
            let given: Vec<f64> = matrix.iter().map(|v| f64::from(*v)).collect();
            let [unit, span] = off(&q, &given, columns);
            assert!(
                unit <= TOLERANCE && span <= TOLERANCE,
                "{unit:.1e}, {span:.1e}"
            );
        }
        // PyTorch's Gram-Schmidt divides by the norm of a column, and so does this one.
        assert!(
            orthogonalized(device, &[0.0; 8], 2)
                .iter()
                .all(|v| v.is_nan())
        );
    });
}
