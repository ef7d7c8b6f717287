//! syncmark: the pdf crate.
