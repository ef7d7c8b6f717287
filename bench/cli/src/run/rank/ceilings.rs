//! The child's side of ceilings: what a device, or two ranks together, could do at best, measured right beside what is held against it.
//!
//! Contract: outside of every pass, on the devices' own cores, in the repeat that they belong to. Ranks that do not take part wait
//! in the kernel at a barrier meanwhile. Where two ranks do not run on one host, or one's cores cannot be had by the other's process,
//! there is no floor between them, and none is claimed.
//! Reference: METHODOLOGY.md, "Ceilings".
use syncmark_engine::backend::cpu::instructions::Instructions;
use syncmark_engine::ceiling::{self, Ceiling, CeilingError, Measured};

use super::RankError;
use super::device::device;
use crate::environment::{Root, machine};
use crate::plan::config::Backend;
use crate::run::protocol::{Assignment, Meeting};
use crate::run::spool::{CeilingEvent, Event};
use crate::scenario::file::Transport;

/// Arithmetic and memory of the first device, alone; of a GPU its memory.
///
/// # Errors
/// When one cannot be measured.
pub(super) fn of_device(assignment: &Assignment) -> Result<Vec<Event>, RankError> {
    if assignment.trial.backend == Backend::Cuda {
        let mut device = device(assignment, 0)?;
        return Ok(vec![event(&ceiling::gpu_memory(&mut *device)?, None)]);
    }
    let cores = assignment.cores.first().cloned().unwrap_or_default();
    let core = cores.first().map(|core| *core as u32);
    let cache = core.and_then(|core| machine::last_level_cache(&Root::machine(), core));
    let arithmetic = ceiling::arithmetic(std::slice::from_ref(&cores))?;
    let memory = ceiling::memory(&[cores], ceiling::working_set(cache))?;
    let all = std::iter::once(&arithmetic).chain(&memory);
    Ok(all.map(|measured| event(measured, cache)).collect())
}

/// The floor under what the first two ranks exchange, between their cores.
///
/// # Errors
/// When it cannot be measured where it should.
pub(super) fn between_ranks(assignment: &Assignment) -> Result<Vec<Event>, RankError> {
    let [first, second, ..] = &assignment.cores[..] else {
        return Ok(Vec::new());
    };
    if !one_host(assignment) {
        return Ok(Vec::new());
    }
    let cores = [&first[..], &second[..]];
    let measured = match assignment.trial.strategy.ranks_transport() {
        Some(Transport::Tcp) => ceiling::tcp(cores).map(Vec::from),
        Some(Transport::Shared) => ceiling::shared(cores),
        Some(Transport::Nccl) | None => return Ok(Vec::new()),
    };
    match measured {
        Ok(measured) => Ok(measured.iter().map(|found| event(found, None)).collect()),
        // A batch system can forbid a process the cores of its neighbour.
        Err(CeilingError::Device(_)) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the ranks surely share a host: those in one process and those that share memory do.
fn one_host(assignment: &Assignment) -> bool {
    match &assignment.meeting {
        None | Some(Meeting::Region { .. }) => true,
        Some(Meeting::Tcp { address, .. }) => address.ip().is_loopback(),
    }
}

fn event(measured: &Measured, cache: Option<u64>) -> Event {
    let place = |known: Option<usize>| known.expect("every one is listed") as u8;
    let spread = measured.spread;
    let instructions = measured
        .instructions
        .map(|chosen| place(Instructions::ALL.iter().position(|known| *known == chosen)) + 1);
    Event::Ceiling(CeilingEvent {
        ceiling: place(
            Ceiling::ALL
                .iter()
                .position(|known| *known == measured.ceiling),
        ),
        instructions: instructions.unwrap_or(0),
        threads: measured.threads as u16,
        windows: spread.windows as u16,
        working_set_bytes: measured.working_set_bytes,
        last_level_cache_bytes: cache.filter(|_| measured.working_set_bytes.is_some()),
        figures: [
            spread.median,
            spread.best,
            spread.quartiles[0],
            spread.quartiles[1],
        ],
    })
}
