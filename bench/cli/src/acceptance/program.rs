//! Other programs: run to their end, or to a limit.
//!
//! Contract: no process is left when a call returns. Output is kept whole; it is small.
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::run::signals::Signals;

/// How often a program is looked after.
const POLL: Duration = Duration::from_millis(50);
/// Last characters of its complaints that are quoted.
const QUOTED: usize = 300;

/// A program of this name in a folder of `PATH`.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let mut files = std::env::split_paths(&folders).map(|folder| folder.join(name));
    files.find(|file| file.is_file())
}

/// Standard output of a program that ended well.
///
/// # Errors
/// In words, how it ended otherwise, with the last of its complaints.
pub(super) fn output(
    command: &mut Command,
    limit: Duration,
    signals: &Signals,
) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("failed to start {name}: {error}"))?;
    let said = process.stdout.take().map(read);
    let complained = process.stderr.take().map(read);
    let until = Instant::now() + limit;
    let ended: Result<ExitStatus, String> = loop {
        match process.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Err(error) => break Err(format!("failed to wait for {name}: {error}")),
            Ok(None) if Instant::now() > until => {
                break Err(format!("{name} took more than {} s", limit.as_secs()));
            }
            Ok(None) if signals.received() > 0 => break Err("interrupted".to_owned()),
            Ok(None) => std::thread::sleep(POLL),
        }
    };
    if ended.is_err() {
        let _ = process.kill();
        let _ = process.wait();
    }
    let status = ended?;
    let text = |thread: Option<JoinHandle<String>>| {
        thread.map_or_else(String::new, |thread| thread.join().unwrap_or_default())
    };
    let (said, complained) = (text(said), text(complained));
    if status.success() {
        return Ok(said);
    }
    let from = complained.len().saturating_sub(QUOTED);
    let from = (from..complained.len()).find(|at| complained.is_char_boundary(*at));
    let tail = complained[from.unwrap_or(complained.len())..].trim();
    Err(format!("{name} ended with {status}: {tail}"))
}

/// Reads on a thread, so that a program never waits for a full pipe.
fn read(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
