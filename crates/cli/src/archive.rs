//! Tar archives of files here: packed for a container, and unpacked from one.
//!
//! An archive from a container is hostile. Every entry is made by descriptor below the directory that was
//! chosen, through `openat2(2)` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, so no name and no link in the
//! archive leads out of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
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
                let out = io::BufWriter::with_capacity(64 * 1024, writer);
                let mut packer = Packer {
                    builder: tar::Builder::new(out),
                    links: HashMap::new(),
                };
                packer.tree(path, PathBuf::from(name))?;
                let mut out = packer.builder.into_inner()?;
                out.flush()
            });
            Packed {
                pipe: Ok(reader),
                packer: Some(packer),
            }
        }
    }
}

/// Writes a tree as an archive: files, directories, links of both kinds, fifos and devices, with times to the nanosecond.
struct Packer<W: Write> {
    builder: tar::Builder<W>,
    /// The first name of every file that has more, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn tree(&mut self, path: PathBuf, name: PathBuf) -> io::Result<()> {
        let mut left = vec![(path, name)];
        while let Some((path, name)) = left.pop() {
            let context = |error: io::Error| {
                let words = crate::failure::words(&error);
                io::Error::new(error.kind(), format!("{}: {words}", path.display()))
            };
            let data = path.symlink_metadata().map_err(context)?;
            self.one(&path, &name, &data).map_err(context)?;
            if data.is_dir() {
                for entry in path.read_dir().map_err(context)? {
                    let entry = entry.map_err(context)?;
                    left.push((entry.path(), name.join(entry.file_name())));
                }
            }
        }
        Ok(())
    }

    fn one(&mut self, path: &Path, name: &Path, data: &Metadata) -> io::Result<()> {
        let kind = data.file_type();
        if kind.is_socket() {
            // An archive has no room for one, and a copy would be nobody's.
            crate::output::warn(&format!(
                "WARNING: {} is a socket and is not copied",
                path.display()
            ));
            return Ok(());
        }
        if let Some(time) = pax_time(data.mtime(), data.mtime_nsec()) {
            self.builder.append_pax_extensions([("mtime", time.as_bytes())])?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_metadata(data);
        header.set_mtime(u64::try_from(data.mtime()).unwrap_or(0));
        if !kind.is_file() {
            header.set_size(0);
        }
        if kind.is_block_device() || kind.is_char_device() {
            header.set_device_major(rustix::fs::major(data.rdev()))?;
            header.set_device_minor(rustix::fs::minor(data.rdev()))?;
        }
        if kind.is_symlink() {
            return self.builder.append_link(&mut header, name, path.read_link()?);
        }
        if !kind.is_file() {
            return self.builder.append_data(&mut header, name, io::empty());
        }
        if data.nlink() > 1 {
            let first = self.links.entry((data.dev(), data.ino()));
            if let Entry::Occupied(first) = first {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                return self.builder.append_link(&mut header, name, first.get());
            }
            first.or_insert_with(|| name.to_path_buf());
        }
        let mut content = File::open(path)?.take(data.len());
        self.builder.append_data(&mut header, name, &mut content)?;
        if content.limit() > 0 {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        Ok(())
    }
}

/// A time as pax has it, when whole seconds since 1970 do not say it.
fn pax_time(seconds: i64, nanoseconds: i64) -> Option<String> {
    match (seconds, nanoseconds) {
        (0.., 0) => None,
        (0.., _) => Some(format!("{seconds}.{nanoseconds:09}")),
        (_, 0) => Some(seconds.to_string()),
        // -0.25 s is a second less and 0.75 s more.
        _ => Some(format!(
            "-{}.{:09}",
            (seconds + 1).unsigned_abs(),
            1_000_000_000 - nanoseconds
        )),
    }
}

/// Reads a time as pax has it.
fn read_pax_time(text: &str) -> Option<Timespec> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |text: &str| -> Option<i64> {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten()
    };
    let whole = number(whole)?;
    let nanoseconds = match fraction.get(..fraction.len().min(9))? {
        "" => 0,
        fraction => number(&format!("{fraction:0<9}"))?,
    };
    let (tv_sec, tv_nsec) = match (negative, nanoseconds) {
        (false, _) => (whole, nanoseconds),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

/// When an entry was changed.
fn mtime(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Timespec> {
    let said = entry.pax_extensions()?.and_then(|extensions| {
        let said = extensions
            .flatten()
            .filter(|one| one.key_bytes() == b"mtime")
            .last()?;
        read_pax_time(said.value().ok()?)
    });
    Ok(match said {
        Some(time) => time,
        None => Timespec {
            tv_sec: i64::try_from(entry.header().mtime()?).unwrap_or(0),
            tv_nsec: 0,
        },
    })
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

fn times(time: Timespec) -> Timestamps {
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

type Directories = Vec<(PathBuf, Mode, Timespec)>;

fn unpack_entry(
    root: &OwnedFd,
    entry: &mut tar::Entry<'_, impl Read>,
    name: &Path,
    rename: Option<&Rename>,
    directories: &mut Directories,
) -> io::Result<()> {
    let mtime = mtime(entry)?;
    let header = entry.header();
    let kind = header.entry_type();
    let mode = Mode::from(header.mode()? & 0o7777);
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
    use proptest::prelude::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

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
    fn a_copy_keeps_links_and_times_and_leaves_sockets_out() {
        let from = tempfile::tempdir().unwrap();
        let tree = from.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(tree.join("a"), "one").unwrap();
        std::fs::hard_link(tree.join("a"), tree.join("sub/b")).unwrap();
        let _socket = UnixListener::bind(tree.join("socket")).unwrap();
        mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        let set = |name: &str, time| {
            utimensat(CWD, tree.join(name), &times(time), AtFlags::SYMLINK_NOFOLLOW).unwrap();
        };
        set("a", time(1_600_000_000, 123_456_789));
        set("fifo", time(-2, 250_000_000));
        set("sub", time(1_500_000_000, 5));
        let to = tempfile::tempdir().unwrap();
        unpack(pack(tree, "tree".into()), to.path(), None).unwrap();
        let stat = |name: &str| std::fs::symlink_metadata(to.path().join("tree").join(name)).unwrap();
        let (a, b) = (stat("a"), stat("sub/b"));
        assert_eq!((a.ino(), a.nlink(), a.len()), (b.ino(), 2, 3));
        assert_eq!((a.mtime(), a.mtime_nsec()), (1_600_000_000, 123_456_789));
        assert_eq!(
            (stat("fifo").mtime(), stat("fifo").mtime_nsec()),
            (-2, 250_000_000)
        );
        assert_eq!(
            (stat("sub").mtime(), stat("sub").mtime_nsec()),
            (1_500_000_000, 5)
        );
        assert!(stat("fifo").file_type().is_fifo());
        assert!(!to.path().join("tree/socket").exists());
    }

    proptest! {
        #[test]
        fn pax_times(seconds in -10_000_000_000i64..10_000_000_000, nanoseconds in 0i64..1_000_000_000) {
            let text = pax_time(seconds, nanoseconds).unwrap_or_else(|| seconds.to_string());
            let time = read_pax_time(&text).unwrap();
            prop_assert_eq!((time.tv_sec, time.tv_nsec), (seconds, nanoseconds));
        }

        #[test]
        fn hostile_pax_times(text in "[-0-9.é]{0,25}") {
            let _ = read_pax_time(&text);
        }
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
