//! A node whose work an earlier one does, and that is there to be named: see [`crate::program::fuse`].
use super::{Layer, Result, Step, Wires};

/// Nothing of its own.
pub struct Within {
    /// What the node is in the model.
    pub kind: &'static str,
}

impl Layer for Within {
    fn forward(&mut self, _: &mut Step<'_>, _: &Wires) -> Result<()> {
        Ok(())
    }

    fn backward(&mut self, _: &mut Step<'_>, _: &Wires) -> Result<()> {
        Ok(())
    }

    fn kind(&self) -> &'static str {
        self.kind
    }
}
