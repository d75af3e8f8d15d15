//! What the server does before any object is involved: versions, headers, errors, bounds, sockets.

mod common;

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use common::Daemon;
use vessel_daemon::{Listen, Server};

#[test]
fn ping_has_the_headers_clients_negotiate_by() {
    let daemon = Daemon::start();
    let ping = daemon.get("/_ping");
    assert_eq!((ping.status, ping.text()), (200, "OK"));
    assert_eq!(ping.header("Api-Version"), Some("1.55"));
    assert_eq!(ping.header("Ostype"), Some("linux"));
    assert_eq!(ping.header("Docker-Experimental"), Some("false"));
    assert_eq!(ping.header("Swarm"), Some("inactive"));
    assert_eq!(ping.header("Builder-Version"), Some("2"));
    assert_eq!(
        ping.header("Cache-Control"),
        Some("no-cache, no-store, must-revalidate")
    );
    assert!(ping.header("Server").unwrap().starts_with("Vessel/"));
    let head = daemon.request("HEAD", "/_ping", "", b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Api-Version"), Some("1.55"));
}

#[test]
fn versions_are_negotiated_with_dockers_texts() {
    let daemon = Daemon::start();
    for path in ["/version", "/v1.24/version", "/v1.47/version", "/v1.55/version"] {
        let version = daemon.get(path);
        assert_eq!(version.status, 200, "{path}");
        let version = version.json();
        assert_eq!(version["ApiVersion"], "1.55");
        assert_eq!(version["MinAPIVersion"], "1.24");
        assert_eq!(version["Os"], "linux");
        // The parts came with 1.35.
        let engine = &version["Components"][0]["Name"];
        assert_eq!(*engine == "Engine", path != "/v1.24/version", "{path}");
    }
    let old = daemon.get("/v1.12/version");
    assert_eq!(old.status, 400);
    assert_eq!(
        old.message(),
        "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
    );
    let new = daemon.get("/v1.99/version");
    assert_eq!(
        new.message(),
        "client version 1.99 is too new. Maximum supported API version is 1.55"
    );
}

#[test]
fn what_leads_nowhere_is_page_not_found() {
    let daemon = Daemon::start();
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/nothing"),
        ("GET", "/v1.55"),
        ("PATCH", "/containers/json"),
        ("GET", "/containers"),
        ("GET", "/containers/x/nothing"),
        ("POST", "/images/json"),
        ("DELETE", "/_ping"),
    ] {
        let answer = daemon.request(method, path, "", b"");
        assert_eq!(
            (answer.status, answer.message().as_str()),
            (404, "page not found"),
            "{method} {path}"
        );
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
    }
}

#[test]
fn what_is_not_there_says_so() {
    let daemon = Daemon::start();
    for (method, path, status, part) in [
        ("GET", "/swarm", 503, "This node is not a swarm manager."),
        ("GET", "/services", 503, "docker swarm init"),
        ("GET", "/nodes/x", 503, "not a swarm manager"),
        ("POST", "/build", 400, "the build context is empty"),
        (
            "POST",
            "/commit?container=nosuch",
            404,
            "No such container: nosuch",
        ),
        ("POST", "/images/a/b/push", 404, "a/b"),
        ("POST", "/networks/create", 400, "must not be empty"),
    ] {
        let answer = daemon.request(method, path, "", b"");
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert!(answer.message().contains(part), "{}", answer.message());
    }
    assert_eq!(daemon.get("/plugins").json(), serde_json::json!([]));
}

#[test]
fn bodies_are_checked() {
    let daemon = Daemon::start();
    let create = |kind: &str, body: &[u8]| daemon.request("POST", "/containers/create", kind, body);
    let refused = |kind: &str, body: &[u8], part: &str| {
        let answer = create(kind, body);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert!(answer.message().contains(part), "{}", answer.message());
    };
    refused(
        "text/plain",
        b"{}",
        "unsupported Content-Type header (text/plain): must be 'application/json'",
    );
    refused("", b"{}", "malformed Content-Type header");
    refused("application/json", b"{", "invalid JSON: ");
    refused("application/json", b"{} x", "invalid JSON: ");
    refused("application/json", b"{\"Cmd\": {}}", "invalid JSON: ");
    refused("application/json", b"", "config cannot be empty");
    let large = vec![b' '; 5 << 20];
    let answer = create("application/json; charset=utf-8", &large);
    assert_eq!(answer.status, 413);
    assert!(answer.message().contains("4 MiB"));
}

#[test]
fn parameters_are_checked() {
    let daemon = Daemon::start();
    for path in [
        "/containers/json?limit=x",
        "/containers/json?filters=%7B",
        "/containers/json?filters=%7B%22nonsense%22:%5B%22x%22%5D%7D",
        "/containers/json?all=%zz",
        "/containers/%ff/json",
        "/containers/a%00b/json",
        "/images/json?filters=[]",
        "/events?since=yesterday",
        "/events?since=20&until=10",
        "/system/df?type=nonsense",
        "/v1.x/info",
    ] {
        let answer = daemon.get(path);
        assert!(
            answer.status == 400 || (path == "/v1.x/info" && answer.status == 404),
            "{path}: {}",
            answer.text()
        );
        assert!(!answer.message().is_empty());
    }
}

#[test]
fn unknown_objects_are_named() {
    let daemon = Daemon::start();
    for path in [
        "json",
        "top",
        "logs?stdout=1",
        "stats?stream=0",
        "changes",
        "export",
        "archive?path=/",
    ] {
        let answer = daemon.get(&format!("/containers/nosuch/{path}"));
        assert_eq!(
            (answer.status, answer.message().as_str()),
            (404, "No such container: nosuch"),
            "{path}"
        );
    }
    for path in [
        "start",
        "stop",
        "kill",
        "restart",
        "pause",
        "unpause",
        "wait",
        "rename?name=x",
        "attach?stream=1",
    ] {
        let answer = daemon.post(&format!("/containers/nosuch/{path}"));
        assert_eq!(
            (answer.status, answer.message().as_str()),
            (404, "No such container: nosuch"),
            "{path}"
        );
    }
    assert_eq!(daemon.delete("/containers/nosuch").status, 404);
    assert_eq!(
        daemon.get("/images/nosuch/json").message(),
        "No such image: nosuch:latest"
    );
    assert_eq!(
        daemon.get("/images/host:5000/a/b:c/json").message(),
        "No such image: host:5000/a/b:c"
    );
    assert_eq!(daemon.get("/exec/nosuch/json").status, 404);
    assert_eq!(daemon.get("/volumes/nosuch").status, 404);
    assert_eq!(daemon.get("/networks/nosuch").status, 404);
}

#[test]
fn hostile_requests_do_not_disturb_others() {
    let daemon = Daemon::start();
    for bytes in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET /_ping HTTP/9.9\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let mut stream = daemon.connect();
        stream.write_all(bytes).unwrap();
        let mut rest = Vec::new();
        // Whether it is answered or closed, it ends.
        let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
        assert!(!rest.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&rest));
    }
    let endless = format!("GET /_ping HTTP/1.1\r\nHost: x\r\nX: {}", "y".repeat(1 << 20));
    let mut stream = daemon.connect();
    let _ = stream.write_all(endless.as_bytes());
    drop(stream);
    assert_eq!(daemon.get("/_ping").status, 200);
}

#[test]
fn connections_are_kept_alive() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    for _ in 0..3 {
        stream
            .write_all(b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 1024];
        while !seen.ends_with(b"\r\n\r\nOK") {
            let read = std::io::Read::read(&mut stream, &mut buffer).unwrap();
            assert!(read > 0, "closed after {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..read]);
        }
    }
}

#[test]
fn the_socket_is_for_its_owner_and_goes_away() {
    let daemon = Daemon::start();
    let found = std::fs::symlink_metadata(daemon.socket()).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    let directory = daemon.stop();
    assert!(!directory.path().join("vessel.sock").exists());
}

#[test]
fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
    let daemon = Daemon::start();
    let runtime = vessel_daemon::runtime().unwrap();
    let other = tempfile::tempdir().unwrap();
    let mut config = common::config(&other);
    config.listen = vec![Listen::Unix(daemon.socket())];
    let error = runtime.block_on(Server::open(config)).unwrap_err();
    assert!(
        error.to_string().contains("another daemon already answers"),
        "{error}"
    );
    assert_eq!(daemon.get("/_ping").status, 200);

    // Nobody listens any more, and the file is left.
    let directory = daemon.stop();
    drop(UnixListener::bind(directory.path().join("vessel.sock")).unwrap());
    let daemon = Daemon::start_in(directory);
    assert_eq!(daemon.get("/_ping").status, 200);
}

#[test]
fn only_loopback_without_tls() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = common::config(&directory);
    config.listen = vec![Listen::Tcp("0.0.0.0:0".parse().unwrap())];
    let error = vessel_daemon::runtime()
        .unwrap()
        .block_on(Server::open(config))
        .unwrap_err();
    assert!(error.to_string().contains("--tlsverify"), "{error}");
}

#[test]
fn something_else_at_the_sockets_place_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let config = common::config(&directory);
    std::fs::write(directory.path().join("vessel.sock"), "precious").unwrap();
    let error = vessel_daemon::runtime()
        .unwrap()
        .block_on(Server::open(config))
        .unwrap_err();
    assert!(error.to_string().contains("not a socket"), "{error}");
    assert_eq!(
        std::fs::read_to_string(directory.path().join("vessel.sock")).unwrap(),
        "precious"
    );
}

#[test]
fn info_is_truthful() {
    let daemon = Daemon::start();
    let info = daemon.get("/info").json();
    assert_eq!(info["Containers"], 0);
    assert_eq!(
        info["DockerRootDir"],
        daemon.directory.path().join("root").to_str().unwrap()
    );
    assert_eq!(info["OSType"], "linux");
    assert!(info["NCPU"].as_i64().unwrap() > 0);
    assert!(info["MemTotal"].as_i64().unwrap() > 1 << 20);
    let id = info["ID"].as_str().unwrap().to_owned();
    assert!(!id.is_empty());
    // The identity survives the daemon.
    let daemon = Daemon::start_in(daemon.stop());
    assert_eq!(daemon.get("/info").json()["ID"], id.as_str());
}

#[test]
fn a_body_nobody_wants_does_not_cost_the_answer() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    stream
        .write_all(
            b"POST /swarm/init HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 20000\r\n\r\n",
        )
        .unwrap();
    // A client that writes its body after its head finds the connection open still.
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        stream.write_all(&[b' '; 1000]).unwrap();
    }
    assert_eq!(common::read_answer(&mut stream).status, 501);
}

/// Whatever a query holds, the answer is a list or the caller's mistake, never a failure of the daemon's.
#[test]
fn arbitrary_queries_are_answered() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let daemon = Daemon::start();
    let encode = |text: &str| {
        text.bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect::<String>()
    };
    let json = prop_oneof![
        "\\PC{0,30}",
        r#"\{"(label|status|until|before|since|dangling|reference|id|name|exited|network|type)": ?\[("\PC{0,8}"(, "x")?)?\]\}"#,
        r#"\{"(label|status|until|dangling|volume|health|publish)": ?\{"\PC{0,8}": ?(true|false|1|null)\}\}"#,
    ];
    let numbers = prop_oneof!["[0-9-]{0,22}", "\\PC{0,6}"];
    let mut runner = TestRunner::new(Config::with_cases(300));
    runner
        .run(&(json, numbers), |(filters, limit)| {
            for path in ["containers/json", "images/json", "volumes", "networks"] {
                let path = format!(
                    "/{path}?all=1&filters={}&limit={}",
                    encode(&filters),
                    encode(&limit)
                );
                let answer = daemon.get(&path);
                prop_assert!(
                    [200, 400, 404].contains(&answer.status),
                    "{}: {} {}",
                    path,
                    answer.status,
                    answer.text()
                );
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn clients_that_send_nothing_more_stop_nobody_else() {
    let daemon = Daemon::start();
    let hold = || {
        let mut stream = daemon.connect();
        stream
            .write_all(b"POST /images/load HTTP/1.1\r\nHost: docker\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\nslow")
            .unwrap();
        stream
    };
    let mut held: Vec<_> = (0..128).map(|_| hold()).collect();
    // What needs a thread for the disk gets one.
    let made = daemon.post_json("/volumes/create", &serde_json::json!({ "Name": "data" }));
    assert_eq!(made.status, 201, "{}", made.text());
    // One more is refused as soon as all of them are under way, and not once they are gone. One that was let in came before
    // one of those, which was refused in its place: another is held for it.
    let load = || daemon.request("POST", "/images/load", "application/x-tar", b"no archive");
    let begin = std::time::Instant::now();
    let refused = loop {
        let answer = load();
        if answer.status == 409 {
            break answer;
        }
        assert!(begin.elapsed().as_secs() < 30, "129 at once were taken");
        held.push(hold());
    };
    let text = refused.message();
    assert!(text.contains("128 archives"), "{text}");
    drop(held);
    let begin = std::time::Instant::now();
    while load().status == 409 {
        assert!(begin.elapsed().as_secs() < 30, "there is no room again");
    }
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let daemon = Daemon::start();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(limit.current, limit.maximum, "the limit was not raised");
    // Both ends are this process's.
    let number = (limit.current.unwrap_or(u64::MAX) / 3).min(4200);
    let silent: Vec<_> = (0..number).map(|_| daemon.connect()).collect();
    assert_eq!(daemon.get("/_ping").status, 200);
    drop(silent);
}
