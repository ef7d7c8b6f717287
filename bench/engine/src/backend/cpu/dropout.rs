//! Dropout with masks that are a function of what they are for, so that nothing is kept for backward.
//!
//! Contract: the mask depends on seed, node, step, the sample's global index and the element's place in its sample, never on
//! how samples are spread over devices. Forward and backward are the same kernel.
//! Reference: [`crate::philox`]; PyTorch's `dropout` for the scaling.
use crate::backend::cpu::columns::widest;
use crate::kernel::Write;
use crate::philox;

/// Blocks of four numbers that are drawn together, for vector code.
const BLOCKS: usize = 16;

/// Where a mask comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mask {
    pub(super) p: f32,
    pub(super) seed: u64,
    pub(super) node: u32,
    pub(super) step: u32,
    /// Global index of the first sample.
    pub(super) first_sample: u32,
}

widest! {
    /// mask/(1 − p) of the elements from `first` on of the batch's sample `sample`.
    pub(super) fn factors(mask: Mask, sample: usize, first: usize, to: &mut [f32]) {
        let scale = if mask.p < 1.0 { 1.0 / (1.0 - mask.p) } else { 0.0 };
        let sample = mask.first_sample.wrapping_add(sample as u32);
        let draw = |block: usize| {
            let counter = philox::dropout_counter(block as u32, sample, mask.step, mask.node);
            philox::block(philox::key(mask.seed), counter)
                .map(|word| if philox::uniform(word) >= mask.p { scale } else { 0.0 })
        };
        // Up to the first whole block, whole blocks, and the rest.
        let (head, rest) = to.split_at_mut(first.next_multiple_of(4).saturating_sub(first).min(to.len()));
        if !head.is_empty() {
            head.copy_from_slice(&draw(first / 4)[first % 4..][..head.len()]);
        }
        let block = first.div_ceil(4);
        let mut fours = rest.chunks_exact_mut(4);
        let mut next = block;
        for four in &mut fours {
            four.copy_from_slice(&draw(next));
            next += 1;
        }
        let tail = fours.into_remainder();
        if !tail.is_empty() {
            tail.copy_from_slice(&draw(next)[..tail.len()]);
        }
    }
}

widest! {
    /// y (+)= x·mask/(1 − p).
    pub(super) fn dropout(x: &[f32], y: &mut [f32], mask: Mask, batch: usize, write: Write) {
        let scale = if mask.p < 1.0 { 1.0 / (1.0 - mask.p) } else { 0.0 };
        let size = x.len() / batch.max(1);
        for (b, (x, y)) in x.chunks_exact(size.max(1)).zip(y.chunks_exact_mut(size.max(1))).enumerate() {
            let sample = mask.first_sample.wrapping_add(b as u32);
            for (chunk, (x, y)) in x.chunks(4 * BLOCKS).zip(y.chunks_mut(4 * BLOCKS)).enumerate() {
                let mut factors = [0.0f32; 4 * BLOCKS];
                for (block, four) in factors.chunks_exact_mut(4).enumerate() {
                    let index = (chunk * BLOCKS + block) as u32;
                    let counter = philox::dropout_counter(index, sample, mask.step, mask.node);
                    let words = philox::block(philox::key(mask.seed), counter);
                    for (factor, word) in four.iter_mut().zip(words) {
                        *factor = if philox::uniform(word) >= mask.p { scale } else { 0.0 };
                    }
                }
                // A dropped element is zero even where x is not finite, as a mask that selects would make it.
                let kept = |x: f32, factor: f32| if factor == 0.0 { 0.0 } else { x * factor };
                for ((y, &x), &factor) in y.iter_mut().zip(x).zip(&factors) {
                    match write {
                        Write::Overwrite => *y = kept(x, factor),
                        Write::Accumulate => *y += kept(x, factor),
                    }
                }
            }
        }
    }
}
