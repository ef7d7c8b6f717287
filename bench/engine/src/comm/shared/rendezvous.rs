//! How ranks meet: arrivals, parking, time limits, and what happens when one does not come.
//!
//! A collective is a sequence of *rounds*. In a round every rank writes its slot of the round, announces what it is
//! doing, arrives (its counter grows by one) and waits until every other counter has grown as far. Then it may read the
//! slots of all ranks. A rank may write for the next round and arrive there before it reads what it has waited for,
//! so that ranks move pieces at the same time instead of taking turns at waiting; it never is further ahead than that.
//!
//! So whoever has arrived at round r has read all of round r - 2, and whoever writes for round r has waited for round
//! r - 1 and knows that everyone has read round r - 3. Three slots would be enough; [`ROUNDS`] is the next power of two,
//! because counters wrap: they are compared modulo 2³², and a round's place is its number modulo [`ROUNDS`].
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::futex;

use super::layout::{ROUNDS, Word};
use super::region::Region;
use crate::comm::error::{CommError, Waiting};
use crate::comm::fault::Fault;
use crate::comm::signature::Signature;
use crate::probe::now_ns;

/// Looks at a counter before parking. A pause takes 10 to 50 ns, so this is some tens of microseconds: the time in
/// which a rank on a core of its own usually comes.
const SPINS: u32 = 1000;
/// Parked waiters look around by themselves this often, so that not even a lost wake-up can hang a rank.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Whether a counter has come as far as `target`.
fn reached(value: u32, target: u32) -> bool {
    value.wrapping_sub(target) as i32 >= 0
}

/// Adds one to `word` and wakes whoever is parked on it.
pub(super) fn advance(region: &Region, word: &Word) {
    word.value.fetch_add(1, Ordering::SeqCst);
    // A waiter adds itself before it looks at the value and sleeps only if that has not changed; both sides are
    // sequentially consistent, so either it sees the new value or it is seen here.
    if word.parked.load(Ordering::SeqCst) > 0 {
        region.wake(word);
    }
}

/// One wait for one counter; `owner` is the rank that advances it.
pub(super) struct Wait<'a> {
    pub(super) region: &'a Region,
    pub(super) owner: usize,
    pub(super) waiting: Waiting,
    pub(super) deadline_ns: u64,
}

/// What ended a wait without success; the caller knows what it was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    Aborted,
    Timeout,
    Departed,
}

impl Wait<'_> {
    /// Until `word` has reached `target`.
    pub(super) fn until(&self, word: &Word, target: u32) -> Result<(), Missed> {
        let spins = if self.waiting.spin { SPINS } else { 1 };
        for _ in 0..spins {
            if reached(word.value.load(Ordering::Acquire), target) {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        word.parked.fetch_add(1, Ordering::SeqCst);
        let result = self.park(word, target);
        word.parked.fetch_sub(1, Ordering::SeqCst);
        result
    }

    fn park(&self, word: &Word, target: u32) -> Result<(), Missed> {
        loop {
            // Order matters: a rank that departs has advanced its counter before, so the value is read last.
            let departed = self.region.line(self.owner).departed.load(Ordering::SeqCst) != 0;
            let value = word.value.load(Ordering::SeqCst);
            if reached(value, target) {
                return Ok(());
            }
            if self.region.is_aborted() {
                return Err(Missed::Aborted);
            }
            if departed {
                return Err(Missed::Departed);
            }
            let now = now_ns();
            if now >= self.deadline_ns {
                return Err(Missed::Timeout);
            }
            let pause = LOOK_AGAIN.min(Duration::from_nanos(self.deadline_ns - now));
            let pause = futex::Timespec {
                tv_sec: pause.as_secs() as i64,
                tv_nsec: i64::from(pause.subsec_nanos()),
            };
            // Every way out of the call leads back to the look above.
            let _ = futex::wait(&word.value, self.region.futex_flags(), value, Some(&pause));
        }
    }
}

/// Which of a rank's two counters: collectives run on the stream's thread, barriers on the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Stream,
    Host,
}

/// One rank's place in the meetings.
pub(super) struct Meeting<'a> {
    pub(super) region: &'a Region,
    pub(super) rank: usize,
    pub(super) waiting: Waiting,
    pub(super) fault: &'a Fault,
}

impl Meeting<'_> {
    fn word(&self, lane: Lane, rank: usize) -> &Word {
        let line = self.region.line(rank);
        match lane {
            Lane::Stream => &line.arrivals,
            Lane::Host => &line.barriers,
        }
    }

    /// Rounds that this rank has arrived at: the number of the next one.
    pub(super) fn round(&self, lane: Lane) -> u32 {
        self.word(lane, self.rank).value.load(Ordering::Relaxed)
    }

    /// Arrives at the next round and waits for all others; returns the nanoseconds waited.
    pub(super) fn meet(&self, lane: Lane, call: &dyn Fn() -> String) -> Result<u64, CommError> {
        self.arrive(lane)?;
        self.join(lane, call)
    }

    /// Arrives at the next round.
    pub(super) fn arrive(&self, lane: Lane) -> Result<(), CommError> {
        self.refuse_aborted()?;
        let line = self.region.line(self.rank);
        line.heartbeat_ns.store(now_ns(), Ordering::Relaxed);
        advance(self.region, self.word(lane, self.rank));
        Ok(())
    }

    /// Waits until all others have arrived at the round that this rank came to last; returns the nanoseconds waited.
    pub(super) fn join(&self, lane: Lane, call: &dyn Fn() -> String) -> Result<u64, CommError> {
        let target = self.round(lane);
        let begin = now_ns();
        let deadline_ns =
            begin.saturating_add(self.waiting.timeout.as_nanos().min(u128::from(u64::MAX)) as u64);
        for owner in (0..self.region.world_size()).filter(|owner| *owner != self.rank) {
            let wait = Wait {
                region: self.region,
                owner,
                waiting: self.waiting,
                deadline_ns,
            };
            wait.until(self.word(lane, owner), target)
                .map_err(|missed| self.explain(missed, lane, target, call()))?;
        }
        Ok(now_ns() - begin)
    }

    /// An error for everyone, once the region is aborted.
    pub(super) fn refuse_aborted(&self) -> Result<(), CommError> {
        if self.region.is_aborted() {
            Err(self.abort_error())
        } else {
            Ok(())
        }
    }

    pub(super) fn abort_error(&self) -> CommError {
        let (by, reason) = self
            .region
            .aborted()
            .unwrap_or((None, "no reason given".into()));
        CommError::Aborted { by, reason }
    }

    /// The error of a missed meeting; what only this rank knows becomes the reason that all others see.
    fn explain(&self, missed: Missed, lane: Lane, target: u32, call: String) -> CommError {
        let arrived =
            |rank: usize| reached(self.word(lane, rank).value.load(Ordering::SeqCst), target);
        let departed = |rank: usize| self.region.line(rank).departed.load(Ordering::SeqCst) != 0;
        // Whoever is merely late when another is found to be gone is not to blame.
        let blamed =
            |rank: &usize| !arrived(*rank) && (missed != Missed::Departed || departed(*rank));
        let missing = (0..self.region.world_size()).filter(blamed).collect();
        self.fail(missed, missing, call)
    }

    pub(super) fn fail(&self, missed: Missed, missing: Vec<usize>, call: String) -> CommError {
        let (rank, seconds) = (self.rank, self.waiting.timeout.as_secs());
        let error = match missed {
            Missed::Aborted => return self.abort_error(),
            Missed::Timeout => CommError::Timeout {
                rank,
                call,
                missing,
                seconds,
            },
            Missed::Departed => CommError::Departed {
                rank,
                call,
                missing,
            },
        };
        self.region.abort(Some(rank), &error.to_string());
        error
    }

    /// Compares what all ranks announced for the round at `place`.
    pub(super) fn compare(&self, place: usize, ours: Signature) -> Result<(), CommError> {
        for peer in 0..self.region.world_size() {
            let theirs = Signature(announced(&self.region.line(peer).signature, place));
            if theirs != ours {
                let error = CommError::Mismatch {
                    rank: self.rank,
                    peer,
                    ours: ours.describe(),
                    theirs: theirs.describe(),
                };
                self.region.abort(Some(self.rank), &error.to_string());
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Where what belongs to round `round` lies.
pub(super) fn place(round: u32) -> usize {
    round as usize % ROUNDS
}

/// Reads one of some announced words. The arrival that was waited for orders it.
pub(super) fn announced(words: &[AtomicU64], place: usize) -> u64 {
    words[place].load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_wrap_around() {
        assert!(reached(5, 5) && reached(6, 5) && !reached(4, 5));
        assert!(reached(2, u32::MAX) && !reached(u32::MAX, 2));
    }
}
