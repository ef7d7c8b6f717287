//! A made-up document with every kind of block, as large as a real report.
//!
//! Contract: its numbers are invented and mean nothing. Reference: none.

use syncmark_report::document::{Alignment, Block, Document, Figure, Table};

/// A chart in the manner of the report's: text in DejaVu Sans, bars, an axis.
pub(super) fn chart(name: &str, title: &str) -> Block {
    let bars: String = (0..6)
        .map(|bar| {
            let (x, height) = (90 + bar * 105, 60 + bar * 40);
            format!(
                "<rect x=\"{x}\" y=\"{}\" width=\"60\" height=\"{height}\" fill=\"#0072B2\"/>\
                 <text x=\"{}\" y=\"375\" font-family=\"DejaVu Sans\" font-size=\"13\" \
                 text-anchor=\"middle\">{} devices</text>",
                350 - height,
                x + 30,
                bar + 1,
            )
        })
        .collect();
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"420\" viewBox=\"0 0 760 420\">\
         <rect width=\"760\" height=\"420\" fill=\"white\"/>{bars}\
         <line x1=\"70\" y1=\"350\" x2=\"740\" y2=\"350\" stroke=\"black\"/>\
         <text x=\"380\" y=\"408\" font-family=\"DejaVu Sans\" font-size=\"14\" text-anchor=\"middle\">\
         devices</text></svg>"
    );
    Block::Figure(Figure {
        name: name.into(),
        title: title.into(),
        caption: "Higher is better. Bars are medians over repeats; on CPU devices DP's copies are required by \
                  its semantics and not by this hardware."
            .into(),
        svg,
        width: 760,
        height: 420,
    })
}

/// A table of `rows` trials; `extra` adds that many columns of numbers.
pub(super) fn trials(rows: usize, extra: usize) -> Table {
    let mut columns = vec![
        ("trial", Alignment::Left),
        ("strategy", Alignment::Left),
        ("devices", Alignment::Right),
        ("outcome", Alignment::Left),
        ("step (ms)", Alignment::Right),
        ("interval (ms)", Alignment::Right),
        ("throughput (samples/s)", Alignment::Right),
    ];
    columns.extend((0..extra).map(|_| ("payload predicted (bytes)", Alignment::Right)));
    let mut table = Table::new(
        "Every trial in the order of the plan, medians over repeats.",
        &columns,
    );
    for row in 0..rows {
        let strategy = ["single", "independent", "dp", "ddp-processes"][row % 4];
        let step = 20.0 + row as f64 * 0.37;
        let mut cells = vec![
            format!("{:08x}", 0x9e37_79b9_u32.wrapping_mul(row as u32 + 1)),
            strategy.into(),
            (row % 4 + 1).to_string(),
            if row % 7 == 3 { "unsteady" } else { "passed" }.into(),
            format!("{step:.2}"),
            format!("{:.2} – {:.2}", step - 0.4, step + 0.5),
            if row % 9 == 5 {
                String::new()
            } else {
                format!("{:.0}", 64_000.0 / step)
            },
        ];
        cells.extend((0..extra).map(|column| (1_048_576 * (column + row + 1)).to_string()));
        table.push(cells);
    }
    table
}

fn environment() -> Table {
    let mut table = Table::new(
        "The machine and the build, as recorded in environment.json.",
        &[("what", Alignment::Left), ("value", Alignment::Left)],
    );
    for (what, value) in [
        (
            "CPU",
            "AMD EPYC 9354P 32-Core Processor, 2 sockets, 64 cores, 128 threads",
        ),
        ("governor", "performance on all cores"),
        ("memory", "503 GiB"),
        ("kernel", "Linux 6.1.0-28-amd64"),
        ("commit", "893ae5a0c3e1b9d24f6a7788990011aabbccddee"),
    ] {
        table.push(vec![what.into(), value.into()]);
    }
    table
}

fn definitions() -> Table {
    let mut table = Table::new(
        "",
        &[
            ("figure", Alignment::Left),
            ("how it is defined", Alignment::Left),
        ],
    );
    table.push(vec![
        "step (ms)".into(),
        "From the loop asking for a batch in host memory until every rank's optimizer update is complete on its \
         device: data wait, host-to-device copy, forward, loss, backward, communication, optimizer, zeroing."
            .into(),
    ]);
    table.push(vec![
        "exposed communication".into(),
        "Time of the strategy minus time of the same step with synchronization off, measured as a paired arm."
            .into(),
    ]);
    table
}

/// Every kind of block, over several pages.
pub(super) fn full() -> Document {
    Document {
        title: "dp-vs-ddp".into(),
        subtitle: "node7.example.org · 2026-03-01 04:05 UTC · syncmark 0.1.0".into(),
        question: "Is DP ever faster than DDP here, and what does each move over the links?".into(),
        answer: vec![
            "No: on 2 devices DDP trains 1.31 times as many samples per second as DP (95 % interval 1.27 to 1.35).".into(),
            "DP moves 4.2 MiB per step through device 0, DDP 1.1 MiB over each rank's links.".into(),
        ],
        blocks: vec![
            Block::warning(
                "Only 3 repeats: the range is printed, no interval and no verdict. The governor is `powersave` on 2 \
                 of 2 cores, so steps may speed up and slow down by themselves.",
            ),
            Block::heading(1, "Results"),
            Block::paragraph(
                "Throughput counts samples over the wall time of the whole window, from a barrier until the last \
                 rank finishes, without synchronizing the host in each step.",
            ),
            Block::Table(trials(9, 0)),
            chart("throughput", "Throughput against devices"),
            Block::heading(1, "All trials"),
            Block::heading(2, "Steps"),
            Block::Table(trials(70, 0)),
            Block::heading(2, "Bytes by phase"),
            Block::Table(trials(12, 5)),
            chart("phases", "Time by phase"),
            Block::note("Timelines come from a separate tracing pass, which slows a step by 1.8 %."),
            Block::heading(1, "What to know"),
            Block::List {
                ordered: false,
                items: vec![
                    "CPU devices model separate memories.".into(),
                    "Ranks on one host talk through shared memory, so there is no independent counter of bytes.".into(),
                ],
            },
            Block::List { ordered: true, items: vec!["Warm up.".into(), "Measure.".into()] },
            Block::heading(2, "The command"),
            Block::Code {
                language: Some("sh".into()),
                text: "cargo run --release -- run scenarios/dp-vs-ddp.toml \\\n    --set measure.repeats=10 --out reports".into(),
            },
            Block::heading(1, "Environment"),
            Block::Table(environment()),
            Block::heading(1, "How each figure is defined"),
            Block::Table(definitions()),
        ],
    }
}
