//! A guest's driver, right and wrong, against the device.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::ByteValued;

use super::super::testing::{Buffer, FakeDriver, Sent};
use super::connection::WINDOW;
use super::packet::*;
use super::*;

const CID: u64 = 42;
const PATIENCE: Duration = Duration::from_secs(10);
const RX_BUFFER: usize = 4096;

/// The guest: its driver, what it was told, what it may be told.
struct Guest {
    driver: FakeDriver,
    connector: Connector,
    accepted: Receiver<Accepted>,
    offered: HashMap<u16, Sent>,
    inbox: VecDeque<(Header, Vec<u8>)>,
    window: u32,
    forwarded: u32,
}

impl Guest {
    fn new(ports: &[u32], buffers: usize) -> Self {
        let (sender, accepted) = channel();
        let device = VirtioVsock::new(
            CID as u32,
            ports.iter().copied().collect::<HashSet<_>>(),
            Box::new(move |accepted| sender.send(accepted).is_ok()),
        )
        .unwrap();
        let connector = device.connector();
        let mut guest = Self {
            driver: FakeDriver::started(Box::new(device)),
            connector,
            accepted,
            offered: HashMap::new(),
            inbox: VecDeque::new(),
            window: 1 << 16,
            forwarded: 0,
        };
        for _ in 0..buffers {
            guest.offer();
        }
        guest
    }

    fn offer(&mut self) {
        let sent = self.driver.offer(0, &[Buffer::In(RX_BUFFER)]);
        self.offered.insert(sent.head, sent);
        self.driver.ring(0);
    }

    fn header(&self, ports: (u32, u32), op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: ports.1,
            dst_port: ports.0,
            kind: TYPE_STREAM,
            op,
            buf_alloc: self.window,
            fwd_cnt: self.forwarded,
            ..Default::default()
        }
    }

    fn send_as(&mut self, header: Header, payload: &[u8]) {
        let parts = [Buffer::Out(header.as_slice()), Buffer::Out(payload)];
        let parts = if payload.is_empty() {
            &parts[..1]
        } else {
            &parts[..]
        };
        self.driver.request(1, parts);
    }

    fn send(&mut self, ports: (u32, u32), op: u16) {
        self.send_as(self.header(ports, op), &[]);
    }

    fn write(&mut self, ports: (u32, u32), payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..self.header(ports, OP_RW)
        };
        self.send_as(header, payload);
    }

    fn shutdown(&mut self, ports: (u32, u32), flags: u32) {
        let header = Header {
            flags,
            ..self.header(ports, OP_SHUTDOWN)
        };
        self.send_as(header, &[]);
    }

    /// What has come by now.
    fn collect(&mut self) {
        while let Some((head, written)) = self.driver.poll(0) {
            let sent = self.offered.remove(&head).unwrap();
            let bytes = self.driver.inputs(&sent);
            let mut header = Header::default();
            header.as_mut_slice().copy_from_slice(&bytes[..HEADER]);
            let length = header.len as usize;
            assert_eq!(written as usize, HEADER + length);
            assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
            self.inbox
                .push_back((header, bytes[HEADER..HEADER + length].to_vec()));
            self.offer();
        }
    }

    /// The next packet that is not only about credit.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            self.collect();
            while let Some((header, payload)) = self.inbox.pop_front() {
                if header.op != OP_CREDIT_UPDATE {
                    return (header, payload);
                }
            }
            assert!(std::time::Instant::now() < end, "no packet has come");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn expect(&mut self, op: u16, ports: (u32, u32)) -> (Header, Vec<u8>) {
        let (header, payload) = self.receive();
        let (got, source, target) = (header.op, header.src_port, header.dst_port);
        assert_eq!((got, (source, target)), (op, ports));
        (header, payload)
    }

    fn silence(&mut self) {
        std::thread::sleep(Duration::from_millis(30));
        self.collect();
        self.inbox.retain(|(header, _)| header.op != OP_CREDIT_UPDATE);
        assert!(self.inbox.is_empty(), "{:?}", self.inbox);
    }

    /// A connection of the guest to `port`.
    fn call(&mut self, port: u32, from: u32) -> UnixStream {
        self.send((port, from), OP_REQUEST);
        self.expect(OP_RESPONSE, (port, from));
        let accepted = self.accepted.recv_timeout(PATIENCE).unwrap();
        assert_eq!((accepted.port, accepted.guest_port), (port, from));
        let stream = UnixStream::from(accepted.stream);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection of the host to `port`; the guest accepts.
    fn called(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let (stream, outcome) = self.connect(port);
        let (header, _) = self.receive();
        let ports = (header.src_port, header.dst_port);
        assert_eq!((header.op, ports.1), (OP_REQUEST, port));
        self.send(ports, OP_RESPONSE);
        outcome.recv_timeout(PATIENCE).unwrap().unwrap();
        (stream, ports)
    }

    fn connect(&self, port: u32) -> (UnixStream, Receiver<std::io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let (sender, outcome) = channel();
        let tell = Box::new(move |result| drop(sender.send(result)));
        self.connector.connect(port, theirs.into(), tell);
        (ours, outcome)
    }
}

#[test]
fn a_guest_calls_and_is_called() {
    let mut guest = Guest::new(&[1024], 8);
    assert_eq!(guest.driver.config::<8>(0), CID.to_le_bytes());
    let mut host = guest.call(1024, 5000);
    guest.write((1024, 5000), b"question");
    let mut bytes = [0; 8];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"question");
    host.write_all(b"answer").unwrap();
    let (header, payload) = guest.expect(OP_RW, (1024, 5000));
    assert_eq!(payload, b"answer");
    let (window, forwarded) = (header.buf_alloc, header.fwd_cnt);
    assert_eq!((window, forwarded), (WINDOW, 8));

    let (mut host, ports) = guest.called(77);
    host.write_all(b"x").unwrap();
    assert_eq!(guest.expect(OP_RW, ports).1, b"x");
}

#[test]
fn a_guest_refuses_or_knows_nobody() {
    let mut guest = Guest::new(&[1024], 8);
    let (mut host, outcome) = guest.connect(9);
    let (header, _) = guest.receive();
    guest.send((header.src_port, 9), OP_RST);
    let error = outcome.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(host.read(&mut [0]).unwrap(), 0, "the end is told");
    // A port that was not allowed, a kind that is not offered, a connection that is not there.
    guest.send((1025, 1), OP_REQUEST);
    guest.expect(OP_RST, (1025, 1));
    let packets = Header {
        kind: 2,
        ..guest.header((1024, 2), OP_REQUEST)
    };
    guest.send_as(packets, &[]);
    let (header, _) = guest.expect(OP_RST, (1024, 2));
    assert_eq!({ header.kind }, 2);
    guest.write((1024, 3), b"lost");
    guest.expect(OP_RST, (1024, 3));
    // What is not for the host, or not from this guest, is nothing; and RST is not answered.
    for header in [
        Header {
            dst_cid: 3,
            ..guest.header((1024, 4), OP_REQUEST)
        },
        Header {
            src_cid: 7,
            ..guest.header((1024, 4), OP_REQUEST)
        },
        guest.header((1024, 4), OP_RST),
    ] {
        guest.send_as(header, &[]);
    }
    guest.silence();
    assert!(guest.accepted.try_recv().is_err());
    // Not a socket.
    let (sender, outcome) = channel();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    guest
        .connector
        .connect(1, file, Box::new(move |result| drop(sender.send(result))));
    assert!(outcome.recv_timeout(PATIENCE).unwrap().is_err());
}

#[test]
fn each_half_ends_on_its_own() {
    let mut guest = Guest::new(&[1024], 8);
    let ports = (1024, 5000);
    let mut host = guest.call(1024, 5000);
    // The host has said all.
    host.write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(OP_RW, ports).1, b"last");
    let (header, _) = guest.expect(OP_SHUTDOWN, ports);
    assert_eq!({ header.flags }, SHUTDOWN_SEND);
    // The guest goes on, then has said all, too.
    guest.write(ports, b"more");
    guest.shutdown(ports, SHUTDOWN_SEND);
    let mut all = String::new();
    host.read_to_string(&mut all).unwrap();
    assert_eq!(all, "more");
    drop(host);
    let (header, _) = guest.expect(OP_SHUTDOWN, ports);
    assert_eq!({ header.flags }, SHUTDOWN_BOTH);
    guest.send(ports, OP_RST);
    guest.silence();
    // It is over: the ports are free.
    let mut host = guest.call(1024, 5000);
    guest.write(ports, b"rest");
    guest.shutdown(ports, SHUTDOWN_BOTH);
    guest.expect(OP_RST, ports);
    let mut all = String::new();
    host.read_to_string(&mut all).unwrap();
    assert_eq!(all, "rest");
}

#[test]
fn a_closed_reader_is_told() {
    let mut guest = Guest::new(&[1024], 8);
    let ports = (1024, 5000);
    drop(guest.call(1024, 5000));
    let (header, _) = guest.expect(OP_SHUTDOWN, ports);
    assert_eq!({ header.flags }, SHUTDOWN_BOTH);
    guest.write(ports, b"on its way");
    guest.send(ports, OP_RST);
    guest.silence();
}

#[test]
fn what_was_sent_is_delivered_though_the_guest_is_gone() {
    let mut guest = Guest::new(&[1024], 8);
    let ports = (1024, 5000);
    let mut host = guest.call(1024, 5000);
    let chunk = vec![7; 32 << 10];
    // A socket holds more than a window: fill both.
    let mut sent = 0;
    for _ in 0..64 {
        guest.write(ports, &chunk);
        sent += chunk.len();
        guest.collect();
        let reset = guest.inbox.iter().any(|(header, _)| header.op == OP_RST);
        assert!(!reset);
        let told = guest.inbox.back().map_or(0, |(header, _)| header.fwd_cnt) as usize;
        if sent - told > WINDOW as usize - chunk.len() {
            break;
        }
    }
    guest.inbox.clear();
    guest.shutdown(ports, SHUTDOWN_BOTH);
    guest.send(ports, OP_RST);
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), sent);
}

#[test]
fn credit_is_kept_to() {
    let mut guest = Guest::new(&[1024], 16);
    guest.window = 10_000;
    let ports = (1024, 5000);
    let mut host = guest.call(1024, 5000);
    host.write_all(&vec![1; 50_000]).unwrap();
    let mut got = 0;
    let mut asked = 0;
    while got < 50_000 {
        let (header, payload) = guest.receive();
        match header.op {
            OP_RW => {
                got += payload.len();
                assert!(
                    got as u32 - guest.forwarded <= 10_000,
                    "more than there is room for"
                );
            }
            OP_CREDIT_REQUEST => {
                asked += 1;
                assert_eq!(
                    got as u32 - guest.forwarded,
                    10_000,
                    "asks when there is none left"
                );
                guest.silence();
                guest.forwarded = got as u32;
                guest.send(ports, OP_CREDIT_UPDATE);
            }
            other => panic!("{other}"),
        }
    }
    assert!(asked >= 4);
    // The other way: who sends more than it may is thrown out.
    let mut sent = 0;
    let reset = (0..200).any(|_| {
        guest.write(ports, &[2; 16 << 10]);
        sent += 16 << 10;
        guest.collect();
        guest.inbox.iter().any(|(header, _)| header.op == OP_RST)
    });
    assert!(reset, "{sent} bytes were taken");
}

#[test]
fn connections_take_turns() {
    let mut guest = Guest::new(&[1024], 4);
    let mut greedy = guest.call(1024, 1);
    let mut modest = guest.call(1024, 2);
    greedy.write_all(&vec![1; 60_000]).unwrap();
    modest.write_all(b"me too").unwrap();
    let mut before = 0;
    loop {
        let (header, _) = guest.receive();
        if header.dst_port == 2 {
            break;
        }
        before += 1;
    }
    // The few buffers that were on offer may have gone to the first; then it is the other's turn.
    assert!(before <= 8, "{before} packets of the other first");
}

#[test]
fn there_is_an_end_to_connections_and_to_answers() {
    let mut guest = Guest::new(&[1024], 8);
    let mut streams = Vec::new();
    for port in 0..512 {
        streams.push(guest.call(1024, port + 1));
    }
    guest.send((1024, 9999), OP_REQUEST);
    guest.expect(OP_RST, (1024, 9999));
    drop(streams);
    // A guest that takes no answers: its packets wait in its own queue, not here.
    let mut guest = Guest::new(&[1024], 0);
    let header = guest.header((5, 5), OP_RW);
    let mut taken = 0;
    for _ in 0..250 {
        guest.driver.send(1, &[Buffer::Out(header.as_slice())]);
    }
    std::thread::sleep(Duration::from_millis(50));
    while guest.driver.poll(1).is_some() {
        taken += 1;
    }
    for _ in 0..100 {
        guest.driver.send(1, &[Buffer::Out(header.as_slice())]);
    }
    std::thread::sleep(Duration::from_millis(50));
    while guest.driver.poll(1).is_some() {
        taken += 1;
    }
    assert_eq!(taken, 256);
    // With buffers for answers it goes on.
    for _ in 0..100 {
        guest.offer();
    }

    let mut answers = 0;
    let end = std::time::Instant::now() + PATIENCE;
    while answers < 350 && std::time::Instant::now() < end {
        guest.collect();
        answers += guest
            .inbox
            .drain(..)
            .filter(|(header, _)| header.op == OP_RST)
            .count();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(answers, 350);
}

#[test]
fn a_guest_without_a_driver_is_waited_for() {
    let device = VirtioVsock::new(CID as u32, HashSet::new(), Box::new(|_| false)).unwrap();
    let connector = device.connector();
    let (sender, outcome) = channel();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    connector.connect(
        5,
        theirs.into(),
        Box::new(move |result| drop(sender.send(result))),
    );
    assert!(outcome.try_recv().is_err());
    let mut driver = FakeDriver::started(Box::new(device));
    let sent = driver.send(0, &[Buffer::In(RX_BUFFER)]);
    driver.wait(0);
    let bytes = driver.inputs(&sent);
    assert_eq!(u16::from_le_bytes([bytes[30], bytes[31]]), OP_REQUEST);
    // It goes: so does the call.
    driver.set_status(0);
    assert!(outcome.recv_timeout(PATIENCE).unwrap().is_err());
    for reserved in [0, 1, 2, u32::MAX] {
        assert!(VirtioVsock::new(reserved, HashSet::new(), Box::new(|_| false)).is_err());
    }
}

#[derive(Clone, Debug)]
struct Wild {
    header: [u64; 4],
    op: u16,
    port: u32,
    len: u32,
    flags: u32,
    payload: usize,
}

fn wild() -> impl Strategy<Value = Wild> {
    (
        any::<[u64; 4]>(),
        prop_oneof![8 => 0u16..9, 1 => any::<u16>()],
        0u32..4,
        prop_oneof![4 => 0u32..200, 1 => any::<u32>()],
        prop_oneof![4 => 0u32..4, 1 => any::<u32>()],
        0usize..200,
    )
        .prop_map(|(header, op, port, len, flags, payload)| Wild {
            header,
            op,
            port,
            len,
            flags,
            payload,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// After anything at all, a connection that is made properly works.
    #[test]
    fn garbage_leaves_the_device_working(packets in prop::collection::vec(wild(), 1..100)) {
        let mut guest = Guest::new(&[1, 2, 1024], 8);
        let mut streams = Vec::new();
        for wild in packets {
            let strange = wild.header[0] % 16 == 0;
            let header = Header {
                src_cid: if strange { wild.header[1] } else { CID },
                src_port: 100,
                dst_port: wild.port,
                len: if wild.header[2] % 3 == 0 { wild.len } else { wild.payload as u32 },
                flags: wild.flags,
                buf_alloc: wild.header[3] as u32,
                fwd_cnt: (wild.header[3] >> 32) as u32,
                ..guest.header((wild.port, 100), wild.op)
            };
            guest.send_as(header, &vec![1; wild.payload]);
            guest.collect();
            for accepted in guest.accepted.try_iter() {
                streams.push(UnixStream::from(accepted.stream));
                if wild.header[1] % 2 == 0 {
                    let _ = streams.last_mut().unwrap().write(b"hello");
                } else if wild.header[1] % 5 == 0 {
                    streams.pop();
                }
            }
        }
        // Short ones, too.
        guest.driver.request(1, &[Buffer::Out(&[1; 20])]);
        drop(streams);
        guest.send((1024, 5000), OP_REQUEST);
        let mut found = false;
        while !found {
            let (header, _) = guest.receive();
            found = header.op == OP_RESPONSE && header.dst_port == 5000;
        }
        let mut host = UnixStream::from(guest.accepted.recv_timeout(PATIENCE).unwrap().stream);
        guest.write((1024, 5000), b"fine");
        let mut bytes = [0; 4];
        host.read_exact(&mut bytes).unwrap();
        prop_assert_eq!(&bytes, b"fine");
    }

    /// Bytes arrive whole and in order, both ways, whatever the sizes.
    #[test]
    fn streams_are_streams(
        sizes in prop::collection::vec(1usize..6000, 1..30),
        window in prop_oneof![Just(1000u32), Just(5000), Just(1 << 16)],
    ) {
        let mut guest = Guest::new(&[1024], 8);
        guest.window = window;
        let ports = (1024, 5000);
        let host = guest.call(1024, 5000);
        let total: usize = sizes.iter().sum();
        let byte = |at: usize| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
        let all: Vec<u8> = (0..total).map(byte).collect();
        let echo = std::thread::spawn(move || {
            let mut stream = host;
            let mut bytes = [0; 3000];
            loop {
                let read = stream.read(&mut bytes).unwrap();
                if read == 0 {
                    return;
                }
                stream.write_all(&bytes[..read]).unwrap();
            }
        });
        let mut back = Vec::new();
        let mut at = 0;
        let take = |guest: &mut Guest, back: &mut Vec<u8>| {
            guest.collect();
            let before = back.len();
            while let Some((header, payload)) = guest.inbox.pop_front() {
                assert!(!matches!(header.op, OP_RST), "thrown out");
                back.extend(payload);
            }
            if back.len() > before {
                guest.forwarded = back.len() as u32;
                guest.send(ports, OP_CREDIT_UPDATE);
            }
        };
        for size in sizes {
            // Within the window, for the echo takes all that can be given back.
            while at - back.len() > 20_000 {
                take(&mut guest, &mut back);
            }
            guest.write(ports, &all[at..at + size]);
            at += size;
            take(&mut guest, &mut back);
        }
        let end = std::time::Instant::now() + PATIENCE;
        while back.len() < total {
            assert!(std::time::Instant::now() < end, "{} of {total}", back.len());
            take(&mut guest, &mut back);
        }
        prop_assert!(back == all);
        guest.shutdown(ports, SHUTDOWN_SEND);
        echo.join().unwrap();
    }
}
