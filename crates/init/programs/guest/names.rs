//! DNS for programs in the guest: 127.0.0.11 answers through the host.
//!
//! Queries over UDP go to the host one by one, each over a vsock connection in the form of DNS over TCP (RFC 1035, 4.2.2);
//! connections over TCP are relayed as they are. An answer that is larger than the asker takes (512 bytes, or what its EDNS
//! option says, RFC 6891) is cut to its question with the bit that makes resolvers ask again over TCP.

use alloc::vec::Vec;

use crate::dns::{HEADER, largest_answer, truncated};
use crate::os::{self, Address, Fd, POLLIN, POLLOUT, PollFd};
use crate::protocol::DNS_PORT;
use crate::pump::Pump;

/// The context ID of the host.
const HOST: u32 = 2;
/// Queries under way; more are dropped, and asked again by who asked.
const MAX_QUERIES: usize = 256;
/// How long an answer may take, in nanoseconds.
const PATIENCE: u64 = 10_000_000_000;

/// The sockets on 127.0.0.11.
pub struct Names {
    datagrams: Fd,
    listener: Fd,
    queries: Vec<Query>,
}

struct Query {
    connection: Fd,
    from: Address,
    /// What the asker takes at most.
    limit: usize,
    /// Still to be sent.
    question: Vec<u8>,
    answer: Vec<u8>,
    deadline: u64,
}

impl Names {
    pub fn new() -> os::Result<Self> {
        let address = Address::inet([127, 0, 0, 11], 53);
        let datagrams = os::socket(os::AF_INET, os::SOCK_DGRAM | os::SOCK_NONBLOCK, 0)?;
        os::bind(&datagrams, &address)?;
        let listener = os::socket(os::AF_INET, os::SOCK_STREAM | os::SOCK_NONBLOCK, 0)?;
        os::bind(&listener, &address)?;
        os::listen(&listener)?;
        Ok(Self {
            datagrams,
            listener,
            queries: Vec::new(),
        })
    }

    pub fn wants(&self, fds: &mut Vec<PollFd>) {
        let on = |fd: &Fd, events| PollFd {
            fd: fd.raw(),
            events,
            happened: 0,
        };
        fds.push(on(&self.datagrams, POLLIN));
        fds.push(on(&self.listener, POLLIN));
        for query in &self.queries {
            let events = if query.question.is_empty() {
                POLLIN
            } else {
                POLLOUT
            };
            fds.push(on(&query.connection, events));
        }
    }

    /// Whether time passes for something here.
    pub fn is_busy(&self) -> bool {
        !self.queries.is_empty()
    }

    /// Does what the descriptors, in the order of [`wants`](Self::wants), are ready for; gives new relays.
    pub fn work(&mut self, ready: &[PollFd], scratch: &mut [u8]) -> Vec<Pump> {
        let happened = |index: usize| ready.get(index).is_some_and(|fd| fd.happened != 0);
        let now = os::uptime();
        let (datagrams, mut index) = (&self.datagrams, 1);
        self.queries.retain_mut(|query| {
            index += 1;
            let alive = !happened(index) || query.work(datagrams, scratch);
            alive && now < query.deadline
        });
        if happened(0) {
            while let Ok((count, from)) = os::receive_from(&self.datagrams, scratch) {
                let question = scratch.get(..count).unwrap_or_default();
                if question.len() >= HEADER
                    && self.queries.len() < MAX_QUERIES
                    && let Ok(connection) = to_host()
                {
                    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
                    framed.extend_from_slice(question);
                    self.queries.push(Query {
                        connection,
                        from,
                        limit: largest_answer(question),
                        question: framed,
                        answer: Vec::new(),
                        deadline: now + PATIENCE,
                    });
                }
            }
        }
        let mut relays = Vec::new();
        if happened(1)
            && let Ok((client, _)) = os::accept(&self.listener)
            && let Ok(host) = to_host()
            && let (Ok(client_too), Ok(host_too)) = (os::duplicate(&client), os::duplicate(&host))
        {
            relays.push(Pump::relay(client, host, true));
            relays.push(Pump::relay(host_too, client_too, false));
        }
        relays
    }
}

impl Query {
    /// False when it is answered or cannot be.
    fn work(&mut self, datagrams: &Fd, scratch: &mut [u8]) -> bool {
        if !self.question.is_empty() {
            return match os::write(&self.connection, &self.question) {
                Ok(count) => {
                    self.question.drain(..count.min(self.question.len()));
                    true
                }
                Err(os::Errno::AGAIN) => true,
                Err(_) => false,
            };
        }
        match os::read(&self.connection, scratch) {
            Ok(0) => return false,
            Ok(count) => self
                .answer
                .extend_from_slice(scratch.get(..count).unwrap_or_default()),
            Err(os::Errno::AGAIN) => return true,
            Err(_) => return false,
        }
        let Some((length, rest)) = self.answer.split_first_chunk() else {
            return true;
        };
        let Some(answer) = rest.get(..u16::from_be_bytes(*length) as usize) else {
            return true;
        };
        let _ = match answer.len() <= self.limit {
            true => os::send_to(datagrams, answer, &self.from),
            false => os::send_to(datagrams, &truncated(answer), &self.from),
        };
        false
    }
}

fn to_host() -> os::Result<Fd> {
    let socket = os::socket(os::AF_VSOCK, os::SOCK_STREAM | os::SOCK_NONBLOCK, 0)?;
    os::connect(&socket, &Address::vsock(HOST, DNS_PORT))?;
    Ok(socket)
}
