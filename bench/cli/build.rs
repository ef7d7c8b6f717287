//! Writes down what this binary is built from: commit, target, profile and the libraries that do the work.
//!
//! Contract: never fails a build. SYNCMARK_COMMIT names the commit where there is no repository (a source archive, a container).
//! Else an optimized build asks git, and is made again when a commit or a source file changes. A build without optimization
//! does not look: nobody measures with it, and a commit would rebuild it. Reference: The Cargo Book, "Build Scripts".
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Crates that compute, read data or draw.
const LIBRARIES: [&str; 7] = [
    "gemm",
    "plotters",
    "resvg",
    "safetensors",
    "toml",
    "typst",
    "typst-pdf",
];
/// What a build depends on, below the top folder.
const SOURCES: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "scenarios",
    "bench/engine/src",
    "bench/record/src",
    "bench/report/src",
    "bench/pdf/src",
    "bench/cli/src",
];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SYNCMARK_COMMIT");
    let top = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    let optimization = variable("OPT_LEVEL");
    let profile = format!("{}, opt-level {optimization}", variable("PROFILE"));
    let named = env::var("SYNCMARK_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = named.or_else(|| optimized(&optimization).then(|| commit(&top)).flatten());
    set("SYNCMARK_BUILD_COMMIT", &commit.unwrap_or_default());
    set("SYNCMARK_BUILD_TARGET", &variable("TARGET"));
    set("SYNCMARK_BUILD_PROFILE", &profile);
    set(
        "SYNCMARK_BUILD_LIBRARIES",
        &libraries(&top.join("Cargo.lock")),
    );
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

fn set(name: &str, value: &str) {
    println!("cargo:rustc-env={name}={}", value.replace('\n', " "));
}

fn optimized(level: &str) -> bool {
    matches!(level, "2" | "3" | "s" | "z")
}

/// The checked-out commit, and whether what is built differs from it.
fn commit(top: &Path) -> Option<String> {
    let commit = git(top, &["rev-parse", "HEAD"])?;
    let changes = git(
        top,
        &[&["status", "--porcelain", "--"][..], &SOURCES[..]].concat(),
    )?;
    // Both move with a commit or a checkout, also in a linked worktree.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(top, &["rev-parse", "--git-path", file]) {
            watch(&top.join(PathBuf::from(path)));
        }
    }
    SOURCES.iter().for_each(|source| watch(&top.join(source)));
    let state = if changes.is_empty() {
        ""
    } else {
        ", with changes"
    };
    Some(format!("{commit}{state}"))
}

fn watch(path: &Path) {
    if path.exists() {
        println!("cargo:rerun-if-changed={}", path.display());
    }
}

/// What git prints; `None` where it is missing, fails, or belongs to a repository around an unpacked source archive.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    if !folder.join(".git").exists() {
        return None;
    }
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["--no-optional-locks", "-c", "core.fsmonitor=false"])
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}

/// `name version` of each library in the lock file, separated by commas. An entry is a line `name = "..."` and then its version.
fn libraries(lock: &Path) -> String {
    watch(lock);
    let text = std::fs::read_to_string(lock).unwrap_or_default();
    let value = |line: &str, key: &str| {
        let quoted = line.strip_prefix(key)?.strip_prefix(" = ")?;
        Some(quoted.trim_matches('"').to_owned())
    };
    let lines: Vec<&str> = text.lines().collect();
    let found = lines.windows(2).filter_map(|pair| {
        let name = value(pair[0], "name").filter(|name| LIBRARIES.contains(&name.as_str()))?;
        Some(format!("{name} {}", value(pair[1], "version")?))
    });
    found.collect::<Vec<_>>().join(",")
}
