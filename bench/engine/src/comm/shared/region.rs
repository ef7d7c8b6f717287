//! The memory that all ranks of one host see: its layout, and how it is made and found again.
//!
//! Threads share an anonymous mapping, processes a memfd whose descriptor they inherit; the layout is the same. Memory
//! that is all zero is a valid beginning, so that no rank has to initialise what another may already use. The
//! ordering rules are in [`super::rendezvous`]; the kernel's side is memfd_create(2) and futex(2).
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use rustix::mm::{MapFlags, ProtFlags};
use rustix::thread::futex;

use super::layout::{
    Header, Layout, MAGIC, MAILBOX_BYTES, MailLine, PAGE, REASON_BYTES, ROUNDS, RankLine, VERSION,
    Word,
};

/// Largest number of ranks of one region.
pub const MAX_WORLD: usize = 256;
/// Size of a data slot unless the caller chooses another: a rank's slots lie within the last-level cache.
pub const DEFAULT_SLOT_BYTES: usize = 512 << 10;

/// Why a region could not be made or found.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Sizes that no region can have.
    #[error(
        "a region of {world} ranks with slots of {slot_bytes} bytes cannot be made: ranks must be 1 to {MAX_WORLD}, slots a positive multiple of {PAGE}"
    )]
    Size {
        /// Ranks asked for.
        world: usize,
        /// Slot size asked for.
        slot_bytes: usize,
    },
    /// The descriptor is no region of this version.
    #[error("the inherited descriptor is not a communication region: {0}")]
    Foreign(String),
    /// A system call failed.
    #[error("{call} of {bytes} bytes of shared memory: {source}")]
    System {
        /// Which call.
        call: &'static str,
        /// For how many bytes.
        bytes: usize,
        /// What the kernel said.
        source: rustix::io::Errno,
    },
}

/// Memory shared by the ranks of one host.
pub struct Region {
    memory: NonNull<u8>,
    layout: Layout,
    world: usize,
    slot_bytes: usize,
    flags: futex::Flags,
}

// SAFETY: the mapping stays where it is until the region is dropped, everything but the data slots is atomic, and who
// may touch a slot when is settled by the arrivals (see `rendezvous`).
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Bytes of a region for `world` ranks with slots of `slot_bytes`. Pages that are never touched cost nothing.
    pub fn size(world: usize, slot_bytes: usize) -> usize {
        Layout::new(world, slot_bytes).end
    }

    /// A region for ranks that are threads of this process.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn for_threads(world: usize, slot_bytes: usize) -> Result<Self, RegionError> {
        check(world, slot_bytes)?;
        let bytes = Self::size(world, slot_bytes);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps nothing.
        let memory = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let region = Self::over(memory, world, slot_bytes, futex::Flags::PRIVATE)?;
        region.sign();
        Ok(region)
    }

    /// A region for ranks that are processes, and the descriptor that they inherit. It is not close-on-exec: drop it
    /// once the ranks are started.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn create_memfd(world: usize, slot_bytes: usize) -> Result<(OwnedFd, Self), RegionError> {
        check(world, slot_bytes)?;
        let bytes = Self::size(world, slot_bytes);
        let system = |call| {
            move |source| RegionError::System {
                call,
                bytes,
                source,
            }
        };
        let fd = rustix::fs::memfd_create("syncmark-region", rustix::fs::MemfdFlags::empty())
            .map_err(system("memfd_create"))?;
        rustix::fs::ftruncate(&fd, bytes as u64).map_err(system("ftruncate"))?;
        let region = Self::map(&fd, world, slot_bytes)?;
        region.sign();
        Ok((fd, region))
    }

    /// The region behind an inherited descriptor.
    ///
    /// # Errors
    /// [`RegionError::Foreign`] when it is none.
    pub fn from_fd(fd: impl AsFd) -> Result<Self, RegionError> {
        let foreign = |what: String| RegionError::Foreign(what);
        let stat = rustix::fs::fstat(&fd).map_err(|error| foreign(format!("fstat: {error}")))?;
        let mut start = [0_u8; 24];
        let read = rustix::io::pread(&fd, &mut start, 0)
            .map_err(|error| foreign(format!("pread: {error}")))?;
        if read < start.len() {
            return Err(foreign(format!("it holds {read} bytes")));
        }
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| start[at + i]));
        let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| start[at + i]));
        let (magic, slot_bytes, version, world) =
            (word(0), word(8) as usize, half(16), half(20) as usize);
        if magic != MAGIC {
            return Err(foreign("its first bytes are not a region's".into()));
        }
        if version != VERSION {
            return Err(foreign(format!(
                "it has version {version}, this program reads version {VERSION}"
            )));
        }
        check(world, slot_bytes)?;
        let (needed, held) = (Self::size(world, slot_bytes), stat.st_size as usize);
        if held < needed {
            return Err(foreign(format!(
                "it holds {held} bytes, {needed} are needed"
            )));
        }
        Self::map(&fd, world, slot_bytes)
    }

    fn map(fd: impl AsFd, world: usize, slot_bytes: usize) -> Result<Self, RegionError> {
        let bytes = Self::size(world, slot_bytes);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let memory = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                0,
            )
        };
        Self::over(memory, world, slot_bytes, futex::Flags::empty())
    }

    fn over(
        memory: rustix::io::Result<*mut std::ffi::c_void>,
        world: usize,
        slot_bytes: usize,
        flags: futex::Flags,
    ) -> Result<Self, RegionError> {
        let layout = Layout::new(world, slot_bytes);
        let system = |source| RegionError::System {
            call: "mmap",
            bytes: layout.end,
            source,
        };
        let memory = memory.map_err(system)?;
        let memory = NonNull::new(memory.cast()).ok_or_else(|| system(rustix::io::Errno::NOMEM))?;
        Ok(Self {
            memory,
            layout,
            world,
            slot_bytes,
            flags,
        })
    }

    /// Writes the head of a new region, its magic last.
    fn sign(&self) {
        let header = self.header();
        header
            .slot_bytes
            .store(self.slot_bytes as u64, Ordering::Relaxed);
        header.version.store(VERSION, Ordering::Relaxed);
        header.world.store(self.world as u32, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.world
    }

    /// Bytes of one data slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// When `rank` last arrived at a collective or barrier, on [`crate::probe::now_ns`]'s clock; 0 for never.
    pub fn heartbeat_ns(&self, rank: usize) -> u64 {
        self.line(rank).heartbeat_ns.load(Ordering::Relaxed)
    }

    /// Bytes that other ranks have read from the slots and mailboxes of `rank`, as counted by those readers.
    pub fn read_from(&self, rank: usize) -> u64 {
        self.line(rank).read_from.0.load(Ordering::Relaxed)
    }

    /// Makes every pending and later collective of the job fail with `reason`. The first abort wins. `rank` is who
    /// gives up; a supervisor passes `None`.
    pub fn abort(&self, rank: Option<usize>, reason: &str) {
        let header = self.header();
        if header
            .abort_state
            .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            return;
        }
        let bytes = &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES)];
        for (to, from) in header.reason.iter().zip(bytes) {
            to.store(*from, Ordering::Relaxed);
        }
        header
            .reason_len
            .store(bytes.len() as u32, Ordering::Relaxed);
        header
            .abort_rank
            .store(rank.map_or(0, |rank| rank as u32 + 1), Ordering::Relaxed);
        header.abort_state.store(2, Ordering::SeqCst);
        self.wake_everyone();
    }

    /// Who aborted (none: a supervisor) and why, once it happened.
    pub fn aborted(&self) -> Option<(Option<usize>, String)> {
        let header = self.header();
        if header.abort_state.load(Ordering::Acquire) != 2 {
            return None;
        }
        let len = (header.reason_len.load(Ordering::Relaxed) as usize).min(REASON_BYTES);
        let bytes: Vec<u8> = header.reason[..len]
            .iter()
            .map(|byte| byte.load(Ordering::Relaxed))
            .collect();
        let rank = (header.abort_rank.load(Ordering::Relaxed) as usize).checked_sub(1);
        Some((rank, String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Whether [`Region::aborted`] would say why: cheap enough for a waiting loop.
    pub(super) fn is_aborted(&self) -> bool {
        self.header().abort_state.load(Ordering::Relaxed) == 2
    }

    /// Says that `rank` will arrive nowhere any more.
    pub(super) fn depart(&self, rank: usize) {
        self.line(rank).departed.store(1, Ordering::SeqCst);
        self.wake_everyone();
    }

    /// Whether `rank` has said so.
    pub(super) fn has_departed(&self, rank: usize) -> bool {
        self.line(rank).departed.load(Ordering::SeqCst) != 0
    }

    /// How futexes of this region are named to the kernel: private to the process, or shared.
    pub(super) fn futex_flags(&self) -> futex::Flags {
        self.flags
    }

    /// Wakes all that are parked on `word`.
    pub(super) fn wake(&self, word: &Word) {
        // A failed wake-up is harmless: waiters look again by themselves after a while.
        let _ = futex::wake(&word.value, self.flags, i32::MAX as u32);
    }

    fn wake_everyone(&self) {
        for rank in 0..self.world {
            self.wake(&self.line(rank).arrivals);
            self.wake(&self.line(rank).barriers);
            for peer in 0..self.world {
                self.wake(&self.mail(rank, peer).written);
                self.wake(&self.mail(rank, peer).read.0);
            }
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: the first page holds a header: aligned, within the mapping, all of it atomic and valid for any bits.
        unsafe { self.memory.cast::<Header>().as_ref() }
    }

    pub(super) fn line(&self, rank: usize) -> &RankLine {
        assert!(rank < self.world, "rank {rank} of {}", self.world);
        // SAFETY: `lines` is page-aligned and holds `world` lines; a line is all atomic and valid for any bits.
        unsafe {
            self.memory
                .byte_add(self.layout.lines)
                .cast::<RankLine>()
                .add(rank)
                .as_ref()
        }
    }

    pub(super) fn mail(&self, sender: usize, receiver: usize) -> &MailLine {
        assert!(
            sender < self.world && receiver < self.world,
            "ranks {sender} and {receiver} of {}",
            self.world
        );
        let index = sender * self.world + receiver;
        // SAFETY: as in `line`; there are world·world mail lines.
        unsafe {
            self.memory
                .byte_add(self.layout.mail_lines)
                .cast::<MailLine>()
                .add(index)
                .as_ref()
        }
    }

    /// Start of slot `place` of `rank`: [`Region::slot_bytes`] bytes, page-aligned.
    pub(super) fn slot(&self, rank: usize, place: usize) -> *mut u8 {
        assert!(rank < self.world && place < ROUNDS);
        let offset = self.layout.slots + (rank * ROUNDS + place) * self.slot_bytes;
        self.memory.as_ptr().wrapping_add(offset)
    }

    /// Start of slot `parity` of a mailbox: [`MAILBOX_BYTES`] bytes, page-aligned.
    pub(super) fn mail_slot(&self, sender: usize, receiver: usize, parity: usize) -> *mut u8 {
        assert!(sender < self.world && receiver < self.world && parity < 2);
        let index = (sender * self.world + receiver) * 2 + parity;
        self.memory
            .as_ptr()
            .wrapping_add(self.layout.mail_slots + index * MAILBOX_BYTES)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.memory.as_ptr().cast(), self.layout.end) };
    }
}

fn check(world: usize, slot_bytes: usize) -> Result<(), RegionError> {
    let fits = (1..=MAX_WORLD).contains(&world)
        && slot_bytes > 0
        && slot_bytes.is_multiple_of(PAGE)
        && slot_bytes <= 1 << 30;
    if fits {
        Ok(())
    } else {
        Err(RegionError::Size { world, slot_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_found_again_by_its_descriptor() {
        let (fd, made) = Region::create_memfd(3, 8192).unwrap();
        let found = Region::from_fd(&fd).unwrap();
        assert_eq!((found.world_size(), found.slot_bytes()), (3, 8192));
        made.line(2).heartbeat_ns.store(7, Ordering::Relaxed);
        assert_eq!(found.heartbeat_ns(2), 7);
        made.abort(Some(1), "no more");
        assert_eq!(found.aborted(), Some((Some(1), "no more".into())));
    }

    #[test]
    fn foreign_descriptors_and_sizes_are_refused() {
        let fd = rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::empty()).unwrap();
        assert!(matches!(Region::from_fd(&fd), Err(RegionError::Foreign(_))));
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        let error = Region::from_fd(&fd).err().unwrap().to_string();
        assert!(error.contains("not a region's"), "{error}");
        assert!(matches!(
            Region::for_threads(0, 4096),
            Err(RegionError::Size { .. })
        ));
        assert!(matches!(
            Region::for_threads(2, 100),
            Err(RegionError::Size { .. })
        ));
    }

    #[test]
    fn a_truncated_region_is_refused() {
        let (fd, _region) = Region::create_memfd(2, 4096).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        let error = Region::from_fd(&fd).err().unwrap().to_string();
        assert!(error.contains("8192 bytes"), "{error}");
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let region = Region::for_threads(1, 4096).unwrap();
        region.abort(None, &"é".repeat(2000));
        let (_, reason) = region.aborted().unwrap();
        assert_eq!(reason, "é".repeat(512));
    }
}
