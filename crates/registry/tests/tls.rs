//! Certificates of both sides, as our own client shows and reads them.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::start_with;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use reqwest::StatusCode;
use vessel_image::Reference;
use vessel_image::registry::{Credentials, RegistryClient, Settings};
use vessel_registry::{ProxyOptions, TlsFiles, UpstreamOptions};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate and its key, written to two files.
fn issue(authority: &Authority, usage: ExtendedKeyUsagePurpose, certificate: &Path, key: &Path) {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    let pair = KeyPair::generate().unwrap();
    fs::write(key, pair.serialize_pem()).unwrap();
    fs::write(certificate, params.signed_by(&pair, authority).unwrap().pem()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_both_sides_and_their_renewal() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (ours, theirs) = (authority(), authority());
    issue(
        &ours,
        ExtendedKeyUsagePurpose::ServerAuth,
        &path("chain.pem"),
        &path("key.pem"),
    );
    fs::write(path("clients.pem"), theirs.pem()).unwrap();
    let registry = start_with(|config| {
        config.tls = Some(TlsFiles {
            certificate: path("chain.pem"),
            key: path("key.pem"),
            clients: Some(path("clients.pem")),
        });
    })
    .await;
    let host = registry.address.to_string();
    let own = path("certs.d").join(&host);
    fs::create_dir_all(&own).unwrap();
    let client = RegistryClient::new(Settings {
        certificates: vec![path("certs.d")],
        retries: 0,
        ..Settings::default()
    })
    .unwrap();
    let reference = Reference::parse(&format!("{host}/a:1")).unwrap();
    // A connection that was made is not made again: a new client is, like a new daemon.
    let ask = async |client: &RegistryClient| {
        let repository = client
            .repository(&reference, &Credentials::default())
            .await
            .unwrap();
        repository.manifest("1").await.unwrap_err().to_string()
    };
    let error = ask(&client).await;
    assert!(
        error.contains("UnknownIssuer") && error.contains("ca.crt"),
        "{error}"
    );
    fs::write(own.join("ca.crt"), ours.pem()).unwrap();
    let error = ask(&client).await;
    assert!(error.contains("client.cert"), "{error}");
    // One of an authority that the registry does not know.
    let client_usage = || ExtendedKeyUsagePurpose::ClientAuth;
    issue(
        &ours,
        client_usage(),
        &own.join("client.cert"),
        &own.join("client.key"),
    );
    let error = ask(&client).await;
    assert!(error.contains("client.cert"), "{error}");
    issue(
        &theirs,
        client_usage(),
        &own.join("client.cert"),
        &own.join("client.key"),
    );
    let error = ask(&client).await;
    assert!(error.contains("manifest unknown"), "{error}");
    // The registry's certificate is renewed, by another authority even.
    let next = authority();
    issue(
        &next,
        ExtendedKeyUsagePurpose::ServerAuth,
        &path("chain.pem"),
        &path("key.pem"),
    );
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let fresh = RegistryClient::new(client.settings().clone()).unwrap();
    let error = ask(&fresh).await;
    assert!(error.contains("invalid peer certificate"), "{error}");
    fs::write(own.join("ca.crt"), next.pem()).unwrap();
    let error = ask(&fresh).await;
    assert!(error.contains("manifest unknown"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_believes_the_authority_it_was_given_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (ours, theirs) = (authority(), authority());
    let usage = ExtendedKeyUsagePurpose::ServerAuth;
    issue(&ours, usage, &path("chain.pem"), &path("key.pem"));
    let registry = start_with(|config| {
        config.tls = Some(TlsFiles {
            certificate: path("chain.pem"),
            key: path("key.pem"),
            clients: None,
        });
    })
    .await;
    let url = format!("https://{}", registry.address);
    for (authority, status) in [(&ours, StatusCode::NOT_FOUND), (&theirs, StatusCode::BAD_GATEWAY)] {
        let cache = start_with(|config| {
            config.proxy = Some(ProxyOptions {
                upstream: UpstreamOptions {
                    url: url.clone(),
                    credentials: None,
                    ca: Some(authority.pem().into_bytes()),
                    http_proxy: None,
                },
                ttl: Duration::ZERO,
            });
        })
        .await;
        assert_eq!(cache.get("/v2/a/manifests/t").await.status(), status);
    }
}
