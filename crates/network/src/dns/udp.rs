//! The thread that serves all namespaces over UDP, and takes the connections over TCP.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::forward::Pending;
use super::message::Query;
use super::names::Names;
use super::sockets::Sockets;
use super::{Verdict, decide, failure, tcp};
use crate::error::{Error, Result};

/// Questions under way at a time, as far as descriptors go, of which each has one: of all namespaces, and which part of them of
/// one. At 10,000 questions per second it is enough for servers that take a tenth of a second.
const MOST: usize = 4096;
const PART_OF_ONE: usize = 4;
/// Which part of the process's descriptors it is at most.
const PART_OF_DESCRIPTORS: u64 = 4;
/// How many packets of one socket are read before it is the others' turn.
const TURN: usize = 32;
/// No question is as long; what is beyond is cut off by the kernel and not understood.
const MAX_PACKET: usize = 65_535;

/// What an event is about: its kind, and the number of its owner.
const WAKE: u64 = 0;
const UDP: u64 = 1 << 32;
const TCP: u64 = 2 << 32;
const UPSTREAM: u64 = 3 << 32;
const NUMBER: u64 = u32::MAX as u64;

enum Order {
    Add(Arc<str>, Sockets),
    Remove(Arc<str>),
}

/// The thread, from outside.
pub(super) struct Worker {
    orders: Option<Sender<Order>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(names: Arc<Names>) -> Result<Self> {
        let failed = |error| Error::io("set up the DNS server of containers", error);
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN).map_err(failed)?;
        let wake = Arc::new(wake);
        let (orders, inbox) = mpsc::channel();
        let work = Work {
            epoll,
            wake: Arc::clone(&wake),
            inbox,
            names,
            served: HashMap::new(),
            pending: HashMap::new(),
            deadlines: VecDeque::new(),
            number: 0,
            rotation: 0,
            connections: Arc::default(),
            most: most(rustix::process::getrlimit(rustix::process::Resource::Nofile).current),
            buffer: vec![0; MAX_PACKET],
        };
        let thread = thread::Builder::new()
            .name("dns".into())
            .stack_size(256 * 1024)
            .spawn(move || work.run())
            .map_err(|e| Error::io("start the thread of the DNS server of containers", e))?;
        Ok(Self {
            orders: Some(orders),
            wake,
            thread: Some(thread),
        })
    }

    pub(super) fn add(&self, key: &str, sockets: Sockets) {
        self.order(Order::Add(key.into(), sockets));
    }

    pub(super) fn remove(&self, key: &str) {
        self.order(Order::Remove(key.into()));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread lives as long as the sender; there is nobody to tell if it does not.
            let _ = orders.send(order);
        }
        self.ring();
    }

    fn ring(&self) {
        // It can only fail when it rings already.
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        self.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A namespace that is served.
struct Served {
    key: Arc<str>,
    udp: UdpSocket,
    tcp: TcpListener,
    under_way: usize,
    connections: Arc<AtomicUsize>,
}

struct Work {
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    inbox: Receiver<Order>,
    names: Arc<Names>,
    served: HashMap<u32, Served>,
    pending: HashMap<u32, Pending>,
    /// When they are to be given up, the first one first: all have the same patience. One that says something else than its
    /// question is of an earlier server, or of one that was answered.
    deadlines: VecDeque<(Instant, u32)>,
    /// The last number given to either; an event of a number that is gone is of no interest.
    number: u32,
    rotation: usize,
    connections: Arc<AtomicUsize>,
    /// Questions under way, of all namespaces.
    most: usize,
    buffer: Vec<u8>,
}

/// How many questions may be under way in a process that may have so many descriptors; none: any number.
fn most(descriptors: Option<u64>) -> usize {
    let part = descriptors.map_or(MOST, |all| {
        usize::try_from(all / PART_OF_DESCRIPTORS).unwrap_or(MOST)
    });
    part.clamp(PART_OF_ONE, MOST)
}

impl Work {
    fn run(mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(64);
        loop {
            events.clear();
            let patience = self.patience();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                patience.as_ref(),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the DNS server of containers cannot wait for questions and ends");
                    return;
                }
            }
            for event in &events {
                let data = event.data.u64();
                let number = (data & NUMBER) as u32;
                match data & !NUMBER {
                    WAKE => {
                        if !self.take_orders() {
                            return;
                        }
                    }
                    UDP => self.questions(number),
                    TCP => self.connect(number),
                    _ => self.answers(number),
                }
            }
            self.expire();
        }
    }

    /// Until the first question under way is to be given up; none: until something happens.
    fn patience(&mut self) -> Option<Timespec> {
        let (first, _) = self.first_deadline()?;
        let left = first.saturating_duration_since(Instant::now());
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    fn first_deadline(&mut self) -> Option<(Instant, u32)> {
        while let Some((deadline, place)) = self.deadlines.front().copied() {
            if self
                .pending
                .get(&place)
                .is_some_and(|pending| pending.deadline == deadline)
            {
                return Some((deadline, place));
            }
            self.deadlines.pop_front();
        }
        None
    }

    /// False: it is over.
    fn take_orders(&mut self) -> bool {
        let _ = rustix::io::read(&*self.wake, &mut [0_u8; 8]);
        loop {
            match self.inbox.try_recv() {
                Ok(Order::Add(key, sockets)) => self.add(key, sockets),
                Ok(Order::Remove(key)) => self.remove(&key),
                Err(mpsc::TryRecvError::Empty) => return true,
                Err(mpsc::TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn next_number(&mut self) -> u32 {
        loop {
            self.number = self.number.wrapping_add(1);
            if !self.served.contains_key(&self.number) && !self.pending.contains_key(&self.number) {
                return self.number;
            }
        }
    }

    fn watch(&self, socket: impl AsFd, data: u64) -> bool {
        let added = epoll::add(&self.epoll, socket, EventData::new_u64(data), EventFlags::IN);
        if let Err(error) = added {
            tracing::warn!(%error, "a socket of the DNS server of containers cannot be watched");
        }
        added.is_ok()
    }

    fn add(&mut self, key: Arc<str>, sockets: Sockets) {
        self.remove(&key);
        let number = self.next_number();
        let Sockets { udp, tcp } = sockets;
        if self.watch(&udp, UDP | u64::from(number)) && self.watch(&tcp, TCP | u64::from(number)) {
            let served = Served {
                key,
                udp,
                tcp,
                under_way: 0,
                connections: Arc::default(),
            };
            self.served.insert(number, served);
        }
    }

    /// Closed sockets leave the set by themselves.
    fn remove(&mut self, key: &str) {
        let gone: Vec<u32> = self
            .served
            .iter()
            .filter(|(_, served)| &*served.key == key)
            .map(|(number, _)| *number)
            .collect();
        for number in gone {
            self.served.remove(&number);
            self.pending.retain(|_, pending| pending.origin != number);
        }
    }

    fn questions(&mut self, number: u32) {
        for _ in 0..TURN {
            let Some(served) = self.served.get(&number) else {
                return;
            };
            // Nothing more, or an error of an answer that was sent before.
            let Ok((length, client)) = served.udp.recv_from(&mut self.buffer) else {
                return;
            };
            self.rotation = self.rotation.wrapping_add(1);
            let packet = &self.buffer[..length];
            match decide(&self.names, &served.key, packet, self.rotation, None) {
                Verdict::Drop => {}
                Verdict::Answer(answer) => send(&served.udp, &answer, client),
                Verdict::Forward(query) => self.forward(number, client, query, length),
            }
        }
    }

    fn forward(&mut self, number: u32, client: SocketAddr, query: Query, length: usize) {
        let Some(served) = self.served.get(&number) else {
            return;
        };
        let servers = self.names.servers(&served.key);
        let room = self.pending.len() < self.most && served.under_way < self.most / PART_OF_ONE;
        let packet = &self.buffer[..length];
        let begun = (room && !servers.is_empty())
            .then(|| Pending::begin(number, client, query.clone(), packet, servers))
            .flatten();
        let place = self.next_number();
        match begun {
            Some(pending) if self.watch(&pending.socket, UPSTREAM | u64::from(place)) => {
                self.deadlines.push_back((pending.deadline, place));
                self.pending.insert(place, pending);
                if let Some(served) = self.served.get_mut(&number) {
                    served.under_way += 1;
                }
            }
            _ => self.say(number, client, &failure(&query)),
        }
    }

    fn say(&self, number: u32, client: SocketAddr, answer: &[u8]) {
        if let Some(served) = self.served.get(&number) {
            send(&served.udp, answer, client);
        }
    }

    fn finish(&mut self, place: u32) -> Option<Pending> {
        let pending = self.pending.remove(&place)?;
        if let Some(served) = self.served.get_mut(&pending.origin) {
            served.under_way = served.under_way.saturating_sub(1);
        }
        Some(pending)
    }

    fn answers(&mut self, place: u32) {
        let Some(pending) = self.pending.get(&place) else {
            return;
        };
        match pending.socket.recv(&mut self.buffer) {
            Ok(length) => {
                // What is no answer to this question is not listened to.
                if let Some(answer) = pending.accept(&self.buffer[..length])
                    && let Some(pending) = self.finish(place)
                {
                    self.say(pending.origin, pending.client, &answer);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            // Nobody listens there.
            Err(_) => self.go_on(place),
        }
    }

    /// Asks the next server, or says that there is none.
    fn go_on(&mut self, place: u32) {
        let Some(pending) = self.pending.get_mut(&place) else {
            return;
        };
        let asked = pending.ask_next();
        let deadline = pending.deadline;
        let watched = asked
            && self
                .pending
                .get(&place)
                .is_some_and(|pending| self.watch(&pending.socket, UPSTREAM | u64::from(place)));
        if watched {
            self.deadlines.push_back((deadline, place));
        } else if let Some(pending) = self.finish(place) {
            self.say(pending.origin, pending.client, &failure(&pending.query));
        }
    }

    fn expire(&mut self) {
        if self.pending.is_empty() {
            self.deadlines.clear();
            return;
        }
        let now = Instant::now();
        while let Some((_, place)) = self.first_deadline().filter(|(deadline, _)| *deadline <= now) {
            self.deadlines.pop_front();
            self.go_on(place);
        }
    }

    fn connect(&mut self, number: u32) {
        let Some(served) = self.served.get(&number) else {
            return;
        };
        for _ in 0..TURN {
            let Ok((stream, _)) = served.tcp.accept() else {
                return;
            };
            tcp::serve(
                stream,
                &served.key,
                &self.names,
                &self.connections,
                &served.connections,
            );
        }
    }
}

/// Whoever asked too much at a time asks again.
fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client) {
        tracing::debug!(%client, %error, "an answer of the DNS server could not be sent");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_leave_descriptors_to_others() {
        assert_eq!(most(None), MOST);
        assert_eq!(most(Some(u64::MAX)), MOST);
        assert_eq!(most(Some(1024)), 256);
        assert_eq!(most(Some(0)) / PART_OF_ONE, 1);
    }
}
