//! Whole runs on data that users bring: Fashion-MNIST where Debian's package has installed it, a made folder of CIFAR-10,
//! and what is said when files are missing or damaged.
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use syncmark_engine::data::fashion_mnist;
use syncmark_record::folder::RunFolder;
use syncmark_record::rows::{RepeatRow, TrialRow};

/// One short window of single, DP and DDP on two devices.
fn scenario(source: &str) -> String {
    format!(
        r#"name = "data"
question = "Does it train on files?"
kind = "train"
[model]
layers = ["flatten", {{ linear = {{ features = 16 }} }}, "relu", {{ linear = {{ features = "classes" }} }}]
norm = "none"
[data]
{source}
batch_size = 32
[train]
optimizer = {{ sgd = {{ learning_rate = 0.1 }} }}
[measure]
smoke = true
repeats = 1
steps = 30
min_time = "1ms"
warmup_time = "1ms"
unsynchronized = false
timeout = "2m"
[sweep]
"parallel.strategy" = ["single", "dp", "ddp"]
[[variant]]
name = "one"
set = {{ "parallel.devices" = 1 }}
[[variant]]
name = "two"
set = {{ "parallel.devices" = 2 }}
"#
    )
}

fn run(folder: &Path, toml: &str) -> Output {
    let file = folder.join("data.toml");
    fs::write(&file, toml).unwrap();
    Command::new(env!("CARGO_BIN_EXE_syncmark"))
        .args(["run", "--quiet", "--out"])
        .arg(folder.join("out"))
        .arg(&file)
        .env_remove("SYNCMARK_DATA")
        .output()
        .unwrap()
}

/// Trials and repeats of a run that passed.
fn passed(folder: &Path, toml: &str) -> (Vec<TrialRow>, Vec<RepeatRow>) {
    let output = run(folder, toml);
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let made = fs::read_dir(folder.join("out")).unwrap().next().unwrap();
    let made = RunFolder::open(made.unwrap().path()).unwrap();
    let trials: Vec<TrialRow> = made.read().unwrap();
    assert!(
        trials.iter().all(|trial| trial.outcome.has_figures()),
        "{said}"
    );
    (trials, made.read().unwrap())
}

#[test]
fn fashion_mnist_of_the_debian_package_trains() {
    let place = Path::new(fashion_mnist::DEBIAN_FOLDER);
    if !fashion_mnist::is_in(place) {
        let why = format!(
            "{} holds no Fashion-MNIST (apt install dataset-fashion-mnist)",
            place.display()
        );
        let required = std::env::var("SYNCMARK_REQUIRE_DATA").is_ok_and(|value| !value.is_empty());
        assert!(!required, "SYNCMARK_REQUIRE_DATA is set, but {why}");
        eprintln!("skipped: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (trials, repeats) = passed(folder.path(), &scenario("source = \"fashion-mnist\""));
    assert!(trials.iter().all(|trial| trial.data == "fashion-mnist"));
    // Flattened, 784 pixels meet 16 features, and those 10 classes.
    let parameters = 784 * 16 + 16 + 16 * 10 + 10;
    assert!(trials.iter().all(|trial| trial.parameters == parameters));
    // It learns: ln 10 = 2.30 is the loss of who knows nothing.
    for repeat in repeats {
        let loss = repeat.loss.unwrap();
        assert!(loss < 2.0, "{loss} after {} steps", repeat.steps);
    }
}

/// A folder as cifar-10-binary.tar.gz holds it, with few images: the class is how bright an image is.
fn cifar(folder: &Path) {
    let place = folder.join("cifar-10-batches-bin");
    fs::create_dir(&place).unwrap();
    let names = (1..=5).map(|k| format!("data_batch_{k}.bin"));
    for name in names.chain(["test_batch.bin".to_owned()]) {
        let records: Vec<u8> = (0..100_usize)
            .flat_map(|image| {
                let label = (image * 7 % 10) as u8;
                let pixel = move |at: usize| label * 25 + (at % 5) as u8;
                std::iter::once(label).chain((0..3072).map(pixel))
            })
            .collect();
        fs::write(place.join(name), records).unwrap();
    }
}

fn cifar_source(folder: &Path) -> String {
    format!(
        "source = \"cifar10\"\npath = {:?}",
        folder.to_str().unwrap()
    )
}

#[test]
fn a_folder_of_cifar_10_trains() {
    let folder = tempfile::tempdir().unwrap();
    cifar(folder.path());
    let (trials, repeats) = passed(folder.path(), &scenario(&cifar_source(folder.path())));
    assert!(trials.iter().all(|trial| trial.data == "cifar10"));
    assert_eq!(
        trials[0].parameters,
        3072 * 16 + 16 + 16 * 10 + 10,
        "3 × 32 × 32 values an image"
    );
    assert!(repeats.iter().all(|row| row.loss.unwrap().is_finite()));
}

#[test]
fn a_damaged_file_fails_every_trial_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    cifar(folder.path());
    let damaged = folder.path().join("cifar-10-batches-bin/data_batch_3.bin");
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 100]).unwrap();
    let output = run(folder.path(), &scenario(&cifar_source(folder.path())));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(
        stdout.contains("data_batch_3.bin holds 307200 bytes, which is no whole number of records"),
        "{stdout}"
    );
}

#[test]
fn what_is_missing_is_said_with_how_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let said = |source: &str| {
        let output = run(folder.path(), &scenario(source));
        assert_eq!(output.status.code(), Some(4));
        assert!(!folder.path().join("out").exists(), "nothing was begun");
        String::from_utf8(output.stderr).unwrap()
    };
    let nowhere = format!("path = {:?}", folder.path().to_str().unwrap());
    let fashion = said(&format!("source = \"fashion-mnist\"\n{nowhere}"));
    let cifar10 = said("source = \"cifar10\"");
    for (said, wanted) in [
        (&fashion, "install Debian's package dataset-fashion-mnist"),
        (&fashion, "SYNCMARK_DATA=DIR"),
        (&fashion, folder.path().to_str().unwrap()),
        (&cifar10, "get the binary version (cifar-10-binary.tar.gz)"),
        (&cifar10, "SYNCMARK_DATA=DIR"),
    ] {
        assert!(said.contains(wanted), "{said}");
    }
}
