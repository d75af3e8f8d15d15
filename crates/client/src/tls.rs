//! TLS to a daemon: mutual, as `docker --tlsverify` has it.
//!
//! The rest of this crate works with a socket that can be duplicated, half closed and waited for. So a connection over TLS
//! is one end of a pair of Unix sockets, and a thread of its own carries the bytes between the other end and the network.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::{Error, Result};

/// What a connection over TLS is made with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority of the daemon's certificate; none: the host's.
    pub authority: Option<PathBuf>,
    /// The client's certificate and key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whether any certificate of the daemon will do.
    pub trust_any: bool,
}

/// A way to connect over TLS.
#[derive(Debug, Clone)]
pub struct Tls(Arc<ClientConfig>);

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

/// As much is held of bytes on their way.
const HELD: usize = 64 * 1024;

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// One that cannot be read, or is no certificate or key in PEM.
    pub fn open(files: &TlsFiles) -> Result<Self> {
        let wrong = |path: &Path, why: String| Error::Host {
            host: path.display().to_string(),
            reason: format!("it cannot be used for TLS: {why}"),
        };
        let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
            CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect)
                .map_err(|error| wrong(path, error.to_string()))
        };
        let provider = Arc::new(ring::default_provider());
        let place = files.authority.clone().unwrap_or_default();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&place, error.to_string()))?;
        let builder = if files.trust_any {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        } else {
            let mut roots = RootCertStore::empty();
            match &files.authority {
                Some(path) => {
                    for certificate in certificates(path)? {
                        roots
                            .add(certificate)
                            .map_err(|error| wrong(path, error.to_string()))?;
                    }
                }
                None => {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
            }
            builder.with_root_certificates(roots)
        };
        let config = match &files.certificate {
            Some((certificate, key)) => {
                let secret =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error.to_string()))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, secret)
                    .map_err(|error| wrong(certificate, error.to_string()))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self(Arc::new(config)))
    }

    /// Connects; the result is the plain side.
    pub(crate) fn connect(&self, address: &str) -> io::Result<UnixStream> {
        let name = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let server = ServerName::try_from(name.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut session =
            ClientConnection::new(Arc::clone(&self.0), server).map_err(|error| broken(&error))?;
        // Whoever is refused is told so here, and not by a connection that breaks.
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        let (ours, theirs) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        std::thread::Builder::new()
            .name("vessel-tls".into())
            .stack_size(256 * 1024)
            .spawn(move || {
                // How it ends is seen at the other end.
                let _ = carry(&mut session, &mut stream, &mut &theirs);
                let _ = theirs.shutdown(Shutdown::Both);
            })?;
        Ok(ours)
    }
}

fn broken(error: &rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Carries bytes both ways until both directions, or the network, are at their end.
fn carry(session: &mut ClientConnection, network: &mut TcpStream, plain: &mut &UnixStream) -> io::Result<()> {
    let mut inward: Vec<u8> = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let (mut input_over, mut output_over, mut output_closed) = (false, false, false);
    loop {
        // What was decrypted goes out before more is read.
        while inward.len() < HELD && !output_over {
            match blocked(session.reader().read(&mut buffer))? {
                Some(0) => output_over = true,
                Some(read) => inward.extend_from_slice(&buffer[..read]),
                None => break,
            }
        }
        if !inward.is_empty()
            && let Some(written) = blocked(plain.write(&inward))?
        {
            inward.drain(..written);
            continue;
        }
        if output_over && inward.is_empty() && !output_closed {
            output_closed = true;
            plain.shutdown(Shutdown::Write)?;
        }
        if session.wants_write() && blocked(session.write_tls(network))?.is_some() {
            continue;
        }
        if output_closed && input_over && !session.wants_write() {
            return Ok(());
        }
        let mut interest = PollFlags::empty();
        if session.wants_read() && inward.len() < HELD && !output_over {
            interest |= PollFlags::IN;
        }
        if session.wants_write() {
            interest |= PollFlags::OUT;
        }
        let mut ours = PollFlags::empty();
        if !input_over && !session.wants_write() {
            ours |= PollFlags::IN;
        }
        if !inward.is_empty() {
            ours |= PollFlags::OUT;
        }
        // A network that is not to be read now would still tell of its end, again and again.
        let only_plain = usize::from(inward.len() >= HELD);
        let (from_network, from_plain) = {
            let mut fds = [PollFd::new(&*network, interest), PollFd::new(*plain, ours)];
            match poll(&mut fds[only_plain..], None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            (fds[0].revents(), fds[1].revents())
        };
        if from_network.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
            && interest.contains(PollFlags::IN)
        {
            match blocked(session.read_tls(network))? {
                Some(0) => output_over = true,
                Some(_) => {
                    session.process_new_packets().map_err(|error| broken(&error))?;
                }
                None => {}
            }
        } else if from_network.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(());
        }
        if from_plain.intersects(PollFlags::IN | PollFlags::HUP) && ours.contains(PollFlags::IN) {
            match blocked(plain.read(&mut buffer))? {
                Some(0) => {
                    input_over = true;
                    session.send_close_notify();
                }
                Some(read) => session.writer().write_all(&buffer[..read])?,
                None => {}
            }
        } else if from_plain.contains(PollFlags::HUP) {
            // Nobody reads any more.
            return Ok(());
        }
    }
}

/// Takes any certificate: `--tls` without `--tlsverify`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
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
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
