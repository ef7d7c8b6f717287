//! `scripts/cuda_libraries.sh`: what it says where it cannot install, what it leaves alone, and, where asked for, the real thing.
//!
//! Contract: nothing here reaches a network but the last test, which downloads over 1 GiB and runs only with
//! SYNCMARK_REQUIRE_CUDA_LIBRARIES=1. A stand-in for python3 says what pip would.
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The script's own pin of what `--only nvrtc` installs.
const NVRTC: &str = "nvidia_cuda_nvrtc-13.0.88";
/// What stands for its files.
const FILES: [&str; 2] = ["libnvrtc", "libnvrtc-builtins"];

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/cuda_libraries.sh")
}

/// A machine of programs that a test chose.
struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    /// With what the script uses beside Python.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for program in [
            "awk", "bash", "cat", "df", "grep", "mkdir", "mktemp", "rm", "tee", "uname",
        ] {
            let path = on_path(program).unwrap_or_else(|| panic!("no {program}"));
            symlink(path, bin.join(program)).unwrap();
        }
        Self { folder }
    }

    /// With a program of a shell's lines.
    fn with(self, name: &str, lines: &str) -> Self {
        let path = self.folder.path().join("bin").join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{lines}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// With Python, whose pip prints `said` and fails; `None` where this machine has no Python to stand behind it.
    fn with_pip(self, said: &str) -> Option<Self> {
        let python = python()?;
        let lines = format!(
            "case \"$*\" in\n'-m pip --version') exit 0 ;;\n'-m pip '*) echo '{said}'; exit 1 ;;\nesac\nexec '{}' \"$@\"",
            python.display()
        );
        Some(self.with("python3", &lines))
    }

    /// Where the script installs, with `--only nvrtc`.
    fn target(&self) -> PathBuf {
        self.folder.path().join("cuda")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new("bash")
            .arg(script())
            .args(arguments)
            .env_clear()
            .env("PATH", self.folder.path().join("bin"))
            .env("HOME", self.folder.path())
            .output()
            .expect("bash starts")
    }

    /// Installs NVRTC alone, which fails, and what it says.
    fn fails(&self) -> String {
        let target = self.target();
        let output = self.run(&["--only", "nvrtc", target.to_str().unwrap()]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let left = fs::read_dir(&target).into_iter().flatten().flatten();
        let left: Vec<_> = left
            .map(|entry| entry.file_name())
            .filter(|name| name.to_string_lossy().starts_with(".installing"))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        said
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

/// Python itself: what lies on the path may be a script that looks for it again.
fn python() -> Option<PathBuf> {
    let asked = Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output();
    let path = asked
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    if path.is_none() {
        eprintln!("skipped: there is no python3, which the script needs");
    }
    path
}

/// As pip leaves a package: two files, and the list with their hashes.
fn installed(target: &Path) {
    let list = target.join(format!("{NVRTC}.dist-info"));
    fs::create_dir_all(&list).unwrap();
    fs::create_dir_all(target.join("nvidia")).unwrap();
    let mut rows = format!("{NVRTC}.dist-info/RECORD,,\n");
    for name in FILES {
        fs::write(target.join("nvidia").join(name), "abc").unwrap();
        // SHA-256 of "abc", as RECORD has it: URL-safe base64 without padding (FIPS 180-4's first example).
        rows += &format!("nvidia/{name},sha256=ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0,3\n");
    }
    fs::write(list.join("RECORD"), rows).unwrap();
}

#[test]
fn without_python_it_says_what_to_install() {
    let said = Machine::new().fails();
    assert!(
        said.contains("error: there is no python3") && said.contains("apt-get install python3-pip"),
        "{said}"
    );
}

#[test]
fn without_pip_venv_and_uv_it_says_what_to_install() {
    let Some(python) = python() else { return };
    let lines = format!(
        "[ \"$1\" != -m ] || exit 1\nexec '{}' \"$@\"",
        python.display()
    );
    let said = Machine::new().with("python3", &lines).fails();
    assert!(
        said.contains("neither pip nor venv") && said.contains("python3-venv"),
        "{said}"
    );
}

#[test]
fn without_a_network_it_says_so() {
    let words = [
        "WARNING: Retrying after connection broken by NewConnectionError: Failed to establish a new connection",
        "ERROR: Could not find a version that satisfies the requirement a==1 (from versions: none)",
    ];
    for refused in words {
        let Some(machine) = Machine::new().with_pip(refused) else {
            return;
        };
        let said = machine.fails();
        assert!(said.contains("error: PyPI cannot be reached"), "{said}");
        assert!(said.contains("SYNCMARK_CUDA_LIBRARIES"), "{said}");
    }
}

#[test]
fn a_full_disk_is_told_before_and_during_the_download() {
    let full =
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device";
    let Some(machine) = Machine::new().with_pip(full) else {
        return;
    };
    let said = machine.fails();
    assert!(
        said.contains("error: the disk of") && said.contains("is full"),
        "{said}"
    );

    let df =
        "printf 'Filesystem 1M-blocks Used Available Capacity Mounted\\n/dev/x 9 8 1 9%% /\\n'";
    fs::remove_file(machine.folder.path().join("bin/df")).unwrap();
    let said = machine.with("df", df).fails();
    assert!(
        said.contains("has 1 MiB of room, and 400 MiB are needed"),
        "{said}"
    );
}

#[test]
fn another_failure_leaves_the_word_to_pip() {
    let Some(machine) = Machine::new().with_pip("ERROR: something else") else {
        return;
    };
    let target = machine.target();
    let output = machine.run(&["--only", "nvrtc", target.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("ERROR: something else"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("its own words stand above"));
}

#[test]
fn what_is_there_and_whole_is_not_installed_again() {
    let Some(machine) = Machine::new().with_pip("pip was started") else {
        return;
    };
    installed(&machine.target());
    let output = machine.run(&["--only", "nvrtc", machine.target().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("already installed in"), "{said}");
    assert!(!said.contains("pip was started"), "{said}");
}

#[test]
fn what_is_damaged_is_named_and_installed_again() {
    let Some(machine) = Machine::new().with_pip("pip was started") else {
        return;
    };
    for (text, problem) in [
        ("abd", "is damaged: its hash differs"),
        ("ab", "has 2 bytes, not 3"),
    ] {
        installed(&machine.target());
        fs::write(machine.target().join("nvidia").join(FILES[0]), text).unwrap();
        let output = machine.run(&["--only", "nvrtc", machine.target().to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains(problem) && said.contains("pip was started"),
            "{said}"
        );
        assert!(
            machine.target().join("nvidia").join(FILES[1]).is_file(),
            "a failure leaves what was there"
        );
    }
}

#[test]
fn wrong_arguments_are_bad_usage() {
    let machine = Machine::new();
    for arguments in [
        &["--only", "cudnn"][..],
        &["--only"],
        &["--everything"],
        &["a", "b"],
        &[""],
    ] {
        let output = machine.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: "));
    }
}

#[test]
fn what_the_script_installs_is_found() {
    if std::env::var_os("SYNCMARK_REQUIRE_CUDA_LIBRARIES").is_none_or(|value| value.is_empty()) {
        eprintln!(
            "skipped: it downloads over 1 GiB; SYNCMARK_REQUIRE_CUDA_LIBRARIES=1 asks for it"
        );
        return;
    }
    // Kept between runs: the script looks at what is there first.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-libraries");
    let status = Command::new("bash").arg(script()).arg(&target).status();
    assert!(status.expect("bash starts").success());
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_syncmark"))
        .args(["doctor", "--out"])
        .arg(folder.path())
        .env("SYNCMARK_CUDA_LIBRARIES", &target)
        .env("COLUMNS", "400")
        .output()
        .expect("the binary starts");
    let table = String::from_utf8(output.stdout).unwrap();
    for (library, version) in [
        ("NVRTC", "13.0"),
        ("cuBLASLt", "13.1.0"),
        ("cuBLAS", "13.1.0"),
        ("cuDNN", "9.19.0"),
        ("NCCL", "2.28.9"),
    ] {
        let row = |line: &&str| line.contains(&format!(" {library} "));
        let row = table
            .lines()
            .find(row)
            .unwrap_or_else(|| panic!("no {library}:\n{table}"));
        assert!(
            row.trim_start().starts_with("ok") && row.contains(version),
            "{row}\n{table}"
        );
    }
}
