//! `syncmark doctor`: what this machine can run, and for what it cannot, why.
//!
//! Contract: facts are gathered in one place and judged in another, so every judgement is tested without the
//! machine that causes it. The table goes to stdout; the status is 0, or 4 where nothing could run at all.
//! Reference: "Command line" in ARCHITECTURE.md.
pub mod facts;
pub mod findings;

use comfy_table::{Table, presets};

use crate::args::DoctorArgs;
use crate::cmd::print;
use crate::error::{Result, Status};
use crate::run::summary::{fit, terminal_width};
use facts::Facts;
use findings::{Finding, Level, examine};

/// Width of the table where stdout is no terminal.
const WIDTH: u16 = 120;

/// Prints the findings.
///
/// # Errors
/// When stdout cannot be written.
pub fn execute(args: DoctorArgs) -> Result<Status> {
    let findings = examine(&Facts::gather(&args.out));
    print(&render(&findings))?;
    Ok(status(&findings))
}

/// Nothing can run where a run could not even be stored.
fn status(findings: &[Finding]) -> Status {
    let stopped = findings
        .iter()
        .any(|finding| finding.level == Level::No && finding.needed_by_all);
    if stopped {
        Status::NothingRuns
    } else {
        Status::Passed
    }
}

/// The table, and a line that sums it up.
fn render(findings: &[Finding]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    fit(&mut table, terminal_width().or(Some(WIDTH)));
    table.set_header(["", "what", "found", "what it means"]);
    for finding in findings {
        table.add_row([
            finding.level.name(),
            finding.subject,
            &finding.found,
            &finding.meaning,
        ]);
    }
    let count = |level| {
        findings
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    };
    let [ok, warnings, no] = [Level::Ok, Level::Warning, Level::No].map(count);
    format!(
        "{table}\n{ok} ok, {warnings} to know before trusting a figure, {no} not possible here\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(level: Level, needed_by_all: bool) -> Finding {
        Finding {
            level,
            subject: "output folder",
            found: "reports".into(),
            meaning: "why".into(),
            needed_by_all,
        }
    }

    #[test]
    fn the_table_shows_every_finding_and_counts_them() {
        let text = render(&[
            finding(Level::Ok, true),
            finding(Level::Warning, false),
            finding(Level::No, false),
        ]);
        assert_eq!(text.matches("output folder").count(), 3, "{text}");
        assert!(
            text.contains(" ok ") && text.contains(" warning ") && text.contains(" no "),
            "{text}"
        );
        assert!(
            text.ends_with("1 ok, 1 to know before trusting a figure, 1 not possible here\n"),
            "{text}"
        );
    }

    #[test]
    fn only_what_every_run_needs_stops_all_runs() {
        assert_eq!(
            status(&[finding(Level::Ok, true), finding(Level::No, false)]),
            Status::Passed
        );
        assert_eq!(status(&[finding(Level::Warning, true)]), Status::Passed);
        assert_eq!(status(&[finding(Level::No, true)]), Status::NothingRuns);
    }

    #[test]
    fn this_machine_gets_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let findings = examine(&Facts::gather(folder.path()));
        assert_eq!(status(&findings), Status::Passed);
        assert!(findings.len() >= 10);
    }
}
