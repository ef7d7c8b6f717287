//! Files that a child leaves, on their way from its agent to rank 0.
//!
//! Contract: a spool travels as far as it was written, its header included, so it opens on the other side like one that was
//! written there. A parcel is complete when all its announced bytes have come; the place on disk exists before it.
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use super::message::{FileKind, Report};
use super::wire::{PIECE, send, send_data};
use crate::run::spool::{EVENT_BYTES, Reader};

/// Sends a spool as far as it was written.
///
/// # Errors
/// A sentence, when it cannot be read or sent.
pub fn send_spool(stream: &TcpStream, path: &Path) -> io::Result<()> {
    let written = Reader::open(path).map_err(io::Error::other)?.written();
    // A spool holds one event at least, which may be empty.
    let bytes = EVENT_BYTES * (written.max(1) + 1);
    send_file(stream, FileKind::Spool, path, bytes as u64)
}

/// Sends a whole file.
///
/// # Errors
/// When it cannot be read or sent.
pub fn send_output(stream: &TcpStream, path: &Path) -> io::Result<()> {
    send_file(stream, FileKind::Output, path, path.metadata()?.len())
}

fn send_file(stream: &TcpStream, file: FileKind, path: &Path, bytes: u64) -> io::Result<()> {
    send(stream, &Report::File { file, bytes })?;
    let mut source = File::open(path)?.take(bytes);
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let read = source.read(&mut piece)?;
        if read == 0 {
            return Err(io::Error::other(format!(
                "{} became shorter while it was sent",
                path.display()
            )));
        }
        send_data(stream, &piece[..read])?;
        left -= read as u64;
    }
    Ok(())
}

/// A file that is on its way here.
#[derive(Debug)]
pub struct Parcel {
    file: File,
    path: PathBuf,
    left: u64,
}

impl Parcel {
    /// Opens the place of a file that was announced: a spool's exists with its room reserved and is written over, any other
    /// is made.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            left: bytes,
        })
    }

    /// Writes a piece.
    ///
    /// # Errors
    /// What write(2) says, or that more came than was announced.
    pub fn take(&mut self, piece: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(piece.len() as u64);
        self.left = left.ok_or_else(|| {
            io::Error::other(format!(
                "more came for {} than was announced",
                self.path.display()
            ))
        })?;
        self.file.write_all(piece)
    }

    /// Whether all of it has come.
    pub fn is_complete(&self) -> bool {
        self.left == 0
    }
}
