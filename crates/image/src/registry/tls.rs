//! TLS: the system's authorities, those of `certs.d`, client certificates.
//!
//! `DIRECTORY/HOST[:PORT]/` as Docker has it: `*.crt` are authorities beside the system's, `NAME.cert` with `NAME.key` a
//! client certificate. The first directory of the settings that has one for a host counts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::{Error, Result};

/// The largest certificate or key file.
const MAX_FILE: u64 = 1 << 20;
/// Files in a host's directory.
const MAX_FILES: usize = 64;

/// The directory for a host, if there is one.
pub(super) fn directory(directories: &[PathBuf], authority: &str) -> Option<PathBuf> {
    // A host of a redirect or of a challenge comes from the network.
    if authority.contains('/') || authority.starts_with('.') || authority.is_empty() {
        return None;
    }
    directories
        .iter()
        .map(|directory| directory.join(authority))
        .find(|path| path.is_dir())
}

/// What tells one state of a directory from another.
pub(super) type Stamp = Vec<(String, u64, i64, i64)>;

/// Names, sizes and times of the files in a host's directory.
pub(super) fn stamp(directory: &Path) -> Result<Stamp> {
    let mut stamp = Vec::new();
    for name in names(directory)? {
        // What vanishes meanwhile will be seen the next time.
        if let Ok(found) = fs::metadata(directory.join(&name)) {
            stamp.push((name, found.size(), found.mtime(), found.mtime_nsec()));
        }
    }
    Ok(stamp)
}

/// A configuration for hosts with a directory of their own, or without. `unverified`: any certificate will do.
/// `more` are authorities for every host.
pub(super) fn config(own: Option<&Path>, unverified: bool, more: Option<&[u8]>) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(crate::ErrorKind::Io, format!("cannot set up TLS: {error}")))?;
    // Nobody is asked who vouches for whom when nothing is verified.
    let mut roots = match unverified {
        true => RootCertStore::empty(),
        false => system_roots().clone(),
    };
    let mut client = None;
    if let Some(pem) = more {
        let bad = |why: String| Error::invalid(format!("the certificate to trust cannot be used: {why}"));
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
    }
    if let Some(directory) = own {
        let names = names(directory)?;
        for name in names.iter().filter(|name| name.ends_with(".crt")) {
            for certificate in certificates(&directory.join(name))? {
                roots
                    .add(certificate)
                    .map_err(|error| bad(&directory.join(name), &error.to_string()))?;
            }
        }
        for name in names.iter().filter(|name| name.ends_with(".cert")) {
            let path = directory.join(name);
            let key_name = format!("{}.key", name.trim_end_matches(".cert"));
            let key_path = directory.join(&key_name);
            if !names.contains(&key_name) {
                return Err(bad(&path, &format!("its key {key_name} is missing")));
            }
            let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
                .map_err(|error| bad(&key_path, &error.to_string()))?;
            client = Some((certificates(&path)?, key, path));
        }
    }
    let builder = if unverified {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    } else {
        builder.with_root_certificates(roots)
    };
    match client {
        Some((chain, key, path)) => builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad(&path, &error.to_string())),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Read once: there are more than a hundred.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("some of the system's certificate authorities cannot be read: {error}");
        }
        // What cannot be understood vouches for nobody.
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let fail = |e| Error::io(format!("cannot list {}", directory.display()), e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(fail)?.take(MAX_FILES) {
        if let Ok(name) = entry.map_err(fail)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let fail = |e| Error::io(format!("cannot read {}", path.display()), e);
    if fs::metadata(path).map_err(fail)?.len() > MAX_FILE {
        return Err(bad(path, "it is larger than 1 MiB"));
    }
    fs::read(path).map_err(fail)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| bad(path, &error.to_string()))?;
    if certificates.is_empty() {
        return Err(bad(path, "it holds no certificate in PEM form"));
    }
    Ok(certificates)
}

fn bad(path: &Path, why: &str) -> Error {
    Error::invalid(format!("{} cannot be used for TLS: {why}", path.display()))
}

/// For registries that were declared insecure: encrypted, to whomever.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
