//! What the pages of the default template say and how they are laid out.
//!
//! Contract: see [`super`]. Reference: ISO 216 for the size of A4.

use std::time::Instant;

use syncmark_report::document::{Alignment, Block, Table};

use super::sample::{chart, full, trials};
use super::{document, pdf, sheets, squeeze, squeezed};

/// A4 in points; Typst keeps 210 mm and 297 mm exactly, so half a point is ample.
const A4: [f64; 2] = [595.28, 841.89];

#[test]
fn every_block_is_on_the_pages_and_nothing_is_warned_about() {
    let document = full();
    let (sheets, warnings) = sheets(&document);
    assert_eq!(warnings, []);
    let text = squeezed(&sheets);
    let mut expected = vec![document.title, document.subtitle, document.question];
    expected.extend(document.answer);
    for block in document.blocks {
        match block {
            Block::Heading { text, .. } | Block::Paragraph(text) | Block::Code { text, .. } => {
                expected.push(text)
            }
            Block::Callout { text, .. } => expected.push(text),
            Block::List { items, .. } => expected.extend(items),
            Block::Figure(figure) => expected.extend([figure.title, figure.caption]),
            Block::Table(table) => {
                expected.push(table.caption);
                expected.extend(
                    table
                        .headers
                        .into_iter()
                        .chain(table.rows.into_iter().flatten()),
                );
            }
        }
    }
    for wanted in expected {
        assert!(text.contains(&squeeze(&wanted)), "missing: {wanted}");
    }
}

#[test]
fn a_report_is_a_pdf_of_several_pages_with_its_title_and_bookmarks() {
    let started = Instant::now();
    let first = pdf("full", &full());
    let elapsed = started.elapsed();
    println!(
        "{} pages, {} bytes, typeset in {elapsed:?}",
        first.pages,
        first.bytes.len()
    );
    assert!(first.bytes.starts_with(b"%PDF-"));
    assert!((5..=12).contains(&first.pages), "{} pages", first.pages);
    let holds = |wanted: &[u8]| {
        first
            .bytes
            .windows(wanted.len())
            .any(|window| window == wanted)
    };
    assert!(holds(b"/Title"), "the metadata has a title");
    assert!(holds(b"/Outlines"), "the headings are bookmarks");
    assert!(!holds(b"/CreationDate"), "the pdf carries no date");
}

#[test]
fn the_same_document_gives_the_same_bytes() {
    let [first, second] = [pdf("full", &full()), pdf("full", &full())];
    assert!(
        first.bytes == second.bytes,
        "{} and {} bytes",
        first.bytes.len(),
        second.bytes.len()
    );
}

#[test]
fn pages_after_the_first_carry_the_scenario_and_every_page_its_number() {
    let (sheets, _) = sheets(&full());
    for (index, sheet) in sheets.iter().enumerate() {
        let text = squeeze(&sheet.text);
        assert!(
            text.contains(&format!("Page{}of{}", index + 1, sheets.len())),
            "{}",
            sheet.text
        );
        assert!(text.contains("dp-vs-ddp"), "{}", sheet.text);
    }
}

#[test]
fn a_long_table_repeats_its_header_on_each_page() {
    let (sheets, _) = sheets(&document(vec![Block::Table(trials(150, 0))]));
    assert!(sheets.len() >= 3, "{} pages", sheets.len());
    for sheet in &sheets {
        assert!(
            squeeze(&sheet.text).contains("throughput(samples/s)"),
            "{}",
            sheet.text
        );
    }
}

#[test]
fn a_wide_table_turns_its_page_and_takes_its_heading_along() {
    let blocks = vec![
        Block::paragraph("Before."),
        Block::heading(2, "Bytes by phase"),
        Block::Table(trials(5, 6)),
        Block::paragraph("After."),
    ];
    let (sheets, _) = sheets(&document(blocks));
    let turned: Vec<_> = sheets
        .iter()
        .filter(|sheet| sheet.width > sheet.height)
        .collect();
    assert_eq!(turned.len(), 1, "one page is turned");
    assert!((turned[0].width - A4[1]).abs() < 0.5 && (turned[0].height - A4[0]).abs() < 0.5);
    assert!(
        turned[0].text.contains("Bytes by phase"),
        "{}",
        turned[0].text
    );
    assert!(squeezed(&sheets).contains("After."));
}

#[test]
fn intervals_wrap_so_that_a_table_of_results_stays_on_an_upright_page() {
    let mut columns = vec![("trial", Alignment::Left), ("outcome", Alignment::Left)];
    columns.extend([("efficiency vs independent", Alignment::Right); 6]);
    let mut table = Table::new("Results.", &columns);
    let mut row = vec!["ddp-processes ×2".to_string(), "passed".into()];
    row.extend(std::iter::repeat_n(
        "100.0 % [100.0 %, 100.0 %]".to_string(),
        6,
    ));
    table.push(row);
    let document = document(vec![Block::Table(table)]);
    pdf("intervals", &document);
    let (sheets, _) = sheets(&document);
    assert_eq!(sheets.len(), 1);
    assert!(sheets[0].width < sheets[0].height);
    assert_eq!(
        squeezed(&sheets).matches("100.0%[100.0%,100.0%]").count(),
        6
    );
}

#[test]
fn what_fits_can_be_copied_without_invisible_characters() {
    let (sheets, _) = sheets(&full());
    assert!(sheets.iter().all(|sheet| !sheet.text.contains('\u{200b}')));
}

#[test]
fn tables_of_any_width_stay_inside_the_page() {
    for (rows, extra) in [(3, 0), (3, 3), (3, 8), (3, 20), (2, 60)] {
        let name = format!("columns-{}", extra + 7);
        let document = document(vec![Block::Table(trials(rows, extra))]);
        assert!(pdf(&name, &document).pages >= 1);
        let (sheets, warnings) = sheets(&document);
        assert_eq!(warnings, [], "{name}");
        for sheet in sheets {
            assert!(
                sheet.right <= sheet.width - 30.0,
                "{name}: {} of {}",
                sheet.right,
                sheet.width
            );
        }
    }
}

#[test]
fn a_word_that_is_wider_than_the_page_is_broken() {
    let mut table = Table::new("", &[("path", Alignment::Left), ("n", Alignment::Right)]);
    table.push(vec!["x".repeat(900), "1".into()]);
    let code = Block::Code {
        language: None,
        text: format!("/very/{}", "long/path/".repeat(60)),
    };
    for (block, name) in [(Block::Table(table), "long-word"), (code, "long-line")] {
        let document = document(vec![block]);
        pdf(name, &document);
        for sheet in sheets(&document).0 {
            assert!(
                sheet.right <= sheet.width - 30.0,
                "{name}: {} of {}",
                sheet.right,
                sheet.width
            );
        }
    }
}

#[test]
fn a_chart_and_its_caption_are_on_one_page() {
    // Paragraphs push the chart down line by line, so that some of these leave too little room for both.
    for lines in (0..40).step_by(5) {
        let mut blocks: Vec<_> = (0..lines)
            .map(|line| Block::paragraph(format!("Line {line}.")))
            .collect();
        blocks.push(chart("only", "Throughput against devices"));
        let (sheets, _) = sheets(&document(blocks));
        let with_caption: Vec<_> = sheets
            .iter()
            .filter(|s| s.text.contains("Throughput against"))
            .collect();
        assert_eq!(with_caption.len(), 1);
        assert!(
            squeeze(&with_caption[0].text).contains("bythishardware."),
            "the caption is whole"
        );
    }
}

#[test]
fn a_tall_chart_is_shrunk_to_the_page() {
    let mut block = chart("tall", "A tall chart");
    if let Block::Figure(figure) = &mut block {
        (figure.width, figure.height) = (400, 4000);
        figure.svg = figure.svg.replace(
            "width=\"760\" height=\"420\" viewBox",
            "width=\"400\" height=\"4000\" viewBox",
        );
    }
    assert_eq!(pdf("tall-chart", &document(vec![block])).pages, 2);
}

#[test]
fn a_document_without_question_or_blocks_has_one_page() {
    let mut bare = document(vec![]);
    bare.question.clear();
    let (sheets, warnings) = sheets(&bare);
    assert_eq!((sheets.len(), warnings.len()), (1, 0));
    assert!(!sheets[0].text.contains("Question"));
}
