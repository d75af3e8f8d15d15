//! virtio-vsock (virtio 1.2, section 5.10): stream sockets between host and guest.
//!
//! There are no paths on the host. A connection to the guest is a descriptor handed to [`Connector::connect`]; a connection of the guest to one of the
//! host's ports that were allowed becomes a descriptor handed out. Both are sockets whose other end somebody else holds.
//!
//! A guest can cost no more than 512 connections with 128 KiB each, and what it sends is taken only as fast as it takes the answers.
//! Only streams; sequenced packets are refused with RST.

mod connection;
mod device;
mod packet;
mod switch;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use connection::Outcome;
pub use device::{Connector, VirtioVsock};
pub use switch::{Accept, Accepted};

/// How long a guest has to answer a call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a guest has to confirm the end of a connection.
const LINGER: Duration = Duration::from_secs(10);
