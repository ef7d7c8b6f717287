//! Starts the built binary on a tiny scenario, finds the processes of that run, and reads what they have spooled so far.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use syncmark::run::spool::{CAPACITY, EVENT_BYTES, Event, Reader};
use syncmark_record::RunFolder;

/// Tests that time real processes take turns. A test that fails does not spoil the turns of the others.
pub static TURN: Turn = Turn(std::sync::Mutex::new(()));

/// A mutex that does not mind a panic.
pub struct Turn(std::sync::Mutex<()>);

impl Turn {
    /// Waits for one's turn.
    pub fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Name of the environment's variable that marks the processes of one run.
const MARKER: &str = "SYNCMARK_TEST_RUN";
static RUNS: AtomicU32 = AtomicU32::new(0);

/// A scenario with `single` and `ddp` in two processes, in this order. A step takes a fraction of a millisecond.
pub fn scenario(repeats: usize, window: &str, timeout: &str) -> String {
    format!(
        r#"name = "faults"
question = "What happens when something goes wrong?"
kind = "train"
[model]
layers = [{{ linear = {{ features = 256 }} }}, "relu", {{ linear = {{ features = "classes" }} }}]
input = [256]
classes = 10
norm = "none"
[data]
source = "synthetic"
batch_size = 64
[measure]
smoke = true
repeats = {repeats}
steps = 5
min_time = "{window}"
warmup_steps = 2
warmup_time = "50ms"
trace_steps = 2
unsynchronized = false
timeout = "{timeout}"
seed = 0
[[variant]]
name = "single"
set = {{ "parallel.strategy" = "single" }}
[[variant]]
name = "ddp"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "processes", "parallel.devices" = 2 }}
"#
    )
}

/// `NAME=value` of a variable that no other run has.
pub fn marker() -> String {
    format!(
        "{MARKER}={}-{}",
        std::process::id(),
        RUNS.fetch_add(1, Ordering::Relaxed)
    )
}

/// The built binary.
pub fn command() -> Command {
    Command::new(env!("CARGO_BIN_EXE_syncmark"))
}

/// A run in progress. Dropped, it is killed.
pub struct Run {
    child: Child,
    marker: String,
    out: PathBuf,
    _files: tempfile::TempDir,
}

/// How a run ended.
pub struct Ended {
    /// Exit status; none if it was killed.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
    /// Its folder: a copy, because the original may lie on a disk that goes.
    pub folder: RunFolder,
    /// Where the copy lies.
    pub kept: tempfile::TempDir,
}

impl Run {
    /// Starts `syncmark run` on a scenario's text.
    pub fn start(toml: &str, arguments: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let out = files.path().join("reports");
        Self::begin(toml, arguments, out, files)
    }

    /// As [`Run::start`], with its run folder in `out`.
    pub fn start_in(toml: &str, arguments: &[&str], out: &Path) -> Self {
        Self::begin(
            toml,
            arguments,
            out.to_owned(),
            tempfile::tempdir().unwrap(),
        )
    }

    fn begin(toml: &str, arguments: &[&str], out: PathBuf, files: tempfile::TempDir) -> Self {
        let scenario = files.path().join("faults.toml");
        std::fs::write(&scenario, toml).unwrap();
        let marker = marker();
        let (name, value) = marker.split_once('=').unwrap();
        let child = command()
            .arg("run")
            .arg(&scenario)
            .arg("--out")
            .arg(&out)
            .args(arguments)
            .env(name, value)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            child,
            marker,
            out,
            _files: files,
        }
    }

    /// Process id of the conductor.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of the run's children, in the order in which they were started.
    pub fn ranks(&self) -> Vec<u32> {
        let mut pids = marked(&self.marker);
        pids.retain(|&pid| pid != self.pid());
        pids.sort_unstable();
        pids
    }

    /// The events of each rank of the measuring job that is running. A gate's spools are smaller and left out.
    pub fn spools(&self) -> Vec<Vec<Event>> {
        spools(&self.out)
    }

    fn folder(&self) -> Option<PathBuf> {
        run_folder(&self.out)
    }

    /// Waits for the end, which must leave no process behind.
    pub fn finish(mut self) -> Ended {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        // What a run prints fits into a pipe, so reading one after the other cannot block it.
        std::io::Read::read_to_string(&mut self.child.stdout.take().unwrap(), &mut stdout).unwrap();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut stderr).unwrap();
        let status = self.child.wait().unwrap().code();
        let left = marked(&self.marker);
        assert!(left.is_empty(), "processes {left:?} are left");
        let folder = self
            .folder()
            .unwrap_or_else(|| panic!("no run folder: {stdout}{stderr}"));
        let kept = tempfile::tempdir().unwrap();
        let copy = kept.path().join(folder.file_name().unwrap());
        copy_folder(&folder, &copy);
        let stdout = stdout.replace(&folder.display().to_string(), &copy.display().to_string());
        Ended {
            status,
            stdout,
            stderr,
            folder: RunFolder::open(copy).unwrap(),
            kept,
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// The run folder below `out`, once it is made.
pub fn run_folder(out: &Path) -> Option<PathBuf> {
    Some(std::fs::read_dir(out).ok()?.flatten().next()?.path())
}

/// The events of each rank of the measuring job whose run folder is below `out`. A gate's spools are smaller and left out.
pub fn spools(out: &Path) -> Vec<Vec<Event>> {
    let Some(folder) = run_folder(out) else {
        return Vec::new();
    };
    let entries = |path: PathBuf| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    let mut spools: Vec<PathBuf> = entries(folder.join(".spool"))
        .flat_map(entries)
        .filter(|path| {
            path.metadata()
                .is_ok_and(|data| data.len() >= (EVENT_BYTES * CAPACITY) as u64)
        })
        .collect();
    spools.sort();
    spools
        .iter()
        .filter_map(|path| Some(Reader::open(path).ok()?.events().collect()))
        .collect()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Living processes whose environment holds the marker. A zombie's environment is empty.
pub fn marked(marker: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == marker.as_bytes())
    })
    .collect()
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// Asks every few milliseconds until there is an answer; panics after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file system of a few megabytes in memory; unmounted when dropped.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts one; says why and returns none where that takes more rights than the test has.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(folder)),
            Ok(output) => {
                eprintln!(
                    "skipped: mounting a small tmpfs failed: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                None
            }
            Err(error) => {
                eprintln!("skipped: there is no mount(8): {error}");
                None
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}
