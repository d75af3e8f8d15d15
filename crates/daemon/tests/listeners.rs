//! The ways to a daemon: TLS; and bodies in any letters. (Streams of containers are tested where containers run, with the
//! whole binary.)

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::Daemon;
use serde_json::json;

fn create(daemon: &Daemon, body: serde_json::Value) -> String {
    let made = daemon.post_json("/containers/create", &body);
    assert_eq!(made.status, 201, "{}", made.text());
    made.json()["Id"].as_str().unwrap().to_owned()
}

#[test]
fn names_of_fields_are_taken_in_any_letters() {
    let daemon = Daemon::start();
    let archive = common::root_archive("x");
    let path = "/images/create?fromSrc=-&repo=root&tag=latest";
    let made = daemon.request("POST", path, "application/x-tar", &archive);
    assert_eq!(made.status, 200, "{}", made.text());
    let body = json!({"image": "root", "cmd": ["/bin/busybox", "true"], "hostconfig": {"networkMode": "none", "memory": 67108864}});
    let id = create(&daemon, body);
    let inspect = daemon.get(&format!("/containers/{id}/json")).json();
    assert_eq!(inspect["HostConfig"]["Memory"], 67_108_864);
    assert_eq!(inspect["HostConfig"]["NetworkMode"], "none");
}

/// An authority, and what it signed for a daemon and for a client.
fn certificates(directory: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let signed = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), signed.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}

/// A port that nobody else gets until the daemon listens there.
fn bound() -> (vessel_daemon::Listen, std::net::SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap();
    (vessel_daemon::Listen::Inherited(listener.into()), port)
}

#[test]
fn over_tls_only_clients_with_a_certificate_get_in() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    certificates(directory.path());
    let (listen, port) = bound();
    let file = |name: &str| directory.path().join(name);
    let daemon = Daemon::start_with(Arc::clone(&directory), |config| {
        config.listen.push(listen);
        config.tls = Some(vessel_daemon::TlsFiles {
            certificate: file("server.pem"),
            key: file("server-key.pem"),
            clients: Some(file("ca.pem")),
        });
    });
    // The socket beside it needs none.
    assert_eq!(daemon.get("/_ping").text(), "OK");
    let ask = |with_certificate: bool| {
        let mut roots = rustls::RootCertStore::empty();
        use rustls_pki_types::pem::PemObject;
        let read = |name: &str| rustls_pki_types::CertificateDer::from_pem_file(file(name)).unwrap();
        roots.add(read("ca.pem")).unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        let config = if with_certificate {
            let key = rustls_pki_types::PrivateKeyDer::from_pem_file(file("client-key.pem")).unwrap();
            builder
                .with_client_auth_cert(vec![read("client.pem")], key)
                .unwrap()
        } else {
            builder.with_no_client_auth()
        };
        let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
        let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let tcp = TcpStream::connect(port)?;
        tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut stream = rustls::StreamOwned::new(session, tcp);
        stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        if answer.is_empty() {
            read.map(|_| String::new())
        } else {
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }
    };
    let answer = ask(true).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("OK"),
        "{answer}"
    );
    assert!(ask(false).map_or(true, |answer| answer.is_empty()));
    // In clear nobody is answered.
    let mut clear = TcpStream::connect(port).unwrap();
    clear.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    clear
        .write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

fn speak(stream: &mut (impl Read + Write), bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn input_of_a_refused_attach_is_no_request() {
    let daemon = Daemon::start();
    let input = "POST /volumes/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"Name\":\"evil\"}";
    for head in [
        "POST /v1.41/containers/none/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        "POST /v1.41/containers/none/attach?stdin=1&stream=1 HTTP/1.1\r\nHost: d\r\n\r\n",
        "POST /v9.99/containers/none/attach HTTP/1.1\r\nHost: d\r\n\r\n",
        "POST /exec/none/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
    ] {
        let answer = speak(&mut daemon.connect(), format!("{head}{input}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
        assert!(
            answer.to_lowercase().contains("\r\nconnection: close\r\n"),
            "{answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }
    assert_eq!(daemon.get("/volumes/evil").status, 404);
}

#[test]
fn in_clear_web_pages_are_not_answered() {
    let (listen, port) = bound();
    let daemon = Daemon::start_with(Arc::new(tempfile::tempdir().unwrap()), |config| {
        config.listen.push(listen);
    });
    for (headers, status) in [
        (format!("Host: {port}"), 200),
        ("Host: localhost".to_owned(), 200),
        ("Host: rebound.example:2375".to_owned(), 403),
        (format!("Host: {port}\r\nOrigin: http://page.example"), 403),
    ] {
        let request = format!("GET /_ping HTTP/1.1\r\n{headers}\r\nConnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(port).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let answer = speak(&mut stream, request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{headers}: {answer}"
        );
    }
    // A Unix socket has an owner and a mode.
    let request = b"GET /_ping HTTP/1.1\r\nHost: any.example\r\nOrigin: x\r\nConnection: close\r\n\r\n";
    assert_eq!(daemon.raw(request).status, 200);
}
