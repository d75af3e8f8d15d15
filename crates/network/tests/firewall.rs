//! Published ports under the host's own rules for what comes in.

mod common;
use common::*;
use std::net::IpAddr;
use vessel_network::*;

const HOST6: &str = "2001:db8:1::2";
const OUTSIDE6: &str = "2001:db8:1::1";

fn both() -> BridgeConfig {
    BridgeConfig {
        v6: Some(ConfigV6 {
            subnet: "fd00:aa::/64".parse().unwrap(),
            gateway: None,
            range: None,
            taken: Vec::new(),
        }),
        ..config()
    }
}

fn bridge(table: Table) -> Bridge {
    Bridge::ensure_all(&table, &[both()])
        .unwrap()
        .pop()
        .unwrap()
        .unwrap()
}

fn anywhere(port: u16, target_port: u16, protocol: Protocol) -> PortSpec {
    PortSpec {
        host_ip: None,
        ..wish("0.0.0.0", port, target_port, protocol)
    }
}

/// A host as an administrator sets it up who wants ssh and nothing else, and who says so to those who try.
const FIREWALL: &str = "nft -f - <<'END'
table inet filter {
    set ports { type inet_service; elements = { 22 } }
    chain input {
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        ct state invalid drop
        iifname lo accept
        meta l4proto { icmp, ipv6-icmp } accept
        meta l4proto { tcp, udp } th dport @ports accept
        meta l4proto tcp reject with tcp reset
        meta l4proto udp reject
    }
}
END";

#[test]
fn the_hosts_input_policy_decides() {
    with_and_without_bridge_netfilter(|outside| {
        sh(&format!("ip addr add {HOST6}/64 dev up0 nodad"));
        outside
            .run(|| sh(&format!("ip addr add {OUTSIDE6}/64 dev eth0 nodad")))
            .unwrap();
        let host6: IpAddr = HOST6.parse().unwrap();
        let before = sh("ip -o link | wc -l");
        // The strictest that hosts are set to.
        sh("sysctl -q net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
        let bridge = bridge(Table::open_behind_input("vt").unwrap());
        let host = Netns::current().unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        tcp_server_of_both(&a.netns, 80);
        udp_server(&a.netns, 53);
        let specs = [
            anywhere(8080, 80, Protocol::Tcp),
            anywhere(5300, 53, Protocol::Udp),
            wish(&HOST.to_string(), 8081, 80, Protocol::Tcp),
        ];
        let _kept = bridge.publish(&mut a.record, &specs).unwrap();
        // Without a firewall everything is as ever.
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        assert_eq!(tcp(outside, HOST, 8081).unwrap(), OUTSIDE.to_string());
        assert_eq!(tcp(outside, host6, 8080).unwrap(), OUTSIDE6);
        assert_eq!(udp(outside, HOST, 5300).unwrap(), OUTSIDE.to_string());
        assert!(tcp(outside, HOST, 8082).is_err());
        sh(FIREWALL);
        for port in [8080, 8081] {
            assert!(tcp(outside, HOST, port).is_err(), "{port}");
        }
        assert!(tcp(outside, host6, 8080).is_err());
        assert!(udp(outside, HOST, 5300).is_err());
        assert!(tcp(&b.netns, HOST, 8080).is_err());
        // The host itself is not outside, nor are neighbours on the same bridge.
        assert!(tcp(&host, [127, 0, 0, 1], 8080).is_ok());
        assert!(tcp(&host, HOST, 8080).is_ok());
        assert!(tcp(&b.netns, a.record.address, 80).is_ok());
        sh("nft add element inet filter ports { 8080, 5300 }");
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        assert_eq!(tcp(outside, host6, 8080).unwrap(), OUTSIDE6);
        assert_eq!(udp(outside, HOST, 5300).unwrap(), OUTSIDE.to_string());
        assert!(tcp(&b.netns, HOST, 8080).is_ok());
        assert!(tcp(outside, HOST, 8081).is_err());
        // The administrator's own chain still comes first, and is never rewritten.
        sh("nft add rule ip vt user meta l4proto tcp ct original proto-dst 8080 reject with tcp reset");
        assert!(tcp(outside, HOST, 8080).is_err());
        bridge.reconcile(std::slice::from_ref(&a.record)).unwrap();
        assert!(tcp(outside, HOST, 8080).is_err());
        sh("nft flush chain ip vt user");
        // What is lost is put back.
        sh(
            "nft delete table ip vt; nft delete table ip6 vt; ip link delete $(ip -o link | grep -o 'vi[0-9a-f]*o' | head -n 1)",
        );
        bridge.reconcile(std::slice::from_ref(&a.record)).unwrap();
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        assert!(tcp(outside, HOST, 8081).is_err());
        bridge.remove().unwrap();
        assert_eq!(sh("ip -o link | wc -l"), before);
    });
}

#[test]
fn without_the_setting_a_published_port_is_open_and_the_detour_is_gone() {
    with_outside(|outside| {
        sh(FIREWALL);
        let first = bridge(Table::open_behind_input("vt").unwrap());
        let mut a = first.attach(&plain()).unwrap();
        tcp_server_of_both(&a.netns, 80);
        let _kept = first
            .publish(&mut a.record, &[anywhere(8080, 80, Protocol::Tcp)])
            .unwrap();
        assert!(tcp(outside, HOST, 8080).is_err());
        assert!(sh("ip -o link").contains(": vi"));
        drop(first);
        let next = bridge(Table::open("vt").unwrap());
        next.reconcile(std::slice::from_ref(&a.record)).unwrap();
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        assert!(!sh("ip -o link").contains(": vi"));
        next.remove().unwrap();
    });
}

/// What is not translated takes no detour.
#[test]
fn link_local_addresses_of_the_host_are_refused_at_once() {
    with_outside(|outside| {
        sh("ip addr add fe80::2/64 dev up0 nodad");
        outside
            .run(|| sh("ip addr add fe80::1/64 dev eth0 nodad"))
            .unwrap();
        let bridge = bridge(Table::open_behind_input("vt").unwrap());
        let mut a = bridge.attach(&plain()).unwrap();
        tcp_server_of_both(&a.netns, 80);
        let _kept = bridge
            .publish(&mut a.record, &[anywhere(8080, 80, Protocol::Tcp)])
            .unwrap();
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        let refused = outside
            .run(|| {
                let scope = sh("ip -o link show eth0 | cut -d: -f1").trim().parse().unwrap();
                let to = std::net::SocketAddrV6::new("fe80::2".parse().unwrap(), 8080, 0, scope);
                std::net::TcpStream::connect_timeout(&to.into(), TIMEOUT).unwrap_err()
            })
            .unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        bridge.remove().unwrap();
    });
}
