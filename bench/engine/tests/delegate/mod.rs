//! What a test's backend leaves to the one that it is made of.

/// The methods of [`syncmark_engine::backend::Backend`] that the field `$to` answers as it is.
macro_rules! delegated {
    ($to:tt) => {
        fn allocate(&mut self, category: Category, dtype: Dtype, len: usize) -> Result<Span> {
            self.$to.allocate(category, dtype, len)
        }
        fn upload(&mut self, on: Stream, from: HostSlice<'_>, to: Span) -> Result<()> {
            self.$to.upload(on, from, to)
        }
        fn download(&mut self, from: Span, to: HostSliceMut<'_>) -> Result<()> {
            self.$to.download(from, to)
        }
        fn record(&mut self, on: Stream) -> Event {
            self.$to.record(on)
        }
        fn wait(&mut self, on: Stream, event: Event) -> Result<()> {
            self.$to.wait(on, event)
        }
        fn completion(&mut self, event: Event) -> Completion {
            self.$to.completion(event)
        }
        fn wait_for(&mut self, on: Stream, completion: &Completion) -> Result<()> {
            self.$to.wait_for(on, completion)
        }
        fn enqueue_host(
            &mut self,
            on: Stream,
            after: &Completion,
            task: &Arc<dyn HostTask>,
            call: HostCall,
        ) -> Result<Event> {
            self.$to.enqueue_host(on, after, task, call)
        }
        fn synchronize(&mut self) -> Result<()> {
            self.$to.synchronize()
        }
        fn time_ns(&mut self, event: Event) -> Result<u64> {
            self.$to.time_ns(event)
        }
        fn begin_ns(&mut self, event: Event) -> Result<u64> {
            self.$to.begin_ns(event)
        }
        fn memory_use(&self) -> MemoryUse {
            self.$to.memory_use()
        }
    };
}
pub(crate) use delegated;
