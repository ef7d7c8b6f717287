//! Dotted keys: which there are, and the `KEY=VALUE` arguments that name them.
//!
//! Contract: a sweep, a variant and `--set` can name exactly the keys of [`SETTINGS`]; a test compares the
//! list with the schema. `--set` can also name what belongs to the whole scenario.
use toml::de::{DeTable, DeValue};

use crate::scenario::problem::{Problem, ProblemKind};
use crate::scenario::tree::{Node, Place, Value};

/// Every key that a sweep or variant can set.
pub const SETTINGS: [&str; 98] = [
    "model.preset",
    "model.layers",
    "model.input",
    "model.classes",
    "model.norm",
    "model.norm_groups",
    "model.norm_padding",
    "model.norm_momentum",
    "model.norm_momentum_batch",
    "data.source",
    "data.path",
    "data.shape",
    "data.classes",
    "data.shortest",
    "data.hidden",
    "data.predict",
    "data.batch_size",
    "data.workers",
    "data.seed",
    "train.optimizer",
    "train.optimizer.sgd",
    "train.optimizer.sgd.learning_rate",
    "train.optimizer.sgd.momentum",
    "train.optimizer.sgd.weight_decay",
    "train.optimizer.sgd.nesterov",
    "train.optimizer.adamw",
    "train.optimizer.adamw.learning_rate",
    "train.optimizer.adamw.beta1",
    "train.optimizer.adamw.beta2",
    "train.optimizer.adamw.eps",
    "train.optimizer.adamw.weight_decay",
    "train.schedule",
    "train.schedule.warm-up",
    "train.schedule.warm-up.steps",
    "train.schedule.warm-up.start",
    "train.schedule.step",
    "train.schedule.step.every",
    "train.schedule.step.factor",
    "train.schedule.cosine",
    "train.schedule.cosine.steps",
    "train.schedule.cosine.warm_up_steps",
    "train.schedule.cosine.minimum",
    "train.accumulation",
    "train.precision",
    "train.cuda_graph",
    "train.cuda_batch_norm",
    "train.cuda_matmul",
    "train.learning_rate_batch",
    "train.seed",
    "train.epochs",
    "train.steps",
    "train.normalization_batch",
    "parallel.strategy",
    "parallel.launch",
    "parallel.devices",
    "parallel.threads",
    "parallel.scaling",
    "parallel.backend",
    "parallel.share_gpus",
    "parallel.dp_loss",
    "parallel.dp_transport",
    "parallel.transport",
    "parallel.bucket_cap",
    "parallel.first_bucket_cap",
    "parallel.overlap",
    "parallel.no_sync",
    "parallel.compression",
    "parallel.compression.powersgd",
    "parallel.compression.powersgd.rank",
    "parallel.compression.powersgd.start_step",
    "parallel.compression.powersgd.error_feedback",
    "parallel.compression.powersgd.warm_start",
    "parallel.broadcast_buffers",
    "parallel.device_ids",
    "parallel.output_device",
    "parallel.dim",
    "collectives.operations",
    "collectives.from",
    "collectives.to",
    "collectives.factor",
    "collectives.warmup",
    "collectives.iterations",
    "collectives.min_time",
    "evaluate.every",
    "evaluate.split",
    "evaluate.validation",
    "evaluate.batch_statistics",
    "evaluate.precise_batches",
    "evaluate.dropout_masks",
    "measure.steps",
    "measure.min_time",
    "measure.warmup_steps",
    "measure.warmup_time",
    "measure.timeout",
    "measure.trace_steps",
    "measure.unsynchronized",
    "measure.nvtx",
    "measure.smoke",
];

/// Keys of the whole run: they mean nothing for one trial of it.
pub const WHOLE_RUN: [&str; 3] = ["measure.repeats", "measure.seed", "measure.concurrent"];

/// What a trial can be chosen by besides its settings.
const TRIAL: [&str; 2] = ["variant", "id"];

/// Keys that only `--set` can change.
const HEAD: [&str; 5] = [
    "name",
    "question",
    "answer.factor",
    "answer.baseline",
    "answer.metric",
];

/// A value for a dotted key, with places.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// The key's parts.
    pub path: Vec<String>,
    /// Where the key was written.
    pub key_place: Place,
    /// The value.
    pub node: Node,
}

/// Checks the key of a sweep or variant and splits it.
///
/// # Errors
/// An unknown key, or one of [`WHOLE_RUN`].
pub fn setting(key: &str, place: Place) -> Result<Vec<String>, Problem> {
    let known = settings();
    if known.iter().any(|name| name == key) {
        return Ok(key.split('.').map(str::to_owned).collect());
    }
    let kind = if WHOLE_RUN.contains(&key) {
        ProblemKind::Meaningless {
            message: format!(
                "`{key}` belongs to the whole run and cannot differ between its trials"
            ),
            help: format!(
                "set it once, under [measure], or run the scenario again with --set {key}=..."
            ),
        }
    } else {
        ProblemKind::UnknownKey {
            key: key.to_owned(),
            allowed: known,
        }
    };
    Err(Problem::new(kind).at(place))
}

fn settings() -> Vec<String> {
    SETTINGS.iter().map(|key| (*key).to_owned()).collect()
}

/// Parses the argument of `--set`, which is text number `source`.
///
/// # Errors
/// No `=`, a key that cannot be set, or a value that is no TOML.
pub fn assignment(argument: &str, source: usize) -> Result<Assignment, Problem> {
    let whole = Place {
        source,
        start: 0,
        len: argument.len(),
    };
    let (key, value) = split(argument).ok_or_else(|| {
        Problem::new(ProblemKind::Meaningless {
            message: format!("`{argument}` is no KEY=VALUE"),
            help: "write a dotted key, `=` and a value, such as --set parallel.devices=4"
                .to_owned(),
        })
        .at(whole)
    })?;
    let key_place = Place {
        source,
        start: 0,
        len: key.len(),
    };
    let path = key_path(key);
    if path.as_ref().is_some_and(|path| path == &["kind"]) {
        return Err(Problem::new(ProblemKind::Meaningless {
            message: "`kind` says what the whole file is about and cannot be set".to_owned(),
            help: "write another scenario file, or name a shipped scenario of that kind; `syncmark run --profile` makes a layer-cost of any that trains"
                .to_owned(),
        })
        .at(key_place));
    }
    let path = path.filter(|path| can_be_set(path)).ok_or_else(|| {
        let mut allowed = settings();
        allowed.extend(WHOLE_RUN.iter().chain(&HEAD).map(|key| (*key).to_owned()));
        allowed.push("sweep.\"KEY\"".to_owned());
        Problem::new(ProblemKind::UnknownKey {
            key: key.trim().to_owned(),
            allowed,
        })
        .at(key_place)
    })?;
    Ok(Assignment {
        path,
        key_place,
        node: value_of(value, source, key.len() + 1)?,
    })
}

fn can_be_set(path: &[String]) -> bool {
    let dotted = path.join(".");
    match path {
        [first, key] if first == "sweep" => settings().contains(key),
        _ => {
            settings().contains(&dotted)
                || WHOLE_RUN.contains(&&*dotted)
                || HEAD.contains(&&*dotted)
        }
    }
}

/// Splits at the first `=` outside of quotes.
fn split(argument: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (index, letter) in argument.char_indices() {
        match (letter, quote) {
            ('=', None) => return Some((&argument[..index], &argument[index + 1..])),
            ('"' | '\'', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            _ => {}
        }
    }
    None
}

/// The parts of a dotted TOML key, quoted parts included.
fn key_path(key: &str) -> Option<Vec<String>> {
    if key.contains(['\n', '\r', '[', '#']) {
        return None;
    }
    let text = format!("{key} = 0");
    let document = DeTable::parse(&text).ok()?;
    let mut path = Vec::new();
    let mut table = document.get_ref();
    loop {
        let (key, value) = table.iter().next()?;
        path.push(key.get_ref().to_string());
        match value.get_ref() {
            DeValue::Table(below) => table = below,
            _ => return Some(path),
        }
    }
}

/// A TOML value; anything that is none and does not start like one is a string without its quotes.
fn value_of(text: &str, source: usize, offset: usize) -> Result<Node, Problem> {
    let offset = offset + text.len() - text.trim_start().len();
    let bare = text.trim();
    Node::parse_value(bare, source, offset).or_else(|problem| {
        if bare.is_empty() || bare.starts_with(['[', '{', '"', '\'']) {
            return Err(problem);
        }
        let place = Place {
            source,
            start: offset,
            len: bare.len(),
        };
        Ok(Node {
            place,
            value: Value::String(bare.to_owned()),
        })
    })
}

/// Splits the argument of `--filter` and checks that its key is one.
///
/// # Errors
/// No `=`, or an unknown key.
pub fn filter(argument: &str, source: usize) -> Result<(String, String), Problem> {
    let Some((key, value)) = argument.split_once('=') else {
        let place = Place {
            source,
            start: 0,
            len: argument.len(),
        };
        return Err(Problem::new(ProblemKind::Meaningless {
            message: format!("`{argument}` is no KEY=VALUE"),
            help: "write a dotted key, `=` and a value, such as --filter parallel.strategy=ddp"
                .to_owned(),
        })
        .at(place));
    };
    let (key, value) = (key.trim(), value.trim().trim_matches('"'));
    if !SETTINGS.contains(&key) && !TRIAL.contains(&key) {
        let allowed = SETTINGS
            .iter()
            .chain(&TRIAL)
            .map(|key| (*key).to_owned())
            .collect();
        let place = Place {
            source,
            start: 0,
            len: key.len(),
        };
        return Err(Problem::new(ProblemKind::UnknownKey {
            key: key.to_owned(),
            allowed,
        })
        .at(place));
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::file::Scenario;

    /// Walks the schema's properties and collects dotted keys below the sections that a trial is made of.
    fn collect(
        schema: &serde_json::Value,
        root: &serde_json::Value,
        prefix: &str,
        keys: &mut Vec<String>,
    ) {
        if let Some(target) = schema["$ref"].as_str() {
            let name = target.rsplit('/').next().unwrap_or_default();
            return collect(&root["$defs"][name], root, prefix, keys);
        }
        let alternatives = schema["oneOf"].as_array().into_iter().flatten();
        for alternative in alternatives.chain([schema]) {
            for (key, value) in alternative["properties"].as_object().into_iter().flatten() {
                let dotted = format!("{prefix}.{key}");
                keys.push(dotted.clone());
                collect(value, root, &dotted, keys);
            }
        }
    }

    #[test]
    fn the_keys_are_those_of_the_schema() {
        let root = serde_json::to_value(schemars::schema_for!(Scenario)).unwrap();
        let mut keys = Vec::new();
        for section in [
            "model",
            "data",
            "train",
            "parallel",
            "collectives",
            "evaluate",
            "measure",
        ] {
            collect(&root["properties"][section], &root, section, &mut keys);
        }
        let mut known: Vec<String> = settings();
        known.extend(WHOLE_RUN.iter().map(|key| (*key).to_owned()));
        keys.sort();
        known.sort();
        assert_eq!(keys, known);
    }

    #[test]
    fn a_bare_word_needs_no_quotes() {
        let assignment = assignment("parallel.strategy=dp", 0).unwrap();
        assert_eq!(assignment.path, ["parallel", "strategy"]);
        assert_eq!(assignment.node.value, Value::String("dp".to_owned()));
        assert_eq!(
            (assignment.node.place.start, assignment.node.place.len),
            (18, 2)
        );
    }

    #[test]
    fn values_are_toml_and_keep_their_place() {
        let assignment = assignment("sweep.\"parallel.devices\" = [1, 2]", 3).unwrap();
        assert_eq!(assignment.path, ["sweep", "parallel.devices"]);
        let Value::Array(elements) = &assignment.node.value else {
            panic!("no list: {assignment:?}")
        };
        assert_eq!(elements[1].value, Value::Integer(2));
        assert_eq!((elements[1].place.source, elements[1].place.start), (3, 31));
    }

    #[test]
    fn an_equals_sign_within_quotes_does_not_split() {
        assert_eq!(split("a.\"x=y\"=1"), Some(("a.\"x=y\"", "1")));
        assert_eq!(split("abc"), None);
    }

    #[test]
    fn keys_that_are_none_are_refused_without_a_panic() {
        for argument in [
            "=1",
            "a b=1",
            "sweep=1",
            "a.=1",
            "\u{1f600}=1",
            "name\nx=1",
            "[a]=1",
            "model.preset=",
        ] {
            assert!(assignment(argument, 0).is_err(), "{argument}");
        }
    }
}
