//! The registry client against a registry that lies, cuts, stalls and redirects.

mod limits;
mod server;
mod ways;

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use server::{Answer, Request, Server};
use vessel_image::registry::{
    Credentials, KnownBlob, PullEvent, PullOptions, PulledImage, PushImage, PushStyle, RegistryClient,
    Settings,
};
use vessel_image::{DiffId, Digest, ErrorKind, LiveSet, Platform, Reference, Store};

/// An image as a registry has it.
struct Image {
    blobs: HashMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    /// The compressed layers' digests.
    layers: Vec<String>,
    id: Digest,
}

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn tar(name: &str, size: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = 7u64;
    let data: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(size as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, &data[..]).unwrap();
    builder.into_inner().unwrap()
}

fn image(architecture: &str) -> Image {
    image_of(architecture, 600 << 10)
}

fn image_of(architecture: &str, size: usize) -> Image {
    let tars = [tar("a", size), tar("b", 100)];
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::sha256(tar).to_string()).collect();
    let config = serde_json::json!({"architecture": architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tars[0]).unwrap();
    let packed = [gzip.finish().unwrap(), zstd::encode_all(&tars[1][..], 1).unwrap()];
    let digest = |bytes: &[u8]| Digest::sha256(bytes).to_string();
    let kinds = [
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ];
    let layers: Vec<serde_json::Value> = packed
        .iter()
        .zip(kinds)
        .map(
            |(blob, kind)| serde_json::json!({"mediaType": kind, "size": blob.len(), "digest": digest(blob)}),
        )
        .collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": config.len(),
            "digest": digest(&config)}})
    .to_string()
    .into_bytes();
    let mut blobs = HashMap::from([(digest(&config), config.clone())]);
    let names = packed.iter().map(|blob| digest(blob)).collect();
    blobs.extend(packed.into_iter().map(|blob| (digest(&blob), blob)));
    Image {
        blobs,
        manifest,
        layers: names,
        id: Digest::sha256(&config),
    }
}

impl Image {
    /// What an honest registry answers.
    fn answer(&self, request: &Request) -> Answer {
        if request.path == "/v2/" {
            return Answer::new(200, "{}");
        }
        if request.path.contains("/manifests/") {
            return Answer::new(200, self.manifest.clone()).header("content-type", MANIFEST);
        }
        match request
            .path
            .rsplit('/')
            .next()
            .and_then(|digest| self.blobs.get(digest))
        {
            Some(blob) => match request.first() {
                Some(first) => Answer::part(blob, first),
                None => Answer::new(200, blob.clone()),
            },
            None => Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#),
        }
    }

    fn is_first_layer(&self, request: &Request) -> bool {
        request.path.ends_with(&self.layers[0])
    }
}

fn client() -> RegistryClient {
    RegistryClient::new(Settings {
        retries: 3,
        certificates: Vec::new(),
        ..Settings::default()
    })
    .unwrap()
}

struct Place {
    directory: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        Self { directory, store }
    }

    async fn pull(&self, name: &str) -> vessel_image::Result<PulledImage> {
        self.pull_as(name, &Credentials::default()).await
    }

    async fn pull_as(&self, name: &str, credentials: &Credentials) -> vessel_image::Result<PulledImage> {
        let reference = Reference::parse(name).unwrap().with_default_tag();
        let (client, options) = (client(), PullOptions::default());
        let work = client.pull(&self.store, &reference, &options, credentials, |_| {});
        tokio::time::timeout(Duration::from_secs(60), work)
            .await
            .expect("the pull hangs")
    }

    /// Bytes of downloads that wait to be resumed.
    fn partial(&self) -> u64 {
        let entries = std::fs::read_dir(self.directory.path().join("partial"));
        entries
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    }

    /// What is left when a failed pull's leases have ended and everything unused is collected.
    fn assert_nothing_left(&self) {
        let live = || LiveSet {
            layers: self.store.unfinished_layers().into_iter().collect(),
            ..LiveSet::default()
        };
        // Threads that unpacked other layers of it see its end a moment later.
        let temporary = || {
            std::fs::read_dir(self.directory.path().join("layers"))
                .unwrap()
                .count()
        };
        for _ in 0..200 {
            self.store.collect(live).unwrap();
            if temporary() == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.store.layers().unwrap(), []);
        assert_eq!(self.store.blobs().unwrap(), []);
        assert_eq!(self.partial(), 0);
        let temporary = std::fs::read_dir(self.directory.path().join("layers"))
            .unwrap()
            .count();
        assert_eq!(temporary, 0);
    }
}

fn assert_whole(place: &Place, image: &Image, pulled: &PulledImage) {
    assert_eq!(pulled.id, image.id);
    assert_eq!(pulled.layers.len(), 2);
    let top = place.store.layer_path(&pulled.layers[0].chain_id).join("a");
    assert_eq!(std::fs::metadata(top).unwrap().len(), 600 << 10);
    assert_eq!(place.store.blob(&pulled.digest).unwrap(), image.manifest);
    assert_eq!(place.partial(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_registry() {
    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    let server = Server::start(move |request| served.answer(request));
    let place = Place::new();
    let pulled = place.pull(&server.name("x")).await.unwrap();
    assert!(pulled.downloaded);
    assert_whole(&place, &image, &pulled);
    let before = server.count("GET", "/v2/x/blobs/");
    let again = place.pull(&server.name("x")).await.unwrap();
    assert!(!again.downloaded);
    assert_eq!(server.count("GET", "/v2/x/blobs/"), before);
    let other = server.name("x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(place.pull(&other).await.unwrap_err().kind(), ErrorKind::Digest);
}

/// Statements about an image come with it; that one of them cannot be had is no reason to do without the image.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_about_an_image_comes_with_it() {
    let digest = |bytes: &[u8]| Digest::sha256(bytes).to_string();
    let (said, lost) = (
        br#"{"predicateType":"a"}"#.to_vec(),
        br#"{"predicateType":"b"}"#.to_vec(),
    );
    let statement = |raw: &[u8]| {
        serde_json::json!({"mediaType": "application/vnd.in-toto+json", "size": raw.len(), "digest": digest(raw),
            "annotations": {"in-toto.io/predicate-type": "a"}})
    };
    let about = serde_json::json!({"schemaVersion": 2, "layers": [statement(&said), statement(&lost)],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest(b"{}")}})
    .to_string()
    .into_bytes();
    let host = Platform::host();
    let mut image = image(&host.architecture);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MANIFEST, "size": image.manifest.len(), "digest": digest(&image.manifest), "platform": host},
        {"mediaType": MANIFEST, "size": about.len(), "digest": digest(&about), "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": digest(&image.manifest)}}]})
    .to_string()
    .into_bytes();
    image.blobs.insert(digest(&said), said.clone());
    for document in [&about, &image.manifest] {
        image.blobs.insert(digest(document), document.clone());
    }
    let served = Arc::new(image);
    let server = Server::start(move |request| {
        if request.path.ends_with("/manifests/latest") {
            let kind = "application/vnd.oci.image.index.v1+json";
            return Answer::new(200, index.clone()).header("content-type", kind);
        }
        match request.path.split_once("/manifests/") {
            Some((_, digest)) => {
                Answer::new(200, served.blobs[digest].clone()).header("content-type", MANIFEST)
            }
            None => served.answer(request),
        }
    });
    let place = Place::new();
    let pulled = place.pull(&server.name("x")).await.unwrap();
    assert_eq!(pulled.documents.len(), 2);
    let kept: Vec<String> = pulled.attestations.iter().map(Digest::to_string).collect();
    assert_eq!(kept, [digest(&about), digest(&said)]);
    assert_eq!(place.store.blob(&pulled.attestations[1]).unwrap(), said);
    // What is here is not asked for again.
    let asked = server.count("GET", &format!("/v2/x/blobs/{}", digest(&said)));
    place.pull(&server.name("x")).await.unwrap();
    assert_eq!(
        server.count("GET", &format!("/v2/x/blobs/{}", digest(&said))),
        asked
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_pulls_one_fetches() {
    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    let server = Server::start(move |request| {
        std::thread::sleep(Duration::from_millis(50));
        served.answer(request)
    });
    let place = Place::new();
    let name = server.name("x");
    let (one, other) = tokio::join!(place.pull(&name), place.pull(&name));
    assert_whole(&place, &image, &one.unwrap());
    assert_whole(&place, &image, &other.unwrap());
    assert_eq!(
        server.count("GET", &format!("/v2/x/blobs/{}", image.layers[0])),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_resumed() {
    for ranges in [true, false] {
        let image = Arc::new(image("amd64"));
        let (served, cuts) = (Arc::clone(&image), AtomicUsize::new(0));
        let server = Server::start(move |request| {
            let mut answer = served.answer(request);
            if served.is_first_layer(request) {
                if !ranges {
                    answer = Answer::new(200, served.blobs[&served.layers[0]].clone());
                }
                let cut = cuts.fetch_add(1, Ordering::Relaxed);
                answer.cut = (cut < 2).then_some(100_000 * (cut + 1));
            }
            answer
        });
        let place = Place::new();
        let pulled = place.pull(&server.name("x")).await.unwrap();
        assert_whole(&place, &image, &pulled);
        let log = server.log.lock().unwrap();
        let asked: Vec<_> = log
            .iter()
            .filter(|request| image.is_first_layer(request))
            .map(Request::first)
            .collect();
        let second = if ranges { 300_000 } else { 200_000 };
        assert_eq!(asked, [None, Some(100_000), Some(second)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_given_up_goes_on_where_it_was() {
    let image = Arc::new(image("amd64"));
    let (served, stalls) = (Arc::clone(&image), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let mut answer = served.answer(request);
        if served.is_first_layer(request) && stalls.fetch_add(1, Ordering::Relaxed) == 0 {
            answer.stall = Some(300_000);
        }
        answer
    });
    let place = Place::new();
    let reference = Reference::parse(&server.name("x:latest")).unwrap();
    let (client, options, anonymous) = (client(), PullOptions::default(), Credentials::default());
    let have = Mutex::new(0);
    let arrived = |event| {
        if let PullEvent::Downloading(_, bytes, total) = event
            && total > 100_000
        {
            *have.lock().unwrap() = bytes;
        }
    };
    {
        let pull = client.pull(&place.store, &reference, &options, &anonymous, arrived);
        tokio::pin!(pull);
        while *have.lock().unwrap() < 300_000 || place.partial() < 300_000 {
            tokio::select! {
                result = &mut pull => panic!("it ended: {result:?}"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
    }
    // The thread that unpacked sees the end of the future and leaves the partial file to others.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(place.partial(), 300_000);
    // What another process would do at its start.
    let store = Store::open(place.directory.path()).unwrap();
    store.sweep_temporary().unwrap();
    assert_eq!(store.sweep_partial(false).unwrap(), 0);
    let pulled = place.pull(&server.name("x")).await.unwrap();
    assert_whole(&place, &image, &pulled);
    let log = server.log.lock().unwrap();
    let last = log.iter().rfind(|request| image.is_first_layer(request)).unwrap();
    assert_eq!(last.first(), Some(300_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_beginnings_are_fetched_again() {
    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    let server = Server::start(move |request| served.answer(request));
    let place = Place::new();
    let partial = place.directory.path().join("partial");
    std::fs::create_dir(&partial).unwrap();
    let name = image.layers[0].replace(':', "-");
    std::fs::write(partial.join(name), vec![b'x'; 300_000]).unwrap();
    let pulled = place.pull(&server.name("x")).await.unwrap();
    assert_whole(&place, &image, &pulled);
}

/// What a registry says instead of the first layer.
async fn lie(answer: impl Fn(&Image, &Request) -> Answer + Send + Sync + 'static) -> vessel_image::Error {
    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    let server = Server::start(move |request| match served.is_first_layer(request) {
        true => answer(&served, request),
        false => served.answer(request),
    });
    let place = Place::new();
    let error = place.pull(&server.name("x")).await.unwrap_err();
    place.assert_nothing_left();
    let again = place.pull(&server.name("x")).await.unwrap_err();
    assert_eq!(again.kind(), error.kind());
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_leave_nothing() {
    let flipped = lie(|image, _| {
        let mut blob = image.blobs[&image.layers[0]].clone();
        let middle = blob.len() / 2;
        blob[middle] ^= 1;
        Answer::new(200, blob)
    });
    let error = flipped.await;
    assert!(
        matches!(error.kind(), ErrorKind::Digest | ErrorKind::Invalid),
        "{error}"
    );
    let other = lie(|_, _| {
        // A valid layer, but another one, of the same size it cannot be.
        Answer::new(200, tar("other", 10))
    });
    assert_eq!(other.await.kind(), ErrorKind::Digest);
    let endless = lie(|_, _| Answer {
        status: 200,
        endless: true,
        ..Answer::default()
    });
    let error = endless.await;
    assert!(
        matches!(error.kind(), ErrorKind::Digest | ErrorKind::Invalid),
        "{error}"
    );
    let padded = lie(|image, _| {
        let mut blob = image.blobs[&image.layers[0]].clone();
        blob.push(0);
        Answer::new(200, blob)
    });
    assert_eq!(padded.await.kind(), ErrorKind::Digest);
    let missing = lie(|_, _| Answer::new(404, "")).await;
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let wrong_part = lie(|image, request| {
        let blob = &image.blobs[&image.layers[0]];
        match request.first() {
            None => Answer {
                cut: Some(100_000),
                ..Answer::new(200, blob.clone())
            },
            Some(first) => Answer::part(blob, first + 1),
        }
    });
    assert_eq!(wrong_part.await.kind(), ErrorKind::Digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn overload_is_waited_for() {
    let image = Arc::new(image("amd64"));
    let (served, refusals) = (Arc::clone(&image), AtomicUsize::new(0));
    let server = Server::start(move |request| {
        let refused = request.path.contains("/blobs/") && refusals.fetch_add(1, Ordering::Relaxed) < 3;
        match refused {
            true => Answer::new(
                if refusals.load(Ordering::Relaxed) == 1 {
                    429
                } else {
                    503
                },
                "",
            )
            .header("retry-after", "1"),
            false => served.answer(request),
        }
    });
    let place = Place::new();
    let start = std::time::Instant::now();
    let pulled = place.pull(&server.name("x")).await.unwrap();
    assert!(start.elapsed() > Duration::from_secs(1));
    assert_whole(&place, &image, &pulled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_keeps_failing_is_an_error_in_time() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        _ => Answer::new(500, ""),
    });
    let place = Place::new();
    let error = place.pull(&server.name("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(server.count("GET", "/v2/x/manifests/"), 4);
    place.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_do_not_follow_redirects() {
    let image = Arc::new(image("amd64"));
    let elsewhere = {
        let served = Arc::clone(&image);
        Server::start(move |request| served.answer(request))
    };
    let storage = elsewhere.address;
    let realm: Arc<Mutex<String>> = Arc::default();
    let (served, named) = (Arc::clone(&image), Arc::clone(&realm));
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            let ours = request.header("authorization") == Some("Basic bWU6c2VjcmV0");
            return match ours {
                true => Answer::new(200, r#"{"token":"the-token","expires_in":300}"#),
                false => Answer::new(401, ""),
            };
        }
        if request.header("authorization") != Some("Bearer the-token") {
            let challenge = format!(
                "Bearer realm=\"{}\",service=\"test\",scope=\"repository:x:pull\"",
                named.lock().unwrap()
            );
            return Answer::new(401, "{}").header("www-authenticate", challenge);
        }
        if request.path.contains("/blobs/") {
            let digest = request.path.rsplit('/').next().unwrap();
            return Answer::new(307, "").header("location", format!("http://{storage}/v2/x/blobs/{digest}"));
        }
        served.answer(request)
    });
    *realm.lock().unwrap() = format!("http://{}/token", server.address);
    let place = Place::new();
    let credentials = Credentials::password("me", "secret");
    let pulled = place.pull_as(&server.name("x"), &credentials).await.unwrap();
    assert_whole(&place, &image, &pulled);
    {
        let log = elsewhere.log.lock().unwrap();
        assert!(
            log.len() >= 3
                && log
                    .iter()
                    .all(|request| request.header("authorization").is_none())
        );
    }
    // One token for everything.
    assert_eq!(server.count("GET", "/token"), 1);
    let query = server
        .log
        .lock()
        .unwrap()
        .iter()
        .find(|request| request.path.starts_with("/token"))
        .unwrap()
        .path
        .clone();
    assert!(
        query.contains("service=test") && query.contains("scope=repository%3Ax%3Apull"),
        "{query}"
    );
    let refused = place
        .pull_as(&server.name("y"), &Credentials::password("me", "wrong"))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized);
    assert!(!refused.to_string().contains("wrong"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        path => Answer::new(302, "").header("location", path),
    });
    let error = Place::new().pull(&server.name("x")).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        _ => Answer::new(302, "").header("location", "file:///etc/passwd"),
    });
    assert!(Place::new().pull(&server.name("x")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_bounded() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        path if path.contains("/manifests/large") => Answer::new(200, vec![b' '; 5 << 20]),
        _ => Answer {
            status: 200,
            endless: true,
            ..Answer::default()
        },
    });
    for name in ["x:large", "x:endless"] {
        let error = Place::new().pull(&server.name(name)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_image_is_said_to_be_none() {
    let empty = Digest::sha256(b"{}");
    let artifact = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "artifactType":"application/spdx+json","layers":[],
        "config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{empty}","size":2}}}}"#
    );
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        path if path.ends_with("old") => Answer::new(200, r#"{"schemaVersion":1,"fsLayers":[]}"#),
        _ => Answer::new(200, artifact.clone()),
    });
    let error = Place::new().pull(&server.name("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("application/spdx+json"), "{error}");
    let error = Place::new().pull(&server.name("x:old")).await.unwrap_err();
    assert!(error.to_string().contains("schema 1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_platform_is_chosen_and_the_list_kept() {
    let images = [image("amd64"), image("arm64")];
    let entries: Vec<serde_json::Value> = images
        .iter()
        .zip(["amd64", "arm64"])
        .map(|(image, architecture)| {
            serde_json::json!({"mediaType": MANIFEST, "size": image.manifest.len(),
                "digest": Digest::sha256(&image.manifest), "platform": {"os": "linux", "architecture": architecture}})
        })
        .collect();
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries})
        .to_string()
        .into_bytes();
    let (served, top) = (Arc::new(images), index.clone());
    let shared = Arc::clone(&served);
    let server = Server::start(move |request| {
        if request.path.contains("/manifests/") {
            let digest = request.path.rsplit('/').next().unwrap();
            let one = shared
                .iter()
                .find(|image| Digest::sha256(&image.manifest).to_string() == digest);
            return Answer::new(
                200,
                one.map_or_else(|| top.clone(), |image| image.manifest.clone()),
            );
        }
        let known = shared.iter().find(|image| {
            image
                .blobs
                .keys()
                .any(|digest| request.path.ends_with(digest.as_str()))
        });
        known.unwrap_or(&shared[0]).answer(request)
    });
    let place = Place::new();
    let reference = Reference::parse(&server.name("x:1")).unwrap();
    let options = PullOptions {
        platform: Some(Platform::parse("linux/arm64/v8").unwrap()),
        ..PullOptions::default()
    };
    let pulled = client()
        .pull(
            &place.store,
            &reference,
            &options,
            &Credentials::default(),
            |_| {},
        )
        .await
        .unwrap();
    assert_eq!(pulled.id, served[1].id);
    assert_eq!(pulled.digest, Digest::sha256(&index));
    assert_eq!(pulled.documents.len(), 2);
    assert_eq!(place.store.blob(&pulled.digest).unwrap(), index);
    let options = PullOptions {
        platform: Some(Platform::parse("linux/s390x").unwrap()),
        ..PullOptions::default()
    };
    let error = client()
        .pull(
            &place.store,
            &reference,
            &options,
            &Credentials::default(),
            |_| {},
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_sends_what_is_not_there_and_nothing_twice() {
    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    let source = Server::start(move |request| served.answer(request));
    let place = Place::new();
    let pulled = place.pull(&source.name("x")).await.unwrap();
    // Uploads by location, then blobs by digest.
    let blobs: Arc<Mutex<HashMap<String, Vec<u8>>>> = Arc::default();
    let (kept, fails) = (Arc::clone(&blobs), AtomicUsize::new(0));
    let target = Server::start(move |request| {
        let mut kept = kept.lock().unwrap();
        let path = request.path.clone();
        match (request.method.as_str(), path.split_once("?digest=")) {
            ("GET", _) => Answer::new(200, "{}"),
            ("HEAD", _) => match kept.get(path.rsplit('/').next().unwrap()) {
                Some(blob) => Answer::new(200, blob.clone()),
                None => Answer::new(404, ""),
            },
            ("POST", _) => Answer::new(202, "").header("location", format!("/upload/{}", kept.len())),
            // The first one is lost, as by a server that restarts.
            ("PATCH", _) if fails.fetch_add(1, Ordering::Relaxed) == 0 => Answer::new(502, ""),
            ("PATCH", _) => {
                let location = format!("/upload/x{}", kept.len());
                kept.insert(location.clone(), request.body.clone());
                Answer::new(202, "").header("location", location)
            }
            ("PUT", Some((location, digest))) => {
                let digest = digest.replace("%3A", ":");
                let body = match request.body.is_empty() {
                    true => kept.remove(location).unwrap_or_default(),
                    false => request.body.clone(),
                };
                if Digest::sha256(&body).to_string() != digest {
                    return Answer::new(400, "");
                }
                kept.insert(digest, body);
                Answer::new(201, "")
            }
            ("PUT", None) => {
                kept.insert("manifest".to_owned(), request.body.clone());
                Answer::new(201, "")
            }
            _ => Answer::new(405, ""),
        }
    });
    let push = |known: Vec<Vec<KnownBlob>>| {
        let image = PushImage {
            raw_config: pulled.raw_config.clone(),
            manifest: None,
            known,
            style: PushStyle::default(),
        };
        let reference = Reference::parse(&target.name("y:1")).unwrap();
        let store = place.store.clone();
        async move {
            client()
                .push(&store, &image, &reference, &Credentials::default(), |_| {})
                .await
        }
    };
    let pushed = push(vec![Vec::new(), Vec::new()]).await.unwrap();
    assert_eq!(blobs.lock().unwrap()["manifest"], pushed.manifest);
    for (blob, layer) in pushed.blobs.iter().zip(&pulled.layers) {
        let bytes = blobs.lock().unwrap()[&blob.digest.to_string()].clone();
        let mut tar = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut tar).unwrap();
        assert_eq!(DiffId(Digest::sha256(&tar)), layer.diff_id);
    }
    let sent = target.count("PATCH", "");
    assert_eq!(sent, 3);
    let known = pushed
        .blobs
        .iter()
        .map(|blob| {
            vec![KnownBlob {
                repository: target.name("y"),
                descriptor: blob.clone(),
            }]
        })
        .collect();
    let again = push(known).await.unwrap();
    assert_eq!(again.digest, pushed.digest);
    assert_eq!(target.count("PATCH", ""), sent);
}
