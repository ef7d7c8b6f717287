//! CUDA graphs in the driver API: a table of their own, so that a driver without them trains all the same.
use std::ffi::c_ulonglong;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUresult, CUstream, CUstreamCaptureMode};

use super::functions;

functions! {
    Driver
    fn cuGraphDestroy(graph: CUgraph) -> CUresult;
    fn cuGraphExecDestroy(graph_exec: CUgraphExec) -> CUresult;
    fn cuGraphInstantiateWithFlags(graph_exec: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong) -> CUresult;
    fn cuGraphLaunch(graph_exec: CUgraphExec, h_stream: CUstream) -> CUresult;
    fn cuStreamBeginCapture_v2(h_stream: CUstream, mode: CUstreamCaptureMode) -> CUresult;
    fn cuStreamEndCapture(h_stream: CUstream, graph: *mut CUgraph) -> CUresult;
}
