//! The same job under ZeRO-1 and under DDP, over either transport.
use syncmark_engine::comm::Communicator;
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::comm::tcp::TcpCommunicator;
use syncmark_engine::model::Model;
use syncmark_engine::optim::OptimizerSettings;
use syncmark_engine::strategy::{
    BucketCaps, Ddp, DdpOptions, DdpSettings, Strategy, Zero1, Zero1Settings,
};

use super::{Batch, On, Outcome, SEED, device, train_on};

/// Ranks that are threads, and what they train.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    pub on: On,
    pub model: &'a Model,
    /// Samples of each rank.
    pub chunks: &'a [usize],
    pub optimizer: OptimizerSettings,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// One cap of all buckets, or PyTorch's.
    pub cap: Option<usize>,
    /// Over the loopback interface instead of shared memory.
    pub tcp: bool,
}

impl Job<'_> {
    fn communicators(&self) -> Vec<Box<dyn Communicator>> {
        let world = self.chunks.len();
        if self.tcp {
            let ranks = TcpCommunicator::for_threads_with(world, |_| ()).unwrap();
            return ranks.into_iter().map(|rank| Box::new(rank) as _).collect();
        }
        let ranks = SharedCommunicator::for_threads(world, Waiting::default()).unwrap();
        ranks.into_iter().map(|rank| Box::new(rank) as _).collect()
    }

    /// Runs `body` on every rank, each on its thread, with what the communicator connects.
    pub fn ranks<T: Send>(
        &self,
        body: impl Fn(usize, Box<dyn Communicator>) -> T + Sync,
    ) -> Vec<T> {
        let communicators = self.communicators();
        std::thread::scope(|scope| {
            let body = &body;
            let start = |(rank, communicator)| scope.spawn(move || body(rank, communicator));
            let ranks: Vec<_> = communicators.into_iter().enumerate().map(start).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    pub fn zero1_settings(&self, rank: usize) -> Zero1Settings {
        Zero1Settings {
            max_batch: self.chunks[rank],
            sample_offset: self.chunks[..rank].iter().sum(),
            global_batch: self.chunks.iter().sum(),
            accumulation: self.accumulation,
            seed: SEED,
            optimizer: self.optimizer,
            bucket_caps: self.cap.map(BucketCaps::uniform).unwrap_or_default(),
            broadcast_buffers: true,
        }
    }

    /// Runs `body` on every rank of ZeRO-1.
    pub fn zero1<T: Send>(&self, body: impl Fn(usize, &mut Zero1) -> T + Sync) -> Vec<T> {
        self.ranks(|rank, communicator| {
            let settings = self.zero1_settings(rank);
            let device = device(self.on, rank);
            body(
                rank,
                &mut Zero1::new(device, communicator, self.model, &settings).unwrap(),
            )
        })
    }

    /// Runs `body` on every rank of DDP.
    pub fn ddp<T: Send>(&self, body: impl Fn(usize, &mut Ddp) -> T + Sync) -> Vec<T> {
        self.ranks(|rank, communicator| {
            let settings = DdpSettings {
                max_batch: self.chunks[rank],
                sample_offset: self.chunks[..rank].iter().sum(),
                global_batch: self.chunks.iter().sum(),
                seed: SEED,
                optimizer: self.optimizer,
                options: DdpOptions {
                    accumulation: self.accumulation,
                    ..super::capped(self.cap)
                },
            };
            let device = device(self.on, rank);
            body(
                rank,
                &mut Ddp::new(device, communicator, self.model, &settings).unwrap(),
            )
        })
    }

    /// What rank `rank` takes of step `k`.
    pub fn batch(&self, rank: usize, k: usize) -> Batch {
        let samples = self.accumulation * self.chunks.iter().sum::<usize>();
        Batch::new(k, samples).parts(self.accumulation, self.chunks, rank)
    }

    /// Trains one rank on its part of the global batches.
    pub fn train(&self, rank: usize, strategy: &mut dyn Strategy, steps: usize) -> Outcome {
        train_on(strategy, steps, |k| self.batch(rank, k))
    }
}
