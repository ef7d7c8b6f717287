//! A rank's spool: fixed-size events in a memory-mapped file, so that what was measured survives SIGKILL.
//!
//! Layout, little-endian, documented because a rank may be written in another language (CONTRIBUTING.md, child protocol):
//! a 64-byte header (magic `SMSPOOL1`, u32 version, u32 event size, u64 capacity, u64 written, u64 dropped, u64 heartbeat on
//! CLOCK_MONOTONIC in nanoseconds), then `capacity` events of 64 bytes each. The writer stores an event first and raises
//! `written` after it (release), so a reader never sees half an event. The file's blocks are reserved when it is made:
//! a full disk is an error then, never a SIGBUS in the middle of a run.
mod event;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Mmap, MmapMut};

pub use event::{
    CeilingEvent, ChoicePiece, CommEvent, Event, GpuPlace, GpuState, GpuTraffic, LearningEvent,
    REASONS, name_bytes, name_of, pieces,
};

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

    /// Events written so far.
    pub fn written(&self) -> usize {
        (self.word(WRITTEN) as usize).min(self.map.len() / EVENT_BYTES - 1)
    }

    /// The events written so far, in order. An event of an unknown kind (of a later version) is skipped.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.map[EVENT_BYTES..EVENT_BYTES * (self.written() + 1)]
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
                sent_bytes: Some(77),
                received_bytes: None,
                wait_ns: [1, 2],
                transfer_ns: [3, u32::MAX],
            }),
            Event::Measured {
                sent_bytes: u64::MAX,
            },
            Event::Dispatch {
                step: 3,
                dispatch_ns: 1,
                upload_ns: 2,
                device_ns: u64::MAX,
            },
            Event::Memory {
                device: 9,
                bytes: [1, 2, 3, 4, 5, 6],
            },
            Event::Loss {
                step: 4,
                loss: 0.25,
            },
            Event::ParametersEqual { equal: true },
            Event::CollectiveTime {
                collective: 2,
                algorithm: 1,
                elements: 5,
                size_bytes: 20,
                iterations: 40,
                time_ns: [7, 8, u64::MAX],
            },
            Event::CollectiveCheck {
                collective: 2,
                elements: 5,
                wrong: 1,
                calls: 40,
                sent_bytes: Some(800),
                measured_sent_bytes: Some(900),
            },
            Event::NodeTime {
                node: 70_000,
                backward: true,
                calls: 300,
                time_ns: [1, 2, u64::MAX],
            },
            Event::Ceiling(CeilingEvent {
                ceiling: 3,
                instructions: 0,
                threads: 2,
                windows: 12,
                working_set_bytes: Some(1 << 27),
                last_level_cache_bytes: None,
                figures: [1.5, 2.5, -0.0, f64::MAX],
            }),
            cores(None),
            cores(Some(7)),
            Event::GpuPlace(GpuPlace {
                device: 300,
                place: (0x1_0000, 0x3b, 7),
                node: Some(1),
                unbound: 2,
                network: name_bytes(Some("ib0")),
                rdma: name_bytes(None),
            }),
            gpu(None),
            gpu(Some(7)),
            Event::GpuTraffic(GpuTraffic {
                pass: 1,
                device: 300,
                nvlink_bytes: [Some(1 << 40), Some(2)],
                pcie_bytes: [Some(3), None],
                pcie_replays: Some(0),
            }),
            Event::GpuPeer {
                from: 300,
                to: 2,
                directly: true,
            },
            Event::Choice(ChoicePiece {
                device: 300,
                choice: 7,
                bytes: [b'x'; 56],
            }),
            Event::Learning(LearningEvent {
                step: 9,
                train_ns: 8,
                train_loss: 1.5,
                eval_loss: -0.0,
                eval_error: 0.25,
                batch_loss: f64::MAX,
                batch_error: 1.0,
            }),
            Event::LearningEnd {
                step: 9,
                train_eval: [0.5, 0.75],
                dropout: [0.5, f64::MAX],
                precise: [0.125, 1e-300],
            },
            Event::NormStatistics {
                layer: 300,
                channels: 70_000,
                step: 9,
                values: 64.5,
                batches: 12,
                mean_noise: 0.1,
                variance_noise: 0.2,
            },
        ]
    }

    fn cores(pressure_ns: Option<u64>) -> Event {
        Event::Cores {
            device: 300,
            cores: 2,
            elapsed_ns: 1,
            busy_ns: 2,
            pinned_ns: 3,
            elsewhere_ns: 4,
            stolen_ns: 5,
            involuntary_switches: 6,
            pressure_ns,
        }
    }

    /// A GPU of which NVML told everything, or only that it was there.
    fn gpu(told: Option<u16>) -> Event {
        Event::GpuState(GpuState {
            pass: 1,
            device: 300,
            watched_ns: 1 << 40,
            samples: 70_000,
            sm_mhz: told.map_or([0; 2], |mhz| [mhz, 9]),
            spread: told.map(|_| 0.25),
            celsius: told,
            watts: told.map(|_| [0.5, 700.0]),
            held_back: told.map(|share| [share; REASONS]),
            slowed: 11,
            foreign: told,
            foreign_bytes: told.map(u64::from),
        })
    }

    #[test]
    fn names_are_cut_where_they_are_too_long() {
        assert_eq!(name_of(&name_bytes(Some("mlx5_0"))).unwrap(), "mlx5_0");
        assert_eq!(name_of(&name_bytes(None)), None);
        let long = "n".repeat(40);
        assert_eq!(name_of(&name_bytes(Some(&long))).unwrap(), "n".repeat(24));
    }

    #[test]
    fn every_event_survives_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rank0.spool");
        Writer::create(&path, samples().len()).unwrap();
        let mut writer = Writer::open(&path).unwrap();
        for event in samples() {
            writer.push(event);
        }
        // The writer is not dropped before reading: a killed rank never runs a destructor either.
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.events().collect::<Vec<_>>(), samples());
        assert_eq!(reader.dropped(), 0);
        writer.push(Event::Warmup { steps: 1 });
        assert_eq!(reader.dropped(), 1, "one event more than there are places");
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
