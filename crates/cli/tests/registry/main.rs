//! `vessel registry`: the real binary, killed and ended at any moment, and real clients.
//!
//! Each test has a directory and a port of its own. Clients that are not installed are said to be skipped.

#![allow(clippy::print_stderr, reason = "a test that is skipped says why")]

mod clients;
mod faults;
mod http;
mod server;
