//! File trees over a stream of packets: the protocol of BuildKit's file synchronization (fsutil's `Packet`).
//!
//! The sender walks a directory in order and sends a `STAT` for each entry, an empty one at the end. The receiver
//! compares it with the directory it has, asks with `REQ` for the contents of regular files that differ (by their
//! place in the sequence), gets them as `DATA` (an empty one ends a file), and says `FIN`, which the sender answers
//! with another. Either side breaks off with `ERR` and a sentence. What did not change is neither read nor sent: a
//! file is the same when type, permissions, owner, size and modification time are.
//!
//! Both sides here run on a thread that may block and talk to the connection through channels. Nothing trusts the
//! other side: names are checked one component at a time, everything is created relative to the descriptor of a
//! directory that the receiver itself walked to, and nothing follows a link.
//!
//! Not transferred: extended attributes, and sockets, which have no contents. Names must be UTF-8, since the packets
//! hold text.
#![warn(missing_docs)]

pub mod content;
mod error;
mod mode;
mod order;
mod receive;
mod remove;
mod send;
mod tree;

pub use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
pub use error::{Error, Result};
pub use receive::{ReceiveOptions, Received, receive};
pub use remove::remove_tree;
pub use send::{Everything, Filter, Owner, SendOptions, Sent, Verdict, send};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;

/// Deepest directory on either side: a level takes a descriptor.
const MAX_DEPTH: usize = 256;
/// Longest path (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Longest name (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// Entries of one tree at most.
const MAX_ENTRIES: u32 = 8_000_000;

fn packet(kind: PacketType) -> Packet {
    Packet {
        r#type: kind.into(),
        ..Packet::default()
    }
}

/// The packet that tells the other side why this one gives up.
pub fn failure(error: &Error) -> Packet {
    Packet {
        data: error.to_string().into_bytes(),
        ..packet(PacketType::PacketErr)
    }
}
