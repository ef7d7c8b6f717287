//! The charts of a report, as SVG text, and their PNG twins.
//!
//! Contract: a chart function takes records and gives a [`Figure`](crate::document::Figure) or `None` where there is
//! nothing to show; it reads no files. The same records give the same bytes. Colours are Okabe and Ito's and never
//! the only difference: markers, hatches and positions differ too.
//! Reference: Okabe and Ito, "Color Universal Design", <https://jfly.uni-koeln.de/color/>.
pub mod axis;
pub mod bars;
pub mod canvas;
pub mod collectives;
pub mod compression;
pub mod curves;
pub mod intervals;
pub mod layers;
pub mod learning;
pub mod legend;
pub mod log_scale;
pub mod memory;
pub mod noise;
pub mod norm_cost;
pub mod palette;
mod panel;
pub mod raster;
pub mod scaling;
pub mod series;
pub mod sweeps;
pub mod time;
pub mod timeline;
pub mod traffic;
pub mod weak_strong;

/// Width of every chart in pixels at 100 %.
pub const WIDTH: u32 = 780;
