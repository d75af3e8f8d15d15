//! The `vessel` command.
fn main() {}
