//! SVG to PNG at twice the size, with the embedded font alone.
//!
//! Contract: no system font is read, so the PNG is the same on every machine.
//! Reference: <https://docs.rs/resvg/0.47>.
use std::sync::{Arc, OnceLock};

use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use crate::{SANS_FONT, SANS_FONT_BOLD};

/// Pixels of the PNG a pixel of the SVG.
const ZOOM: f32 = 2.0;

/// Why a chart has no PNG.
#[derive(Debug, thiserror::Error)]
#[error("draw the chart as pixels: {0}")]
pub struct RasterError(String);

/// The fonts of the charts, loaded once.
fn fonts() -> Arc<Database> {
    static FONTS: OnceLock<Arc<Database>> = OnceLock::new();
    let load = || {
        let mut fonts = Database::new();
        fonts.load_font_data(SANS_FONT.to_vec());
        fonts.load_font_data(SANS_FONT_BOLD.to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        Arc::new(fonts)
    };
    FONTS.get_or_init(load).clone()
}

/// Renders an SVG as PNG.
///
/// # Errors
/// [`RasterError`] when the SVG does not parse or is too large for memory.
pub fn png(svg: &str) -> Result<Vec<u8>, RasterError> {
    let options = Options {
        fontdb: fonts(),
        font_family: "DejaVu Sans".into(),
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options).map_err(|error| RasterError(error.to_string()))?;
    let size = tree.size();
    let (width, height) = (
        (size.width() * ZOOM).ceil() as u32,
        (size.height() * ZOOM).ceil() as u32,
    );
    let mut pixels = Pixmap::new(width, height)
        .ok_or_else(|| RasterError(format!("{width} × {height} pixels do not fit")))?;
    resvg::render(
        &tree,
        Transform::from_scale(ZOOM, ZOOM),
        &mut pixels.as_mut(),
    );
    pixels
        .encode_png()
        .map_err(|error| RasterError(error.to_string()))
}
