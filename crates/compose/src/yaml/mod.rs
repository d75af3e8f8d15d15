//! YAML as Compose has it: documents become trees whose nodes know where they stand.
//!
//! Scalars are resolved as Docker Compose resolves them: the core schema of YAML 1.2, with `0777` and `1_000` for
//! numbers, and dates as text. Merge keys (`<<`) and aliases are expanded, within bounds: a document has at most
//! [`MAX_TEXT`] bytes, and its tree, with everything expanded, [`MAX_NODES`] nodes in [`MAX_DEPTH`] levels. The tags
//! `!reset` and `!override` are kept with their nodes for the merge; other tags of the user's own are ignored.

mod emit;
mod node;
mod parse;
mod scalar;

pub use emit::emit;
pub use node::{At, Directive, Map, Node, Value};
pub use parse::documents;
pub(crate) use scalar::number;

/// The longest file that is read.
pub const MAX_TEXT: u64 = 8 << 20;
/// The most nodes of a tree, expanded aliases included.
pub const MAX_NODES: usize = 400_000;
/// The deepest nesting.
pub const MAX_DEPTH: usize = 64;

/// Something wrong at a place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub at: At,
    /// Where in the tree: `services.web`; empty for the whole.
    pub path: String,
    /// What.
    pub message: String,
}

impl Fault {
    /// A fault at a place.
    pub fn new(at: At, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            at,
            path: path.into(),
            message: message.into(),
        }
    }
}
