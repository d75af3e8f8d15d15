//! Networks with both families, as a user sees them.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::compose::{compose, project};
use crate::harness::{Daemon, daemon};
use crate::networks::{lookup, reaches, sleeper};

fn create(daemon: &Daemon, which: u32, name: &str) {
    let v4 = daemon.further_subnet(which);
    let v6 = daemon.further_subnet_v6(which);
    daemon
        .vessel(&[
            "network",
            "create",
            "--ipv6",
            "--subnet",
            &v4,
            "--subnet",
            &format!("{v6}:/64"),
            "--gateway",
            &format!("{v6}:1"),
            name,
        ])
        .ok();
}

fn of_network(daemon: &Daemon, container: &str, network: &str, what: &str) -> String {
    daemon.inspect(
        container,
        &format!("{{{{(index .NetworkSettings.Networks \"{network}\").{what}}}}}"),
    )
}

/// A container that says `served` to whoever comes to its port 8080.
fn server(daemon: &Daemon, name: &str, more: &[&str]) {
    let script = "while :; do echo served | nc -l -p 8080; done";
    let args = [
        &["run", "-d", "--name", name][..],
        more,
        &["busybox", "sh", "-c", script],
    ]
    .concat();
    daemon.vessel(&args).ok();
}

fn fetch(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().ok()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn served(daemon: &Daemon, address: &str) {
    daemon.until(&format!("an answer of {address}"), |_| {
        fetch(address).as_deref() == Some("served\n")
    });
}

/// The host's ports of a published port: of IPv4 and of IPv6.
fn published(daemon: &Daemon, container: &str) -> (String, String) {
    let said = daemon.vessel(&["port", container, "8080/tcp"]).ok();
    let port = |host: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(host))
            .unwrap_or_else(|| panic!("{host} is not in {said}"))
            .to_owned()
    };
    (port("0.0.0.0:"), port("[::]:"))
}

#[test]
fn both_families_from_end_to_end() {
    let Some(mut daemon) = daemon() else { return };
    create(&daemon, 0, "dual");
    let v6 = daemon.further_subnet_v6(0);
    let shown = |template: &str| {
        daemon
            .vessel(&["network", "inspect", "-f", template, "dual"])
            .ok()
    };
    assert_eq!(shown("{{.EnableIPv6}}"), "true");
    assert_eq!(
        shown("{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}};{{end}}"),
        format!(
            "{} {};{v6}:/64 {v6}:1;",
            daemon.further_subnet(0),
            daemon.further_subnet(0).replace("0/27", "1")
        )
    );
    let wanted = format!("{v6}:50");
    server(
        &daemon,
        "web",
        &["--network", "dual", "--ip6", &wanted, "-p", "8080"],
    );
    sleeper(&daemon, "client", &["--network", "dual"]);
    sleeper(&daemon, "plain", &[]);
    assert_eq!(of_network(&daemon, "web", "dual", "GlobalIPv6Address"), wanted);
    assert_eq!(of_network(&daemon, "web", "dual", "GlobalIPv6PrefixLen"), "64");
    assert_eq!(
        of_network(&daemon, "web", "dual", "IPv6Gateway"),
        format!("{v6}:1")
    );
    assert_eq!(
        of_network(&daemon, "web", "dual", "IPAMConfig.IPv6Address"),
        wanted
    );
    let resources = shown("{{range .Containers}}{{.Name}} {{.IPv6Address}};{{end}}");
    assert!(resources.contains(&format!("web {wanted}/64;")), "{resources}");
    // IPv6 is on where it is asked for, and nowhere else.
    for (name, off) in [("web", "0"), ("plain", "1")] {
        let path = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
        assert_eq!(daemon.vessel(&["exec", name, "cat", path]).ok(), off, "{name}");
    }
    let hosts = daemon.vessel(&["exec", "web", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains(&wanted), "{hosts}");
    // By name, both ways, and by address.
    let mut both = vec![of_network(&daemon, "web", "dual", "IPAddress"), wanted.clone()];
    both.sort();
    assert_eq!(lookup(&daemon, "client", "web"), both);
    let said = daemon
        .vessel(&["exec", "client", "nslookup", &wanted, "127.0.0.11"])
        .ok();
    assert!(said.contains("web.dual"), "{said}");
    assert!(reaches(&daemon, "client", &wanted));
    // One port of the host for both.
    let (v4_port, v6_port) = published(&daemon, "web");
    assert_eq!(v4_port, v6_port);
    let (by_v4, by_v6) = (format!("127.0.0.1:{v4_port}"), format!("[{v6}:1]:{v6_port}"));
    served(&daemon, &by_v4);
    served(&daemon, &by_v6);
    let listed = daemon
        .vessel(&["ps", "--filter", "name=web", "--format", "{{.Ports}}"])
        .ok();
    assert!(listed.contains(&format!("[::]:{v6_port}->8080/tcp")), "{listed}");
    // A daemon that dies takes nothing along, and the next one puts back what was lost meanwhile.
    daemon.crash();
    for family in ["ip", "ip6"] {
        let _ = Command::new("nft")
            .args(["delete", "table", family, daemon.bridge()])
            .status();
    }
    assert_eq!(fetch(&by_v6), None);
    daemon.start();
    served(&daemon, &by_v6);
    served(&daemon, &by_v4);
    daemon.until("names after the restart", |daemon| {
        lookup(daemon, "client", "web") == both
    });
    let said = daemon
        .vessel(&[
            "run",
            "--rm",
            "--network",
            "dual",
            "--ip6",
            &wanted,
            "busybox",
            "true",
        ])
        .fails(125);
    assert!(said.contains("already in use"), "{said}");
    // Nothing is left of it.
    daemon.vessel(&["rm", "-f", "web", "client"]).ok();
    assert_eq!(fetch(&by_v6), None);
    daemon.vessel(&["network", "rm", "dual"]).ok();
    if let Ok(rules) = Command::new("nft").args(["list", "ruleset"]).output() {
        let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
        assert!(!rules.contains(&v6), "{rules}");
    }
}

#[test]
fn the_default_network_has_ipv6_when_the_daemon_is_told_so() {
    let Some(mut daemon) = daemon() else { return };
    let bridge = |daemon: &Daemon| {
        let shown = "{{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}}{{end}}";
        daemon.vessel(&["network", "inspect", "-f", shown, "bridge"]).ok()
    };
    assert!(bridge(&daemon).starts_with("false "));
    daemon.stop();
    let v6 = daemon.further_subnet_v6(3);
    daemon
        .more
        .extend(["--ipv6".into(), format!("--fixed-cidr-v6={v6}:/64")]);
    daemon.start();
    assert!(bridge(&daemon).starts_with("true ") && bridge(&daemon).ends_with(&format!(" {v6}:/64")));
    server(&daemon, "web", &["-p", "8080"]);
    sleeper(&daemon, "client", &[]);
    let address = of_network(&daemon, "web", "bridge", "GlobalIPv6Address");
    assert!(address.starts_with(&v6), "{address}");
    assert_eq!(
        daemon.inspect("web", "{{.NetworkSettings.GlobalIPv6Address}}"),
        address
    );
    assert_eq!(
        of_network(&daemon, "web", "bridge", "IPv6Gateway"),
        format!("{v6}:1")
    );
    let routes = daemon.vessel(&["exec", "web", "ip", "-6", "route"]).ok();
    assert!(routes.contains(&format!("default via {v6}:1 ")), "{routes}");
    assert!(reaches(&daemon, "client", &address));
    let (v4_port, v6_port) = published(&daemon, "web");
    served(&daemon, &format!("127.0.0.1:{v4_port}"));
    served(&daemon, &format!("[{v6}:1]:{v6_port}"));
    // The next daemon finds it, and one that is told nothing of it leaves the containers that run alone.
    daemon.crash();
    daemon.start();
    served(&daemon, &format!("[{v6}:1]:{v6_port}"));
    daemon.stop();
    daemon.more.retain(|option| !option.contains("v6"));
    daemon.start();
    assert!(bridge(&daemon).starts_with("false "));
    served(&daemon, &format!("127.0.0.1:{v4_port}"));
    // Without a subnet one of the engine's own is chosen, and stays.
    daemon.vessel(&["rm", "-f", "web", "client"]).ok();
    daemon.stop();
    daemon.more.push("--ipv6".into());
    daemon.start();
    let chosen = bridge(&daemon);
    assert!(chosen.starts_with("true ") && chosen.contains(" fd"), "{chosen}");
    daemon.crash();
    daemon.start();
    assert_eq!(bridge(&daemon), chosen);
    daemon.stop();
    let refused = daemon
        .command(&["daemon", "--fixed-cidr-v6", "fd00::/64"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("--ipv6"),
        "{refused:?}"
    );
}

#[test]
fn gateway_modes_are_dockers() {
    let Some(daemon) = daemon() else { return };
    let mode = |family: &str, mode: &str| format!("com.docker.network.bridge.gateway_mode_{family}={mode}");
    let (subnet, subnet_v6) = (
        daemon.further_subnet(0),
        format!("{}:/64", daemon.further_subnet_v6(0)),
    );
    let (routed, routed_v6) = (mode("ipv4", "routed"), mode("ipv6", "routed"));
    let create = [
        "network", "create", "--ipv6", "--subnet", &subnet, "--subnet", &subnet_v6,
    ];
    daemon
        .vessel(&[&create[..], &["-o", &routed, "-o", &routed_v6, "routed"]].concat())
        .ok();
    server(&daemon, "web", &["--network", "routed", "-p", "80:8080"]);
    let shown = daemon.inspect("web", "{{json .NetworkSettings.Ports}}");
    let direct = |host: &str| format!(r#"{{"HostIp":"{host}","HostPort":""}}"#);
    assert_eq!(
        shown,
        format!(r#"{{"8080/tcp":[{},{}]}}"#, direct("0.0.0.0"), direct("::"))
    );
    let ports = ["ps", "--filter", "name=web", "--format", "{{.Ports}}"];
    assert_eq!(daemon.vessel(&ports).ok(), "8080/tcp");
    // From a container on another network, which knows no way but the host.
    sleeper(&daemon, "far", &[]);
    let address = of_network(&daemon, "web", "routed", "IPAddress");
    let fetch = ["exec", "far", "nc", "-w", "3", &address, "8080"];
    daemon.until("an answer", |daemon| daemon.vessel(&fetch).out == "served\n");
    // Nothing of the host is taken, and no other port is open.
    assert!(
        TcpStream::connect_timeout(&"127.0.0.1:80".parse().unwrap(), Duration::from_millis(300)).is_err()
    );
    daemon
        .vessel(&["exec", "-d", "web", "nc", "-l", "-p", "9", "-e", "true"])
        .ok();
    assert_ne!(
        daemon
            .vessel(&["exec", "far", "nc", "-w", "1", &address, "9"])
            .code,
        0
    );
    let alone = mode("ipv4", "isolated");
    let refused = daemon
        .vessel(&["network", "create", "-o", &alone, "alone"])
        .fails(1);
    assert!(
        refused.contains("can only be used for an internal network"),
        "{refused}"
    );
    daemon
        .vessel(&["network", "create", "--internal", "-o", &alone, "alone"])
        .ok();
    sleeper(&daemon, "one", &["--network", "alone"]);
    sleeper(&daemon, "two", &["--network", "alone"]);
    let two = of_network(&daemon, "two", "alone", "IPAddress");
    assert!(reaches(&daemon, "one", &two));
    let id = daemon
        .vessel(&["network", "inspect", "-f", "{{.Id}}", "alone"])
        .ok();
    let bridge = format!("br-{}", &id[..12]);
    let addresses = Command::new("ip")
        .args(["-o", "-4", "addr", "show", "dev", &bridge])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&addresses.stdout), "");
}

#[test]
fn subnets_that_nobody_asked_for() {
    let Some(daemon) = daemon() else { return };
    for (which, name) in [(0, "one"), (1, "two")] {
        let subnet = daemon.further_subnet(which);
        daemon
            .vessel(&["network", "create", "--ipv6", "--subnet", &subnet, name])
            .ok();
    }
    let subnet = |name: &str| {
        daemon
            .vessel(&[
                "network",
                "inspect",
                "-f",
                "{{(index .IPAM.Config 1).Subnet}}",
                name,
            ])
            .ok()
    };
    let (one, two) = (subnet("one"), subnet("two"));
    // Unique local ones (RFC 4193), of one site.
    assert!(one.starts_with("fd") && one.ends_with("/64"), "{one}");
    assert_ne!(one, two);
    assert_eq!(one[..12], two[..12]);
    sleeper(&daemon, "aa", &["--network", "one"]);
    let address = of_network(&daemon, "aa", "one", "GlobalIPv6Address");
    assert!(address.starts_with(&one[..12]), "{address}");
    // A subnet without the wish for IPv6 has no effect, which is said.
    let v4 = daemon.further_subnet(2);
    let v6 = format!("{}:/64", daemon.further_subnet_v6(2));
    let said = daemon.vessel(&["network", "create", "--subnet", &v4, "--subnet", &v6, "three"]);
    assert!(said.err.contains("has no effect"), "{said:?}");
    let enabled = daemon
        .vessel(&["network", "inspect", "-f", "{{.EnableIPv6}}", "three"])
        .ok();
    assert_eq!(enabled, "false");
    let cases: [(&[&str], &str); 3] = [
        (
            &[
                "network",
                "create",
                "--ipv6",
                "--subnet",
                "fd5f::/64",
                "--gateway",
                "10.0.0.1",
                "x",
            ],
            "gateway",
        ),
        (
            &[
                "network",
                "create",
                "--ipv6",
                "--subnet",
                "fd5f::/64",
                "--subnet",
                "fd5e::/64",
                "x",
            ],
            "multiple subnets",
        ),
        (
            &["network", "create", "--ipv6", "--subnet", &one, "x"],
            "overlaps",
        ),
    ];
    for (args, words) in cases {
        let said = daemon.vessel(args).fails(1);
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let said = daemon
        .vessel(&[
            "run",
            "--rm",
            "--network",
            "three",
            "--ip6",
            "fd5f::9",
            "busybox",
            "true",
        ])
        .fails(125);
    assert!(said.contains("no IPv6"), "{said}");
}

/// The default route of IPv6, and the ports of it, are those of a network that has it, whichever has those of IPv4.
#[test]
fn each_family_has_its_own_way_out() {
    let Some(daemon) = daemon() else { return };
    let subnet = daemon.further_subnet(0);
    daemon
        .vessel(&["network", "create", "--subnet", &subnet, "aaa"])
        .ok();
    create(&daemon, 1, "six");
    create(&daemon, 2, "zzz");
    server(
        &daemon,
        "web",
        &["--network", "aaa", "--network", "zzz", "-p", "8080"],
    );
    let v6 = |which: u32| daemon.further_subnet_v6(which);
    let routes = || daemon.vessel(&["exec", "web", "ip", "-6", "route"]).ok();
    let (v4_port, v6_port) = published(&daemon, "web");
    assert_eq!(v4_port, v6_port);
    let by_v4 = format!("127.0.0.1:{v4_port}");
    let by_v6 = format!("[{}:1]:{v6_port}", v6(2));
    served(&daemon, &by_v4);
    served(&daemon, &by_v6);
    assert!(
        routes().contains(&format!("default via {}:1", v6(2))),
        "{}",
        routes()
    );
    // Another one comes first in the order of names.
    let wanted = format!("{}:77", v6(1));
    daemon
        .vessel(&["network", "connect", "--ip6", &wanted, "six", "web"])
        .ok();
    assert_eq!(of_network(&daemon, "web", "six", "GlobalIPv6Address"), wanted);
    assert!(
        routes().contains(&format!("default via {}:1", v6(1))),
        "{}",
        routes()
    );
    served(&daemon, &by_v4);
    served(&daemon, &by_v6);
    daemon.vessel(&["network", "disconnect", "six", "web"]).ok();
    assert!(
        routes().contains(&format!("default via {}:1", v6(2))),
        "{}",
        routes()
    );
    served(&daemon, &by_v6);
    daemon.vessel(&["network", "disconnect", "zzz", "web"]).ok();
    assert!(!routes().contains("default"), "{}", routes());
    served(&daemon, &by_v4);
    assert_eq!(fetch(&by_v6), None);
}

/// What a Compose file says of both families.
#[test]
fn a_project_with_both_families() {
    let Some(daemon) = daemon() else { return };
    let (v4, v6) = (daemon.further_subnet(0), daemon.further_subnet_v6(0));
    let text = format!(
        r#"
services:
  web:
    image: busybox
    command: sleep 1000
    stop_grace_period: 0s
    networks: {{dual: {{ipv6_address: "{v6}:99"}}}}
networks:
  dual:
    enable_ipv6: true
    ipam: {{config: [{{subnet: "{v4}"}}, {{subnet: "{v6}:/64", gateway: "{v6}:1"}}]}}
"#
    );
    let directory = project(&daemon, "six", &[("compose.yaml", &text)]);
    compose(&daemon, &directory, &["up", "-d"]).ok();
    assert_eq!(
        of_network(&daemon, "six-web-1", "six_dual", "GlobalIPv6Address"),
        format!("{v6}:99")
    );
    let route = daemon.vessel(&["exec", "six-web-1", "ip", "-6", "route"]).ok();
    assert!(route.contains(&format!("default via {v6}:1 dev eth0")), "{route}");
    // Nothing has changed: nothing is made anew.
    let id = daemon.inspect("six-web-1", "{{.Id}}");
    compose(&daemon, &directory, &["up", "-d"]).ok();
    assert_eq!(daemon.inspect("six-web-1", "{{.Id}}"), id);
    compose(&daemon, &directory, &["down"]).ok();
    daemon.vessel(&["network", "inspect", "six_dual"]).fails(1);
}
