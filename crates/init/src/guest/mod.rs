//! A guest of a virtual machine: its PID 1 as bytes, what it is asked and answers, and the host's side of asking.
//!
//! [`GUEST`] is `/init` of a guest's initramfs. It loads the modules named in `/modules/order`, mounts what a system has,
//! and then serves [`protocol::Request`]s on vsock port [`protocol::PORT`]; with `root=` on the kernel's command line it
//! instead hands over to the system on that root. [`client`] is how the host speaks with it.

#[macro_use]
pub mod wire;
pub mod client;
#[cfg(test)]
mod dns;
pub mod protocol;

#[cfg(test)]
mod tests;

/// PID 1 of a guest.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest"));
