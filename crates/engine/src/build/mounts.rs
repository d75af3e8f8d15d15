//! Mounts of a build's processes: everything is handed to the shim as a detached mount, so that no path of the host and
//! none that a container could have changed is looked up again. Secrets are files of a file system in memory that is
//! mounted nowhere else and ends with the process.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use vessel_build::session::Session;
use vessel_build::worker::{Mount, MountSource};
use vessel_runtime::rootfs::{Recursion, copy_of};

use crate::Result;
use crate::container::record::{MountKind, MountRecord};
use crate::error::Context;
use crate::oci_spec::UserMount;

/// Name of the one file of a file system in memory.
const FILE: &str = "file";

/// Sockets that lead to agents of the client.
#[derive(Default)]
pub(super) struct Agents(Vec<(UnixListener, String, Arc<dyn Session>)>);

/// Agents that are served until this is dropped.
pub(super) struct Served(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Agents {
    /// Serves them from now on.
    pub fn serve(self) -> Result<Served> {
        let serve = |(listener, id, session): (UnixListener, String, Arc<dyn Session>)| {
            listener
                .set_nonblocking(true)
                .context(|| "prepare the socket of an agent")?;
            let listener =
                tokio::net::UnixListener::from_std(listener).context(|| "prepare the socket of an agent")?;
            Ok(tokio::spawn(accept(listener, id, session)))
        };
        Ok(Served(self.0.into_iter().map(serve).collect::<Result<_>>()?))
    }
}

async fn accept(listener: tokio::net::UnixListener, id: String, session: Arc<dyn Session>) {
    // They end with this one.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut inside, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (id, session) = (id.clone(), Arc::clone(&session));
        connections.spawn(async move {
            match session.agent(&id).await {
                Ok(mut outside) => {
                    let _ended = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                }
                Err(error) => tracing::debug!("{error}"),
            }
        });
    }
}

/// Makes the mounts ready: what the specification says of them, and the descriptors behind them. `place`: a directory that
/// is this process's.
pub(super) fn prepare(
    asked: Vec<Mount>,
    place: &Path,
    sources: &mut Vec<(PathBuf, OwnedFd)>,
) -> Result<(Vec<UserMount>, Agents)> {
    let mut agents = Agents::default();
    let mut mounts = Vec::with_capacity(asked.len());
    for mount in asked {
        let failed = || format!("cannot mount {}", mount.target);
        let mut record = MountRecord {
            kind: MountKind::Bind,
            destination: mount.target.clone(),
            read_only: mount.read_only,
            ..MountRecord::default()
        };
        let source = match mount.source {
            MountSource::Inside { root, inside } => Some(detach(&root, &inside, place).context(failed)?),
            MountSource::Tmpfs { size } => {
                record.kind = MountKind::Tmpfs;
                record.options = size.map(|size| format!("size={size}")).into_iter().collect();
                None
            }
            MountSource::Secret {
                content,
                mode,
                uid,
                gid,
            } => {
                let memory = memory(mode & 0o111 != 0).context(failed)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat(&memory, FILE, flags, Mode::from_raw_mode(0o600)).context(failed)?;
                rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                    .context(failed)?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).context(failed)?;
                std::fs::File::from(file)
                    .write_all(content.bytes())
                    .context(failed)?;
                let file = inside(&memory).context(failed)?;
                Some(detach(&memory, &file, place).context(failed)?)
            }
            MountSource::Agent {
                id,
                session,
                mode,
                uid,
                gid,
            } => {
                let memory = memory(false).context(failed)?;
                let path = format!("/proc/self/fd/{}/{FILE}", memory.as_raw_fd());
                let listener = UnixListener::bind(path).context(failed)?;
                rustix::fs::chownat(
                    &memory,
                    FILE,
                    Some(Uid::from_raw(uid)),
                    Some(Gid::from_raw(gid)),
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )
                .and_then(|()| {
                    rustix::fs::chmodat(
                        &memory,
                        FILE,
                        Mode::from_raw_mode(mode),
                        rustix::fs::AtFlags::empty(),
                    )
                })
                .context(failed)?;
                agents.0.push((listener, id, session));
                record.read_only = false;
                let socket = inside(&memory).context(failed)?;
                Some(detach(&memory, &socket, place).context(failed)?)
            }
        };
        if let Some(source) = source {
            sources.push((mount.target.clone().into(), source));
        }
        mounts.push(UserMount {
            record,
            // A name that leads nowhere: what is mounted is the descriptor.
            source: PathBuf::from("build"),
            owner: None,
        });
    }
    Ok((mounts, agents))
}

fn inside(memory: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(memory, FILE, flags, Mode::empty())
}

/// A detached mount of something inside another. The kernel copies mounts that are attached only, and a mount that was
/// just made is not: it is attached in a mount namespace that nobody else sees and that ends with the thread.
fn detach(root: &OwnedFd, inside: &OwnedFd, place: &Path) -> rustix::io::Result<OwnedFd> {
    match copy_of(inside, Recursion::One) {
        Err(rustix::io::Errno::INVAL) => {}
        other => return other,
    }
    let copy = || {
        // SAFETY: this thread was made for this and ends right after; no descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        move_mount(root, c"", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        copy_of(inside, Recursion::One)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mounts".into());
        let thread = thread
            .spawn_scoped(scope, copy)
            .map_err(|_| rustix::io::Errno::AGAIN)?;
        thread.join().unwrap_or(Err(rustix::io::Errno::IO))
    })
}

/// A file system in memory that is mounted nowhere. Only the scripts of here-documents are to be executed from one.
fn memory(executable: bool) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "size", "1m")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, !executable);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
