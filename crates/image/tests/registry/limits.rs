//! What a registry can make the client wait for, read, or ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vessel_image::registry::{Credentials, PullOptions, PushImage, RegistryClient, Settings};
use vessel_image::{ErrorKind, Reference};

use super::server::{Answer, Pace, Server};
use super::{Image, MANIFEST, Place, image, image_of};

fn client(change: impl FnOnce(&mut Settings)) -> RegistryClient {
    let mut settings = Settings {
        retries: 0,
        certificates: Vec::new(),
        ..Settings::default()
    };
    change(&mut settings);
    RegistryClient::new(settings).unwrap()
}

/// A server that takes uploads at some pace and works on what it got for so long, and a push of a layer of 12 MB to it.
async fn push_to(pace: Pace, silence: Duration, work: Duration) -> (vessel_image::Result<()>, Server) {
    let image = Arc::new(image_of("amd64", 12 << 20));
    let served = Arc::clone(&image);
    let source = Server::start(move |request| served.answer(request));
    let place = Place::new();
    let pulled = place.pull(&source.name("x")).await.unwrap();
    let target = Server::with_pace(pace, move |request| match request.method.as_str() {
        "GET" => Answer::new(200, "{}"),
        "HEAD" => Answer::new(404, ""),
        "POST" | "PATCH" => Answer::new(202, "").header("location", "/upload"),
        _ => {
            std::thread::sleep(work);
            Answer::new(201, "")
        }
    });
    let image = PushImage {
        raw_config: pulled.raw_config.clone(),
        manifest: None,
        known: Vec::new(),
        style: Default::default(),
    };
    let client = client(|settings| settings.read_timeout = silence);
    let reference = Reference::parse(&target.name("y:1")).unwrap();
    let pushed = client
        .push(&place.store, &image, &reference, &Credentials::default(), |_| {})
        .await;
    (pushed.map(drop), target)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_as_long_as_it_gets_on() {
    let silence = Duration::from_millis(700);
    let begun = Instant::now();
    let (pushed, _target) = push_to(Pace::Slow(Duration::from_millis(25)), silence, Duration::ZERO).await;
    pushed.unwrap();
    assert!(begun.elapsed() > silence * 2, "it was no slow upload");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_nobody_takes_is_given_up() {
    let begun = Instant::now();
    let (pushed, _target) = push_to(Pace::Deaf(100 << 10), Duration::from_millis(500), Duration::ZERO).await;
    let error = pushed.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("does not answer in time"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_may_work_on_what_it_got() {
    let silence = Duration::from_millis(300);
    let (pushed, target) = push_to(Pace::Fast, silence, silence * 4).await;
    pushed.unwrap();
    let log = target.log.lock().unwrap();
    let ends = log
        .iter()
        .filter(|request| request.method == "PUT" && request.body.is_empty());
    let mut ends: Vec<&str> = ends.map(|request| request.path.as_str()).collect();
    let all = ends.len();
    ends.sort_unstable();
    ends.dedup();
    assert!(all > 0 && ends.len() == all, "each layer's end is said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_bounded_by_their_bytes() {
    let pages = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pages);
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        _ => {
            let next = count.fetch_add(1, Ordering::Relaxed);
            let page = format!("{{\"tags\":[\"t{next}\"]{}}}", " ".repeat(4 << 20));
            Answer::new(200, page).header("link", format!("</v2/x/tags/list?last={next}>; rel=\"next\""))
        }
    });
    let reference = Reference::parse(&server.name("x")).unwrap();
    let client = client(|_| {});
    let repository = client
        .repository(&reference, &Credentials::default())
        .await
        .unwrap();
    let error = repository.tags().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(pages.load(Ordering::Relaxed) < 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tag_is_not_listed() {
    let server = Server::start(|request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        _ => Answer::new(200, "{\"tags\":[\"a\",\"\\u001b[2J\",\"../b\",\"\",\"c\"]}"),
    });
    let reference = Reference::parse(&server.name("x")).unwrap();
    let client = client(|_| {});
    let repository = client
        .repository(&reference, &Credentials::default())
        .await
        .unwrap();
    assert_eq!(repository.tags().await.unwrap(), ["a", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_token_that_is_not_to_be_had_waits_once() {
    let token = Server::start(|_| {
        std::thread::sleep(Duration::from_millis(700));
        Answer::new(500, "")
    });
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"x\"", token.address);
    let server = Server::start(move |request| match request.path.as_str() {
        "/v2/" => Answer::new(200, "{}"),
        _ => Answer::new(401, "").header("www-authenticate", realm.clone()),
    });
    let reference = Reference::parse(&server.name("x")).unwrap();
    let client = client(|_| {});
    let repository = client
        .repository(&reference, &Credentials::default())
        .await
        .unwrap();
    let all = (0..10).map(|_| repository.manifest("1"));
    for failed in futures_util::future::join_all(all).await {
        let error = failed.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("cannot get a token"), "{error}");
    }
    assert_eq!(token.count("GET", "/token"), 1);
    // Who comes later asks again.
    assert!(repository.manifest("1").await.is_err());
    assert_eq!(token.count("GET", "/token"), 2);
}

/// The same image, whose first layer is to be had elsewhere.
fn foreign(image: &Image, url: &str) -> Vec<u8> {
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    let layer = &mut manifest["layers"][0];
    layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    layer["urls"] = serde_json::json!([url]);
    manifest.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_come_from_public_places_or_named_ones() {
    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    let owner = Server::start(move |request| match request.path.as_str() {
        "/moved" => Answer::new(200, served.blobs[&served.layers[0]].clone()),
        path => Answer::new(302, "").header("location", path.replace("layer", "moved")),
    });
    for (host, allowed) in [
        ("127.0.0.1", false),
        ("localhost", false),
        ("[::ffff:7f00:1]", false),
        ("127.0.0.1", true),
    ] {
        let url = format!("http://{host}:{}/layer", owner.address.port());
        let (served, manifest) = (Arc::clone(&image), foreign(&image, &url));
        let server = Server::start(move |request| {
            if request.path.contains("/manifests/") {
                return Answer::new(200, manifest.clone()).header("content-type", MANIFEST);
            }
            // A registry does not have what is not its own.
            match served.is_first_layer(request) {
                true => Answer::new(404, ""),
                false => served.answer(request),
            }
        });
        let place = Place::new();
        let client = client(|settings| {
            settings.insecure = if allowed {
                vec!["127.0.0.1".into()]
            } else {
                Vec::new()
            };
        });
        let reference = Reference::parse(&server.name("x:1")).unwrap();
        let before = owner.count("GET", "");
        let options = PullOptions::default();
        let pulled = client
            .pull(
                &place.store,
                &reference,
                &options,
                &Credentials::default(),
                |_| {},
            )
            .await;
        if allowed {
            assert_eq!(pulled.unwrap().id, image.id);
            assert_eq!(owner.count("GET", "") - before, 2);
        } else {
            let error = pulled.unwrap_err();
            assert!(error.to_string().contains("no public address"), "{host}: {error}");
            assert_eq!(owner.count("GET", ""), before, "{host} was asked");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_layers_cannot_be_redirected_inside() {
    // The registry itself may be asked, wherever it is; where it leads may not.
    let image = Arc::new(image("amd64"));
    let inside = Server::start(|_| Answer::new(200, "secret"));
    let target = format!("http://{}/metadata", inside.address);
    let own: Arc<std::sync::OnceLock<Vec<u8>>> = Arc::default();
    let (served, manifest) = (Arc::clone(&image), Arc::clone(&own));
    let server = Server::start(move |request| {
        if request.path.contains("/manifests/") {
            return Answer::new(200, manifest.get().unwrap().clone()).header("content-type", MANIFEST);
        }
        match request.path.as_str() {
            "/layer" => Answer::new(302, "").header("location", target.clone()),
            _ if served.is_first_layer(request) => Answer::new(404, ""),
            _ => served.answer(request),
        }
    });
    own.set(foreign(&image, &format!("http://{}/layer", server.address)))
        .unwrap();
    let place = Place::new();
    let reference = Reference::parse(&server.name("x:1")).unwrap();
    let pulled = client(|_| {})
        .pull(
            &place.store,
            &reference,
            &PullOptions::default(),
            &Credentials::default(),
            |_| {},
        )
        .await;
    assert!(pulled.is_err());
    assert_eq!(server.count("GET", "/layer"), 1);
    assert_eq!(inside.count("GET", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_count_at_once() {
    let directory = tempfile::tempdir().unwrap();
    // Where nobody listens.
    let host = "127.0.0.1:1";
    let own = directory.path().join(host);
    std::fs::create_dir(&own).unwrap();
    let client = client(|settings| settings.certificates = vec![directory.path().to_owned()]);
    let reference = Reference::parse(&format!("{host}/x:1")).unwrap();
    let ask = async || {
        let repository = client
            .repository(&reference, &Credentials::default())
            .await
            .unwrap();
        repository.manifest("1").await.unwrap_err().to_string()
    };
    assert!(ask().await.contains("cannot be reached"));
    std::fs::write(own.join("ca.crt"), "nonsense").unwrap();
    let error = ask().await;
    assert!(error.contains("ca.crt cannot be used for TLS"), "{error}");
    std::fs::remove_file(own.join("ca.crt")).unwrap();
    assert!(ask().await.contains("cannot be reached"));
}
