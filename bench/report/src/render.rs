//! Renders a run folder: charts, HTML, Markdown and trace are written into it, and the document is handed on.
//!
//! Contract: the records are only read. Rendering twice writes the same bytes. Charts of an earlier rendering that no
//! longer exist are removed, so the folder never shows a chart that the report does not; except those for which the records
//! are gone, which could never be made again.
use std::{
    fs,
    num::NonZero,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use syncmark_record::{RunFolder, rows::PhaseRow, table::Row};

use crate::{
    chart::raster::{RasterError, png},
    compose::compose,
    document::{Document, Figure},
    error::ReportError,
    html::html,
    markdown::markdown,
    run_data::RunData,
    trace::trace,
};

/// What rendering gave.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The report, for the PDF.
    pub document: Document,
    /// The records that it was made from, with their figures.
    pub data: RunData,
    /// Every file that was written.
    pub files: Vec<PathBuf>,
}

/// Reads the records in `folder` and writes `charts/*.svg`, `charts/*.png`, `report.html`, `report.md` and
/// `trace.json` into it.
///
/// # Errors
/// [`ReportError::Folder`] when the folder is missing, empty or has a bad row; [`ReportError::Write`] when a file
/// cannot be written.
pub fn render(folder: &Path) -> Result<Rendered, ReportError> {
    render_beside(folder, |_| ()).map(|(rendered, ())| rendered)
}

/// As [`render`], on a core of its own, while `other` makes something else of the document, such as a PDF. That may be an error of
/// its own: the files are written even so.
///
/// # Errors
/// As [`render`].
pub fn render_beside<T>(
    folder: &Path,
    other: impl FnOnce(&Document) -> T,
) -> Result<(Rendered, T), ReportError> {
    let data = RunData::load(&RunFolder::open(folder)?)?;
    let document = compose(&data);
    let (files, made) = thread::scope(|scope| {
        // The other stays on this thread: a typesetter may need the whole of its stack.
        let files = scope.spawn(|| write_files(folder, &document, &data));
        let made = other(&document);
        (files.join().unwrap_or_else(|p| resume_unwind(p)), made)
    });
    let rendered = Rendered {
        files: files?,
        document,
        data,
    };
    Ok((rendered, made))
}

/// Writes charts, HTML, Markdown and trace.
fn write_files(
    folder: &Path,
    document: &Document,
    data: &RunData,
) -> Result<Vec<PathBuf>, ReportError> {
    let mut files = Vec::new();
    let charts = folder.join("charts");
    fs::create_dir_all(&charts).map_err(|source| ReportError::Write {
        path: charts.clone(),
        source,
    })?;
    remove_old_charts(&charts, document, data)?;
    let figures: Vec<_> = document.figures().collect();
    for (figure, pixels) in figures.iter().zip(pixels(&figures)) {
        let pixels = pixels.map_err(|source| ReportError::Raster {
            name: figure.name.clone(),
            source,
        })?;
        write(
            &mut files,
            charts.join(format!("{}.svg", figure.name)),
            figure.svg.as_bytes(),
        )?;
        write(
            &mut files,
            charts.join(format!("{}.png", figure.name)),
            &pixels,
        )?;
    }
    write(
        &mut files,
        folder.join("report.html"),
        html(document).as_bytes(),
    )?;
    write(
        &mut files,
        folder.join("report.md"),
        markdown(document).as_bytes(),
    )?;
    if !data.gaps.lacks(PhaseRow::FILE) {
        write(
            &mut files,
            folder.join("trace.json"),
            trace(data).as_bytes(),
        )?;
    }
    Ok(files)
}

/// The figures as PNG, in their order, drawn on as many cores as there are: nothing is measured any more.
fn pixels(figures: &[&Figure]) -> Vec<Result<Vec<u8>, RasterError>> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let draw = || {
        let take = || {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let figure = figures.get(index)?;
            Some((index, png(&figure.svg)))
        };
        std::iter::from_fn(take).collect::<Vec<_>>()
    };
    let mut drawn = thread::scope(|scope| {
        let others: Vec<_> = (1..workers.min(figures.len()))
            .map(|_| scope.spawn(draw))
            .collect();
        let mut drawn = draw();
        for other in others {
            drawn.extend(other.join().unwrap_or_else(|p| resume_unwind(p)));
        }
        drawn
    });
    drawn.sort_by_key(|(index, _)| *index);
    drawn.into_iter().map(|(_, pixels)| pixels).collect()
}

fn write(files: &mut Vec<PathBuf>, path: PathBuf, bytes: &[u8]) -> Result<(), ReportError> {
    fs::write(&path, bytes).map_err(|source| ReportError::Write {
        path: path.clone(),
        source,
    })?;
    files.push(path);
    Ok(())
}

/// Removes SVG and PNG files of charts that this document does not have, unless it could not have them for want of
/// records; anything else is left alone.
fn remove_old_charts(
    charts: &Path,
    document: &Document,
    data: &RunData,
) -> Result<(), ReportError> {
    let error = |source| ReportError::Write {
        path: charts.into(),
        source,
    };
    for entry in fs::read_dir(charts).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let chart = path
            .extension()
            .is_some_and(|extension| extension == "svg" || extension == "png");
        let current = document.figures().any(|figure| {
            path.file_stem()
                .is_some_and(|stem| stem == figure.name.as_str())
        });
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let lost = stem.is_some_and(|stem| data.gaps.hide(stem));
        if chart && !current && !lost {
            fs::remove_file(&path).map_err(|source| ReportError::Write { path, source })?;
        }
    }
    Ok(())
}
