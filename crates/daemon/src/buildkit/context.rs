//! Contexts that come as an archive: unpacked into a directory of their own, which goes with the build.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncWrite;
use vessel_build::request::{BuildRequest, DockerfileSource, Source};
use vessel_build::session::{
    Credentials as Login, ExportTree, NoSession, Secret, Session, Stream, SyncRequest, Synced,
};
use vessel_engine::transfer;
use vessel_image::registry::{Credentials, registry_key};
use vessel_image::{ExtractOptions, unpack_into};

use crate::error::ApiError;
use crate::request::Request;
use crate::server::State;

/// What is looked at to tell an archive from a Dockerfile.
const START: usize = 512;
/// The largest Dockerfile that comes instead of an archive.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// A directory of files that came from a client; it goes with this.
#[derive(Debug)]
pub struct Context {
    parent: std::fs::File,
    name: String,
    path: PathBuf,
}

impl Context {
    fn make(state: &State) -> std::io::Result<Self> {
        let parent = &state.uploads;
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let name = state.next_upload();
        let path = parent.join(&name);
        DirBuilder::new().mode(0o755).create(&path)?;
        Ok(Self {
            parent: std::fs::File::open(parent)?,
            name,
            path,
        })
    }

    /// Where the files are.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        let (parent, name) = (self.parent.try_clone(), std::mem::take(&mut self.name));
        let remove = move || {
            if let Ok(parent) = parent
                && let Err(error) = vessel_filesync::remove_tree(&parent, &name)
            {
                tracing::warn!(%error, "a build context that is over stays on the disk");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// What came instead of a directory.
enum Came {
    Archive(Context),
    Dockerfile(Vec<u8>),
}

/// Takes the body of a request as the build's context, or the address that stands for one.
pub async fn receive(
    state: &Arc<State>,
    request: Request,
    mut build: BuildRequest,
) -> Result<(Option<Context>, BuildRequest), ApiError> {
    let remote = request.query.text("remote").to_owned();
    if !remote.is_empty() {
        build.context = Source::Remote(remote);
        return Ok((None, build));
    }
    let context = read(state, request.reader()).await?;
    Ok(match context {
        Came::Archive(context) => {
            build.context = Source::Directory(context.path().clone());
            (Some(context), build)
        }
        Came::Dockerfile(text) => {
            build.dockerfile = DockerfileSource::Inline(text);
            (None, build)
        }
    })
}

/// Takes an archive, or a Dockerfile alone, from a client's upload.
///
/// # Errors
/// An archive that cannot be unpacked.
pub async fn upload(
    state: &Arc<State>,
    reader: impl Read + Send + 'static,
    build: &mut BuildRequest,
) -> Result<Option<Context>, ApiError> {
    Ok(match read(state, reader).await? {
        Came::Archive(context) => {
            build.context = Source::Directory(context.path().clone());
            Some(context)
        }
        Came::Dockerfile(text) => {
            build.context = Source::Empty;
            build.dockerfile = DockerfileSource::Inline(text);
            None
        }
    })
}

/// Waits for the client on a thread of its own.
async fn read(state: &Arc<State>, reader: impl Read + Send + 'static) -> Result<Came, ApiError> {
    let state = Arc::clone(state);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    transfer::spawn(move || {
        // Whoever asked may be gone.
        let _ = sender.send(unpack(&state, reader));
    })?;
    receiver
        .await
        .map_err(|_| ApiError::internal("unpacking the build context ended abnormally"))?
}

fn unpack(state: &State, mut reader: impl Read + Send) -> Result<Came, ApiError> {
    let broken =
        |error: std::io::Error| ApiError::bad_request(format!("cannot read the build context: {error}"));
    let mut start = Vec::with_capacity(START);
    reader
        .by_ref()
        .take(START as u64)
        .read_to_end(&mut start)
        .map_err(broken)?;
    if start.is_empty() {
        return Err(ApiError::bad_request(
            "the build context is empty: send an archive",
        ));
    }
    if !is_archive(&start) {
        reader
            .take(MAX_DOCKERFILE)
            .read_to_end(&mut start)
            .map_err(broken)?;
        return Ok(Came::Dockerfile(start));
    }
    let failed = |error: std::io::Error| {
        ApiError::internal(format!("cannot make a directory for the build context: {error}"))
    };
    let context = Context::make(state).map_err(failed)?;
    let directory = std::fs::File::open(context.path()).map_err(failed)?;
    let archive = std::io::Cursor::new(start).chain(reader);
    unpack_into(directory.as_fd(), archive, &ExtractOptions::default())
        .map_err(|error| ApiError::bad_request(format!("cannot unpack the build context: {error}")))?;
    Ok(Came::Archive(context))
}

/// Whether bytes begin a tar, compressed or not, as Docker tells it. An archive of nothing is zeros.
fn is_archive(start: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    MAGIC.iter().any(|magic| start.starts_with(magic))
        || start.get(257..262) == Some(b"ustar")
        || start.iter().all(|byte| *byte == 0)
        // Before POSIX there was no magic; a Dockerfile has no zero byte.
        || (start.len() == START && start.contains(&0))
}

/// The session of a client that sent its credentials beforehand, and has nothing else to give.
#[derive(Debug)]
pub struct Keyring(pub BTreeMap<String, Credentials>);

#[async_trait]
impl Session for Keyring {
    async fn sync(&self, request: SyncRequest) -> vessel_build::Result<Synced> {
        NoSession.sync(request).await
    }

    async fn secret(&self, _id: &str) -> vessel_build::Result<Option<Secret>> {
        Ok(None)
    }

    async fn has_agent(&self, _id: &str) -> vessel_build::Result<bool> {
        Ok(false)
    }

    async fn agent(&self, id: &str) -> vessel_build::Result<Box<dyn Stream>> {
        NoSession.agent(id).await
    }

    async fn credentials(&self, host: &str) -> vessel_build::Result<Option<Login>> {
        let wanted = registry_key(host);
        let known = self.0.iter().find(|(key, _)| registry_key(key) == wanted);
        Ok(known.map(|(_, known)| Login {
            username: known.username.clone(),
            password: known.password.clone(),
            identity_token: Some(known.identitytoken.clone()).filter(|token| !token.is_empty()),
            registry_token: Some(known.registrytoken.clone()).filter(|token| !token.is_empty()),
        }))
    }

    async fn export_directory(&self, exporter: &str, tree: ExportTree) -> vessel_build::Result<()> {
        NoSession.export_directory(exporter, tree).await
    }

    async fn export_stream(
        &self,
        exporter: &str,
    ) -> vessel_build::Result<Box<dyn AsyncWrite + Send + Unpin>> {
        NoSession.export_stream(exporter).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_from_dockerfiles() {
        assert!(is_archive(&[0; 512]));
        assert!(is_archive(b"\x1f\x8b\x08\0"));
        assert!(!is_archive(b"FROM x\n"));
    }

    #[tokio::test]
    async fn credentials_by_any_name_of_the_hub() {
        let login = Credentials {
            username: "u".into(),
            password: "p".into(),
            ..Credentials::default()
        };
        let keyring = Keyring([("https://index.docker.io/v1/".to_owned(), login)].into());
        for host in ["docker.io", "registry-1.docker.io"] {
            assert_eq!(keyring.credentials(host).await.unwrap().unwrap().username, "u");
        }
        assert!(keyring.credentials("other:5000").await.unwrap().is_none());
    }
}
