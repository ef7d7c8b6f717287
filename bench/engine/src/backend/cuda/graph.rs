//! Work of a stream that was captured once and is launched again as a whole: a CUDA graph.
//!
//! Contract: while a stream captures, nothing of what is enqueued on it runs. Calls that have nothing to do with the stream are let through, to
//! this thread and to others (`RELAXED`): cuDNN makes some within a convolution, and other ranks are threads of this process. That this device
//! neither waits nor allocates meanwhile is its own to check. A graph holds addresses, so what it reads and writes must live as long,
//! which device memory does. A launch runs after what the stream had before it.
//! The other stream takes part once it waits for an event that the first has recorded meanwhile, and has to be joined before the end.
//! Such events mark places in the graph: asking or waiting for one from outside is an error, during the capture one that spoils it.
//! Reference: CUDA driver API, "Graph Management" and `cuStreamBeginCapture`; CUDA programming guide, "Cross-stream Dependencies and Events".
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphExec, CUstream, CUstreamCaptureMode_enum as CUstreamCaptureMode};

use super::api::graphs;
use super::gpu::{Gpu, check};
use crate::backend::{BackendError, Result, Stream};

/// A graph that can be launched.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    executable: CUgraphExec,
    /// Whether the communication stream has a part in it.
    pub(super) forked: bool,
}

/// What is known of a capture under way.
pub(super) struct Capture {
    /// The latest event of each stream before it.
    before: [u64; 2],
    /// Whether the communication stream takes part.
    pub(super) forked: bool,
}

impl Capture {
    /// A capture of the compute stream, before which these events were recorded.
    pub(super) fn new(before: [u64; 2]) -> Self {
        Self {
            before,
            forked: false,
        }
    }

    /// Whether event `sequence` of stream `of` marks a place in it.
    pub(super) fn holds(&self, of: Stream, sequence: u64) -> bool {
        let takes_part = of == Stream::Compute || self.forked;
        takes_part && sequence > self.before[of as usize]
    }
}

// SAFETY: a graph may be launched on any thread, by one at a time, which its device has it be.
unsafe impl Send for Graph {}

/// Has `stream` capture what is enqueued on it.
///
/// # Errors
/// A driver without graphs, or its refusal.
pub(super) fn begin(stream: CUstream) -> Result<()> {
    graphs::load()?;
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is alive.
    let begun = unsafe { graphs::cuStreamBeginCapture_v2(stream, mode) };
    check(begun, "failed to begin to capture a step")
}

impl Graph {
    /// Ends what [`begin`] began on `stream`.
    ///
    /// # Errors
    /// What was enqueued and cannot be captured: the driver says so at the end.
    pub(super) fn end(gpu: &Arc<Gpu>, stream: CUstream, forked: bool) -> Result<Self> {
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream is alive, and its table of functions was loaded when the capture began.
        let ended = unsafe { graphs::cuStreamEndCapture(stream, &mut graph) };
        check(ended, "failed to capture a step")?;
        if graph.is_null() {
            return Err(BackendError::Device(
                "failed to capture a step: the driver gave no graph".to_owned(),
            ));
        }
        // SAFETY: the graph is this function's own, and no longer needed once it was instantiated.
        let made = unsafe {
            let made = graphs::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            let _ = graphs::cuGraphDestroy(graph);
            made
        };
        check(
            made,
            "failed to make a step's graph one that can be launched",
        )?;
        Ok(Self {
            gpu: Arc::clone(gpu),
            executable,
            forked,
        })
    }

    /// Enqueues it on `stream`.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn launch(&self, stream: CUstream) -> Result<()> {
        // SAFETY: both are alive, and so is the memory that was captured: a device frees nothing.
        let launched = unsafe { graphs::cuGraphLaunch(self.executable, stream) };
        check(launched, "failed to launch a step's graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: nobody else has it. What a broken context says of it was said before.
            let _ = unsafe { graphs::cuGraphExecDestroy(self.executable) };
        }
    }
}
