//! Networks without a bridge, on one end of a pair of interfaces whose other end is the world.

#![allow(clippy::print_stderr, reason = "a test that is skipped says why")]

mod common;
use common::*;
use std::net::IpAddr;
use std::os::fd::AsFd;
use vessel_network::*;

fn network(name: &str) -> BridgeConfig {
    BridgeConfig {
        name: name.into(),
        subnet: Some("203.0.113.0/24".parse().unwrap()),
        gateway: Some(OUTSIDE),
        range: Some("203.0.113.64/26".parse().unwrap()),
        v6: Some(ConfigV6 {
            subnet: "2001:db8:1::/64".parse().unwrap(),
            gateway: Some("2001:db8:1::1".parse().unwrap()),
            range: Some("2001:db8:1::40/122".parse().unwrap()),
            taken: Vec::new(),
        }),
        ..config()
    }
}

fn parent(mode: DirectMode) -> Parent {
    Parent {
        name: "up0".into(),
        ours: false,
        mode,
    }
}

fn namespace() -> Netns {
    Netns::new_isolated(&NetnsConfig::default()).unwrap()
}

#[test]
fn endpoints_are_neighbours_of_the_outside() {
    with_outside(|outside| {
        outside
            .run(|| sh("ip addr add 2001:db8:1::1/64 dev eth0 nodad; ip addr add 198.51.100.7/32 dev lo"))
            .unwrap();
        let before = dump();
        let net = Direct::ensure(&network("mv-a"), &parent(DirectMode::MacvlanBridge)).unwrap();
        let (a, b) = (namespace(), namespace());
        let first = net.attach_to(a.as_fd(), &plain(), &mut |_| ()).unwrap();
        let wanted = EndpointRequest {
            address: Some("203.0.113.9".parse().unwrap()),
            address_v6: Some("2001:db8:1::9".parse().unwrap()),
            ..plain()
        };
        let second = net.attach_to(b.as_fd(), &wanted, &mut |_| ()).unwrap();
        assert_eq!(first.address.to_string(), "203.0.113.64");
        assert_eq!(first.mac, MacAddr::for_ip(v4(first.address)));
        assert_eq!(second.v6.unwrap().address.to_string(), "2001:db8:1::9");
        for netns in [&a, &b, outside] {
            tcp_server(netns, 80);
        }
        // Nobody translates, and the gateway is one of the outside.
        assert_eq!(tcp(&a, OUTSIDE, 80).unwrap(), "203.0.113.64");
        assert_eq!(tcp(&a, [198, 51, 100, 7], 80).unwrap(), "203.0.113.64");
        assert_eq!(tcp(outside, first.address, 80).unwrap(), OUTSIDE.to_string());
        assert_eq!(tcp(&b, first.address, 80).unwrap(), "203.0.113.9");
        let six: IpAddr = "2001:db8:1::9".parse().unwrap();
        tcp_server_of_both(&b, 81);
        assert_eq!(tcp(&a, six, 81).unwrap(), first.v6.unwrap().address.to_string());
        assert_eq!(tcp(outside, six, 81).unwrap(), "2001:db8:1::1");
        // One that is in use is nobody else's, for a later daemon neither, until it is given back.
        let later = Direct::ensure(&network("mv-a"), &parent(DirectMode::MacvlanBridge)).unwrap();
        later.adopt(&second).unwrap();
        for net in [&net, &later] {
            let c = namespace();
            assert_eq!(
                net.attach_to(c.as_fd(), &wanted, &mut |_| ()).unwrap_err().kind(),
                ErrorKind::Conflict
            );
            assert_eq!(c.run(|| sh("ip -o link | wc -l")).unwrap(), "1\n");
        }
        net.unplug(b.as_fd(), &second).unwrap();
        net.release(&second);
        assert_eq!(b.run(|| sh("ip -o link | wc -l")).unwrap(), "1\n");
        net.attach_to(b.as_fd(), &wanted, &mut |_| ()).unwrap();
        // On the host there is nothing of it.
        remove_parent(&parent(DirectMode::MacvlanBridge)).unwrap();
        assert_eq!(dump(), before);
    });
}

#[test]
fn private_and_internal_ones_are_kept_apart() {
    with_outside(|outside| {
        let config = BridgeConfig {
            internal: true,
            v6: None,
            ..network("mv-p")
        };
        let net = Direct::ensure(&config, &parent(DirectMode::MacvlanPrivate)).unwrap();
        let (a, b) = (namespace(), namespace());
        let first = net.attach_to(a.as_fd(), &plain(), &mut |_| ()).unwrap();
        net.attach_to(b.as_fd(), &plain(), &mut |_| ()).unwrap();
        tcp_server(&a, 80);
        assert!(tcp(outside, first.address, 80).is_ok());
        assert!(tcp(&b, first.address, 80).is_err());
        assert_eq!(b.run(|| sh("ip route show default")).unwrap(), "");
        assert_eq!(
            b.run(|| sh("cat /proc/sys/net/ipv6/conf/eth0/disable_ipv6"))
                .unwrap(),
            "1\n"
        );
    });
}

#[test]
fn a_parent_is_there_or_made() {
    with_outside(|_| {
        let at = |name: &str, ours| Parent {
            name: name.into(),
            ours,
            mode: DirectMode::MacvlanBridge,
        };
        let error = Direct::ensure(&network("mv-x"), &at("nowhere0", false))
            .err()
            .unwrap();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        for (name, kind) in [("up0.50", "vlan"), ("dm-0123456789ab", "dummy")] {
            match Direct::ensure(&network("mv-y"), &at(name, true)) {
                Ok(net) => {
                    assert!(sh(&format!("ip -d link show {name}")).contains(kind));
                    let a = namespace();
                    net.attach_to(a.as_fd(), &plain(), &mut |_| ()).unwrap();
                    assert!(interface_exists(name).unwrap());
                    remove_parent(&at(name, true)).unwrap();
                    assert!(!interface_exists(name).unwrap());
                }
                // One clear sentence, where the kernel lacks the kind.
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(error.to_string().contains(kind), "{error}");
                    eprintln!("left out: this kernel has no {kind}");
                }
            }
        }
        // A bridge has it already.
        sh("ip link add br9 type bridge; ip link set up0 master br9");
        let net = Direct::ensure(&network("mv-z"), &parent(DirectMode::MacvlanBridge)).unwrap();
        let a = namespace();
        let error = net.attach_to(a.as_fd(), &plain(), &mut |_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        sh("ip link delete br9");
        assert!(net.attach_to(a.as_fd(), &plain(), &mut |_| ()).is_ok());
    });
}

#[test]
fn ipvlan_where_the_kernel_has_it() {
    with_outside(|outside| {
        for mode in [DirectMode::IpvlanL2, DirectMode::IpvlanL3] {
            let net = Direct::ensure(&network("mv-i"), &parent(mode)).unwrap();
            let (a, b) = (namespace(), namespace());
            let first = match net.attach_to(a.as_fd(), &plain(), &mut |_| ()) {
                Ok(first) => first,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                    assert!(error.to_string().contains("ipvlan"), "{error}");
                    eprintln!("left out: this kernel has no ipvlan");
                    return;
                }
            };
            net.attach_to(b.as_fd(), &plain(), &mut |_| ()).unwrap();
            tcp_server(&a, 80);
            assert!(tcp(&b, first.address, 80).is_ok());
            if mode == DirectMode::IpvlanL2 {
                assert!(tcp(outside, first.address, 80).is_ok());
            }
        }
    });
}
