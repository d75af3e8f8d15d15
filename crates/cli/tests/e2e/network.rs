//! Addresses, names and published ports.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::harness::{Said, VESSEL, daemon};

const SERVER: &str = "while :; do echo served | nc -l -p 8080; done";

fn fetch(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, std::time::Duration::from_millis(500)).ok()?;
    stream
        .set_read_timeout(Some(std::time::Duration::from_secs(2)))
        .ok()?;
    let _ = stream.write_all(b"");
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn published_ports_work_from_everywhere() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "server",
            "-p",
            "127.0.0.1::8080",
            "busybox",
            "sh",
            "-c",
            SERVER,
        ])
        .ok();
    let address = daemon.vessel(&["port", "server", "8080/tcp"]).ok();
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    daemon.until("an answer on loopback", |_| {
        fetch(&address).as_deref() == Some("served\n")
    });
    // The filter is about the host's port, `expose` about the container's.
    let (_, port) = address.rsplit_once(':').unwrap();
    for (filter, found) in [
        (format!("publish={port}"), "server"),
        ("publish=8080".to_owned(), ""),
        ("expose=8080".to_owned(), "server"),
    ] {
        let list = ["ps", "--filter", filter.as_str(), "--format", "{{.Names}}"];
        assert_eq!(daemon.vessel(&list).ok(), found, "{filter}");
    }
    let inner = daemon.inspect("server", "{{.NetworkSettings.IPAddress}}");
    daemon.until("an answer on the bridge", |_| {
        fetch(&format!("{inner}:8080")).as_deref() == Some("served\n")
    });
    let said = daemon.vessel(&["run", "--rm", "busybox", "nc", "-w", "2", &inner, "8080"]);
    assert_eq!(said.ok(), "served");
    // Taken ports are said to be taken, and by whom.
    let port = address.rsplit(':').next().unwrap();
    let said = daemon
        .vessel(&[
            "run",
            "--rm",
            "-p",
            &format!("127.0.0.1:{port}:80"),
            "busybox",
            "true",
        ])
        .fails(125);
    assert!(
        said.contains("already allocated") || said.contains("in use"),
        "{said}"
    );
    daemon.vessel(&["rm", "-f", "server"]).ok();
    assert_eq!(fetch(&address), None);
}

#[test]
fn modes() {
    let Some(daemon) = daemon() else { return };
    let links = |mode: &str| {
        daemon
            .vessel(&[
                "run",
                "--rm",
                "--network",
                mode,
                "busybox",
                "ls",
                "/sys/class/net",
            ])
            .ok()
    };
    assert_eq!(links("none"), "lo");
    assert!(links("host").contains("lo"));
    assert_eq!(links("bridge"), "eth0\nlo");
    daemon
        .vessel(&["run", "-d", "--name", "holder", "busybox", "sleep", "1000"])
        .ok();
    let address = |name: &str| {
        daemon
            .vessel(&[
                "exec",
                name,
                "sh",
                "-c",
                "ip -4 -o addr show eth0 | awk '{print $4}'",
            ])
            .ok()
    };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "guest",
            "--network",
            "container:holder",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    assert_eq!(address("guest"), address("holder"));
    assert!(address("holder").starts_with(&daemon.inspect("holder", "{{.NetworkSettings.IPAddress}}")));
}

#[test]
fn the_files_of_names() {
    let Some(daemon) = daemon() else { return };
    let said = daemon
        .vessel(&[
            "run",
            "--rm",
            "--hostname",
            "box",
            "--dns",
            "9.9.9.9",
            "--dns-search",
            "example.org",
            "busybox",
            "sh",
            "-c",
            "cat /etc/resolv.conf /etc/hostname; grep box /etc/hosts",
        ])
        .ok();
    assert!(
        said.contains("nameserver 9.9.9.9") && said.contains("search example.org"),
        "{said}"
    );
    assert!(said.contains("box"), "{said}");
}

#[test]
fn the_bridge_reaches_out_and_containers_reach_each_other() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&["run", "-d", "--name", "alone", "busybox", "sleep", "1000"])
        .ok();
    let address = daemon.inspect("alone", "{{.NetworkSettings.IPAddress}}");
    let gateway = daemon.inspect("alone", "{{.NetworkSettings.Gateway}}");
    for target in [address.as_str(), gateway.as_str()] {
        daemon
            .vessel(&["run", "--rm", "busybox", "ping", "-c", "1", "-W", "3", target])
            .ok();
    }
}

#[test]
fn a_bridge_belongs_to_one_daemon() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&["run", "-d", "--name", "up", "busybox", "sleep", "600"])
        .ok();
    let address = daemon.inspect("up", "{{.NetworkSettings.IPAddress}}");
    let other = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| other.path().join(name).display().to_string();
    let said: Said = Command::new(VESSEL)
        .args(["daemon", "--root", &at("root"), "--run", &at("run")])
        .args(["--bridge", daemon.bridge()])
        .output()
        .expect("the daemon runs")
        .into();
    let expected = format!("the bridge {} is in use by another daemon", daemon.bridge());
    let text = said.fails(1);
    assert!(text.contains(&expected), "{text}");
    // Nothing of the first one's was touched.
    daemon
        .vessel(&["run", "--rm", "busybox", "ping", "-c", "1", "-W", "2", &address])
        .ok();
}

#[test]
fn without_a_bridge_there_is_loopback_only() {
    let Some(mut daemon) = daemon() else { return };
    let links = || {
        std::fs::read_dir("/sys/class/net")
            .map(|links| links.flatten().any(|link| link.file_name() == "none"))
    };
    let before = links().ok();
    daemon.stop();
    daemon.no_bridge = true;
    daemon.start();
    let said = daemon.vessel(&["run", "--rm", "-p", "80", "busybox", "ls", "/sys/class/net"]);
    assert_eq!(said.ok(), "lo");
    let networks = daemon.vessel(&["network", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(networks, "host\nnone");
    assert_eq!(links().ok(), before);
}
