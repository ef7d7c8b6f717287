//! The report as one HTML file that needs nothing else: styles and charts stand inside it.
//!
//! Contract: every string is escaped; no script, no outside link, readable offline and in print.
//! Reference: <https://html.spec.whatwg.org/multipage/syntax.html>.
use std::fmt::Write as _;

use crate::document::{Alignment, Block, CalloutKind, Document, Figure, Table};

const STYLE: &str = include_str!("report.css");

/// Escapes text for element content and quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters have no place in HTML; a tab and a line break do.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Renders the document.
pub fn html(document: &Document) -> String {
    let mut out = String::new();
    let title = escape(&document.title);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n<p class=\"subtitle\">{}</p>\n</header>\n",
        escape(&document.subtitle)
    );
    if !document.question.is_empty() {
        let _ = writeln!(
            out,
            "<p class=\"question\">{}</p>",
            escape(&document.question)
        );
    }
    out.push_str("<section class=\"answer\">\n<h2>Answer</h2>\n");
    for sentence in &document.answer {
        let _ = writeln!(out, "<p>{}</p>", escape(sentence));
    }
    out.push_str("</section>\n");
    let mut figures = 0;
    for block in &document.blocks {
        push_block(&mut out, block, &mut figures);
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn push_block(out: &mut String, block: &Block, figures: &mut usize) {
    let _ = match block {
        Block::Heading { level, text } => {
            let level = level + 1;
            writeln!(out, "<h{level}>{}</h{level}>", escape(text))
        }
        Block::Paragraph(text) => writeln!(out, "<p>{}</p>", escape(text)),
        Block::Table(table) => {
            push_table(out, table);
            Ok(())
        }
        Block::Figure(figure) => {
            *figures += 1;
            push_figure(out, figure, *figures);
            Ok(())
        }
        Block::List { ordered, items } => {
            let tag = if *ordered { "ol" } else { "ul" };
            let items: String = items
                .iter()
                .map(|item| format!("<li>{}</li>\n", escape(item)))
                .collect();
            writeln!(out, "<{tag}>\n{items}</{tag}>")
        }
        Block::Code { text, .. } => writeln!(out, "<pre><code>{}</code></pre>", escape(text)),
        Block::Callout { kind, text } => {
            let (class, word) = match kind {
                CalloutKind::Note => ("note", "Note"),
                CalloutKind::Warning => ("warning", "Warning"),
            };
            writeln!(
                out,
                "<p class=\"{class}\"><strong>{word}.</strong> {}</p>",
                escape(text)
            )
        }
    };
}

fn push_figure(out: &mut String, figure: &Figure, number: usize) {
    let _ = write!(
        out,
        "<figure id=\"{}\">\n{}<figcaption><strong>Figure {number}. {}.</strong> {}</figcaption>\n</figure>\n",
        escape(&figure.name),
        figure.svg,
        escape(&figure.title),
        escape(&figure.caption)
    );
}

fn push_table(out: &mut String, table: &Table) {
    out.push_str("<div class=\"scroll\"><table>\n");
    if !table.caption.is_empty() {
        let _ = writeln!(out, "<caption>{}</caption>", escape(&table.caption));
    }
    out.push_str("<thead><tr>");
    for (header, alignment) in table.headers.iter().zip(&table.alignment) {
        let _ = write!(out, "<th{}>{}</th>", class(*alignment), escape(header));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (cell, alignment) in row.iter().zip(&table.alignment) {
            let _ = write!(out, "<td{}>{}</td>", class(*alignment), escape(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
}

fn class(alignment: Alignment) -> &'static str {
    match alignment {
        Alignment::Left => "",
        Alignment::Right => " class=\"right\"",
        Alignment::Center => " class=\"center\"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_through_unescaped() {
        assert_eq!(
            escape("<a href='x'>\"&\u{7}"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;\u{fffd}"
        );
    }
}
