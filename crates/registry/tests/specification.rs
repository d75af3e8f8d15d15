//! What the distribution specification says and its conformance suite does not look at, and bounds.

mod common;

use common::{OCI_INDEX, OCI_MANIFEST, code, header, image, start, start_with};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vessel_image::Digest;

#[tokio::test(flavor = "multi_thread")]
async fn large_blobs_come_back_whole_and_in_parts() {
    let registry = start().await;
    // Larger than a window of what is sent at once, and no multiple of anything.
    let bytes: Vec<u8> = (0..9_000_001u32).map(|n| (n ^ n >> 7) as u8).collect();
    let digest = registry.push_blob("a/b", &bytes).await;
    let path = format!("/v2/a/b/blobs/{digest}");
    let response = registry.get(&path).await;
    assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
    assert_eq!(
        header(&response, "docker-distribution-api-version"),
        "registry/2.0"
    );
    assert!(response.bytes().await.unwrap() == bytes);
    for (range, from, end) in [
        ("bytes=0-99", 0, 100),
        ("bytes=5000000-", 5_000_000, bytes.len()),
        ("bytes=4194303-4194304", 4_194_303, 4_194_305),
        ("bytes=-200000", bytes.len() - 200_000, bytes.len()),
        ("bytes=8999990-99999999", 8_999_990, bytes.len()),
    ] {
        let response = registry
            .request(Method::GET, &path)
            .header("range", range)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        let expected = format!("bytes {from}-{}/{}", end - 1, bytes.len());
        assert_eq!(header(&response, "content-range"), expected);
        assert!(response.bytes().await.unwrap() == bytes[from..end], "{range}");
    }
    let response = registry
        .request(Method::GET, &path)
        .header("range", "bytes=9000001-")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(header(&response, "content-range"), "bytes */9000001");
    let etag = format!("\"{digest}\"");
    let response = registry
        .request(Method::GET, &path)
        .header("if-none-match", etag)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
}

/// Several answers on one connection, files and documents in turn: nothing of one gets into another.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let registry = start().await;
    let one: Vec<u8> = vec![1; 300_000];
    let two: Vec<u8> = vec![2; 5_000_000];
    let (first, second) = (
        registry.push_blob("a", &one).await,
        registry.push_blob("a", &two).await,
    );
    let mut stream = TcpStream::connect(registry.address).await.unwrap();
    let request = |path: &str, close: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n{close}\r\n");
    let mut all = String::new();
    for digest in [&first, &second, &first] {
        all += &request(&format!("/v2/a/blobs/{digest}"), "");
        all += &request("/v2/", "");
    }
    all += &request("/v2/", "connection: close\r\n");
    stream.write_all(all.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let mut rest = answer.as_slice();
    for expected in [one.as_slice(), b"{}", &two, b"{}", &one, b"{}", b"{}"] {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(rest[..end].to_vec()).unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", expected.len())),
            "{head}"
        );
        assert!(rest[end..].starts_with(expected));
        rest = &rest[end + expected.len()..];
    }
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_in_order_status_and_cancel() {
    let registry = start().await;
    let location = registry.begin("a").await;
    let patch = |range: &'static str, body: &'static [u8]| {
        registry
            .request(Method::PATCH, &location)
            .header("content-range", range)
            .body(body)
            .send()
    };
    assert_eq!(patch("0-2", b"abc").await.unwrap().status(), StatusCode::ACCEPTED);
    let wrong = patch("2-3", b"xx").await.unwrap();
    assert_eq!(wrong.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(
        (header(&wrong, "range"), header(&wrong, "location")),
        ("0-2", location.as_str())
    );
    assert_eq!(
        patch("3-9", b"xx").await.unwrap().status(),
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        patch("x", b"xx").await.unwrap().status(),
        StatusCode::RANGE_NOT_SATISFIABLE
    );
    let status = registry.get(&location).await;
    assert_eq!(
        (status.status(), header(&status, "range")),
        (StatusCode::NO_CONTENT, "0-2")
    );
    // The closing request may have the last chunk, and another algorithm than the upload began with.
    let sha512 = {
        let mut hasher = vessel_image::Hasher::new(vessel_image::Algorithm::Sha512);
        hasher.update(b"abcd");
        hasher.finish()
    };
    let url = format!("{location}?digest={sha512}");
    let response = registry
        .request(Method::PUT, &url)
        .header("content-range", "3-3")
        .body("d")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(header(&response, "location"), format!("/v2/a/blobs/{sha512}"));
    assert_eq!(
        registry
            .get(&format!("/v2/a/blobs/{sha512}"))
            .await
            .text()
            .await
            .unwrap(),
        "abcd"
    );
    assert_eq!(registry.get(&location).await.status(), StatusCode::NOT_FOUND);

    let location = registry.begin("a").await;
    assert_eq!(registry.delete(&location).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(code(registry.get(&location).await).await, "BLOB_UPLOAD_UNKNOWN");
    // An upload belongs to its repository.
    let location = registry.begin("a").await.replace("/v2/a/", "/v2/b/");
    assert_eq!(registry.get(&location).await.status(), StatusCode::NOT_FOUND);

    let location = registry.begin("a").await;
    let url = format!("{location}?digest={}", Digest::sha256(b"something else"));
    let response = registry
        .request(Method::PUT, &url)
        .body("this")
        .send()
        .await
        .unwrap();
    assert_eq!(code(response).await, "DIGEST_INVALID");
    assert_eq!(
        std::fs::read_dir(registry.root.join("uploads")).unwrap().count(),
        1,
        "the one that was left open"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_go_on_after_a_restart() {
    let mut registry = start().await;
    let location = registry.begin("a/b").await;
    let response = registry
        .request(Method::PATCH, &location)
        .body("first ")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    registry.restart().await;
    assert_eq!(header(&registry.get(&location).await, "range"), "0-5");
    let digest = Digest::sha256(b"first second");
    let url = format!("{location}?digest={digest}");
    let response = registry
        .request(Method::PUT, &url)
        .body("second")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(
        registry
            .get(&format!("/v2/a/b/blobs/{digest}"))
            .await
            .text()
            .await
            .unwrap(),
        "first second"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_loses_only_what_did_not_arrive() {
    let registry = start().await;
    let location = registry.begin("a").await;
    {
        let mut stream = TcpStream::connect(registry.address).await.unwrap();
        let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"0123456789").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let mut stored = String::new();
    for _ in 0..50 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        stored = header(&registry.get(&location).await, "range").to_owned();
        if stored == "0-9" {
            break;
        }
    }
    assert_eq!(stored, "0-9");
    let url = format!("{location}?digest={}", Digest::sha256(b"0123456789end"));
    let response = registry
        .request(Method::PUT, &url)
        .body("end")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_need_what_they_refer_to() {
    let registry = start().await;
    let (config, layer) = (
        registry.push_blob("a", b"{}").await,
        registry.push_blob("b", b"layer").await,
    );
    let raw = image(&config, &layer, 5, "");
    let response = registry.put_manifest("a", "t", OCI_MANIFEST, &raw).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert_eq!(code(response).await, "MANIFEST_BLOB_UNKNOWN");
    let mount = format!("/v2/a/blobs/uploads/?mount={layer}&from=b");
    let response = registry.request(Method::POST, &mount).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED);
    let response = registry.put_manifest("a", "t", OCI_MANIFEST, &raw).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let digest = Digest::sha256(raw.as_bytes());
    let index = |digest: &Digest| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":1}}]}}"#
        )
    };
    let response = registry.put_manifest("b", "t", OCI_INDEX, &index(&digest)).await;
    assert_eq!(code(response).await, "MANIFEST_BLOB_UNKNOWN");
    let response = registry.put_manifest("a", "i", OCI_INDEX, &index(&digest)).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let response = registry
        .put_manifest("a", &layer.to_string(), OCI_MANIFEST, &raw)
        .await;
    assert_eq!(code(response).await, "DIGEST_INVALID");
    let response = registry.put_manifest("a", "t", OCI_INDEX, &raw).await;
    assert_eq!(code(response).await, "MANIFEST_INVALID");
    // Deleting a manifest takes its tags.
    assert_eq!(
        registry
            .delete(&format!("/v2/a/manifests/{digest}"))
            .await
            .status(),
        StatusCode::ACCEPTED
    );
    assert_eq!(
        registry.get("/v2/a/manifests/t").await.status(),
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        registry.get("/v2/a/tags/list").await.text().await.unwrap(),
        r#"{"name":"a","tags":["i"]}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let registry = start().await;
    let (manifest, _) = registry.push_image("r", "t0", b"x").await;
    let raw = registry.get("/v2/r/manifests/t0").await.text().await.unwrap();
    for n in 1..5 {
        registry
            .put_manifest("r", &format!("t{n}"), OCI_MANIFEST, &raw)
            .await;
    }
    registry.push_blob("a/z", b"x").await;
    registry.push_blob("a-z", b"x").await;
    let page = registry.get("/v2/r/tags/list?n=2").await;
    let link = header(&page, "link").to_owned();
    assert_eq!(link, "</v2/r/tags/list?n=2&last=t1>; rel=\"next\"");
    assert_eq!(page.text().await.unwrap(), r#"{"name":"r","tags":["t0","t1"]}"#);
    let page = registry.get("/v2/r/tags/list?n=9&last=t2").await;
    assert!(page.headers().get("link").is_none());
    assert_eq!(page.text().await.unwrap(), r#"{"name":"r","tags":["t3","t4"]}"#);
    assert_eq!(
        code(registry.get("/v2/r/tags/list?n=-1").await).await,
        "PAGINATION_NUMBER_INVALID"
    );
    let page = registry.get("/v2/_catalog?n=1").await;
    assert_eq!(header(&page, "link"), "</v2/_catalog?n=1&last=a-z>; rel=\"next\"");
    assert_eq!(
        registry.get("/v2/_catalog?last=a-z").await.text().await.unwrap(),
        r#"{"repositories":["a/z","r"]}"#
    );
    // As `docker search` asks for names.
    assert_eq!(
        registry.get("/v1/search?q=Z&n=1").await.text().await.unwrap(),
        concat!(
            r#"{"query":"Z","num_results":2,"num_pages":2,"page":1,"page_size":1,"results":"#,
            r#"[{"name":"a-z","description":"","star_count":0,"is_official":false,"is_automated":false}]}"#
        )
    );
    let second = registry.get("/v1/search?q=a%20z&n=1&page=2").await;
    assert!(
        second
            .text()
            .await
            .unwrap()
            .contains(r#""results":[{"name":"a/z","#)
    );
    // Referrers, of which the subject need not exist.
    let config = registry.push_blob("r", b"{}").await;
    let layer = registry.push_blob("r", b"x").await;
    for kind in ["a/a", "b/b"] {
        let more = format!(
            r#","artifactType":"{kind}","annotations":{{"k":"{kind}"}},"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{manifest}","size":1}}"#
        );
        let raw = image(&config, &layer, 1, &more);
        let response = registry
            .put_manifest(
                "r",
                &Digest::sha256(raw.as_bytes()).to_string(),
                OCI_MANIFEST,
                &raw,
            )
            .await;
        assert_eq!(header(&response, "oci-subject"), manifest.to_string());
    }
    let response = registry
        .get(&format!("/v2/r/referrers/{manifest}?artifactType=b/b"))
        .await;
    assert_eq!(header(&response, "oci-filters-applied"), "artifactType");
    let index: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["annotations"]["k"], "b/b");
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds() {
    let registry = start_with(|config| config.storage.max_uploads = 8).await;
    let large = "x".repeat((4 << 20) + 1);
    let response = registry.put_manifest("a", "t", OCI_MANIFEST, &large).await;
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    for path in [
        "/v2/A/tags/list",
        "/v2/a/blobs/sha256:x",
        "/v2/a/manifests/-",
        "/v2/a%2f..%2fb/tags/list",
    ] {
        assert_eq!(
            registry.get(path).await.status(),
            StatusCode::BAD_REQUEST,
            "{path}"
        );
    }
    registry.begin("a").await;
    let open = registry.begin("a").await;
    let third = registry
        .request(Method::POST, "/v2/a/blobs/uploads/")
        .send()
        .await
        .unwrap();
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    registry.delete(&open).await;
    registry.begin("a").await;
    let digest = format!("md5:{}", "a".repeat(32));
    let response = registry
        .request(Method::PUT, &format!("{open}?digest={digest}"))
        .send()
        .await
        .unwrap();
    assert_eq!(code(response).await, "DIGEST_INVALID");
    assert_eq!(
        registry
            .request(Method::POST, "/v2/")
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_are_kept_and_given_back() {
    let registry = start_with(|config| {
        config.storage.quotas = vec![
            vessel_registry::Quota {
                prefix: "team".into(),
                limit: 1000,
            },
            vessel_registry::Quota {
                prefix: String::new(),
                limit: 1500,
            },
        ];
    })
    .await;
    let post = |name: &str, bytes: Vec<u8>| {
        let url = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::sha256(&bytes));
        registry.request(Method::POST, &url).body(bytes).send()
    };
    let first = registry.push_blob("team/a", &[1; 900]).await;
    let denied = post("team/b", vec![2; 200]).await.unwrap();
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(code(denied).await, "DENIED");
    // The same bytes mounted cost no disk.
    let mount = format!("/v2/other/blobs/uploads/?mount={first}&from=team/a");
    let mounted = registry.request(Method::POST, &mount).send().await.unwrap();
    assert_eq!(mounted.status(), StatusCode::CREATED);
    assert_eq!(
        post("other", vec![3; 700]).await.unwrap().status(),
        StatusCode::FORBIDDEN
    );
    assert_eq!(
        post("other", vec![3; 500]).await.unwrap().status(),
        StatusCode::CREATED
    );
    assert_eq!(
        registry
            .delete(&format!("/v2/team/a/blobs/{first}"))
            .await
            .status(),
        StatusCode::ACCEPTED
    );
    assert_eq!(
        post("team/b", vec![2; 100]).await.unwrap().status(),
        StatusCode::CREATED
    );
    let metrics = registry.get("/metrics").await.text().await.unwrap();
    assert!(
        metrics.contains("vessel_registry_quota_used_bytes{prefix=\"team\"} 100"),
        "{metrics}"
    );
    assert!(metrics.contains("vessel_registry_disk_bytes 1500"), "{metrics}");
    assert_eq!(
        std::fs::read_dir(registry.root.join("uploads")).unwrap().count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_what_was_pushed_and_run_nothing() {
    let registry = start().await;
    let config = br#"{"os":"linux","architecture":"amd64","config":{"Cmd":["<script>alert(1)</script>"]},"history":[{"created_by":"RUN <b>"}]}"#;
    let (config, layer) = (
        registry.push_blob("a/b", config).await,
        registry.push_blob("a/b", b"x").await,
    );
    let raw = image(&config, &layer, 1, r#","annotations":{"<i>":"\"><img src=x>"}"#);
    registry.put_manifest("a/b", "v1", OCI_MANIFEST, &raw).await;
    let home = registry.get("/").await;
    let policy = header(&home, "content-security-policy");
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    assert!(home.text().await.unwrap().contains("<a href=\"/r/a/b\">"));
    let page = registry.get("/r/a/b").await.text().await.unwrap();
    assert!(
        page.contains(&format!("vessel pull {}/a/b:v1", registry.address)) && page.contains("linux/amd64")
    );
    let page = registry.get("/r/a/b/-/v1").await.text().await.unwrap();
    assert!(page.contains(&layer.to_string()) && page.contains("RUN &lt;b&gt;"));
    for tag in ["<script", "<b>", "<i>", "<img"] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert_eq!(registry.get("/r/none").await.status(), StatusCode::NOT_FOUND);
}
