//! From the records of a run folder to a report: statistics, answer, charts, document, HTML and Markdown.
//!
//! Contract: everything here is computed from the run folder alone, so a report can be rebuilt on a
//! machine without the hardware. The crate never imports the engine or the runner.
pub mod analyse;
pub mod answer;
pub mod ceilings;
pub mod chart;
pub mod compose;
pub mod dispatch;
pub mod document;
pub mod error;
mod factor;
pub mod format;
pub mod gaps;
pub mod gpus;
pub mod html;
pub mod learning;
pub mod markdown;
pub mod nccl;
pub mod nodes;
pub mod norm_cost;
pub mod phase_totals;
pub mod render;
pub mod run_data;
pub mod scenario;
pub mod stats;
pub mod trace;

pub use analyse::summarise;
pub use document::Document;
pub use error::ReportError;
pub use render::{Rendered, render, render_beside};

/// DejaVu Sans, the font of every chart; its licence stands in `fonts/LICENSE`.
pub const SANS_FONT: &[u8] = include_bytes!("../fonts/DejaVuSans.ttf");
/// DejaVu Sans Bold.
pub const SANS_FONT_BOLD: &[u8] = include_bytes!("../fonts/DejaVuSans-Bold.ttf");
