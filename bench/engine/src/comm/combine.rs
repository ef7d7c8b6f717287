//! The loops in which collectives combine contributions, with the widest vectors that the machine has.
//!
//! Contract: operands of one call have one length, and the first one comes first in every operation, element by element, so
//! that ranks that combine the same contributions get the same bits, whatever their vectors.
//! Reference: the semantics of sum and max in MPI_Reduce.
use crate::backend::cpu::columns::widest;
use crate::comm::Reduce;
use crate::comm::number::Number;

/// Elements that [`join_over`] copies at a time, on the stack: within the first-level cache.
const BLOCK: usize = 512;

/// What a reduction of one contribution leaves.
pub(super) fn scale<T: Number>(reduce: Reduce, data: &mut [T]) {
    if let Reduce::ScaledSum(factor) = reduce
        && factor != 1.0
    {
        scale_by(factor, data);
    }
}

widest! {
    fn scale_by<T: Number>(factor: f32, data: &mut [T]) {
        data.iter_mut().for_each(|value| *value = value.scaled(factor));
    }
}

/// Copies a contribution, scaled if the reduction says so.
pub(super) fn enter<T: Number>(reduce: Reduce, from: &[T], to: &mut [T]) {
    match reduce {
        Reduce::ScaledSum(factor) => enter_scaled(factor, from, to),
        Reduce::Sum | Reduce::Max => to.copy_from_slice(from),
    }
}

widest! {
    fn enter_scaled<T: Number>(factor: f32, from: &[T], to: &mut [T]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.scaled(factor));
    }
}

widest! {
    /// `to` = `first` and `second`, both of them as they entered.
    pub(super) fn join<T: Number>(reduce: Reduce, first: &[T], second: &[T], to: &mut [T]) {
        let all = to.iter_mut().zip(first.iter().zip(second));
        match reduce {
            Reduce::Sum | Reduce::ScaledSum(_) => all.for_each(|(to, (a, b))| *to = a.add(*b)),
            Reduce::Max => all.for_each(|(to, (a, b))| *to = a.larger(*b)),
        }
    }
}

/// Combines `came`, as it entered, with `own`, which the result replaces; `enter` copies the own contribution as it enters, and
/// `first` says whether it comes first. Every rank runs [`join`] over the same operands, neither of which is its result, so
/// that not even the payload of a NaN depends on the rank.
pub(super) fn join_over<T: Number>(
    reduce: Reduce,
    first: bool,
    came: &[T],
    own: &mut [T],
    enter: impl Fn(&[T], &mut [T]),
) {
    let Some(any) = own.first().copied() else {
        return;
    };
    let mut block = [any; BLOCK];
    for (own, came) in own.chunks_mut(BLOCK).zip(came.chunks(BLOCK)) {
        let entered = &mut block[..own.len()];
        enter(own, entered);
        let (a, b) = if first {
            (&*entered, came)
        } else {
            (came, &*entered)
        };
        join(reduce, a, b, own);
    }
}

widest! {
    /// Adds to what ranks before it left a contribution as it entered.
    pub(super) fn append<T: Number>(reduce: Reduce, result: &mut [T], next: &[T]) {
        let both = result.iter_mut().zip(next);
        match reduce {
            Reduce::Sum | Reduce::ScaledSum(_) => both.for_each(|(to, next)| *to = to.add(*next)),
            Reduce::Max => both.for_each(|(to, next)| *to = to.larger(*next)),
        }
    }
}

widest! {
    /// Adds to what ranks before it left a contribution that is not scaled yet.
    pub(super) fn append_own<T: Number>(reduce: Reduce, result: &mut [T], own: &[T]) {
        let both = result.iter_mut().zip(own);
        match reduce {
            Reduce::Sum => both.for_each(|(to, own)| *to = to.add(*own)),
            Reduce::ScaledSum(factor) => both.for_each(|(to, own)| *to = to.add(own.scaled(factor))),
            Reduce::Max => both.for_each(|(to, own)| *to = to.larger(*own)),
        }
    }
}

widest! {
    /// Combines what came with the own contribution, which is not scaled yet and which the result replaces.
    pub(super) fn meet<T: Number>(reduce: Reduce, came: &[T], own: &mut [T]) {
        let both = own.iter_mut().zip(came);
        match reduce {
            Reduce::Sum => both.for_each(|(own, came)| *own = came.add(*own)),
            Reduce::ScaledSum(factor) => {
                both.for_each(|(own, came)| *own = came.add(own.scaled(factor)));
            }
            Reduce::Max => both.for_each(|(own, came)| *own = came.larger(*own)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::half::{F16, Half};

    #[test]
    fn the_own_contribution_is_scaled_where_it_has_not_been() {
        let (first, second) = ([1.0_f32, 2.0, 3.0], [10.0, 20.0, 30.0]);
        let half = Reduce::ScaledSum(0.5);
        let mut to = [0.0; 3];
        join(half, &first, &second, &mut to);
        assert_eq!(to, [11.0, 22.0, 33.0]);
        append(half, &mut to, &first);
        assert_eq!(to, [12.0, 24.0, 36.0]);
        append_own(half, &mut to, &second);
        assert_eq!(to, [17.0, 34.0, 51.0]);
        meet(half, &first, &mut to);
        assert_eq!(to, [9.5, 19.0, 28.5]);
        enter(half, &first, &mut to);
        assert_eq!(to, [0.5, 1.0, 1.5]);
        scale(half, &mut to);
        assert_eq!(to, [0.25, 0.5, 0.75]);
    }

    #[test]
    fn ranks_that_join_over_their_own_get_the_same_bits() {
        let values = |from: f32| (0..1300).map(|i| from + i as f32 / 7.0).collect::<Vec<_>>();
        let reduce = Reduce::ScaledSum(0.3);
        let entered = |own: &[f32]| {
            let mut to = vec![0.0; own.len()];
            enter(reduce, own, &mut to);
            to
        };
        let [mut low, mut high] = [values(0.1), values(-3.0)];
        low[7] = f32::NAN;
        high[7] = -f32::NAN;
        let [from_low, from_high] = [entered(&low), entered(&high)];
        let mut expected = vec![0.0; 1300];
        join(reduce, &from_low, &from_high, &mut expected);
        join_over(reduce, true, &from_high, &mut low, |own, to| {
            enter(reduce, own, to);
        });
        join_over(reduce, false, &from_low, &mut high, |own, to| {
            enter(reduce, own, to);
        });
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&low), bits(&expected));
        assert_eq!(bits(&high), bits(&expected));
    }

    #[test]
    fn the_largest_is_kept_of_every_type() {
        let mut to = [0_i64; 37];
        let first: Vec<i64> = (0..37).collect();
        join(Reduce::Max, &first, &[18; 37], &mut to);
        assert!(to.iter().zip(&first).all(|(to, i)| *to == (*i).max(18)));
        let halves = |value: f32| vec![F16::narrow(value); 21];
        let mut to = halves(-1.0);
        append(Reduce::Max, &mut to, &halves(2.5));
        assert_eq!(to, halves(2.5));
    }
}
