//! Clients of others: what they push comes back, with passwords and certificates.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::server::{Server, VESSEL};

fn installed(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a program that must succeed; what it printed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{program} {arguments:?}: {out}{err}");
    out.into_owned()
}

/// An OCI layout with an image of one layer, made by hand: no tool is needed for it.
fn layout(directory: &Path) {
    use vessel_image::Digest;
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest, bytes.len())
    };
    // The end of an archive, which is an archive of nothing.
    let (layer, size) = put(&[0; 1024]);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    );
    let (config, length) = put(config.as_bytes());
    let prefix = "application/vnd.oci.image";
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{prefix}.manifest.v1+json","config":{{"mediaType":"{prefix}.config.v1+json","digest":"{config}","size":{length}}},"layers":[{{"mediaType":"{prefix}.layer.v1.tar","digest":"{layer}","size":{size}}}]}}"#
    );
    let (manifest, size) = put(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{prefix}.manifest.v1+json","digest":"{manifest}","size":{size},"annotations":{{"org.opencontainers.image.ref.name":"x"}}}}]}}"#
    );
    std::fs::write(directory.join("index.json"), index).unwrap();
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn skopeo_with_passwords_and_certificates() {
    if !installed("skopeo") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let mut add = Command::new(VESSEL)
        .args([
            "registry",
            "user",
            "add",
            "--htpasswd",
            &path("users"),
            "--password-stdin",
            "ann",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut add.stdin.take().unwrap(), b"secret\n").unwrap();
    assert!(add.wait().unwrap().success());
    let key = run(
        "openssl",
        &["ecparam", "-genkey", "-name", "prime256v1", "-noout"],
    );
    std::fs::write(path("key"), key).unwrap();
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-new",
            "-key",
            &path("key"),
            "-days",
            "2",
            "-subj",
            "/CN=x",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-out",
            &path("cert.crt"),
        ],
    );
    let options = [
        "--htpasswd",
        &path("users"),
        "--tls-cert",
        &path("cert.crt"),
        "--tls-key",
        &path("key"),
        "--anonymous-pull",
    ];
    let server = Server::start(&directory.path().join("root"), &options);
    let source = directory.path().join("image");
    layout(&source);
    let (source, target) = (
        format!("oci:{}:x", source.display()),
        format!("docker://{}/team/app:v1", server.address),
    );
    // The certificate is trusted because it is given, not because nothing is checked.
    std::fs::create_dir(path("certs")).unwrap();
    std::fs::copy(path("cert.crt"), path("certs/ca.crt")).unwrap();
    let certs = path("certs");
    run(
        "skopeo",
        &[
            "copy",
            "--dest-cert-dir",
            &certs,
            "--dest-creds",
            "ann:secret",
            &source,
            &target,
        ],
    );
    let wrong = Command::new("skopeo")
        .args([
            "copy",
            "--dest-cert-dir",
            &certs,
            "--dest-creds",
            "ann:wrong",
            &source,
            &target,
        ])
        .output()
        .unwrap();
    assert!(!wrong.status.success());
    let back = format!("oci:{}:y", path("back"));
    run("skopeo", &["copy", "--src-cert-dir", &certs, &target, &back]);
    let name = format!("docker://{}/team/app", server.address);
    assert!(run("skopeo", &["list-tags", "--cert-dir", &certs, &name]).contains("v1"));
    run(
        "skopeo",
        &["delete", "--cert-dir", &certs, "--creds", "ann:secret", &target],
    );
    let gone = Command::new("skopeo")
        .args(["inspect", "--cert-dir", &certs, &target])
        .output()
        .unwrap();
    assert!(!gone.status.success());
}
