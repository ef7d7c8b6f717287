//! What Typst may see while it typesets a report: the template, the report's files and the embedded fonts.
//!
//! Contract: nothing comes from outside the process: no file, no system font, no package, no network and no
//! clock, so the same document and template give the same pages everywhere. Paths are looked up in memory.
//! Reference: Typst's `World` trait, <https://docs.rs/typst-library/0.15/typst_library/trait.World.html>.

use std::collections::HashMap;
use std::sync::LazyLock;

use typst::diag::{FileError, FileResult, PackageError, Severity, SourceDiagnostic};
use typst::foundations::{Bytes, Datetime, Duration};
use typst::syntax::{DiagSpan, FileId, Lines, RootedPath, Source, VirtualPath, VirtualRoot};
use typst::text::{Font, FontBook};
use typst::utils::LazyHash;
use typst::{Library, LibraryExt, World, WorldExt};

use crate::data::Files;
use crate::error::{Diagnostic, Position};

/// The name under which diagnostics speak of the template.
const TEMPLATE_FILE: &str = "template.typ";

/// Inter for words and numbers, DejaVu Sans for charts and for what Inter lacks, DejaVu Sans Mono for code.
static FONTS: LazyLock<Fonts> = LazyLock::new(|| {
    let files: [&[u8]; 5] = [
        include_bytes!("../fonts/Inter-Regular.otf"),
        include_bytes!("../fonts/Inter-SemiBold.otf"),
        include_bytes!("../fonts/DejaVuSansMono.ttf"),
        syncmark_report::SANS_FONT,
        syncmark_report::SANS_FONT_BOLD,
    ];
    let fonts: Vec<Font> = files
        .into_iter()
        .flat_map(|data| Font::iter(Bytes::new(data)))
        .collect();
    Fonts {
        book: LazyHash::new(FontBook::from_fonts(&fonts)),
        fonts,
    }
});

/// Typst's standard library; building it takes milliseconds, so all reports of a process share it.
static LIBRARY: LazyLock<LazyHash<Library>> = LazyLock::new(|| LazyHash::new(Library::default()));

struct Fonts {
    book: LazyHash<FontBook>,
    fonts: Vec<Font>,
}

/// One report's template and files.
pub(crate) struct ReportWorld {
    template: Source,
    files: HashMap<FileId, Bytes>,
}

impl ReportWorld {
    /// Puts a template and the files of [`crate::data::files`] side by side.
    pub(crate) fn new(template: &str, files: Files) -> Self {
        let files = files
            .into_iter()
            .map(|(path, data)| (id(&path), Bytes::new(data)))
            .collect();
        Self {
            template: Source::new(id(TEMPLATE_FILE), template.to_string()),
            files,
        }
    }

    /// Turns Typst's errors (and only those: warnings among them are dropped) into ours.
    pub(crate) fn errors(&self, found: &[SourceDiagnostic]) -> Vec<Diagnostic> {
        let is_error = |d: &&SourceDiagnostic| d.severity == Severity::Error;
        found
            .iter()
            .filter(is_error)
            .map(|d| self.diagnostic(d))
            .collect()
    }

    /// Turns one diagnostic into ours.
    pub(crate) fn diagnostic(&self, found: &SourceDiagnostic) -> Diagnostic {
        // A complaint without a place of its own is put where the call that led to it stands.
        let trace = found.trace.iter().map(|point| DiagSpan::from(point.span));
        let position = std::iter::once(found.span)
            .chain(trace)
            .find_map(|span| self.position(span));
        Diagnostic {
            position,
            message: found.message.to_string(),
            hints: found.hints.iter().map(|hint| hint.v.to_string()).collect(),
        }
    }

    fn position(&self, span: DiagSpan) -> Option<Position> {
        let file = span.id()?;
        let range = self.range(span)?;
        let text = if file == self.template.id() {
            self.template.text().to_string()
        } else {
            self.files.get(&file)?.as_str().ok()?.to_string()
        };
        let (line, column) = Lines::new(text).byte_to_line_column(range.start)?;
        let name = file.get().vpath().get_without_slash().to_string();
        Some(Position {
            file: name,
            line: line + 1,
            column: column + 1,
        })
    }
}

impl World for ReportWorld {
    fn library(&self) -> &LazyHash<Library> {
        &LIBRARY
    }

    fn book(&self) -> &LazyHash<FontBook> {
        &FONTS.book
    }

    fn main(&self) -> FileId {
        self.template.id()
    }

    fn source(&self, id: FileId) -> FileResult<Source> {
        if id == self.template.id() {
            return Ok(self.template.clone());
        }
        // Asking for the bytes first keeps "no such file" apart from "no Typst file".
        self.file(id).and(Err(FileError::NotSource))
    }

    fn file(&self, id: FileId) -> FileResult<Bytes> {
        if id == self.template.id() {
            return Ok(Bytes::from_string(self.template.text().to_string()));
        }
        if let VirtualRoot::Package(_) = id.get().root() {
            let reason = "a report's template cannot load packages; put the code into the template";
            return Err(FileError::Package(PackageError::Other(Some(reason.into()))));
        }
        let path = id.get().vpath().get_without_slash();
        self.files
            .get(&id)
            .cloned()
            .ok_or_else(|| FileError::NotFound(path.into()))
    }

    fn font(&self, index: usize) -> Option<Font> {
        FONTS.fonts.get(index).cloned()
    }

    fn today(&self, _offset: Option<Duration>) -> Option<Datetime> {
        None
    }
}

/// The id of a path in the template's folder.
///
/// Typst keeps every id that was ever made; paths here are few and the same from report to report.
fn id(path: &str) -> FileId {
    let path = VirtualPath::new(path).expect("paths are built from checked names");
    RootedPath::new(VirtualRoot::Project, path).intern()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_font_is_readable_and_known_by_its_family() {
        assert_eq!(FONTS.fonts.len(), 5);
        for family in ["inter", "dejavu sans", "dejavu sans mono"] {
            assert!(FONTS.book.contains_family(family), "{family}");
        }
    }

    #[test]
    fn only_the_files_of_the_report_exist() {
        let world = ReportWorld::new("", Files::from([("report.json".into(), b"{}".to_vec())]));
        assert_eq!(world.file(id("report.json")).unwrap().as_slice(), b"{}");
        assert!(matches!(
            world.file(id("secret.txt")),
            Err(FileError::NotFound(_))
        ));
        assert!(matches!(
            world.source(id("report.json")),
            Err(FileError::NotSource)
        ));
        assert!(world.today(None).is_none());
    }
}
