//! Finds the characters of finished pages that no embedded font can draw.
//!
//! Contract: reads the laid-out frames only. A character that is drawn as an empty box would silently change
//! what a report says (a model's name, a path), so it is named in a warning.
//! Reference: OpenType's glyph 0, `.notdef`.

use std::collections::BTreeSet;

use typst::layout::{Frame, FrameItem};
use typst_layout::PagedDocument;

use crate::error::Diagnostic;

/// As many characters as a warning names before it stops.
const NAMED: usize = 12;

/// One warning that names the characters without a glyph; `None` where every character is drawn.
pub(crate) fn missing(document: &PagedDocument) -> Option<Diagnostic> {
    let mut characters = BTreeSet::new();
    for page in document.pages() {
        collect(&page.frame, &mut characters);
    }
    if characters.is_empty() {
        return None;
    }
    let named: Vec<String> = characters
        .iter()
        .take(NAMED)
        .map(|c| format!("`{c}` (U+{:04X})", u32::from(*c)))
        .collect();
    let more = characters.len().saturating_sub(NAMED);
    let more = if more == 0 {
        String::new()
    } else {
        format!(" and {more} more")
    };
    Some(Diagnostic {
        position: None,
        message: format!("the embedded fonts cannot draw {}{more}", named.join(", ")),
        hints: vec!["the HTML report shows them with the reader's own fonts".to_string()],
    })
}

fn collect(frame: &Frame, characters: &mut BTreeSet<char>) {
    for (_, item) in frame.items() {
        match item {
            FrameItem::Group(group) => collect(&group.frame, characters),
            FrameItem::Text(run) => {
                let undrawn = run.glyphs.iter().filter(|glyph| glyph.id == 0);
                let text = undrawn.filter_map(|glyph| run.text.get(glyph.range()));
                characters.extend(text.flat_map(str::chars));
            }
            _ => {}
        }
    }
}
