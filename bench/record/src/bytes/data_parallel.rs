//! Bytes of one DataParallel step when copies go point to point through device 0.
//!
//! Contract: chunks are those that DP really makes (ceil(B/N)), so devices that get no samples get no replica
//! either. One device alone moves nothing: there is no replication at all.
//! Reference: `torch/nn/parallel/data_parallel.py`, `replicate.py`, `scatter_gather.py`.
use super::{Traffic, scatter_chunks};

/// What the replicas hand back to device 0, and what comes back to them as a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gathered {
    /// The model's output: so many bytes a sample (`dp_loss = "gathered"`).
    PerSample(u64),
    /// The replica's own loss: so many bytes a replica (`dp_loss = "replica"`).
    PerReplica(u64),
}

/// Sizes of one DP step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataParallelStep {
    /// Samples of the whole batch.
    pub batch: u64,
    /// Devices asked for.
    pub devices: u64,
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
    /// One entry a device that takes part; device 0 first.
    pub devices: Vec<Traffic>,
}

impl DataParallelStep {
    /// The five phases in order. A device that gets no samples is not listed.
    ///
    /// # Panics
    /// When `devices` is 0.
    pub fn phases(&self) -> Vec<PhaseTraffic> {
        let chunks = scatter_chunks(self.batch, self.devices);
        let gathered = |chunk: u64| match self.gathered {
            Gathered::PerSample(bytes) => chunk * bytes,
            Gathered::PerReplica(bytes) => bytes,
        };
        let model = self.parameter_bytes + self.buffer_bytes;
        vec![
            outward("scatter", &chunks, |chunk| {
                chunk * self.scattered_bytes_per_sample
            }),
            outward("replicate", &chunks, |_| model),
            inward("gather", &chunks, gathered),
            outward("scatter_gradients", &chunks, gathered),
            inward("reduce", &chunks, |_| self.parameter_bytes),
        ]
    }

    /// All phases together, by device.
    ///
    /// # Panics
    /// When `devices` is 0.
    pub fn total(&self) -> Traffic {
        self.phases()
            .into_iter()
            .flat_map(|phase| phase.devices)
            .sum()
    }
}

/// Device 0 sends every other device its part.
fn outward(phase: &'static str, chunks: &[u64], bytes: impl Fn(u64) -> u64) -> PhaseTraffic {
    let received = chunks
        .iter()
        .enumerate()
        .map(|(device, &chunk)| if device == 0 { 0 } else { bytes(chunk) });
    let mut devices: Vec<_> = received
        .map(|received| Traffic { sent: 0, received })
        .collect();
    let sent = devices.iter().map(|device| device.received).sum();
    if let Some(first) = devices.first_mut() {
        first.sent = sent;
    }
    PhaseTraffic { phase, devices }
}

/// Every other device sends device 0 its part.
fn inward(phase: &'static str, chunks: &[u64], bytes: impl Fn(u64) -> u64) -> PhaseTraffic {
    let mut traffic = outward(phase, chunks, bytes);
    for device in &mut traffic.devices {
        (device.sent, device.received) = (device.received, device.sent);
    }
    traffic
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(batch: u64, devices: u64) -> DataParallelStep {
        DataParallelStep {
            batch,
            devices,
            scattered_bytes_per_sample: 100,
            gathered: Gathered::PerSample(40),
            parameter_bytes: 1000,
            buffer_bytes: 24,
        }
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
        assert_eq!(step(9, 4).phases()[1].devices.len(), 3);
        assert_eq!(step(9, 4).phases()[4].devices[0].received, 2000);
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
