//! Hostile text, broken templates and broken charts.
//!
//! Contract: hostile text is shown letter by letter; what is broken is named with its place.
//! Reference: Typst's syntax, <https://typst.app/docs/reference/syntax/>.

use syncmark_report::document::{Alignment, Block, Document, Figure, Table};

use super::{document, pdf, sheets, squeeze, squeezed};
use crate::{DEFAULT_TEMPLATE, PdfError, render, typeset};

/// Each would do something if it were markup: code, math, emphasis, labels, comments, escapes, raw text, HTML.
const HOSTILE: [&str; 12] = [
    "#panic(\"run\")",
    "#let x = 1; #x",
    "$ x^2 $ costs $5",
    "*bold* _emphasis_ `raw`",
    "<script>alert(1)</script>",
    "<label> @reference",
    "// comment /* and */ more",
    "= heading",
    "- item + item / term: x",
    "back\\slash \\u{41} \"quotes\" 'single'",
    "[content] {code} ~ --- ...",
    "žluťoučký Ωμέγα Привет → ≤ ± µ × ∞",
];

fn hostile(text: &str) -> Document {
    let mut table = Table::new(text, &[(text, Alignment::Left), ("b", Alignment::Right)]);
    table.push(vec![text.into(), text.into()]);
    let mut hostile = document(vec![
        Block::heading(1, text),
        Block::heading(3, text),
        Block::paragraph(text),
        Block::warning(text),
        Block::List {
            ordered: true,
            items: vec![text.into()],
        },
        Block::Code {
            language: Some(text.into()),
            text: text.into(),
        },
        Block::Table(table),
        Block::Figure(Figure {
            title: text.into(),
            caption: text.into(),
            ..figure("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"10\" height=\"10\"/>")
        }),
    ]);
    hostile.title = text.into();
    hostile.subtitle = text.into();
    hostile.question = text.into();
    hostile.answer = vec![text.into()];
    hostile
}

fn figure(svg: &str) -> Figure {
    Figure {
        name: "chart".into(),
        title: "t".into(),
        caption: "c".into(),
        svg: svg.into(),
        width: 10,
        height: 10,
    }
}

#[test]
fn hostile_text_is_shown_letter_by_letter_wherever_it_stands() {
    for (index, text) in HOSTILE.iter().enumerate() {
        let document = hostile(text);
        let (sheets, warnings) = sheets(&document);
        assert_eq!(warnings, [], "{text}");
        // Title, subtitle, question, answer, nine places in the blocks, and the footer's subtitle.
        let found = squeezed(&sheets).matches(&squeeze(text)).count();
        assert!(found >= 14, "{text}: found {found} times");
        assert!(
            pdf(&format!("hostile-{index}"), &document)
                .bytes
                .starts_with(b"%PDF-")
        );
    }
}

#[test]
fn control_characters_and_line_breaks_do_no_harm() {
    for text in [
        "a\u{0}b\u{7}c\u{1b}[31m",
        "one\ntwo\r\nthree\ttab",
        "\u{202e}reversed\u{202c} \u{feff}",
        "",
        " ",
    ] {
        assert!(typeset(&hostile(text), None).is_ok(), "{text:?}");
    }
}

#[test]
fn characters_without_a_glyph_are_named() {
    let pdf = typeset(&document(vec![Block::paragraph("model 訓練")]), None).unwrap();
    let [warning] = pdf.warnings.as_slice() else {
        panic!("one warning: {:?}", pdf.warnings)
    };
    assert!(
        warning.message.contains("`訓` (U+8A13)") && warning.message.contains("`練`"),
        "{warning}"
    );
}

#[test]
fn a_broken_template_is_named_with_line_and_column() {
    let broken = [
        (
            "#set page(paper: \"a4\")\n\nText #unknown(1)\n",
            (3, 7),
            "unknown variable: unknown",
        ),
        ("Fine\n#let x = (1,\n", (2, 10), "unclosed delimiter"),
        (
            "#let r = json(\"report.json\")\n#r.nothing\n",
            (2, 4),
            "nothing",
        ),
        ("\n\n#read(\"/etc/passwd\")\n", (3, 7), "file not found"),
        (
            "#import \"@preview/cetz:0.3.0\": canvas\n",
            (1, 9),
            "cannot load packages",
        ),
        ("\n#datetime.today()\n", (2, 2), "date"),
    ];
    for (template, (line, column), words) in broken {
        let error = render(&document(vec![]), Some(template)).unwrap_err();
        let PdfError::Typeset { diagnostics } = &error else {
            panic!("{error:?}")
        };
        let position = diagnostics[0].position.as_ref().expect("a place");
        assert_eq!(
            (position.file.as_str(), position.line, position.column),
            ("template.typ", line, column),
            "{error}"
        );
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn another_template_can_read_the_report() {
    let template =
        "#let r = json(\"report.json\")\n#r.title: #r.blocks.len() #image(r.blocks.at(0).file)";
    let svg = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"10\" height=\"10\"/>";
    let pdf = typeset(&document(vec![Block::Figure(figure(svg))]), Some(template)).unwrap();
    assert_eq!(pdf.pages, 1);
    assert_eq!(pdf.warnings, []);
}

#[test]
fn warnings_about_a_template_reach_the_caller() {
    let template = format!("#set text(font: \"No Such Font\")\nHello\n{DEFAULT_TEMPLATE}");
    let pdf = typeset(&document(vec![]), Some(&template)).unwrap();
    let warning = pdf.warnings.first().expect("a warning").to_string();
    assert!(
        warning.contains("template.typ:1:") && warning.contains("no such font"),
        "{warning}"
    );
}

#[test]
fn a_chart_that_is_no_svg_is_an_error_that_names_it() {
    for svg in [
        "",
        "<svg",
        "plain text",
        "<svg xmlns=\"http://www.w3.org/2000/svg\"><rect></svg>",
    ] {
        let error = render(&document(vec![Block::Figure(figure(svg))]), None).unwrap_err();
        assert!(
            error.to_string().contains("charts/chart.svg:1:"),
            "{svg}: {error}"
        );
    }
}
