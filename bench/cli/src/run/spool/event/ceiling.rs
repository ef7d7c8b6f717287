//! What the machine can do at best, as an event.
use super::{EVENT_BYTES, Fields};

/// A ceiling that was measured beside the passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CeilingEvent {
    /// Index into the engine's ceilings.
    pub ceiling: u8,
    /// Index into the engine's instructions plus 1; 0 where they do not decide.
    pub instructions: u8,
    /// Threads that took part.
    pub threads: u16,
    /// Windows.
    pub windows: u16,
    /// Bytes that each thread went over, where that decides.
    pub working_set_bytes: Option<u64>,
    /// Last-level cache of the cores, where it is known.
    pub last_level_cache_bytes: Option<u64>,
    /// Median, best, first and third quartile of the windows.
    pub figures: [f64; 4],
}

/// Stands for a size that is not there.
const NONE: u64 = u64::MAX;

impl CeilingEvent {
    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        f.put([kind, self.ceiling, self.instructions, 0])
            .put(self.threads.to_le_bytes())
            .put(self.windows.to_le_bytes())
            .words(&[
                self.working_set_bytes.unwrap_or(NONE),
                self.last_level_cache_bytes.unwrap_or(NONE),
            ])
            .words(&self.figures.map(f64::to_bits));
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        let (ceiling, instructions) = (f.u8(), f.u8());
        f.at = 4;
        let (threads, windows) = (f.u16(), f.u16());
        let size = |word: u64| Some(word).filter(|word| *word != NONE);
        Self {
            ceiling,
            instructions,
            threads,
            windows,
            working_set_bytes: size(f.u64()),
            last_level_cache_bytes: size(f.u64()),
            figures: std::array::from_fn(|_| f64::from_bits(f.u64())),
        }
    }
}
