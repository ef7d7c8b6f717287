//! Bytes of one DataParallel step when copies go point to point through the master and the output device, and the calls of a library that
//! replicates and reduces instead.
//!
//! Contract: chunks are those that DP really makes (ceil(B/N)), so devices that get no samples get no replica
//! either. One device alone moves nothing: there is no replication at all.
//! Reference: `torch/nn/parallel/data_parallel.py`, `replicate.py`, `scatter_gather.py`.
use super::{Traffic, scatter_chunks};

/// PyTorch's `buffer_size` of `broadcast_coalesced` and `reduce_add_coalesced`: more than this goes in several calls.
pub const COALESCED_BYTES: u64 = 10 << 20;

/// Elements of each call in which so many go, in order.
pub fn coalesced(elements: u64, element_bytes: u64) -> Vec<u64> {
    let most = COALESCED_BYTES / element_bytes;
    let calls = elements.div_ceil(most);
    (0..calls)
        .map(|call| most.min(elements - call * most))
        .collect()
}

/// What the replicas hand back to the output device, and what comes back to them as a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// The model's output: so many bytes a sample (`dp_loss = "gathered"`).
    PerSample(u64),
    /// The replica's own loss: so many bytes a replica (`dp_loss = "replica"`).
    PerReplica(u64),
}

/// Sizes of one DP step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataParallelStep {
    /// Samples of the whole batch, or of a micro-batch.
    pub batch: u64,
    /// Micro-batches of a step: each is a batch of its own until the optimizer.
    pub micro_batches: u64,
    /// Which device takes each chunk: a permutation of all device numbers. The first is the master.
    pub order: Vec<u64>,
    /// The device on which outputs are gathered.
    pub output: u64,
    /// What is scattered, bytes a sample: the input, and the target too where the replica computes the loss.
    pub scattered_bytes_per_sample: u64,
    /// What is gathered.
    pub gathered: Gathered,
    /// All parameters (and so all gradients), in bytes.
    pub parameter_bytes: u64,
    /// All buffers that are replicated (running statistics), in bytes.
    pub buffer_bytes: u64,
}

/// Traffic of one phase, by device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseTraffic {
    /// Name as in `comm.csv`.
    pub phase: &'static str,
    /// By device number; of a device that takes no part zeros.
    pub devices: Vec<Traffic>,
}

/// Which way the parts of a phase go.
enum Way {
    /// From one device to the replicas.
    Out,
    /// From the replicas to one device.
    In,
}

impl DataParallelStep {
    /// The five phases in order.
    ///
    /// # Panics
    /// When `order` is empty or names a device that it has no place for.
    pub fn phases(&self) -> Vec<PhaseTraffic> {
        let gathered = |chunk: u64| match self.gathered {
            Gathered::PerSample(bytes) => chunk * bytes,
            Gathered::PerReplica(bytes) => bytes,
        };
        let scattered = |chunk: u64| chunk * self.scattered_bytes_per_sample;
        let model = self.parameter_bytes + self.buffer_bytes;
        let (master, output) = (self.order[0], self.output);
        vec![
            self.phase("scatter", master, Way::Out, scattered),
            self.phase("replicate", master, Way::Out, |_| model),
            self.phase("gather", output, Way::In, gathered),
            self.phase("scatter_gradients", output, Way::Out, gathered),
            self.phase("reduce", master, Way::In, |_| self.parameter_bytes),
        ]
    }

    /// All phases together, over all devices.
    ///
    /// # Panics
    /// As [`DataParallelStep::phases`].
    pub fn total(&self) -> Traffic {
        self.phases()
            .into_iter()
            .flat_map(|phase| phase.devices)
            .sum()
    }

    /// Each replica's part between its device and the device `hub`, which keeps its own part where it is.
    fn phase(
        &self,
        phase: &'static str,
        hub: u64,
        way: Way,
        bytes: impl Fn(u64) -> u64,
    ) -> PhaseTraffic {
        let mut devices = vec![Traffic::default(); self.order.len()];
        let chunks = scatter_chunks(self.batch, self.order.len() as u64);
        for (&device, chunk) in self.order.iter().zip(chunks) {
            if device == hub {
                continue;
            }
            let (from, to) = match way {
                Way::Out => (hub, device),
                Way::In => (device, hub),
            };
            let bytes = bytes(chunk) * self.micro_batches;
            devices[from as usize].sent += bytes;
            devices[to as usize].received += bytes;
        }
        PhaseTraffic { phase, devices }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(batch: u64, devices: u64) -> DataParallelStep {
        DataParallelStep {
            batch,
            micro_batches: 1,
            order: (0..devices).collect(),
            output: 0,
            scattered_bytes_per_sample: 100,
            gathered: Gathered::PerSample(40),
            parameter_bytes: 1000,
            buffer_bytes: 24,
        }
    }

    #[test]
    fn calls_are_full_but_for_the_last() {
        let most = COALESCED_BYTES / 4;
        assert_eq!(coalesced(2 * most + 7, 4), [most, most, 7]);
        assert_eq!(coalesced(2 * most, 4), [most, most]);
        assert_eq!(coalesced(5, 8), [5]);
        assert!(coalesced(0, 4).is_empty());
    }

    #[test]
    fn uneven_chunks_by_hand() {
        // 10 over 4: 3, 3, 3, 1; seven samples leave device 0.
        let phases = step(10, 4).phases();
        assert_eq!(
            phases[0].devices[0],
            Traffic {
                sent: 700,
                received: 0
            }
        );
        assert_eq!(
            phases[0].devices[3],
            Traffic {
                sent: 0,
                received: 100
            }
        );
        assert_eq!(phases[1].devices[0].sent, 3 * 1024);
        assert_eq!(
            phases[2].devices[0],
            Traffic {
                sent: 0,
                received: 280
            }
        );
        assert_eq!(phases[2].devices[1].sent, 120);
        assert_eq!(phases[3].devices[0].sent, 280);
        assert_eq!(phases[4].devices[0].received, 3000);
        assert_eq!(step(10, 4).total().sent, 700 + 3072 + 280 + 280 + 3000);
    }

    #[test]
    fn a_device_without_samples_gets_no_replica() {
        // 9 over 4 uses three devices.
        assert_eq!(step(9, 4).phases()[1].devices[3], Traffic::default());
        assert_eq!(step(9, 4).phases()[4].devices[0].received, 2000);
    }

    #[test]
    fn the_master_and_the_output_device_can_be_any() {
        // 10 over devices 2, 0, 3, 1: chunks 3, 3, 3, 1; outputs are gathered on device 1, which has the last chunk.
        let step = DataParallelStep {
            order: vec![2, 0, 3, 1],
            output: 1,
            micro_batches: 2,
            ..step(10, 4)
        };
        let moved = |sent, received| Traffic { sent, received };
        let phases = step.phases();
        let [scatter, replicate, gather, gradients, reduce] = &phases[..] else {
            panic!("{phases:?}");
        };
        let twice = |traffic: [Traffic; 4]| traffic.map(|traffic| traffic * 2).to_vec();
        assert_eq!(
            scatter.devices,
            twice([moved(0, 300), moved(0, 100), moved(700, 0), moved(0, 300)])
        );
        assert_eq!(replicate.devices[2], moved(2 * 3 * 1024, 0));
        assert_eq!(
            gather.devices,
            twice([moved(120, 0), moved(0, 360), moved(120, 0), moved(120, 0)])
        );
        assert_eq!(gradients.devices[1], moved(2 * 360, 0));
        assert_eq!(gradients.devices[2], moved(0, 2 * 120));
        assert_eq!(reduce.devices[2], moved(0, 2 * 3000));
        assert_eq!(reduce.devices[1], moved(2 * 1000, 0));
    }

    #[test]
    fn an_output_device_without_samples_still_gathers() {
        let step = DataParallelStep {
            output: 3,
            ..step(9, 4)
        };
        assert_eq!(step.phases()[2].devices[3].received, 9 * 40);
        assert_eq!(step.phases()[2].devices[0].sent, 3 * 40);
        assert_eq!(step.phases()[1].devices[3], Traffic::default());
    }

    #[test]
    fn even_chunks_give_the_table_of_the_semantics() {
        let (n, step) = (4, step(8, 4));
        let out: u64 = step
            .phases()
            .iter()
            .map(|phase| phase.devices[0].sent)
            .sum();
        let back: u64 = step
            .phases()
            .iter()
            .map(|phase| phase.devices[0].received)
            .sum();
        let (x, y) = (8 * 100, 8 * 40);
        assert_eq!(out, (n - 1) * x / n + (n - 1) * 1024 + (n - 1) * y / n);
        assert_eq!(back, (n - 1) * y / n + (n - 1) * 1000);
    }

    #[test]
    fn one_device_moves_nothing() {
        assert_eq!(step(8, 1).total(), Traffic::default());
    }

    #[test]
    fn a_replica_loss_does_not_depend_on_the_batch() {
        let replica = DataParallelStep {
            gathered: Gathered::PerReplica(4),
            ..step(8, 4)
        };
        assert_eq!(replica.phases()[2].devices[0].received, 12);
        assert_eq!(replica.phases()[3].devices[0].sent, 12);
    }
}
