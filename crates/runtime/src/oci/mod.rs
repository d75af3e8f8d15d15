//! The life cycle behind the OCI command line (runtime-spec, runtime.md): create, start, state, kill, delete, and what
//! runc has beyond it: run, exec, ps, pause, resume, update, list, features.
//!
//! A container is a directory `ROOT/ID` (on a tmpfs) with `state.json`, the configuration it was made from, and, until it is
//! started, the socket its first process waits on. Nothing runs between the commands.

mod create;
mod exec;
mod features;
mod lifecycle;
mod state;
mod template;

pub use create::{CreateOptions, RunOptions, Warn, create, run};
pub use exec::{ExecOptions, ExecOutcome, exec, read_process};
pub use features::features;
pub use state::{Container, State, Status, discard_unfinished, list};
pub use template::template;
