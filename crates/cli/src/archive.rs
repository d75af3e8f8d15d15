//! Tar archives of files here: packed for a container, and unpacked from one.
//!
//! An archive from a container is hostile. Every entry is made by descriptor below the directory that was
//! chosen, through `openat2(2)` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, so no name and no link in the
//! archive leads out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::thread::JoinHandle;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, chmodat, fchmod, futimens,
    linkat, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat, utimensat,
};

/// The first component of every entry gets another name; `.` stands for none.
#[derive(Debug)]
pub struct Rename {
    /// The name in the archive.
    pub from: String,
    /// The name here.
    pub to: String,
}

/// Packs a file or a tree under `name`, in a thread, as it is read.
pub fn pack(path: PathBuf, name: String) -> impl Read + Send + 'static {
    struct Packed {
        pipe: io::Result<PipeReader>,
        packer: Option<JoinHandle<io::Result<()>>>,
    }

    impl Read for Packed {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let pipe = match &mut self.pipe {
                Ok(pipe) => pipe,
                Err(error) => return Err(error.kind().into()),
            };
            let count = pipe.read(out)?;
            // The end may be that of a failure, which must not pass for a whole archive.
            if count == 0
                && !out.is_empty()
                && let Some(packer) = self.packer.take()
            {
                packer
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the files could not be packed")))?;
            }
            Ok(count)
        }
    }

    match io::pipe() {
        Err(error) => Packed {
            pipe: Err(error),
            packer: None,
        },
        Ok((reader, writer)) => {
            let packer = std::thread::spawn(move || {
                let mut builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, writer));
                builder.follow_symlinks(false);
                builder.mode(tar::HeaderMode::Complete);
                if path.symlink_metadata()?.is_dir() {
                    builder.append_dir_all(&name, &path)?;
                } else {
                    builder.append_path_with_name(&path, &name)?;
                }
                let mut out = builder.into_inner()?;
                io::Write::flush(&mut out)
            });
            Packed {
                pipe: Ok(reader),
                packer: Some(packer),
            }
        }
    }
}

/// Unpacks an archive below `directory`. Files belong to the caller; modes and times are those of the archive.
pub fn unpack(archive: impl Read, directory: &Path, rename: Option<&Rename>) -> io::Result<()> {
    let root = openat(
        CWD,
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| at(directory, error))?;
    let mut archive = tar::Archive::new(archive);
    // Directories get their modes and times last: what is made in them changes both.
    let mut directories = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = renamed(&safe(&entry.path()?)?, rename);
        if name.as_os_str().is_empty() {
            continue;
        }
        unpack_entry(&root, &mut entry, &name, rename, &mut directories).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: {}", name.display(), crate::failure::words(&error)),
            )
        })?;
    }
    for (name, mode, mtime) in directories.into_iter().rev() {
        if let Ok(made) = beneath(&root, &name, OFlags::RDONLY | OFlags::DIRECTORY) {
            fchmod(&made, mode)?;
            futimens(&made, &times(mtime))?;
        }
    }
    Ok(())
}

fn at(path: &Path, error: rustix::io::Errno) -> io::Error {
    let error = io::Error::from(error);
    io::Error::new(
        error.kind(),
        format!("{}: {}", path.display(), crate::failure::words(&error)),
    )
}

/// The name without dots; one that leads upwards is refused.
fn safe(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let message = format!(
                    "the archive has an entry that leads out of it: {}",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
    Ok(out)
}

fn renamed(name: &Path, rename: Option<&Rename>) -> PathBuf {
    let Some(rename) = rename else {
        return name.to_path_buf();
    };
    if rename.from == "." {
        return Path::new(&rename.to).join(name);
    }
    match name.strip_prefix(&rename.from) {
        Ok(rest) if rest.as_os_str().is_empty() => PathBuf::from(&rename.to),
        Ok(rest) => Path::new(&rename.to).join(rest),
        Err(_) => name.to_path_buf(),
    }
}

fn beneath(root: &OwnedFd, name: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, name, flags | OFlags::CLOEXEC, Mode::empty(), how)
}

/// The directory of an entry, made when the archive does not have it.
fn parent(root: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let mut path = PathBuf::from(".");
    let directory = name.parent().unwrap_or(Path::new(""));
    match beneath(root, &path.join(directory), OFlags::PATH | OFlags::DIRECTORY) {
        Ok(found) => return Ok(found),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut current = beneath(root, &path, OFlags::PATH | OFlags::DIRECTORY)?;
    for part in directory.components() {
        match mkdirat(&current, part.as_os_str(), Mode::from(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        path.push(part);
        current = beneath(root, &path, OFlags::PATH | OFlags::DIRECTORY)?;
    }
    Ok(current)
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(mtime).unwrap_or(0),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

type Directories = Vec<(PathBuf, Mode, u64)>;

fn unpack_entry(
    root: &OwnedFd,
    entry: &mut tar::Entry<'_, impl Read>,
    name: &Path,
    rename: Option<&Rename>,
    directories: &mut Directories,
) -> io::Result<()> {
    let header = entry.header();
    let kind = header.entry_type();
    let mode = Mode::from(header.mode()? & 0o7777);
    let mtime = header.mtime()?;
    // Only devices have numbers; other entries may leave the fields empty.
    let device = match kind {
        tar::EntryType::Char | tar::EntryType::Block => rustix::fs::makedev(
            header.device_major()?.unwrap_or(0),
            header.device_minor()?.unwrap_or(0),
        ),
        _ => 0,
    };
    let directory = parent(root, name)?;
    let last = name.file_name().unwrap_or(OsStr::new("."));
    if kind.is_dir() {
        match mkdirat(&directory, last, Mode::from(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // What was there before may be a file, or a link to somewhere else.
        beneath(root, name, OFlags::PATH | OFlags::DIRECTORY)?;
        directories.push((name.to_path_buf(), mode, mtime));
        return Ok(());
    }
    match unlinkat(&directory, last, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match kind {
        tar::EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default();
            symlinkat(OsStr::from_bytes(&target), &directory, last)?;
            utimensat(&directory, last, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        tar::EntryType::Link => {
            let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
            let target = renamed(&safe(&target)?, rename);
            let from = parent(root, &target)?;
            let target = target.file_name().ok_or(io::ErrorKind::InvalidData)?;
            linkat(&from, target, &directory, last, AtFlags::empty())?;
        }
        tar::EntryType::Fifo | tar::EntryType::Char | tar::EntryType::Block => {
            let kind = match kind {
                tar::EntryType::Fifo => FileType::Fifo,
                tar::EntryType::Char => FileType::CharacterDevice,
                _ => FileType::BlockDevice,
            };
            mknodat(&directory, last, kind, mode, device)?;
            chmodat(&directory, last, mode, AtFlags::empty())?;
            utimensat(&directory, last, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&directory, last, flags, Mode::from(0o600))?);
            io::copy(entry, &mut file)?;
            fchmod(file.as_fd(), mode)?;
            futimens(file.as_fd(), &times(mtime))?;
        }
        other => {
            let message = format!("an entry of the kind {other:?} cannot be made");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// An archive of `(kind, name, link or content)`. Names are written raw, as an attacker would.
    fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_mtime(1000);
            let content: &[u8] = if *kind == tar::EntryType::Regular {
                data.as_bytes()
            } else {
                b""
            };
            if matches!(kind, tar::EntryType::Symlink | tar::EntryType::Link) {
                header.as_old_mut().linkname[..data.len()].copy_from_slice(data.as_bytes());
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    use tar::EntryType as T;

    #[test]
    fn what_was_packed_comes_out() {
        let from = tempfile::tempdir().unwrap();
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("sub/file"), "content").unwrap();
        std::fs::set_permissions(tree.join("sub/file"), PermissionsExt::from_mode(0o751)).unwrap();
        symlink("sub/file", tree.join("link")).unwrap();
        let to = tempfile::tempdir().unwrap();
        let rename = Rename {
            from: "name".into(),
            to: "other".into(),
        };
        unpack(pack(tree, "name".into()), to.path(), Some(&rename)).unwrap();
        let other = to.path().join("other");
        assert_eq!(std::fs::read_to_string(other.join("link")).unwrap(), "content");
        assert_eq!(
            std::fs::metadata(other.join("sub/file")).unwrap().mode() & 0o7777,
            0o751
        );
    }

    #[test]
    fn a_missing_source_is_an_error() {
        let mut out = Vec::new();
        assert!(
            pack("/no/such/file".into(), "x".into())
                .read_to_end(&mut out)
                .is_err()
        );
    }

    #[test]
    fn contents_of_a_directory() {
        let to = tempfile::tempdir().unwrap();
        let bytes = archive(&[(T::Directory, "./", ""), (T::Regular, "./a", "1")]);
        unpack(&bytes[..], to.path(), None).unwrap();
        assert_eq!(std::fs::metadata(to.path().join("a")).unwrap().mtime(), 1000);
        unpack(
            &bytes[..],
            to.path(),
            Some(&Rename {
                from: ".".into(),
                to: "new".into(),
            }),
        )
        .unwrap();
        assert!(to.path().join("new/a").exists());
    }

    #[test]
    fn nothing_gets_out() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "untouched").unwrap();
        let out = outside.path().to_str().unwrap();
        let secret_name = secret.to_str().unwrap();
        for entries in [
            vec![(T::Regular, "../escaped", "x")],
            vec![(T::Regular, "a/../../escaped", "x")],
            vec![(T::Symlink, "l", out), (T::Regular, "l/secret", "x")],
            vec![
                (T::Symlink, "l", out),
                (T::Directory, "l", ""),
                (T::Regular, "l/secret", "x"),
            ],
            vec![
                (T::Symlink, "l", out),
                (T::Link, "h", "l/secret"),
                (T::Regular, "h", "x"),
            ],
            vec![(T::Link, "h", "../secret")],
        ] {
            let to = tempfile::tempdir_in(outside.path()).unwrap();
            let bytes = archive(&entries);
            assert!(unpack(&bytes[..], to.path(), None).is_err(), "{entries:?}");
            assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
            assert!(!outside.path().join("escaped").exists());
        }
        // A link that is replaced by a file is replaced, not written through.
        let to = tempfile::tempdir().unwrap();
        let bytes = archive(&[(T::Symlink, "l", secret_name), (T::Regular, "l", "x")]);
        unpack(&bytes[..], to.path(), None).unwrap();
        assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
        assert_eq!(std::fs::read_to_string(to.path().join("l")).unwrap(), "x");
    }

    #[test]
    fn absolute_names_stay_inside() {
        let to = tempfile::tempdir().unwrap();
        unpack(&archive(&[(T::Regular, "/etc/x", "1")])[..], to.path(), None).unwrap();
        assert!(to.path().join("etc/x").exists());
    }
}
