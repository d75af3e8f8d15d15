//! Certificates from files, read again when they change: renewal needs no restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Code, Error, Result};

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(2);

/// Where certificate chain and key are (PEM).
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the server's own first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// Authorities: clients must have a certificate of one of them.
    pub clients: Option<PathBuf>,
}

/// The current configuration.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: Arc<ServerConfig>,
    changed: [Option<SystemTime>; 3],
    looked: Instant,
}

impl Tls {
    /// Reads the files.
    pub fn open(files: TlsFiles) -> Result<Self> {
        let state = State {
            changed: files.changed(),
            config: files.read()?,
            looked: Instant::now(),
        };
        Ok(Self {
            files,
            state: Mutex::new(state),
        })
    }

    /// What new connections use.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK {
            state.looked = Instant::now();
            let changed = self.files.changed();
            if changed != state.changed {
                match self.files.read() {
                    Ok(config) => {
                        tracing::info!(certificate = %self.files.certificate.display(), "the certificate was renewed");
                        state.config = config;
                        state.changed = changed;
                    }
                    // One of the files may be written a moment later than the other.
                    Err(error) => {
                        tracing::warn!(%error, "the certificate changed and cannot be used; the old one stays")
                    }
                }
            }
        }
        Arc::clone(&state.config)
    }
}

impl TlsFiles {
    fn changed(&self) -> [Option<SystemTime>; 3] {
        let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        [
            changed(&self.certificate),
            changed(&self.key),
            self.clients.as_deref().and_then(changed),
        ]
    }

    fn read(&self) -> Result<Arc<ServerConfig>> {
        let wrong = |path: &Path, why: String| {
            Error::new(
                Code::Unknown,
                format!("{} cannot be used for TLS: {why}", path.display()),
            )
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect)
            .map_err(|e| wrong(&self.certificate, e.to_string()))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|e| wrong(&self.key, e.to_string()))?;
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(&self.certificate, e.to_string()))?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let authorities =
                    CertificateDer::pem_file_iter(path).map_err(|e| wrong(path, e.to_string()))?;
                for authority in authorities {
                    let authority = authority.map_err(|e| wrong(path, e.to_string()))?;
                    roots.add(authority).map_err(|e| wrong(path, e.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|e| wrong(path, e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|e| wrong(&self.certificate, e.to_string()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
