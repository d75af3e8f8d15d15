//! What is printed, and how.

pub mod build_progress;
pub mod format;
pub mod progress;
pub mod tabwriter;
pub mod template;
pub mod text;
pub mod units;

use std::io::{self, Write};

/// Writes to standard output at once.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to standard output.
pub fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Writes a line to standard error; there is nobody to tell when that fails.
pub fn warn(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
