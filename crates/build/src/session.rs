//! What a build gets from, and gives to, the client that asked for it.
//!
//! The daemon implements [`Session`] over BuildKit's gRPC services, and with next to nothing for the classic endpoint,
//! whose client sends everything before the build begins. The builder calls it when a step needs something and never
//! before: a secret no step mounts is never asked for, a context of which nothing is copied is never synchronized.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use vessel_image::Digest;

use crate::error::{Error, ErrorKind, Result};
use crate::place::CachePlace;

/// The most bytes a secret may have, as in BuildKit.
pub const MAX_SECRET: usize = 500 << 10;

/// The client's side of a build. Methods may be called at the same time. When the future of a call is dropped, the call
/// is abandoned: what goes on for a moment on a thread of its own ends soon and holds [`SyncRequest::keep`].
#[async_trait]
pub trait Session: Send + Sync {
    /// Makes a directory on this host equal to the wanted part of a directory of the client.
    ///
    /// The destination is private to the builder and kept between builds: it holds what the last call for the same
    /// client, name and patterns left there, so that only what changed is sent. The implementation must leave files it
    /// does not change untouched, times included (the builder remembers their digests by inode, size, mtime and ctime);
    /// set modes, owners (IDs of the client are kept as sent) and modification times as the client says; replace a
    /// changed file by a new one under a temporary name and `rename`, never write into it; remove what the client does not
    /// have; refuse names with `..`, absolute or empty ones, and anything below what is not a directory; work by
    /// descriptors below the destination, never through a link in it. When it fails, the destination may hold any mix of
    /// old and new files, each of them whole.
    async fn sync(&self, request: SyncRequest) -> Result<Synced>;

    /// Names the client's directories beyond one session: contexts of sessions with the same key and the same name are
    /// the same directory. Empty: nothing is known.
    fn shared_key(&self) -> &str {
        ""
    }

    /// A secret's bytes; none: the client has no such secret. They are never stored.
    async fn secret(&self, id: &str) -> Result<Option<Secret>>;

    /// Whether the client forwards an agent of this ID (`default` if the Dockerfile names none).
    async fn has_agent(&self, id: &str) -> Result<bool>;

    /// A new connection to the client's agent of this ID.
    async fn agent(&self, id: &str) -> Result<Box<dyn Stream>>;

    /// What to log in to a registry with; none: nothing is known, go on without.
    async fn credentials(&self, host: &str) -> Result<Option<Credentials>>;

    /// Gives the client the contents of a directory of this host. The directory is a mounted, read-only tree.
    async fn export_directory(&self, exporter: &str, tree: ExportTree) -> Result<()>;

    /// Opens what receives an archive. The builder calls `shutdown` at the end of a whole one; what is dropped before is
    /// no archive.
    async fn export_stream(&self, exporter: &str) -> Result<Box<dyn AsyncWrite + Send + Unpin>>;

    /// A content store of the client, such as the one of an OCI layout. `manifest`: the one it stands for.
    async fn content(&self, store: &str, manifest: Option<&Digest>) -> Result<Arc<dyn CachePlace>> {
        let _ = manifest;
        Err(Error::new(
            ErrorKind::Invalid,
            format!("the client offers no content store {store:?}"),
        ))
    }
}

/// What to synchronize.
#[derive(Debug, Clone, Default)]
pub struct SyncRequest {
    /// The client's name of the directory (`context`, `dockerfile`, a named context).
    pub name: String,
    /// Where to; exists, and is nobody else's while the call runs.
    pub destination: PathBuf,
    /// Only paths these patterns match (as in `COPY`); empty: all. For BuildKit's `include-patterns`.
    pub include: Vec<String>,
    /// Patterns of an ignore file; for BuildKit's `exclude-patterns`.
    pub exclude: Vec<String>,
    /// Paths to send with what they link to; for BuildKit's `followpaths`.
    pub follow: Vec<String>,
    /// What keeps the destination private. Whatever goes on writing after the future of the call was dropped holds a copy
    /// until it has stopped: only then does another build get the directory.
    pub keep: Option<std::sync::Arc<dyn std::any::Any + Send + Sync>>,
}

/// What a synchronization did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// Files and directories the client has.
    pub entries: u64,
    /// Bytes of content that were sent.
    pub bytes: u64,
}

/// A secret. It does not print.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// From its bytes.
    ///
    /// # Errors
    /// More than [`MAX_SECRET`].
    pub fn new(bytes: Vec<u8>) -> Result<Self> {
        if bytes.len() > MAX_SECRET {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "a secret may have {MAX_SECRET} bytes; this one has {}",
                    bytes.len()
                ),
            ));
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A connection that carries bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What to log in with. The secrets in it do not print.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name; empty with an identity token.
    pub username: String,
    /// Password.
    pub password: String,
    /// An identity (refresh) token instead of a password.
    pub identity_token: Option<String>,
    /// A registry (bearer) token to be used as it is.
    pub registry_token: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A tree to export.
#[derive(Debug)]
pub struct ExportTree {
    /// The directory. Where it is a mount, no path of this host leads to it: read it by this descriptor.
    pub root: std::os::fd::OwnedFd,
    /// Directory of the destination to put it in; empty: the destination itself.
    pub prefix: String,
    /// No modification time is sent that is later (`SOURCE_DATE_EPOCH`).
    pub epoch: Option<i64>,
}

/// The session of a client that has nothing to give: the classic endpoint's, without credentials.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSession;

#[async_trait]
impl Session for NoSession {
    async fn sync(&self, request: SyncRequest) -> Result<Synced> {
        Err(Error::new(
            ErrorKind::Invalid,
            format!("the client offers no directory {:?}", request.name),
        ))
    }

    async fn secret(&self, _id: &str) -> Result<Option<Secret>> {
        Ok(None)
    }

    async fn has_agent(&self, _id: &str) -> Result<bool> {
        Ok(false)
    }

    async fn agent(&self, id: &str) -> Result<Box<dyn Stream>> {
        Err(Error::new(
            ErrorKind::Invalid,
            format!("the client forwards no SSH agent {id:?}"),
        ))
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Credentials>> {
        Ok(None)
    }

    async fn export_directory(&self, _exporter: &str, _tree: ExportTree) -> Result<()> {
        Err(Error::new(ErrorKind::Invalid, "the client takes no files"))
    }

    async fn export_stream(&self, _exporter: &str) -> Result<Box<dyn AsyncWrite + Send + Unpin>> {
        Err(Error::new(ErrorKind::Invalid, "the client takes no archive"))
    }
}
