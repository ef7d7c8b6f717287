//! A variable that is not on the allow-list stays out of a run folder, whatever file one looks into.
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod running;

use std::path::Path;

use running::{command, scenario};

const SECRET: &str = "kept-from-every-file-3141592653";

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let inside = |path: std::path::PathBuf| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    };
    entries.flat_map(|entry| inside(entry.path())).collect()
}

#[test]
fn no_file_of_a_run_folder_holds_a_secret_variable() {
    let _turn = running::TURN.lock();
    let place = tempfile::tempdir().unwrap();
    let toml = place.path().join("secrets.toml");
    std::fs::write(&toml, scenario(1, "10ms", "60s")).unwrap();
    let out = place.path().join("out");
    let output = command()
        .args(["run", "--quiet", "--out"])
        .args([&out, &toml])
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("SYNCMARK_JOB_TOKEN", SECRET)
        .env("NCCL_PASSWORD", SECRET)
        .env("NCCL_DEBUG", "VERSION")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&said)
    );
    let holds = |bytes: &[u8]| {
        bytes
            .windows(SECRET.len())
            .any(|part| part == SECRET.as_bytes())
    };
    assert!(!holds(&said));
    let files = files(&out);
    assert!(files.len() > 8, "{files:?}");
    for file in &files {
        assert!(!holds(&std::fs::read(file).unwrap()), "{}", file.display());
    }
    let environment = files
        .iter()
        .find(|file| file.ends_with("environment.json"))
        .unwrap();
    let text = std::fs::read_to_string(environment).unwrap();
    assert!(
        text.contains("NCCL_DEBUG"),
        "what is on the list is there: {text}"
    );
}
