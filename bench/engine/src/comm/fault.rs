//! Fault injection for tests: stops a rank at a chosen point of a call, on any transport.
//!
//! A communicator passes a point whenever something has happened in a call: on entering, at each meeting or transfer. It
//! costs a look at an empty cell. Nothing but tests arms it.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What happens at the point: it panics, kills or stops the process, or sleeps.
type Action = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    armed: OnceLock<(usize, Action)>,
    passed: AtomicUsize,
}

/// An injected fault, or none; clones are the same one.
#[derive(Clone, Default)]
pub struct Fault(Arc<State>);

impl Fault {
    /// Runs `action` at point `point` from now on; once per communicator.
    ///
    /// # Panics
    /// When it is armed already.
    pub fn arm(&self, point: usize, action: impl Fn() + Send + Sync + 'static) {
        let fresh = self.0.armed.set((point, Box::new(action)));
        assert!(fresh.is_ok(), "a communicator's fault is armed once");
    }

    /// Points passed since it was armed.
    pub fn passed(&self) -> usize {
        self.0.passed.load(Ordering::Relaxed)
    }

    /// A call has come this far.
    pub(super) fn point(&self) {
        if let Some((point, action)) = self.0.armed.get()
            && self.0.passed.fetch_add(1, Ordering::Relaxed) == *point
        {
            action();
        }
    }
}
