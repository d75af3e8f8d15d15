//! Logs that go elsewhere.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::harness::daemon;

#[test]
fn lines_go_to_a_syslog_server_and_can_be_read_here() {
    let Some(daemon) = daemon() else { return };
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = format!("syslog-address=udp://{}", server.local_addr().unwrap());
    let said = daemon.vessel(&[
        "run",
        "--name",
        "logged",
        "--network",
        "none",
        "--log-driver",
        "syslog",
        "--log-opt",
        &address,
        "--log-opt",
        "tag={{.Name}}",
        "--log-opt",
        "syslog-format=rfc5424",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2",
    ]);
    assert_eq!(said.code, 0, "{said:?}");
    let mut messages = Vec::new();
    for _ in 0..2 {
        let mut message = [0; 1000];
        let length = server.recv(&mut message).unwrap();
        messages.push(String::from_utf8_lossy(&message[..length]).into_owned());
    }
    messages.sort();
    assert!(
        messages[0].starts_with("<27>1 ") && messages[0].ends_with(" logged - err"),
        "{messages:?}"
    );
    assert!(
        messages[1].starts_with("<30>1 ") && messages[1].ends_with(" logged - out"),
        "{messages:?}"
    );
    let said = daemon.vessel(&["logs", "logged"]);
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out\n", "err\n"));
    assert_eq!(
        daemon.inspect("logged", "{{.HostConfig.LogConfig.Type}}"),
        "syslog"
    );
}

#[test]
fn a_log_server_that_reads_nothing_holds_nobody_up() {
    let Some(daemon) = daemon() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let _deaf = UnixDatagram::bind(&path).unwrap();
    let address = format!("syslog-address=unixgram://{}", path.display());
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--log-driver",
        "syslog",
        "--log-opt",
        &address,
        "--log-opt",
        "cache-disabled=true",
        "busybox",
        "sh",
        "-c",
        "seq 1 20000 | tail -1",
    ]);
    assert_eq!(said.ok(), "20000");
}

#[test]
fn options_choose_what_is_said_of_a_container() {
    let Some(daemon) = daemon() else { return };
    for driver in ["json-file", "local"] {
        daemon
            .vessel(&[
                "run",
                "--name",
                driver,
                "--network",
                "none",
                "--log-driver",
                driver,
                "--label",
                "tier=front",
                "-e",
                "MODE=prod",
                "--log-opt",
                "labels=tier",
                "--log-opt",
                "env-regex=^MO",
                "--log-opt",
                "max-size=1m",
                "busybox",
                "echo",
                "hello",
            ])
            .ok();
        let said = daemon.vessel(&["logs", "--details", driver]).ok();
        assert_eq!(said, "MODE=prod,tier=front hello");
    }
    let said = daemon
        .vessel(&["create", "--log-driver", "asdf", "busybox"])
        .fails(1);
    assert!(
        said.contains("logger: no log driver named 'asdf' is registered"),
        "{said}"
    );
}
