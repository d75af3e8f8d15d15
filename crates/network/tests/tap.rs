//! An endpoint that is a descriptor: real frames, by hand.

mod common;
use common::*;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vessel_network::*;

/// The `virtio_net_hdr` before each frame, as long as it is unless somebody asks for a longer one.
const HEADER: usize = 10;
const ETHERNET: usize = 14;

/// A very small host at the other side of a descriptor: it answers ARP, echo requests, and UDP with the sender's address.
struct Guest {
    tap: File,
    mac: [u8; 6],
    address: Ipv4Addr,
    replies: Sender<(Ipv4Addr, [u8; 6])>,
}

/// What ARP and echo replies said: who it was, and at which hardware address.
type Replies = Receiver<(Ipv4Addr, [u8; 6])>;

impl Guest {
    /// Runs until the descriptor is closed, which `stop` does by being dropped.
    fn start(end: TapEndpoint) -> (std::thread::JoinHandle<()>, OwnedFd, OwnedFd, Replies) {
        let (replies, heard) = channel();
        let (watched, stop) = rustix::pipe::pipe().unwrap();
        let speak = end.tap.try_clone().unwrap();
        let mut guest = Self {
            tap: end.tap.into(),
            mac: mac(&end.record),
            address: v4(end.record.address),
            replies,
        };
        let thread = std::thread::spawn(move || guest.run(&watched));
        (thread, stop, speak, heard)
    }

    fn run(&mut self, stop: &OwnedFd) {
        let mut buffer = [0; 2048];
        loop {
            let mut fds = [
                PollFd::new(&self.tap, PollFlags::IN),
                PollFd::new(stop, PollFlags::IN),
            ];
            poll(&mut fds, None).unwrap();
            if !fds[1].revents().is_empty() {
                return;
            }
            let Ok(count) = self.tap.read(&mut buffer) else {
                continue;
            };
            let frame = buffer[HEADER..count].to_vec();
            match u16::from_be_bytes([frame[12], frame[13]]) {
                0x0806 => self.arp(&frame),
                0x0800 => self.ip(frame),
                _ => {}
            }
        }
    }

    fn arp(&mut self, frame: &[u8]) {
        let packet = &frame[ETHERNET..];
        let (mac, ip) = (packet[8..14].try_into().unwrap(), address(&packet[14..18]));
        match packet[7] {
            1 if address(&packet[24..28]) == self.address => {
                let answer = arp(2, self.mac, self.address, mac, ip);
                send(&self.tap, &answer);
            }
            2 => drop(self.replies.send((ip, mac))),
            _ => {}
        }
    }

    fn ip(&mut self, mut frame: Vec<u8>) {
        let from = address(&frame[ETHERNET + 12..][..4]);
        if address(&frame[ETHERNET + 16..][..4]) != self.address {
            return;
        }
        let (body, protocol) = (ETHERNET + 20, frame[ETHERNET + 9]);
        let sender: [u8; 6] = frame[6..12].try_into().unwrap();
        match (protocol, frame[body]) {
            (1, 0) => drop(self.replies.send((from, sender))),
            (1, 8) => {
                frame[body] = 0;
                frame[body + 2..body + 4].fill(0);
                let sum = checksum(&frame[body..]);
                frame[body + 2..body + 4].copy_from_slice(&sum.to_be_bytes());
                self.answer(frame);
            }
            (17, _) => {
                let text = from.to_string();
                frame.truncate(body + 8);
                frame.extend_from_slice(text.as_bytes());
                frame[body..body + 4].rotate_left(2);
                let length = (8 + text.len()) as u16;
                frame[body + 4..body + 6].copy_from_slice(&length.to_be_bytes());
                frame[body + 6..body + 8].fill(0);
                self.answer(frame);
            }
            _ => {}
        }
    }

    /// Sends a packet back where it came from.
    fn answer(&mut self, mut frame: Vec<u8>) {
        frame[..12].rotate_left(6);
        frame[ETHERNET + 12..ETHERNET + 20].rotate_left(4);
        let length = (frame.len() - ETHERNET) as u16;
        frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&length.to_be_bytes());
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
        let sum = checksum(&frame[ETHERNET..ETHERNET + 20]);
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        send(&self.tap, &frame);
    }
}

fn send(mut tap: &File, frame: &[u8]) {
    tap.write_all(&[&[0; HEADER], frame].concat()).unwrap();
}

fn mac(record: &EndpointRecord) -> [u8; 6] {
    let text = record.mac.to_string();
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

fn address(bytes: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(bytes).unwrap())
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn arp(operation: u8, from: [u8; 6], ip: Ipv4Addr, to: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let (there, asked) = match operation {
        1 => ([0xff; 6], [0; 6]),
        _ => (to, to),
    };
    let head: &[u8] = &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&there, &from, head, &from, &ip.octets(), &asked, &target.octets()].concat()
}

/// An echo request.
fn echo(from: [u8; 6], ip: Ipv4Addr, to: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0, 7, 0, 1, b'h', b'i'];
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut head = vec![0x45, 0, 0, 30, 0, 1, 0, 0, 64, 1, 0, 0];
    head.extend(ip.octets());
    head.extend(target.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    [&to[..], &from, &[8, 0], &head, &icmp].concat()
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn frames_go_both_ways_and_the_interface_goes_with_the_descriptor() {
    with_and_without_bridge_netfilter(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let empty = dump();
        let mut end = bridge.attach_tap(&plain()).unwrap();
        assert_eq!(
            (end.record.address.to_string().as_str(), end.mtu),
            ("172.17.0.2", 1500)
        );
        let specs = [
            wish("0.0.0.0", 8053, 53, Protocol::Udp),
            wish("127.0.0.1", 9053, 53, Protocol::Udp),
        ];
        let kept = bridge.publish(&mut end.record, &specs).unwrap();
        let inventory = Bridge::inventory(&config()).unwrap();
        assert_eq!(inventory.interfaces, [end.record.ifname.as_str()]);
        let (record, own) = (end.record.clone(), mac(&end.record));
        let (thread, stop, speak, heard) = Guest::start(end);
        let speak = File::from(speak);
        let (ip, gateway) = (v4(record.address), bridge.gateway());
        let patience = Duration::from_secs(5);

        // The gateway answers, and the world behind it.
        send(&speak, &arp(1, own, ip, [0; 6], gateway));
        let (who, at) = heard.recv_timeout(patience).unwrap();
        assert_eq!(who, gateway);
        for target in [gateway, OUTSIDE] {
            send(&speak, &echo(own, ip, at, target));
            assert_eq!(heard.recv_timeout(patience).unwrap().0, target);
        }
        // A neighbour with a namespace, both ways.
        let neighbour = bridge.attach(&plain()).unwrap();
        let answer = udp(&neighbour.netns, ip, 53).unwrap();
        assert_eq!(answer, neighbour.record.address.to_string());
        send(&speak, &arp(1, own, ip, [0; 6], v4(neighbour.record.address)));
        let (who, at) = heard.recv_timeout(patience).unwrap();
        assert_eq!(
            (IpAddr::V4(who), at),
            (neighbour.record.address, mac(&neighbour.record))
        );
        // Published ports, from outside and from the host itself.
        assert_eq!(udp(outside, HOST, 8053).unwrap(), OUTSIDE.to_string());
        assert_eq!(ask_here(9053), gateway.to_string());

        // The next daemon finds it in place.
        let again = Bridge::ensure(&config()).unwrap();
        let found = again
            .reconcile(&[record.clone(), neighbour.record.clone()])
            .unwrap();
        assert_eq!(found, Reconciled::default());
        let traffic = StatsReader::open().unwrap().endpoint(&record.ifname).unwrap();
        assert!(traffic.rx_packets >= 4 && traffic.tx_packets >= 4, "{traffic:?}");
        drop(again);

        bridge.release(&neighbour.record).unwrap();
        drop(neighbour);
        bridge.flush();
        drop((speak, stop, kept));
        thread.join().unwrap();
        eventually("the end of the interface", || {
            Bridge::inventory(&config()).unwrap().interfaces.is_empty()
        });
        bridge.release(&record).unwrap();
        bridge.flush();
        assert_eq!(dump(), empty);
        bridge.remove().unwrap();
    });
}

fn ask_here(port: u16) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket.send(b"?").unwrap();
    let mut answer = [0; 64];
    let count = socket.recv(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..count]).into_owned()
}

#[test]
fn it_is_as_isolated_as_others() {
    with_and_without_bridge_netfilter(|_| {
        let bridge = Bridge::ensure(&BridgeConfig {
            icc: false,
            ..config()
        })
        .unwrap();
        let end = bridge.attach_tap(&plain()).unwrap();
        let (ip, own) = (v4(end.record.address), mac(&end.record));
        let (thread, stop, speak, heard) = Guest::start(end);
        let neighbour = bridge.attach(&plain()).unwrap();
        let asked = neighbour.netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            socket.send_to(b"?", (ip, 53)).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        });
        assert!(!asked.unwrap());
        // The bridge itself is reached all the same.
        let speak = File::from(speak);
        send(&speak, &arp(1, own, ip, [0; 6], bridge.gateway()));
        assert_eq!(
            heard.recv_timeout(Duration::from_secs(5)).unwrap().0,
            bridge.gateway()
        );
        drop((stop, speak));
        thread.join().unwrap();
        bridge.remove().unwrap();
    });
}

#[test]
fn one_that_nobody_explains_is_removed() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&BridgeConfig {
            mtu: Some(1400),
            ..config()
        })
        .unwrap();
        let end = bridge.attach_tap(&plain()).unwrap();
        assert_eq!(end.mtu, 1400);
        assert!(sh(&format!("ip link show {}", end.record.ifname)).contains("mtu 1400"));
        let other = Bridge::ensure(&BridgeConfig {
            mtu: Some(1400),
            ..config()
        })
        .unwrap();
        let found = other.reconcile(&[]).unwrap();
        assert_eq!(found.removed_interfaces, [end.record.ifname.as_str()]);
        // Its descriptor says so to whoever still has it.
        let mut fds = [PollFd::new(&end.tap, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 5,
                tv_nsec: 0,
            }),
        )
        .unwrap();
        assert!(fds[0].revents().contains(PollFlags::ERR));
        assert!(end.tap.as_fd().try_clone_to_owned().is_ok());
        bridge.remove().unwrap();
    });
}
