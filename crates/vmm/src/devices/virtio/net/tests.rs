//! On TAP devices in a network of the test's own.

use std::os::fd::{AsRawFd, OwnedFd};

use proptest::prelude::*;

use super::*;
use crate::devices::virtio::testing::{Buffer, CONFIG_VECTOR, FakeDriver};
use crate::pci::Function;

const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// Runs a test in a network namespace of its thread's, where interfaces go away with the thread.
fn in_own_network(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let run = || {
            // SAFETY: only this thread's network is another from here on.
            let own = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(own, 0, "this test runs as root");
            test();
        };
        scope.spawn(run).join().unwrap();
    });
}

/// A TAP's queues.
fn taps(name: &str, count: usize) -> Vec<Tap> {
    let open = |_| {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: zeroes are a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        let several = if count > 1 { 0x0100 } else { 0 };
        request.ifr_ifru.ifru_flags = 0x0002 | 0x1000 | 0x4000 | several;
        // SAFETY: the request is what TUNSETIFF wants.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        assert_eq!(made, 0);
        Tap::new(OwnedFd::from(file)).unwrap()
    };
    (0..count).map(open).collect()
}

/// The other end of the wire: a packet socket on the TAP's interface, which is brought up.
struct Wire(OwnedFd);

impl Wire {
    fn new(name: &str) -> Self {
        use std::os::fd::FromRawFd;
        // SAFETY: plain system calls on structures of this function; the descriptor is new and owned here.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            let socket = libc::socket(libc::AF_PACKET, kind, i32::from((libc::ETH_P_ALL as u16).to_be()));
            assert!(socket >= 0);
            let socket = OwnedFd::from_raw_fd(socket);
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
            assert_eq!(
                libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request),
                0
            );
            assert_eq!(
                libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request),
                0
            );
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
            address.sll_ifindex = request.ifr_ifru.ifru_ifindex;
            let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
            assert_eq!(
                libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length),
                0
            );
            let patience = libc::timeval {
                tv_sec: 10,
                tv_usec: 0,
            };
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const patience).cast(),
                libc::socklen_t::try_from(size_of_val(&patience)).unwrap(),
            );
            Self(socket)
        }
    }

    fn send(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.0, frame).unwrap(), frame.len());
    }

    /// The next frame of our own kind; the kernel sends some of its own.
    fn receive(&self) -> Vec<u8> {
        loop {
            let mut frame = vec![0; 70_000];
            let length = rustix::io::read(&self.0, &mut frame).expect("no frame has come");
            frame.truncate(length);
            if frame.get(12..14) == Some(&KIND[..]) {
                return frame;
            }
        }
    }
}

/// An Ethernet type for experiments.
const KIND: [u8; 2] = [0x88, 0xb5];

fn frame(length: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![fill; length];
    frame[..6].copy_from_slice(&MAC.0);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame[12..14].copy_from_slice(&KIND);
    frame
}

fn options() -> NetOptions {
    NetOptions {
        mac: MAC,
        mtu: 0,
        receive_limits: RateLimits::default(),
        send_limits: RateLimits::default(),
    }
}

/// Waits for a packet of the test's kind, in queue 0 of buffers of `size` bytes each, all sent again: the packet and the buffers it took.
fn receive(
    driver: &mut FakeDriver,
    posted: &mut std::collections::HashMap<u16, super::super::testing::Sent>,
) -> (Vec<u8>, u16) {
    loop {
        let mut packet = Vec::new();
        let mut count = 1;
        let mut taken = 0;
        while taken < count {
            let (head, length) = driver.wait(0);
            let sent = posted.remove(&head).unwrap();
            packet.extend(&driver.inputs(&sent)[..length as usize]);
            if taken == 0 {
                count = u16::from_le_bytes([packet[10], packet[11]]);
            }
            taken += 1;
        }
        if packet.get(HEADER + 12..HEADER + 14) == Some(&KIND[..]) {
            return (packet, count);
        }
        for _ in 0..count {
            let sent = driver.send(0, &[Buffer::In(1000)]);
            posted.insert(sent.head, sent);
        }
    }
}

#[test]
fn packets_go_both_ways() {
    in_own_network(|| {
        let device = Net::new(taps("tap0", 1), options()).unwrap();
        let wire = Wire::new("tap0");
        let mut driver = FakeDriver::started(Box::new(device));
        assert_eq!(driver.config::<6>(0), MAC.0);
        assert_eq!(driver.config::<2>(6), [1, 0]);
        let out = frame(60, 7);
        driver.request(1, &[Buffer::Out(&[0; HEADER]), Buffer::Out(&out)]);
        assert_eq!(wire.receive(), out);
        let mut posted = std::collections::HashMap::new();
        for _ in 0..100 {
            let sent = driver.send(0, &[Buffer::In(1000)]);
            posted.insert(sent.head, sent);
        }
        for (length, buffers) in [(60, 1), (988, 1), (989, 2), (1514, 2)] {
            let frame = frame(length, 9);
            wire.send(&frame);
            let (packet, count) = receive(&mut driver, &mut posted);
            assert_eq!((&packet[HEADER..], count), (&frame[..], buffers), "{length}");
        }
        let metrics = driver.device.metrics().snapshot();
        assert!(metrics.read >= 60 + 988 + 989 + 1514 && metrics.written >= 60);
    });
}

#[test]
fn packets_that_make_no_sense_are_lost_and_nothing_else() {
    in_own_network(|| {
        let device = Net::new(taps("tap0", 1), options()).unwrap();
        let wire = Wire::new("tap0");
        let mut driver = FakeDriver::started(Box::new(device));
        driver.request(1, &[Buffer::Out(b"short")]);
        driver.request(1, &[Buffer::In(100)]);
        driver.request(1, &[Buffer::Out(&[0xff; HEADER]), Buffer::Out(&frame(60, 1))]);
        driver.request(1, &[Buffer::Out(&vec![0; 200_000])]);
        let out = frame(60, 7);
        driver.request(1, &[Buffer::Out(&[0; HEADER]), Buffer::Out(&out)]);
        assert_eq!(wire.receive(), out);
        assert_eq!(driver.device.metrics().snapshot().errors, 4);
        // Buffers that are too small for a header come back empty.
        assert_eq!(driver.request(0, &[Buffer::In(11)]).0, 0);
        assert_eq!(driver.request(0, &[Buffer::Out(&[1; 100])]).0, 0);
    });
}

#[test]
fn several_queues_and_the_control_queue() {
    in_own_network(|| {
        let device = Net::new(taps("tap0", 2), options()).unwrap();
        let wire = Wire::new("tap0");
        let mut driver = FakeDriver::started(Box::new(device));
        assert_eq!(driver.config::<2>(8), [2, 0]);
        let mut command = |class: u8, command: u8, data: &[u8]| {
            let head = [class, command];
            driver
                .request(4, &[Buffer::Out(&head), Buffer::Out(data), Buffer::In(1)])
                .1[0]
        };
        assert_eq!(command(4, 0, &2_u16.to_le_bytes()), 0);
        assert_eq!(command(4, 0, &3_u16.to_le_bytes()), 1);
        assert_eq!(command(4, 0, &0_u16.to_le_bytes()), 1);
        assert_eq!(command(4, 0, &[1]), 1);
        assert_eq!(command(0, 0, &[1]), 0);
        assert_eq!(command(1, 1, &[2, 0, 0, 0, 0, 1]), 0);
        assert_eq!(command(9, 9, &[]), 1);
        assert_eq!(driver.config::<6>(0), [2, 0, 0, 0, 0, 1]);
        for queue in [1, 3] {
            let out = frame(60, 7);
            driver.request(queue, &[Buffer::Out(&[0; HEADER]), Buffer::Out(&out)]);
            assert_eq!(wire.receive(), out);
        }
        driver.device.pause();
        let state = driver.device.save();
        driver.device.restore(&state).unwrap();
        driver.device.resume();
        let out = frame(61, 7);
        driver.request(3, &[Buffer::Out(&[0; HEADER]), Buffer::Out(&out)]);
        assert_eq!(wire.receive(), out);
        let _ = driver.device.bars();
    });
}

#[test]
fn a_pause_loses_no_buffer() {
    in_own_network(|| {
        let device = Net::new(taps("tap0", 1), options()).unwrap();
        let wire = Wire::new("tap0");
        let mut driver = FakeDriver::started(Box::new(device));
        let mut posted = std::collections::HashMap::new();
        for _ in 0..150 {
            let sent = driver.send(0, &[Buffer::In(1000)]);
            posted.insert(sent.head, sent);
        }
        for round in 0..20 {
            driver.device.pause();
            driver.device.resume();
            let frame = frame(1000, round);
            wire.send(&frame);
            let (packet, _) = receive(&mut driver, &mut posted);
            assert_eq!(packet[HEADER..], frame);
        }
    });
}

#[test]
fn the_cable_is_pulled() {
    in_own_network(|| {
        let device = Net::new(taps("tap0", 1), options()).unwrap();
        let control = device.control();
        let driver = FakeDriver::started(Box::new(device));
        control.set_link(false);
        driver.wait_until("no interrupt", || driver.interrupts.count(CONFIG_VECTOR) == 1);
        assert_eq!(driver.config::<2>(6), [0, 0]);
    });
}

#[test]
fn features_need_others() {
    in_own_network(|| {
        let mut driver = FakeDriver::new(Box::new(Net::new(taps("tap0", 1), options()).unwrap()));
        let version = crate::devices::virtio::F_VERSION_1;
        assert!(!driver.negotiate(version | F_GUEST_TSO4));
        assert!(!driver.negotiate(version | F_HOST_TSO6));
        assert!(!driver.negotiate(version | F_CTRL_RX));
        assert!(driver.negotiate(version));
        driver.set_up();
        driver.request(1, &[Buffer::Out(&[0; HEADER]), Buffer::Out(&frame(60, 1))]);
    });
}

#[test]
fn addresses_are_read() {
    assert_eq!("52:54:00:01:02:03".parse::<MacAddress>().unwrap(), MAC);
    for wrong in [
        "",
        "52:54:00:01:02",
        "52:54:00:01:02:03:04",
        "53:54:00:01:02:03",
        "52:54:0:01:02:03",
        "52-54-00-01-02-03",
        "00:00:00:00:00:00",
    ] {
        assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_packets_and_commands(requests in prop::collection::vec((1_usize..3, prop::collection::vec(any::<u8>(), 0..200), 0_usize..4), 1..40)) {
        in_own_network(|| {
            let device = Net::new(taps("tap0", 1), options()).unwrap();
            let _wire = Wire::new("tap0");
            let mut driver = FakeDriver::started(Box::new(device));
            for (queue, bytes, input) in &requests {
                driver.request(*queue, &[Buffer::Out(bytes), Buffer::In(*input)]);
            }
            assert_eq!(driver.status(), 15);
        });
    }
}
