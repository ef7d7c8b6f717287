//! The document as files that a template reads: `report.json` and one SVG a figure.
//!
//! Contract: text travels as JSON strings and never becomes Typst markup, so no content of a report can
//! change its layout or run code. Every table leaves here rectangular and every size positive, so that a
//! template need not check. The head of `template.typ` lists the fields.
//! Reference: Typst's `json` function, <https://typst.app/docs/reference/data-loading/json/>.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use syncmark_report::document::{Alignment, Block, CalloutKind, Document, Figure, Table};

use crate::error::PdfError;

/// The virtual file that holds everything but the charts.
pub(crate) const REPORT_FILE: &str = "report.json";

/// Path (from the template's folder) and content of every file that a template can read.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Lays a document out as files.
///
/// # Errors
/// A figure whose name is no plain file stem, or occurs twice.
pub(crate) fn files(document: &Document) -> Result<Files, PdfError> {
    let mut files = Files::new();
    for figure in document.figures() {
        check_name(figure)?;
        let svg = figure.svg.clone().into_bytes();
        if files.insert(figure_path(figure), svg).is_some() {
            return Err(PdfError::DuplicateFigure {
                name: figure.name.clone(),
            });
        }
    }
    files.insert(
        REPORT_FILE.to_string(),
        report(document).to_string().into_bytes(),
    );
    Ok(files)
}

/// A chart's path inside the run folder, which is also its path for the template.
fn figure_path(figure: &Figure) -> String {
    format!("charts/{}.svg", figure.name)
}

fn check_name(figure: &Figure) -> Result<(), PdfError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if figure.name.is_empty() || !figure.name.chars().all(plain) {
        return Err(PdfError::FigureName {
            name: figure.name.clone(),
        });
    }
    Ok(())
}

fn report(document: &Document) -> Value {
    json!({
        "title": document.title,
        "subtitle": document.subtitle,
        "question": document.question,
        "answer": document.answer,
        "blocks": document.blocks.iter().map(block).collect::<Vec<_>>(),
    })
}

fn block(block: &Block) -> Value {
    match block {
        // Typst refuses a heading of level 0; deeper levels than 6 have no bookmark style of their own.
        Block::Heading { level, text } => {
            json!({ "kind": "heading", "level": (*level).clamp(1, 6), "text": text })
        }
        Block::Paragraph(text) => json!({ "kind": "paragraph", "text": text }),
        Block::Table(inner) => table(inner),
        Block::Figure(inner) => figure(inner),
        Block::List { ordered, items } => {
            json!({ "kind": "list", "ordered": ordered, "items": items })
        }
        Block::Code { language, text } => {
            json!({ "kind": "code", "language": language, "text": text })
        }
        Block::Callout { kind, text } => {
            let tone = match kind {
                CalloutKind::Note => "note",
                CalloutKind::Warning => "warning",
            };
            json!({ "kind": "callout", "tone": tone, "text": text })
        }
    }
}

/// A table, with short rows filled up: `Table`'s fields are public, so its promise can be broken.
fn table(table: &Table) -> Value {
    let columns = table.headers.len();
    let mut alignment = table.alignment.clone();
    alignment.resize(columns, Alignment::Left);
    let mut rows = table.rows.clone();
    rows.iter_mut()
        .for_each(|row| row.resize(columns, String::new()));
    json!({
        "kind": "table",
        "caption": table.caption,
        "headers": table.headers,
        "alignment": alignment.into_iter().map(side).collect::<Vec<_>>(),
        "rows": rows,
    })
}

fn side(alignment: Alignment) -> &'static str {
    match alignment {
        Alignment::Left => "left",
        Alignment::Right => "right",
        Alignment::Center => "center",
    }
}

fn figure(figure: &Figure) -> Value {
    json!({
        "kind": "figure",
        "file": figure_path(figure),
        "title": figure.title,
        "caption": figure.caption,
        "width": figure.width.max(1),
        "height": figure.height.max(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure_named(name: &str) -> Block {
        Block::Figure(Figure {
            name: name.into(),
            title: "t".into(),
            caption: "c".into(),
            svg: "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1\" height=\"1\"/>".into(),
            width: 1,
            height: 1,
        })
    }

    fn document(blocks: Vec<Block>) -> Document {
        Document {
            title: "t".into(),
            subtitle: "s".into(),
            question: "q".into(),
            answer: vec!["a".into()],
            blocks,
        }
    }

    #[test]
    fn a_figure_is_a_file_under_its_name() {
        let files = files(&document(vec![figure_named("step-ms")])).unwrap();
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            ["charts/step-ms.svg", REPORT_FILE]
        );
    }

    #[test]
    fn names_that_leave_the_folder_or_repeat_are_refused() {
        for name in ["", "../x", "a b", "A", "a\\b"] {
            let error = files(&document(vec![figure_named(name)])).unwrap_err();
            assert!(
                matches!(error, PdfError::FigureName { .. }),
                "{name}: {error}"
            );
        }
        let error = files(&document(vec![figure_named("a"), figure_named("a")])).unwrap_err();
        assert!(matches!(error, PdfError::DuplicateFigure { .. }), "{error}");
    }

    #[test]
    fn a_ragged_table_leaves_rectangular() {
        let ragged = Table {
            caption: String::new(),
            headers: vec!["a".into(), "b".into()],
            alignment: vec![Alignment::Right],
            rows: vec![vec!["1".into()], vec!["1".into(), "2".into(), "3".into()]],
        };
        let value = table(&ragged);
        assert_eq!(value["alignment"], json!(["right", "left"]));
        assert_eq!(value["rows"], json!([["1", ""], ["1", "2"]]));
    }
}
