//! The control socket: how whoever started a machine's process speaks with it.
//!
//! A `SOCK_SEQPACKET` pair: one packet is one message, a JSON object of at most 64 KiB; descriptors travel beside it (`SCM_RIGHTS`), at most four. Requests go to the
//! machine's process and are answered, in any order, by `id`. Events come from it when they happen. When the socket's other end is closed
//! nobody is responsible for the machine any more, and it ends.
//!
//! # Messages
//! The first message comes from the machine: the event [`Ready`](Event::Ready), with the protocol's version. Requests:
//!
//! ```text
//! {"id":1,"request":"connect","port":1024}          + a stream socket
//! {"id":1,"ok":{}}                                  when the guest has accepted
//! {"id":1,"error":"the guest refuses a connection to its port 1024: nothing listens there, or too many wait"}
//! {"id":2,"request":"pause"}
//! {"id":2,"ok":{}}
//! {"id":3,"request":"balloon","bytes":268435456}
//! {"id":4,"request":"stats"}
//! {"id":4,"ok":{"stats":{...}}}
//! ```
//!
//! Events:
//!
//! ```text
//! {"event":"ready","version":1}
//! {"event":"accepted","port":1026,"guest_port":2348}  + a stream socket
//! {"event":"ended","how":"power_off"}
//! {"event":"failed","message":"..."}
//! ```
//!
//! An unknown request is answered with an error; unknown fields are passed over, unknown events are to be passed over. A version is only raised for
//! what older ends would misunderstand.

mod client;
pub(crate) mod packet;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, Incoming};
pub use protocol::{Answer, BalloonStats, Ended, Event, FromMachine, Reply, Request, Stats, VERSION};
pub use server::{Asked, Sender, Server};
