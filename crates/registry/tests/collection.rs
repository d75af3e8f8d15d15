//! Garbage collection, also while pushes go on.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{OCI_MANIFEST, image, start};
use reqwest::{Method, StatusCode};
use vessel_image::Digest;
use vessel_registry::{CollectOptions, Collected, Storage, StorageOptions, collect_running};

fn options(untagged: bool) -> CollectOptions {
    CollectOptions {
        grace: Duration::ZERO,
        untagged,
        dry_run: false,
    }
}

async fn collect(registry: &common::Registry, options: CollectOptions) -> Collected {
    let root = registry.root.clone();
    tokio::task::spawn_blocking(move || collect_running(&root, &options).unwrap().unwrap())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_needs_goes_and_all_else_stays() {
    let registry = start().await;
    let (kept, layer) = registry.push_image("a", "t", b"kept").await;
    let (gone, gone_layer) = registry.push_image("a", "old", b"gone").await;
    registry.push_blob("a", b"loose").await;
    registry.push_blob("empty", b"loose").await;
    // What says something about a manifest that is kept is kept, though it has no tag.
    let config = registry.push_blob("a", b"{}").await;
    let more = format!(r#","subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{kept}","size":1}}"#);
    let raw = image(&config, &layer, 4, &more);
    let signature = Digest::sha256(raw.as_bytes());
    registry
        .put_manifest("a", &signature.to_string(), OCI_MANIFEST, &raw)
        .await;
    registry.delete("/v2/a/manifests/old").await;

    let young = CollectOptions {
        grace: Duration::from_secs(3600),
        ..options(true)
    };
    assert_eq!(collect(&registry, young).await, Collected::default());
    let dry = CollectOptions {
        dry_run: true,
        ..options(false)
    };
    assert_eq!(collect(&registry, dry).await.blobs, 2);
    let first = collect(&registry, options(false)).await;
    assert_eq!(
        (first.manifests, first.blobs, first.contents, first.bytes),
        (0, 2, 1, 5)
    );
    assert_eq!(
        registry.get(&format!("/v2/a/manifests/{gone}")).await.status(),
        StatusCode::OK
    );
    let second = collect(&registry, options(true)).await;
    assert_eq!((second.manifests, second.blobs, second.contents), (1, 1, 2));
    assert_eq!(
        registry.get(&format!("/v2/a/blobs/{gone_layer}")).await.status(),
        StatusCode::NOT_FOUND
    );
    for path in [
        format!("manifests/{signature}"),
        "manifests/t".into(),
        format!("blobs/{layer}"),
    ] {
        assert_eq!(
            registry.get(&format!("/v2/a/{path}")).await.status(),
            StatusCode::OK,
            "{path}"
        );
    }
    assert_eq!(
        registry.get("/v2/_catalog").await.text().await.unwrap(),
        r#"{"repositories":["a"]}"#
    );
    assert_eq!(collect(&registry, options(true)).await, Collected::default());
}

/// Who pushes or mounts what is there already is about to refer to it, like who sends it for the first time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_or_mounted_again_is_young_again() {
    let registry = start().await;
    let mut digests = Vec::new();
    for content in ["sent", "mounted", "left"] {
        digests.push(registry.push_blob("a", content.as_bytes()).await);
    }
    registry.push_image("b", "t", b"mounted").await;
    let raw = {
        let config = registry.push_blob("a", b"{}").await;
        image(&config, &config, 2, "")
    };
    let manifest = Digest::sha256(raw.as_bytes()).to_string();
    let put = registry.put_manifest("a", &manifest, OCI_MANIFEST, &raw).await;
    assert_eq!(put.status(), StatusCode::CREATED);
    // Times on disk are compared by the second.
    tokio::time::sleep(Duration::from_millis(3200)).await;
    registry.push_blob("a", b"sent").await;
    let mount = format!("/v2/a/blobs/uploads/?mount={}&from=b", digests[1]);
    let mounted = registry.request(Method::POST, &mount).send().await.unwrap();
    assert_eq!(mounted.status(), StatusCode::CREATED);
    registry.put_manifest("a", &manifest, OCI_MANIFEST, &raw).await;
    let grace = CollectOptions {
        grace: Duration::from_secs(3),
        ..options(true)
    };
    let collected = collect(&registry, grace).await;
    assert_eq!((collected.manifests, collected.blobs), (0, 1));
    for (digest, status) in digests
        .iter()
        .zip([StatusCode::OK, StatusCode::OK, StatusCode::NOT_FOUND])
    {
        assert_eq!(
            registry.get(&format!("/v2/a/blobs/{digest}")).await.status(),
            status
        );
    }
}

/// Nothing is known of what a damaged manifest needs; other repositories are no part of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_repository_with_an_unreadable_index_is_left_alone() {
    let registry = start().await;
    for (name, loose) in [("damaged", &b"one"[..]), ("sound", b"two")] {
        let (child, _) = registry.push_image(name, "child", name.as_bytes()).await;
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{child}","size":1}}]}}"#,
            common::OCI_INDEX
        );
        let put = registry
            .put_manifest(name, "list", common::OCI_INDEX, &index)
            .await;
        assert_eq!(put.status(), StatusCode::CREATED);
        registry.delete(&format!("/v2/{name}/manifests/child")).await;
        registry.push_blob(name, loose).await;
        if name == "damaged" {
            let link = registry.root.join(format!(
                "repositories/{name}/manifests/{}",
                Digest::sha256(index.as_bytes())
            ));
            std::fs::write(link, "{\"schemaVersion\":2,\"manifests\":[{\"dig").unwrap();
        }
    }
    for untagged in [true, false] {
        let collected = collect(&registry, options(untagged)).await;
        assert_eq!(collected.skipped, 1, "untagged: {untagged}");
    }
    let has = |name: &str, content: &[u8]| {
        registry
            .root
            .join(format!("repositories/{name}/blobs/{}", Digest::sha256(content)))
            .exists()
    };
    assert!(has("damaged", b"one") && has("damaged", b"damaged"));
    assert!(!has("sound", b"two") && has("sound", b"sound"));
}

/// Pushes and collections without any grace at the same time: a push may fail and be told so, but what was
/// acknowledged is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn collecting_while_pushing_loses_nothing_acknowledged() {
    let registry = Arc::new(start().await);
    let done = Arc::new(AtomicBool::new(false));
    let collector = {
        let (registry, done) = (Arc::clone(&registry), Arc::clone(&done));
        tokio::spawn(async move {
            let mut runs = 0;
            while !done.load(Ordering::Relaxed) {
                collect(&registry, options(true)).await;
                runs += 1;
            }
            runs
        })
    };
    let mut pushers = Vec::new();
    for pusher in 0..4u8 {
        let registry = Arc::clone(&registry);
        pushers.push(tokio::spawn(async move {
            let name = format!("r{}", pusher % 2);
            let mut acknowledged = Vec::new();
            for n in 0..60u8 {
                // Few layers, so that pushers use and lose each other's.
                let layer = vec![n % 5; 100];
                let layer = registry.push_blob(&name, &layer).await;
                let config = registry
                    .push_blob(&name, format!("{{\"n\":\"{pusher} {n}\"}}").as_bytes())
                    .await;
                let raw = image(&config, &layer, 100, "");
                let tag = format!("p{pusher}-{n}");
                let response = registry.put_manifest(&name, &tag, OCI_MANIFEST, &raw).await;
                match response.status() {
                    StatusCode::CREATED => acknowledged.push((name.clone(), tag, config, layer)),
                    status => assert_eq!(status, StatusCode::BAD_REQUEST),
                }
            }
            acknowledged
        }));
    }
    let mut acknowledged = Vec::new();
    for pusher in pushers {
        acknowledged.extend(pusher.await.unwrap());
    }
    done.store(true, Ordering::Relaxed);
    assert!(collector.await.unwrap() > 1);
    collect(&registry, options(true)).await;
    assert!(
        acknowledged.len() > 20,
        "{} pushes of 240 went through",
        acknowledged.len()
    );
    for (name, tag, config, layer) in acknowledged {
        for path in [
            format!("manifests/{tag}"),
            format!("blobs/{config}"),
            format!("blobs/{layer}"),
        ] {
            let status = registry
                .request(Method::GET, &format!("/v2/{name}/{path}"))
                .send()
                .await
                .unwrap()
                .status();
            assert_eq!(status, StatusCode::OK, "{name} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_waits_for_the_collection_that_found_it_down() {
    let mut registry = start().await;
    registry.push_image("a", "t", b"kept").await;
    registry.stop().await;
    // As the command has it while no registry serves; what answered the last requests lets go of it in its own time.
    let begun = std::time::Instant::now();
    let collecting = loop {
        match Storage::open(&registry.root, StorageOptions::default()) {
            Ok(storage) => break storage,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let end = Duration::from_millis(500);
    let begun = std::time::Instant::now();
    let ended = tokio::spawn(async move {
        tokio::time::sleep(end).await;
        drop(collecting);
    });
    registry.restart().await;
    assert!(begun.elapsed() >= end / 2, "two have one directory");
    ended.await.unwrap();
    assert_eq!(registry.get("/v2/a/manifests/t").await.status(), StatusCode::OK);
}
