//! The texts that a container finds in `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
//!
//! Nothing is read or written here: the caller gives the host's text and gets the container's.

mod hosts;
mod resolv;

pub use hosts::{Hosts, hostname};
pub use resolv::{ResolvConf, UPSTREAM_RESOLV_CONF, for_endpoint};
