//! A registry that is the cache of another.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{OCI_MANIFEST, Registry, header, start, start_with};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vessel_image::Digest;
use vessel_registry::{AuthOptions, ProxyOptions, UpstreamOptions};

async fn cache_of(url: String, credentials: Option<(String, String)>, ttl: Duration) -> Registry {
    start_with(|config| {
        config.proxy = Some(ProxyOptions {
            upstream: UpstreamOptions {
                url,
                credentials,
                ca: None,
                http_proxy: None,
            },
            ttl,
        });
    })
    .await
}

async fn metric(registry: &Registry, name: &str) -> u64 {
    let text = registry.get("/metrics").await.text().await.unwrap();
    text.lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

const BLOBS_SERVED: &str = "vessel_registry_requests_total{kind=\"blob\",status=\"2xx\"}";

#[tokio::test(flavor = "multi_thread")]
async fn fetched_once_and_served_from_then_on() {
    let mut upstream = start().await;
    let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n ^ n >> 9) as u8).collect();
    let (manifest, layer) = upstream.push_image("lib/app", "v1", &bytes).await;
    let cache = cache_of(upstream.url(""), None, Duration::from_secs(3600)).await;
    let path = format!("/v2/lib/app/blobs/{layer}");
    let before = metric(&upstream, BLOBS_SERVED).await;
    let all = futures_util::future::join_all(
        (0..8).map(|_| async { cache.get(&path).await.bytes().await.unwrap() }),
    )
    .await;
    assert!(all.iter().all(|got| *got == bytes));
    assert_eq!(
        metric(&upstream, BLOBS_SERVED).await - before,
        2,
        "eight clients, one question for its size and one fetch"
    );
    let response = cache.get("/v2/lib/app/manifests/v1").await;
    assert_eq!(header(&response, "docker-content-digest"), manifest.to_string());
    assert_eq!(
        cache.get("/v2/lib/app/tags/list").await.text().await.unwrap(),
        r#"{"name":"lib/app","tags":["v1"]}"#
    );
    let response = cache
        .request(Method::GET, &path)
        .header("range", "bytes=7-9")
        .send()
        .await
        .unwrap();
    assert_eq!(response.bytes().await.unwrap(), bytes[7..10]);
    assert_eq!(
        cache.get("/v2/lib/app/manifests/none").await.status(),
        StatusCode::NOT_FOUND
    );
    let put = cache.put_manifest("lib/app", "v2", OCI_MANIFEST, "{}").await;
    assert_eq!(put.status(), StatusCode::METHOD_NOT_ALLOWED);
    // All of it is here, whatever becomes of the other.
    upstream.stop().await;
    assert!(cache.get(&path).await.bytes().await.unwrap() == bytes);
    assert_eq!(
        cache.get("/v2/lib/app/manifests/v1").await.status(),
        StatusCode::OK
    );
    assert_eq!(
        cache.get("/v2/lib/app/manifests/v9").await.status(),
        StatusCode::BAD_GATEWAY
    );
    assert!(
        cache
            .get("/v2/lib/app/tags/list")
            .await
            .text()
            .await
            .unwrap()
            .contains("v1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_move_and_old_ones_are_better_than_none() {
    let mut upstream = start().await;
    let (first, _) = upstream.push_image("a", "t", b"one").await;
    let cache = cache_of(upstream.url(""), None, Duration::from_millis(1)).await;
    let digest = async || header(&cache.get("/v2/a/manifests/t").await, "docker-content-digest").to_owned();
    assert_eq!(digest().await, first.to_string());
    let (second, _) = upstream.push_image("a", "t", b"two").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(digest().await, second.to_string());
    upstream.stop().await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(digest().await, second.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_used_by_token_and_by_password() {
    let directory = tempfile::tempdir().unwrap();
    let htpasswd = directory.path().join("htpasswd");
    std::fs::write(
        &htpasswd,
        format!("ann:{}\n", vessel_registry::hash_password("secret").unwrap()),
    )
    .unwrap();
    for basic in [false, true] {
        let upstream = start_with(|config| {
            config.auth = AuthOptions {
                htpasswd: Some(htpasswd.clone()),
                basic,
                ..AuthOptions::default()
            };
        })
        .await;
        let url = format!("/v2/a/blobs/uploads/?digest={}", Digest::sha256(b"x"));
        let pushed = upstream
            .request(Method::POST, &url)
            .basic_auth("ann", Some("secret"))
            .body("x")
            .send()
            .await
            .unwrap();
        assert_eq!(pushed.status(), StatusCode::CREATED);
        let path = format!("/v2/a/blobs/{}", Digest::sha256(b"x"));
        let good = cache_of(
            upstream.url(""),
            Some(("ann".into(), "secret".into())),
            Duration::ZERO,
        )
        .await;
        assert_eq!(good.get(&path).await.text().await.unwrap(), "x");
        let none = cache_of(upstream.url(""), None, Duration::ZERO).await;
        assert_eq!(
            none.get(&path).await.status(),
            StatusCode::NOT_FOUND,
            "private there, unknown here"
        );
    }
}

/// A server that answers every request with these bytes and closes.
async fn liar(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 8192];
            let n = stream.read(&mut request).await.unwrap();
            let answer = answer(&String::from_utf8_lossy(&request[..n]));
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    format!("http://{address}")
}

fn http(status: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let mut answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{more}\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_not_stored() {
    let digest = Digest::sha256(b"the truth");
    for (what, answer) in [
        (
            "other bytes",
            http("200 OK", "content-length: 9\r\n", b"the lie!!"),
        ),
        ("too few", http("200 OK", "content-length: 9\r\n", b"the")),
        ("without length", http("200 OK", "", b"something")),
        (
            "an error",
            http("500 Internal Server Error", "content-length: 0\r\n", b""),
        ),
        (
            "a manifest that is none",
            http("200 OK", "content-length: 2\r\n", b"{}"),
        ),
    ] {
        let url = liar(move |_| answer.clone()).await;
        let cache = cache_of(url, None, Duration::ZERO).await;
        let path = format!("/v2/a/blobs/{digest}");
        if let Ok(response) = cache.request(Method::GET, &path).send().await {
            let ok = response.status() == StatusCode::OK;
            assert!(
                !ok || response.bytes().await.is_err(),
                "{what}: the whole answer arrived"
            );
        }
        let manifest = cache.get(&format!("/v2/a/manifests/{digest}")).await;
        assert!(!manifest.status().is_success(), "{what}");
        for _ in 0..50 {
            if !cache.root.join("uploads/a").exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(
            !cache.root.join("uploads/a").exists(),
            "{what}: an upload was left"
        );
        let stored = format!("repositories/a/blobs/{digest}");
        assert!(!cache.root.join(stored).exists(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_do_not_go_to_unsafe_realms_of_safe_registries() {
    // The upstream is plain here, so a realm may be, too; but one that is no URL of HTTP is refused.
    let url = liar(|_| {
        http(
            "401 Unauthorized",
            "www-authenticate: Bearer realm=\"file:///etc/passwd\"\r\ncontent-length: 0\r\n",
            b"",
        )
    })
    .await;
    let cache = cache_of(url, Some(("ann".into(), "secret".into())), Duration::ZERO).await;
    let response = cache.get("/v2/a/manifests/t").await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_do_not_follow_redirects() {
    let digest = Digest::sha256(b"the blob");
    for challenge in ["Basic realm=\"x\"".to_owned(), String::new()] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&seen);
        let elsewhere = liar(move |request| {
            heard.lock().unwrap().push(request.to_lowercase());
            http("200 OK", "content-length: 8\r\n", b"the blob")
        })
        .await;
        // Another origin by its port, and by its name.
        let elsewhere = elsewhere.replace("127.0.0.1", "localhost");
        let token = liar(
            |request| match request.to_lowercase().contains("authorization: basic") {
                true => http("200 OK", "content-length: 18\r\n", b"{\"token\":\"secret\"}"),
                false => http("401 Unauthorized", "content-length: 0\r\n", b""),
            },
        )
        .await;
        let challenge = match challenge.is_empty() {
            true => format!("Bearer realm=\"{token}/token\",service=\"x\""),
            false => challenge,
        };
        let upstream = liar(move |request| {
            if !request.to_lowercase().contains("authorization: ") {
                let more = format!("www-authenticate: {challenge}\r\ncontent-length: 0\r\n");
                return http("401 Unauthorized", &more, b"");
            }
            let more = format!("location: {elsewhere}/blob\r\ncontent-length: 0\r\n");
            http("307 Temporary Redirect", &more, b"")
        })
        .await;
        let cache = cache_of(upstream, Some(("ann".into(), "secret".into())), Duration::ZERO).await;
        let got = cache.get(&format!("/v2/a/blobs/{digest}")).await;
        assert_eq!(got.status(), StatusCode::OK);
        assert_eq!(got.text().await.unwrap(), "the blob");
        let seen = seen.lock().unwrap();
        assert!(seen.len() >= 2, "size and content");
        assert!(
            seen.iter()
                .all(|request| !request.contains("authorization") && !request.contains("secret"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_resumed() {
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n >> 3) as u8).collect();
    let digest = Digest::sha256(&bytes);
    let content = bytes.clone();
    let url = liar(move |request| {
        let total = content.len();
        let first = request
            .to_lowercase()
            .split_once("range: bytes=")
            .map(|(_, rest)| {
                rest.split('-')
                    .next()
                    .and_then(|n| n.parse::<usize>().ok())
                    .unwrap()
            });
        match (request.starts_with("HEAD"), first) {
            (true, _) => http("200 OK", &format!("content-length: {total}\r\n"), b""),
            // It breaks off in the middle.
            (false, None) => http(
                "200 OK",
                &format!("content-length: {total}\r\n"),
                &content[..total / 2],
            ),
            (false, Some(first)) => {
                let more = format!(
                    "content-length: {}\r\ncontent-range: bytes {first}-{}/{total}\r\n",
                    total - first,
                    total - 1
                );
                http("206 Partial Content", &more, &content[first..])
            }
        }
    })
    .await;
    let cache = cache_of(url, None, Duration::ZERO).await;
    let got = cache
        .get(&format!("/v2/a/blobs/{digest}"))
        .await
        .bytes()
        .await
        .unwrap();
    assert!(got == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_fails_is_left_alone_for_a_while() {
    let raw = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let url = liar(move |request| {
        // What it is, and the thing itself; then it has had enough.
        if count.fetch_add(1, Ordering::Relaxed) >= 2 {
            return http("500 Internal Server Error", "content-length: 0\r\n", b"");
        }
        let more = format!(
            "content-type: application/vnd.oci.image.index.v1+json\r\ncontent-length: {}\r\ndocker-content-digest: {}\r\n",
            raw.len(),
            Digest::sha256(raw.as_bytes())
        );
        let body = if request.starts_with("HEAD") { "" } else { raw };
        http("200 OK", &more, body.as_bytes())
    })
    .await;
    let cache = cache_of(url, None, Duration::ZERO).await;
    let get = async || {
        let response = cache.get("/v2/a/manifests/t").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.text().await.unwrap(), raw);
    };
    get().await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    get().await;
    let before = asked.load(Ordering::Relaxed);
    assert!(before > 2, "a tag is believed for no time");
    futures_util::future::join_all((0..8).map(|_| get())).await;
    assert_eq!(asked.load(Ordering::Relaxed), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_do_not_answer_head() {
    let raw = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let digest = Digest::sha256(b"the blob");
    for (head, ranges) in [
        ("403 Forbidden", true),
        ("405 Method Not Allowed", false),
        ("501 Not Implemented", true),
        ("404 Not Found", true),
        // Without a length.
        ("200 OK", true),
    ] {
        let url = liar(move |request| {
            let request = request.to_lowercase();
            if request.starts_with("head") {
                return http(head, "", b"");
            }
            if request.contains("/manifests/") {
                let more = format!(
                    "content-type: application/vnd.oci.image.index.v1+json\r\ncontent-length: {}\r\n",
                    raw.len()
                );
                return http("200 OK", &more, raw.as_bytes());
            }
            match ranges && request.contains("range: bytes=0-0") {
                true => http(
                    "206 Partial Content",
                    "content-length: 1\r\ncontent-range: bytes 0-0/8\r\n",
                    b"t",
                ),
                false => http("200 OK", "content-length: 8\r\n", b"the blob"),
            }
        })
        .await;
        let cache = cache_of(url, None, Duration::ZERO).await;
        let path = format!("/v2/a/blobs/{digest}");
        assert_eq!(header(&cache.head(&path).await, "content-length"), "8", "{head}");
        let got = cache.get(&path).await;
        assert_eq!(got.status(), StatusCode::OK, "{head}");
        assert_eq!(got.text().await.unwrap(), "the blob", "{head}");
        let manifest = cache.get("/v2/a/manifests/t").await;
        assert_eq!(manifest.status(), StatusCode::OK, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_the_other_registry_in_pages() {
    let upstream = start().await;
    for tag in ["a", "b", "c"] {
        upstream.push_image("lib/app", tag, b"layer").await;
    }
    let cache = cache_of(upstream.url(""), None, Duration::ZERO).await;
    let mut path = "/v2/lib/app/tags/list?n=2".to_owned();
    let mut pages = Vec::new();
    loop {
        let response = cache.get(&path).await;
        let link = response
            .headers()
            .get("link")
            .map(|link| link.to_str().unwrap().to_owned());
        pages.push(response.text().await.unwrap());
        let Some(link) = link else { break };
        path = link.split(['<', '>']).nth(1).unwrap().to_owned();
    }
    assert_eq!(
        pages,
        [
            r#"{"name":"lib/app","tags":["a","b"]}"#,
            r#"{"name":"lib/app","tags":["c"]}"#
        ]
    );
    assert_eq!(
        cache.get("/v2/lib/app/tags/list?n=x").await.status(),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        cache.get("/v2/none/tags/list").await.status(),
        StatusCode::NOT_FOUND
    );
    let subject = Digest::sha256(b"x");
    let referrers = cache.get(&format!("/v2/lib/app/referrers/{subject}")).await;
    assert!(referrers.text().await.unwrap().contains(r#""manifests":[]"#));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_is_passed_on() {
    let upstream = start().await;
    let bytes = vec![7; 200_000];
    let digest = upstream.push_blob("a", &bytes).await;
    let url = upstream.url("");
    let cache = start_with(|config| {
        config.storage.quotas = vec![vessel_registry::Quota {
            prefix: String::new(),
            limit: 1000,
        }];
        config.proxy = Some(ProxyOptions {
            upstream: UpstreamOptions {
                url,
                credentials: None,
                ca: None,
                http_proxy: None,
            },
            ttl: Duration::ZERO,
        });
    })
    .await;
    for _ in 0..2 {
        let got = cache
            .get(&format!("/v2/a/blobs/{digest}"))
            .await
            .bytes()
            .await
            .unwrap();
        assert!(got == bytes);
    }
    assert!(metric(&cache, "vessel_registry_disk_bytes").await < 1000);
}
