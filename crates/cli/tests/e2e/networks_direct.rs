//! Networks on an interface of the host, and ports behind its firewall: with a daemon in a network namespace of its own.

use std::process::{Child, Command, Stdio};

use crate::harness::{Daemon, prepared_daemon};
use crate::networks::{address, lookup, reaches, sleeper};

/// A network namespace, held by a process that sleeps.
struct Host(Child);

impl Host {
    fn new() -> Self {
        let sleeper = Command::new("unshare")
            .args(["-n", "sleep", "1000"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let host = Self(sleeper);
        // Until it has left our own.
        let own = std::fs::read_link("/proc/self/ns/net").expect("a namespace");
        let begin = std::time::Instant::now();
        while std::fs::read_link(format!("/proc/{}/ns/net", host.0.id())).is_ok_and(|link| link == own) {
            assert!(begin.elapsed().as_secs() < 10, "no network namespace");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        host
    }

    fn sh(&self, script: &str) -> String {
        let output = Command::new("nsenter")
            .args(["-n", "-t", &self.0.id().to_string(), "sh", "-ec", script])
            .output()
            .expect("nsenter");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {err}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon on a host with an interface `up0`, and the neighbour behind it.
fn on_a_wire() -> Option<(Daemon, Host, Host)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: network namespaces need root");
        return None;
    }
    let (host, neighbour) = (Host::new(), Host::new());
    let peer = neighbour.0.id();
    host.sh(&format!(
        "ip link set lo up; ip link add up0 type veth peer name eth0 netns {peer}; ip addr add 192.0.2.2/24 dev up0; ip link set up0 up"
    ));
    neighbour.sh("ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; ip link set lo up");
    let daemon = prepared_daemon(|daemon| daemon.network_of = Some(host.0.id()))?;
    Some((daemon, host, neighbour))
}

#[test]
fn macvlan_from_end_to_end() {
    let Some((mut daemon, host, neighbour)) = on_a_wire() else {
        return;
    };
    let args = [
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "192.0.2.0/24",
        "--gateway",
        "192.0.2.1",
        "--ip-range",
        "192.0.2.64/26",
        "-o",
        "parent=up0",
        "lan",
    ];
    daemon.vessel(&args).ok();
    let shown = daemon
        .vessel(&[
            "network",
            "inspect",
            "-f",
            "{{.Driver}} {{.Options.parent}}",
            "lan",
        ])
        .ok();
    assert_eq!(shown, "macvlan up0");
    sleeper(&daemon, "one", &["--network", "lan", "-p", "8080:80"]);
    sleeper(&daemon, "two", &["--network", "lan", "--ip", "192.0.2.9"]);
    assert_eq!(address(&daemon, "one", "lan"), "192.0.2.64");
    assert_eq!(lookup(&daemon, "one", "two"), ["192.0.2.9"]);
    assert!(reaches(&daemon, "one", "192.0.2.9"));
    assert!(reaches(&daemon, "one", "192.0.2.1"));
    neighbour.sh("busybox ping -c 1 -W 2 192.0.2.9");
    // Its next run has the address, and with it the hardware address, while the kernel still takes the last one's down.
    for _ in 0..5 {
        daemon.vessel(&["restart", "-t", "0", "two"]).ok();
    }
    neighbour.sh("busybox ping -c 1 -W 2 192.0.2.9");
    let route = daemon.vessel(&["exec", "two", "ip", "route"]).ok();
    assert!(route.contains("default via 192.0.2.1 dev eth0"), "{route}");
    // There is nothing to publish.
    assert_eq!(daemon.vessel(&["port", "one"]).ok(), "");
    // What a daemon that dies has given is given to nobody else by the next one.
    daemon.crash();
    daemon.start();
    daemon.until("names after the restart", |daemon| {
        lookup(daemon, "one", "two") == ["192.0.2.9"]
    });
    let said = daemon
        .vessel(&[
            "run",
            "--rm",
            "--network",
            "lan",
            "--ip",
            "192.0.2.9",
            "busybox",
            "true",
        ])
        .fails(125);
    assert!(said.contains("already in use"), "{said}");
    daemon.vessel(&["network", "disconnect", "lan", "two"]).ok();
    let left = daemon.vessel(&["exec", "two", "ip", "-o", "link"]).ok();
    assert!(!left.contains("eth0"), "{left}");
    daemon
        .vessel(&["network", "connect", "--ip", "192.0.2.9", "lan", "two"])
        .ok();
    neighbour.sh("busybox ping -c 1 -W 2 192.0.2.9");
    daemon.vessel(&["network", "rm", "lan"]).fails(1);
    daemon.vessel(&["rm", "-f", "one", "two"]).ok();
    daemon.vessel(&["network", "rm", "lan"]).ok();
    assert!(host.sh("ip -o link").contains("up0"));
}

#[test]
fn parents_that_cannot_be_are_named() {
    let Some((daemon, host, _neighbour)) = on_a_wire() else {
        return;
    };
    let create = |more: &[&str]| {
        let args = [&["network", "create"][..], more, &["x"]].concat();
        daemon.vessel(&args)
    };
    for (more, words) in [
        (
            &["-d", "macvlan", "-o", "parent=nowhere0"][..],
            "no interface nowhere0",
        ),
        (
            &["-d", "macvlan", "-o", "parent=up0", "-o", "macvlan_mode=l2"],
            "bridge, private, vepa or passthru",
        ),
        (
            &["-d", "ipvlan", "-o", "parent=up0", "-o", "ipvlan_mode=bridge"],
            "l2, l3 or l3s",
        ),
    ] {
        let said = create(more).fails(1);
        assert!(said.contains(words), "{more:?}: {said}");
    }
    // Made for the network and gone with it, or one sentence where the kernel lacks the kind.
    for (more, kind) in [
        (&["-d", "macvlan"][..], "dummy"),
        (&["-d", "macvlan", "-o", "parent=up0.50"], "vlan"),
    ] {
        let before = host.sh("ip -o link | wc -l");
        let made = create(more);
        if made.code == 0 {
            daemon.vessel(&["network", "rm", "x"]).ok();
        } else {
            assert!(made.err.contains(&format!("the kind {kind}")), "{made:?}");
            eprintln!("left out: this kernel has no {kind}");
        }
        assert_eq!(host.sh("ip -o link | wc -l"), before);
    }
}

/// The firewall's rules for what comes in, which a published port passes by otherwise.
#[test]
fn the_hosts_firewall_decides_about_ports() {
    let Some((mut daemon, host, neighbour)) = on_a_wire() else {
        return;
    };
    let script = "while :; do echo served | nc -l -p 80; done";
    daemon
        .vessel(&[
            "run", "-d", "--name", "web", "-p", "8080:80", "busybox", "sh", "-c", script,
        ])
        .ok();
    host.sh("nft 'add table inet filter; add chain inet filter input { type filter hook input priority 0; policy drop; }; add rule inet filter input ct state established,related accept; add rule inet filter input iifname lo accept; add rule inet filter input icmp type echo-request accept'");
    let fetch = || {
        neighbour.sh("timeout 2 bash -c 'exec 3<>/dev/tcp/192.0.2.2/8080; head -c 6 <&3' 2>/dev/null || true")
    };
    daemon.until("an answer in spite of the firewall", |_| fetch() == "served");
    daemon.stop();
    daemon.more = vec!["--published-ports".into(), "input".into()];
    daemon.start();
    assert_eq!(fetch(), "");
    host.sh("nft add rule inet filter input tcp dport 8080 accept");
    daemon.until("an answer that the firewall lets through", |_| {
        fetch() == "served"
    });
    daemon.stop();
    daemon.more.clear();
    daemon.start();
    assert!(!host.sh("ip -o link").contains(": vi"));
}

/// The network that leads to the neighbour.
fn lan(daemon: &Daemon) {
    let args = [
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "192.0.2.0/24",
        "--gateway",
        "192.0.2.1",
        "-o",
        "parent=up0",
        "lan",
    ];
    daemon.vessel(&args).ok();
}

/// The interfaces that a container has, by another way than the daemon's.
fn interfaces(daemon: &Daemon, container: &str) -> String {
    let pid = daemon.inspect(container, "{{.State.Pid}}");
    let output = Command::new("nsenter")
        .args(["-n", "-t", &pid, "ip", "-o", "addr"])
        .output()
        .expect("nsenter");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_daemon_killed_in_the_middle_knows_what_is_in_a_container() {
    let Some((mut daemon, _host, _neighbour)) = on_a_wire() else {
        return;
    };
    lan(&daemon);
    sleeper(&daemon, "one", &[]);
    let connect = ["network", "connect", "--ip", "192.0.2.9", "lan", "one"];
    let disconnect = ["network", "disconnect", "lan", "one"];
    let mut connected = false;
    for round in 0..16_u64 {
        let args = if connected { &disconnect[..] } else { &connect };
        let mut client = daemon.command(args);
        let mut client = client
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a client");
        std::thread::sleep(std::time::Duration::from_millis(3 + round));
        daemon.crash();
        client.wait().expect("a client that ends");
        daemon.start();
        // Whoever has the address is known to have it.
        if interfaces(&daemon, "one").contains("192.0.2.9/") {
            assert_eq!(address(&daemon, "one", "lan"), "192.0.2.9", "round {round}");
        }
        // What was begun can be finished, or begun again.
        daemon.vessel(args);
        connected = !connected;
        let has = interfaces(&daemon, "one").contains("192.0.2.9/");
        assert_eq!(has, connected, "round {round}: {}", interfaces(&daemon, "one"));
    }
}

#[test]
fn an_interface_of_the_containers_own_is_in_nobodys_way() {
    let Some((daemon, _host, neighbour)) = on_a_wire() else {
        return;
    };
    lan(&daemon);
    daemon
        .vessel(&[
            "network",
            "create",
            "--subnet",
            &daemon.further_subnet(0),
            "other",
        ])
        .ok();
    sleeper(&daemon, "one", &[]);
    let pid = daemon.inspect("one", "{{.State.Pid}}");
    let made = Command::new("nsenter")
        .args([
            "-n", "-t", &pid, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth3",
        ])
        .status();
    assert!(made.expect("nsenter").success());
    daemon
        .vessel(&["network", "connect", "--ip", "192.0.2.9", "lan", "one"])
        .ok();
    daemon.vessel(&["network", "connect", "other", "one"]).ok();
    neighbour.sh("busybox ping -c 1 -W 2 192.0.2.9");
    let all = interfaces(&daemon, "one");
    assert!(
        all.contains("eth2    inet 192.0.2.9/24") && all.contains("eth4    inet "),
        "{all}"
    );
}

/// Answers go by the default route: where ports are to be published it goes where there are any.
#[test]
fn ports_are_published_beside_a_macvlan() {
    let Some((daemon, host, neighbour)) = on_a_wire() else {
        return;
    };
    lan(&daemon);
    daemon
        .vessel(&["network", "create", "--subnet", &daemon.further_subnet(0), "zoo"])
        .ok();
    let script = "while :; do echo served | nc -l -p 80; done";
    let create = |name: &str, more: &[&str]| {
        let args = [&["create", "--name", name, "--network", "lan"][..], more].concat();
        daemon
            .vessel(&[&args[..], &["busybox", "sh", "-c", script]].concat())
            .ok();
    };
    create("web", &["-p", "8080:80"]);
    daemon.vessel(&["network", "connect", "zoo", "web"]).ok();
    daemon.vessel(&["start", "web"]).ok();
    // One who is a neighbour there gets his answers by the wire; this one is further away.
    host.sh("ip route add 198.51.100.7 via 192.0.2.1");
    neighbour.sh("ip addr add 198.51.100.7/32 dev lo; ip route add 192.0.2.2 dev eth0 src 198.51.100.7");
    daemon.until("an answer by the published port", |_| {
        neighbour.sh("timeout 2 bash -c 'exec 3<>/dev/tcp/192.0.2.2/8080; head -c 6 <&3' 2>/dev/null || true")
            == "served"
    });
    // Without ports it is the name that decides, and the priority before all.
    create("plain", &[]);
    daemon.vessel(&["network", "connect", "zoo", "plain"]).ok();
    create("told", &["-p", "8081:80"]);
    daemon.vessel(&["network", "disconnect", "lan", "told"]).ok();
    daemon.vessel(&["network", "connect", "zoo", "told"]).ok();
    daemon
        .vessel(&["network", "connect", "--gw-priority", "1", "lan", "told"])
        .ok();
    for name in ["plain", "told"] {
        daemon.vessel(&["start", name]).ok();
        let route = daemon.vessel(&["exec", name, "ip", "route"]).ok();
        assert!(route.contains("default via 192.0.2.1"), "{name}: {route}");
    }
    assert_eq!(daemon.vessel(&["port", "told"]).ok(), "");
    assert!(daemon.log().contains("ports are not published"));
}

/// Somebody's table in the way of IPv6 keeps neither the daemon from starting nor the rest from working.
#[test]
fn a_daemon_starts_when_there_can_be_no_ipv6() {
    let Some((mut daemon, host, neighbour)) = on_a_wire() else {
        return;
    };
    let subnet = daemon.further_subnet(0);
    daemon
        .vessel(&["network", "create", "--ipv6", "--subnet", &subnet, "six"])
        .ok();
    let script = "while :; do echo served | nc -l -p 80; done";
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "six",
            "-p",
            "8080:80",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    daemon.stop();
    let table = daemon.bridge().to_owned();
    host.sh(&format!(
        "nft delete table ip6 {table}; nft 'add table ip6 {table}; add set ip6 {table} published {{ type inet_service; }}'"
    ));
    daemon.start();
    daemon.until("an answer over IPv4", |_| {
        neighbour.sh("timeout 2 bash -c 'exec 3<>/dev/tcp/192.0.2.2/8080; head -c 6 <&3' 2>/dev/null || true")
            == "served"
    });
    let run = ["run", "--rm", "--network", "six", "busybox", "true"];
    let said = daemon.vessel(&run).fails(125);
    assert!(said.contains("there is no IPv6"), "{said}");
    daemon.vessel(&["run", "--rm", "busybox", "true"]).ok();
    host.sh(&format!("nft delete table ip6 {table}"));
    daemon.vessel(&run).ok();
}
