//! Reads a tree into the types of a scenario.
//!
//! Contract: every error names the key that caused it and points at the text that the user wrote, also where
//! the value came from a sweep, a variant or `--set`. TOML's own deserializer cannot do that for a tree put
//! together from several texts, and it reports names as finished sentences rather than as lists.
//! Reference: serde's data model (serde.rs/impl-deserializer.html).
use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use crate::scenario::problem::{Problem, ProblemKind};
use crate::scenario::tree::{Entry, Node, Segment, Value};

/// Reads a node as a `T`.
///
/// # Errors
/// The first problem, with its place and path.
pub fn read<T: DeserializeOwned>(node: &Node) -> Result<T, Problem> {
    T::deserialize(Reader(node))
}

struct Reader<'a>(&'a Node);

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        let node = self.0;
        let result = match &node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(truth) => visitor.visit_bool(*truth),
            Value::Datetime(_) => Err(de::Error::invalid_type(
                Unexpected::Other("a date or time"),
                &visitor,
            )),
            Value::Array(elements) => visitor.visit_seq(Elements { elements, next: 0 }),
            Value::Table(entries) => visitor.visit_map(Entries { entries, next: 0 }),
        };
        result.map_err(|problem: Problem| problem.at(node.place))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let node = self.0;
        let choice = match &node.value {
            Value::String(name) => Choice {
                name,
                place: node.place,
                settings: None,
            },
            Value::Table(entries) if entries.len() == 1 => {
                let Entry {
                    key,
                    key_place,
                    node,
                } = &entries[0];
                Choice {
                    name: key,
                    place: *key_place,
                    settings: Some(node),
                }
            }
            _ => {
                let expected = format!("one of {}", names.join(", "));
                let (found, expected) = match &node.value {
                    Value::Table(entries) if entries.is_empty() => {
                        ("an empty table".to_owned(), expected)
                    }
                    Value::Table(entries) => {
                        let keys: Vec<&str> = entries.iter().map(|e| e.key.as_str()).collect();
                        let last = keys.last().copied().unwrap_or_default();
                        let found = format!("a table with {}", keys.join(" and "));
                        // As where --set adds a name beside that of the file.
                        (
                            found,
                            format!(
                                "{expected} alone: to replace it, set the whole, as {{ {last} = {{ ... }} }}"
                            ),
                        )
                    }
                    _ => (node.kind().to_owned(), expected),
                };
                return Err(Problem::new(ProblemKind::WrongType { found, expected }).at(node.place));
            }
        };
        visitor
            .visit_enum(choice)
            .map_err(|problem| problem.at(node.place))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Elements<'a> {
    elements: &'a [Node],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Problem> {
        let Some(node) = self.elements.get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        let value = seed.deserialize(Reader(node));
        value
            .map(Some)
            .map_err(|problem| problem.below(Segment::Index(self.next - 1)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.elements.len() - self.next)
    }
}

struct Entries<'a> {
    entries: &'a [Entry],
    next: usize,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Problem> {
        let Some(entry) = self.entries.get(self.next) else {
            return Ok(None);
        };
        let key = entry.key.as_str().into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|problem: Problem| problem.at(entry.key_place))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Problem> {
        let entry = &self.entries[self.next];
        self.next += 1;
        seed.deserialize(Reader(&entry.node))
            .map_err(|problem| problem.below(Segment::Key(entry.key.clone())))
    }
}

/// A bare name, or a table whose one key is the name.
struct Choice<'a> {
    name: &'a str,
    place: crate::scenario::tree::Place,
    settings: Option<&'a Node>,
}

impl<'a, 'de> de::EnumAccess<'de> for Choice<'a> {
    type Error = Problem;
    type Variant = Settings<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Settings<'a>), Problem> {
        let name = seed.deserialize(self.name.into_deserializer());
        let name = name.map_err(|problem: Problem| problem.at(self.place))?;
        Ok((
            name,
            Settings {
                name: self.name,
                node: self.settings,
            },
        ))
    }
}

struct Settings<'a> {
    name: &'a str,
    node: Option<&'a Node>,
}

impl<'a> Settings<'a> {
    fn node(&self) -> Result<&'a Node, Problem> {
        self.node
            .ok_or_else(|| needs_settings(self.name, "{ ... }"))
    }
}

fn needs_settings(name: &str, settings: &str) -> Problem {
    Problem::new(ProblemKind::Meaningless {
        message: format!("`{name}` needs settings"),
        help: format!("write {{ {name} = {settings} }}"),
    })
}

impl<'de> de::VariantAccess<'de> for Settings<'_> {
    type Error = Problem;

    fn unit_variant(self) -> Result<(), Problem> {
        match self.node {
            None => Ok(()),
            Some(node) => Err(Problem::new(ProblemKind::Meaningless {
                message: format!("`{}` takes no settings", self.name),
                help: format!("write \"{}\"", self.name),
            })
            .at(node.place)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Problem> {
        let Some(node) = self.node else {
            // Whether the settings all have defaults, so that none need be written.
            let none = std::iter::empty::<(&str, &str)>();
            let defaults = seed.deserialize(MapDeserializer::<_, Problem>::new(none));
            return Err(needs_settings(
                self.name,
                if defaults.is_ok() { "{}" } else { "{ ... }" },
            ));
        };
        let value = seed.deserialize(Reader(node));
        value.map_err(|problem| problem.below(Segment::Key(self.name.to_owned())))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Problem> {
        de::Deserializer::deserialize_any(Reader(self.node()?), visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        de::Deserializer::deserialize_any(Reader(self.node()?), visitor)
    }
}
