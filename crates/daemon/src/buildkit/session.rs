//! What a build gets from the client behind a session, and gives to it: [`vessel_build::session::Session`] over the
//! services the client offers.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::{future::Future, pin::Pin};

use bollard_buildkit_proto::moby::buildkit::secrets::v1::GetSecretRequest;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_client::SecretsClient;
use bollard_buildkit_proto::moby::filesync::packet::file_send_client::FileSendClient;
use bollard_buildkit_proto::moby::filesync::v1::auth_client::AuthClient;
use bollard_buildkit_proto::moby::filesync::v1::file_send_client::FileSendClient as ArchiveClient;
use bollard_buildkit_proto::moby::filesync::v1::file_sync_client::FileSyncClient;
use bollard_buildkit_proto::moby::filesync::v1::{BytesMessage, CredentialsRequest};
use bollard_buildkit_proto::moby::sshforward::v1::ssh_client::SshClient;
use bollard_buildkit_proto::moby::sshforward::v1::{BytesMessage as AgentMessage, CheckAgentRequest};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Code, Request, Status, Streaming};
use vessel_build::place::CachePlace;
use vessel_build::session::{Credentials, ExportTree, Secret, Session, Stream, SyncRequest, Synced};
use vessel_build::{Error, ErrorKind, Result};
use vessel_filesync::{Owner, Packet, ReceiveOptions, SendOptions};
use vessel_image::Digest;

use super::sessions::Connected;
use super::transport::{Channel, MAX_MESSAGE};

/// Packets between the connection and the thread that works on files.
const PACKETS: usize = 256;
/// Batches of packets on their way to the connection.
const BATCHES: usize = 8;
/// What an agent's connection or an archive holds on its way.
const PIPE: usize = 256 * 1024;
/// Pieces of an archive.
const PIECE: usize = 128 * 1024;

/// The session of a client that is connected.
#[derive(Debug, Clone)]
pub struct ClientSession {
    /// Its connection.
    pub connected: Arc<Connected>,
    /// The directories that are to come by other sessions, by their names.
    pub elsewhere: HashMap<String, Arc<Connected>>,
}

fn remote(what: impl Into<String>) -> impl FnOnce(Status) -> Error {
    let what = what.into();
    move |status| {
        let said = status.message();
        let why = if said.is_empty() {
            "the client is gone"
        } else {
            said
        };
        Error::new(ErrorKind::Remote, format!("{what}: {why}"))
    }
}

/// Text for a header: as it is, or percent-encoded when it is not ASCII, which `NAME-encoded` then says.
pub(super) fn put(metadata: &mut MetadataMap, name: &'static str, values: &[String]) {
    let encode = !values
        .iter()
        .all(|value| value.bytes().all(|byte| (32..127).contains(&byte)));
    for value in values {
        let text = if encode { escape(value) } else { value.clone() };
        if let Ok(value) = MetadataValue::try_from(text) {
            metadata.append(name, value);
        }
    }
    if encode && let Ok(key) = MetadataKey::<Ascii>::from_bytes(format!("{name}-encoded").as_bytes()) {
        metadata.insert(key, MetadataValue::from_static("1"));
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Messages from a channel, until its senders are gone.
fn outgoing<T: Send + 'static>(
    receiver: mpsc::UnboundedReceiver<T>,
) -> impl futures_util::Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}

fn bounded<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl futures_util::Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item, receiver))
    })
}

/// Runs work that waits for the client on a thread of its own.
fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Nobody waits any more when the build was cancelled.
        let _ = sender.send(work());
    })?;
    Ok(receiver)
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::with_source(ErrorKind::System, what, error)
}

fn transfer(what: String) -> impl FnOnce(vessel_filesync::Error) -> Error {
    move |error| {
        let kind = match &error {
            vessel_filesync::Error::Io { .. } => ErrorKind::System,
            _ => ErrorKind::Remote,
        };
        Error::new(kind, format!("{what}: {error}"))
    }
}

fn aborted(what: &str) -> Error {
    Error::new(ErrorKind::System, format!("{what} ended abnormally"))
}

impl ClientSession {
    fn channel(&self) -> Channel {
        self.connected.channel.clone()
    }

    fn require(&self, method: &str, what: &str) -> Result<()> {
        if self.connected.supports(method) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            format!("the client offers no {what}"),
        ))
    }
}

/// Passes packets on to a thread, until either side ends. A failure of the connection is the result.
async fn forward(mut from: Streaming<Packet>, to: mpsc::Sender<Packet>) -> std::result::Result<(), Status> {
    while let Some(packet) = from.message().await? {
        if to.send(packet).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Makes a directory what the client's is, on a thread of its own. When nobody waits for it any more it ends at the next
/// packet, for which the end of `packets` does; `keep` is held until nothing is written any more.
fn receive(
    root: OwnedFd,
    keep: Option<Arc<dyn std::any::Any + Send + Sync>>,
    mut packets: mpsc::Receiver<Packet>,
    out: mpsc::UnboundedSender<Packet>,
) -> io::Result<oneshot::Receiver<vessel_filesync::Result<vessel_filesync::Received>>> {
    on_thread("vessel-sync", move || {
        let options = ReceiveOptions {
            mirror: true,
            owner: None,
        };
        let result = vessel_filesync::receive(root.as_fd(), options, &mut packets, &out, &mut |_| {});
        if let Err(error) = &result {
            // The client may be gone.
            let _ = out.send(vessel_filesync::failure(error));
        }
        drop(keep);
        result
    })
}

#[async_trait::async_trait]
impl Session for ClientSession {
    async fn sync(&self, request: SyncRequest) -> Result<Synced> {
        if let Some(other) = self.elsewhere.get(&request.name) {
            let other = Self {
                connected: Arc::clone(other),
                elsewhere: HashMap::new(),
            };
            return other.sync(request).await;
        }
        self.require("/moby.filesync.v1.FileSync/DiffCopy", "directories")?;
        let what = format!("cannot get the directory {:?} of the client", request.name);
        let root: OwnedFd = std::fs::File::open(&request.destination)
            .map_err(system(format!("cannot open {}", request.destination.display())))?
            .into();
        let (out, requests) = mpsc::unbounded_channel();
        let (sender, packets) = mpsc::channel(PACKETS);
        let mut call = Request::new(outgoing(requests));
        let metadata = call.metadata_mut();
        put(metadata, "dir-name", std::slice::from_ref(&request.name));
        put(metadata, "include-patterns", &request.include);
        put(metadata, "exclude-patterns", &request.exclude);
        put(metadata, "followpaths", &request.follow);
        let mut client = FileSyncClient::with_origin(self.channel(), Channel::origin())
            .max_decoding_message_size(MAX_MESSAGE);
        let answer = client
            .diff_copy(call)
            .await
            .map_err(remote(what.clone()))?
            .into_inner();
        let work = receive(root, request.keep, packets, out).map_err(system("cannot start a thread"))?;
        let (connection, done) = tokio::join!(forward(answer, sender), work);
        let received = match done.map_err(|_| aborted("the transfer of files"))? {
            Ok(received) => received,
            // The connection knows better why it ended.
            Err(vessel_filesync::Error::Closed) if connection.is_err() => {
                return Err(connection
                    .err()
                    .map_or_else(|| aborted("the transfer of files"), remote(what)));
            }
            Err(error) => return Err(transfer(what)(error)),
        };
        Ok(Synced {
            entries: received.entries.into(),
            bytes: received.bytes,
        })
    }

    fn shared_key(&self) -> &str {
        &self.connected.shared_key
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>> {
        if !self
            .connected
            .supports("/moby.buildkit.secrets.v1.Secrets/GetSecret")
        {
            return Ok(None);
        }
        let mut client = SecretsClient::with_origin(self.channel(), Channel::origin());
        let request = GetSecretRequest {
            id: id.to_owned(),
            ..GetSecretRequest::default()
        };
        match client.get_secret(request).await {
            Ok(secret) => Secret::new(secret.into_inner().data).map(Some),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(remote(format!("cannot get the secret {id:?} of the client"))(
                status,
            )),
        }
    }

    async fn has_agent(&self, id: &str) -> Result<bool> {
        if !self.connected.supports("/moby.sshforward.v1.SSH/CheckAgent") {
            return Ok(false);
        }
        let mut client = SshClient::with_origin(self.channel(), Channel::origin());
        Ok(client
            .check_agent(CheckAgentRequest { id: id.to_owned() })
            .await
            .is_ok())
    }

    async fn agent(&self, id: &str) -> Result<Box<dyn Stream>> {
        self.require("/moby.sshforward.v1.SSH/ForwardAgent", "SSH agent")?;
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let (mut read, mut write) = tokio::io::split(theirs);
        let (sender, receiver) = mpsc::channel(4);
        let mut call = Request::new(bounded(receiver));
        put(call.metadata_mut(), "buildkit.ssh.id", &[id.to_owned()]);
        let mut client = SshClient::with_origin(self.channel(), Channel::origin());
        tokio::spawn(async move {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(count @ 1..) = read.read(&mut buffer).await {
                let data = buffer.get(..count).unwrap_or_default().to_vec();
                if sender.send(AgentMessage { data }).await.is_err() {
                    break;
                }
            }
        });
        // The client answers when its agent does, which may be never: the program that asks hears the end then.
        tokio::spawn(async move {
            let answer = client.forward_agent(call).await;
            if let Ok(answer) = answer {
                let mut answer = answer.into_inner();
                while let Ok(Some(message)) = answer.message().await {
                    if write.write_all(&message.data).await.is_err() {
                        break;
                    }
                }
            }
            let _ = write.shutdown().await;
        });
        Ok(Box::new(ours))
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credentials>> {
        if !self.connected.supports("/moby.filesync.v1.Auth/Credentials") {
            return Ok(None);
        }
        // The name by which clients know what they keep under https://index.docker.io/v1/.
        let host = match host {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        };
        let mut client = AuthClient::with_origin(self.channel(), Channel::origin());
        let request = CredentialsRequest {
            host: host.to_owned(),
        };
        let known = match client.credentials(request).await {
            Ok(known) => known.into_inner(),
            Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => return Ok(None),
            Err(status) => {
                return Err(remote(format!("cannot get the client's credentials for {host}"))(
                    status,
                ));
            }
        };
        Ok(match (known.username.is_empty(), known.secret.is_empty()) {
            (true, true) => None,
            (true, false) => Some(Credentials {
                identity_token: Some(known.secret),
                ..Credentials::default()
            }),
            (false, _) => Some(Credentials {
                username: known.username,
                password: known.secret,
                ..Credentials::default()
            }),
        })
    }

    async fn export_directory(&self, exporter: &str, tree: ExportTree) -> Result<()> {
        self.require("/moby.filesync.v1.FileSend/DiffCopy", "directory for the result")?;
        let what = "cannot hand the result to the client".to_owned();
        let (out, packets) = mpsc::channel(BATCHES);
        let (sender, mut requests) = mpsc::unbounded_channel();
        let mut call = Request::new(bounded(packets).flat_map(stream::iter));
        put(
            call.metadata_mut(),
            "buildkit-attachable-exporter-id",
            &[exporter.to_owned()],
        );
        let mut client = FileSendClient::with_origin(self.channel(), Channel::origin())
            .max_decoding_message_size(MAX_MESSAGE);
        let work = on_thread("vessel-export", move || {
            let options = SendOptions {
                owner: Owner::Keep,
                prefix: tree.prefix,
                latest: tree.epoch.map(|seconds| seconds.saturating_mul(1_000_000_000)),
            };
            let filter = &mut vessel_filesync::Everything;
            let result = vessel_filesync::send(tree.root.as_fd(), filter, &options, &mut requests, &out);
            if let Err(error) = &result {
                let _ = out.blocking_send(vec![vessel_filesync::failure(error)]);
            }
            result
        })
        .map_err(system("cannot start a thread"))?;
        let connection = async {
            let mut answer = client.diff_copy(call).await?.into_inner();
            while let Some(packet) = answer.message().await? {
                if sender.send(packet).is_err() {
                    break;
                }
            }
            drop(sender);
            // The client ends the call when it has everything on its disk.
            while answer.message().await?.is_some() {}
            Ok::<(), Status>(())
        };
        let (connection, done) = tokio::join!(connection, work);
        match done.map_err(|_| aborted("the transfer of files"))? {
            Ok(_) => connection.map_err(remote(what)),
            Err(vessel_filesync::Error::Closed) if connection.is_err() => connection.map_err(remote(what)),
            Err(error) => Err(transfer(what)(error)),
        }
    }

    async fn content(&self, store: &str, manifest: Option<&Digest>) -> Result<Arc<dyn CachePlace>> {
        let content = super::content::Content::new(Arc::clone(&self.connected), store, manifest)?;
        Ok(Arc::new(content))
    }

    async fn export_stream(&self, exporter: &str) -> Result<Box<dyn AsyncWrite + Send + Unpin>> {
        self.require("/moby.filesync.v1.FileSend/DiffCopy", "file for the result")?;
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let complete = Arc::new(AtomicBool::new(false));
        let (cut, was_cut) = oneshot::channel::<()>();
        let pieces = pieces(theirs, Arc::clone(&complete), cut);
        let mut call = Request::new(pieces);
        put(
            call.metadata_mut(),
            "buildkit-attachable-exporter-id",
            &[exporter.to_owned()],
        );
        let mut client = ArchiveClient::with_origin(self.channel(), Channel::origin());
        let task = tokio::spawn(async move {
            let whole = async {
                let mut answer = client.diff_copy(call).await?.into_inner();
                while answer.message().await?.is_some() {}
                Ok(())
            };
            tokio::select! {
                done = whole => done,
                // Dropping the call resets it, and the client knows that the archive is none.
                Ok(()) = was_cut => Err(Status::cancelled("the archive is not complete")),
            }
        });
        Ok(Box::new(Archive {
            pipe: ours,
            complete,
            task,
        }))
    }
}

/// What is written into `pipe`, in pieces, until its end; an end before it is complete is told through `cut`.
fn pieces(
    pipe: DuplexStream,
    complete: Arc<AtomicBool>,
    cut: oneshot::Sender<()>,
) -> impl futures_util::Stream<Item = BytesMessage> + Send {
    let ended = (pipe, vec![0; PIECE], complete, Some(cut));
    stream::unfold(ended, |(mut pipe, mut buffer, complete, mut cut)| async move {
        let count = pipe.read(&mut buffer).await.unwrap_or_default();
        if count == 0 {
            if !complete.load(Ordering::Acquire) {
                if let Some(cut) = cut.take() {
                    let _ = cut.send(());
                }
                // The call is about to be dropped; its end must not look like the archive's.
                std::future::pending::<()>().await;
            }
            return None;
        }
        let data = buffer.get(..count).unwrap_or_default().to_vec();
        Some((BytesMessage { data }, (pipe, buffer, complete, cut)))
    })
}

/// The writing end of an archive that goes to the client.
struct Archive {
    pipe: DuplexStream,
    complete: Arc<AtomicBool>,
    task: JoinHandle<std::result::Result<(), Status>>,
}

impl AsyncWrite for Archive {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().pipe).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
    }

    /// Ends the archive, and waits until the client has all of it.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.complete.store(true, Ordering::Release);
        ready!(Pin::new(&mut this.pipe).poll_shutdown(cx))?;
        let done = ready!(Pin::new(&mut this.task).poll(cx)).map_err(io::Error::other)?;
        Poll::Ready(done.map_err(|status| io::Error::other(status.message().to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_transfer_given_up_keeps_its_directory_until_it_has_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let keep = Arc::new(());
        let (out, _requests) = mpsc::unbounded_channel();
        let (sender, packets) = mpsc::channel(PACKETS);
        let work = receive(root, Some(Arc::clone(&keep) as _), packets, out).unwrap();
        // The build is cancelled, the thread has not heard of it.
        drop(work);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(Arc::strong_count(&keep), 2);
        drop(sender);
        for _ in 0..500 {
            if Arc::strong_count(&keep) == 1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the thread goes on without anybody to hear from");
    }
}
