//! Batches made ahead by a thread of their own, as a DataLoader's workers make them: a GPU's host thread only takes them.
//!
//! Contract: the batches of the [`Loader`] that it is made of, in the same order; one of them waits while the next is asked for. Buffers go
//! round, so that after the first two batches nothing is allocated. The thread runs on the cores of the thread that made it.
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::{Dataset, HostBatch, Loader, Place};

/// Batches that are under way: one that is used, and one that waits or is being made.
const BUFFERS: usize = 2;
/// Orders that may wait: buffers, and ways back.
const ORDERS: usize = 8;

/// Buffers on their way round.
#[derive(Default)]
struct Filled {
    inputs: Vec<f32>,
    labels: Vec<i32>,
    len: usize,
    /// Where the loader was behind it.
    place: Option<Place>,
    generation: u64,
}

enum Order {
    Fill(Filled),
    ReturnTo(Place, u64),
}

/// A loader on a thread of its own.
pub struct Ahead {
    orders: Option<SyncSender<Order>>,
    filled: Receiver<Filled>,
    thread: Option<JoinHandle<()>>,
    dataset: Arc<dyn Dataset>,
    batches: usize,
    current: Filled,
    /// Where the batch behind the last one handed out begins.
    place: Place,
    /// Ways back so far: what was made before the last of them is not handed out.
    generation: u64,
}

impl Ahead {
    /// Has `loader` go ahead, from where it is.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn new(mut loader: Loader) -> std::io::Result<Self> {
        let (orders, asked) = sync_channel(ORDERS);
        let (made, filled) = sync_channel(BUFFERS);
        let (dataset, batches, place) = (loader.dataset(), loader.batches(), loader.place());
        let work = move || {
            let mut generation = 0;
            while let Ok(order) = asked.recv() {
                match order {
                    Order::ReturnTo(place, number) => {
                        loader.return_to(place);
                        generation = number;
                    }
                    Order::Fill(mut buffers) => {
                        buffers.len = loader.next_into(&mut buffers.inputs, &mut buffers.labels);
                        buffers.place = Some(loader.place());
                        buffers.generation = generation;
                        if made.send(buffers).is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("loader".to_owned())
            .spawn(work)?;
        let ahead = Self {
            orders: Some(orders),
            filled,
            thread: Some(thread),
            dataset,
            batches,
            current: Filled::default(),
            place,
            generation: 0,
        };
        // The other one is `current`.
        for _ in 1..BUFFERS {
            ahead.order(Order::Fill(Filled::default()));
        }
        Ok(ahead)
    }

    /// As [`Loader::dataset`].
    pub fn dataset(&self) -> Arc<dyn Dataset> {
        Arc::clone(&self.dataset)
    }
    /// As [`Loader::batches`].
    pub fn batches(&self) -> usize {
        self.batches
    }
    /// As [`Loader::place`]: what waits has not been handed out.
    pub fn place(&self) -> Place {
        self.place
    }

    /// As [`Loader::return_to`].
    pub fn return_to(&mut self, place: Place) {
        self.generation += 1;
        self.place = place;
        self.order(Order::ReturnTo(place, self.generation));
    }

    /// As [`Loader::next_batch`]; waits where it is not there yet.
    ///
    /// # Panics
    /// With what the thread panicked with.
    pub fn next_batch(&mut self) -> HostBatch<'_> {
        let mut used = std::mem::take(&mut self.current);
        loop {
            self.order(Order::Fill(used));
            let Ok(filled) = self.filled.recv() else {
                self.has_ended();
            };
            if filled.generation == self.generation {
                self.current = filled;
                break;
            }
            used = filled;
        }
        self.place = self.current.place.expect("it was filled");
        let Filled {
            inputs,
            labels,
            len,
            ..
        } = &self.current;
        let (elements, per_sample) = (
            self.dataset.shape().elements(),
            self.dataset.labels_per_sample(),
        );
        HostBatch {
            inputs: &inputs[..len * elements],
            labels: &labels[..len * per_sample],
            len: *len,
        }
    }

    fn order(&self, order: Order) {
        // Where the thread is gone, the next batch tells.
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }

    fn has_ended(&mut self) -> ! {
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => unreachable!("the thread ends with its orders"),
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // What it panicked with was told, or nobody asks any more.
            let _ = thread.join();
        }
    }
}

/// Batches of a rank, made where they are asked for or ahead.
pub enum Batches {
    /// On the calling thread.
    Here(Loader),
    /// On a thread of their own.
    Ahead(Ahead),
}

impl Batches {
    /// As [`Loader::dataset`].
    pub fn dataset(&self) -> Arc<dyn Dataset> {
        match self {
            Self::Here(loader) => loader.dataset(),
            Self::Ahead(ahead) => ahead.dataset(),
        }
    }
    /// As [`Loader::batches`].
    pub fn batches(&self) -> usize {
        match self {
            Self::Here(loader) => loader.batches(),
            Self::Ahead(ahead) => ahead.batches(),
        }
    }
    /// As [`Loader::place`].
    pub fn place(&self) -> Place {
        match self {
            Self::Here(loader) => loader.place(),
            Self::Ahead(ahead) => ahead.place(),
        }
    }
    /// As [`Loader::return_to`].
    pub fn return_to(&mut self, place: Place) {
        match self {
            Self::Here(loader) => loader.return_to(place),
            Self::Ahead(ahead) => ahead.return_to(place),
        }
    }
    /// As [`Loader::next_batch`].
    pub fn next_batch(&mut self) -> HostBatch<'_> {
        match self {
            Self::Here(loader) => loader.next_batch(),
            Self::Ahead(ahead) => ahead.next_batch(),
        }
    }
}
