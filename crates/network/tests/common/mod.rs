//! A host of its own for each test: a thread in a new network namespace, with another namespace as the outside world.
//! `ip` and `nft` are used here as independent witnesses; the crate itself executes nothing.
#![allow(dead_code, clippy::print_stderr)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::Duration;

use vessel_network::*;

pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// Runs the test on a thread that is alone in a network namespace with loopback up.
pub fn on_a_host(test: impl FnOnce() + Send) {
    Netns::new_isolated(&NetnsConfig::default())
        .unwrap()
        .run(test)
        .unwrap();
}

/// The same, with an outside world behind `up0`.
pub fn with_outside(test: impl FnOnce(&Netns) + Send) {
    on_a_host(|| {
        let outside = Netns::new_isolated(&NetnsConfig::default()).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), outside.as_fd().as_raw_fd());
        sh(&format!("ip link add up0 type veth peer name eth0 netns {path}"));
        sh(&format!(
            "ip addr add {HOST}/24 dev up0; ip link set up0 up; ip route add default via {OUTSIDE}"
        ));
        outside
            .run(|| sh(&format!("ip addr add {OUTSIDE}/24 dev eth0; ip link set eth0 up")))
            .unwrap();
        test(&outside);
    });
}

/// The same twice: with bridged packets passing the IPv4 rules, as after a start of dockerd, and without.
pub fn with_and_without_bridge_netfilter(test: impl Fn(&Netns) + Send + Sync) {
    for on in ["1", "0"] {
        with_outside(|outside| {
            sh(&format!(
                "sysctl -q net.bridge.bridge-nf-call-iptables={on} net.bridge.bridge-nf-call-ip6tables={on}"
            ));
            test(outside);
        });
    }
}

pub fn sh(script: &str) -> String {
    let out = Command::new("sh").args(["-ec", script]).output().unwrap();
    assert!(
        out.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Interfaces and rules, as `ip` and `nft` see them, without what counts by itself.
pub fn dump() -> String {
    sh(
        "ip -o link | sed 's/^[0-9]*: //; s/@if[0-9]*//; s/state [A-Z]*//; s/NO-CARRIER,//; s/,LOWER_UP//'; ip -o -4 addr | sed 's/^[0-9]*: //'; ip route | sed 's/ linkdown//'; nft -n list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'",
    )
}

/// A TCP server in the namespace that tells each client the address it comes from, and ends with the process.
pub fn tcp_server(netns: &Netns, port: u16) {
    let listener = netns
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

/// The same of both families.
pub fn tcp_server_of_both(netns: &Netns, port: u16) {
    let listener = netns
        .run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
        }
    });
}

/// The same for UDP: answers each datagram with the sender's address.
pub fn udp_server(netns: &Netns, port: u16) {
    let socket = netns
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

fn ask_tcp(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_udp(to: SocketAddr) -> std::io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buf = [0; 64];
    let n = socket.recv(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..n]).into_owned())
}

/// Who the server says the client is; an error when there is no answer.
pub fn tcp<IP: Into<IpAddr>>(from: &Netns, to: IP, port: u16) -> std::io::Result<String> {
    let to = SocketAddr::new(to.into(), port);
    from.run(|| ask_tcp(to)).unwrap()
}

pub fn udp<IP: Into<IpAddr>>(from: &Netns, to: IP, port: u16) -> std::io::Result<String> {
    let to = SocketAddr::new(to.into(), port);
    from.run(|| ask_udp(to)).unwrap()
}

pub fn config() -> BridgeConfig {
    BridgeConfig {
        name: "vt0".into(),
        table: "vt".into(),
        ..BridgeConfig::default()
    }
}

pub fn wish(host: &str, host_port: u16, target_port: u16, protocol: Protocol) -> PortSpec {
    PortSpec {
        host_ip: Some(host.parse().unwrap()),
        host_ports: host_port..=host_port,
        target_port,
        protocol,
    }
}

pub fn plain() -> EndpointRequest {
    EndpointRequest::default()
}

pub fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) => panic!("{ip} is not IPv4"),
    }
}
