//! What can go wrong between a document and its PDF, with the place in the template.
//!
//! Contract: every message is a lower-case fragment that fits after "failed to write the report:", and a
//! diagnostic that points into a file names the file, the line and the column, counted from one.
//! Reference: Typst's own diagnostics, <https://docs.rs/typst-library/0.15/typst_library/diag/>.

use std::fmt::{self, Display, Formatter};

use thiserror::Error;

/// Why no PDF came out.
#[derive(Debug, Error)]
pub enum PdfError {
    /// The template (or a chart that it places) could not be typeset.
    #[error("the template could not be typeset: {}", summary(diagnostics))]
    Typeset {
        /// What Typst complains about, in its order; never empty.
        diagnostics: Vec<Diagnostic>,
    },
    /// The pages were laid out, but could not be written as a PDF.
    #[error("the pages could not be written as a pdf: {}", summary(diagnostics))]
    Export {
        /// What Typst complains about, in its order; never empty.
        diagnostics: Vec<Diagnostic>,
    },
    /// A figure's name cannot be the stem of a file.
    #[error(
        "the figure `{name}` cannot be stored as a file: use lower-case letters, digits and hyphens in its name"
    )]
    FigureName {
        /// The name as the document gives it.
        name: String,
    },
    /// Two figures would be stored under one name.
    #[error("two figures are named `{name}`: give each figure of a document its own name")]
    DuplicateFigure {
        /// The name that occurs twice.
        name: String,
    },
}

impl PdfError {
    /// The diagnostics behind the error; empty where Typst was never asked.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        match self {
            Self::Typeset { diagnostics } | Self::Export { diagnostics } => diagnostics,
            Self::FigureName { .. } | Self::DuplicateFigure { .. } => &[],
        }
    }
}

/// One complaint of Typst's, or one of our own about the finished pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where it points; `None` where it is about the whole document.
    pub position: Option<Position>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hints: Vec<String>,
}

/// A place in the template or in one of the files that it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// `template.typ`, `report.json` or `charts/<name>.svg`.
    pub file: String,
    /// Line, from one.
    pub line: usize,
    /// Column in characters, from one.
    pub column: usize,
}

impl Display for Position {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Display for Diagnostic {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(position) = &self.position {
            write!(f, "{position}: ")?;
        }
        f.write_str(&self.message)?;
        for hint in &self.hints {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

/// The first diagnostic in full and the number of the others, so that a one-line error stays one line.
fn summary(diagnostics: &[Diagnostic]) -> String {
    match diagnostics {
        [] => "no reason was given".to_string(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize) -> Diagnostic {
        Diagnostic {
            position: Some(Position {
                file: "template.typ".into(),
                line,
                column: 3,
            }),
            message: "unknown variable: foo".into(),
            hints: vec!["define it".into()],
        }
    }

    #[test]
    fn a_diagnostic_reads_as_file_line_column_message_hint() {
        assert_eq!(
            at(7).to_string(),
            "template.typ:7:3: unknown variable: foo; hint: define it"
        );
    }

    #[test]
    fn an_error_shows_its_first_diagnostic_and_counts_the_rest() {
        let error = PdfError::Typeset {
            diagnostics: vec![at(7), at(9), at(11)],
        };
        let message = error.to_string();
        assert!(message.contains("template.typ:7:3"), "{message}");
        assert!(message.ends_with("(and 2 more)"), "{message}");
    }
}
