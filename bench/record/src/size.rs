//! Sizes in bytes as people write them: `64KiB`, `25 MB`.
//!
//! Contract: one table of units, for scenarios, which write sizes, and reports, which find them again in records.

/// Binary units as memory and PyTorch have them, and decimal ones, largest first.
pub const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1000),
    ("B", 1),
];

/// Reads a whole number with a unit; `None` for anything else, and for 2^64 bytes or more.
pub fn parse(text: &str) -> Option<u64> {
    let (unit, bytes) = UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number = text.strip_suffix(unit)?.trim_end();
    let plain = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let count = number.parse::<u64>().ok().filter(|_| plain)?;
    count.checked_mul(*bytes)
}
