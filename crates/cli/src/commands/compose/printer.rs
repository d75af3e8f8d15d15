//! Lines of several containers, each behind its container's name, in a colour of its own.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Colours of names, in the order in which Docker Compose gives them.
const COLOURS: [&str; 12] = [
    "36", "33", "32", "35", "34", "36;1", "33;1", "32;1", "35;1", "34;1", "31;1", "37;1",
];

/// Writes lines.
pub struct Printer {
    colour: bool,
    prefix: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    width: usize,
    colours: HashMap<String, usize>,
    broken: bool,
}

impl Printer {
    /// With or without names and colours.
    pub fn new(colour: bool, prefix: bool) -> Self {
        Self {
            colour,
            prefix,
            state: Mutex::default(),
        }
    }

    /// Makes room for a name.
    pub fn register(&self, name: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.width = state.width.max(name.chars().count() + 1);
        let next = state.colours.len();
        state.colours.entry(name.to_owned()).or_insert(next);
    }

    /// Writes a line; `false` when nobody reads any more.
    pub fn line(&self, name: &str, line: &[u8]) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.broken {
            return false;
        }
        let mut out = Vec::with_capacity(line.len() + name.len() + 16);
        if self.prefix {
            let which = state.colours.get(name).copied().unwrap_or(0) % COLOURS.len();
            let width = state.width.max(name.chars().count() + 1);
            let prefix = format!("{name:width$} | ");
            if self.colour {
                out.extend_from_slice(format!("\x1b[{}m{prefix}\x1b[0m", COLOURS[which]).as_bytes());
            } else {
                out.extend_from_slice(prefix.as_bytes());
            }
        }
        out.extend_from_slice(line);
        out.push(b'\n');
        let mut stdout = std::io::stdout().lock();
        state.broken = stdout.write_all(&out).and_then(|()| stdout.flush()).is_err();
        !state.broken
    }
}

/// The name of a container in lines: without its project's.
pub fn short_name(project: &str, name: &str) -> String {
    let rest = name.strip_prefix(project).and_then(|rest| rest.strip_prefix('-'));
    rest.unwrap_or(name).to_owned()
}
