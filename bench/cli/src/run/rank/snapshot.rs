//! What every pass begins with: the snapshot that all go back to, and graphs that were captured before.
//!
//! Contract: a pass times no capture, and what is taken to capture ahead is undone: parameters, buffers, optimizer state and the place in the data
//! are those of the snapshot.
use syncmark_engine::probe::Silent;
use syncmark_engine::strategy::STEPS_BEFORE_CAPTURE;

use super::RankError;
use super::build::Participant;

/// Steps after which any kind of step that a pass takes is captured: buckets are rebuilt in the first, a hook may do something else in each of the
/// next two, then come those of the kind that are not captured, and two that are replayed.
const STEPS_AHEAD: u64 = 3 + STEPS_BEFORE_CAPTURE as u64 + 2;

impl Participant {
    /// Where ranks capture steps: takes so many that the pass at hand replays what it times, and goes back to what was remembered. A step is
    /// another kind without synchronization, and what is captured within a pass would be timed.
    pub(super) fn capture_ahead(&mut self) -> Result<(), RankError> {
        if !self.captures {
            return Ok(());
        }
        for _ in 0..STEPS_AHEAD {
            self.step(&mut Silent)?;
        }
        self.strategy.finish()?;
        self.go_back()
    }

    /// Remembers parameters, buffers, optimizer state and the place in the data.
    pub(super) fn remember(&mut self) -> Result<(), RankError> {
        self.strategy.snapshot()?;
        self.snapshot_place = Some(self.loader.place());
        Ok(())
    }

    /// Goes back to what was remembered: every pass trains on the same batches as well.
    pub(super) fn go_back(&mut self) -> Result<(), RankError> {
        self.strategy.restore()?;
        if let Some(place) = self.snapshot_place {
            self.loader.return_to(place);
        }
        Ok(())
    }
}
