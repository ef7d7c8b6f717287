//! A length of time as people write it.
//!
//! Reference: the "friendly" format of the crate jiff.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A length of time, written with its unit: `"300ms"`, `"2s"`, `"5m"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct TimeSpan(pub Duration);

impl TimeSpan {
    /// A whole number of seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// In nanoseconds; saturates after 584 years.
    pub fn as_ns(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let signed = jiff::SignedDuration::try_from(self.0).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&format!("{signed:#}"))
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = TimeSpan;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(
                    "a duration with its unit, such as \"300ms\", \"2s\", \"5m\" or \"1h 30m\"",
                )
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TimeSpan, E> {
                let parsed = text.parse::<jiff::SignedDuration>().ok();
                parsed
                    .and_then(|signed| Duration::try_from(signed).ok())
                    .map(TimeSpan)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
