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

#[test]
fn over_tls_only_clients_with_a_certificate_get_in() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    certificates(directory.path());
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let file = |name: &str| directory.path().join(name);
    let daemon = Daemon::start_with(Arc::clone(&directory), |config| {
        config.listen.push(vessel_daemon::Listen::Tcp(port));
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
