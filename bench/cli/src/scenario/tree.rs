//! A TOML document as a tree in which every key and every value keeps its place.
//!
//! Contract: a tree can be put together from several texts (a scenario and the arguments of `--set`), values
//! can be moved within it (a sweep's element becomes the value of a key), and each still points at the text
//! that the user wrote. Entries keep the order of the file.
use toml::de::{DeTable, DeValue};

use crate::scenario::problem::{Problem, ProblemKind};

/// A range of bytes in one of the texts that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the text.
    pub source: usize,
    /// First byte.
    pub start: usize,
    /// Number of bytes.
    pub len: usize,
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it was written.
    pub place: Place,
    /// What was written.
    pub value: Value,
}

/// A TOML value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A string.
    String(String),
    /// A 64-bit whole number.
    Integer(i64),
    /// A number with a point or an exponent, `inf` or `nan`.
    Float(f64),
    /// true or false.
    Boolean(bool),
    /// A date or time, as text: no key takes one.
    Datetime(String),
    /// A list.
    Array(Vec<Node>),
    /// A table, in the order of the file.
    Table(Vec<Entry>),
}

/// A key of a table and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub key_place: Place,
    /// The value.
    pub node: Node,
}

/// One step from a node to one below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A key of a table.
    Key(String),
    /// An element of a list.
    Index(usize),
}

impl Node {
    /// Parses a whole document.
    ///
    /// # Errors
    /// TOML's syntax errors, duplicate keys and whole numbers beyond 64 bits, each with its place.
    pub fn parse(text: &str, source: usize) -> Result<Self, Problem> {
        let table = DeTable::parse(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            let place = Place {
                source,
                start: span.start,
                len: span.len(),
            };
            Problem::new(ProblemKind::Syntax(error.message().to_owned())).at(place)
        })?;
        let place = place_of(table.span(), source);
        Ok(Self {
            place,
            value: Value::Table(entries(table.get_ref(), source)?),
        })
    }

    /// Parses one value that stands at `offset` in a longer text.
    ///
    /// # Errors
    /// As [`Node::parse`].
    pub fn parse_value(text: &str, source: usize, offset: usize) -> Result<Self, Problem> {
        let span = |span: std::ops::Range<usize>| Place {
            source,
            start: span.start + offset,
            len: span.len(),
        };
        let value = DeValue::parse(text).map_err(|error| {
            let place = span(error.span().unwrap_or(0..text.len()));
            Problem::new(ProblemKind::Syntax(error.message().to_owned())).at(place)
        })?;
        let mut node = node(value.get_ref(), place_of(value.span(), source))?;
        node.shift(offset);
        Ok(node)
    }

    fn shift(&mut self, offset: usize) {
        self.place.start += offset;
        match &mut self.value {
            Value::Array(elements) => elements
                .iter_mut()
                .for_each(|element| element.shift(offset)),
            Value::Table(entries) => {
                for entry in entries {
                    entry.key_place.start += offset;
                    entry.node.shift(offset);
                }
            }
            _ => {}
        }
    }

    /// The entries of a table; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The entry of a table with this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The node one step below.
    pub fn child(&self, segment: &Segment) -> Option<&Node> {
        match (segment, &self.value) {
            (Segment::Key(key), _) => self.entry(key).map(|entry| &entry.node),
            (Segment::Index(index), Value::Array(elements)) => elements.get(*index),
            (Segment::Index(_), _) => None,
        }
    }

    /// The node at the end of a path, or the last one on the way that exists.
    pub fn nearest(&self, path: &[Segment]) -> &Node {
        let mut node = self;
        for segment in path {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// Takes the entry of a table with this key out of it.
    pub fn remove(&mut self, key: &str) -> Option<Entry> {
        let Value::Table(entries) = &mut self.value else {
            return None;
        };
        let index = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(index))
    }

    /// Sets the value at the end of a path of keys; tables on the way that are missing are made.
    ///
    /// # Errors
    /// When something on the way is no table.
    pub fn set(&mut self, path: &[String], key_place: Place, node: Node) -> Result<(), Problem> {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return Ok(());
        };
        let kind = self.kind();
        let Value::Table(entries) = &mut self.value else {
            let problem = ProblemKind::Other(format!("`{first}` cannot be set inside {kind}"));
            return Err(Problem::new(problem).at(key_place));
        };
        let index = match entries.iter().position(|entry| entry.key == *first) {
            Some(index) => index,
            None => {
                let table = Node {
                    place: key_place,
                    value: Value::Table(Vec::new()),
                };
                entries.push(Entry {
                    key: first.clone(),
                    key_place,
                    node: table,
                });
                entries.len() - 1
            }
        };
        entries[index].key_place = if rest.is_empty() {
            key_place
        } else {
            entries[index].key_place
        };
        entries[index].node.set(rest, key_place, node)
    }

    /// What kind of value it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self.value {
            Value::String(_) => "a string",
            Value::Integer(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Datetime(_) => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }

    /// The same value without places, for writing it out.
    pub fn to_toml(&self) -> toml::Value {
        match &self.value {
            Value::String(text) | Value::Datetime(text) => toml::Value::String(text.clone()),
            Value::Integer(number) => toml::Value::Integer(*number),
            Value::Float(number) => toml::Value::Float(*number),
            Value::Boolean(truth) => toml::Value::Boolean(*truth),
            Value::Array(elements) => {
                toml::Value::Array(elements.iter().map(Node::to_toml).collect())
            }
            Value::Table(entries) => toml::Value::Table(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.node.to_toml()))
                    .collect(),
            ),
        }
    }
}

/// A value as a user would write it, for labels and messages.
impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match &self.value {
            Value::String(text) => f.write_str(text),
            _ => write!(f, "{}", self.to_toml()),
        }
    }
}

fn place_of(span: std::ops::Range<usize>, source: usize) -> Place {
    Place {
        source,
        start: span.start,
        len: span.len(),
    }
}

fn entries(table: &DeTable, source: usize) -> Result<Vec<Entry>, Problem> {
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table.iter() {
        let node = node(value.get_ref(), place_of(value.span(), source))?;
        entries.push(Entry {
            key: key.get_ref().to_string(),
            key_place: place_of(key.span(), source),
            node,
        });
    }
    // The parser sorts keys by name; a sweep's order is the order in which it was written.
    entries.sort_by_key(|entry| entry.key_place.start);
    Ok(entries)
}

fn node(value: &DeValue, place: Place) -> Result<Node, Problem> {
    let value = match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                let problem =
                    ProblemKind::Other("this whole number does not fit into 64 bits".to_owned());
                return Err(Problem::new(problem).at(place));
            }
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => {
                return Err(
                    Problem::new(ProblemKind::Other("this is no number".to_owned())).at(place),
                );
            }
        },
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(moment) => Value::Datetime(moment.to_string()),
        DeValue::Array(elements) => {
            let nodes = elements
                .iter()
                .map(|e| node(e.get_ref(), place_of(e.span(), place.source)));
            Value::Array(nodes.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Value::Table(entries(table, place.source)?),
    };
    Ok(Node { place, value })
}
