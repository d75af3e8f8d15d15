//! Static PID 1 programs, embedded as bytes, the protocol of the one in virtual machines, and the image that is built into
//! Vessel.
//!
//! The programs in `programs/` use neither libc nor std; `build.rs` compiles each of them to a static
//! executable of a few kilobytes for x86-64 Linux. They depend on nothing in the root they run in.

extern crate alloc;

mod archive;
pub mod guest;

pub use archive::{HELLO_REFERENCE, hello_archive};

/// PID 1 for containers started with `--init`: `init [-g] [--] PROGRAM [ARGUMENT...]`.
///
/// It starts the program, forwards signals to it (with `-g` to its process group), reaps orphans, and
/// exits with the program's status or 128 + the signal that killed it. 127: no such program, 126: it
/// cannot be executed, 125: wrong use.
pub const INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// The program of the embedded image: a greeting that says what happened; status 0.
pub const HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// Exits with status 0 at once: the program of benchmarks and tests.
pub const TRUE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/true"));
