//! Mounts of `RUN`, and where `--from` leads.
//!
//! What a mount is counts for the key of its step, by content where it shows files of a context, by the chain ID where it
//! shows layers, and by its name alone for caches, secrets and agents. It is made ready only when the process runs.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

use super::copy::{beneath, leaves_nothing};
use super::dispatch::absolute;
use super::state::State;
use super::step::{Workspace, hex};
use super::{Cancelled, Files, Solve};
use crate::blocking;
use crate::builder::Builder;
use crate::cache::mounts::Held;
use crate::dockerfile::{Mount as AskedMount, MountType, Origin, Sharing};
use crate::error::{Error, ErrorKind, Result};
use crate::request::NamedContext;
use crate::session::Secret;
use crate::tree::{self, copy::Options, digest::Digester};
use crate::worker::{Mount, MountSource};

/// A mount that is ready.
#[derive(Default)]
pub(super) struct Ready {
    pub mount: Option<Mount>,
    /// A variable of the process.
    pub variable: Option<(String, String)>,
    pub keep: Keep,
}

/// What a mount needs while the process runs.
#[derive(Default)]
pub(super) struct Keep {
    pub cache: Option<Arc<Held>>,
    _files: Option<Arc<Files>>,
    _state: Option<Arc<State>>,
    /// What is written to a `bind` mount with `rw`: gone with the process.
    _written: Option<Workspace>,
}

/// The cache mounts that one build has begun anew, because a step asks for no cache.
#[derive(Default)]
pub(crate) struct Anew(tokio::sync::Mutex<HashSet<String>>);

impl Anew {
    /// Lets what earlier builds left under an ID go, once; steps of this build share what begins then.
    async fn begin(&self, builder: &Arc<Builder>, id: &str) -> Result<()> {
        let mut begun = self.0.lock().await;
        if begun.insert(id.to_owned()) {
            let (builder, id) = (Arc::clone(builder), id.to_owned());
            blocking(move || builder.cache().mounts.forget(&id)).await?;
        }
        Ok(())
    }
}

impl Solve {
    /// What a `--mount` is, and what of it counts for the key. `anew`: what earlier builds left is not to be seen.
    pub(super) async fn plan_mount(
        self: &Arc<Self>,
        state: &State,
        mount: &AskedMount,
        index: usize,
        anew: bool,
    ) -> Result<(Asked, String)> {
        let mut target = mount.target.clone().map(|target| absolute(state, &target));
        if target.as_deref() == Some("/") {
            return Err(Error::invalid(
                "invalid mount target \"/\": a mount cannot cover the root",
            ));
        }
        let need_target = |target: Option<String>| {
            target.ok_or_else(|| Error::invalid(format!("a {} mount needs a target", mount.kind.name())))
        };
        let (what, key) = match mount.kind {
            MountType::Bind => {
                let from = self.mounted(mount).await?;
                let key = from.key(self, mount.source.as_deref().unwrap_or("/")).await?;
                let source = mount.source.clone().unwrap_or_else(|| "/".to_owned());
                (What::Bind { from, source }, key)
            }
            MountType::Cache => {
                let given = need_target(target.clone())?;
                let id = mount.id.clone().unwrap_or(given);
                // As in BuildKit, users that want other owners or permissions have a directory of their own.
                let id = match (mount.uid, mount.gid, mount.mode) {
                    (None, None, None) => id,
                    (uid, gid, mode) => format!(
                        "{id} ({}:{} {:o})",
                        uid.unwrap_or(0),
                        gid.unwrap_or(0),
                        mode.unwrap_or(0o755)
                    ),
                };
                self.mounts(&id);
                let from = match &mount.from {
                    Some(_) => Some(self.mounted(mount).await?),
                    None => None,
                };
                let source = mount.source.clone().unwrap_or_else(|| "/".to_owned());
                let key = match &from {
                    Some(from) => format!("cache {id} {}", from.key(self, &source).await?),
                    None => format!("cache {id}"),
                };
                let what = What::Cache {
                    anew,
                    id,
                    sharing: mount.sharing.unwrap_or(Sharing::Shared),
                    from,
                    source,
                    mode: mount.mode.unwrap_or(0o755),
                    owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
                };
                (what, key)
            }
            MountType::Tmpfs => {
                let size = u64::try_from(mount.size).ok().filter(|&size| size > 0);
                (What::Tmpfs { size }, format!("tmpfs {size:?}"))
            }
            MountType::Secret => {
                let id = [&mount.id, &mount.source].into_iter().flatten().next().cloned();
                let id = match (id, &mount.target) {
                    (Some(id), _) => id,
                    (None, Some(target)) => base(target).to_owned(),
                    (None, None) => return Err(Error::invalid("one of source, target required")),
                };
                let file = target.is_some() || mount.env.is_none();
                if file && target.is_none() {
                    target = Some(format!("/run/secrets/{}", base(&id)));
                }
                let env = mount
                    .env
                    .clone()
                    .map(|env| if env.is_empty() { id.clone() } else { env });
                let key = format!("secret {id} {env:?}");
                let what = What::Secret {
                    file,
                    env,
                    required: mount.required,
                    mode: mount.mode.unwrap_or(0o400),
                    owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
                    id,
                };
                target.get_or_insert_default();
                (what, key)
            }
            MountType::Ssh => {
                let id = mount.id.clone().unwrap_or_else(|| "default".to_owned());
                target.get_or_insert_with(|| format!("/run/buildkit/ssh_agent.{index}"));
                let key = format!("ssh {id}");
                let what = What::Agent {
                    required: mount.required,
                    mode: mount.mode.unwrap_or(0o600),
                    owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
                    id,
                };
                (what, key)
            }
        };
        let asked = Asked {
            index,
            target: need_target(target)?,
            read_only: mount.read_only,
            what,
        };
        Ok((asked, key))
    }

    /// What `from` of a mount means; without it, the build context.
    async fn mounted(self: &Arc<Self>, mount: &AskedMount) -> Result<From> {
        let Some(name) = &mount.from else {
            return Ok(From::Files(self.context().await?));
        };
        self.from(name, false).await
    }

    /// What `--from` or `from=` means.
    pub(super) async fn from(self: &Arc<Self>, name: &str, numbers: bool) -> Result<From> {
        match self
            .plan
            .dockerfile
            .origin(name, numbers)
            .map_err(Error::invalid)?
        {
            Origin::Stage(index) => Ok(From::State(self.stage_for(index).await?)),
            Origin::Image(name) => {
                if let Some(NamedContext::Files(source)) = self.named_context(&name) {
                    return Ok(From::Files(self.files(source).await?));
                }
                let vertex = crate::progress::unique_digest(&name);
                Ok(From::State(
                    self.image(&name, &self.plan.platform, &vertex).await?,
                ))
            }
        }
    }
}

/// Where files come from.
#[derive(Clone)]
pub(super) enum From {
    State(Arc<State>),
    Files(Arc<Files>),
}

impl From {
    /// An open root.
    pub fn open(&self, solve: &Solve) -> Result<OwnedFd> {
        match self {
            Self::State(state) => solve.plan.builder.worker().mount(&state.chain, None),
            Self::Files(files) => files.open(),
        }
    }

    /// An open root in which what an ignore file leaves out is not there.
    fn open_visible(&self, solve: &Solve) -> Result<OwnedFd> {
        match self {
            Self::State(_) => self.open(solve),
            Self::Files(files) => {
                files.open_visible(&solve.plan.builder.cache().temporary(), &solve.plan.cancelled)
            }
        }
    }

    /// The same with a layer on top in which all is written.
    fn open_writable(&self, solve: &Solve, written: &Workspace) -> Result<OwnedFd> {
        let worker = solve.plan.builder.worker();
        match self {
            Self::State(state) => worker.mount(&state.chain, Some(written.writable())),
            Self::Files(files) => {
                let temporary = solve.plan.builder.cache().temporary();
                let path = files.visible(&temporary, &solve.plan.cancelled)?;
                worker.mount_directory(&path, written.writable())
            }
        }
    }

    /// What of it counts for the key of a step that sees a path of it.
    async fn key(&self, solve: &Arc<Solve>, path: &str) -> Result<String> {
        match self {
            Self::State(state) => Ok(format!("layers {:?} {path}", state.top())),
            Self::Files(files) => {
                let (files, path, cancelled) =
                    (Arc::clone(files), path.to_owned(), solve.plan.cancelled.clone());
                blocking(move || {
                    let root = files.open()?;
                    let real = tree::canonical(root.as_fd(), path.as_bytes())?;
                    let missing = || Error::not_found(format!("{path}: not found"));
                    let real = real.ok_or_else(missing)?;
                    if leaves_nothing(root.as_fd(), &real, files.skip().as_ref(), &cancelled)? {
                        return Err(missing());
                    }
                    let options = Options {
                        skip: beneath(files.skip(), &real),
                        ..Options::default()
                    };
                    let mut memory = files.memory();
                    let mut hasher = Sha256::new();
                    Digester {
                        owners: true,
                        options: &options,
                        memory: Some(&mut memory),
                        cancelled: &cancelled,
                        read: 0,
                    }
                    .path(root.as_fd(), path.as_bytes(), b"", &mut hasher)?;
                    drop(memory);
                    files.keep_memory();
                    Ok(hex(&hasher.finalize()))
                })
                .await
            }
        }
    }

    /// Fetches what of it is owed.
    pub async fn obtain(&self, solve: &Arc<Solve>) -> Result<()> {
        match self {
            Self::State(state) => solve.obtain(state).await,
            Self::Files(_) => Ok(()),
        }
    }

    fn keep(&self) -> Keep {
        match self {
            Self::State(state) => Keep {
                _state: Some(Arc::clone(state)),
                ..Keep::default()
            },
            Self::Files(files) => Keep {
                _files: Some(Arc::clone(files)),
                ..Keep::default()
            },
        }
    }
}

/// A mount that is asked for.
pub(super) struct Asked {
    /// Its place in the instruction.
    pub index: usize,
    pub target: String,
    pub read_only: bool,
    what: What,
}

enum What {
    Inline(String),
    Bind {
        from: From,
        source: String,
    },
    Cache {
        /// Whether the directory begins anew with this build.
        anew: bool,
        id: String,
        sharing: Sharing,
        from: Option<From>,
        source: String,
        mode: u32,
        owner: (u32, u32),
    },
    Tmpfs {
        size: Option<u64>,
    },
    Secret {
        id: String,
        file: bool,
        env: Option<String>,
        required: bool,
        mode: u32,
        owner: (u32, u32),
    },
    Agent {
        id: String,
        required: bool,
        mode: u32,
        owner: (u32, u32),
    },
}

impl Asked {
    /// A script of the Dockerfile that is executed.
    pub fn script(name: &str, content: String) -> Self {
        Self {
            index: 0,
            target: format!("/dev/pipes/{name}"),
            read_only: true,
            what: What::Inline(content),
        }
    }

    /// In which order mounts are taken: by their IDs, so that no two builds wait for each other, and of one ID the
    /// private ones last: they wait for nobody, and everybody for them.
    pub fn order(&self) -> (&str, bool) {
        match &self.what {
            What::Cache { id, sharing, .. } => (id, *sharing == Sharing::Private),
            _ => ("", false),
        }
    }

    /// Makes the mount ready, when the process is about to run. None: it is not there and need not be.
    /// `locked`: the directories that mounts of the same step have to themselves. A second mount of such a one is the
    /// same directory again, since waiting for it would last for ever.
    pub async fn take(
        self,
        solve: &Arc<Solve>,
        locked: &mut HashMap<String, Arc<Held>>,
    ) -> Result<Option<Ready>> {
        let (target, read_only) = (self.target, self.read_only);
        let mount = |source| {
            let target = target.clone();
            Some(Mount {
                target,
                source,
                read_only,
            })
        };
        let ready = match self.what {
            What::Inline(content) => {
                let content = Secret::new(content.into_bytes())?;
                let (mode, uid, gid) = (0o755, 0, 0);
                let mount = mount(MountSource::Secret {
                    content,
                    mode,
                    uid,
                    gid,
                });
                Ready {
                    mount,
                    ..Ready::default()
                }
            }
            What::Bind { from, source } => {
                from.obtain(solve).await?;
                let mut keep = from.keep();
                let shared = Arc::clone(solve);
                let open = blocking(move || {
                    let (root, written) = if read_only {
                        (from.open_visible(&shared)?, None)
                    } else {
                        let written = Workspace::new(&shared.plan.builder.cache().temporary())?;
                        (from.open_writable(&shared, &written)?, Some(written))
                    };
                    let inside = tree::open_in(root.as_fd(), source.as_bytes(), OFlags::PATH)
                        .map_err(|error| Error::io(format!("cannot mount {source}"), error))?;
                    Ok((MountSource::Inside { root, inside }, written))
                });
                let (source, written) = open.await?;
                keep._written = written;
                Ready {
                    mount: mount(source),
                    keep,
                    variable: None,
                }
            }
            What::Cache {
                anew,
                id,
                sharing,
                from,
                source,
                mode,
                owner,
            } => {
                // Also when there is a directory of this ID: a private user may need another, and one can be pruned.
                if let Some(from) = &from {
                    from.obtain(solve).await?;
                }
                let elsewhere = if anew {
                    solve.plan.anew.begin(&solve.plan.builder, &id).await?;
                    None
                } else {
                    Box::pin(solve.mount_elsewhere(&id)).await
                };
                let shared = Arc::clone(solve);
                let fill = move |path: &Path| {
                    if let Some(archive) = &elsewhere {
                        match unpack_cache(&shared, path, &archive.0, mode, owner) {
                            Ok(()) => return Ok(()),
                            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                            Err(error) => tracing::warn!("the cache mount begins anew: {error}"),
                        }
                        tree::copy::remove(path);
                    }
                    fill_cache(&shared, path, from.as_ref(), &source, mode, owner)
                };
                let held = match locked.get(&id) {
                    Some(held) if sharing == Sharing::Locked => Arc::clone(held),
                    _ => Arc::new(solve.plan.builder.cache().mounts.take(&id, sharing, fill).await?),
                };
                if sharing == Sharing::Locked {
                    locked.insert(id, Arc::clone(&held));
                }
                let failed = |error: std::io::Error| Error::io(format!("cannot mount {target}"), error);
                let open = || held.opened.try_clone().map_err(failed);
                let mount = mount(MountSource::Inside {
                    root: open()?,
                    inside: open()?,
                });
                let keep = Keep {
                    cache: Some(held),
                    ..Keep::default()
                };
                Ready {
                    mount,
                    keep,
                    variable: None,
                }
            }
            What::Tmpfs { size } => Ready {
                mount: mount(MountSource::Tmpfs { size }),
                ..Ready::default()
            },
            What::Secret {
                id,
                file,
                env,
                required,
                mode,
                owner,
            } => {
                let Some(content) = solve.plan.session.secret(&id).await? else {
                    return match required {
                        false => Ok(None),
                        true => Err(Error::not_found(format!(
                            "secret {id}: not found: give it with --secret id={id},src=FILE"
                        ))),
                    };
                };
                let text = || {
                    String::from_utf8(content.bytes().to_vec())
                        .ok()
                        .filter(|value| !value.contains('\0'))
                        .ok_or_else(|| {
                            Error::invalid(format!("secret {id} is no text and cannot be a variable"))
                        })
                };
                let variable = match env {
                    Some(name) => Some((name, text()?)),
                    None => None,
                };
                let (uid, gid) = owner;
                let source = MountSource::Secret {
                    content,
                    mode,
                    uid,
                    gid,
                };
                let mount = if file { mount(source) } else { None };
                Ready {
                    mount,
                    variable,
                    ..Ready::default()
                }
            }
            What::Agent {
                id,
                required,
                mode,
                owner,
            } => {
                if !solve.plan.session.has_agent(&id).await? {
                    return match required {
                        false => Ok(None),
                        true => Err(Error::not_found(format!(
                            "unset ssh forward key {id}: give it with --ssh {id}"
                        ))),
                    };
                }
                let (session, (uid, gid)) = (Arc::clone(&solve.plan.session), owner);
                let mount = mount(MountSource::Agent {
                    id,
                    session,
                    mode,
                    uid,
                    gid,
                });
                let variable = Some(("SSH_AUTH_SOCK".to_owned(), target.clone()));
                Ready {
                    mount,
                    variable,
                    ..Ready::default()
                }
            }
        };
        Ok(Some(ready))
    }
}

/// What a new cache directory begins with.
fn fill_cache(
    solve: &Solve,
    path: &Path,
    from: Option<&From>,
    source: &str,
    mode: u32,
    owner: (u32, u32),
) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let fail = |error| Error::io(format!("cannot create {}", path.display()), error);
    std::fs::create_dir(path).map_err(fail)?;
    if let Some(from) = from {
        let root = from.open(solve)?;
        let real = tree::canonical(root.as_fd(), source.as_bytes())?;
        let ignored = real.and_then(|real| beneath(from.ignored(), &real));
        let into = tree::open_root(path)?;
        let options = Options {
            skip: ignored,
            ..Options::default()
        };
        tree::copy::Copier::new(into.as_fd(), options, &solve.plan.cancelled).copy(
            root.as_fd(),
            source.as_bytes(),
            b"/",
        )?;
    }
    chown(path, Some(owner.0), Some(owner.1)).map_err(fail)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(fail)
}

/// What a cache directory begins with that was exported elsewhere.
fn unpack_cache(solve: &Solve, path: &Path, archive: &Path, mode: u32, owner: (u32, u32)) -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, chown};
    let fail = |error| Error::io(format!("cannot create {}", path.display()), error);
    std::fs::create_dir(path).map_err(fail)?;
    let root = tree::open_root(path)?;
    let archive = Cancellable {
        input: std::fs::File::open(archive).map_err(fail)?,
        cancelled: &solve.plan.cancelled,
    };
    let mut options = vessel_image::ExtractOptions::default();
    options.limits.max_bytes = options.limits.max_bytes.min(solve.plan.builder.cache().room());
    let unpacked = vessel_image::unpack_into(root.as_fd(), archive, &options);
    solve.plan.cancelled.check()?;
    unpacked?;
    chown(path, Some(owner.0), Some(owner.1)).map_err(fail)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(fail)
}

/// A file whose reading ends when the build is cancelled.
struct Cancellable<'a> {
    input: std::fs::File,
    cancelled: &'a Cancelled,
}

impl std::io::Read for Cancellable<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        self.cancelled.check().map_err(std::io::Error::other)?;
        self.input.read(out)
    }
}

fn base(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}
