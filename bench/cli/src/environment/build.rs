//! What this program was built from and with.
//!
//! Contract: the build script names the commit (or SYNCMARK_COMMIT does), target, profile and libraries. The scenario's
//! commit is that of the checkout around it, which need not be the program's. The compiler is read from the note that rustc
//! leaves in each program.
//! Reference: git-rev-parse(1), git-status(1); rustc's `.comment` section.
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use memchr::memmem;
use syncmark_record::environment::machine::Build;

/// What the build script wrote down.
pub fn build() -> Build {
    let said = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Build {
        commit: said(env!("SYNCMARK_BUILD_COMMIT")),
        target: said(env!("SYNCMARK_BUILD_TARGET")),
        profile: said(env!("SYNCMARK_BUILD_PROFILE")),
        libraries: env!("SYNCMARK_BUILD_LIBRARIES")
            .split(',')
            .filter_map(said)
            .collect(),
    }
}

/// The checked-out commit of the repository around `folder`, and whether tracked files were changed.
pub fn checkout(folder: &Path) -> Option<String> {
    let commit = git(folder, &["rev-parse", "HEAD"])?;
    let changes = git(folder, &["status", "--porcelain", "--untracked-files=no"])?;
    let state = if changes.is_empty() {
        ""
    } else {
        ", with changes"
    };
    Some(format!("{commit}{state}"))
}

/// What git prints; `None` where it is missing or fails, as it does outside of a repository.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    // A repository's own settings may name programs to run; a look at its state must not start one.
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

/// The compiler that built this program; `None` where its note was stripped.
pub fn compiler() -> Option<String> {
    let program = fs::read(std::env::current_exe().ok()?).ok()?;
    compiler_note(&program)
}

/// The first "rustc version 1.2.3 (...)" of a program's bytes.
fn compiler_note(program: &[u8]) -> Option<String> {
    const NOTE: &[u8] = b"rustc version ";
    // The pattern itself stands in the program too, without a version behind it.
    memmem::find_iter(program, NOTE).find_map(|at| {
        let printable = |byte: &&u8| (0x20..0x7f).contains(*byte);
        let rest = program[at + NOTE.len()..]
            .iter()
            .take(80)
            .take_while(printable);
        let line = String::from_utf8(rest.copied().collect()).ok()?;
        let end = line.find(')').map_or(line.len(), |end| end + 1);
        line.starts_with(|c: char| c.is_ascii_digit())
            .then(|| format!("rustc {}", &line[..end]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_read_from_its_note() {
        let program = b"\0rustc version \0junk rustc version 1.95.0 (59807616e 2026-04-14)\0GCC";
        assert_eq!(
            compiler_note(program).as_deref(),
            Some("rustc 1.95.0 (59807616e 2026-04-14)")
        );
        assert_eq!(compiler_note(b"rustc version unknown"), None);
    }

    #[test]
    fn this_program_knows_its_build() {
        let build = build();
        let target = build.target.expect("cargo names the target");
        assert!(target.starts_with(std::env::consts::ARCH), "{target}");
        assert!(build.profile.unwrap().contains("opt-level"));
        let gemm = build
            .libraries
            .iter()
            .find(|library| library.starts_with("gemm "));
        assert!(gemm.is_some(), "{:?}", build.libraries);
    }

    #[test]
    fn this_program_knows_its_compiler() {
        let compiler = compiler().expect("test programs are not stripped");
        assert!(compiler.starts_with("rustc 1."), "{compiler}");
    }

    #[test]
    fn a_checkout_names_its_commit_and_its_changes() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(checkout(folder.path()), None);
        let set_up = |arguments: &[&str]| git(folder.path(), arguments);
        if set_up(&["init", "--quiet"]).is_none() {
            println!("skipped: git is not installed");
            return;
        }
        fs::write(folder.path().join("file"), "1").unwrap();
        set_up(&["add", "file"]).unwrap();
        let author = [
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.org",
            "-c",
            "commit.gpgsign=false",
        ];
        set_up(&[&author[..], &["commit", "--quiet", "-m", "first"]].concat()).unwrap();
        let clean = checkout(folder.path()).unwrap();
        assert_eq!(clean.len(), 40, "{clean}");
        fs::write(folder.path().join("file"), "2").unwrap();
        assert!(checkout(folder.path()).unwrap().ends_with(", with changes"));
    }
}
