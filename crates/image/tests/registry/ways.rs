//! The ways to a registry: proxies, mirrors, identity tokens.

use std::sync::{Arc, Mutex};

use vessel_image::registry::{Credentials, PullOptions, RegistryClient, Settings};
use vessel_image::{ErrorKind, Reference};

use super::server::{Answer, Server};
use super::{Image, Place, assert_whole, image};

fn client(change: impl FnOnce(&mut Settings)) -> RegistryClient {
    let mut settings = Settings {
        retries: 0,
        certificates: Vec::new(),
        ..Settings::default()
    };
    change(&mut settings);
    RegistryClient::new(settings).unwrap()
}

async fn pull(
    client: &RegistryClient,
    place: &Place,
    name: &str,
    credentials: &Credentials,
) -> vessel_image::Result<vessel_image::registry::PulledImage> {
    let reference = Reference::parse(name).unwrap();
    client
        .pull(
            &place.store,
            &reference,
            &PullOptions::default(),
            credentials,
            |_| {},
        )
        .await
}

fn serve(image: &Arc<Image>) -> Server {
    let served = Arc::clone(image);
    Server::start(move |request| match request.method.as_str() {
        // A proxy that lets nothing through TLS.
        "CONNECT" => Answer::new(403, ""),
        _ => served.answer(request),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_and_what_is_reached_without() {
    let image = Arc::new(image("amd64"));
    let proxy = serve(&image);
    let address = format!("http://me:pass@{}", proxy.address);
    let through = |no_proxy: Option<&str>| {
        client(|settings| {
            settings.http_proxy = Some(address.clone());
            settings.https_proxy = Some(address.clone());
            settings.no_proxy = no_proxy.map(str::to_owned);
            settings.insecure = vec!["registry.invalid".into()];
        })
    };
    let place = Place::new();
    let none = Credentials::default();
    let name = "registry.invalid/x:1";
    let pulled = pull(&through(None), &place, name, &none).await.unwrap();
    assert_whole(&place, &image, &pulled);
    {
        let log = proxy.log.lock().unwrap();
        // TLS was tried first.
        assert_eq!(
            (log[0].method.as_str(), log[0].path.as_str()),
            ("CONNECT", "registry.invalid:443")
        );
        let asked: Vec<_> = log.iter().filter(|request| request.method == "GET").collect();
        assert!(asked.len() >= 4);
        for request in asked {
            assert!(
                request.path.starts_with("http://registry.invalid/v2/x/"),
                "{}",
                request.path
            );
            assert_eq!(request.header("proxy-authorization"), Some("Basic bWU6cGFzcw=="));
        }
    }
    let before = proxy.log.lock().unwrap().len();
    let error = pull(&through(Some("other.example,.invalid")), &place, name, &none)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!error.to_string().contains("pass"), "{error}");
    // Loopback is never reached through one.
    let near = serve(&image);
    let place = Place::new();
    pull(&through(None), &place, &near.name("x:1"), &none)
        .await
        .unwrap();
    assert_eq!(proxy.log.lock().unwrap().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_come_first_and_get_no_credentials() {
    let image = Arc::new(image("amd64"));
    let without = Server::start(|_| Answer::new(404, "{}"));
    let (with, late) = (serve(&image), serve(&image));
    let dead = "http://127.0.0.1:1";
    let client = client(|settings| {
        let urls = [&without, &with, &late].map(|server| format!("http://{}", server.address));
        settings.mirrors = std::iter::once(dead.to_owned()).chain(urls).collect();
    });
    let place = Place::new();
    let credentials = Credentials::password("me", "secret");
    let pulled = pull(&client, &place, "x:1", &credentials).await.unwrap();
    assert_whole(&place, &image, &pulled);
    assert_eq!(without.count("GET", "/v2/library/x/manifests/1"), 1);
    assert_eq!(with.count("GET", "/v2/library/x/manifests/1"), 1);
    assert_eq!(late.count("GET", ""), 0);
    for server in [&without, &with] {
        let log = server.log.lock().unwrap();
        assert!(
            log.iter()
                .all(|request| request.header("authorization").is_none())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_tokens_stand_for_the_password() {
    let image = Arc::new(image("amd64"));
    let (served, realm) = (Arc::clone(&image), Arc::new(Mutex::new(String::new())));
    let named = Arc::clone(&realm);
    let server = Server::start(move |request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let basic = request.header("authorization") == Some("Basic bWU6c2VjcmV0");
        match (request.method.as_str(), request.path.split('?').next().unwrap()) {
            ("GET", "/token") if basic && request.path.contains("offline_token=true") => {
                Answer::new(200, r#"{"token":"t","refresh_token":"for-later"}"#)
            }
            ("GET", "/token") if basic => Answer::new(200, r#"{"token":"t"}"#),
            ("POST", "/token") if body.contains("refresh_token=for-later") => {
                Answer::new(200, r#"{"access_token":"t","expires_in":300}"#)
            }
            (_, "/token") => Answer::new(401, "{}"),
            _ if request.header("authorization") == Some("Bearer t") => served.answer(request),
            _ => {
                let challenge = format!("Bearer realm=\"{}\",service=\"test\"", named.lock().unwrap());
                Answer::new(401, "{}").header("www-authenticate", challenge)
            }
        }
    });
    *realm.lock().unwrap() = format!("http://{}/token", server.address);
    let client = client(|_| {});
    let host = server.address.to_string();
    let identity = client
        .login(&host, &Credentials::password("me", "secret"))
        .await
        .unwrap();
    assert_eq!(identity.as_deref(), Some("for-later"));
    server.log.lock().unwrap().clear();
    let credentials = Credentials {
        identitytoken: "for-later".into(),
        ..Credentials::default()
    };
    let place = Place::new();
    let pulled = pull(&client, &place, &server.name("x:1"), &credentials)
        .await
        .unwrap();
    assert_whole(&place, &image, &pulled);
    let log = server.log.lock().unwrap();
    let asked: Vec<_> = log
        .iter()
        .filter(|request| request.path.starts_with("/token"))
        .collect();
    assert_eq!(asked.len(), 1, "one token for everything");
    let form = String::from_utf8_lossy(&asked[0].body);
    assert!(
        form.contains("grant_type=refresh_token") && form.contains("scope=repository%3Ax%3Apull"),
        "{form}"
    );
    assert!(asked[0].header("authorization").is_none());
}

/// Nobody waits for a registry that was never there. One that answered a moment ago comes back.
#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_way_nothing_is_tried_again() {
    let patient = || {
        client(|settings| {
            settings.retries = 8;
            settings.insecure = vec!["127.0.0.1".into()];
        })
    };
    let (place, none) = (Place::new(), Credentials::default());
    // Bound, and nobody listens.
    use rustix::net::{AddressFamily, SocketType, bind, getsockname, socket};
    let silent = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    let any: std::net::SocketAddrV4 = "127.0.0.1:0".parse().unwrap();
    bind(&silent, &any).unwrap();
    let port = std::net::SocketAddrV4::try_from(getsockname(&silent).unwrap())
        .unwrap()
        .port();
    let begun = std::time::Instant::now();
    let error = pull(&patient(), &place, &format!("127.0.0.1:{port}/x:1"), &none)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        begun.elapsed() < std::time::Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    drop(silent);

    let image = Arc::new(image("amd64"));
    let served = Arc::clone(&image);
    // No connection is left for the second pull.
    let server = Server::start(move |request| served.answer(request).header("connection", "close"));
    let (address, patient) = (server.address, patient());
    let name = format!("{address}/x:1");
    pull(&patient, &place, &name, &none).await.unwrap();
    drop(server);
    let again = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        Server::start_at(address, move |request| image.answer(request))
    });
    pull(&patient, &place, &name, &none).await.unwrap();
    assert!(again.await.unwrap().count("GET", "/v2/x/manifests/") > 0);
}
