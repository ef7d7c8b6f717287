//! The report as data: a title, the question, the answer in words, and blocks in reading order.
//!
//! Contract: every string is plain text without markup, so each renderer (HTML, Markdown, PDF) escapes
//! all of it and none has to understand another's syntax. Nothing here reads files or draws.
//! Reference: the report contents listed in the project's METHODOLOGY.md.

/// A whole report, ready to be rendered.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Name of the scenario, as the title of the first page.
    pub title: String,
    /// One line of provenance: host, UTC time, version.
    pub subtitle: String,
    /// The question that the scenario asks; empty where it asks none.
    pub question: String,
    /// The answer in words, one sentence or short paragraph each; never empty.
    pub answer: Vec<String>,
    /// Everything after the answer, in reading order.
    pub blocks: Vec<Block>,
}

impl Document {
    /// The figures of the document, in reading order.
    pub fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Figure(figure) => Some(figure),
            _ => None,
        })
    }
}

/// One block of a [`Document`].
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// A section heading.
    Heading {
        /// 1 for a section, 2 for a part of one.
        level: u8,
        /// The heading's words.
        text: String,
    },
    /// Running text.
    Paragraph(String),
    /// A table with a header row.
    Table(Table),
    /// A chart.
    Figure(Figure),
    /// A list.
    List {
        /// Numbered or bulleted.
        ordered: bool,
        /// One string an item.
        items: Vec<String>,
    },
    /// Preformatted text.
    Code {
        /// Language for highlighting, such as `sh` or `toml`.
        language: Option<String>,
        /// The text, with its line breaks.
        text: String,
    },
    /// A paragraph set apart.
    Callout {
        /// How urgent it is.
        kind: CalloutKind,
        /// What it says.
        text: String,
    },
}

impl Block {
    /// A heading of a section (level 1) or of a part of one (level 2).
    pub fn heading(level: u8, text: impl Into<String>) -> Self {
        Self::Heading {
            level,
            text: text.into(),
        }
    }

    /// A paragraph.
    pub fn paragraph(text: impl Into<String>) -> Self {
        Self::Paragraph(text.into())
    }

    /// A note that is no warning.
    pub fn note(text: impl Into<String>) -> Self {
        Self::Callout {
            kind: CalloutKind::Note,
            text: text.into(),
        }
    }

    /// A warning.
    pub fn warning(text: impl Into<String>) -> Self {
        Self::Callout {
            kind: CalloutKind::Warning,
            text: text.into(),
        }
    }
}

/// How a [`Block::Callout`] is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalloutKind {
    /// Helps to read what stands beside it.
    Note,
    /// Must be known before a figure is trusted.
    Warning,
}

/// Horizontal alignment of a table's column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// Words.
    Left,
    /// Numbers.
    Right,
    /// Marks.
    Center,
}

/// A table: `headers`, `alignment` and every row have the same length.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What the table shows, in a sentence; may be empty.
    pub caption: String,
    /// Column headings, with units.
    pub headers: Vec<String>,
    /// One alignment a column.
    pub alignment: Vec<Alignment>,
    /// Cells; an empty cell was not measured.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(caption: impl Into<String>, columns: &[(&str, Alignment)]) -> Self {
        Self {
            caption: caption.into(),
            headers: columns
                .iter()
                .map(|(header, _)| (*header).to_string())
                .collect(),
            alignment: columns.iter().map(|(_, alignment)| *alignment).collect(),
            rows: Vec::new(),
        }
    }

    /// Appends a row, cut or padded with empty cells to the number of columns.
    pub fn push(&mut self, mut row: Vec<String>) {
        row.resize(self.headers.len(), String::new());
        self.rows.push(row);
    }
}

/// A chart: one SVG, stored in the run folder as `charts/<name>.svg` and `charts/<name>.png`.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// File stem: lower-case letters, digits and hyphens; unique in the document.
    pub name: String,
    /// What the chart shows, a few words.
    pub title: String,
    /// What to see in it and what to beware of, in full sentences.
    pub caption: String,
    /// The complete SVG text; its only font family is the embedded DejaVu Sans, with fallbacks.
    pub svg: String,
    /// Width in pixels at 100 %.
    pub width: u32,
    /// Height in pixels at 100 %.
    pub height: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_every_row_as_wide_as_its_header() {
        let mut table = Table::new(
            "made up",
            &[("a", Alignment::Left), ("b", Alignment::Right)],
        );
        table.push(vec!["1".into()]);
        table.push(vec!["1".into(), "2".into(), "3".into()]);
        assert!(table.rows.iter().all(|row| row.len() == 2));
        assert_eq!(table.rows[0][1], "");
    }
}
