//! OCI layouts of this side that the daemon may read from and write to: containerd's content service, answered.
//!
//! A blob is written beside the others under another name and gets its own when its digest is right, so that a layout
//! never has half of one. Names are digests and nothing else.

use std::convert::Infallible;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher as _, RandomState};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use tokio::sync::mpsc;
use tonic::codegen::http::Response as HttpResponse;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use vessel_filesync::content::{
    Info, InfoRequest, InfoResponse, ReadContentRequest, ReadContentResponse, STORE, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use vessel_image::{Algorithm, Digest, Hasher};

use super::session::{Answers, Services, texts};
use super::transport::MAX_MESSAGE;

/// Bytes of a message.
const PIECE: usize = 1 << 20;
/// Messages on their way.
const DEPTH: usize = 4;
/// What a layout says of itself.
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

type Future<T> = Pin<Box<dyn std::future::Future<Output = T> + Send>>;
type Served = Future<Result<HttpResponse<tonic::body::Body>, Infallible>>;

/// Answers a call of the service.
pub fn serve(services: Services, request: hyper::Request<Incoming>) -> Served {
    let method = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    Box::pin(async move {
        Ok(match method.as_str() {
            "Info" => {
                let mut server = Grpc::new(ProstCodec::<InfoResponse, InfoRequest>::default());
                server.unary(AnswerInfo(services), request).await
            }
            "Read" => {
                let mut server = Grpc::new(ProstCodec::<ReadContentResponse, ReadContentRequest>::default());
                server.server_streaming(AnswerRead(services), request).await
            }
            "Write" => {
                let mut server =
                    Grpc::new(ProstCodec::<WriteContentResponse, WriteContentRequest>::default())
                        .max_decoding_message_size(MAX_MESSAGE);
                server.streaming(AnswerWrite(services), request).await
            }
            _ => Status::unimplemented(format!("{method} is not offered")).into_http(),
        })
    })
}

/// The layout a call names.
fn layout<T>(services: &Services, request: &Request<T>) -> Result<PathBuf, Status> {
    let name = texts(request.metadata(), STORE)
        .into_iter()
        .next()
        .unwrap_or_default();
    services
        .store(&name)
        .ok_or_else(|| Status::not_found(format!("no such content store {name:?}")))
}

/// Where a blob of a layout is.
fn blob_path(layout: &Path, digest: &str) -> Result<(PathBuf, Digest), Status> {
    let parsed: Digest = digest
        .parse()
        .map_err(|_| Status::invalid_argument(format!("{digest:?} is not a digest")))?;
    let path = layout
        .join("blobs")
        .join(parsed.algorithm().name())
        .join(parsed.hex());
    Ok((path, parsed))
}

fn open(layout: &Path, digest: &str) -> Result<(File, u64), Status> {
    let (path, _) = blob_path(layout, digest)?;
    let opened = File::open(&path).and_then(|file| {
        let metadata = file.metadata()?;
        match metadata.is_file() {
            true => Ok((file, metadata.len())),
            false => Err(std::io::ErrorKind::NotFound.into()),
        }
    });
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Status::not_found(format!("content {digest}: not found")),
        _ => Status::unknown(format!("cannot read {}: {error}", path.display())),
    })
}

struct AnswerInfo(Services);

impl UnaryService<InfoRequest> for AnswerInfo {
    type Response = InfoResponse;
    type Future = Future<Result<Response<InfoResponse>, Status>>;

    fn call(&mut self, request: Request<InfoRequest>) -> Self::Future {
        let answer = layout(&self.0, &request).and_then(|layout| {
            let digest = request.into_inner().digest;
            let (_, size) = open(&layout, &digest)?;
            let size = i64::try_from(size).unwrap_or(i64::MAX);
            Ok(Response::new(InfoResponse {
                info: Some(Info { digest, size }),
            }))
        });
        Box::pin(async move { answer })
    }
}

struct AnswerRead(Services);

impl ServerStreamingService<ReadContentRequest> for AnswerRead {
    type Response = ReadContentResponse;
    type ResponseStream = Answers<ReadContentResponse>;
    type Future = Future<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ReadContentRequest>) -> Self::Future {
        let opened = layout(&self.0, &request).and_then(|layout| {
            let wanted = request.into_inner();
            Ok((open(&layout, &wanted.digest)?, wanted))
        });
        Box::pin(async move {
            let ((file, size), wanted) = opened?;
            let number =
                |value: i64| u64::try_from(value).map_err(|_| Status::out_of_range("a negative offset"));
            let offset = number(wanted.offset)?;
            let length = match number(wanted.size)? {
                0 => size.saturating_sub(offset),
                length => length,
            };
            let (sender, pieces) = mpsc::channel(DEPTH);
            std::thread::spawn(move || {
                if let Err(error) = send(file, offset, length, &sender) {
                    // The daemon may be gone.
                    let _ = sender.blocking_send(Err(Status::unknown(error.to_string())));
                }
            });
            Ok(Response::new(
                Box::pin(Pieces(pieces)) as Answers<ReadContentResponse>
            ))
        })
    }
}

type Piece = Result<ReadContentResponse, Status>;

fn send(mut file: File, offset: u64, length: u64, to: &mpsc::Sender<Piece>) -> std::io::Result<()> {
    use std::io::Seek;
    file.seek(std::io::SeekFrom::Start(offset))?;
    let (mut input, mut at) = (file.take(length), offset);
    loop {
        let mut data = Vec::with_capacity(PIECE.min(usize::try_from(length).unwrap_or(PIECE)));
        (&mut input).take(PIECE as u64).read_to_end(&mut data)?;
        if data.is_empty() {
            return Ok(());
        }
        let piece = ReadContentResponse {
            offset: i64::try_from(at).unwrap_or(i64::MAX),
            data: data.into(),
        };
        at += piece.data.len() as u64;
        if to.blocking_send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

struct Pieces<T>(mpsc::Receiver<Result<T, Status>>);

impl<T> Stream for Pieces<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

struct AnswerWrite(Services);

impl StreamingService<WriteContentRequest> for AnswerWrite {
    type Response = WriteContentResponse;
    type ResponseStream = Answers<WriteContentResponse>;
    type Future = Future<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<WriteContentRequest>>) -> Self::Future {
        let layout = layout(&self.0, &request);
        Box::pin(async move {
            let layout = layout?;
            let mut incoming = request.into_inner();
            let (sender, answers) = mpsc::channel(DEPTH);
            tokio::spawn(async move {
                if let Err(status) = receive(&layout, &mut incoming, &sender).await {
                    let _ = sender.send(Err(status)).await;
                }
            });
            Ok(Response::new(
                Box::pin(Pieces(answers)) as Answers<WriteContentResponse>
            ))
        })
    }
}

/// The name of a file that is being written. One that a killed client left behind is in nobody's way: process IDs repeat
/// themselves in containers, these names do not.
fn new_name() -> String {
    format!(".new-{:016x}", RandomState::new().build_hasher().finish())
}

/// How long nothing was written to a file that a killed client left behind, and to none that is being written.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// Removes what killed clients left behind.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_new = entry.file_name().to_string_lossy().starts_with(".new-");
        let age = entry
            .metadata()
            .and_then(|about| about.modified())
            .map(|time| time.elapsed());
        if is_new && age.is_ok_and(|age| age.is_ok_and(|age| age > LEFT)) {
            let _gone = fs::remove_file(entry.path());
        }
    }
}

/// A blob that is being written; dropped before it is whole, it leaves nothing.
struct Unfinished {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Unfinished {
    fn new(layout: &Path) -> std::io::Result<Self> {
        let directory = layout.join("blobs/sha256");
        fs::create_dir_all(&directory)?;
        sweep(&directory);
        let path = directory.join(new_name());
        Ok(Self {
            file: File::create_new(&path)?,
            path,
            hasher: Hasher::new(Algorithm::Sha256),
            size: 0,
        })
    }

    fn write(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.file.write_all(data)?;
        self.hasher.update(data);
        self.size += data.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Digest {
        std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256)).finish()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // A whole one has another name by now.
        let _ = fs::remove_file(&self.path);
    }
}

async fn receive(
    layout: &Path,
    incoming: &mut Streaming<WriteContentRequest>,
    answers: &mpsc::Sender<Result<WriteContentResponse, Status>>,
) -> Result<(), Status> {
    let failed =
        |error: std::io::Error| Status::unknown(format!("cannot write to {}: {error}", layout.display()));
    let mut blob = Unfinished::new(layout).map_err(failed)?;
    let mut expected = String::new();
    while let Some(piece) = incoming.message().await? {
        if !piece.expected.is_empty() {
            expected.clone_from(&piece.expected);
        }
        let action = WriteAction::try_from(piece.action).unwrap_or(WriteAction::Stat);
        if action != WriteAction::Stat {
            if !piece.data.is_empty() && u64::try_from(piece.offset) != Ok(blob.size) {
                return Err(Status::out_of_range("the bytes do not follow those before"));
            }
            blob.write(&piece.data).map_err(failed)?;
        }
        let mut answer = WriteContentResponse {
            action: action.into(),
            offset: i64::try_from(blob.size).unwrap_or(i64::MAX),
            total: piece.total,
            digest: String::new(),
        };
        if action == WriteAction::Commit {
            let (path, wanted) = blob_path(layout, &expected)?;
            let digest = blob.finish();
            if digest != wanted {
                return Err(Status::failed_precondition(format!(
                    "unexpected commit digest {digest}, expected {wanted}"
                )));
            }
            fs::rename(&blob.path, path).map_err(failed)?;
            answer.digest = digest.to_string();
            let _ = answers.send(Ok(answer)).await;
            return Ok(());
        }
        if answers.send(Ok(answer)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The manifest of a tag in a layout's index, as its client has to name it.
///
/// # Errors
/// No layout, or no such tag.
pub fn manifest_of(layout: &Path, tag: &str) -> Result<String, String> {
    let path = layout.join("index.json");
    let raw = fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let index = vessel_image::Index::parse(&raw).map_err(|error| format!("{}: {error}", path.display()))?;
    let named = index
        .manifests
        .iter()
        .rev()
        .find(|entry| entry.annotation(TAG) == Some(tag));
    let found = named.or(match index.manifests.as_slice() {
        [only] => Some(only),
        _ => None,
    });
    match found {
        Some(entry) => Ok(entry.digest.to_string()),
        None => Err(format!("{} has no manifest with the tag {tag:?}", path.display())),
    }
}

/// The annotation with a manifest's tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// Enters a manifest into the index of a layout under a tag, in the place of the one before. Who enters others meanwhile,
/// here or with `BuildKit`'s clients, waits.
///
/// # Errors
/// An index that cannot be read, which stays as it is; a layout that cannot be written.
pub fn enter(layout: &Path, tag: &str, descriptor: &str) -> Result<(), String> {
    let path = layout.join("index.json");
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    // It ends with the file.
    let lock = File::create(layout.join("index.json.lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    sweep(layout);
    let mut entry: vessel_image::Descriptor =
        serde_json::from_str(descriptor).map_err(|error| format!("the daemon's manifest: {error}"))?;
    entry
        .annotations
        .get_or_insert_default()
        .insert(TAG.to_owned(), tag.to_owned());
    let mut index = match fs::read(&path) {
        Ok(raw) => vessel_image::Index::parse(&raw).map_err(|error| {
            format!(
                "{}: {error}: the manifest was not entered, since other tags would be lost; remove the file to begin anew",
                path.display()
            )
        })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => vessel_image::Index {
            schema_version: 2,
            media_type: Some(vessel_image::media_type::OCI_INDEX.to_owned()),
            manifests: Vec::new(),
            artifact_type: None,
            subject: None,
            annotations: None,
        },
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    };
    index.manifests.retain(|known| known.annotation(TAG) != Some(tag));
    index.manifests.push(entry);
    let raw = serde_json::to_vec(&index).map_err(|error| error.to_string())?;
    let new = layout.join(new_name());
    let written = fs::write(&new, raw)
        .and_then(|()| fs::rename(&new, &path))
        .and_then(|()| fs::write(layout.join("oci-layout"), LAYOUT));
    if written.is_err() {
        // What is not there any more has its name.
        let _ = fs::remove_file(&new);
    }
    written.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_one_manifest_for_a_tag() {
        let directory = tempfile::tempdir().unwrap();
        let descriptor = |text: &str| {
            let digest = Digest::sha256(text.as_bytes());
            serde_json::to_string(&vessel_image::Descriptor::new("m", digest, 1)).unwrap()
        };
        assert!(manifest_of(directory.path(), "latest").is_err());
        for (tag, text) in [("latest", "one"), ("other", "two"), ("latest", "three")] {
            enter(directory.path(), tag, &descriptor(text)).unwrap();
        }
        let found = |tag| manifest_of(directory.path(), tag);
        assert_eq!(found("latest").unwrap(), Digest::sha256(b"three").to_string());
        assert_eq!(found("other").unwrap(), Digest::sha256(b"two").to_string());
        assert!(found("third").is_err());
        let mut names: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
        names.retain(|entry| entry.file_name().to_string_lossy().starts_with(".new-"));
        assert!(names.is_empty(), "{names:?}");
        // What cannot be read is not thrown away.
        fs::write(directory.path().join("index.json"), "{").unwrap();
        let refused = enter(directory.path(), "latest", &descriptor("four")).unwrap_err();
        assert!(refused.contains("other tags would be lost"), "{refused}");
        assert_eq!(fs::read(directory.path().join("index.json")).unwrap(), b"{");
    }

    #[test]
    fn what_killed_clients_left_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let blobs = directory.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let age = |name: &str, seconds| {
            let file = File::create(blobs.join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - Duration::from_secs(seconds))
                .unwrap();
        };
        age(".new-0", 90_000);
        age(".new-1", 80_000);
        age("kept", 90_000);
        let unfinished = Unfinished::new(directory.path()).unwrap();
        assert!(!blobs.join(".new-0").exists());
        assert!(blobs.join(".new-1").exists() && blobs.join("kept").exists() && unfinished.path.exists());
    }

    #[test]
    fn tags_that_are_entered_at_the_same_time_are_all_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    let digest = Digest::sha256(&[number]);
                    let entry = vessel_image::Descriptor::new("m", digest, 1);
                    enter(path, &number.to_string(), &serde_json::to_string(&entry).unwrap()).unwrap();
                });
            }
        });
        for number in 0..8_u8 {
            let digest = Digest::sha256(&[number]).to_string();
            assert_eq!(manifest_of(path, &number.to_string()).unwrap(), digest);
        }
    }

    #[test]
    fn names_are_digests() {
        for wrong in ["", "sha256:..", "../x", "sha256:/etc/passwd"] {
            assert!(blob_path(Path::new("/x"), wrong).is_err(), "{wrong}");
        }
    }
}
