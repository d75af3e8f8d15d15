//! Trees of files a build takes from: contexts of the client, directories of this host, what was fetched.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::OFlags;
use tokio::sync::OnceCell;
use vessel_image::{Digest, Platform};

use super::copy::skipping;
use super::state::State;
use super::step::{Cached, Workspace, digest, key};
use super::vertex::Pending;
use super::{Cancelled, Solve, as_vertex};
use crate::builder::Builder;
use crate::error::{Error, ErrorKind, Result};
use crate::ignore;
use crate::progress::{Event, Progress, Status};
use crate::request::{BuildRequest, DockerfileSource, Source};
use crate::session::{Session, SyncRequest};
use crate::tree::copy::{Copier, Options, Skip};
use crate::tree::digest::Memory;
use crate::{blocking, tree};

/// The largest Dockerfile or ignore file that is read.
const MAX_TEXT: u64 = 16 << 20;

/// The build argument by which a context from a repository keeps its `.git`.
const KEEP_GIT: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// A tree of files.
pub(crate) struct Files {
    path: PathBuf,
    skip: Option<Skip>,
    memory: Mutex<Memory>,
    memory_path: Option<PathBuf>,
    /// Held while a build uses what was synchronized.
    _lock: Option<Arc<File>>,
    /// Removed with it.
    _temporary: Option<Workspace>,
    /// Removed when nobody else needs it.
    _fetched: Option<Arc<Workspace>>,
    /// What this is a part of.
    _whole: Option<Arc<Files>>,
    /// The name of the Dockerfile, when that is all that came: by whatever name it is asked for.
    alone: Option<&'static str>,
    /// A copy without what is left out, for mounts, which show all that is there.
    visible: Mutex<Option<Workspace>>,
}

impl Files {
    pub fn open(&self) -> Result<OwnedFd> {
        tree::open_root(&self.path)
    }

    /// Files that nothing is known of yet.
    fn at(path: PathBuf) -> Self {
        Self {
            path,
            skip: None,
            memory: Mutex::default(),
            memory_path: None,
            _lock: None,
            _temporary: None,
            _fetched: None,
            _whole: None,
            alone: None,
            visible: Mutex::default(),
        }
    }

    /// A directory of the files, found by following links as if they were all there is.
    fn below(self: &Arc<Self>, directory: &str) -> Result<Self> {
        let not_found = || Error::not_found(format!("{directory}: not found in the build context"));
        let real = tree::canonical(self.open()?.as_fd(), directory.as_bytes())?.ok_or_else(not_found)?;
        let real = real.strip_prefix(b"/").unwrap_or(&real);
        let path = self.path.join(std::ffi::OsStr::from_bytes(real));
        if !path.is_dir() {
            return Err(not_found());
        }
        Ok(Self {
            _whole: Some(Arc::clone(self)),
            ..Self::at(path)
        })
    }

    /// The same files, some of them left out.
    fn without(self: &Arc<Self>, skip: Skip) -> Self {
        Self {
            skip: Some(skip),
            _whole: Some(Arc::clone(self)),
            ..Self::at(self.path.clone())
        }
    }

    /// A root in which what is left out is not there: a copy below `temporary` if anything is, made when it is first
    /// asked for.
    pub fn open_visible(&self, temporary: &Path, cancelled: &Cancelled) -> Result<OwnedFd> {
        tree::open_root(&self.visible(temporary, cancelled)?)
    }

    /// Where that root is.
    pub fn visible(&self, temporary: &Path, cancelled: &Cancelled) -> Result<PathBuf> {
        let Some(skip) = &self.skip else {
            return Ok(self.path.clone());
        };
        let mut visible = self.visible.lock().unwrap_or_else(PoisonError::into_inner);
        if visible.is_none() {
            let workspace = Workspace::new(temporary)?;
            let options = Options {
                skip: Some(skip.clone()),
                ..Options::default()
            };
            let into = tree::open_root(&workspace.upper)?;
            Copier::new(into.as_fd(), options, cancelled).copy(self.open()?.as_fd(), b"/", b"/")?;
            *visible = Some(workspace);
        }
        Ok(visible
            .as_ref()
            .map_or_else(|| self.path.clone(), |workspace| workspace.upper.clone()))
    }

    /// What of it an ignore file leaves out.
    pub fn skip(&self) -> Option<Skip> {
        self.skip.clone()
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is known of the files for later builds.
    pub fn keep_memory(&self) {
        if let Some(path) = &self.memory_path
            && let Err(error) = self.memory().write(path)
        {
            tracing::warn!("cannot write {}: {error}", path.display());
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read_text(self.open()?.as_fd(), name)
    }
}

/// Reads a small file of a tree; none: it is not there.
fn read_text(root: std::os::fd::BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    use std::io::Read;
    let fail =
        |error: std::io::Error| Error::with_source(ErrorKind::Invalid, format!("cannot read {name}"), error);
    let fd = match tree::open_in(root, name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    let mut text = Vec::new();
    File::from(fd)
        .take(MAX_TEXT + 1)
        .read_to_end(&mut text)
        .map_err(fail)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(Error::invalid(format!("{name} is larger than {MAX_TEXT} bytes")));
    }
    Ok(Some(text))
}

/// The trees of one build, each opened once.
pub(crate) struct Opened {
    builder: Arc<Builder>,
    request: Arc<BuildRequest>,
    session: Arc<dyn Session>,
    progress: Progress,
    cancelled: Cancelled,
    files: Mutex<HashMap<Source, Arc<OnceCell<Arc<Files>>>>>,
    /// The build context, without what its ignore file names.
    context: OnceCell<Arc<Files>>,
    /// Patterns of the ignore file of the build context.
    ignored: OnceCell<Vec<String>>,
    /// What lies beside the Dockerfile.
    beside: OnceCell<Option<Vec<u8>>>,
    /// As which vertex the Dockerfile was read.
    definition: OnceCell<Digest>,
}

impl Opened {
    pub fn new(
        builder: &Arc<Builder>,
        request: &Arc<BuildRequest>,
        session: &Arc<dyn Session>,
        progress: &Progress,
        cancelled: &Cancelled,
    ) -> Arc<Self> {
        Arc::new(Self {
            builder: Arc::clone(builder),
            request: Arc::clone(request),
            session: Arc::clone(session),
            progress: progress.clone(),
            cancelled: cancelled.clone(),
            files: Mutex::default(),
            context: OnceCell::new(),
            ignored: OnceCell::new(),
            beside: OnceCell::new(),
            definition: OnceCell::new(),
        })
    }

    /// The Dockerfile's name and text.
    pub async fn dockerfile(&self) -> Result<(String, Vec<u8>)> {
        let (source, path) = match &self.request.dockerfile {
            DockerfileSource::Inline(text) => return Ok(("Dockerfile".to_owned(), text.clone())),
            DockerfileSource::File { source, path } => (source.as_ref(), path.clone()),
        };
        let name = if path.is_empty() {
            "Dockerfile".to_owned()
        } else {
            path
        };
        let vertex = Pending::new(&format!("[internal] load build definition from {}", base(&name)));
        let _set = self.definition.set(vertex.digest.clone());
        let work = async {
            let source = source.unwrap_or(&self.request.context);
            let beside = format!("{name}.dockerignore");
            // Docker has always taken the name in lower case, too.
            let lower = (base(&name) == "Dockerfile").then(|| {
                let directory = name.strip_suffix("Dockerfile").unwrap_or_default();
                format!("{directory}dockerfile")
            });
            let mut wanted = vec![name.clone(), beside.clone(), ".dockerignore".to_owned()];
            wanted.extend(lower.clone());
            let files = self
                .some(source, &wanted, Some((&vertex, "transferring dockerfile:")))
                .await?;
            let (first, second) = (name.clone(), beside);
            let read = move || {
                let first = files.alone.map_or(first, str::to_owned);
                let text = match (files.read(&first)?, lower) {
                    (None, Some(lower)) => files.read(&lower)?,
                    (text, _) => text,
                };
                Ok((text, files.read(&second)?))
            };
            let (text, ignore) = blocking(read).await?;
            let _set = self.beside.set(ignore);
            text.ok_or_else(|| {
                Error::not_found(format!(
                    "failed to read dockerfile: open {name}: no such file or directory; -f names another file"
                ))
            })
        };
        let text = as_vertex(&self.progress, &vertex, Box::pin(work)).await?;
        Ok((name, text))
    }

    /// The vertex that warnings about the Dockerfile belong to. One that came with the request was not read by any, and
    /// gets one now.
    pub async fn definition(&self) -> Digest {
        let make = || async {
            let vertex = Pending::new("[internal] load build definition from Dockerfile");
            let _told = as_vertex(&self.progress, &vertex, async { Ok(()) }).await;
            vertex.digest
        };
        self.definition.get_or_init(make).await.clone()
    }

    /// Patterns of the ignore file, if anything needed them already.
    pub fn known_ignored(&self) -> Option<&Vec<String>> {
        self.ignored.get()
    }

    /// A few files of a source, before all of it is needed.
    async fn some(&self, source: &Source, wanted: &[String], told: Told<'_>) -> Result<Arc<Files>> {
        match source {
            Source::Session(name) => self
                .synchronize(name, wanted.to_vec(), Vec::new(), told)
                .await
                .map(Arc::new),
            other => self.open(other).await,
        }
    }

    /// Patterns of the ignore file: the one beside the Dockerfile, or the context's.
    pub async fn ignored(&self) -> Result<&Vec<String>> {
        let read = || async {
            let text = match self.beside.get() {
                Some(Some(text)) => Some(text.clone()),
                _ => {
                    let files = self
                        .some(&self.request.context, &[".dockerignore".to_owned()], None)
                        .await?;
                    blocking(move || files.read(".dockerignore")).await?
                }
            };
            match text {
                Some(text) => {
                    ignore::read(&text).map_err(|error| Error::invalid(format!(".dockerignore: {error}")))
                }
                None => Ok(Vec::new()),
            }
        };
        self.ignored.get_or_try_init(read).await
    }

    /// The build context, what the ignore file names left out.
    pub async fn context(&self) -> Result<Arc<Files>> {
        let open = || async {
            let vertex = Pending::new("[internal] load build context");
            let work = async {
                match &self.request.context {
                    Source::Session(name) => {
                        let patterns = self.ignored().await?.clone();
                        let told = Some((&vertex, "transferring context:"));
                        self.synchronize(name, Vec::new(), patterns, told)
                            .await
                            .map(Arc::new)
                    }
                    other => {
                        let mut files = self.open(other).await?;
                        if let Some(part) = self.request.part.clone() {
                            files = blocking(move || files.below(&part).map(Arc::new)).await?;
                        }
                        let patterns = self.ignored().await?;
                        if patterns.is_empty() {
                            return Ok(files);
                        }
                        let matcher = ignore::Matcher::new(patterns)
                            .map_err(|error| Error::invalid(format!(".dockerignore: {error}")))?;
                        Ok(Arc::new(files.without(skipping(matcher))))
                    }
                }
            };
            as_vertex(&self.progress, &vertex, Box::pin(work)).await
        };
        self.context.get_or_try_init(open).await.map(Arc::clone)
    }

    /// All files of a source.
    async fn open(&self, source: &Source) -> Result<Arc<Files>> {
        let cell = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(files.entry(source.clone()).or_default())
        };
        let open = || async { self.open_now(source).await.map(Arc::new) };
        cell.get_or_try_init(open).await.map(Arc::clone)
    }

    async fn open_now(&self, source: &Source) -> Result<Files> {
        match source {
            Source::Empty => {
                let root = self.builder.cache().temporary();
                let workspace = blocking(move || Workspace::new(&root)).await?;
                let path = workspace.upper.clone();
                Ok(Files {
                    _temporary: Some(workspace),
                    ..Files::at(path)
                })
            }
            Source::Session(name) => {
                // A named context's own ignore file.
                let ignore = vec![".dockerignore".to_owned()];
                let files = self.synchronize(name, ignore, Vec::new(), None).await?;
                let patterns = match blocking(move || files.read(".dockerignore")).await? {
                    Some(text) => ignore::read(&text)
                        .map_err(|error| Error::invalid(format!(".dockerignore of {name}: {error}")))?,
                    None => Vec::new(),
                };
                self.synchronize(name, Vec::new(), patterns, None).await
            }
            Source::Directory(path) => Ok(Files::at(path.clone())),
            Source::Remote(address) => {
                let keep_git = self.request.args.get(KEEP_GIT).is_some_and(|value| {
                    matches!(value.as_deref(), Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
                });
                let (path, temporary, alone) =
                    super::remote::context(&self.builder, address, keep_git, &self.progress).await?;
                Ok(Files {
                    _fetched: Some(temporary),
                    alone,
                    ..Files::at(path)
                })
            }
        }
    }

    /// Brings a directory of the client here, or what of it changed.
    async fn synchronize(
        &self,
        name: &str,
        include: Vec<String>,
        exclude: Vec<String>,
        told: Told<'_>,
    ) -> Result<Files> {
        self.cancelled.check()?;
        let shared = self.session.shared_key();
        let id = digest(format!("{shared}\0{name}\0{include:?}").as_bytes());
        let (root, about) = (
            self.builder.cache().contexts(),
            format!("local source for {name}"),
        );
        let (home, lock) = blocking(move || home(&root, &id[..32], &about)).await?;
        let path = home.join("files");
        let request = SyncRequest {
            name: name.to_owned(),
            destination: path.clone(),
            // A Dockerfile may be a link.
            follow: include.clone(),
            include,
            exclude,
            keep: Some(Arc::clone(&lock) as _),
        };
        // A transfer that breaks off leaves files whose size nobody knows.
        let size_path = home.join("size");
        let of = size_path.clone();
        let before = blocking(move || {
            let before = std::fs::read(&of).ok();
            let _unknown = std::fs::remove_file(&of);
            Ok(before)
        })
        .await?;
        let started = SystemTime::now();
        let synced = self.session.sync(request).await?;
        if let Some((vertex, what)) = told {
            let now = SystemTime::now();
            let status = Status {
                vertex: vertex.digest.clone(),
                id: what.to_owned(),
                name: what.to_owned(),
                current: synced.bytes,
                total: 0,
                started,
                completed: Some(now),
                time: now,
            };
            self.progress.send(Event::Status(status)).await;
        }
        tracing::debug!(
            name,
            entries = synced.entries,
            bytes = synced.bytes,
            "synchronized"
        );
        let memory_path = home.join("digests");
        let of = memory_path.clone();
        let memory = blocking(move || Ok(Memory::read(&of))).await?;
        let of = path.clone();
        blocking(move || {
            let size = match before {
                Some(size) if synced.bytes == 0 => size,
                _ => tree::disk_usage(&of).to_string().into_bytes(),
            };
            if let Err(error) = std::fs::write(size_path, size) {
                tracing::warn!("cannot write the size of a context: {error}");
            }
            Ok(())
        })
        .await?;
        Ok(Files {
            memory: Mutex::new(memory),
            memory_path: Some(memory_path),
            _lock: Some(lock),
            ..Files::at(path)
        })
    }
}

/// As whose progress, and in which words, a transfer is told.
type Told<'a> = Option<(&'a Pending, &'a str)>;

/// A directory for what is kept of a source, that nobody else uses now.
fn home(root: &Path, id: &str, about: &str) -> Result<(PathBuf, Arc<File>)> {
    for number in 0.. {
        let home = root.join(if number == 0 {
            id.to_owned()
        } else {
            format!("{id}-{number}")
        });
        let fail = |error| Error::io(format!("cannot use {}", home.display()), error);
        std::fs::create_dir_all(home.join("files")).map_err(fail)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(home.join("lock"))
            .map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => continue,
            Err(std::fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
        // Pruned in between: begin again.
        if !home.join("lock").exists() {
            continue;
        }
        lock.set_modified(std::time::SystemTime::now()).map_err(fail)?;
        if !home.join("name").exists() {
            std::fs::write(home.join("name"), about).map_err(fail)?;
        }
        return Ok((home, Arc::new(lock)));
    }
    Err(Error::invalid("all directories for contexts are in use"))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl Solve {
    /// The build context.
    pub(super) async fn context(&self) -> Result<Arc<Files>> {
        self.plan.opened.context().await
    }

    /// A named context of files.
    pub(super) async fn files(&self, source: &Source) -> Result<Arc<Files>> {
        if *source == self.plan.request.context {
            return self.context().await;
        }
        self.plan.opened.open(source).await
    }

    /// A named context of files in the place of an image: one layer.
    pub(super) async fn state_of_files(
        self: &Arc<Self>,
        source: &Source,
        platform: &Platform,
    ) -> Result<State> {
        let files = self.files(source).await?;
        let mut state = State::scratch(platform);
        let name = "[internal] load a context as image";
        let vertex = Pending::new(name);
        self.tell(vertex.started()).await;
        let mut line = super::dispatch::Line {
            label: String::new(),
            number: 0,
            total: 0,
            previous: None,
            no_cache: true,
            platform: None,
        };
        let cached = Cached {
            key: key("context", &vertex.digest)?,
            aliases: Vec::new(),
            description: name.to_owned(),
            link: false,
            ignore: true,
        };
        let (solve, worker) = (Arc::clone(self), Arc::clone(self.plan.builder.worker()));
        let make = |workspace: Workspace| async move {
            let permit = solve.plan.builder.permit().await?;
            blocking(move || {
                let root = worker.mount(&[], Some(workspace.writable()))?;
                let options = Options {
                    owner: Some((0, 0)),
                    mtime: solve.epoch,
                    skip: files.skip(),
                    chmod: None,
                };
                let source = files.open()?;
                Copier::new(root.as_fd(), options, &solve.plan.cancelled).copy(source.as_fd(), b"/", b"/")?;
                drop(root);
                Ok((workspace, permit))
            })
            .await
        };
        self.layer(&mut state, &mut line, vertex, cached, make).await?;
        Ok(state)
    }
}
