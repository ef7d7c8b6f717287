//! A trial's id: a hash of what it does, so that the same trial has the same id in every run.
//!
//! Contract: the id depends on the effective configuration alone, neither on the order of keys nor on how a
//! value came to be. The protocol's version is not part of it: the same work keeps its id.
use serde_json::Value;

use crate::plan::config::TrialConfig;

/// Hexadecimal digits of an id: with 10,000 trials, two differ with a probability of 1 in 5 million.
const DIGITS: usize = 12;

/// First 12 hexadecimal digits of the BLAKE3 hash of the configuration's canonical JSON.
pub fn id(config: &TrialConfig) -> String {
    // A configuration holds nothing that JSON cannot, so the fallback is never taken; it would be one id for all.
    let mut value = serde_json::to_value(config).unwrap_or_default();
    if let Value::Object(keys) = &mut value {
        keys.remove("protocol");
    }
    let mut text = String::new();
    canonical(&value, &mut text);
    blake3::hash(text.as_bytes()).to_hex()[..DIGITS].to_owned()
}

/// JSON without spaces and with sorted keys, whatever order the map keeps.
fn canonical(value: &Value, text: &mut String) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_by_key(|(key, _)| key.as_str());
            text.push('{');
            for (index, (key, value)) in keys.into_iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(value, text);
            }
            text.push('}');
        }
        Value::Array(elements) => {
            text.push('[');
            for (index, element) in elements.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { "," });
                canonical(element, text);
            }
            text.push(']');
        }
        other => text.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_sorts_keys_at_every_level() {
        let mut text = String::new();
        canonical(
            &serde_json::json!({"b": [{"d": 1.5, "c": "x\"y"}], "a": null}),
            &mut text,
        );
        assert_eq!(text, r#"{"a":null,"b":[{"c":"x\"y","d":1.5}]}"#);
    }
}
