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

#[cfg(test)]
mod tests {
    use super::load;
    use crate::backend::cuda::library::{self, Library};

    #[test]
    fn a_missing_driver_is_an_error_and_a_driver_has_graphs() {
        let loaded = load();
        match library::find(Library::Driver) {
            Err(missing) => assert_eq!(loaded, Err(missing)),
            Ok(found) => assert_eq!(loaded, Ok(()), "driver {}", found.version),
        }
    }
}
