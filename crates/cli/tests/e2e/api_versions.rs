//! What the newest versions of the API bring: identities and attestations of images, block I/O limits of single devices.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::harness::{Daemon, daemon};
use crate::registries::Registry;

/// Status, head and body of a request on a connection of its own.
fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    kind: &str,
    body: &[u8],
) -> (u16, String, Vec<u8>) {
    let length = body.len();
    let accept =
        "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head[9..12].parse().unwrap();
    (status, head, answer.split_off(end + 4))
}

pub fn api(daemon: &Daemon, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let socket = daemon.socket();
    let stream = UnixStream::connect(socket.trim_start_matches("unix://")).unwrap();
    let body = match body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    };
    let (status, _, answer) = exchange(stream, method, path, "application/json", &body);
    (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
}

fn get(daemon: &Daemon, path: &str) -> (u16, Value) {
    api(daemon, "GET", path, &Value::Null)
}

fn sha256(bytes: &[u8]) -> String {
    vessel_image::Digest::sha256(bytes).to_string()
}

/// Puts documents beside an image that was pushed.
struct Shelf<'a> {
    address: SocketAddr,
    repository: &'a str,
}

impl Shelf<'_> {
    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        exchange(
            TcpStream::connect(self.address).unwrap(),
            method,
            path,
            kind,
            body,
        )
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let begin = format!("/v2/{}/blobs/uploads/", self.repository);
        let (status, head, _) = self.send("POST", &begin, "", b"");
        assert_eq!(status, 202, "{head}");
        let place = head
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .unwrap();
        let path = &place[place.find("/v2/").unwrap()..];
        let end = format!("{path}&digest={digest}");
        let (status, head, _) = self.send("PUT", &end, "application/octet-stream", bytes);
        assert_eq!(status, 201, "{head}");
        digest
    }

    fn manifest(&self, target: &str, kind: &str, document: &Value) -> (String, usize) {
        let raw = document.to_string();
        let path = format!("/v2/{}/manifests/{target}", self.repository);
        let (status, head, body) = self.send("PUT", &path, kind, raw.as_bytes());
        assert_eq!(status, 201, "{head} {}", String::from_utf8_lossy(&body));
        (sha256(raw.as_bytes()), raw.len())
    }
}

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const SLSA: &str = "https://slsa.dev/provenance/v1";
const SPDX: &str = "https://spdx.dev/Document";

#[test]
fn what_is_said_about_an_image_comes_with_it() {
    let (Some(daemon), Some(registry)) = (daemon(), Registry::start(false)) else {
        return;
    };
    let plain = registry.name("said:plain");
    daemon.vessel(&["tag", "busybox", &plain]).ok();
    daemon.vessel(&["push", &plain]).ok();
    let shelf = Shelf {
        address: registry.address(),
        repository: "said",
    };
    let (_, head, image) = shelf.send("GET", "/v2/said/manifests/plain", "", b"");
    let kind = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Type: "))
        .unwrap();
    let statement =
        |predicate: &str| json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate});
    let layers: Vec<Value> = [SLSA, SPDX]
        .into_iter()
        .map(|predicate| {
            let raw = statement(predicate).to_string();
            json!({"mediaType": IN_TOTO, "digest": shelf.blob(raw.as_bytes()), "size": raw.len(),
                "annotations": {"in-toto.io/predicate-type": predicate}})
        })
        .collect();
    let config = json!({"architecture": "unknown", "os": "unknown"}).to_string();
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": shelf.blob(config.as_bytes()),
            "size": config.len()}});
    let about = sha256(&manifest.to_string().into_bytes());
    let (digest, size) = shelf.manifest(&about, OCI_MANIFEST, &manifest);
    let architecture = daemon
        .vessel(&["image", "inspect", "-f", "{{.Architecture}}", "busybox"])
        .ok();
    let platform = json!({"os": "linux", "architecture": architecture});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": kind, "digest": sha256(&image), "size": image.len(), "platform": platform},
        {"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": sha256(&image)}},
    ]});
    shelf.manifest("attested", "application/vnd.oci.image.index.v1+json", &index);

    // Nothing was said of what was loaded.
    let before = get(&daemon, "/v1.55/images/busybox/attestations");
    assert_eq!(before, (200, json!([])));
    let attested = registry.name("said:attested");
    daemon.vessel(&["pull", &attested]).ok();
    let path = format!("/v1.55/images/{attested}/attestations");
    let (status, all) = get(&daemon, &path);
    assert_eq!(status, 200, "{all}");
    let kinds: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["PredicateType"].clone())
        .collect();
    assert_eq!(kinds, [SLSA, SPDX]);
    assert_eq!(all[0]["Descriptor"], layers[0]);
    assert!(all[0].get("Statement").is_none());
    let (_, one) = get(&daemon, &format!("{path}?type={SPDX}&statement=1"));
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(one[0]["Statement"], statement(SPDX));
    assert_eq!(get(&daemon, &format!("{path}?type=other")), (200, json!([])));
    let other = "%7B%22os%22%3A%22linux%22%2C%22architecture%22%3A%22s390x%22%7D";
    assert_eq!(get(&daemon, &format!("{path}?platform={other}")).0, 404);
    assert_eq!(
        get(&daemon, &format!("{path}?platform={{}}&platform={{}}")).0,
        400
    );
    assert_eq!(get(&daemon, "/v1.55/images/nosuch/attestations").0, 404);
    // A version that does not know it.
    assert_eq!(
        get(&daemon, &format!("/v1.54/images/{attested}/attestations")).0,
        404
    );

    // Where it comes from; and that was not known before 1.53.
    let inspect = |version: &str| get(&daemon, &format!("/v{version}/images/{attested}/json")).1;
    let repository = attested.rsplit_once(':').unwrap().0;
    assert_eq!(
        inspect("1.53")["Identity"],
        json!({"Pull": [{"Repository": repository}]})
    );
    assert!(inspect("1.52").get("Identity").is_none());
    let list = |query: &str| get(&daemon, &format!("/v1.54/images/json?{query}")).0;
    assert_eq!((list("identity=1"), list("identity=1&manifests=1")), (400, 200));
    assert_eq!(get(&daemon, "/v1.53/images/json?identity=1").0, 200);

    // It goes with the image.
    let blob = daemon
        .root()
        .join("blobs/sha256")
        .join(&digest["sha256:".len()..]);
    assert!(blob.exists());
    for name in [&attested, &plain, "busybox"] {
        daemon.vessel(&["rmi", name]).ok();
    }
    daemon.empty_bin();
    assert!(!blob.exists());
}

#[test]
fn block_io_limits_of_devices_are_updated() {
    let Some(daemon) = daemon() else { return };
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut disks = std::fs::read_dir("/sys/block").into_iter().flatten().map(name);
    let Some(disk) = disks.find(|disk| std::path::Path::new("/dev").join(disk).exists()) else {
        eprintln!("skipped: this host has no block device");
        return;
    };
    let disk = format!("/dev/{disk}");
    let run = [
        "run",
        "-d",
        "--name",
        "limited",
        "--network",
        "none",
        "busybox",
        "sleep",
        "600",
    ];
    let id = daemon.vessel(&run).ok();
    let in_kernel = || {
        let parent = daemon.cgroup_parent();
        let v1 = format!("/sys/fs/cgroup/blkio{parent}/{id}/blkio.throttle.write_bps_device");
        let v2 = format!("/sys/fs/cgroup{parent}/{id}/io.max");
        let read = std::fs::read_to_string(v1).or_else(|_| std::fs::read_to_string(v2));
        read.ok().map(|text| text.contains("1048576"))
    };
    let update = |version: u32, body: Value| {
        let path = format!("/v1.{version}/containers/limited/update");
        api(&daemon, "POST", &path, &body)
    };
    let rates = || daemon.inspect("limited", "{{json .HostConfig.BlkioDeviceWriteBps}}");
    let limit = json!({"BlkioDeviceWriteBps": [{"Path": disk, "Rate": 1_048_576}]});
    // They were in the request for ever, and passed over.
    assert_eq!(update(54, limit.clone()).0, 200);
    assert_eq!(rates(), "null");
    assert_eq!(update(55, limit).0, 200);
    assert_eq!(rates(), format!(r#"[{{"Path":"{disk}","Rate":1048576}}]"#));
    assert_ne!(in_kernel(), Some(false));
    assert_eq!(
        update(55, json!({"BlkioDeviceWriteBps": null, "CpuShares": 7})).0,
        200
    );
    assert!(rates().contains("1048576"));
    let (status, refused) = update(
        55,
        json!({"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 1}]}),
    );
    assert_eq!(status, 400, "{refused}");
    assert_eq!(update(55, json!({"BlkioDeviceWriteBps": []})).0, 200);
    assert_eq!(rates(), "null");
    assert_ne!(in_kernel(), Some(true));
}
