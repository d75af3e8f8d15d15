//! The shim: the one small process that stays with a container.
//!
//! The daemon (or the OCI command line) launches it with a [`ShimConfig`]; it makes the container, holds its standard
//! streams, writes its log, serves attach and exec over a socket of its own, reaps, and records the exit status on
//! disk before it says so to anyone. It is single-threaded and shares nothing with the daemon but that socket, so the
//! daemon may die, be upgraded and come back at any moment. See [`protocol`] for what is spoken.

pub mod launch;
pub mod protocol;

pub use launch::{LaunchedShim, Launcher, ShimFds, connect};
pub use protocol::{Attach, Event, ExecRequest, Exit, LogConfig, Overlay, Request, RootSource, ShimConfig, Status};
