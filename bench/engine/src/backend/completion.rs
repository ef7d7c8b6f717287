//! An event of some backend of this process, for others to wait for.
use super::Result;
use super::cpu::stream::HostCompletion;
use super::cuda::stream::DeviceCompletion;

/// A handle to an event. Cloning does not allocate.
#[derive(Clone, Debug)]
pub enum Completion {
    /// Of a stream that a thread of this process runs.
    Host(HostCompletion),
    /// Of a GPU's stream.
    Device(DeviceCompletion),
}

impl Completion {
    /// Whether the event was reached, be it with success or as failed.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Host(completion) => completion.is_done(),
            Self::Device(completion) => completion.is_done(),
        }
    }

    /// Blocks until the event is reached.
    ///
    /// # Errors
    /// The failure of the event's stream, when it came before the event.
    pub fn wait(&self) -> Result<()> {
        match self {
            Self::Host(completion) => completion.wait(),
            Self::Device(completion) => completion.wait(),
        }
    }
}
