//! Max, average and global average pooling.
use syncmark_engine::kernel::{Kernel, Window};

use crate::device::on_every_backend;

/// Maximum and winner of each output, by looking at every element of the image in order.
fn maxima(x: &[f64], window: &Window, batch: usize) -> (Vec<f64>, Vec<i32>) {
    let Window {
        h,
        w,
        c,
        out_h,
        out_w,
        kernel,
        stride,
        padding,
        ..
    } = *window;
    let (mut y, mut index) = (Vec::new(), Vec::new());
    for (b, oy, ox, channel) in (0..batch * out_h * out_w * c).map(|i| {
        (
            i / (out_h * out_w * c),
            i / (out_w * c) % out_h,
            i / c % out_w,
            i % c,
        )
    }) {
        let inside =
            |at: usize, out: usize| (out * stride..out * stride + kernel).contains(&(at + padding));
        let mut best = (f64::NEG_INFINITY, -1);
        for offset in (0..h * w).filter(|offset| inside(offset / w, oy) && inside(offset % w, ox)) {
            let value = x[(b * h * w + offset) * c + channel];
            if value > best.0 {
                best = (value, offset as i32);
            }
        }
        y.push(best.0);
        index.push(best.1);
    }
    (y, index)
}

#[test]
fn max_pooling_remembers_the_first_winner() {
    on_every_backend(|device| {
        for (h, w, c, kernel, stride, padding) in [
            (4, 4, 1, 2, 2, 0),
            (5, 7, 3, 3, 2, 1),
            (9, 9, 70, 3, 1, 1),
            (2, 2, 5, 2, 2, 0),
            (9, 8, 8, 3, 2, 1),
            (7, 7, 4, 5, 1, 2),
        ] {
            let batch = 3;
            let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
            let window = Window {
                h,
                w,
                c,
                out_h: side(h),
                out_w: side(w),
                out_c: c,
                kernel,
                stride,
                padding,
            };
            // Few different values, so that there are ties; all negative, so that zero padding would show.
            let values: Vec<f32> = (0..batch * h * w * c)
                .map(|i| -1.0 - (i * i % 7) as f32)
                .collect();
            let x = device.given(&values);
            let (expected, winners) = maxima(&x.values, &window, batch);
            let y = device.random(expected.len()).span;
            let index = device.given_i32(&vec![-5; winners.len()]);
            device.launch(Kernel::MaxPoolForward {
                x: x.span,
                y,
                index,
                window,
                batch,
            });
            device.expect("forward", y, &expected);
            assert_eq!(device.read_i32(index), winners);
            let d_y = device.random(expected.len());
            let mut d_x = vec![0.0; values.len()];
            for (at, (d, winner)) in d_y.values.iter().zip(&winners).enumerate() {
                let sample = at / (window.out_h * window.out_w * c);
                d_x[(sample * h * w + *winner as usize) * c + at % c] += d;
            }
            let d_y = d_y.span;
            device.expect_writes("backward", &d_x, |d_x, write| Kernel::MaxPoolBackward {
                d_y,
                index,
                d_x,
                window,
                batch,
                write,
            });
        }
    });
}

/// The elements `(input, output)` that windows connect, and the size of each output's window inside the image.
fn connections(window: &Window, batch: usize) -> (Vec<(usize, usize)>, Vec<usize>) {
    let Window {
        h,
        w,
        c,
        out_h,
        out_w,
        kernel,
        stride,
        padding,
        ..
    } = *window;
    let (mut pairs, mut inside) = (Vec::new(), vec![0; batch * out_h * out_w * c]);
    for (b, oy, ox) in
        (0..batch * out_h * out_w).map(|i| (i / (out_h * out_w), i / out_w % out_h, i % out_w))
    {
        for (ky, kx) in (0..kernel * kernel).map(|k| (k / kernel, k % kernel)) {
            let (y, x) = (oy * stride + ky, ox * stride + kx);
            if (padding..h + padding).contains(&y) && (padding..w + padding).contains(&x) {
                for channel in 0..c {
                    let output = ((b * out_h + oy) * out_w + ox) * c + channel;
                    let input = ((b * h + y - padding) * w + x - padding) * c + channel;
                    pairs.push((input, output));
                    inside[output] += 1;
                }
            }
        }
    }
    (pairs, inside)
}

#[test]
fn average_pooling_divides_by_the_window_or_by_what_is_inside_the_image() {
    on_every_backend(|device| {
        for (h, w, c, kernel, stride, padding) in [
            (4, 4, 1, 2, 2, 0),
            (5, 7, 3, 3, 2, 1),
            (9, 8, 70, 3, 1, 1),
            (6, 5, 16, 5, 3, 2),
        ] {
            let batch = 3;
            let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
            let window = Window {
                h,
                w,
                c,
                out_h: side(h),
                out_w: side(w),
                out_c: c,
                kernel,
                stride,
                padding,
            };
            let (pairs, inside) = connections(&window, batch);
            for count_padding in [true, false] {
                let divisor = |output: usize| match count_padding {
                    true => (kernel * kernel) as f64,
                    false => inside[output] as f64,
                };
                let (x, d_y) = (
                    device.random(batch * h * w * c),
                    device.random(inside.len()),
                );
                let (mut y, mut d_x) = (vec![0.0; inside.len()], vec![0.0; x.values.len()]);
                for (input, output) in &pairs {
                    y[*output] += x.values[*input] / divisor(*output);
                    d_x[*input] += d_y.values[*output] / divisor(*output);
                }
                let output = device.random(y.len()).span;
                device.launch(Kernel::AveragePoolForward {
                    x: x.span,
                    y: output,
                    window,
                    batch,
                    count_padding,
                });
                device.expect("forward", output, &y);
                let d_y = d_y.span;
                device.expect_writes("backward", &d_x, |d_x, write| Kernel::AveragePoolBackward {
                    d_y,
                    d_x,
                    window,
                    batch,
                    count_padding,
                    write,
                });
            }
        }
    });
}

#[test]
fn global_average_pooling() {
    on_every_backend(|device| {
        for (batch, spatial, channels) in [(1, 1, 1), (3, 49, 10), (2, 64, 16), (5, 16, 130)] {
            let (x, d_y) = (
                device.random(batch * spatial * channels),
                device.random(batch * channels),
            );
            let at = |i: usize| (i / (spatial * channels)) * channels + i % channels;
            let (mut y, share) = (vec![0.0; batch * channels], 1.0 / spatial as f64);
            x.values
                .iter()
                .enumerate()
                .for_each(|(i, v)| y[at(i)] += v * share);
            let output = device.random(y.len()).span;
            device.launch(Kernel::GlobalAveragePoolForward {
                x: x.span,
                y: output,
                batch,
                spatial,
                channels,
            });
            device.expect("forward", output, &y);
            let d_x: Vec<f64> = (0..x.values.len())
                .map(|i| d_y.values[at(i)] * share)
                .collect();
            let d_y = d_y.span;
            device.expect_writes("backward", &d_x, |d_x, write| {
                Kernel::GlobalAveragePoolBackward {
                    d_y,
                    d_x,
                    batch,
                    spatial,
                    channels,
                    write,
                }
            });
        }
    });
}
