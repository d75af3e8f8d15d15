//! Bridges with both families: real packets, published ports, and what is put back.

mod common;
use common::*;
use std::io::ErrorKind as Io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;
use vessel_network::*;

const HOST6: &str = "2001:db8:1::2";
const OUTSIDE6: &str = "2001:db8:1::1";

fn six(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn both() -> BridgeConfig {
    BridgeConfig {
        v6: Some(ConfigV6 {
            subnet: "fd00:aa::/64".parse().unwrap(),
            gateway: None,
            range: None,
            taken: vec!["fd00:aa::2".parse().unwrap()],
        }),
        ..config()
    }
}

/// A wish for a port on every address there is.
fn anywhere(host_port: u16, target_port: u16) -> PortSpec {
    PortSpec {
        host_ip: None,
        ..wish("0.0.0.0", host_port, target_port, Protocol::Tcp)
    }
}

fn with_both_outside(test: impl Fn(&Netns) + Send + Sync) {
    with_and_without_bridge_netfilter(|outside| {
        sh(&format!("ip addr add {HOST6}/64 dev up0 nodad"));
        outside
            .run(|| sh(&format!("ip addr add {OUTSIDE6}/64 dev eth0 nodad")))
            .unwrap();
        test(outside);
    });
}

#[test]
fn endpoints_talk_to_each_other_to_the_host_and_to_the_outside() {
    with_both_outside(|outside| {
        let bridge = Bridge::ensure(&both()).unwrap();
        let host = Netns::current().unwrap();
        let a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        let address = |end: &Endpoint| IpAddr::V6(end.record.v6.unwrap().address);
        // One that is taken is passed over.
        assert_eq!(address(&a), six("fd00:aa::3"));
        assert_eq!(address(&b), six("fd00:aa::4"));
        assert_eq!(a.record.v6.unwrap().gateway, six("fd00:aa::1"));
        for netns in [&b.netns, &host, outside] {
            tcp_server_of_both(netns, 80);
        }
        let begin = Instant::now();
        assert_eq!(tcp(&a.netns, address(&b), 80).unwrap(), "fd00:aa::3");
        assert_eq!(tcp(&a.netns, six("fd00:aa::1"), 80).unwrap(), "fd00:aa::3");
        assert_eq!(tcp(&host, address(&b), 80).unwrap(), "fd00:aa::1");
        // Outside they are the host.
        assert_eq!(tcp(&a.netns, six(OUTSIDE6), 80).unwrap(), HOST6);
        assert_eq!(tcp(&a.netns, OUTSIDE, 80).unwrap(), HOST.to_string());
        assert!(begin.elapsed() < TIMEOUT / 2, "{:?}", begin.elapsed());
        let inside = a.netns.run(|| sh("ip -6 addr; ip -6 route")).unwrap();
        assert!(inside.contains("inet6 fd00:aa::3/64 scope global"), "{inside}");
        assert!(inside.contains("default via fd00:aa::1 dev eth0"), "{inside}");
        // Not published: not reached, though the way be known.
        outside
            .run(|| sh(&format!("ip route add fd00:aa::/64 via {HOST6}")))
            .unwrap();
        assert!(tcp(outside, address(&b), 80).is_err());
        bridge.remove().unwrap();
    });
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    with_both_outside(|outside| {
        let translated = sh("sysctl -n net.bridge.bridge-nf-call-ip6tables") == "0\n";
        let bridge = Bridge::ensure(&both()).unwrap();
        let host = Netns::current().unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let b = bridge.attach(&plain()).unwrap();
        tcp_server_of_both(&a.netns, 80);
        tcp_server_of_both(&host, 9000);
        let kept = bridge
            .publish(
                &mut a.record,
                &[
                    anywhere(8080, 80),
                    anywhere(0, 80),
                    wish("::", 8081, 80, Protocol::Tcp),
                    wish("::1", 8082, 80, Protocol::Tcp),
                ],
            )
            .unwrap();
        let ports: Vec<String> = kept.iter().map(|r| r.port.to_string()).collect();
        assert_eq!(ports[..2], ["0.0.0.0:8080->80/tcp", "[::]:8080->80/tcp"]);
        assert_eq!(kept[2].port.host_port, kept[3].port.host_port);
        assert_eq!(tcp(outside, six(HOST6), 8080).unwrap(), OUTSIDE6);
        assert_eq!(
            tcp(outside, six(HOST6), kept[3].port.host_port).unwrap(),
            OUTSIDE6
        );
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        assert_eq!(tcp(&host, six(HOST6), 8080).unwrap(), HOST6);
        for from in [&b.netns, &a.netns] {
            for to in [HOST6, "fd00:aa::1"] {
                assert_eq!(tcp(from, six(to), 8080).unwrap(), "fd00:aa::1", "{to}");
            }
        }
        // Of one family only, and of one address.
        assert_eq!(tcp(outside, six(HOST6), 8081).unwrap(), OUTSIDE6);
        assert!(tcp(outside, HOST, 8081).is_err());
        assert!(tcp(outside, six(HOST6), 8082).is_err());
        // The host's own loopback: or, where bridge netfilter is in the way, refused at once.
        for port in [8080, 8082] {
            let begin = Instant::now();
            match tcp(&host, Ipv6Addr::LOCALHOST, port) {
                Ok(client) => assert!(translated && client == "fd00:aa::1", "{client}"),
                Err(error) => assert!(!translated && error.kind() == Io::ConnectionRefused, "{error}"),
            }
            assert!(begin.elapsed() < TIMEOUT / 2);
        }
        // What is nobody's port is the host's own business still.
        assert_eq!(tcp(&host, Ipv6Addr::LOCALHOST, 9000).unwrap(), "::1");
        // Nobody on a wire reaches what is published on ::1, nor the host's own there.
        b.netns
            .run(|| sh("ip -6 rule add pref 1 from all lookup 7; ip -6 rule del pref 0; ip -6 rule add pref 2 from all lookup local; ip -6 route add table 7 ::1/128 via fd00:aa::1 dev eth0 src fd00:aa::4"))
            .unwrap();
        for port in [8082, 9000] {
            assert!(tcp(&b.netns, Ipv6Addr::LOCALHOST, port).is_err(), "{port}");
        }
        bridge.unpublish(&mut a.record).unwrap();
        assert_eq!(
            tcp(outside, six(HOST6), 8080).unwrap_err().kind(),
            Io::ConnectionRefused
        );
        bridge.remove().unwrap();
    });
}

#[test]
fn what_was_lost_is_put_back_and_what_was_made_is_removed() {
    with_both_outside(|outside| {
        let dump = || {
            sh(
                "nft -n list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'; ip -o -6 addr show scope global; ip -o link | wc -l",
            )
        };
        // Once it forwards, for whomever, it counts as a router.
        sh("sysctl -q net.ipv6.conf.all.forwarding=1");
        let before = dump();
        let bridge = Bridge::ensure(&both()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        tcp_server_of_both(&a.netns, 80);
        let _kept = bridge.publish(&mut a.record, &[anywhere(8080, 80)]).unwrap();
        let records = [a.record.clone()];
        // As it is stored.
        let text = serde_json::to_string(&records).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<EndpointRecord>>(&text).unwrap(),
            records
        );
        let made = dump();
        drop(bridge);
        sh("nft flush ruleset; ip addr flush dev vt0; ip -6 addr flush dev vt0");
        let again = Bridge::ensure(&both()).unwrap();
        let report = again.reconcile(&records).unwrap();
        assert_eq!(report.restored_ports, 2);
        assert_eq!(dump(), made);
        assert_eq!(tcp(outside, six(HOST6), 8080).unwrap(), OUTSIDE6);
        // The address is known to be taken.
        let same = EndpointRequest {
            address_v6: Some(a.record.v6.unwrap().address),
            ..plain()
        };
        assert_eq!(again.attach(&same).unwrap_err().kind(), ErrorKind::Conflict);
        again.release(&a.record).unwrap();
        again.flush();
        let b = again.attach(&same).unwrap();
        assert_eq!(b.record.v6, a.record.v6);
        again.remove().unwrap();
        assert_eq!(dump(), before);
    });
}

#[test]
fn ipv6_is_switched_on_and_off_as_asked() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let off = |netns: &Netns| {
            netns
                .run(|| sh("cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6"))
                .unwrap()
        };
        assert_eq!(off(&a.netns), "1\n");
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/vt0/disable_ipv6"), "1\n");
        assert_eq!(sh("sysctl -n net.ipv6.conf.all.forwarding"), "0\n");
        // Every address is one of IPv4 here; a certain one of IPv6 is refused.
        let kept = bridge
            .publish(
                &mut a.record,
                &[anywhere(8080, 80), wish("::", 8081, 80, Protocol::Tcp)],
            )
            .unwrap();
        assert!(kept.iter().all(|r| r.port.host_ip.is_ipv4()) && kept.len() == 2);
        let error = bridge
            .publish(&mut a.record, &[wish("::1", 8082, 80, Protocol::Tcp)])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        let wanted = EndpointRequest {
            address_v6: Some("fd00:aa::9".parse().unwrap()),
            ..plain()
        };
        assert_eq!(bridge.attach(&wanted).unwrap_err().kind(), ErrorKind::Invalid);
        bridge.remove().unwrap();
        // A namespace that has it switched off gets it for the interface.
        let bridge = Bridge::ensure(&both()).unwrap();
        let netns = Netns::new_isolated(&NetnsConfig {
            sysctls: vec![("ipv6/conf/default/disable_ipv6".into(), "1".into())],
        })
        .unwrap();
        let a = bridge
            .attach_to(std::os::fd::AsFd::as_fd(&netns), &wanted)
            .unwrap();
        assert_eq!(a.v6.unwrap().address, six("fd00:aa::9"));
        assert_eq!(off(&netns), "0\n");
        tcp_server_of_both(&netns, 80);
        assert!(tcp(&Netns::current().unwrap(), six("fd00:aa::9"), 80).is_ok());
        bridge.remove().unwrap();
    });
}

/// A host that forwards forgets what routers advertise, unless it is told not to.
#[test]
fn the_hosts_own_way_out_stays() {
    with_outside(|_| {
        // None of them has heard of a router yet, as after a start of the host.
        sh(
            "ip link add quiet type bridge; ip link add deaf type bridge; sysctl -q net.ipv6.conf.up0.accept_ra=1 net.ipv6.conf.deaf.accept_ra=0",
        );
        let four = Bridge::ensure(&BridgeConfig {
            name: "vt4".into(),
            ..config()
        })
        .unwrap();
        let end = four.attach(&plain()).unwrap();
        let accepts = |name: &str| sh(&format!("sysctl -n net.ipv6.conf.{name}.accept_ra"));
        let before = [accepts("vt4"), accepts(&end.record.ifname)];
        let table = Table::open("vt").unwrap();
        let both = BridgeConfig {
            subnet: Some("172.30.0.0/24".parse().unwrap()),
            ..both()
        };
        let made = Bridge::ensure_all(
            &table,
            &[
                BridgeConfig {
                    name: "vt4".into(),
                    ..config()
                },
                both,
            ],
        );
        assert!(made.unwrap().iter().all(Result::is_ok));
        assert_eq!(sh("sysctl -n net.ipv6.conf.all.forwarding"), "1\n");
        for (name, value) in [("up0", "2\n"), ("quiet", "2\n"), ("deaf", "0\n"), ("vt0", "0\n")] {
            assert_eq!(accepts(name), value, "{name}");
        }
        assert_eq!([accepts("vt4"), accepts(&end.record.ifname)], before);
    });
}

/// Two bridges with both families and a table.
fn two_bridges() -> [BridgeConfig; 2] {
    let second = BridgeConfig {
        name: "vt1".into(),
        subnet: Some("172.31.7.0/24".parse().unwrap()),
        v6: Some(ConfigV6 {
            subnet: "fd00:bb::/64".parse().unwrap(),
            gateway: None,
            range: None,
            taken: Vec::new(),
        }),
        ..config()
    };
    let first = BridgeConfig {
        subnet: Some("172.31.6.0/24".parse().unwrap()),
        ..both()
    };
    [first, second]
}

#[test]
fn ports_of_every_bridge_are_at_the_loopback_address() {
    with_outside(|_| {
        sh("sysctl -q net.bridge.bridge-nf-call-ip6tables=0");
        let table = Table::open("vt").unwrap();
        let host = Netns::current().unwrap();
        let made = Bridge::ensure_all(&table, &two_bridges()).unwrap();
        let bridges: Vec<Bridge> = made.into_iter().map(Result::unwrap).collect();
        let ends: Vec<_> = bridges
            .iter()
            .zip(8080..)
            .map(|(bridge, port)| {
                let mut end = bridge.attach(&plain()).unwrap();
                tcp_server_of_both(&end.netns, 80);
                let kept = bridge.publish(&mut end.record, &[anywhere(port, 80)]).unwrap();
                (end, kept)
            })
            .collect();
        for (port, gateway) in [(8080, "fd00:aa::1"), (8081, "fd00:bb::1")] {
            assert_eq!(tcp(&host, Ipv6Addr::LOCALHOST, port).unwrap(), gateway);
        }
        // Made to match again, and with one of them gone.
        for (bridge, (end, _)) in bridges.iter().zip(&ends) {
            bridge.reconcile(std::slice::from_ref(&end.record)).unwrap();
        }
        bridges[1].retire().unwrap();
        assert!(tcp(&host, Ipv6Addr::LOCALHOST, 8080).is_ok());
        bridges[0].retire().unwrap();
    });
}

/// What is in the way of IPv6 is in the way of IPv6 only, and no longer than it is there.
#[test]
fn rules_that_the_kernel_refuses_harm_nobody_else() {
    with_outside(|outside| {
        let table = Table::open("vt").unwrap();
        // Something else by the name of one of our maps.
        sh("nft 'add table ip6 vt; add set ip6 vt published { type inet_service; }'");
        let [first, second] = two_bridges();
        let four = BridgeConfig {
            v6: None,
            ..first.clone()
        };
        let made = Bridge::ensure_all(&table, &[four.clone(), second.clone()]).unwrap();
        let [Ok(bridge), Err(error)] = made.as_slice() else {
            panic!("one of them was to fail");
        };
        assert!(error.to_string().contains("there is no IPv6"), "{error}");
        // Whoever had it has its rules for IPv4, as at a start of the daemon with endpoints that live on.
        assert!(sh("nft list table ip vt").contains("vt1"));
        table.remove("vt1").unwrap();
        assert!(!sh("nft list table ip vt").contains("vt1"));
        let mut end = bridge.attach(&plain()).unwrap();
        tcp_server(&end.netns, 80);
        let _kept = bridge.publish(&mut end.record, &[anywhere(8080, 80)]).unwrap();
        assert_eq!(tcp(outside, HOST, 8080).unwrap(), OUTSIDE.to_string());
        bridge.reconcile(std::slice::from_ref(&end.record)).unwrap();
        assert!(Bridge::ensure_all(&table, std::slice::from_ref(&second)).unwrap()[0].is_err());
        let more = BridgeConfig {
            name: "vt2".into(),
            subnet: Some("172.31.8.0/24".parse().unwrap()),
            ..config()
        };
        assert!(Bridge::ensure_all(&table, &[more]).unwrap()[0].is_ok());
        sh("nft delete table ip6 vt");
        assert!(Bridge::ensure_all(&table, &[second]).unwrap()[0].is_ok());
        assert!(sh("nft list table ip6 vt").contains("fd00:bb::/64"));
    });
}

/// Who became a router of IPv6 after the daemon began, and before it had to do with IPv6, stays one.
#[test]
fn a_router_of_ipv6_stays_one() {
    with_outside(|_| {
        let table = Table::open("vt").unwrap();
        let [first, second] = two_bridges();
        let four = BridgeConfig { v6: None, ..first };
        assert!(Bridge::ensure_all(&table, &[four]).unwrap()[0].is_ok());
        sh("sysctl -q net.ipv6.conf.all.forwarding=1");
        assert!(Bridge::ensure_all(&table, std::slice::from_ref(&second)).unwrap()[0].is_ok());
        assert!(!sh("nft list table ip6 vt").contains("chain others"));
    });
    with_outside(|_| {
        let [_, second] = two_bridges();
        for _ in 0..2 {
            // The second time it is ours that forwards.
            let table = Table::open("vt").unwrap();
            assert!(Bridge::ensure_all(&table, std::slice::from_ref(&second)).unwrap()[0].is_ok());
            assert!(sh("nft list table ip6 vt").contains("chain others"));
        }
    });
}

/// A bridge that an administrator made is his before and after.
#[test]
fn a_bridge_of_somebody_else_keeps_what_it_has() {
    with_outside(|outside| {
        sh(&format!("ip addr add {HOST6}/64 dev up0 nodad"));
        outside
            .run(|| sh(&format!("ip addr add {OUTSIDE6}/64 dev eth0 nodad")))
            .unwrap();
        sh(
            "ip link add vt0 type bridge; ip link set vt0 up; ip addr add 172.31.6.1/24 dev vt0; ip addr add fd00:aa::1/64 dev vt0 nodad; sysctl -q net.ipv6.conf.vt0.accept_ra=1",
        );
        let look = || {
            sh(
                "ip -o -6 addr show dev vt0 | sed 's/tentative//'; ip -6 route show table local ::1; cd /proc/sys/net/ipv6/conf/vt0; cat accept_ra accept_dad disable_ipv6",
            )
        };
        let before = look();
        let table = Table::open("vt").unwrap();
        let four = BridgeConfig {
            foreign: true,
            v6: None,
            ..both()
        };
        let made = Bridge::ensure_all(&table, &[four])
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        assert_eq!(look(), before);
        made.retire().unwrap();
        let six = BridgeConfig {
            foreign: true,
            ..both()
        };
        let made = Bridge::ensure_all(&table, &[six])
            .unwrap()
            .pop()
            .unwrap()
            .unwrap();
        let end = made.attach(&plain()).unwrap();
        tcp_server_of_both(outside, 80);
        assert_eq!(tcp(&end.netns, self::six(OUTSIDE6), 80).unwrap(), HOST6);
        made.release(&end.record).unwrap();
        made.retire().unwrap();
        assert_eq!(look(), before);
    });
}
