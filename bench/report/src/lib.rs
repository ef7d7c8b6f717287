//! syncmark: the report crate.
