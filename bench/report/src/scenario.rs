//! The few parts of `scenario.toml` that a report needs: name, question and `[answer]`.
//!
//! Contract: read as a generic table, because the meaning of a scenario is the command line's business and a report
//! must still render when a later version adds keys. Missing parts are empty, not errors.
use std::path::Path;

use crate::error::ReportError;

/// What the answer in words compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerSpec {
    /// Dotted key, such as `parallel.strategy`.
    pub factor: String,
    /// Value of the factor that the others are held against.
    pub baseline: String,
    /// Column of `trials.csv`, such as `samples_per_s`.
    pub metric: String,
}

/// The kind whose report is about norms.
pub const NORM_COST: &str = "norm-cost";

/// The report's view of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScenarioHead {
    /// `name`.
    pub name: String,
    /// `kind`.
    pub kind: String,
    /// `question`.
    pub question: String,
    /// `[answer]`.
    pub answer: Option<AnswerSpec>,
    /// The whole text, as run.
    pub text: String,
}

impl ScenarioHead {
    /// Reads the text of a `scenario.toml` that lies at `path`.
    ///
    /// # Errors
    /// [`ReportError::Scenario`] when the text is no TOML.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ReportError> {
        let table: toml::Table =
            text.parse()
                .map_err(|error: toml::de::Error| ReportError::Scenario {
                    path: path.into(),
                    message: error.to_string(),
                })?;
        let string = |key: &str| {
            table
                .get(key)
                .and_then(toml::Value::as_str)
                .unwrap_or_default()
                .to_string()
        };
        let answer = table
            .get("answer")
            .and_then(toml::Value::as_table)
            .and_then(|answer| {
                let value = |key: &str| match answer.get(key)? {
                    toml::Value::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                };
                Some(AnswerSpec {
                    factor: value("factor")?,
                    baseline: value("baseline")?,
                    metric: value("metric").unwrap_or_else(|| "samples_per_s".into()),
                })
            });
        Ok(Self {
            name: string("name"),
            kind: string("kind"),
            question: string("question"),
            answer,
            text: text.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_question_and_answer_are_read() {
        let text = "name = \"n\"\nquestion = \"q?\"\nlater = 1\n[answer]\nfactor = \"parallel.devices\"\nbaseline = 2\n";
        let head = ScenarioHead::parse(Path::new("scenario.toml"), text).unwrap();
        let answer = head.answer.unwrap();
        assert_eq!((head.name.as_str(), head.question.as_str()), ("n", "q?"));
        assert_eq!(
            (answer.baseline.as_str(), answer.metric.as_str()),
            ("2", "samples_per_s")
        );
    }

    #[test]
    fn broken_toml_names_the_file_and_line() {
        let error = ScenarioHead::parse(Path::new("run/scenario.toml"), "name = \n")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("run/scenario.toml: ") && error.contains("line 1"),
            "{error}"
        );
    }
}
