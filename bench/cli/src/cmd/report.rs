//! `syncmark report RUN_DIR`: renders a run folder again from its records; `run` ends with the same.
//!
//! Contract: records are read and never changed, and no hardware is needed. The PDF is written last and whole:
//! a full disk leaves the earlier report.pdf as it was.
use std::path::{Path, PathBuf};

use syncmark_record::RunFolder;
use syncmark_report::ReportError;
use syncmark_report::document::Document;

use crate::args::ReportArgs;
use crate::cmd::print;
use crate::error::{CliError, Result, Status};

/// What becomes of `report.pdf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pdf<'a> {
    /// It is not written.
    Leave,
    /// It is typeset with this template, or with the built-in one.
    Typeset(Option<&'a Path>),
}

/// Name of the PDF's file.
const PDF: &str = "report.pdf";

/// Whether this build can write PDFs: it has the feature `pdf`.
pub const HAS_PDF: bool = cfg!(feature = "pdf");

/// Renders the folder and prints what was written.
///
/// # Errors
/// As [`render`], and a stdout that cannot be written.
pub fn execute(args: &ReportArgs) -> Result<Status> {
    let pdf = match (args.no_pdf, &args.template) {
        (true, _) => Pdf::Leave,
        (false, None) if !HAS_PDF => Pdf::Leave,
        (false, template) => Pdf::Typeset(template.as_deref()),
    };
    let files = render(&args.folder, pdf)?;
    let mut text: String = files
        .iter()
        .map(|file| format!("{}\n", file.display()))
        .collect();
    if pdf == Pdf::Leave && !args.no_pdf {
        text.push_str("no report.pdf: this build was made without the feature `pdf`\n");
    }
    if pdf == Pdf::Leave && args.folder.join(PDF).exists() {
        text.push_str("report.pdf was not rendered again: it is older than these files\n");
    }
    print(&text)
}

/// Renders a run folder: charts, HTML, Markdown, trace and, if asked for, the PDF. Returns the files written.
///
/// # Errors
/// Exit status 2 for a folder that is no run folder or a template that is wrong; 1 for a file that cannot be
/// written.
pub fn render(folder: &Path, pdf: Pdf) -> Result<Vec<PathBuf>> {
    // Read before anything is rendered, so that a misspelt path costs nothing.
    let template = match pdf {
        Pdf::Typeset(Some(path)) => Some(read_template(path)?),
        _ => None,
    };
    let (rendered, pdf) = syncmark_report::render_beside(folder, |document| match pdf {
        Pdf::Typeset(path) => Some(typeset(document, template.as_deref(), path)),
        Pdf::Leave => None,
    })
    .map_err(from_report)?;
    let mut files = rendered.files;
    for words in rendered.data.gaps.words() {
        eprintln!("warning: {words}");
    }
    if let Some(bytes) = pdf {
        let bytes = bytes?;
        RunFolder::open(folder)
            .and_then(|folder| folder.replace(PDF, &bytes))
            .map_err(|error| {
                CliError::failed(format!("cannot write the report: {error}")).help(
                    "the records are untouched: run `syncmark report` again when there is space",
                )
            })?;
        files.push(folder.join(PDF));
    }
    Ok(files)
}

fn read_template(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| {
        CliError::usage(format!(
            "the template {} cannot be read: {error}",
            path.display()
        ))
    })
}

fn from_report(error: ReportError) -> CliError {
    let message = format!("cannot render the report: {error}");
    match error {
        ReportError::Folder(_) | ReportError::Scenario { .. } => CliError::usage(message),
        _ => CliError::failed(message),
    }
}

#[cfg(feature = "pdf")]
fn typeset(document: &Document, template: Option<&str>, path: Option<&Path>) -> Result<Vec<u8>> {
    syncmark_pdf::render(document, template).map_err(|error| match path {
        Some(path) => CliError::usage(format!(
            "cannot typeset report.pdf with {}: {error}",
            path.display()
        ))
        .help("mend the template, or leave out --template for the built-in one"),
        None => CliError::failed(format!("cannot typeset report.pdf: {error}"))
            .help("report.html and report.md are complete; --no-pdf leaves the PDF out"),
    })
}

#[cfg(not(feature = "pdf"))]
fn typeset(_: &Document, _: Option<&str>, _: Option<&Path>) -> Result<Vec<u8>> {
    Err(
        CliError::usage("this build was made without the feature `pdf`")
            .help("leave out --template, or build with the default features"),
    )
}
