//! A rank's spool: fixed-size events in a memory-mapped file, so that what was measured survives SIGKILL.
//!
//! Layout, little-endian, documented because a rank may be written in another language (CONTRIBUTING.md, child protocol):
//! a 64-byte header (magic `SMSPOOL1`, u32 version, u32 event size, u64 capacity, u64 written, u64 dropped, u64 heartbeat on
//! CLOCK_MONOTONIC in nanoseconds), then `capacity` events of 64 bytes each. The writer stores an event first and raises
//! `written` after it (release), so a reader never sees half an event. The file's blocks are reserved when it is made:
//! a full disk is an error then, never a SIGBUS in the middle of a run.
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapMut};

/// First bytes of a spool.
pub const MAGIC: [u8; 8] = *b"SMSPOOL1";
/// Version of the layout.
pub const VERSION: u32 = 1;
/// Bytes of the header, and of an event.
pub const EVENT_BYTES: usize = 64;
/// Events a spool holds: two minutes of half-millisecond steps.
pub const CAPACITY: usize = 1 << 18;

const WRITTEN: usize = 24;
const DROPPED: usize = 32;
const HEARTBEAT: usize = 40;

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system said no.
    #[error("failed to {what} the spool {}: {source}", path.display())]
    Io {
        /// Verb.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The file is no spool of this version.
    #[error("{} is not a spool of version {VERSION}", .0.display())]
    Format(PathBuf),
}

/// What an event says. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "fields are named as the columns that they become"
)]
pub enum Event {
    /// One step of a pass has ended.
    Step {
        pass: u8,
        step: u64,
        start_ns: u64,
        end_ns: u64,
        samples: u64,
    },
    /// A pass has ended on this rank: from its barrier until its last step was complete on its device.
    Pass {
        pass: u8,
        steps: u64,
        samples: u64,
        start_ns: u64,
        end_ns: u64,
    },
    /// The warm-up has ended.
    Warmup { steps: u64 },
    /// A span of a traced step; `bucket` is `u16::MAX` for none.
    Span {
        device: u16,
        track: u8,
        phase: u8,
        bucket: u16,
        step: u64,
        host_ns: [u64; 2],
        device_ns: [u64; 2],
    },
    /// What was counted in the window; the quantiles are saturated at u32.
    Comm(CommEvent),
    /// What a device holds, per category of the engine.
    Memory { device: u16, bytes: [u64; 6] },
    /// Training loss of a step.
    Loss { step: u64, loss: f64 },
    /// Whether all ranks held bit-equal parameters after the window.
    ParametersEqual { equal: bool },
}

/// Totals of one phase, collective, size and root on one device or rank, over the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommEvent {
    /// Device or rank.
    pub device: u16,
    /// Index into the engine's phases.
    pub phase: u8,
    /// Index into the engine's collectives.
    pub collective: u8,
    /// 0 `shared-direct`, 1 `peer-copy`.
    pub algorithm: u8,
    /// Bytes of an element.
    pub element_bytes: u8,
    /// Root of the collective.
    pub root: u32,
    /// Payload of one call; of `peer-copy` the payload of a step.
    pub size_bytes: u64,
    /// Calls.
    pub calls: u32,
    /// Steps of the window.
    pub steps: u32,
    /// Sent in all calls.
    pub sent_bytes: u64,
    /// Received in all calls.
    pub received_bytes: u64,
    /// p50 and p90 of waiting for the last rank.
    pub wait_ns: [u32; 2],
    /// p50 and p90 of moving bytes.
    pub transfer_ns: [u32; 2],
}

/// The writing side; one per rank.
pub struct Writer {
    map: MmapMut,
}

impl Writer {
    /// Makes the file with all its blocks reserved.
    ///
    /// # Errors
    /// [`SpoolError::Io`], for a full disk among others.
    pub fn create(path: &Path, capacity: usize) -> Result<(), SpoolError> {
        let io = |what| {
            move |source| SpoolError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(io("create"))?;
        let bytes = (EVENT_BYTES * (capacity + 1)) as u64;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
            .map_err(|e| io("reserve room for")(e.into()))?;
        let mut header = [0u8; EVENT_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(EVENT_BYTES as u32).to_le_bytes());
        header[16..24].copy_from_slice(&(capacity as u64).to_le_bytes());
        std::os::unix::fs::FileExt::write_all_at(&file, &header, 0).map_err(io("write"))
    }

    /// Opens a file made by [`Writer::create`].
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let io = |what| {
            move |source| SpoolError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io("open"))?;
        // SAFETY: the file belongs to this rank alone; its only other user reads counted events after a release store.
        let map = unsafe { MmapMut::map_mut(&file) }.map_err(io("map"))?;
        check(&map, path)?;
        Ok(Self { map })
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: offset is a multiple of 8 within the header of a page-aligned mapping that lives as long as self.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(offset) as *mut u64) }
    }

    /// Appends an event; past the capacity it is counted as dropped. Never blocks and never allocates.
    pub fn push(&mut self, event: Event) {
        let written = self.word(WRITTEN).load(Ordering::Relaxed) as usize;
        let offset = EVENT_BYTES * (written + 1);
        if offset + EVENT_BYTES > self.map.len() {
            self.word(DROPPED).fetch_add(1, Ordering::Relaxed);
            return;
        }
        event.encode(
            (&mut self.map[offset..offset + EVENT_BYTES])
                .try_into()
                .expect("64 bytes"),
        );
        self.word(WRITTEN)
            .store(written as u64 + 1, Ordering::Release);
    }

    /// Tells the conductor that this rank was alive at `now_ns`.
    pub fn beat(&self, now_ns: u64) {
        self.word(HEARTBEAT).store(now_ns, Ordering::Relaxed);
    }
}

/// The reading side, also of a spool whose writer was killed.
pub struct Reader {
    map: Mmap,
}

impl Reader {
    /// Opens a spool.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let io = |what| {
            move |source| SpoolError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        let file = File::open(path).map_err(io("open"))?;
        // SAFETY: only events below `written` are read, and those never change again.
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        check(&map, path)?;
        Ok(Self { map })
    }

    fn word(&self, offset: usize) -> u64 {
        // SAFETY: offset is a multiple of 8 within the header of a page-aligned mapping that lives as long as self.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().add(offset) as *mut u64) }
            .load(Ordering::Acquire)
    }

    /// The events written so far, in order. An event of an unknown kind (of a later version) is skipped.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        let written = (self.word(WRITTEN) as usize).min(self.map.len() / EVENT_BYTES - 1);
        self.map[EVENT_BYTES..EVENT_BYTES * (written + 1)]
            .chunks_exact(EVENT_BYTES)
            .filter_map(|bytes| Event::decode(bytes.try_into().expect("64 bytes")))
    }

    /// Events that found the spool full.
    pub fn dropped(&self) -> u64 {
        self.word(DROPPED)
    }

    /// When the rank last said that it is alive; 0 for never.
    pub fn heartbeat_ns(&self) -> u64 {
        self.word(HEARTBEAT)
    }
}

fn check(map: &[u8], path: &Path) -> Result<(), SpoolError> {
    let good = map.len() >= 2 * EVENT_BYTES
        && map[..8] == MAGIC
        && map[8..12] == VERSION.to_le_bytes()
        && map[12..16] == (EVENT_BYTES as u32).to_le_bytes();
    if good {
        Ok(())
    } else {
        Err(SpoolError::Format(path.to_owned()))
    }
}

/// Writes and reads the fields of an event in order.
struct Fields<T> {
    bytes: T,
    at: usize,
}

impl Fields<&mut [u8; EVENT_BYTES]> {
    fn put<const N: usize>(&mut self, value: [u8; N]) -> &mut Self {
        self.bytes[self.at..self.at + N].copy_from_slice(&value);
        self.at += N;
        self
    }
    fn words(&mut self, values: &[u64]) -> &mut Self {
        for value in values {
            self.put(value.to_le_bytes());
        }
        self
    }
}

impl Fields<&[u8; EVENT_BYTES]> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        self.at += N;
        self.bytes[self.at - N..self.at]
            .try_into()
            .expect("within the event")
    }
    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

impl Event {
    /// Bytes 0..8 hold the kind (u8) and small fields, the words follow from byte 8 on.
    fn encode(self, bytes: &mut [u8; EVENT_BYTES]) {
        bytes.fill(0);
        let mut f = Fields { bytes, at: 0 };
        match self {
            Self::Step {
                pass,
                step,
                start_ns,
                end_ns,
                samples,
            } => {
                f.put([1, pass, 0, 0, 0, 0, 0, 0])
                    .words(&[step, start_ns, end_ns, samples]);
            }
            Self::Pass {
                pass,
                steps,
                samples,
                start_ns,
                end_ns,
            } => {
                f.put([2, pass, 0, 0, 0, 0, 0, 0])
                    .words(&[steps, samples, start_ns, end_ns]);
            }
            Self::Warmup { steps } => {
                f.put([3, 0, 0, 0, 0, 0, 0, 0]).words(&[steps]);
            }
            Self::Span {
                device,
                track,
                phase,
                bucket,
                step,
                host_ns,
                device_ns,
            } => {
                f.put([4, track, phase, 0])
                    .put(device.to_le_bytes())
                    .put(bucket.to_le_bytes());
                f.words(&[step, host_ns[0], host_ns[1], device_ns[0], device_ns[1]]);
            }
            Self::Comm(c) => {
                f.put([5, c.phase, c.collective, c.algorithm, c.element_bytes, 0])
                    .put(c.device.to_le_bytes());
                f.put(c.root.to_le_bytes())
                    .put(c.calls.to_le_bytes())
                    .put(c.steps.to_le_bytes());
                f.words(&[c.size_bytes, c.sent_bytes, c.received_bytes]);
                for value in c.wait_ns.into_iter().chain(c.transfer_ns) {
                    f.put(value.to_le_bytes());
                }
            }
            Self::Memory { device, bytes } => {
                f.put([6, 0])
                    .put(device.to_le_bytes())
                    .put([0; 4])
                    .words(&bytes);
            }
            Self::Loss { step, loss } => {
                f.put([7, 0, 0, 0, 0, 0, 0, 0])
                    .words(&[step, loss.to_bits()]);
            }
            Self::ParametersEqual { equal } => {
                f.put([8, u8::from(equal)]);
            }
        }
    }

    fn decode(bytes: &[u8; EVENT_BYTES]) -> Option<Self> {
        let mut f = Fields { bytes, at: 1 };
        Some(match bytes[0] {
            1 => {
                let pass = f.u8();
                f.at = 8;
                Self::Step {
                    pass,
                    step: f.u64(),
                    start_ns: f.u64(),
                    end_ns: f.u64(),
                    samples: f.u64(),
                }
            }
            2 => {
                let pass = f.u8();
                f.at = 8;
                Self::Pass {
                    pass,
                    steps: f.u64(),
                    samples: f.u64(),
                    start_ns: f.u64(),
                    end_ns: f.u64(),
                }
            }
            3 => {
                f.at = 8;
                Self::Warmup { steps: f.u64() }
            }
            4 => {
                let (track, phase) = (f.u8(), f.u8());
                f.at = 4;
                Self::Span {
                    track,
                    phase,
                    device: f.u16(),
                    bucket: f.u16(),
                    step: f.u64(),
                    host_ns: [f.u64(), f.u64()],
                    device_ns: [f.u64(), f.u64()],
                }
            }
            5 => {
                let (phase, collective, algorithm, element_bytes) =
                    (f.u8(), f.u8(), f.u8(), f.u8());
                f.at = 6;
                Self::Comm(CommEvent {
                    phase,
                    collective,
                    algorithm,
                    element_bytes,
                    device: f.u16(),
                    root: f.u32(),
                    calls: f.u32(),
                    steps: f.u32(),
                    size_bytes: f.u64(),
                    sent_bytes: f.u64(),
                    received_bytes: f.u64(),
                    wait_ns: [f.u32(), f.u32()],
                    transfer_ns: [f.u32(), f.u32()],
                })
            }
            6 => {
                f.at = 2;
                let device = f.u16();
                f.at = 8;
                Self::Memory {
                    device,
                    bytes: std::array::from_fn(|_| f.u64()),
                }
            }
            7 => {
                f.at = 8;
                Self::Loss {
                    step: f.u64(),
                    loss: f64::from_bits(f.u64()),
                }
            }
            8 => Self::ParametersEqual { equal: f.u8() != 0 },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Event> {
        vec![
            Event::Step {
                pass: 2,
                step: 7,
                start_ns: 1,
                end_ns: u64::MAX,
                samples: 3,
            },
            Event::Pass {
                pass: 0,
                steps: 9,
                samples: 18,
                start_ns: 4,
                end_ns: 5,
            },
            Event::Warmup { steps: 12 },
            Event::Span {
                device: 3,
                track: 2,
                phase: 10,
                bucket: 1,
                step: 5,
                host_ns: [1, 2],
                device_ns: [3, 4],
            },
            Event::Comm(CommEvent {
                device: 1,
                phase: 10,
                collective: 3,
                algorithm: 0,
                element_bytes: 4,
                root: 2,
                size_bytes: 1 << 40,
                calls: 6,
                steps: 3,
                sent_bytes: 77,
                received_bytes: 78,
                wait_ns: [1, 2],
                transfer_ns: [3, u32::MAX],
            }),
            Event::Memory {
                device: 9,
                bytes: [1, 2, 3, 4, 5, 6],
            },
            Event::Loss {
                step: 4,
                loss: 0.25,
            },
            Event::ParametersEqual { equal: true },
        ]
    }

    #[test]
    fn every_event_survives_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank0.spool");
        Writer::create(&path, 8).unwrap();
        let mut writer = Writer::open(&path).unwrap();
        for event in samples() {
            writer.push(event);
        }
        // The writer is not dropped before reading: a killed rank never runs a destructor either.
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.events().collect::<Vec<_>>(), samples());
        assert_eq!(reader.dropped(), 0);
        writer.push(Event::Warmup { steps: 1 });
        assert_eq!(reader.dropped(), 1, "the ninth event finds eight places");
        writer.beat(7);
        assert_eq!(reader.heartbeat_ns(), 7);
    }

    #[test]
    fn another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not-a-spool");
        std::fs::write(&path, [0u8; 256]).unwrap();
        assert!(matches!(Reader::open(&path), Err(SpoolError::Format(_))));
    }
}
