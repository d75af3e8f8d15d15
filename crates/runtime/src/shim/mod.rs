//! The shim: the one small process that stays with a container.
//!
//! The daemon launches it with a [`ShimConfig`]; it makes the container, holds its standard streams, writes its log,
//! serves attach and exec over a socket of its own, reaps, and records the exit status on disk before it says so to
//! anyone. It is single-threaded and shares nothing with the daemon but that socket, so the daemon may die, be
//! upgraded and come back at any moment. See [`protocol`] for what is spoken.

mod connection;
pub mod launch;
mod log;
mod machine;
mod poller;
pub mod protocol;
mod remote;
mod run;
mod server;
mod session;
mod spare;

pub use launch::{LaunchedShim, Launcher, ShimFds, connect, hand, is_held};
pub use protocol::{
    Attach, Event, ExecRequest, Exit, GuestProcess, Held, Interface, LogAddress, LogConfig, LogFormat,
    LogTarget, MachineConfig, Overlay, Question, Reply, Request, RootSource, ShimConfig, Status, SyslogStyle,
};
pub use run::run;
pub use spare::{is_spare, run_spare};

pub(crate) use log::rfc3339_now;
