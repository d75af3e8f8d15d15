//! What the host is to the addresses behind a bridge: routed to, or isolated from.

mod common;
use common::*;
use vessel_network::*;

const SUBNET: &str = "10.77.0.0/24";
const SUBNET_V6: &str = "fd77::/64";

fn with_modes(mode: GatewayMode, internal: bool) -> BridgeConfig {
    BridgeConfig {
        subnet: Some(SUBNET.parse().unwrap()),
        v6: Some(ConfigV6 {
            subnet: SUBNET_V6.parse().unwrap(),
            gateway: None,
            range: None,
            taken: Vec::new(),
        }),
        internal,
        mode_v4: mode,
        mode_v6: mode,
        ..config()
    }
}

/// The outside knows the way, by both families.
fn route(outside: &Netns) {
    sh("ip -6 addr add fd00::2/64 dev up0 nodad; ip -6 route add default via fd00::1");
    let way = format!(
        "ip -6 addr add fd00::1/64 dev eth0 nodad; ip route add {SUBNET} via {HOST}; ip -6 route add {SUBNET_V6} via fd00::2"
    );
    outside.run(|| sh(&way)).unwrap();
}

#[test]
fn published_ports_are_reached_at_their_own_addresses() {
    with_and_without_bridge_netfilter(|outside| {
        route(outside);
        let bridge = Bridge::ensure(&with_modes(GatewayMode::Routed, false)).unwrap();
        let host = Netns::current().unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        for port in [80, 81] {
            tcp_server_of_both(&a.netns, port);
        }
        tcp_server_of_both(outside, 80);
        let v6 = a.record.v6.unwrap().address;
        let any = PortSpec {
            host_ip: None,
            host_ports: 8080..=8080,
            target_port: 80,
            protocol: Protocol::Tcp,
        };
        // The same port for the host again: it is none of the host.
        let twice = [
            any.clone(),
            PortSpec {
                host_ports: 9090..=9090,
                ..any
            },
        ];
        let reserved = bridge.publish(&mut a.record, &twice).unwrap();
        assert_eq!(reserved.len(), 0);
        assert_eq!(a.record.ports.len(), 2, "{:?}", a.record.ports);
        let reachable = |published: bool| {
            // By the client's own address, and no other port.
            for (to, from) in [
                (a.record.address, OUTSIDE.into()),
                (v6.into(), "fd00::1".parse().unwrap()),
            ] {
                let to: std::net::IpAddr = to;
                let from: std::net::IpAddr = from;
                assert_eq!(
                    tcp(outside, to, 80).ok(),
                    published.then(|| from.to_string()),
                    "{to}"
                );
                assert!(tcp(outside, to, 81).is_err());
            }
        };
        reachable(true);
        assert!(tcp(outside, HOST, 8080).is_err() && tcp(&host, HOST, 8080).is_err());
        let ping = format!(
            "busybox ping -c 1 -W 2 {} && busybox ping -c 1 -W 2 {v6}",
            a.record.address
        );
        outside
            .run(|| sh(&format!("! command -v busybox || {{ {ping}; }}")))
            .unwrap();
        // Those of one bridge reach each other; outside they are themselves.
        assert_eq!(
            tcp(&b.netns, a.record.address, 81).unwrap(),
            b.record.address.to_string()
        );
        assert_eq!(tcp(&b.netns, OUTSIDE, 80).unwrap(), b.record.address.to_string());
        assert_eq!(
            tcp(&b.netns, "fd00::1".parse::<std::net::IpAddr>().unwrap(), 80).unwrap(),
            b.record.v6.unwrap().address.to_string()
        );
        // Port 80 of the host is somebody else's to have.
        let mut other = bridge.attach(&plain()).unwrap();
        tcp_server_of_both(&other.netns, 80);
        bridge
            .publish(&mut other.record, &[wish("0.0.0.0", 1, 80, Protocol::Tcp)])
            .unwrap();
        assert!(tcp(outside, other.record.address, 80).is_ok());
        // Lost rules come back, and what is withdrawn is not reached.
        sh("nft flush ruleset");
        let found = bridge
            .reconcile(&[a.record.clone(), b.record.clone(), other.record.clone()])
            .unwrap();
        assert_eq!((found.restored_ports, found.rejected.len()), (3, 0));
        reachable(true);
        bridge.unpublish(&mut a.record).unwrap();
        assert!(a.record.ports.is_empty());
        for to in [a.record.address, v6.into()] {
            assert!(tcp(outside, to, 80).is_err(), "{to}");
        }
        bridge.remove().unwrap();
    });
}

#[test]
fn families_have_modes_of_their_own() {
    with_outside(|outside| {
        route(outside);
        let bridge = Bridge::ensure(&BridgeConfig {
            mode_v4: GatewayMode::Nat,
            ..with_modes(GatewayMode::Routed, false)
        })
        .unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        tcp_server_of_both(&a.netns, 80);
        let spec = PortSpec {
            host_ip: None,
            host_ports: 8080..=8080,
            target_port: 80,
            protocol: Protocol::Tcp,
        };
        let reserved = bridge.publish(&mut a.record, &[spec]).unwrap();
        assert_eq!(reserved.len(), 1);
        assert!(tcp(outside, HOST, 8080).is_ok());
        assert!(tcp(outside, a.record.address, 80).is_err());
        assert!(tcp(outside, a.record.v6.unwrap().address, 80).is_ok());
        bridge.remove().unwrap();
    });
}

#[test]
fn an_isolated_bridge_has_no_address() {
    with_outside(|_| {
        let bridge = Bridge::ensure(&with_modes(GatewayMode::Isolated, true)).unwrap();
        let host = Netns::current().unwrap();
        let a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        assert_eq!(sh("ip -o addr show dev vt0"), "");
        for netns in [&a.netns, &b.netns] {
            tcp_server_of_both(netns, 80);
        }
        let v6 = b.record.v6.unwrap().address;
        assert!(tcp(&a.netns, b.record.address, 80).is_ok() && tcp(&a.netns, v6, 80).is_ok());
        assert!(tcp(&host, b.record.address, 80).is_err() && tcp(&host, v6, 80).is_err());
        // Also after a look at everything.
        bridge.reconcile(&[a.record.clone(), b.record.clone()]).unwrap();
        assert_eq!(sh("ip -o addr show dev vt0"), "");
        bridge.remove().unwrap();
    });
}
