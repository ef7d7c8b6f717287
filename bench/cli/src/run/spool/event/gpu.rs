//! A device's GPU as events: where it sits, what state it was in during a timed pass, and what it moved.
use super::{EVENT_BYTES, Fields};

/// Bytes of a name of a network adapter; longer ones are cut.
const NAME: usize = 24;
/// Reasons for which a GPU's clock is held back, in the order of [`crate::environment::gpus::REASONS`].
pub const REASONS: usize = 8;

/// Where the GPU of a device sits, and whether the device's threads are near it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuPlace {
    /// Device or rank.
    pub device: u16,
    /// PCI domain, bus and device.
    pub place: (u32, u8, u8),
    /// Memory node that it hangs on, as far as the kernel says.
    pub node: Option<u16>,
    /// 0 for bound to the node's cores, else why not: `crate::run::binding::Unbound`.
    pub unbound: u8,
    /// The nearest network adapter; none where the first byte is 0.
    pub network: [u8; NAME],
    /// The same adapter as RDMA knows it.
    pub rdma: [u8; NAME],
}

/// A GPU over a timed pass, as NVML told it. Largest numbers stand for what it did not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuState {
    /// Pass.
    pub pass: u8,
    /// First device on the GPU.
    pub device: u16,
    /// From the first look until the last.
    pub watched_ns: u64,
    /// Samples between them.
    pub samples: u32,
    /// Median and lowest clock of the multiprocessors; 0 for not told.
    pub sm_mhz: [u16; 2],
    /// By how much the clock was lower in one third than in another.
    pub spread: Option<f32>,
    /// Highest temperature.
    pub celsius: Option<u16>,
    /// Mean and highest power draw.
    pub watts: Option<[f32; 2]>,
    /// Of a thousand samples, those with each reason.
    pub held_back: Option<[u16; REASONS]>,
    /// Of a thousand samples, those with a reason that disturbs.
    pub slowed: u16,
    /// Processes that are not the run's.
    pub foreign: Option<u16>,
    /// Their memory.
    pub foreign_bytes: Option<u64>,
}

/// What a GPU moved in a timed pass, by its own counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuTraffic {
    /// Pass.
    pub pass: u8,
    /// First device on the GPU.
    pub device: u16,
    /// Sent and received over all NVLinks.
    pub nvlink_bytes: [Option<u64>; 2],
    /// Sent and received over PCIe.
    pub pcie_bytes: [Option<u64>; 2],
    /// Packets sent again over PCIe.
    pub pcie_replays: Option<u64>,
}

/// A name as its bytes, cut where it is too long.
pub fn name_bytes(name: Option<&str>) -> [u8; NAME] {
    let mut bytes = [0; NAME];
    let name = name.unwrap_or_default().as_bytes();
    let length = name.len().min(NAME);
    bytes[..length].copy_from_slice(&name[..length]);
    bytes
}

/// The name of such bytes; none where they are empty.
pub fn name_of(bytes: &[u8; NAME]) -> Option<String> {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(NAME);
    let name = String::from_utf8_lossy(&bytes[..length]);
    (!name.is_empty()).then(|| name.into_owned())
}

fn or_all(word: Option<u64>) -> u64 {
    word.unwrap_or(u64::MAX)
}

fn unless_all(word: u64) -> Option<u64> {
    (word != u64::MAX).then_some(word)
}

impl GpuPlace {
    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        let (domain, bus, device) = self.place;
        f.put([kind, self.unbound])
            .put(self.device.to_le_bytes())
            .put(self.node.unwrap_or(u16::MAX).to_le_bytes())
            .put([bus, device])
            .put(domain.to_le_bytes())
            .put([0; 4])
            .put(self.network)
            .put(self.rdma);
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        let (unbound, device, node) = (f.u8(), f.u16(), f.u16());
        let (bus, on_bus) = (f.u8(), f.u8());
        let domain = f.u32();
        f.at = 16;
        Self {
            device,
            place: (domain, bus, on_bus),
            node: (node != u16::MAX).then_some(node),
            unbound,
            network: f.take(),
            rdma: f.take(),
        }
    }
}

impl GpuState {
    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        let [mean, most] = self.watts.unwrap_or([f32::NAN; 2]);
        f.put([kind, self.pass])
            .put(self.device.to_le_bytes())
            .put(self.sm_mhz[0].to_le_bytes())
            .put(self.sm_mhz[1].to_le_bytes())
            .words(&[self.watched_ns])
            .put(self.samples.to_le_bytes())
            .put(self.spread.unwrap_or(f32::NAN).to_bits().to_le_bytes())
            .put(mean.to_bits().to_le_bytes())
            .put(most.to_bits().to_le_bytes())
            .put(self.celsius.unwrap_or(u16::MAX).to_le_bytes())
            .put(self.foreign.unwrap_or(u16::MAX).to_le_bytes())
            .put(self.slowed.to_le_bytes())
            .put([0; 2])
            .words(&[or_all(self.foreign_bytes)]);
        for share in self.held_back.unwrap_or([u16::MAX; REASONS]) {
            f.put(share.to_le_bytes());
        }
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        let float = |bits: u32| Some(f32::from_bits(bits)).filter(|value| !value.is_nan());
        let (pass, device, sm_mhz) = (f.u8(), f.u16(), [f.u16(), f.u16()]);
        let (watched_ns, samples) = (f.u64(), f.u32());
        let spread = float(f.u32());
        let watts = [float(f.u32()), float(f.u32())];
        let told = |value: u16| (value != u16::MAX).then_some(value);
        let (celsius, foreign, slowed) = (told(f.u16()), told(f.u16()), f.u16());
        f.at += 2;
        let foreign_bytes = unless_all(f.u64());
        let held_back: [u16; REASONS] = std::array::from_fn(|_| f.u16());
        Self {
            pass,
            device,
            watched_ns,
            samples,
            sm_mhz,
            spread,
            celsius,
            watts: watts[0].zip(watts[1]).map(|(mean, most)| [mean, most]),
            held_back: (held_back[0] != u16::MAX).then_some(held_back),
            slowed,
            foreign,
            foreign_bytes,
        }
    }
}

impl GpuTraffic {
    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        f.put([kind, self.pass])
            .put(self.device.to_le_bytes())
            .put([0; 4])
            .words(&self.nvlink_bytes.map(or_all))
            .words(&self.pcie_bytes.map(or_all))
            .words(&[or_all(self.pcie_replays)]);
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        let (pass, device) = (f.u8(), f.u16());
        f.at = 8;
        Self {
            pass,
            device,
            nvlink_bytes: [unless_all(f.u64()), unless_all(f.u64())],
            pcie_bytes: [unless_all(f.u64()), unless_all(f.u64())],
            pcie_replays: unless_all(f.u64()),
        }
    }
}
