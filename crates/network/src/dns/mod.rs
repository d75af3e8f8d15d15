//! The names of containers: a DNS server at 127.0.0.11 inside each namespace that asks for it.
//!
//! Programs see it at port 53 over UDP and TCP. Its sockets are bound to other ports of that address, and one table in the
//! namespace translates: so port 53 of every address stays free for a name server that the container itself may be. One thread
//! serves all namespaces; TCP, which hardly anybody uses, gets short-lived threads, few at a time.
//!
//! - A, AAAA, PTR: of the containers on the networks of the asker, the addresses of one name in changing order. Other kinds of records
//!   of a known name do not exist. The time to live is five seconds.
//! - Everything else goes to the servers of the asker, one after the other, from the host's namespace, each question from a socket
//!   of its own with an ID of its own; answers are passed on as they are. Who has no servers gets SERVFAIL.
//! - At most 4096 questions are under way at a time, or as many as a quarter of the process's descriptors, and a quarter of that of
//!   one namespace; what is beyond is answered with SERVFAIL. Over TCP it is 64 connections, 8 of one namespace.
//!
//! The parser is our own: one kind of question is read, two kinds of records are written, the rest is passed on unread, which
//! leaves less to get wrong than a general library and its own dependencies.

mod forward;
mod message;
mod names;
mod sockets;
mod tcp;
mod udp;

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

pub use names::{Asker, Names};

use crate::error::Result;
use message::{Code, Query, Refusal, TYPE_A, TYPE_AAAA, TYPE_PTR};

/// Where programs find the server.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The server of all namespaces. It ends when this is dropped.
pub struct Server {
    names: Arc<Names>,
    worker: udp::Worker,
}

impl Server {
    /// Starts the thread that serves; it belongs to the network namespace of the caller.
    ///
    /// # Errors
    /// When there is no thread, or no descriptor, left.
    pub fn start(names: Arc<Names>) -> Result<Self> {
        let worker = udp::Worker::start(Arc::clone(&names))?;
        Ok(Self { names, worker })
    }

    /// The names that it knows.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Serves in a namespace, whose questions are those of the asker `key`. One that is served already is served anew.
    ///
    /// # Errors
    /// When the sockets or the rules cannot be made in the namespace.
    pub fn serve(&self, key: &str, netns: BorrowedFd<'_>) -> Result<()> {
        let sockets = sockets::open(netns)?;
        self.worker.add(key, sockets);
        Ok(())
    }

    /// Ends to serve. What is under way is dropped.
    pub fn stop(&self, key: &str) {
        self.worker.remove(key);
        self.names.remove_asker(key);
    }
}

/// What becomes of a packet.
enum Verdict {
    /// Nothing.
    Drop,
    /// This is the answer.
    Answer(Vec<u8>),
    /// Others know.
    Forward(Query),
}

/// Decides about a packet. `rotation` picks the address that comes first; `limit`: the largest answer, if not the question's own.
fn decide(names: &Names, key: &str, packet: &[u8], rotation: usize, limit: Option<usize>) -> Verdict {
    let query = match Query::parse(packet) {
        Ok(query) => query,
        Err(Refusal::Silent) => return Verdict::Drop,
        Err(Refusal::Say(answer)) => return Verdict::Answer(answer),
    };
    let limit = limit.unwrap_or_else(|| query.limit());
    if let Some(name) = query.name.as_deref().filter(|_| query.is_internet()) {
        if let Some(mut addresses) = names.resolve(key, name) {
            addresses.retain(|address| query.kind == if address.is_ipv4() { TYPE_A } else { TYPE_AAAA });
            if !addresses.is_empty() {
                let first = rotation % addresses.len();
                addresses.rotate_left(first);
            }
            return Verdict::Answer(query.addresses(&addresses, limit));
        }
        if query.kind == TYPE_PTR
            && let Some(name) = message::reverse(name).and_then(|address| names.reverse(key, address))
        {
            return Verdict::Answer(query.pointer(&name, limit));
        }
    }
    Verdict::Forward(query)
}

/// The answer to a question that nobody could be asked.
fn failure(query: &Query) -> Vec<u8> {
    query.plain(Code::ServerFailure)
}

/// Reads a packet as the server does and answers it: for tests with any bytes.
#[doc(hidden)]
pub fn answer_any(packet: &[u8]) -> Option<Vec<u8>> {
    let names = Names::default();
    names.set_asker(
        "a",
        Asker {
            networks: vec!["n".into()],
            ..Asker::default()
        },
    );
    names.join("n", "c", &[Ipv4Addr::new(10, 0, 0, 2).into()], &["a".into()]);
    match decide(&names, "a", packet, 0, None) {
        Verdict::Drop => None,
        Verdict::Answer(answer) => Some(answer),
        Verdict::Forward(query) => Some(failure(&query)),
    }
}
