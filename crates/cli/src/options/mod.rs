//! The options of `run` and `create`, and the request they make.
//!
//! Each group of options is a structure of its own, which reads its arguments and fills its part of the
//! request. What is accepted and refused is what Docker's command line accepts and refuses.

pub mod container;
pub mod csv;
pub mod devices;
pub mod env;
pub mod health;
pub mod mounts;
pub mod network;
pub mod ports;
pub mod process;
pub mod registries;
pub mod resources;
pub mod security;

pub use container::ContainerOptions;

/// Go's `strconv.ParseBool`.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}
