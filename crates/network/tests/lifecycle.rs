//! What is made is found, kept, repaired and removed.

mod common;
use common::*;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use vessel_network::*;

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nothing_is_left_behind() {
    with_outside(|_| {
        let before = dump();
        let bridge = Bridge::ensure(&config()).unwrap();
        let empty = dump();
        assert_ne!(before, empty);
        let mut kept = Vec::new();
        let mut endpoints = Vec::new();
        for n in 0..3 {
            let mut e = bridge.attach(&plain()).unwrap();
            let specs = [
                wish("0.0.0.0", 8000 + n, 80, Protocol::Tcp),
                wish("127.0.0.1", 9000 + n, 80, Protocol::Udp),
            ];
            kept.push(bridge.publish(&mut e.record, &specs).unwrap());
            endpoints.push(e);
        }
        let inventory = Bridge::inventory(&config()).unwrap();
        assert_eq!((inventory.interfaces.len(), inventory.ports.len()), (3, 6));
        for e in endpoints {
            bridge.release(&e.record).unwrap();
        }
        bridge.flush();
        assert_eq!(dump(), empty);
        bridge.remove().unwrap();
        assert_eq!(dump(), before);
    });
}

#[test]
fn a_namespace_that_lives_on_loses_its_interface_at_release() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let e = bridge.attach(&plain()).unwrap();
        bridge.release(&e.record).unwrap();
        bridge.flush();
        assert!(Bridge::inventory(&config()).unwrap().interfaces.is_empty());
        // Its address is free again.
        let same = EndpointRequest {
            address: Some(v4(e.record.address)),
            ..plain()
        };
        bridge.attach(&same).unwrap();
        bridge.remove().unwrap();
    });
}

#[test]
fn an_address_that_is_being_given_up_can_be_asked_for_at_once() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&BridgeConfig {
            subnet: Some("10.9.8.0/30".parse().unwrap()),
            ..config()
        })
        .unwrap();
        for _ in 0..3 {
            let e = bridge.attach(&plain()).unwrap();
            assert_eq!(e.record.address.to_string(), "10.9.8.2");
            assert_eq!(bridge.attach(&plain()).unwrap_err().kind(), ErrorKind::Exhausted);
            bridge.release(&e.record).unwrap();
        }
        bridge.remove().unwrap();
    });
}

#[test]
fn special_addresses_and_bad_ones() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let request = EndpointRequest {
            address: Some(Ipv4Addr::new(172, 17, 9, 9)),
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            ..plain()
        };
        let e = bridge.attach(&request).unwrap();
        assert!(
            e.netns
                .run(|| sh("ip addr show eth0"))
                .unwrap()
                .contains("02:00:00:00:00:07")
        );
        let again = bridge.attach(&request).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
        let outside = EndpointRequest {
            address: Some(Ipv4Addr::new(10, 0, 0, 1)),
            ..plain()
        };
        assert_eq!(bridge.attach(&outside).unwrap_err().kind(), ErrorKind::Invalid);
        let existing = Netns::new_isolated(&NetnsConfig::default()).unwrap();
        let record = bridge
            .attach_to(std::os::fd::AsFd::as_fd(&existing), &plain())
            .unwrap();
        assert_eq!(record.address.to_string(), "172.17.0.2");
        assert!(
            bridge
                .attach_to(std::os::fd::AsFd::as_fd(&existing), &plain())
                .unwrap_err()
                .to_string()
                .contains("cannot create the interface pair")
        );
        bridge.flush();
        assert_eq!(Bridge::inventory(&config()).unwrap().interfaces.len(), 2);
        bridge.remove().unwrap();
    });
}

#[test]
fn the_subnet_avoids_the_hosts_and_is_kept() {
    with_outside(|_| {
        sh("ip addr add 172.17.5.1/24 dev up0; ip route add 172.18.0.0/15 via 203.0.113.1");
        let bridge = Bridge::ensure(&config()).unwrap();
        assert_eq!(bridge.subnet().to_string(), "172.20.0.0/16");
        assert_eq!(bridge.gateway().to_string(), "172.20.0.1");
        let other = BridgeConfig {
            name: "vt1".into(),
            table: "vt1".into(),
            ..config()
        };
        let second = Bridge::ensure(&other).unwrap();
        assert_eq!(second.subnet().to_string(), "172.21.0.0/16");
        drop(bridge);
        assert_eq!(
            Bridge::ensure(&config()).unwrap().subnet().to_string(),
            "172.20.0.0/16"
        );
        let clash = BridgeConfig {
            name: "vt2".into(),
            table: "vt2".into(),
            subnet: Some("172.20.5.0/24".parse().unwrap()),
            ..config()
        };
        assert_eq!(
            Bridge::ensure(&clash).err().map(|e| e.kind()),
            Some(ErrorKind::Conflict)
        );
        let not_a_bridge = BridgeConfig {
            name: "up0".into(),
            ..config()
        };
        let error = Bridge::ensure(&not_a_bridge).err().unwrap().to_string();
        assert!(error.contains("is no bridge but veth"), "{error}");
    });
}

#[test]
fn a_taken_port_is_refused_with_its_holder() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let mut b = bridge.attach(&plain()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:7001").unwrap();
        let before = dump();
        // Of two wishes one fails: neither is granted.
        let error = bridge
            .publish(
                &mut a.record,
                &[
                    wish("0.0.0.0", 7000, 80, Protocol::Tcp),
                    wish("0.0.0.0", 7001, 80, Protocol::Tcp),
                ],
            )
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let text = error.to_string();
        assert!(
            text.contains("port is already allocated: 0.0.0.0:7001/tcp")
                && text.contains(&std::process::id().to_string()),
            "{text}"
        );
        assert!(a.record.ports.is_empty());
        assert_eq!(dump(), before);
        drop(listener);
        let kept = bridge
            .publish(&mut a.record, &[wish("0.0.0.0", 7001, 80, Protocol::Tcp)])
            .unwrap();
        // By the books, even when the reservation is lost; and by the socket, for others.
        assert!(TcpListener::bind("0.0.0.0:7001").is_err());
        let text = bridge
            .publish(&mut b.record, &[wish("127.0.0.1", 7001, 80, Protocol::Tcp)])
            .unwrap_err()
            .to_string();
        assert!(text.contains(&a.record.ifname), "{text}");
        drop(kept);
        assert_eq!(
            bridge
                .publish(&mut b.record, &[wish("0.0.0.0", 7001, 80, Protocol::Tcp)])
                .unwrap_err()
                .kind(),
            ErrorKind::Conflict
        );
        // A reservation of somebody else, such as a second daemon, has a holder with a name, too.
        let foreign = Bridge::ensure(&BridgeConfig {
            name: "vt1".into(),
            table: "vt1".into(),
            ..config()
        })
        .unwrap();
        let mut c = foreign.attach(&plain()).unwrap();
        let _theirs = foreign
            .publish(&mut c.record, &[wish("0.0.0.0", 7010, 80, Protocol::Tcp)])
            .unwrap();
        let text = bridge
            .publish(&mut b.record, &[wish("0.0.0.0", 7010, 80, Protocol::Tcp)])
            .unwrap_err()
            .to_string();
        assert!(
            text.contains(&format!("process {}", std::process::id())),
            "{text}"
        );
        foreign.remove().unwrap();
        // Another protocol is another port.
        bridge
            .publish(&mut b.record, &[wish("0.0.0.0", 7001, 80, Protocol::Udp)])
            .unwrap();
        // Twice in one request.
        assert!(
            bridge
                .publish(
                    &mut b.record,
                    &[
                        wish("0.0.0.0", 7002, 80, Protocol::Tcp),
                        wish("0.0.0.0", 7002, 81, Protocol::Tcp)
                    ]
                )
                .is_err()
        );
        let nowhere = bridge
            .publish(&mut b.record, &[wish("198.51.100.1", 7003, 80, Protocol::Tcp)])
            .unwrap_err()
            .to_string();
        assert!(
            nowhere.contains("198.51.100.1 is not an address of this host"),
            "{nowhere}"
        );
        assert!(
            bridge
                .publish(&mut b.record, &[wish("::1", 7003, 80, Protocol::Tcp)])
                .is_err()
        );
        bridge.remove().unwrap();
    });
}

#[test]
fn ranges_and_ephemeral_ports() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let spec = |start, end, target| PortSpec {
            host_ip: Some("0.0.0.0".parse().unwrap()),
            host_ports: start..=end,
            target_port: target,
            protocol: Protocol::Tcp,
        };
        let kept = bridge
            .publish(
                &mut a.record,
                &[spec(7000, 7002, 80), spec(7000, 7002, 81), spec(0, 0, 82)],
            )
            .unwrap();
        let ports: Vec<u16> = kept.iter().map(|r| r.port.host_port).collect();
        assert_eq!(ports[..2], [7000, 7001]);
        assert!((32768..=60999).contains(&ports[2]), "{ports:?}");
        bridge.publish(&mut a.record, &[spec(7000, 7002, 83)]).unwrap();
        assert_eq!(
            bridge
                .publish(&mut a.record, &[spec(7000, 7002, 84)])
                .unwrap_err()
                .kind(),
            ErrorKind::Exhausted
        );
        assert_eq!(
            bridge
                .publish(&mut a.record, &[spec(0, 0, 0)])
                .unwrap_err()
                .kind(),
            ErrorKind::Invalid
        );
        // A wide range is one transaction, too.
        let many: Vec<PortSpec> = (20000..20800).map(|p| spec(p, p, p)).collect();
        let many = bridge.publish(&mut a.record, &many).unwrap();
        assert_eq!(many.len(), 800);
        assert_eq!(Bridge::inventory(&config()).unwrap().ports.len(), 804);
        bridge.unpublish(&mut a.record).unwrap();
        assert!(Bridge::inventory(&config()).unwrap().ports.is_empty());
        bridge.remove().unwrap();
    });
}

/// A server that was stopped a moment ago leaves closed connections in TIME_WAIT; its port is free all the same.
#[test]
fn closed_connections_do_not_hold_a_port() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:7005").unwrap();
        let client = TcpStream::connect("127.0.0.1:7005").unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(server);
        drop(client);
        drop(listener);
        eventually("TIME_WAIT", || {
            sh("ss -tanH state time-wait sport = :7005 | wc -l").trim() == "1"
        });
        let kept = bridge
            .publish(&mut a.record, &[wish("0.0.0.0", 7005, 80, Protocol::Tcp)])
            .unwrap();
        // And the reservation is a real one: even std's SO_REUSEADDR listener is kept off.
        assert!(TcpListener::bind("0.0.0.0:7005").is_err());
        drop(kept);
        bridge.remove().unwrap();
    });
}

/// The daemon is killed: what has a record stays and works, the rest is removed.
#[test]
fn a_new_daemon_takes_over() {
    with_outside(|outside| {
        let (survivor, kept, lost_ns) = {
            let bridge = Bridge::ensure(&config()).unwrap();
            let mut survivor = bridge.attach(&plain()).unwrap();
            tcp_server(&survivor.netns, 80);
            let kept = bridge
                .publish(&mut survivor.record, &[wish("0.0.0.0", 8080, 80, Protocol::Tcp)])
                .unwrap();
            let mut lost = bridge.attach(&plain()).unwrap();
            drop(
                bridge
                    .publish(&mut lost.record, &[wish("0.0.0.0", 8081, 80, Protocol::Tcp)])
                    .unwrap(),
            );
            (survivor, kept, lost)
        };
        let json = serde_json::to_string(&survivor.record).unwrap();
        let record: EndpointRecord = serde_json::from_str(&json).unwrap();
        assert_eq!(record, survivor.record);
        // Somebody meddled: rules are gone, a stray port appeared.
        sh(
            "nft flush chain ip vt prerouting; nft delete element ip vt published_any '{ tcp . 8080 }'; nft add element ip vt published_any '{ udp . 99 : 172.17.0.9 . 9 }'",
        );
        sh(&format!("ip link set {} nomaster", record.ifname));
        assert!(tcp(outside, HOST, 8080).is_err());
        let bridge = Bridge::ensure(&config()).unwrap();
        let report = bridge.reconcile(std::slice::from_ref(&record)).unwrap();
        assert_eq!(
            report.removed_interfaces,
            std::slice::from_ref(&lost_ns.record.ifname)
        );
        assert_eq!((report.removed_ports, report.restored_ports), (2, 1));
        assert_eq!(report.reattached, std::slice::from_ref(&record.ifname));
        assert!(report.lost.is_empty());
        eventually("traffic", || tcp(outside, HOST, 8080).is_ok());
        // Idempotent; and its address and port are known to be taken.
        assert_eq!(
            bridge.reconcile(std::slice::from_ref(&record)).unwrap(),
            Reconciled::default()
        );
        let next = bridge.attach(&EndpointRequest {
            address: Some(v4(record.address)),
            ..plain()
        });
        assert_eq!(next.unwrap_err().kind(), ErrorKind::Conflict);
        // Everything of ours is gone, the bridge too: all of it comes back.
        sh("nft delete table ip vt; ip link del vt0");
        let report = bridge.reconcile(std::slice::from_ref(&record)).unwrap();
        assert_eq!((report.restored_ports, report.reattached.len()), (1, 1));
        eventually("traffic", || tcp(outside, HOST, 8080).is_ok());
        // Somebody flushes everything: the next publication notices.
        sh("nft flush ruleset");
        let mut other = bridge.attach(&plain()).unwrap();
        let _others = bridge
            .publish(&mut other.record, &[wish("0.0.0.0", 8082, 80, Protocol::Tcp)])
            .unwrap();
        eventually("traffic", || tcp(outside, HOST, 8080).is_ok());
        assert_eq!(Bridge::inventory(&config()).unwrap().ports.len(), 2);
        // Two records with one address: the second is refused, its interface stays.
        let double = EndpointRecord {
            ifname: "ve0123456789".into(),
            ..record.clone()
        };
        let report = bridge.reconcile(&[record.clone(), double]).unwrap();
        assert_eq!(report.rejected.len(), 1);
        assert!(report.rejected[0].1.contains("already in use"), "{report:?}");
        assert!(report.removed_interfaces.is_empty());
        // The endpoint dies without a word.
        sh(&format!("ip link del {}", record.ifname));
        assert_eq!(
            bridge.reconcile(std::slice::from_ref(&record)).unwrap().lost,
            std::slice::from_ref(&record.ifname)
        );
        bridge.release(&record).unwrap();
        drop(kept);
        bridge.remove().unwrap();
    });
}

#[test]
fn udp_flows_end_with_their_port() {
    with_outside(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        udp_server(&a.netns, 53);
        let _kept = bridge
            .publish(&mut a.record, &[wish("0.0.0.0", 5300, 53, Protocol::Udp)])
            .unwrap();
        let flows = || {
            sh("grep -c 'dport=5300 .*src=172.17.0.2' /proc/thread-self/net/nf_conntrack || true")
                .trim()
                .to_owned()
        };
        assert!(udp(outside, HOST, 5300).is_ok());
        assert_eq!(flows(), "1");
        bridge.release(&a.record).unwrap();
        bridge.flush();
        assert_eq!(flows(), "0");
        bridge.remove().unwrap();
    });
}

/// A sender that began too early and never pauses is served as soon as the port is published.
#[test]
fn udp_flows_from_before_reach_a_published_port() {
    with_outside(|outside| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let mut a = bridge.attach(&plain()).unwrap();
        udp_server(&a.netns, 53);
        let client = outside
            .run(|| std::net::UdpSocket::bind((OUTSIDE, 4000)).unwrap())
            .unwrap();
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buf = [0; 64];
        client.send_to(b"?", (HOST, 5300)).unwrap();
        assert!(client.recv_from(&mut buf).is_err());
        let _kept = bridge
            .publish(&mut a.record, &[wish("0.0.0.0", 5300, 53, Protocol::Udp)])
            .unwrap();
        client.send_to(b"?", (HOST, 5300)).unwrap();
        let (n, from) = client.recv_from(&mut buf).unwrap();
        assert_eq!(
            (&buf[..n], from),
            (OUTSIDE.to_string().as_bytes(), (HOST, 5300).into())
        );
        bridge.remove().unwrap();
    });
}

/// Many at once, with a reconciler that knows no record running all the time: nothing alive is removed, nothing dead stays.
#[test]
fn many_at_once_under_a_reconciler() {
    with_outside(|_| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let empty = dump();
        let pool = Pool::start(bridge.clone(), PoolConfig::default()).unwrap();
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..6u16)
                .map(|worker| {
                    let (bridge, pool) = (&bridge, &pool);
                    scope.spawn(move || {
                        let host = Netns::current().unwrap();
                        for round in 0..15 {
                            let mut e = pool.take(&plain()).unwrap();
                            let port = 20_000 + worker * 100 + round;
                            tcp_server(&e.netns, 80);
                            let _kept = bridge
                                .publish(&mut e.record, &[wish("0.0.0.0", port, 80, Protocol::Tcp)])
                                .unwrap();
                            assert!(tcp(&host, HOST, port).is_ok(), "worker {worker}, round {round}");
                            bridge.release(&e.record).unwrap();
                        }
                    })
                })
                .collect();
            let reconciler = scope.spawn(|| {
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(bridge.reconcile(&[]).unwrap(), Reconciled::default());
                }
            });
            // The reconciler ends also when one of them failed.
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            end.store(true, std::sync::atomic::Ordering::Relaxed);
            reconciler.join().unwrap();
            for worker in ended {
                worker.unwrap();
            }
        });
        drop(pool);
        bridge.flush();
        assert_eq!(dump(), empty);
        bridge.remove().unwrap();
    });
}

/// A namespace of a user namespace, as for a container whose root is nobody outside.
#[test]
fn a_namespace_of_another_user_namespace() {
    on_a_host(|| {
        let bridge = Bridge::ensure(&config()).unwrap();
        let peer = bridge.attach(&plain()).unwrap();
        let mut child = std::process::Command::new("unshare")
            .args(["-Urn", "sleep", "60"])
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/ns/net", child.id());
        let mine = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        eventually("unshare", || std::fs::read_link(&path).is_ok_and(|ns| ns != mine));
        let netns = Netns::from(std::os::fd::OwnedFd::from(std::fs::File::open(&path).unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
        let record = bridge
            .attach_to(std::os::fd::AsFd::as_fd(&netns), &plain())
            .unwrap();
        tcp_server(&netns, 80);
        assert!(tcp(&peer.netns, record.address, 80).is_ok());
        bridge.remove().unwrap();
    });
}
