//! Tests that typeset whole documents: what the pages say, what they cost in space, and how they fail.
//!
//! Contract: text is read back from the laid-out frames, so no outside program is needed. With the variable
//! SYNCMARK_PDF_SAMPLES set to a folder, the documents of these tests are also left there to be looked at.
//! Reference: the report's contents as listed in `syncmark_report::document`.

mod failures;
mod pages;
mod sample;

use syncmark_report::document::{Block, Document};
use typst::layout::{Frame, FrameItem};

use crate::world::ReportWorld;
use crate::{DEFAULT_TEMPLATE, Diagnostic, Pdf, data, layout, typeset};

/// A page as read back: its size in points and the text on it, in the order of drawing.
struct Sheet {
    width: f64,
    height: f64,
    text: String,
    /// Right-most edge of any text, in points from the left, to see that nothing leaves the page.
    right: f64,
}

/// A document with these blocks and an unremarkable title, question and answer.
fn document(blocks: Vec<Block>) -> Document {
    Document {
        title: "dp-vs-ddp".into(),
        subtitle: "host node7, 2026-03-01 04:05 UTC, syncmark 0.1.0".into(),
        question: "Is DP ever faster than DDP here?".into(),
        answer: vec!["No.".into()],
        blocks,
    }
}

/// Lays a document out with the default template.
fn sheets(document: &Document) -> (Vec<Sheet>, Vec<Diagnostic>) {
    let world = ReportWorld::new(
        DEFAULT_TEMPLATE,
        data::files(document).expect("plain figure names"),
    );
    let (paged, warnings) = layout(&world).expect("the default template typesets");
    let sheet = |frame: &Frame| {
        let mut sheet = Sheet {
            width: frame.width().to_pt(),
            height: frame.height().to_pt(),
            text: String::new(),
            right: 0.0,
        };
        read(frame, 0.0, &mut sheet);
        sheet
    };
    (
        paged
            .pages()
            .iter()
            .map(|page| sheet(&page.frame))
            .collect(),
        warnings,
    )
}

/// Adds a frame's text to `sheet`; `left` is the frame's offset on the page in points.
fn read(frame: &Frame, left: f64, sheet: &mut Sheet) {
    for (position, item) in frame.items() {
        let x = left + position.x.to_pt();
        match item {
            FrameItem::Group(group) => read(&group.frame, x, sheet),
            FrameItem::Text(run) => {
                sheet.text.push_str(&run.text);
                sheet.text.push(' ');
                sheet.right = sheet.right.max(x + run.width().to_pt());
            }
            _ => {}
        }
    }
}

/// The text of all pages with white space and zero-width spaces removed, because lines break where they like.
fn squeezed(sheets: &[Sheet]) -> String {
    sheets.iter().map(|sheet| squeeze(&sheet.text)).collect()
}

fn squeeze(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_whitespace() && *c != '\u{200b}')
        .collect()
}

/// Typesets to bytes and leaves them as `<name>.pdf` in the samples' folder, if there is one.
fn pdf(name: &str, document: &Document) -> Pdf {
    let pdf = typeset(document, None).expect("the default template typesets");
    if let Some(folder) = std::env::var_os("SYNCMARK_PDF_SAMPLES") {
        let path = std::path::Path::new(&folder).join(format!("{name}.pdf"));
        std::fs::write(&path, &pdf.bytes).expect("the samples' folder is writable");
    }
    pdf
}
