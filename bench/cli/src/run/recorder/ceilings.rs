//! Rows of `ceilings.csv`: what the machine could do at best beside a repeat's measurement.
use syncmark_engine::backend::cpu::instructions::Instructions;
use syncmark_engine::ceiling::Ceiling;
use syncmark_record::rows::CeilingRow;

use super::RepeatFacts;
use crate::run::spool::{CeilingEvent, Event};

pub(super) fn ceiling_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<CeilingRow> {
    let events = ranks.iter().flatten();
    let found = events.filter_map(|event| match event {
        Event::Ceiling(found) => Some(found),
        _ => None,
    });
    found.filter_map(|found| row(facts, found)).collect()
}

/// None for a ceiling or instructions that this version does not know.
fn row(facts: &RepeatFacts<'_>, found: &CeilingEvent) -> Option<CeilingRow> {
    let ceiling = Ceiling::ALL.get(usize::from(found.ceiling))?;
    let instructions = match found.instructions {
        0 => None,
        chosen => Some(Instructions::ALL.get(usize::from(chosen) - 1)?),
    };
    let [median, best, p25, p75] = found.figures;
    Some(CeilingRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        ceiling: ceiling.name().to_owned(),
        threads: u32::from(found.threads),
        instructions: instructions.map(|chosen| chosen.name().to_owned()),
        working_set_bytes: found.working_set_bytes,
        last_level_cache_bytes: found.last_level_cache_bytes,
        windows: u32::from(found.windows),
        unit: ceiling.unit().to_owned(),
        median,
        best,
        p25,
        p75,
    })
}
