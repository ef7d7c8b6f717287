//! The report as GitHub-flavoured Markdown, with links to the charts beside it.
//!
//! Contract: text from the records cannot become markup: every character that could is escaped, and table cells stay
//! on one line. Reference: <https://github.github.com/gfm/>.
use std::fmt::Write as _;

use crate::document::{Alignment, Block, CalloutKind, Document, Table};

/// Escapes what Markdown would read as markup.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let after = rest.peek().copied().unwrap_or(' ');
        // An underscore inside a word marks nothing in GitHub's dialect, and escaping it hurts the reader.
        let inside_word = before.is_alphanumeric() && after.is_alphanumeric();
        match c {
            '\n' | '\r' => out.push(' '),
            '_' if inside_word => out.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '~' | '$' | '&' => {
                out.push('\\');
                out.push(c);
            }
            '#' | '+' | '-' if out.is_empty() => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
        before = c;
    }
    // `1. ` at the start of a line would begin a list, and `1.5` would not.
    let digits = out.chars().take_while(char::is_ascii_digit).count();
    let mut marker = out[digits..].chars();
    if digits > 0
        && matches!(marker.next(), Some('.' | ')'))
        && matches!(marker.next(), None | Some(' '))
    {
        out.insert(digits, '\\');
    }
    out
}

/// Renders the document; charts are linked as `charts/<name>.svg`.
pub fn markdown(document: &Document) -> String {
    let mut out = format!(
        "# {}\n\n{}\n\n",
        escape(&document.title),
        escape(&document.subtitle)
    );
    if !document.question.is_empty() {
        let _ = write!(out, "> {}\n\n", escape(&document.question));
    }
    out.push_str("## Answer\n\n");
    for sentence in &document.answer {
        let _ = write!(out, "{}\n\n", escape(sentence));
    }
    let mut figures = 0;
    for block in &document.blocks {
        push_block(&mut out, block, &mut figures);
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn push_block(out: &mut String, block: &Block, figures: &mut usize) {
    let _ = match block {
        Block::Heading { level, text } => writeln!(
            out,
            "{} {}",
            "#".repeat(usize::from(*level) + 1),
            escape(text)
        ),
        Block::Paragraph(text) => writeln!(out, "{}", escape(text)),
        Block::Table(table) => {
            push_table(out, table);
            Ok(())
        }
        Block::Figure(figure) => {
            *figures += 1;
            let (name, title, caption) =
                (&figure.name, escape(&figure.title), escape(&figure.caption));
            writeln!(
                out,
                "![{title}](charts/{name}.svg)\n\n**Figure {figures}. {title}.** {caption}"
            )
        }
        Block::List { ordered, items } => {
            for (index, item) in items.iter().enumerate() {
                let mark = if *ordered {
                    format!("{}.", index + 1)
                } else {
                    "-".into()
                };
                let _ = writeln!(out, "{mark} {}", escape(item));
            }
            Ok(())
        }
        Block::Code { language, text } => {
            let fence = fence(text);
            writeln!(
                out,
                "{fence}{}\n{text}\n{fence}",
                language.as_deref().unwrap_or("")
            )
        }
        Block::Callout { kind, text } => {
            let word = match kind {
                CalloutKind::Note => "NOTE",
                CalloutKind::Warning => "WARNING",
            };
            writeln!(out, "> [!{word}]\n> {}", escape(text))
        }
    };
}

/// A fence longer than any run of backticks in the text.
fn fence(text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat((longest + 1).max(3))
}

fn push_table(out: &mut String, table: &Table) {
    if !table.caption.is_empty() {
        let _ = write!(out, "{}\n\n", escape(&table.caption));
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    out.push_str(&line(
        table.headers.iter().map(|header| escape(header)).collect(),
    ));
    let rule = |alignment: &Alignment| match alignment {
        Alignment::Left => "---",
        Alignment::Right => "---:",
        Alignment::Center => ":---:",
    };
    out.push_str(&line(
        table
            .alignment
            .iter()
            .map(|alignment| rule(alignment).to_string())
            .collect(),
    ));
    for row in &table.rows {
        out.push_str(&line(row.iter().map(|text| escape(text)).collect()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_records_cannot_become_markup() {
        assert_eq!(
            escape("a*b [x](y) <img> | 1_000 _x_"),
            "a\\*b \\[x\\](y) \\<img\\> \\| 1_000 \\_x\\_"
        );
        assert_eq!(escape("# no heading"), "\\# no heading");
        assert_eq!(escape("1. no list"), "1\\. no list");
        assert_eq!(escape("20.02 [19.22]"), "20.02 \\[19.22\\]");
        assert_eq!(escape("two\nlines"), "two lines");
    }

    #[test]
    fn a_fence_outgrows_the_backticks_inside() {
        assert_eq!(fence("a ```` b"), "`````");
        assert_eq!(fence("plain"), "```");
    }
}
