//! Contexts, and a daemon over TLS: what `openssl` makes is used as people use it.

use std::path::Path;
use std::process::Command;

use crate::harness::{Said, VESSEL, daemon};

fn openssl(directory: &Path, arguments: &[&str]) -> bool {
    let run = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .output();
    run.is_ok_and(|output| output.status.success())
}

/// An authority, a daemon's certificate for 127.0.0.1 and a client's.
fn certificates(directory: &Path) -> bool {
    std::fs::write(directory.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let make = |name: &str| {
        openssl(
            directory,
            &[
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-keyout",
                &format!("{name}-key.pem"),
                "-out",
                "req",
                "-subj",
                "/CN=x",
            ],
        ) && openssl(
            directory,
            &[
                "x509",
                "-req",
                "-in",
                "req",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca-key.pem",
                "-CAcreateserial",
                "-out",
                &format!("{name}.pem"),
                "-days",
                "2",
                "-extfile",
                "san",
            ],
        )
    };
    openssl(
        directory,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca-key.pem",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=ca",
            "-days",
            "2",
        ],
    ) && make("server")
        && make("client")
}

#[test]
fn a_context_leads_to_a_daemon_over_tls() {
    let Some(mut daemon) = daemon() else { return };
    let directory = tempfile::tempdir().unwrap();
    if !certificates(directory.path()) {
        eprintln!("skipped: openssl makes no certificates here");
        return;
    }
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    daemon.stop();
    daemon.more = vec![
        "-H".into(),
        format!("tcp://127.0.0.1:{port}"),
        "--tlsverify".into(),
    ];
    for (option, name) in [
        ("--tlscacert", "ca.pem"),
        ("--tlscert", "server.pem"),
        ("--tlskey", "server-key.pem"),
    ] {
        daemon.more.extend([option.to_owned(), file(name)]);
    }
    daemon.start();
    let vessel = |arguments: &[&str], set: &[(&str, &str)]| -> Said {
        let mut command = Command::new(VESSEL);
        command.args(arguments).env("DOCKER_CONFIG", file("config"));
        for name in [
            "DOCKER_HOST",
            "DOCKER_CONTEXT",
            "DOCKER_TLS_VERIFY",
            "DOCKER_CERT_PATH",
        ] {
            command.env_remove(name);
        }
        command.envs(set.iter().copied()).output().unwrap().into()
    };
    let host = format!("tcp://127.0.0.1:{port}");
    let docker = format!(
        "host={host},ca={},cert={},key={}",
        file("ca.pem"),
        file("client.pem"),
        file("client-key.pem")
    );
    vessel(&["context", "create", "far", "--docker", &docker], &[]).ok();
    let whole = "echo hello; cat";
    let said = vessel(
        &[
            "--context",
            "far",
            "run",
            "--rm",
            "-i",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            whole,
        ],
        &[],
    );
    assert_eq!(said.ok(), "hello");
    vessel(&["context", "use", "far"], &[]).ok();
    assert_eq!(vessel(&["context", "show"], &[]).ok(), "far");
    assert!(vessel(&["context", "ls"], &[]).ok().contains("far *"));
    assert!(vessel(&["images", "-q"], &[]).ok().len() > 5);
    let shown = vessel(
        &["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"],
        &[],
    )
    .ok();
    assert_eq!(shown, host);
    // Much both ways.
    let long = vessel(
        &[
            "run",
            "--rm",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            "seq 1 200000 | tail -c 1000000",
        ],
        &[],
    );
    assert!(long.ok().ends_with("\n200000"));
    vessel(&["context", "rm", "-f", "far"], &[]).ok();
    assert_eq!(vessel(&["context", "show"], &[]).ok(), "default");

    // The variables do the same; without the client's certificate nobody gets in.
    for name in ["cert", "key"] {
        let from = if name == "cert" {
            "client.pem"
        } else {
            "client-key.pem"
        };
        std::fs::copy(file(from), file(&format!("{name}.pem"))).unwrap();
    }
    let set = [
        ("DOCKER_HOST", host.as_str()),
        ("DOCKER_TLS_VERIFY", "1"),
        ("DOCKER_CERT_PATH", directory.path().to_str().unwrap()),
    ];
    vessel(&["ps"], &set).ok();
    let refused = vessel(
        &["--tlscacert", &file("ca.pem"), "--tlsverify", "-H", &host, "ps"],
        &[],
    );
    assert_ne!(refused.code, 0, "{refused:?}");
    let clear = vessel(&["ps"], &[("DOCKER_HOST", host.as_str())]);
    assert_ne!(clear.code, 0, "{clear:?}");
}
