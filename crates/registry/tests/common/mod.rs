//! A registry in this process, on a port and in a directory of its own.

#![allow(dead_code, reason = "each test file needs a part of it")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vessel_image::Digest;
use vessel_registry::{AuthOptions, Config, Server, Settings, StorageOptions};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry that ends with the test.
pub struct Registry {
    pub address: SocketAddr,
    pub client: Client,
    pub root: PathBuf,
    config: Config,
    end: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<()>>,
    _directory: Option<tempfile::TempDir>,
}

pub fn client() -> Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30))
        .build()
        .unwrap()
}

pub async fn start() -> Registry {
    start_with(|_| {}).await
}

pub async fn start_with(change: impl FnOnce(&mut Config)) -> Registry {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        metrics_listen: None,
        root: directory.path().join("root"),
        storage: StorageOptions::default(),
        tls: None,
        auth: AuthOptions::default(),
        proxy: None,
        local: None,
        settings: Settings::default(),
        collect: None,
        max_connections: 256,
        silence: Duration::from_secs(60),
    };
    change(&mut config);
    let mut registry = Registry {
        address: config.listen[0],
        client: client(),
        root: config.root.clone(),
        config,
        end: None,
        task: None,
        _directory: Some(directory),
    };
    registry.run().await;
    registry
}

impl Registry {
    async fn run(&mut self) {
        let server = Server::open(self.config.clone()).await.unwrap();
        self.address = server.addresses()[0];
        let (end, ended) = oneshot::channel::<()>();
        self.end = Some(end);
        self.task = Some(tokio::spawn(server.run(async {
            let _ = ended.await;
        })));
    }

    /// Ends it in an orderly way and starts it again on the same directory.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.run().await;
    }

    pub async fn stop(&mut self) {
        self.client = client();
        drop(self.end.take());
        if let Some(task) = self.task.take() {
            task.await.unwrap();
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.url(path))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn head(&self, path: &str) -> Response {
        self.request(Method::HEAD, path).send().await.unwrap()
    }

    pub async fn delete(&self, path: &str) -> Response {
        self.request(Method::DELETE, path).send().await.unwrap()
    }

    /// Pushes a blob in one request.
    pub async fn push_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        let response = self
            .request(
                Method::POST,
                &format!("/v2/{name}/blobs/uploads/?digest={digest}"),
            )
            .body(bytes.to_vec())
            .send()
            .await
            .unwrap();
        assert_eq!(
            response.status(),
            StatusCode::CREATED,
            "{:?}",
            response.text().await
        );
        digest
    }

    pub async fn put_manifest(&self, name: &str, reference: &str, media_type: &str, raw: &str) -> Response {
        self.request(Method::PUT, &format!("/v2/{name}/manifests/{reference}"))
            .header("content-type", media_type)
            .body(raw.to_owned())
            .send()
            .await
            .unwrap()
    }

    /// Pushes an image of one layer.
    pub async fn push_image(&self, name: &str, tag: &str, layer: &[u8]) -> (Digest, Digest) {
        let layer_digest = self.push_blob(name, layer).await;
        let config = self
            .push_blob(name, b"{\"os\":\"linux\",\"architecture\":\"amd64\"}")
            .await;
        let raw = image(&config, &layer_digest, layer.len(), "");
        let response = self.put_manifest(name, tag, OCI_MANIFEST, &raw).await;
        assert_eq!(
            response.status(),
            StatusCode::CREATED,
            "{:?}",
            response.text().await
        );
        (Digest::sha256(raw.as_bytes()), layer_digest)
    }

    /// Begins an upload; where it is.
    pub async fn begin(&self, name: &str) -> String {
        let response = self
            .request(Method::POST, &format!("/v2/{name}/blobs/uploads/"))
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        header(&response, "location").to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

pub fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .headers()
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {response:?}"))
        .to_str()
        .unwrap()
}

/// The manifest of an image.
pub fn image(config: &Digest, layer: &Digest, size: usize, more: &str) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":37}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer}","size":{size}}}]{more}}}"#
    )
}

/// The code in an errors document.
pub async fn code(response: Response) -> String {
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}
