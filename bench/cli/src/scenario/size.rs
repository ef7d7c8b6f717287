//! Sizes in bytes, written with their unit: `"64KiB"`, `"25MiB"`.
use serde::{Deserialize, Serialize};
use syncmark_record::size;

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, schemars::JsonSchema)]
#[schemars(with = "String")]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many MiB.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// Reads a whole number with a unit; `None` for anything else, and for more than 2^64 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        size::parse(text).map(Self)
    }
}

impl std::fmt::Display for ByteSize {
    /// With the largest binary unit that leaves it whole.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let binary = size::UNITS.iter().filter(|(unit, _)| unit.ends_with("iB"));
        let fitting = binary
            .into_iter()
            .find(|(_, bytes)| self.0 > 0 && self.0.is_multiple_of(*bytes));
        match fitting {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a whole number of bytes with its unit, such as \"64KiB\" or \"25MiB\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::ByteSize;

    #[test]
    fn sizes_are_read_and_written_with_their_unit() {
        for (text, bytes) in [
            ("4B", 4),
            ("64KiB", 65_536),
            ("25 MiB", 26_214_400),
            ("1GiB", 1 << 30),
            ("2 TB", 2_000_000_000_000),
            ("3kB", 3000),
            ("0B", 0),
        ] {
            assert_eq!(ByteSize::parse(text), Some(ByteSize(bytes)), "{text}");
        }
        for text in [
            "",
            "64",
            "KiB",
            "1.5MiB",
            "-1B",
            "+1B",
            "99999999999GiB",
            "1 PB",
        ] {
            assert_eq!(ByteSize::parse(text), None, "{text}");
        }
        for size in ["4B", "64KiB", "25MiB", "1GiB", "4TiB", "1500B", "0B"] {
            assert_eq!(ByteSize::parse(size).unwrap().to_string(), size);
        }
    }
}
