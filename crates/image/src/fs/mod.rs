//! Files below a root directory, by descriptor.
//!
//! Nothing here builds a path as a string and hands it to the kernel to walk: names from archives and paths
//! in containers are resolved by `openat2` with `RESOLVE_IN_ROOT`, so that neither `..` nor a symbolic link
//! nor a rename at the wrong moment leads out of the root.

mod changes;
mod copy;
mod extract;
mod pack;
mod root;
mod stack;
pub(crate) mod xattr;

pub use changes::{Change, ChangeKind, changes};
pub(crate) use changes::{is_whiteout, list};
pub(crate) use copy::copy_tree;
pub use extract::{ExtractOptions, Limits, Ownership, unpack_into};
pub(crate) use extract::{Extractor, LateMemory, Recorder, Stats, set_opaque};
pub(crate) use pack::entry;
pub use pack::{PackOptions, pack};
pub(crate) use root::{MAX_DEPTH, clean};
pub use stack::{Amount, FileKind, LayerChanges, LayerStack, StackFile, Waste};
