//! The command line of syncmark.
fn main() {}
