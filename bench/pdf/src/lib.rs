//! From a report's document to a PDF, typeset by Typst, which lives in this crate alone.
//!
//! Contract: the same document and template give the same bytes, on any machine and at any time: fonts are
//! embedded, no clock or file is read, and the PDF carries no date. Text of the document is data, never markup.
//! Reference: Typst 0.15, <https://typst.app/docs/>; the default layout is `template.typ` beside this crate's
//! sources, and its head describes what a replacement can read.

mod data;
mod error;
mod glyphs;
#[cfg(test)]
mod tests;
mod world;

use syncmark_report::document::Document;
use typst::comemo;
use typst::foundations::Smart;
use typst_layout::PagedDocument;
use typst_pdf::PdfOptions;

pub use error::{Diagnostic, PdfError, Position};

use world::ReportWorld;

/// The layout used where no other is given.
pub const DEFAULT_TEMPLATE: &str = include_str!("../template.typ");

/// A finished report.
#[derive(Clone, Debug)]
pub struct Pdf {
    /// The file's content.
    pub bytes: Vec<u8>,
    /// Number of pages.
    pub pages: usize,
    /// What did not stop the report but should be seen: Typst's warnings about a replaced template, and
    /// characters that no embedded font has. The default template gives none for text that the fonts cover.
    pub warnings: Vec<Diagnostic>,
}

/// Typesets `document` with `template`, or with [`DEFAULT_TEMPLATE`], and returns the PDF's bytes.
///
/// # Errors
/// As [`typeset`].
pub fn render(document: &Document, template: Option<&str>) -> Result<Vec<u8>, PdfError> {
    typeset(document, template).map(|pdf| pdf.bytes)
}

/// As [`render`], with the number of pages and the warnings.
///
/// # Errors
/// A template that does not compile, a chart that is no SVG, or a figure's name that cannot be a file's.
pub fn typeset(document: &Document, template: Option<&str>) -> Result<Pdf, PdfError> {
    let world = ReportWorld::new(template.unwrap_or(DEFAULT_TEMPLATE), data::files(document)?);
    let result = compile(&world, document);
    // Typst memoizes in process-wide tables; a report is typeset once, so nothing there is of use again.
    comemo::evict(0);
    result
}

/// Lays the pages out and writes them.
fn compile(world: &ReportWorld, document: &Document) -> Result<Pdf, PdfError> {
    let (paged, warnings) = layout(world)?;
    let bytes = typst_pdf::pdf(&paged, &options(document)).map_err(|found| PdfError::Export {
        diagnostics: world.errors(&found),
    })?;
    Ok(Pdf {
        bytes,
        pages: paged.pages().len(),
        warnings,
    })
}

/// Lays the pages out, with the warnings about them.
fn layout(world: &ReportWorld) -> Result<(PagedDocument, Vec<Diagnostic>), PdfError> {
    let compiled = typst::compile::<PagedDocument>(world);
    let paged = compiled.output.map_err(|found| PdfError::Typeset {
        diagnostics: world.errors(&found),
    })?;
    let mut warnings: Vec<_> = compiled
        .warnings
        .iter()
        .map(|found| world.diagnostic(found))
        .collect();
    warnings.extend(glyphs::missing(&paged));
    Ok((paged, warnings))
}

/// Metadata that depends on the document alone: Typst hashes the identifier, so it is stable and leaks nothing.
fn options(document: &Document) -> PdfOptions {
    PdfOptions {
        ident: Smart::Custom(format!("{}\n{}", document.title, document.subtitle)),
        creator: Smart::Custom(Some(format!("syncmark {}", env!("CARGO_PKG_VERSION")))),
        timestamp: None,
        ..PdfOptions::default()
    }
}
