//! A CPU device that asks for batch norm by a library, and counts how often it was used.
use std::sync::{Arc, Mutex};

use syncmark_engine::backend::cpu::CpuBackend;
use syncmark_engine::backend::{
    Backend, Category, Completion, Event, HostMemory, HostSlice, HostSliceMut, HostTask, MemoryUse,
    Result, Stream,
};
use syncmark_engine::comm::HostCall;
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::{Dtype, Span};

/// Calls of a library's batch norm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub forward: usize,
    pub backward: usize,
}

/// The device.
pub struct Asking {
    cpu: CpuBackend,
    calls: Arc<Mutex<Calls>>,
}

impl Asking {
    pub fn new(cpu: CpuBackend) -> Self {
        let calls = Arc::default();
        Self { cpu, calls }
    }

    /// The counters.
    pub fn calls(&self) -> Arc<Mutex<Calls>> {
        Arc::clone(&self.calls)
    }
}

impl Backend for Asking {
    fn library_batch_norm(&self) -> bool {
        true
    }
    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        let mut calls = self.calls.lock().unwrap();
        match kernel {
            Kernel::LibraryBatchNorm { .. } => calls.forward += 1,
            Kernel::LibraryBatchNormBackward { .. } => calls.backward += 1,
            _ => {}
        }
        drop(calls);
        self.cpu.launch(on, kernel)
    }
    fn allocate(&mut self, category: Category, dtype: Dtype, len: usize) -> Result<Span> {
        self.cpu.allocate(category, dtype, len)
    }
    fn upload(&mut self, on: Stream, from: HostSlice<'_>, to: Span) -> Result<()> {
        self.cpu.upload(on, from, to)
    }
    fn download(&mut self, from: Span, to: HostSliceMut<'_>) -> Result<()> {
        self.cpu.download(from, to)
    }
    fn record(&mut self, on: Stream) -> Event {
        self.cpu.record(on)
    }
    fn wait(&mut self, on: Stream, event: Event) -> Result<()> {
        self.cpu.wait(on, event)
    }
    fn completion(&mut self, event: Event) -> Completion {
        self.cpu.completion(event)
    }
    fn wait_for(&mut self, on: Stream, completion: &Completion) -> Result<()> {
        self.cpu.wait_for(on, completion)
    }
    fn enqueue_host(
        &mut self,
        on: Stream,
        after: &Completion,
        task: &Arc<dyn HostTask>,
        call: HostCall,
    ) -> Result<Event> {
        self.cpu.enqueue_host(on, after, task, call)
    }
    fn synchronize(&mut self) -> Result<()> {
        self.cpu.synchronize()
    }
    fn time_ns(&mut self, event: Event) -> Result<u64> {
        self.cpu.time_ns(event)
    }
    fn begin_ns(&mut self, event: Event) -> Result<u64> {
        self.cpu.begin_ns(event)
    }
    fn memory_use(&self) -> MemoryUse {
        self.cpu.memory_use()
    }
    fn host_memory(&self) -> Option<HostMemory> {
        self.cpu.host_memory()
    }
    fn name(&self) -> &'static str {
        self.cpu.name()
    }
}
