//! What the communicators `shared` and `tcp` add up: sums, means and largest values, rounded alike on every rank, whole or in
//! chunks. Values are small integers unless rounding is the matter, so equality is exact.
mod ranks;

use ranks::{PATIENT, Rank, TRANSPORTS, Transport, everywhere, spawn_on, sum, value, values};
use syncmark_engine::comm::{Collective, Reduce, chunk};
use syncmark_engine::tensor::Dtype;
#[test]
fn all_reduce_sums_scales_and_takes_the_largest() {
    everywhere(|mut r, len| {
        let (all, world) = (sum(r.world, len), r.world);
        let span = r.f32(&values(r.rank, len));
        r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        assert_eq!(r.read_f32(span), all);

        let span = r.f32(&values(r.rank, len));
        r.call(Collective::AllReduce, span, span, Reduce::ScaledSum(0.5), 0)
            .unwrap();
        let half: Vec<f32> = all.iter().map(|sum| sum * 0.5).collect();
        assert_eq!(r.read_f32(span), half);

        let span = r.f32(&values(r.rank, len));
        r.call(Collective::AllReduce, span, span, Reduce::Max, 0)
            .unwrap();
        let largest = |i: usize| {
            (0..world)
                .map(|rank| value(rank, i))
                .fold(f32::MIN, f32::max)
        };
        assert_eq!(r.read_f32(span), (0..len).map(largest).collect::<Vec<_>>());

        let wide: Vec<i64> = values(r.rank, len)
            .iter()
            .map(|v| (*v as i64) << 33)
            .collect();
        let span = r.i64(&wide);
        r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        assert_eq!(
            r.read_i64(span),
            all.iter().map(|v| (*v as i64) << 33).collect::<Vec<_>>()
        );
    });
}

/// Integers up to 60 are exact in both formats, and so are sums of four of them, all even ones up to 240 in bfloat16.
#[test]
fn halves_are_reduced_broadcast_and_gathered() {
    everywhere(|mut r, len| {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let (all, world) = (sum(r.world, len), r.world);
            let doubled: Vec<f32> = values(r.rank, len).iter().map(|v| 2.0 * v).collect();
            let span = r.halves(dtype, &doubled);
            r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                .unwrap();
            let expected: Vec<f32> = all.iter().map(|v| 2.0 * v).collect();
            assert_eq!(r.read_halves(span), expected, "{dtype:?}");

            let span = r.halves(dtype, &doubled);
            r.call(Collective::AllReduce, span, span, Reduce::ScaledSum(0.5), 0)
                .unwrap();
            assert_eq!(r.read_halves(span), all, "{dtype:?}, scaled");

            let span = r.halves(dtype, &doubled);
            r.call(Collective::AllReduce, span, span, Reduce::Max, 0)
                .unwrap();
            let each = |i| (0..world).map(move |rank| 2.0 * value(rank, i));
            let largest = |i| each(i).fold(f32::MIN, f32::max);
            let expected: Vec<f32> = (0..len).map(largest).collect();
            assert_eq!(r.read_halves(span), expected, "{dtype:?}, largest");

            let span = r.halves(dtype, &doubled);
            let gathered = r.halves(dtype, &vec![0.0; len * world]);
            r.call(Collective::AllGather, span, gathered, Reduce::Sum, 0)
                .unwrap();
            let blocks = (0..world).flat_map(|rank| values(rank, len));
            let expected: Vec<f32> = blocks.map(|v| 2.0 * v).collect();
            assert_eq!(r.read_halves(gathered), expected, "{dtype:?}, gathered");

            r.call(Collective::Broadcast, span, span, Reduce::Sum, world - 1)
                .unwrap();
            let expected: Vec<f32> = values(world - 1, len).iter().map(|v| 2.0 * v).collect();
            assert_eq!(r.read_halves(span), expected, "{dtype:?}, broadcast");
        }
    });
}

#[test]
fn reduce_scatter_and_all_gather_work_in_place() {
    everywhere(|mut r, len| {
        let own = chunk(len, r.world, r.rank);
        let expected: Vec<f32> = sum(r.world, len).iter().map(|sum| sum * 0.5).collect();
        let span = r.f32(&values(r.rank, len));
        let (half, part) = (Reduce::ScaledSum(0.5), span.slice(own.clone()));
        r.call(Collective::ReduceScatter, span, part, half, 0)
            .unwrap();
        assert_eq!(r.read_f32(part), expected[own]);

        // A tenth of the length, so that it divides among the ranks; blocks still cross several slots.
        let block = len / 10;
        let all = r.f32(&vec![f32::NAN; block * r.world]);
        let mine = r.f32(&values(r.rank, block));
        let place = all.slice(r.rank * block..(r.rank + 1) * block);
        r.copy(mine, place);
        r.call(Collective::AllGather, place, all, Reduce::Sum, 0)
            .unwrap();
        let everyone: Vec<f32> = (0..r.world).flat_map(|rank| values(rank, block)).collect();
        assert_eq!(r.read_f32(all), everyone);
    });
}

#[test]
fn rounding_is_the_same_on_every_rank() {
    let inexact =
        |rank: usize| -> Vec<f32> { (0..999).map(|i| 1.0 / (i + 3 * rank + 1) as f32).collect() };
    let reduced = |mut r: Rank| {
        let span = r.f32(&inexact(r.rank));
        r.call(
            Collective::AllReduce,
            span,
            span,
            Reduce::ScaledSum(0.25),
            0,
        )
        .unwrap();
        r.read_f32(span)
    };
    // Over shared memory in rank order; on the ring a chunk's sum begins with the rank after its owner.
    let summed = |i: usize, first: usize| {
        (1..4).fold(inexact(first)[i] * 0.25, |sum, by| {
            sum + inexact((first + by) % 4)[i] * 0.25
        })
    };
    let owner = |i: usize| {
        (0..4)
            .find(|rank| chunk(999, 4, *rank).contains(&i))
            .unwrap()
    };
    for transport in TRANSPORTS {
        let first = |i: usize| match transport {
            Transport::Shared(_) => 0,
            Transport::Tcp { .. } => owner(i) + 1,
        };
        let expected: Vec<f32> = (0..999).map(|i| summed(i, first(i) % 4)).collect();
        for result in spawn_on(transport, 4, PATIENT, reduced) {
            assert!(result == expected, "{transport:?}");
        }
    }
}

#[test]
fn a_reduce_scatter_has_the_bits_of_an_all_reduce() {
    for transport in TRANSPORTS {
        spawn_on(transport, 3, PATIENT, |mut r| {
            let inexact: Vec<f32> = (0..1001)
                .map(|i| 1.0 / (i + 3 * r.rank + 1) as f32)
                .collect();
            let whole = r.f32(&inexact);
            let own = chunk(1001, 3, r.rank);
            let part = r.f32(&vec![0.0; own.len()]);
            let mean = Reduce::ScaledSum(1.0 / 3.0);
            r.call(Collective::ReduceScatter, whole, part, mean, 0)
                .unwrap();
            r.call(Collective::AllReduce, whole, whole, mean, 0)
                .unwrap();
            assert!(r.read_f32(part) == r.read_f32(whole)[own]);
        });
    }
}

#[test]
fn reduce_scatter_leaves_each_rank_its_chunk() {
    everywhere(|mut r, len| {
        let own = chunk(len, r.world, r.rank);
        let from = r.f32(&values(r.rank, len));
        let to = r.f32(&vec![0.0; own.len()]);
        r.call(Collective::ReduceScatter, from, to, Reduce::Sum, 0)
            .unwrap();
        assert_eq!(r.read_f32(to), sum(r.world, len)[own]);
        assert_eq!(r.read_f32(from), values(r.rank, len));
    });
}
