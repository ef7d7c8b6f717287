//! A drawing surface in pixels with fractions, over plotters' SVG backend.
//!
//! Contract: coordinates are pixels at 100 %, x to the right and y downwards. plotters takes whole numbers only, so
//! everything is drawn on a grid ten times as fine and the SVG's viewBox scales it back. Hatches, dashes and markers,
//! which plotters lacks, are made of its lines. Nothing is clipped here: callers clip their data.
//! Reference: <https://docs.rs/plotters-backend>, `DrawingBackend`.
use std::{fmt::Write as _, sync::OnceLock};

use plotters::{
    backend::{DrawingBackend, SVGBackend},
    style::{
        Color as _, FontDesc, FontFamily, FontStyle, FontTransform, RGBAColor, RGBColor,
        ShapeStyle, TextStyle, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::palette::{Color, Fill, Hatch};
use crate::{SANS_FONT, SANS_FONT_BOLD};

/// The embedded font with fallbacks for browsers that lack it.
pub const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";
/// Grid steps a pixel.
const GRID: f64 = 10.0;
/// plotters divides the size it is given by this before it writes it.
const PLOTTERS_FONT_SCALE: f64 = 1.24;
/// Ascent plus descent of DejaVu Sans over its em square: plotters measures at a size that means this height.
const LINE_HEIGHT: f64 = 1.164;

/// Where a text stands relative to its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The point is the text's left end.
    Start,
    /// The point is its middle.
    Middle,
    /// The point is its right end.
    End,
}

/// How a text looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Type {
    /// Height of the em square in pixels.
    pub size: f64,
    /// Bold or regular.
    pub bold: bool,
    /// Colour.
    pub color: Color,
}

/// The marks of series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A square on its corner.
    Diamond,
    /// A triangle that points up.
    Up,
    /// A triangle that points down.
    Down,
    /// A bar across.
    Bar,
}

/// The surface; see [`draw`].
pub struct Canvas<'a> {
    backend: SVGBackend<'a>,
}

/// Draws an SVG of `width` × `height` pixels. `title` becomes its accessible name.
pub fn draw(width: u32, height: u32, title: &str, paint: impl FnOnce(&mut Canvas<'_>)) -> String {
    let mut text = String::new();
    let (grid_width, grid_height) = (width * GRID as u32, height * GRID as u32);
    let mut canvas = Canvas {
        backend: SVGBackend::with_string(&mut text, (grid_width, grid_height)),
    };
    canvas.rect(
        0.0,
        0.0,
        f64::from(width),
        f64::from(height),
        Fill::solid(Color::WHITE),
    );
    paint(&mut canvas);
    in_memory(canvas.backend.present());
    drop(canvas);
    let size = format!("width=\"{grid_width}\" height=\"{grid_height}\"");
    let named = format!("width=\"{width}\" height=\"{height}\" role=\"img\"");
    let text = joined(&text.replacen(&size, &named, 1));
    text.replacen(
        ">\n",
        &format!(">\n<title>{}</title>\n", crate::html::escape(title)),
        1,
    )
}

/// The same picture with lines that follow each other and look alike as one path: a hatch is hundreds of lines, and readers of SVG take
/// time and memory for each.
fn joined(svg: &str) -> String {
    let mut text = String::with_capacity(svg.len());
    let mut open: Option<&str> = None;
    for row in svg.lines() {
        let line = row.strip_prefix("<line ").and_then(as_line);
        let look = line.as_ref().map(|(look, _)| *look);
        if open.is_some() && open != look {
            text.push_str("\"/>\n");
        }
        match line {
            Some((look, [x1, y1, x2, y2])) => {
                if open != Some(look) {
                    let _ = write!(text, "<path {look} fill=\"none\" d=\"");
                }
                let _ = write!(text, "M{x1},{y1}L{x2},{y2}");
            }
            None => {
                text.push_str(row);
                text.push('\n');
            }
        }
        open = look;
    }
    text
}

/// How a line of plotters' looks, and its four coordinates.
fn as_line(row: &str) -> Option<(&str, [&str; 4])> {
    let (look, ends) = row.strip_suffix("\"/>")?.split_once(" x1=\"")?;
    let (x1, ends) = ends.split_once("\" y1=\"")?;
    let (y1, ends) = ends.split_once("\" x2=\"")?;
    let (x2, y2) = ends.split_once("\" y2=\"")?;
    Some((look, [x1, y1, x2, y2]))
}

/// The backend writes into a string, which cannot fail.
fn in_memory<T, E>(result: Result<T, E>) {
    debug_assert!(result.is_ok(), "drawing into a string failed");
}

fn grid(x: f64, y: f64) -> (i32, i32) {
    ((x * GRID).round() as i32, (y * GRID).round() as i32)
}

fn rgba(color: Color, alpha: f64) -> RGBAColor {
    RGBColor(color.0, color.1, color.2).mix(alpha)
}

fn stroke(color: Color, width: f64) -> ShapeStyle {
    ShapeStyle {
        color: rgba(color, 1.0),
        filled: false,
        stroke_width: (width * GRID).round().max(1.0) as u32,
    }
}

fn filled(color: Color, alpha: f64) -> ShapeStyle {
    ShapeStyle {
        color: rgba(color, alpha),
        filled: true,
        stroke_width: 0,
    }
}

impl Canvas<'_> {
    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), color: Color, width: f64) {
        in_memory(self.backend.draw_line(
            grid(from.0, from.1),
            grid(to.0, to.1),
            &stroke(color, width),
        ));
    }

    /// A dashed straight line: 5 pixels drawn, 4 left out.
    pub fn dashed(&mut self, from: (f64, f64), to: (f64, f64), color: Color, width: f64) {
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let at = |distance: f64| {
            let part = (distance / length).min(1.0);
            (
                from.0 + (to.0 - from.0) * part,
                from.1 + (to.1 - from.1) * part,
            )
        };
        let mut start = 0.0;
        while start < length {
            self.line(at(start), at(start + 5.0), color, width);
            start += 9.0;
        }
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], color: Color, width: f64) {
        let points = points.iter().map(|&(x, y)| grid(x, y));
        in_memory(
            self.backend
                .draw_path(points.collect::<Vec<_>>(), &stroke(color, width)),
        );
    }

    /// A filled rectangle from (x, y) with this width and height; hatched if the fill says so.
    pub fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: Fill) {
        if width <= 0.0 || height <= 0.0 {
            return;
        }
        let (from, to) = (grid(x, y), grid(x + width, y + height));
        let base = if fill.hatch == Hatch::None {
            fill.color
        } else {
            fill.color.tint(0.72)
        };
        in_memory(self.backend.draw_rect(from, to, &filled(base, 1.0), true));
        if matches!(fill.hatch, Hatch::Rising | Hatch::Cross) {
            self.hatch(x, y, width, height, fill.color, true);
        }
        if matches!(fill.hatch, Hatch::Falling | Hatch::Cross) {
            self.hatch(x, y, width, height, fill.color, false);
        }
    }

    /// The outline of a rectangle.
    pub fn outline(
        &mut self,
        x: f64,
        y: f64,
        width: f64,
        height: f64,
        color: Color,
        stroke_width: f64,
    ) {
        let corners = [
            (x, y),
            (x + width, y),
            (x + width, y + height),
            (x, y + height),
            (x, y),
        ];
        self.path(&corners, color, stroke_width);
    }

    /// Lines at 45 degrees, 5 pixels apart, cut at the rectangle's edges.
    fn hatch(&mut self, x: f64, y: f64, width: f64, height: f64, color: Color, rising: bool) {
        const GAP: f64 = 5.0;
        let mut offset = GAP / 2.0;
        while offset < width + height {
            // The line goes from (offset, 0) to (offset − height, height) in the rectangle's own coordinates.
            let (left, right) = ((offset - height).max(0.0), offset.min(width));
            if right > left {
                let row = |column: f64| {
                    if rising {
                        offset - column
                    } else {
                        height - (offset - column)
                    }
                };
                self.line(
                    (x + left, y + row(left)),
                    (x + right, y + row(right)),
                    color,
                    1.2,
                );
            }
            offset += GAP;
        }
    }

    /// A filled polygon.
    pub fn polygon(&mut self, points: &[(f64, f64)], color: Color) {
        let points: Vec<_> = points.iter().map(|&(x, y)| grid(x, y)).collect();
        in_memory(self.backend.fill_polygon(points, &filled(color, 1.0)));
    }

    /// A disc, possibly translucent.
    pub fn disc(&mut self, x: f64, y: f64, radius: f64, color: Color, alpha: f64) {
        let radius = (radius * GRID).round() as u32;
        in_memory(
            self.backend
                .draw_circle(grid(x, y), radius, &filled(color, alpha), true),
        );
    }

    /// A series' mark, about 9 pixels wide, with a white edge so that overlapping marks stay apart.
    pub fn marker(&mut self, x: f64, y: f64, marker: Marker, color: Color) {
        self.mark(x, y, 5.2, marker, Color::WHITE);
        self.mark(x, y, 4.0, marker, color);
    }

    fn mark(&mut self, x: f64, y: f64, r: f64, marker: Marker, color: Color) {
        let at = |dx: f64, dy: f64| (x + dx * r, y + dy * r);
        match marker {
            Marker::Circle => self.disc(x, y, r, color, 1.0),
            Marker::Square => self.polygon(
                &[at(-0.9, -0.9), at(0.9, -0.9), at(0.9, 0.9), at(-0.9, 0.9)],
                color,
            ),
            Marker::Diamond => self.polygon(
                &[at(0.0, -1.2), at(1.2, 0.0), at(0.0, 1.2), at(-1.2, 0.0)],
                color,
            ),
            Marker::Up => self.polygon(&[at(0.0, -1.2), at(1.1, 0.8), at(-1.1, 0.8)], color),
            Marker::Down => self.polygon(&[at(0.0, 1.2), at(1.1, -0.8), at(-1.1, -0.8)], color),
            Marker::Bar => self.polygon(
                &[at(-1.3, -0.4), at(1.3, -0.4), at(1.3, 0.4), at(-1.3, 0.4)],
                color,
            ),
        }
    }

    /// A text whose vertical middle is at `y`.
    pub fn text(&mut self, x: f64, y: f64, text: &str, anchor: Anchor, look: Type) {
        self.transformed(x, y, text, anchor, look, FontTransform::None);
    }

    /// A text that is read from bottom to top, centred on the point.
    pub fn upward_text(&mut self, x: f64, y: f64, text: &str, look: Type) {
        self.transformed(x, y, text, Anchor::Middle, look, FontTransform::Rotate270);
    }

    fn transformed(
        &mut self,
        x: f64,
        y: f64,
        text: &str,
        anchor: Anchor,
        look: Type,
        transform: FontTransform,
    ) {
        let horizontal = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let color = rgba(look.color, 1.0);
        let style =
            TextStyle::from(font(look, look.size * PLOTTERS_FONT_SCALE).transform(transform))
                .color(&color)
                .pos(Pos::new(horizontal, VPos::Center));
        in_memory(self.backend.draw_text(text, &style, grid(x, y)));
    }
}

/// The font of a look at `size` pixels, in plotters' sense of size.
fn font(look: Type, size: f64) -> FontDesc<'static> {
    static REGISTERED: OnceLock<()> = OnceLock::new();
    REGISTERED.get_or_init(|| {
        for (style, bytes) in [
            (FontStyle::Normal, SANS_FONT),
            (FontStyle::Bold, SANS_FONT_BOLD),
        ] {
            let registered = register_font(FAMILY, style, bytes).is_ok();
            debug_assert!(registered, "the embedded font is damaged");
        }
    });
    let style = if look.bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    FontDesc::new(FontFamily::Name(FAMILY), size * GRID, style)
}

/// Width of a text in pixels.
pub fn text_width(text: &str, look: Type) -> f64 {
    font(look, look.size * LINE_HEIGHT).layout_box(text).map_or(
        text.chars().count() as f64 * look.size * 0.6,
        |((left, _), (right, _))| f64::from(right - left) / GRID,
    )
}

/// `text`, cut to `width` pixels with an ellipsis if it is longer.
pub fn fitted(text: &str, width: f64, look: Type) -> String {
    if text_width(text, look) <= width {
        return text.into();
    }
    let mut cut: String = text.into();
    while cut.pop().is_some() && text_width(&cut, look) + look.size > width {}
    format!("{}…", cut.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_font() {
        // Advances of DejaVu Sans in units of 1/2048 em: M 1767, i 569.
        let look = Type {
            size: 20.48,
            bold: false,
            color: Color::BLACK,
        };
        assert!(
            (text_width("MMMM", look) - 4.0 * 17.67).abs() < 0.3,
            "{}",
            text_width("MMMM", look)
        );
        assert!(
            (text_width("iiii", look) - 4.0 * 5.69).abs() < 0.3,
            "{}",
            text_width("iiii", look)
        );
    }

    #[test]
    fn lines_that_look_alike_are_one_path_and_the_same_picture() {
        let mut apart = String::new();
        let mut backend = SVGBackend::with_string(&mut apart, (60, 40));
        let white = filled(Color::WHITE, 1.0);
        in_memory(backend.draw_rect((0, 0), (60, 40), &white, true));
        for (at, color) in [(5, Color::BLACK), (15, Color::BLACK), (25, Color::GREEN)] {
            in_memory(backend.draw_line((at, 5), (at + 10, 30), &stroke(color, 0.2)));
        }
        in_memory(backend.draw_rect((40, 5), (45, 30), &filled(Color::BLACK, 1.0), true));
        in_memory(backend.draw_line((50, 5), (50, 30), &stroke(Color::GREEN, 0.2)));
        in_memory(backend.present());
        drop(backend);
        let together = joined(&apart);
        assert_eq!(apart.matches("<line").count(), 4);
        assert_eq!(together.matches("<line").count(), 0);
        assert_eq!(together.matches("<path").count(), 3, "{together}");
        assert!(
            together.contains("d=\"M5,5L15,30M15,5L25,30\"/>"),
            "{together}"
        );
        let pixels = |svg: &str| super::super::raster::png(svg).unwrap();
        assert_eq!(pixels(&apart), pixels(&together));
    }

    #[test]
    fn a_long_text_is_cut_to_its_room() {
        let look = Type {
            size: 10.0,
            bold: true,
            color: Color::BLACK,
        };
        let cut = fitted("a very long label that has no room", 80.0, look);
        assert!(
            cut.ends_with('…') && text_width(&cut, look) <= 80.0,
            "{cut}"
        );
        assert_eq!(fitted("short", 80.0, look), "short");
    }

    #[test]
    fn titles_are_escaped_and_dimensions_are_pixels() {
        let svg = draw(100, 50, "a < b & c", |_| {});
        assert!(
            svg.starts_with(
                "<svg width=\"100\" height=\"50\" role=\"img\" viewBox=\"0 0 1000 500\""
            ),
            "{svg}"
        );
        assert!(svg.contains("<title>a &lt; b &amp; c</title>"));
    }
}
