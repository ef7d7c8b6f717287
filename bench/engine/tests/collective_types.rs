//! Every collective in every data type, combination and shape: 1 to 4 ranks, lengths of 0, 1 and fewer than the ranks, lengths
//! that do not divide and that cross many pieces, every root, over each transport. Values are small integers (shifted
//! beyond 32 bits where they are that wide), so equality is exact.
mod ranks;

use std::fmt::Debug;

use ranks::{PATIENT, Rank, TRANSPORTS, spawn_on, value};
use syncmark_engine::comm::{Collective, Reduce, chunk};
use syncmark_engine::tensor::Span;

const LENGTHS: [usize; 7] = [0, 1, 2, 3, 5, 1003, 4099];

/// A type that ranks exchange.
trait Element: Copy + Debug + PartialEq + PartialOrd + std::iter::Sum {
    /// Combinations that it takes beside the sum and the largest.
    const SCALES: &'static [f32];
    /// A whole number as this type, with low bits of zero where there is room.
    fn of(small: i32) -> Self;
    fn scaled(self, factor: f32) -> Self;
    fn put(rank: &mut Rank, values: &[Self]) -> Span;
    fn get(rank: &mut Rank, span: Span) -> Vec<Self>;
}

impl Element for f32 {
    const SCALES: &'static [f32] = &[0.5, 2.0];
    fn of(small: i32) -> Self {
        small as f32
    }
    fn scaled(self, factor: f32) -> Self {
        self * factor
    }
    fn put(rank: &mut Rank, values: &[Self]) -> Span {
        rank.f32(values)
    }
    fn get(rank: &mut Rank, span: Span) -> Vec<Self> {
        rank.read_f32(span)
    }
}

impl Element for i32 {
    const SCALES: &'static [f32] = &[];
    fn of(small: i32) -> Self {
        small << 20
    }
    fn scaled(self, _: f32) -> Self {
        unreachable!("integers are not scaled")
    }
    fn put(rank: &mut Rank, values: &[Self]) -> Span {
        rank.i32(values)
    }
    fn get(rank: &mut Rank, span: Span) -> Vec<Self> {
        rank.read_i32(span)
    }
}

impl Element for i64 {
    const SCALES: &'static [f32] = &[];
    fn of(small: i32) -> Self {
        i64::from(small) << 40
    }
    fn scaled(self, _: f32) -> Self {
        unreachable!("integers are not scaled")
    }
    fn put(rank: &mut Rank, values: &[Self]) -> Span {
        rank.i64(values)
    }
    fn get(rank: &mut Rank, span: Span) -> Vec<Self> {
        rank.read_i64(span)
    }
}

/// What `rank` contributes.
fn own<T: Element>(rank: usize, len: usize) -> Vec<T> {
    (0..len).map(|i| T::of(value(rank, i) as i32)).collect()
}

/// What all contribute, combined.
fn combined<T: Element>(world: usize, len: usize, reduce: Reduce) -> Vec<T> {
    let of = |i: usize| (0..world).map(move |rank| T::of(value(rank, i) as i32));
    let one = |i: usize| match reduce {
        Reduce::Sum => of(i).sum(),
        Reduce::ScaledSum(factor) => of(i).map(|value: T| value.scaled(factor)).sum(),
        Reduce::Max => of(i).fold(
            T::of(-16),
            |most, value| {
                if value > most { value } else { most }
            },
        ),
    };
    (0..len).map(one).collect()
}

/// Runs a collective of `from` elements to `to` elements, and returns what is in the latter.
fn call<T: Element>(
    r: &mut Rank,
    collective: Collective,
    from: &[T],
    to: usize,
    reduce: Reduce,
    root: usize,
) -> Vec<T> {
    let source = T::put(r, from);
    let in_place = matches!(
        collective,
        Collective::AllReduce
            | Collective::Broadcast
            | Collective::Reduce
            | Collective::Send
            | Collective::Receive
    );
    let result = if in_place {
        source
    } else {
        T::put(r, &vec![T::of(-3); to])
    };
    let done = r.call(collective, source, result, reduce, root);
    done.unwrap_or_else(|error| panic!("{collective:?}: {error}"));
    if !in_place {
        assert_eq!(T::get(r, source), from, "{collective:?} leaves its input");
    }
    T::get(r, result)
}

fn combining<T: Element>(r: &mut Rank, len: usize, reduce: Reduce) {
    let (rank, world) = (r.rank, r.world);
    let (mine, all) = (own::<T>(rank, len), combined::<T>(world, len, reduce));
    assert_eq!(
        call(r, Collective::AllReduce, &mine, len, reduce, 0),
        all,
        "all_reduce of {len}, {reduce:?}"
    );
    let part = chunk(len, world, rank);
    assert_eq!(
        call(r, Collective::ReduceScatter, &mine, part.len(), reduce, 0),
        all[part],
        "reduce_scatter of {len}, {reduce:?}"
    );
    for root in 0..world {
        let expected = if rank == root { &all } else { &mine };
        assert_eq!(
            &call(r, Collective::Reduce, &mine, len, reduce, root),
            expected,
            "reduce of {len} to {root}, {reduce:?}"
        );
    }
}

fn moving<T: Element>(r: &mut Rank, len: usize) {
    let (rank, world, sum) = (r.rank, r.world, Reduce::Sum);
    let mine = own::<T>(rank, len);
    let everyones: Vec<T> = (0..world).flat_map(|rank| own::<T>(rank, len)).collect();
    let gathered = call(r, Collective::AllGather, &mine, len * world, sum, 0);
    assert_eq!(gathered, everyones, "all_gather of {len}");
    let part = chunk(len, world, rank);
    for root in 0..world {
        let whole = own::<T>(root, len);
        let sent = call(r, Collective::Broadcast, &mine, len, sum, root);
        assert_eq!(sent, whole, "broadcast of {len} from {root}");
        let from = if rank == root { &whole[..] } else { &[] };
        let scattered = call(r, Collective::Scatter, from, part.len(), sum, root);
        assert_eq!(scattered, whole[part.clone()], "scatter of {len}");
        let room = if rank == root { len } else { 0 };
        let gathered = call(r, Collective::Gather, &scattered, room, sum, root);
        let expected = if rank == root { &whole[..] } else { &[] };
        assert_eq!(gathered, expected, "gather of {len} to {root}");
    }
}

/// A message from each rank to the next; rank 0 begins, so nobody waits for somebody who waits.
fn messages<T: Element>(r: &mut Rank, len: usize) {
    let (rank, world) = (r.rank, r.world);
    if world == 1 {
        return;
    }
    let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
    let mine = own::<T>(rank, len);
    let send = |r: &mut Rank| {
        let kept = call(r, Collective::Send, &mine, len, Reduce::Sum, next);
        assert_eq!(kept, mine, "a send of {len} leaves what was sent");
    };
    if rank == 0 {
        send(r);
    }
    let blank = vec![T::of(-3); len];
    let came = call(r, Collective::Receive, &blank, len, Reduce::Sum, previous);
    assert_eq!(came, own::<T>(previous, len), "receive of {len}");
    if rank != 0 {
        send(r);
    }
}

fn everything<T: Element>(r: &mut Rank) {
    for len in LENGTHS {
        let scaled = T::SCALES.iter().map(|factor| Reduce::ScaledSum(*factor));
        for reduce in [Reduce::Sum, Reduce::Max].into_iter().chain(scaled) {
            combining::<T>(r, len, reduce);
        }
        moving::<T>(r, len);
        messages::<T>(r, len);
        let (none, sum) = (Span::EMPTY, Reduce::Sum);
        r.call(Collective::Barrier, none, none, sum, 0).unwrap();
        r.comm.barrier().unwrap();
    }
}

fn on_all(check: impl Fn(&mut Rank) + Sync) {
    for world in 1..=4 {
        for transport in TRANSPORTS {
            spawn_on(transport, world, PATIENT, |mut r| check(&mut r));
        }
    }
}

#[test]
fn floats() {
    on_all(everything::<f32>);
}

#[test]
fn integers_of_32_bits() {
    on_all(everything::<i32>);
}

#[test]
fn integers_of_64_bits() {
    on_all(everything::<i64>);
}

#[test]
fn integers_cannot_be_scaled() {
    for transport in TRANSPORTS {
        spawn_on(transport, 2, PATIENT, |mut r| {
            let span = r.i32(&[1, 2]);
            let scaled = Reduce::ScaledSum(0.5);
            let error = r.call(Collective::AllReduce, span, span, scaled, 0);
            let error = error.unwrap_err();
            assert!(error.contains("only floats can be scaled"), "{error}");
        });
    }
}
