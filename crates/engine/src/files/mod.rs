//! Files of containers: `cp` both ways, `diff`, `export`.
//!
//! A container's root is reached by descriptor (see [`root`]) and every path of a client is resolved inside it, so
//! that whatever the container does with links meanwhile, nothing outside is read or written (CVE-2018-15664,
//! CVE-2019-14271: nothing of the container's is executed or loaded either).
//!
//! Paths are Docker's: absolute in the container whether they begin with `/` or not; the last component is followed
//! only by a trailing `/` or `/.`; the name of what is packed is the last component as it was written.

mod path;
mod root;
mod user;

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, Stat};
use rustix::io::Errno;
use vessel_api::{Change, ChangeKind, PathStat};
use vessel_image::{Limits, Ownership, PackOptions};

use crate::{Context, Engine, Error, ErrorKind, Result, blocking, time, transfer};
use path::ContainerPath;
use root::Root;

/// An archive that is written when somebody has a place for it. Runs on a thread that may block.
pub struct TarJob {
    write: Box<WriteTar>,
}

type WriteTar = dyn FnOnce(&mut (dyn Write + Send)) -> Result<()> + Send;

impl TarJob {
    pub(crate) fn new(write: impl FnOnce(&mut (dyn Write + Send)) -> Result<()> + Send + 'static) -> Self {
        Self {
            write: Box::new(write),
        }
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// What cannot be read, and a place that takes no more. What was written until then is not an archive.
    pub fn write_to(self, output: &mut (dyn Write + Send)) -> Result<()> {
        (self.write)(output)
    }
}

impl fmt::Debug for TarJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TarJob")
    }
}

/// How to unpack into a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractOptions {
    /// Refuse to replace a directory by something else and the other way round.
    pub no_overwrite_dir_non_dir: bool,
    /// Everything belongs to the container's user instead of who the archive says.
    pub copy_uid_gid: bool,
}

impl Engine {
    /// What is at a path of a container.
    ///
    /// # Errors
    /// No such container; nothing there (404).
    pub async fn container_stat_path(&self, id: &str, path: &str) -> Result<PathStat> {
        let root = Root::of(self, id, false).await?;
        let (id, path) = (id.to_owned(), ContainerPath::parse(path));
        blocking(move || root.enter(|root| stat(root, &path, &id))).await
    }

    /// What is at a path of a container, and an archive of it.
    ///
    /// # Errors
    /// No such container; nothing there (404).
    pub async fn container_archive(&self, id: &str, path: &str) -> Result<(PathStat, TarJob)> {
        let stat = self.container_stat_path(id, path).await?;
        let root = Root::of(self, id, false).await?;
        let path = ContainerPath::parse(path);
        let job = TarJob::new(move |output| {
            root.enter(|root| {
                // `/.` and not nothing for the root itself: clients put the target's name in front.
                let name = if path.name() == "/" { "/." } else { path.name() };
                let options = PackOptions {
                    name: name.as_bytes().to_vec(),
                    follow: path.follows(),
                    ..PackOptions::default()
                };
                Ok(vessel_image::pack(
                    root,
                    path.full().as_bytes(),
                    &options,
                    output,
                )?)
            })
        });
        Ok((stat, job))
    }

    /// Unpacks an archive (compressed or not) into a directory of a container.
    ///
    /// # Errors
    /// No such container; no such directory, or not one; a read-only root or volume; a bad archive. What was
    /// unpacked before an error stays.
    pub async fn container_extract(
        &self,
        id: &str,
        path: &str,
        options: ExtractOptions,
        input: impl Read + Send + 'static,
    ) -> Result<()> {
        let container = self.container(id)?;
        let record = container.record();
        let root = Root::of(self, id, true).await?;
        let shift = match root {
            Root::Running { shift, .. } => shift,
            Root::Stopped { .. } => None,
        };
        let (id, path) = (id.to_owned(), ContainerPath::parse(path));
        let user = options
            .copy_uid_gid
            .then(|| record.config.user.clone())
            .filter(|user| !user.is_empty());
        transfer::run(move || {
            root.enter(|root| {
                let full = path.full();
                let directory = path::open(root, full, OFlags::RDONLY | OFlags::DIRECTORY).map_err(
                    |errno| match errno {
                        Errno::NOTDIR => {
                            Error::invalid(format!("extraction point {full} is not a directory"))
                        }
                        other => not_there(other, full, &id),
                    },
                )?;
                let ownership = match (user, shift) {
                    (Some(user), shift) => {
                        let (uid, gid) = user::resolve(root, &user)?;
                        let shift = shift.unwrap_or_default();
                        Ownership::Fixed {
                            uid: uid.saturating_add(shift),
                            gid: gid.saturating_add(shift),
                        }
                    }
                    // The archive's IDs mean nothing on this side of the map: all of it is the container's root's.
                    (None, Some(shift)) => Ownership::Fixed {
                        uid: shift,
                        gid: shift,
                    },
                    (None, None) => Ownership::Archive,
                };
                let options = vessel_image::ExtractOptions {
                    limits: Limits::default(),
                    ownership,
                    keep_types: options.no_overwrite_dir_non_dir,
                };
                vessel_image::unpack_into(directory.as_fd(), input, &options)
                    .map_err(Error::from)
                    .map_err(|error| match error.message().contains("Read-only file system") {
                        true => Error::new(
                            ErrorKind::Forbidden,
                            format!("{full} of the container is read-only: {error}"),
                        ),
                        false => error,
                    })
            })
        })
        .await
    }

    /// How a container's root differs from its image, sorted by path.
    ///
    /// # Errors
    /// No such container; its layers cannot be read.
    pub async fn container_changes(&self, id: &str) -> Result<Vec<Change>> {
        let container = self.container(id)?;
        let paths = self.container_root(&container).await?;
        blocking(move || {
            let changes = vessel_image::changes(&paths.upper, &paths.lower)?;
            Ok(changes
                .into_iter()
                .map(|change| Change {
                    path: String::from_utf8_lossy(&change.path).into_owned(),
                    kind: match change.kind {
                        vessel_image::ChangeKind::Modified => ChangeKind::Modified,
                        vessel_image::ChangeKind::Added => ChangeKind::Added,
                        vessel_image::ChangeKind::Deleted => ChangeKind::Deleted,
                    },
                })
                .collect())
        })
        .await
    }

    /// An archive of a container's root, volumes left out.
    ///
    /// # Errors
    /// No such container; its layers are gone.
    pub async fn container_export(&self, id: &str) -> Result<TarJob> {
        let root = Root::layers(self, id).await?;
        Ok(TarJob::new(move |output| {
            root.enter(|root| Ok(vessel_image::pack(root, b"/", &PackOptions::default(), output)?))
        }))
    }
}

fn not_there(errno: Errno, path: &str, id: &str) -> Error {
    match errno {
        Errno::NOENT | Errno::NOTDIR => {
            Error::not_found(format!("Could not find the file {path} in container {id}"))
        }
        other => {
            let cause = std::io::Error::from(other);
            Error::system(format!("cannot open {path} in container {id}: {cause}"))
        }
    }
}

fn stat(root: BorrowedFd<'_>, path: &ContainerPath, id: &str) -> Result<PathStat> {
    let mut flags = OFlags::PATH;
    if !path.follows() {
        flags |= OFlags::NOFOLLOW;
    }
    let found = path::open(root, path.full(), flags).map_err(|errno| not_there(errno, path.full(), id))?;
    let status =
        rustix::fs::fstat(&found).context(|| format!("look at {} in container {id}", path.full()))?;
    let link = match FileType::from_raw_mode(status.st_mode) {
        FileType::Symlink => {
            path::target(root, path.full()).context(|| format!("follow {} in container {id}", path.full()))?
        }
        _ => String::new(),
    };
    Ok(PathStat {
        name: path.name().to_owned(),
        size: status.st_size,
        mode: go_mode(&status),
        mtime: time::rfc3339(status.st_mtime * 1_000_000_000 + status.st_mtime_nsec as i64),
        link_target: link,
    })
}

/// Go's `os.FileMode`: permissions as everywhere, types and the upper three bits elsewhere.
fn go_mode(status: &Stat) -> u32 {
    let mode = status.st_mode;
    let mut answer = mode & 0o777;
    answer |= match FileType::from_raw_mode(mode) {
        FileType::Directory => PathStat::GO_DIR,
        FileType::Symlink => PathStat::GO_SYMLINK,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    for (bit, go) in [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)] {
        if mode & bit != 0 {
            answer |= go;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        let directory = tempfile::tempdir().unwrap();
        let look = |name: &str| {
            let path = directory.path().join(name);
            go_mode(&rustix::fs::lstat(&path).unwrap())
        };
        std::fs::create_dir(directory.path().join("d")).unwrap();
        rustix::fs::chmod(
            directory.path().join("d"),
            rustix::fs::Mode::from_raw_mode(0o1755),
        )
        .unwrap();
        std::fs::write(directory.path().join("f"), "").unwrap();
        rustix::fs::chmod(
            directory.path().join("f"),
            rustix::fs::Mode::from_raw_mode(0o4640),
        )
        .unwrap();
        std::os::unix::fs::symlink("f", directory.path().join("l")).unwrap();
        assert_eq!(look("d"), 1 << 31 | 1 << 20 | 0o755);
        assert_eq!(look("f"), 1 << 23 | 0o640);
        assert_eq!(look("l"), 1 << 27 | 0o777);
    }
}
