//! The table of what the machine could do at best, for the sections whose figures are held against it.
use crate::{
    ceilings::{Pooled, meaning},
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format,
};

/// One row a ceiling, and what each is; nothing where none was measured.
pub(super) fn blocks(ceilings: &[Pooled<'_>]) -> Vec<Block> {
    if ceilings.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(
        "What this machine could do at best, measured within the repeats: medians over repeats of the median window, with the smallest and \
         largest repeat in brackets.",
        &[
            ("ceiling", Left),
            ("threads", Right),
            ("unit", Left),
            ("median window", Right),
            ("middle half of the windows", Right),
            ("best window", Right),
        ],
    );
    let mut items = Vec::new();
    for Pooled {
        row,
        repeats,
        median: [median, low, high],
        quartiles: [p25, p75],
        best,
    } in ceilings
    {
        let (unit, scale) = format::ceiling_unit(&row.unit);
        let show = |value: f64| format::significant(value / scale, 3);
        let ends = (*repeats > 1).then_some((*low, *high));
        table.push(vec![
            row.ceiling.clone(),
            row.threads.to_string(),
            unit.to_owned(),
            format::with_spread(
                Some(*median),
                ends.map(|(low, _)| low),
                ends.map(|(_, high)| high),
                show,
            ),
            format!("{} to {}", show(*p25), show(*p75)),
            show(*best),
        ]);
        let instructions = match &row.instructions {
            Some(instructions) => format!(" ({instructions} instructions)"),
            None => String::new(),
        };
        items.push(format!(
            "{}{instructions}: {}{}.",
            row.ceiling,
            meaning(&row.ceiling),
            unknown_cache(row)
        ));
    }
    let meanings = Block::List {
        ordered: false,
        items,
    };
    vec![Block::Table(table), meanings]
}

/// A working set that was not derived from the cache must not look as if it were.
fn unknown_cache(row: &syncmark_record::rows::CeilingRow) -> String {
    match (row.working_set_bytes, row.last_level_cache_bytes) {
        (Some(bytes), None) => format!(
            "; the size of the last-level cache is not known, {} were taken",
            format::bytes(bytes as f64)
        ),
        _ => String::new(),
    }
}
