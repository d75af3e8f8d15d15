//! Real packets through bridge, translation and filter.

mod common;
use common::*;
use vessel_network::*;

#[test]
fn endpoints_talk_to_each_other_to_the_host_and_to_the_outside() {
    with_and_without_bridge_netfilter(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let host = Netns::current().unwrap();
        let a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        assert_eq!(a.record.address.to_string(), "172.17.0.2");
        assert_eq!(b.record.mac.to_string(), "02:42:ac:11:00:03");
        tcp_server(&b.netns, 80);
        tcp_server(&host, 80);
        tcp_server(outside, 80);
        udp_server(outside, 53);
        assert_eq!(tcp(&a.netns, b.record.address, 80).unwrap(), "172.17.0.2");
        assert_eq!(tcp(&a.netns, bridge.gateway(), 80).unwrap(), "172.17.0.2");
        assert_eq!(tcp(&host, b.record.address, 80).unwrap(), "172.17.0.1");
        assert_eq!(tcp(&host, bridge.gateway(), 80).unwrap(), "172.17.0.1");
        // Outside they are the host.
        assert_eq!(tcp(&a.netns, OUTSIDE, 80).unwrap(), HOST.to_string());
        assert_eq!(udp(&a.netns, OUTSIDE, 53).unwrap(), HOST.to_string());
        let inside = a
            .netns
            .run(|| sh("ip addr; ip route; cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6"))
            .unwrap();
        assert!(
            inside.contains("inet 172.17.0.2/16 brd 172.17.255.255 scope global eth0"),
            "{inside}"
        );
        assert!(inside.contains("link/ether 02:42:ac:11:00:02"), "{inside}");
        assert!(inside.contains("default via 172.17.0.1 dev eth0"), "{inside}");
        assert!(
            inside.contains("inet 127.0.0.1/8") && inside.ends_with("1\n"),
            "{inside}"
        );
        bridge.remove().unwrap();
    });
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    with_and_without_bridge_netfilter(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let host = Netns::current().unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        tcp_server(&a.netns, 80);
        udp_server(&a.netns, 53);
        let specs = [
            wish("0.0.0.0", 8080, 80, Protocol::Tcp),
            wish("0.0.0.0", 5300, 53, Protocol::Udp),
        ];
        let kept = bridge.publish(&mut a.record, &specs).unwrap();
        assert!(kept.iter().all(|r| r.socket.is_some()));
        type Ask = fn(&Netns, std::net::IpAddr, u16) -> std::io::Result<String>;
        for (ask, port) in [
            (tcp::<std::net::IpAddr> as Ask, 8080),
            (udp::<std::net::IpAddr> as Ask, 5300),
        ] {
            // From outside, with the client's own address.
            assert_eq!(
                ask(outside, HOST.into(), port).unwrap(),
                OUTSIDE.to_string(),
                "{port}"
            );
            // From the host, by its own address and by loopback.
            assert!(ask(&host, HOST.into(), port).is_ok(), "{port}");
            assert_eq!(
                ask(&host, "127.0.0.1".parse().unwrap(), port).unwrap(),
                "172.17.0.1",
                "{port}"
            );
            assert_eq!(
                ask(&host, "127.9.9.9".parse().unwrap(), port).unwrap(),
                "172.17.0.1",
                "{port}"
            );
            // From another endpoint and from itself, by the host's address and by the gateway's.
            for from in [&b.netns, &a.netns] {
                for to in [HOST, bridge.gateway()] {
                    assert_eq!(ask(from, to.into(), port).unwrap(), "172.17.0.1", "{port}");
                }
            }
        }
        // Withdrawn: the host has no such port.
        bridge.unpublish(&mut a.record).unwrap();
        assert_eq!(
            tcp(&host, HOST, 8080).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
        assert_eq!(
            tcp(outside, HOST, 8080).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
        assert!(udp(outside, HOST, 5300).is_err());
        bridge.remove().unwrap();
    });
}

#[test]
fn a_port_on_one_address_is_not_on_the_others() {
    with_outside(|outside| {
        sh("ip addr add 203.0.113.3/24 dev up0");
        let bridge = Bridge::ensure(&config()).unwrap();
        let host = Netns::current().unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let mut b = bridge.attach(&plain()).unwrap();
        for (endpoint, address, port) in [(&mut a, "127.0.0.1", 8001), (&mut b, "203.0.113.3", 8002)] {
            tcp_server(&endpoint.netns, 80);
            std::mem::forget(
                bridge
                    .publish(&mut endpoint.record, &[wish(address, port, 80, Protocol::Tcp)])
                    .unwrap(),
            );
        }
        assert!(tcp(&host, [127, 0, 0, 1], 8001).is_ok());
        assert!(tcp(&host, HOST, 8001).is_err());
        assert!(tcp(outside, HOST, 8001).is_err());
        assert!(tcp(outside, [203, 0, 113, 3], 8002).is_ok());
        assert!(tcp(outside, HOST, 8002).is_err());
        assert!(tcp(&host, [127, 0, 0, 1], 8002).is_err());
        bridge.remove().unwrap();
    });
}

/// CVE-2020-8558 and its kin: nobody on a wire reaches what listens, or is published, on 127.0.0.1.
#[test]
fn loopback_is_not_reached_from_a_wire() {
    with_and_without_bridge_netfilter(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let host = Netns::current().unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        tcp_server(&host, 9000);
        tcp_server(&a.netns, 80);
        let kept = bridge
            .publish(&mut a.record, &[wish("127.0.0.1", 8001, 80, Protocol::Tcp)])
            .unwrap();
        assert!(tcp(&host, [127, 0, 0, 1], 9000).is_ok());
        // Hostile neighbours that route 127.0.0.0/8 to us.
        let hostile = "sysctl -q net.ipv4.conf.all.route_localnet=1; ip rule add pref 1 from all lookup 7; ip rule del pref 0; ip rule add pref 2 from all lookup local;
            ip route add table 7 127.0.0.1/32 via VIA dev eth0 src SELF";
        b.netns
            .run(|| sh(&hostile.replace("VIA", "172.17.0.1").replace("SELF", "172.17.0.3")))
            .unwrap();
        outside
            .run(|| {
                sh(&hostile
                    .replace("VIA", "203.0.113.2")
                    .replace("SELF", "203.0.113.1"))
            })
            .unwrap();
        for from in [&b.netns, outside] {
            for port in [9000, 8001] {
                assert!(tcp(from, [127, 0, 0, 1], port).is_err(), "{port}");
            }
        }
        // The guard is what stops them: without it they get through.
        assert!(guard_drops() >= 4);
        sh("nft flush chain ip vt guard");
        assert!(
            tcp(&b.netns, [127, 0, 0, 1], 9000).is_ok(),
            "the test itself no longer attacks"
        );
        assert!(
            tcp(outside, [127, 0, 0, 1], 8001).is_ok(),
            "the test itself no longer attacks"
        );
        drop(kept);
        bridge.remove().unwrap();
    });
}

fn guard_drops() -> u64 {
    let text = sh("nft list chain ip vt guard");
    text.split("packets ")
        .nth(1)
        .and_then(|t| t.split(' ').next())
        .and_then(|n| n.parse().ok())
        .unwrap()
}

#[test]
fn only_published_ports_are_reached_from_outside() {
    with_outside(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        tcp_server(&a.netns, 80);
        tcp_server(&a.netns, 81);
        let _kept = bridge
            .publish(&mut a.record, &[wish("0.0.0.0", 8080, 80, Protocol::Tcp)])
            .unwrap();
        outside
            .run(|| sh("ip route add 172.17.0.0/16 via 203.0.113.2"))
            .unwrap();
        assert!(tcp(outside, a.record.address, 80).is_err());
        assert!(tcp(outside, a.record.address, 81).is_err());
        assert!(tcp(outside, HOST, 8080).is_ok());
        // The administrator's chain comes first, and stays as it is.
        sh(
            "nft add rule ip vt user ip daddr 172.17.0.2 tcp dport 81 accept; nft add rule ip vt user tcp dport 80 drop",
        );
        assert!(tcp(outside, HOST, 8080).is_err());
        let again = Bridge::ensure(&config()).unwrap();
        again.reconcile(std::slice::from_ref(&a.record)).unwrap();
        assert!(tcp(outside, HOST, 8080).is_err());
        sh("nft flush chain ip vt user");
        assert!(tcp(outside, HOST, 8080).is_ok());
        drop(again);
        bridge.remove().unwrap();
    });
}

#[test]
fn without_icc_endpoints_meet_only_through_published_ports() {
    with_and_without_bridge_netfilter(|outside| {
        let bridge = Bridge::ensure(&BridgeConfig {
            icc: false,
            ..config()
        })
        .unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        tcp_server(&a.netns, 80);
        tcp_server(outside, 80);
        let _kept = bridge
            .publish(&mut a.record, &[wish("0.0.0.0", 8080, 80, Protocol::Tcp)])
            .unwrap();
        assert!(tcp(&b.netns, a.record.address, 80).is_err());
        assert!(tcp(&b.netns, HOST, 8080).is_ok());
        assert!(tcp(&b.netns, OUTSIDE, 80).is_ok());
        // Nor by asking the gateway to forward.
        b.netns
            .run(|| sh("ip route add 172.17.0.2/32 via 172.17.0.1"))
            .unwrap();
        assert!(tcp(&b.netns, a.record.address, 80).is_err());
        bridge.remove().unwrap();
    });
}

#[test]
fn statistics_are_the_endpoints_own() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let a = bridge.attach(&plain()).unwrap();
        let host = Netns::current().unwrap();
        udp_server(&a.netns, 7);
        udp(&host, a.record.address, 7).unwrap();
        let mut reader = StatsReader::open().unwrap();
        let inside = || {
            let text = a.netns.run(|| sh("grep eth0 /proc/thread-self/net/dev")).unwrap();
            let fields: Vec<u64> = text
                .split_whitespace()
                .skip(1)
                .map(|f| f.parse().unwrap())
                .collect();
            (fields[0], fields[1], fields[8], fields[9])
        };
        // A multicast report of the bridge may come between the two readings.
        let agreed = (0..50).any(|_| {
            let s = reader.endpoint(&a.record.ifname).unwrap();
            s.rx_packets >= 1
                && s.tx_packets >= 1
                && inside() == (s.rx_bytes, s.rx_packets, s.tx_bytes, s.tx_packets)
        });
        assert!(agreed, "{:?} {:?}", reader.endpoint(&a.record.ifname), inside());
        let received = reader.endpoint(&a.record.ifname).unwrap().rx_bytes;
        host.run(|| {
            std::net::UdpSocket::bind("0.0.0.0:0")
                .unwrap()
                .send_to(&[0; 5000], (a.record.address, 9))
                .unwrap()
        })
        .unwrap();
        assert!(reader.endpoint(&a.record.ifname).unwrap().rx_bytes >= received + 5000);
        assert_eq!(
            reader.endpoint("ve0000000000").unwrap_err().kind(),
            ErrorKind::NotFound
        );
        bridge.remove().unwrap();
    });
}

/// The first packet after `attach` arrives: the port forwards already, nothing waits for the kernel's link watch.
#[test]
fn an_endpoint_is_reached_at_once() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let a = bridge.attach(&plain()).unwrap();
        for _ in 0..40 {
            let b = bridge.attach(&plain()).unwrap();
            tcp_server(&b.netns, 80);
            let start = std::time::Instant::now();
            tcp(&a.netns, b.record.address, 80).unwrap();
            assert!(start.elapsed() < TIMEOUT / 2, "{:?}", start.elapsed());
        }
        bridge.remove().unwrap();
    });
}

#[test]
fn a_host_that_was_no_router_becomes_none_for_others() {
    with_outside(|outside| {
        // Another neighbour on a wire of its own, which knows the way to the first.
        let other = Netns::new_isolated(&NetnsConfig::default()).unwrap();
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&std::os::fd::AsFd::as_fd(&other))
        );
        sh(&format!(
            "ip link add up1 type veth peer name eth0 netns {path}; ip addr add 198.51.100.2/24 dev up1; ip link set up1 up"
        ));
        other
            .run(|| sh("ip addr add 198.51.100.1/24 dev eth0; ip link set eth0 up; ip route add default via 198.51.100.2"))
            .unwrap();
        outside
            .run(|| sh("ip route add default via 203.0.113.2"))
            .unwrap();
        tcp_server(outside, 80);
        sh("sysctl -q net.ipv4.ip_forward=1");
        assert!(tcp(&other, OUTSIDE, 80).is_ok());
        // A router stays one.
        Bridge::ensure(&config()).unwrap().remove().unwrap();
        let bridge = Bridge::ensure(&config()).unwrap();
        assert!(tcp(&other, OUTSIDE, 80).is_ok());
        bridge.remove().unwrap();
        // Any other does not become one, and a second daemon knows it.
        sh("sysctl -q net.ipv4.ip_forward=0");
        let first = Bridge::ensure(&config()).unwrap();
        let bridge = Bridge::ensure(&config()).unwrap();
        bridge.reconcile(&[]).unwrap();
        assert_eq!(sh("sysctl -n net.ipv4.ip_forward"), "1\n");
        assert!(tcp(&other, OUTSIDE, 80).is_err());
        let a = bridge.attach(&plain()).unwrap();
        assert!(tcp(&a.netns, OUTSIDE, 80).is_ok());
        // Another engine's bridge is not in the way.
        sh(
            "ip link set up1 nomaster; ip link add br1 type bridge; ip addr flush dev up1; ip link set up1 master br1; ip addr add 198.51.100.2/24 dev br1; ip link set br1 up",
        );
        let begin = std::time::Instant::now();
        while tcp(&other, OUTSIDE, 80).is_err() {
            assert!(begin.elapsed().as_secs() < 20, "a bridge is cut off");
        }
        drop(first);
        bridge.remove().unwrap();
    });
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// A packet with one chunk of the 20 bytes that INIT and INIT ACK have.
fn sctp_packet(from: u16, to: u16, tag: u32, chunk: u8, own_tag: u32) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    packet.extend(own_tag.to_be_bytes());
    packet.extend(65536_u32.to_be_bytes());
    packet.extend([0, 1, 0, 1, 0, 0, 0, 7]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

struct RawSctp(std::os::fd::OwnedFd);

impl RawSctp {
    fn open(netns: &Netns) -> Self {
        use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketType, socket, sockopt};
        let sctp = Protocol::from_raw(RawProtocol::new(132).unwrap());
        let fd = netns
            .run(|| socket(AddressFamily::INET, SocketType::RAW, Some(sctp)).unwrap())
            .unwrap();
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(TIMEOUT)).unwrap();
        Self(fd)
    }

    fn send(&self, to: std::net::IpAddr, packet: &[u8]) {
        let to = std::net::SocketAddr::new(to, 0);
        rustix::net::sendto(&self.0, packet, rustix::net::SendFlags::empty(), &to).unwrap();
    }

    /// Who sent a packet, and its ports.
    fn receive(&self) -> Option<(std::net::Ipv4Addr, u16, u16)> {
        let mut buf = [0; 200];
        let (length, _) = rustix::net::recv(&self.0, &mut buf[..], rustix::net::RecvFlags::empty()).ok()?;
        let packet = &mut buf[20..length];
        let sum: [u8; 4] = packet[8..12].try_into().unwrap();
        packet[8..12].fill(0);
        assert_eq!(sum, crc32c(packet).to_le_bytes(), "the checksum is not right");
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let ports = (port(0), port(2));
        Some((
            std::net::Ipv4Addr::new(buf[12], buf[13], buf[14], buf[15]),
            ports.0,
            ports.1,
        ))
    }
}

/// Whether or not this kernel has sockets of SCTP: it is packets that are published.
#[test]
fn published_ports_of_sctp() {
    with_outside(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let specs = [
            wish("0.0.0.0", 36412, 38412, Protocol::Sctp),
            wish("0.0.0.0", 0, 38413, Protocol::Sctp),
        ];
        let kept = bridge.publish(&mut a.record, &specs).unwrap();
        assert!(kept[1].port.host_port >= 32768);
        assert_eq!(kept[0].port.to_string(), "0.0.0.0:36412->38412/sctp");
        let client = RawSctp::open(outside);
        let server = RawSctp::open(&a.netns);
        client.send(HOST.into(), &sctp_packet(4000, 36412, 0, 1, 77));
        assert_eq!(server.receive(), Some((OUTSIDE, 4000, 38412)));
        server.send(OUTSIDE.into(), &sctp_packet(38412, 4000, 77, 2, 88));
        assert_eq!(client.receive(), Some((HOST, 36412, 4000)));
        bridge.unpublish(&mut a.record).unwrap();
        client.send(HOST.into(), &sctp_packet(4001, 36412, 0, 1, 77));
        assert_eq!(server.receive(), None);
        bridge.remove().unwrap();
    });
}
