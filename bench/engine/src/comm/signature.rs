//! What a rank calls, in one word: ranks compare these before they believe each other's bytes.
use crate::comm::{Collective, Reduce};
use crate::tensor::Dtype;

/// What a rank calls, packed into a word so that the others can compare: collective (8 bits), root (8),
/// data type (4), combination (4), elements (40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signature(pub(super) u64);

impl Signature {
    pub(super) fn new(
        collective: Collective,
        root: usize,
        dtype: Dtype,
        reduce: Reduce,
        elements: usize,
    ) -> Self {
        let dtype = match dtype {
            Dtype::F32 => 0,
            Dtype::I32 => 1,
            Dtype::I64 => 2,
            Dtype::F16 => 3,
            Dtype::Bf16 => 4,
        };
        let reduce = match reduce {
            Reduce::Sum => 0,
            Reduce::ScaledSum(_) => 1,
            Reduce::Max => 2,
        };
        let elements = elements as u64 & 0xff_ffff_ffff;
        Self(
            ((collective as u64 + 1) << 56)
                | ((root as u64) << 48)
                | (dtype << 44)
                | (reduce << 40)
                | elements,
        )
    }
    /// Whether it is a send.
    pub(super) fn is_send(self) -> bool {
        self.0 >> 56 == Collective::Send as u64 + 1
    }

    pub(super) fn elements(self) -> usize {
        (self.0 & 0xff_ffff_ffff) as usize
    }

    pub(super) fn element_bytes(self) -> usize {
        match (self.0 >> 44) & 15 {
            2 => 8,
            3 | 4 => 2,
            _ => 4,
        }
    }

    pub(super) fn describe(self) -> String {
        let names = [
            "nothing",
            "barrier",
            "broadcast",
            "reduce",
            "all_reduce",
            "all_gather",
            "reduce_scatter",
            "scatter",
            "gather",
            "send",
            "receive",
            "copy",
        ];
        let name = names
            .get((self.0 >> 56) as usize)
            .unwrap_or(&"something unknown");
        let dtype = ["f32", "i32", "i64", "f16", "bf16"]
            .get((self.0 >> 44) as usize & 15)
            .unwrap_or(&"?");
        let reduce = ["sum", "scaled sum", "max"]
            .get((self.0 >> 40) as usize & 15)
            .unwrap_or(&"?");
        format!(
            "{name} of {} {dtype} ({reduce}, root {})",
            self.0 & 0xff_ffff_ffff,
            (self.0 >> 48) & 0xff
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_tell_calls_apart_and_describe_them() {
        let one = Signature::new(Collective::AllReduce, 0, Dtype::F32, Reduce::Sum, 1_000_003);
        let other = Signature::new(Collective::AllReduce, 0, Dtype::F32, Reduce::Max, 1_000_003);
        assert_ne!(one, other);
        assert_eq!(one.describe(), "all_reduce of 1000003 f32 (sum, root 0)");
        assert_eq!(
            Signature::new(Collective::Broadcast, 3, Dtype::I64, Reduce::Sum, 2).describe(),
            "broadcast of 2 i64 (sum, root 3)"
        );
    }
}
