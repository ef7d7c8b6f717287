//! SVG to PNG at twice the size, with the embedded font alone.
//!
//! Contract: no system font is read, so the PNG is the same on every machine.
//! Reference: <https://docs.rs/resvg/0.47>, <https://docs.rs/png/0.18>.
use std::sync::{Arc, OnceLock};

use png::{BitDepth, ColorType, DeflateCompression, Encoder, EncodingError, Filter};
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
    encode(&pixels).map_err(|error| RasterError(error.to_string()))
}

/// Charts have a background, so that colours need no alpha; and hundreds of them are encoded while somebody waits.
fn encode(pixels: &Pixmap) -> Result<Vec<u8>, EncodingError> {
    let colors = pixels.data().chunks_exact(4);
    let colors: Vec<u8> = colors
        .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])
        .collect();
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, pixels.width(), pixels.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    // Large areas of one colour compress as well without a filter, and no worse at this level than at higher ones.
    encoder.set_filter(Filter::NoFilter);
    encoder.set_deflate_compression(DeflateCompression::Level(3));
    encoder.write_header()?.write_image_data(&colors)?;
    Ok(bytes)
}
