//! Networks that users make: names, isolation, connecting, and a daemon that is killed meanwhile.

use std::process::Command;

use crate::harness::{Daemon, daemon};

/// Makes a network with a subnet of this daemon's own, so that tests in parallel do not take one at the same time.
fn create(daemon: &Daemon, which: u32, name: &str, more: &[&str]) -> String {
    let subnet = daemon.further_subnet(which);
    let args = [&["network", "create", "--subnet", &subnet][..], more, &[name]].concat();
    daemon.vessel(&args).ok()
}

/// Runs a container that sleeps.
pub fn sleeper(daemon: &Daemon, name: &str, more: &[&str]) {
    let args = [
        &["run", "-d", "--name", name][..],
        more,
        &["busybox", "sleep", "1000"],
    ]
    .concat();
    daemon.vessel(&args).ok();
}

/// The addresses that a name has for a container; empty when there is none.
pub fn lookup(daemon: &Daemon, container: &str, name: &str) -> Vec<String> {
    let said = daemon.vessel(&["exec", container, "nslookup", name, "127.0.0.11"]);
    let mut found: Vec<String> = said
        .out
        .lines()
        .skip_while(|line| !line.starts_with("Name:"))
        .filter_map(|line| line.strip_prefix("Address"))
        .filter_map(|line| {
            line.split_once(": ")
                .map(|(_, address)| address.trim().to_owned())
        })
        .collect();
    found.sort();
    found
}

pub fn address(daemon: &Daemon, container: &str, network: &str) -> String {
    daemon.inspect(
        container,
        &format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"),
    )
}

/// Whether one container reaches an address.
pub fn reaches(daemon: &Daemon, container: &str, address: &str) -> bool {
    daemon
        .vessel(&["exec", container, "ping", "-c", "1", "-W", "1", address])
        .code
        == 0
}

fn bridges(id: &str) -> bool {
    std::path::Path::new(&format!("/sys/class/net/br-{}", &id[..12])).exists()
}

#[test]
fn containers_find_each_other_by_name() {
    let Some(daemon) = daemon() else { return };
    let id = create(&daemon, 0, "front", &["--label", "kind=test"]);
    assert!(bridges(&id));
    sleeper(&daemon, "web", &["--network", "front", "--network-alias", "www"]);
    sleeper(&daemon, "client", &["--network", "front"]);
    let web = address(&daemon, "web", "front");
    let short = daemon.inspect("web", "{{slice .Id 0 12}}");
    for name in ["web", "WWW", "web.front", &short] {
        assert_eq!(lookup(&daemon, "client", name), [web.as_str()], "{name}");
    }
    assert!(lookup(&daemon, "client", "nobody.invalid").is_empty());
    let said = daemon
        .vessel(&["exec", "client", "nslookup", &web, "127.0.0.11"])
        .ok();
    assert!(said.contains("web.front"), "{said}");
    let resolv = daemon.vessel(&["exec", "client", "cat", "/etc/resolv.conf"]).ok();
    assert!(
        resolv.contains("nameserver 127.0.0.11") && resolv.contains("ndots:0"),
        "{resolv}"
    );
    assert!(reaches(&daemon, "client", &web));
    // Two of one name: both, in changing order.
    sleeper(&daemon, "web2", &["--network", "front", "--network-alias", "www"]);
    let mut both = vec![web.clone(), address(&daemon, "web2", "front")];
    both.sort();
    assert_eq!(lookup(&daemon, "client", "www"), both);
    daemon.vessel(&["rename", "web2", "other"]).ok();
    assert_eq!(lookup(&daemon, "client", "other").len(), 1);
    daemon.vessel(&["rm", "-f", "other"]).ok();
    assert_eq!(lookup(&daemon, "client", "www"), [web.as_str()]);
    let linked = [
        "run",
        "--rm",
        "--network",
        "front",
        "--link",
        "web:alias",
        "busybox",
        "nslookup",
        "alias",
        "127.0.0.11",
    ];
    let said = daemon.vessel(&linked).ok();
    assert!(said.contains(&web), "{said}");
    assert!(lookup(&daemon, "client", "alias").is_empty());
    // Who uses port 53 himself may.
    let said = daemon
        .vessel(&[
            "exec",
            "client",
            "sh",
            "-c",
            "timeout 1 nc -u -l -p 53 2>&1; echo $?",
        ])
        .ok();
    assert!(!said.contains("in use"), "{said}");
    // The default network has no names.
    sleeper(&daemon, "outsider", &[]);
    let resolv = daemon
        .vessel(&["exec", "outsider", "cat", "/etc/resolv.conf"])
        .ok();
    assert!(!resolv.contains("127.0.0.11"), "{resolv}");

    let refused = daemon.vessel(&["network", "rm", "front"]).fails(1);
    assert!(refused.contains("has active endpoints"), "{refused}");
    daemon.vessel(&["rm", "-f", "web", "client"]).ok();
    daemon.vessel(&["network", "rm", "front"]).ok();
    assert!(!bridges(&id));
    let rules = Command::new("nft")
        .args(["list", "table", "ip", daemon.bridge()])
        .output();
    if let Ok(rules) = rules {
        assert!(!String::from_utf8_lossy(&rules.stdout).contains(&id[..12]));
    }
}

#[test]
fn networks_are_kept_apart() {
    let Some(daemon) = daemon() else { return };
    create(&daemon, 0, "a", &[]);
    create(&daemon, 1, "b", &[]);
    create(&daemon, 2, "inside", &["--internal"]);
    create(
        &daemon,
        3,
        "silent",
        &["-o", "com.docker.network.bridge.enable_icc=false"],
    );
    sleeper(&daemon, "a1", &["--network", "a"]);
    sleeper(&daemon, "a2", &["--network", "a"]);
    sleeper(&daemon, "b1", &["--network", "b"]);
    sleeper(&daemon, "i1", &["--network", "inside"]);
    sleeper(&daemon, "i2", &["--network", "inside"]);
    sleeper(&daemon, "s1", &["--network", "silent"]);
    sleeper(&daemon, "s2", &["--network", "silent"]);
    sleeper(&daemon, "d1", &[]);
    let at = |name: &str, network: &str| address(&daemon, name, network);
    let default = daemon.inspect("d1", "{{.NetworkSettings.IPAddress}}");
    assert!(reaches(&daemon, "a1", &at("a2", "a")));
    assert!(reaches(&daemon, "i1", &at("i2", "inside")));
    for (from, to) in [
        ("a1", at("b1", "b")),
        ("a1", default.clone()),
        ("d1", at("a1", "a")),
        ("a1", at("i1", "inside")),
        ("i1", at("a1", "a")),
        ("i1", default),
        ("s1", at("s2", "silent")),
    ] {
        assert!(!reaches(&daemon, from, &to), "{from} reaches {to}");
    }
    assert!(lookup(&daemon, "a1", "b1").is_empty());
    let routes = daemon.vessel(&["exec", "i1", "ip", "route"]).ok();
    assert!(!routes.contains("default"), "{routes}");
    let routes = daemon.vessel(&["exec", "a1", "ip", "route"]).ok();
    assert!(routes.contains("default"), "{routes}");
}

#[test]
fn connecting_while_running() {
    let Some(daemon) = daemon() else { return };
    create(&daemon, 0, "first", &[]);
    create(&daemon, 1, "second", &[]);
    sleeper(&daemon, "server", &["--network", "second"]);
    sleeper(&daemon, "client", &["--network", "first"]);
    assert!(lookup(&daemon, "client", "server").is_empty());
    let wanted = daemon.further_subnet(1).replace(".32/27", ".50");
    daemon
        .vessel(&[
            "network", "connect", "--ip", &wanted, "--alias", "also", "second", "client",
        ])
        .ok();
    assert_eq!(address(&daemon, "client", "second"), wanted);
    assert_eq!(lookup(&daemon, "server", "also"), [wanted.as_str()]);
    assert_eq!(
        lookup(&daemon, "client", "server"),
        [address(&daemon, "server", "second")]
    );
    let links = daemon.vessel(&["exec", "client", "ls", "/sys/class/net"]).ok();
    assert_eq!(links, "eth0\neth1\nlo");
    let said = daemon
        .vessel(&["network", "connect", "second", "client"])
        .fails(1);
    assert!(said.contains("already exists in network second"), "{said}");
    // The default route is that of the network whose name comes first, and goes over when it is left.
    let route = || {
        daemon
            .vessel(&["exec", "client", "ip", "route", "show", "default"])
            .ok()
    };
    assert!(route().contains("dev eth0"), "{}", route());
    daemon.vessel(&["network", "disconnect", "first", "client"]).ok();
    assert!(route().contains("dev eth1"), "{}", route());
    assert_eq!(
        daemon.vessel(&["exec", "client", "ls", "/sys/class/net"]).ok(),
        "eth1\nlo"
    );
    daemon
        .vessel(&["network", "disconnect", "first", "client"])
        .fails(1);
    daemon.vessel(&["network", "connect", "first", "client"]).ok();
    assert!(route().contains("dev eth0"), "{}", route());
    // The default bridge, too, and names come with the first network that has them.
    sleeper(&daemon, "plain", &[]);
    daemon.vessel(&["network", "connect", "second", "plain"]).ok();
    assert_eq!(lookup(&daemon, "plain", "also"), [wanted.as_str()]);
    let resolv = daemon.vessel(&["exec", "plain", "cat", "/etc/resolv.conf"]).ok();
    assert!(resolv.contains("127.0.0.11"), "{resolv}");
    // What is stopped keeps its networks.
    daemon.vessel(&["restart", "-t", "0", "client"]).ok();
    assert_eq!(
        daemon.vessel(&["exec", "client", "ls", "/sys/class/net"]).ok(),
        "eth0\neth1\nlo"
    );
    assert_eq!(address(&daemon, "client", "second"), wanted);
    daemon.vessel(&["kill", "client"]).ok();
    daemon.vessel(&["network", "disconnect", "second", "client"]).ok();
    daemon.vessel(&["start", "client"]).ok();
    assert_eq!(
        daemon.vessel(&["exec", "client", "ls", "/sys/class/net"]).ok(),
        "eth0\nlo"
    );
}

#[test]
fn published_ports_of_a_network() {
    let Some(daemon) = daemon() else { return };
    create(&daemon, 0, "net", &[]);
    create(&daemon, 1, "alt", &[]);
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "server",
            "--network",
            "net",
            "-p",
            "127.0.0.1::8080",
            "busybox",
            "sh",
            "-c",
            "while :; do echo served | nc -l -p 8080; done",
        ])
        .ok();
    let port = daemon.vessel(&["port", "server", "8080/tcp"]).ok();
    let fetch = || -> Option<String> {
        use std::io::Read;
        let mut stream =
            std::net::TcpStream::connect_timeout(&port.parse().ok()?, std::time::Duration::from_millis(500))
                .ok()?;
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(2)))
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    daemon.until("an answer", |_| fetch().as_deref() == Some("served\n"));
    // Its default route goes to `alt` now, and the port follows it.
    daemon.vessel(&["network", "connect", "alt", "server"]).ok();
    daemon.until("an answer over the other network", |_| {
        fetch().as_deref() == Some("served\n")
    });
    assert_eq!(daemon.vessel(&["port", "server", "8080/tcp"]).ok(), port);
    daemon.vessel(&["network", "disconnect", "net", "server"]).ok();
    daemon.until("an answer when the first is gone", |_| {
        fetch().as_deref() == Some("served\n")
    });
    daemon.vessel(&["rm", "-f", "server"]).ok();
    assert_eq!(fetch(), None);
}

#[test]
fn networks_and_names_survive_the_daemon() {
    let Some(mut daemon) = daemon() else { return };
    let id = create(&daemon, 0, "kept", &[]);
    let gone = create(&daemon, 1, "gone", &[]);
    sleeper(&daemon, "web", &["--network", "kept"]);
    sleeper(&daemon, "client", &["--network", "kept"]);
    daemon.vessel(&["network", "connect", "gone", "client"]).ok();
    let web = address(&daemon, "web", "kept");
    daemon.crash();
    // Packets go on; a bridge without containers and the rules may be lost meanwhile.
    let _ = Command::new("nft")
        .args(["delete", "table", "ip", daemon.bridge()])
        .status();
    daemon.start();
    daemon.until("names after the restart", |daemon| {
        lookup(daemon, "client", "web") == [web.clone()]
    });
    assert!(reaches(&daemon, "client", &web));
    assert_eq!(address(&daemon, "web", "kept"), web);
    // A new one does not get the address of an old one.
    sleeper(&daemon, "new", &["--network", "kept"]);
    assert_ne!(address(&daemon, "new", "kept"), web);
    assert_eq!(lookup(&daemon, "web", "new").len(), 1);
    let refused = daemon.vessel(&["network", "rm", "kept"]).fails(1);
    assert!(refused.contains("has active endpoints"), "{refused}");
    daemon.vessel(&["network", "disconnect", "gone", "client"]).ok();
    daemon.vessel(&["network", "rm", "gone"]).ok();
    assert!(!bridges(&gone));
    // An empty network comes back with its bridge.
    daemon.vessel(&["rm", "-f", "web", "client", "new"]).ok();
    daemon.crash();
    let _ = Command::new("ip")
        .args(["link", "delete", &format!("br-{}", &id[..12])])
        .status();
    daemon.start();
    assert!(bridges(&id));
    sleeper(&daemon, "again", &["--network", "kept"]);
    daemon.vessel(&["rm", "-f", "again"]).ok();
    assert_eq!(
        daemon.vessel(&["network", "prune", "-f"]).ok(),
        "Deleted Networks:\nkept"
    );
    assert!(!bridges(&id));
}

#[test]
fn what_cannot_be_is_said() {
    let Some(daemon) = daemon() else { return };
    create(&daemon, 0, "one", &[]);
    let fails = |args: &[&str]| daemon.vessel(args).fails(1);
    let subnet = daemon.further_subnet(0);
    let cases: [(&[&str], &str); 10] = [
        (&["network", "create", "one"], "already exists"),
        (&["network", "create", "host"], "predefined"),
        (&["network", "create", "-d", "nonsense", "x"], "plugin"),
        (&["network", "create", "--ipv6", "--ipv4=false", "x"], "IPv4"),
        (&["network", "create", "--subnet", &subnet, "x"], "overlaps"),
        (
            &["network", "create", "--subnet", "nonsense", "x"],
            "invalid subnet",
        ),
        (&["network", "rm", "bridge"], "pre-defined"),
        (&["network", "rm", "nobody"], "not found"),
        (&["network", "connect", "one", "nobody"], "No such container"),
        (&["network", "connect", "nobody", "nobody"], "not found"),
    ];
    for (args, words) in cases {
        let said = fails(args);
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let said = daemon
        .vessel(&["run", "--rm", "--network", "nobody", "busybox", "true"])
        .fails(125);
    assert!(said.contains("network nobody not found"), "{said}");
    sleeper(&daemon, "alone", &["--network", "none"]);
    let said = fails(&["network", "connect", "one", "alone"]);
    assert!(said.contains("none"), "{said}");
    assert_eq!(
        daemon
            .vessel(&["network", "ls", "-q", "--filter", "type=custom"])
            .ok()
            .lines()
            .count(),
        1
    );
}
