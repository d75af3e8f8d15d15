//! TLS of TCP listeners: certificate, key and, with `--tlsverify`, the authority that clients' certificates are of.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::Error;

/// Where certificate chain and key are (PEM).
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, the server's own first.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
    /// Authorities: clients must have a certificate of one of them. Without them anybody who reaches the port gets in.
    pub clients: Option<PathBuf>,
}

/// Reads the files.
pub fn configuration(files: &TlsFiles) -> Result<Arc<ServerConfig>, Error> {
    let wrong = |path: &Path, why: String| {
        Error::Config(format!(
            "{} cannot be used for TLS: {why}; it has to be a file in PEM format",
            path.display()
        ))
    };
    let certificates = |path: &Path| {
        let list: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        match list {
            Ok(list) if list.is_empty() => Err(wrong(path, "there is no certificate in it".into())),
            Ok(list) => Ok(list),
            Err(error) => Err(wrong(path, error.to_string())),
        }
    };
    let chain = certificates(&files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, error.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&files.certificate, error.to_string()))?;
    let builder = match &files.clients {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots
                    .add(authority)
                    .map_err(|error| wrong(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| wrong(path, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&files.key, error.to_string()))?;
    // Attach and exec leave HTTP/1.1; HTTP/2 has no way to.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
