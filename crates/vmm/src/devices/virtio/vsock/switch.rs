//! All connections of a guest: which packet belongs to which, and who sends next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vm_memory::ByteValued;

use super::super::{Buffers, Poller, Ready};
use super::connection::{Connection, Outcome, State};
use super::packet::{HEADER, HOST_CID, Header, OP_REQUEST, OP_RST, TYPE_STREAM};

/// Connections at a time: with a full window each, 64 MiB.
const CONNECTIONS: usize = 512;
/// Answers to packets that belong to no connection, at a time.
const STRAYS: usize = 256;
/// The host's own ports begin here: below are those a guest may call.
const EPHEMERAL: u32 = 1 << 30;

/// A guest's connection to a port of the host.
pub struct Accepted {
    /// The host's port.
    pub port: u32,
    /// The guest's.
    pub guest_port: u32,
    /// The host's end.
    pub stream: OwnedFd,
}

/// What is told of guests' connections: `false` refuses one.
pub type Accept = Box<dyn FnMut(Accepted) -> bool + Send>;

/// See the module.
pub struct Switch {
    guest_cid: u64,
    ports: HashSet<u32>,
    accept: Accept,
    connections: HashMap<u32, Connection>,
    by_ports: HashMap<(u32, u32), u32>,
    next_token: u32,
    next_port: u32,
    /// Those with something to send, each once: every one sends a packet and goes to the end of the line.
    line: VecDeque<u32>,
    strays: VecDeque<Header>,
    /// Those whose wishes of the poller may have changed.
    touched: Vec<u32>,
}

impl Switch {
    /// No connections; guests may call `ports`.
    pub fn new(guest_cid: u64, ports: HashSet<u32>, accept: Accept) -> Self {
        Self {
            guest_cid,
            ports,
            accept,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            next_token: 1,
            next_port: EPHEMERAL,
            line: VecDeque::new(),
            strays: VecDeque::new(),
            touched: Vec::new(),
        }
    }

    /// Makes `stream` a connection to a port of the guest.
    pub fn connect(&mut self, port: u32, stream: OwnedFd, outcome: Outcome, now: Instant) {
        if self.connections.len() >= CONNECTIONS {
            return outcome(Err(io::Error::other(format!(
                "the guest has {CONNECTIONS} connections already: close some"
            ))));
        }
        let kind = rustix::net::sockopt::socket_type(&stream);
        if kind != Ok(SocketType::STREAM) {
            return outcome(Err(io::Error::other(
                "a connection to a guest needs a stream socket: the descriptor is none",
            )));
        }
        // There are more ports than connections.
        while self.by_ports.contains_key(&(self.next_port, port)) {
            self.advance_port();
        }
        let mut connection =
            Connection::new(stream, (self.next_port, port), self.guest_cid, State::Requested);
        self.advance_port();
        connection.outcome = Some(outcome);
        connection.deadline = Some(now + super::CONNECT_TIMEOUT);
        self.add(connection);
    }

    fn advance_port(&mut self) {
        self.next_port = match self.next_port {
            // The last one means "any".
            0xffff_fffe => EPHEMERAL,
            port => port + 1,
        };
    }

    fn add(&mut self, connection: Connection) {
        while self.connections.contains_key(&self.next_token) || self.next_token == 0 {
            self.next_token = self.next_token.wrapping_add(1);
        }
        let token = self.next_token;
        self.next_token = self.next_token.wrapping_add(1);
        self.by_ports.insert(connection.ports, token);
        self.connections.insert(token, connection);
        self.after(token);
    }

    /// Everything that may follow from a change of a connection.
    fn after(&mut self, token: u32) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if matches!(connection.state, State::Draining | State::Done)
            && self.by_ports.get(&connection.ports) == Some(&token)
        {
            self.by_ports.remove(&connection.ports);
        }
        if connection.has_packets() && !connection.queued {
            connection.queued = true;
            self.line.push_back(token);
        }
        self.touched.push(token);
    }

    /// Whether there is room for what packets from the guest may have to be answered with. If not, they wait in their queue.
    pub fn can_receive(&self) -> bool {
        self.strays.len() < STRAYS
    }

    /// A packet from the guest.
    pub fn receive(&mut self, packet: &mut Buffers) {
        let Some(header) = packet.read_obj::<Header>() else {
            return;
        };
        if header.dst_cid != HOST_CID || header.src_cid != self.guest_cid {
            return;
        }
        let ports = (header.dst_port, header.src_port);
        let known = self.by_ports.get(&ports).copied();
        match known {
            _ if header.kind != TYPE_STREAM => self.refuse(&header),
            Some(token) => {
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.receive(&header, packet);
                }
                self.after(token);
            }
            None if header.op == OP_REQUEST && self.ports.contains(&{ header.dst_port }) => {
                self.called(&header);
            }
            None => self.refuse(&header),
        }
    }

    /// The guest calls a port of the host.
    fn called(&mut self, header: &Header) {
        if self.connections.len() >= CONNECTIONS {
            return self.refuse(header);
        }
        let Ok((ours, theirs)) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        ) else {
            return self.refuse(header);
        };
        let (port, guest_port) = (header.dst_port, header.src_port);
        let accepted = Accepted {
            port,
            guest_port,
            stream: theirs,
        };
        if !(self.accept)(accepted) {
            return self.refuse(header);
        }
        let mut connection = Connection::new(ours, (port, guest_port), self.guest_cid, State::Open);
        connection.credit_from(header);
        self.add(connection);
    }

    /// Answers what belongs to nothing.
    fn refuse(&mut self, header: &Header) {
        if header.op != OP_RST && self.strays.len() < STRAYS {
            self.strays.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: OP_RST,
                ..Header::default()
            });
        }
    }

    /// There are packets for the guest.
    pub fn has_packets(&self) -> bool {
        !self.strays.is_empty() || !self.line.is_empty()
    }

    /// Writes the next packet into a buffer of the guest. How many bytes; `None` when there is none after all: the buffer is as it was.
    pub fn transmit(&mut self, buffer: &mut Buffers, now: Instant) -> Option<usize> {
        let Some(mut head) = buffer.split_front(HEADER) else {
            // Nothing fits into it: it goes back empty, and the packet waits for a better one.
            return Some(0);
        };
        if let Some(stray) = self.strays.pop_front() {
            head.write(stray.as_slice());
            return Some(HEADER);
        }
        while let Some(token) = self.line.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.queued = false;
            let written = connection.transmit(&mut head, buffer, now);
            self.after(token);
            if let Some(payload) = written {
                return Some(HEADER + payload);
            }
        }
        None
    }

    /// A connection's stream is ready.
    pub fn ready(&mut self, token: u32, ready: Ready, now: Instant) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.ready(ready, now);
            self.after(token);
        }
    }

    /// Ends those that have waited too long. Whether others wait.
    pub fn expire(&mut self, now: Instant) -> bool {
        let late: Vec<u32> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            if let Some(connection) = self.connections.get_mut(&token) {
                if let Some(outcome) = connection.outcome.take() {
                    outcome(Err(io::ErrorKind::TimedOut.into()));
                }
                connection.reset();
            }
            self.after(token);
        }
        self.waits()
    }

    /// Somebody waits for the guest.
    pub fn waits(&self) -> bool {
        self.connections
            .values()
            .any(|connection| connection.deadline.is_some())
    }

    /// Tells the poller what is waited for now, and drops what is over.
    pub fn update(&mut self, poller: &Poller) -> io::Result<()> {
        while let Some(token) = self.touched.pop() {
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            let wanted = connection.interest();
            let stream = connection.stream();
            match (connection.registered, wanted) {
                (None, Some(ready)) => poller.add(stream, token.into(), ready)?,
                (Some(before), Some(ready)) if before != ready => {
                    poller.modify(stream, token.into(), ready)?;
                }
                (Some(_), None) => poller.remove(stream)?,
                _ => {}
            }
            connection.registered = wanted;
            if connection.state == State::Done {
                // Closing takes it out of the poller, but for duplicates elsewhere.
                self.connections.remove(&token);
            }
        }
        Ok(())
    }

    /// There is a new poller, which knows nothing.
    pub fn renew(&mut self) {
        for (token, connection) in &mut self.connections {
            connection.registered = None;
            self.touched.push(*token);
        }
    }

    /// Drops all connections: the guest's driver has gone.
    pub fn clear(&mut self) {
        for connection in self.connections.values_mut() {
            connection.reset();
        }
        self.connections.clear();
        self.by_ports.clear();
        self.line.clear();
        self.strays.clear();
        self.touched.clear();
    }
}
