//! What can be wrong with a scenario, and how it is shown: what, where, and what to write instead.
//!
//! Contract: a [`Problem`] is structured until it is rendered, so that suggestions and lists of allowed names
//! are made in one place; with the texts that were read it becomes a [`ScenarioError`] with an excerpt.
//! Reference: miette's diagnostics.
use std::fmt;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

use crate::scenario::file::Kind;
use crate::scenario::tree::{Place, Segment};

/// Something wrong with a scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What.
    pub kind: ProblemKind,
    /// Where, once it is known.
    pub place: Option<Place>,
    /// The keys that lead to it.
    pub path: Vec<Segment>,
}

/// The kinds of problems.
#[derive(Clone, Debug, PartialEq)]
pub enum ProblemKind {
    /// The text is no TOML.
    Syntax(String),
    /// A key that means nothing here.
    UnknownKey {
        /// The key.
        key: String,
        /// The keys that mean something.
        allowed: Vec<String>,
    },
    /// A name that is none of the names that a key takes.
    UnknownName {
        /// The name.
        name: String,
        /// The names that it takes.
        allowed: Vec<String>,
    },
    /// A value of the wrong type.
    WrongType {
        /// What was written.
        found: String,
        /// What the key takes.
        expected: String,
    },
    /// A key that must be there.
    MissingKey(String),
    /// A value that has the right type and means nothing.
    Meaningless {
        /// Why it means nothing.
        message: String,
        /// What to write instead.
        help: String,
    },
    /// Anything else.
    Other(String),
}

impl Problem {
    /// A problem whose place is not known yet.
    pub fn new(kind: ProblemKind) -> Self {
        Self {
            kind,
            place: None,
            path: Vec::new(),
        }
    }

    /// The same problem at a place, unless a more exact one is known.
    pub fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert(place);
        self
    }

    /// The same problem, one level further down.
    pub fn below(mut self, segment: Segment) -> Self {
        self.path.insert(0, segment);
        self
    }

    fn message(&self) -> String {
        let path = dotted(&self.path);
        match &self.kind {
            ProblemKind::Syntax(message) => format!("this is no TOML: {message}"),
            ProblemKind::UnknownKey { key, .. } if path.is_empty() => {
                format!("unknown key `{key}`")
            }
            ProblemKind::UnknownKey { key, .. } => format!("unknown key `{key}` in `{path}`"),
            ProblemKind::UnknownName { name, .. } => format!("`{path}` cannot be \"{name}\""),
            ProblemKind::WrongType { found, expected } => {
                format!("`{path}` is {found}; it must be {expected}")
            }
            ProblemKind::MissingKey(key) if path.is_empty() => {
                format!("the key `{key}` is missing")
            }
            ProblemKind::MissingKey(key) => format!("the key `{key}` is missing in `{path}`"),
            ProblemKind::Meaningless { message, .. } | ProblemKind::Other(message) => {
                message.clone()
            }
        }
    }

    fn help(&self) -> Option<String> {
        match &self.kind {
            ProblemKind::UnknownKey { key, allowed } => Some(choices(key, allowed, "keys", '`')),
            ProblemKind::UnknownName { name, allowed } => {
                Some(choices(name, allowed, "values", '"'))
            }
            ProblemKind::Meaningless { help, .. } => Some(help.clone()),
            ProblemKind::MissingKey(key) if self.path.is_empty() && key == "data" => {
                Some("add a section [data] with a source and a batch_size".to_owned())
            }
            ProblemKind::MissingKey(key) if self.path.is_empty() && key == "kind" => {
                let names = Kind::NAMES.join(", ");
                Some(format!("add `kind = ...`; allowed values: {names}"))
            }
            ProblemKind::MissingKey(key) => Some(format!("add `{key} = ...`")),
            ProblemKind::Syntax(_) | ProblemKind::WrongType { .. } | ProblemKind::Other(_) => None,
        }
    }

    fn label(&self) -> &'static str {
        match self.kind {
            ProblemKind::Syntax(_) => "here",
            ProblemKind::UnknownKey { .. } => "unknown key",
            ProblemKind::UnknownName { .. } => "unknown value",
            ProblemKind::WrongType { .. } => "wrong type",
            ProblemKind::MissingKey(_) => "missing in here",
            ProblemKind::Meaningless { .. } | ProblemKind::Other(_) => "this",
        }
    }
}

/// `model.layers[3].conv2d` for a path.
pub fn dotted(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) if text.is_empty() => text.push_str(key),
            Segment::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// "did you mean x? allowed keys: x, y, z".
pub fn choices(written: &str, allowed: &[String], what: &str, quote: char) -> String {
    let list = allowed.join(", ");
    match closest(written, allowed) {
        Some(name) => format!("did you mean {quote}{name}{quote}? allowed {what}: {list}"),
        None => format!("allowed {what}: {list}"),
    }
}

/// The allowed name that a misspelt one is closest to: one slip for every three letters, and at least one.
pub fn closest<'a>(written: &str, allowed: &'a [String]) -> Option<&'a String> {
    let written = written.to_lowercase();
    // A dotted key of which only the last part was written.
    let last = format!(".{written}");
    if let Some(whole) = allowed.iter().find(|name| name.ends_with(&last)) {
        return Some(whole);
    }
    let score = |name: &'a String| {
        let lower = name.to_lowercase();
        // Among names that are equally many slips away, the one that begins alike is meant.
        let alike = strsim::jaro_winkler(&written, &lower);
        (strsim::damerau_levenshtein(&written, &lower), alike, name)
    };
    let slips = (written.chars().count() / 3).max(1);
    let near = allowed
        .iter()
        .map(score)
        .filter(|(distance, ..)| *distance <= slips);
    near.min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)))
        .map(|(.., name)| name)
}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(ProblemKind::Other(message.to_string()))
    }
    fn invalid_type(found: serde::de::Unexpected, expected: &dyn serde::de::Expected) -> Self {
        let (found, expected) = (
            found_in_words(found),
            expected_in_words(&expected.to_string()),
        );
        Self::new(ProblemKind::WrongType { found, expected })
    }
    fn invalid_value(found: serde::de::Unexpected, expected: &dyn serde::de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn invalid_length(length: usize, expected: &dyn serde::de::Expected) -> Self {
        let found = format!("a list of {length}");
        Self::new(ProblemKind::WrongType {
            found,
            expected: expected_in_words(&expected.to_string()),
        })
    }
    fn unknown_variant(name: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(ProblemKind::UnknownName {
            name: name.to_owned(),
            allowed: owned(allowed),
        })
    }
    fn unknown_field(key: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(ProblemKind::UnknownKey {
            key: key.to_owned(),
            allowed: owned(allowed),
        })
    }
    fn missing_field(key: &'static str) -> Self {
        Self::new(ProblemKind::MissingKey(key.to_owned()))
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn found_in_words(found: serde::de::Unexpected) -> String {
    use serde::de::Unexpected as U;
    match found {
        U::Bool(truth) => format!("{truth}"),
        U::Signed(number) => format!("{number}"),
        U::Unsigned(number) => format!("{number}"),
        U::Float(number) => format!("{number}"),
        U::Str(text) => format!("the string {text:?}"),
        U::Seq => "a list".to_owned(),
        U::Map | U::StructVariant => "a table".to_owned(),
        U::UnitVariant => "a name without settings".to_owned(),
        U::NewtypeVariant | U::TupleVariant => "a name with settings".to_owned(),
        other => other.to_string(),
    }
}

/// Rust's names of types, as serde gives them, in the words of a scenario.
fn expected_in_words(expected: &str) -> String {
    match expected {
        "usize" | "u64" | "u32" | "u16" | "u8" => "a whole number, zero or more".to_owned(),
        "f64" | "f32" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a table".to_owned(),
        "unit variant" => "a name without settings".to_owned(),
        "newtype variant" => "a name with settings: { name = { ... } }".to_owned(),
        other if other.starts_with("struct ") => "a table".to_owned(),
        other if other.starts_with("enum ") => "a name, or a table with one name".to_owned(),
        other => other.to_owned(),
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl std::error::Error for Problem {}

/// The texts that places point into.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<(String, String)>);

impl Sources {
    /// Adds a text under a name (a path, `--set`) and returns its index.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> usize {
        self.0.push((name.into(), text.into()));
        self.0.len() - 1
    }

    /// The problem with the excerpt that it points at.
    pub fn error(&self, problem: Problem) -> ScenarioError {
        let source = problem.place.and_then(|place| self.0.get(place.source));
        ScenarioError {
            message: problem.message(),
            help: problem.help(),
            label: problem.place.map(|place| {
                // An empty range (the end of a file, the root of a document) is shown as a caret.
                LabeledSpan::new(Some(problem.label().to_owned()), place.start, place.len)
            }),
            source: source.map(|(name, text)| NamedSource::new(name, text.clone())),
        }
    }
}

/// A problem with a scenario, ready to be shown.
#[derive(Debug)]
pub struct ScenarioError {
    message: String,
    help: Option<String>,
    label: Option<LabeledSpan>,
    source: Option<NamedSource<String>>,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ScenarioError {}

impl Diagnostic for ScenarioError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as &dyn SourceCode)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.label
            .clone()
            .map(|label| Box::new(std::iter::once(label)) as Box<dyn Iterator<Item = LabeledSpan>>)
    }
}
