//! The column names of a row type, taken from the type itself.
//!
//! Contract: the names are those that serde would write, in order, so a header can be written before there is
//! a row and compared with one on disk; no list is kept by hand. Only flat structs work.
//! Reference: <https://serde.rs/impl-deserializer.html>.
use serde::{
    Deserializer,
    de::{DeserializeOwned, Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};

/// Stops at the first struct and keeps its field names.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(Error::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The columns of `R`; empty if `R` is not a struct.
pub fn columns<R: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The visit always ends in an error: the names are the result.
    let _ = R::deserialize(FieldNames(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::LearningRow;

    #[test]
    fn names_come_in_declaration_order() {
        let names = columns::<LearningRow>();
        assert_eq!(names[0], "trial");
        assert_eq!(names[names.len() - 1], "dropout_error");
        assert_eq!(names.len(), 16);
    }

    #[test]
    fn what_is_no_struct_has_no_columns() {
        assert!(columns::<u32>().is_empty());
    }
}
