//! The images of an engine, out of its store.

#![allow(clippy::print_stderr, reason = "a test that is skipped says why")]

mod common;

use std::sync::Arc;

use common::{header, start_with};
use reqwest::{Method, StatusCode};
use vessel_image::{DiffId, Digest, Limits, Store};
use vessel_registry::{LocalImage, LocalOptions, Repository};

/// An archive with one file.
fn archive(content: &[u8]) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..4].copy_from_slice(b"file");
    block[100..107].copy_from_slice(b"0000644");
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = block.to_vec();
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_put_together_and_nothing_can_be_changed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: layers are unpacked as root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut lease = store.lease();
    let content: Vec<u8> = (0..700_000u32).map(|n| (n ^ n >> 8) as u8).collect();
    let layer = archive(&content);
    let digest = Digest::sha256(&layer);
    let limits = Limits::default();
    store
        .put_layer(&layer[..], None, &DiffId(digest.clone()), &limits, &mut lease)
        .unwrap();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let id = store.put_blob(config.as_bytes(), &mut lease).unwrap();
    let image = LocalImage {
        repository: Repository::parse("lib/app").unwrap(),
        tag: "v1".into(),
        id: id.clone(),
    };
    let registry = start_with(|config| {
        config.local = Some(LocalOptions {
            store: directory.path().to_owned(),
            images: Arc::new(move || Ok(vec![image.clone()])),
        });
    })
    .await;
    assert_eq!(
        registry.get("/v2/_catalog").await.text().await.unwrap(),
        r#"{"repositories":["lib/app"]}"#
    );
    assert_eq!(
        registry.get("/v2/lib/app/tags/list").await.text().await.unwrap(),
        r#"{"name":"lib/app","tags":["v1"]}"#
    );
    let manifest = registry.get("/v2/lib/app/manifests/v1").await;
    let by_digest = format!(
        "/v2/lib/app/manifests/{}",
        header(&manifest, "docker-content-digest")
    );
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.bytes().await.unwrap()).unwrap();
    assert_eq!(manifest["config"]["digest"], id.to_string());
    assert_eq!(manifest["layers"][0]["digest"], digest.to_string());
    assert_eq!(manifest["layers"][0]["size"], layer.len());
    assert_eq!(registry.get(&by_digest).await.status(), StatusCode::OK);
    assert_eq!(
        registry
            .get(&format!("/v2/lib/app/blobs/{id}"))
            .await
            .text()
            .await
            .unwrap(),
        config
    );
    let path = format!("/v2/lib/app/blobs/{digest}");
    assert!(registry.get(&path).await.bytes().await.unwrap() == layer);
    let part = registry
        .request(Method::GET, &path)
        .header("range", "bytes=300000-300999")
        .send()
        .await
        .unwrap();
    assert_eq!(part.bytes().await.unwrap(), layer[300_000..301_000]);
    let response = registry
        .request(Method::POST, "/v2/lib/app/blobs/uploads/")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(
        registry.get(&format!("/v2/other/blobs/{digest}")).await.status(),
        StatusCode::NOT_FOUND
    );

    // A layer that is not what it was: the answer breaks off instead of being wrong.
    let chain = vessel_image::ChainId::base(&DiffId(digest.clone()));
    std::fs::write(store.layer_path(&chain).join("file"), vec![b'x'; content.len()]).unwrap();
    assert!(registry.get(&path).await.bytes().await.is_err());
}
