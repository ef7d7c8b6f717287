//! The binary from outside: its exit statuses, help and output.
use std::process::Output;

use assert_cmd::Command;

fn syncmark(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("syncmark").expect("the binary is built");
    command
        .env("COLUMNS", "100")
        .args(arguments)
        .output()
        .expect("the binary starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("output is UTF-8")
}

#[test]
fn a_plan_goes_to_stdout_and_nothing_to_stderr() {
    let output = syncmark(&["plan", "quickstart"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("ddp-processes ×2"));
    assert_eq!(stderr(&output), "");
}

#[test]
fn instructions_that_are_none_are_refused_before_anything_runs() {
    let output = Command::new(env!("CARGO_BIN_EXE_syncmark"))
        .args(["run", "quickstart"])
        .env("SYNCMARK_CPU_INSTRUCTIONS", "sse9")
        .output()
        .expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "error: SYNCMARK_CPU_INSTRUCTIONS is \"sse9\": write one of avx512, avx2, portable, or unset it for the widest that this processor has\n"
    );
}

#[test]
fn several_scenarios_are_planned_in_their_order() {
    let text = stdout(&syncmark(&["plan", "quickstart", "dp-vs-ddp-smoke"]));
    let positions = [text.find("quickstart: "), text.find("dp-vs-ddp-smoke: ")];
    assert!(
        positions[0].is_some() && positions[0] < positions[1],
        "{positions:?}"
    );
}

#[test]
fn a_scenario_is_read_from_a_path() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("mine.toml");
    let text = "name = \"mine\"\nquestion = \"?\"\nkind = \"train\"\n[model]\npreset = \"mlp\"\n[data]\nsource = \"digits\"\nbatch_size = 4\n";
    std::fs::write(&path, text).expect("the scenario is written");
    let output = syncmark(&["plan", path.to_str().expect("the path is UTF-8")]);
    assert_eq!(
        (output.status.code(), stderr(&output)),
        (Some(0), String::new())
    );

    std::fs::write(&path, text.replace("mlp", "mpl")).expect("the scenario is written");
    let output = syncmark(&["plan", path.to_str().expect("the path is UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("did you mean \"mlp\"?"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("mine.toml:5:10"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_scenario_that_is_not_there_is_bad_usage() {
    let output = syncmark(&["plan", "quikstart"]);
    assert_eq!(
        (output.status.code(), stdout(&output)),
        (Some(2), String::new())
    );
    insta::assert_snapshot!(stderr(&output));
}

#[test]
fn a_folder_is_no_scenario() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let output = syncmark(&["plan", folder.path().to_str().expect("the path is UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("is a folder"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn bytes_that_are_no_text_are_no_scenario() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("bytes.toml");
    std::fs::write(&path, [0xff, 0xfe, 0x00]).expect("the file is written");
    let output = syncmark(&["plan", path.to_str().expect("the path is UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("no UTF-8 text"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn unknown_verbs_and_options_are_bad_usage() {
    for arguments in [
        &["plam", "quickstart"][..],
        &["plan"],
        &["plan", "quickstart", "--nothing"],
        &[],
    ] {
        assert_eq!(syncmark(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn an_override_that_is_wrong_is_shown_where_it_was_written() {
    let output = syncmark(&["plan", "quickstart", "--set", "measure.repeats=0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--set:1:17"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_schema_is_json_and_knows_the_keys() {
    let output = syncmark(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("the schema is JSON");
    for key in [
        "name", "question", "kind", "model", "data", "train", "parallel", "evaluate", "measure",
        "sweep", "variant",
    ] {
        assert!(schema["properties"][key].is_object(), "{key}");
    }
}

#[test]
fn completions_and_the_manual_name_the_verbs() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = syncmark(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("completions"), "{shell}");
    }
    let page = stdout(&syncmark(&["man"]));
    assert!(
        page.starts_with(".ie")
            && page.contains(".TH")
            && page.contains("RUN_DIR")
            && page.contains("ceilings"),
        "{page}"
    );
    assert_eq!(syncmark(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn ceilings_are_printed_for_people_and_for_machines() {
    let output = syncmark(&["ceilings", "--devices", "1", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let ceilings = json["ceilings"].as_array().expect("a list");
    let names: Vec<&str> = ceilings
        .iter()
        .map(|ceiling| ceiling["ceiling"].as_str().expect("a name"))
        .collect();
    assert_eq!(
        names[..7],
        [
            "multiply-add",
            "memory-read",
            "memory-read-write",
            "tcp-one-way",
            "tcp-both-ways",
            "tcp-round-trip",
            "shared-copy"
        ]
    );
    for ceiling in ceilings {
        let value = |key: &str| ceiling[key].as_f64().expect("a number");
        assert!(
            value("p25") > 0.0
                && value("p25") <= value("median")
                && value("median") <= value("p75"),
            "{ceiling}"
        );
        assert!(value("windows") >= 10.0, "{ceiling}");
    }
    assert_eq!(json["cores"].as_array().map(Vec::len), Some(1));
}

#[test]
fn more_ceilings_than_cores_are_bad_usage() {
    for devices in ["0", "100000"] {
        let output = syncmark(&["ceilings", "--devices", devices]);
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(2), String::new())
        );
        assert!(
            stderr(&output).starts_with("error: --devices is "),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn the_help_of_ceilings() {
    insta::assert_snapshot!(stdout(&syncmark(&["ceilings", "--help"])));
}

#[test]
fn the_help_of_plan() {
    insta::assert_snapshot!(stdout(&syncmark(&["plan", "--help"])));
}

#[test]
fn a_report_needs_a_run_folder() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let empty = folder.path().to_str().expect("the path is UTF-8");
    for path in [empty, "no/such/folder"] {
        let output = syncmark(&["report", path]);
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(2), String::new())
        );
        assert!(
            stderr(&output).starts_with("error: cannot render the report: "),
            "{}",
            stderr(&output)
        );
    }
}

#[test]
fn a_template_that_is_not_there_is_bad_usage() {
    let output = syncmark(&["report", ".", "--template", "no-such.typ"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("the template no-such.typ cannot be read"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        syncmark(&["report", ".", "--template", "x.typ", "--no-pdf"])
            .status
            .code(),
        Some(2)
    );
}
