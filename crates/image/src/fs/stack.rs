//! What a stack of layers looks like from above, and what each layer did to those below it.
//!
//! Layers are added bottom first. Sizes are those of files' contents, a file with several names once; what a file takes
//! is lost when the last of its names is replaced or deleted by a layer above, since a layer cannot give back anything of
//! another. Times of directories and whiteouts say nothing and are not looked at.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::changes::{is_whiteout, list};
use super::root::MAX_DEPTH;
use super::xattr;
use crate::error::{Error, Result, show};

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket.
    Special,
}

/// A path as the stack shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackFile {
    /// What it is.
    pub kind: FileKind,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u64),
    /// The device, of a device.
    pub device: u64,
    /// The layer it is in, counted from the bottom.
    pub layer: usize,
    inode: u64,
}

impl StackFile {
    fn new(stat: &Stat, layer: usize) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            _ => FileKind::Special,
        };
        Self {
            kind,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: match kind {
                FileKind::File => stat.st_size.cast_unsigned(),
                _ => 0,
            },
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            device: stat.st_rdev,
            layer,
            inode: stat.st_ino,
        }
    }
}

/// A number of files and what they hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many: everything but directories.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// What a layer did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerChanges {
    /// What is new.
    pub added: Amount,
    /// What replaced something; the bytes are those of the new files.
    pub changed: Amount,
    /// Those among them that have the size and time of what they replaced: only owner, mode or attributes can differ.
    pub attributes_only: Amount,
    /// What was deleted; the bytes are those that lower layers hold in vain since.
    pub deleted: Amount,
    /// Bytes of this layer that layers above replaced or deleted.
    pub wasted: u64,
    /// The largest files of the layer, largest first.
    pub largest: Vec<(Vec<u8>, u64)>,
}

/// A path whose contents layers hold in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waste {
    /// Bytes, over all layers.
    pub bytes: u64,
    /// How often it was stored in vain.
    pub times: u64,
    /// Whether it is gone from the top.
    pub deleted: bool,
}

/// The most files of one layer that are named as its largest.
const LARGEST: usize = 10;

/// A stack of layers.
#[derive(Debug, Default)]
pub struct LayerStack {
    roots: Vec<PathBuf>,
    files: BTreeMap<Vec<u8>, StackFile>,
    /// How many names a file still has, of those with several.
    names: HashMap<(usize, u64), u64>,
    layers: Vec<LayerChanges>,
    waste: BTreeMap<Vec<u8>, (u64, u64)>,
}

impl LayerStack {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a layer's directory (in overlayfs form) on top.
    pub fn push(&mut self, root: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open {}", root.display()), e))?;
        self.roots.push(root.to_owned());
        self.layers.push(LayerChanges::default());
        self.walk(fd.as_fd(), b"", MAX_DEPTH)
    }

    /// What is seen from above, by path without a leading slash.
    pub fn files(&self) -> &BTreeMap<Vec<u8>, StackFile> {
        &self.files
    }

    /// What each layer did, bottom first.
    pub fn layers(&self) -> &[LayerChanges] {
        &self.layers
    }

    /// What is held in vain, the largest first.
    pub fn waste(&self) -> Vec<(Vec<u8>, Waste)> {
        let mut out: Vec<_> = self
            .waste
            .iter()
            .map(|(path, &(bytes, times))| {
                let deleted = !self.files.contains_key(path);
                (
                    path.clone(),
                    Waste {
                        bytes,
                        times,
                        deleted,
                    },
                )
            })
            .collect();
        out.sort_by(|a, b| b.1.bytes.cmp(&a.1.bytes).then_with(|| a.0.cmp(&b.0)));
        out
    }

    /// Opens the directory that a path of the stack is in, and gives its name there.
    fn place(&self, path: &[u8], file: &StackFile) -> Result<(OwnedFd, Vec<u8>)> {
        let fail = |e| Error::io(format!("cannot open {}", show(path)), e);
        let root = self.roots.get(file.layer).ok_or_else(|| fail(Errno::NOENT))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut fd = rustix::fs::open(root, flags, Mode::empty()).map_err(fail)?;
        let (parent, name) = super::root::split(path);
        for part in parent.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            fd = rustix::fs::openat(&fd, part, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(fail)?;
        }
        Ok((fd, name.to_vec()))
    }

    /// Whether two paths of two stacks have the same content: bytes of files, targets of links, numbers of devices; and
    /// whether they have the same extended attributes.
    pub fn same(
        &self,
        path: &[u8],
        file: &StackFile,
        other: &Self,
        other_file: &StackFile,
    ) -> Result<(bool, bool)> {
        let stored = |stack: &Self, file: &StackFile| stack.roots.get(file.layer).cloned();
        if stored(self, file) == stored(other, other_file) && file.inode == other_file.inode {
            return Ok((true, true));
        }
        let fail = |e: Errno| Error::io(format!("cannot read {}", show(path)), e);
        let (one, name) = self.place(path, file)?;
        let (two, _) = other.place(path, other_file)?;
        let attributes = xattr::read(one.as_fd(), &name)? == xattr::read(two.as_fd(), &name)?;
        let content = match file.kind {
            _ if file.kind != other_file.kind || file.size != other_file.size => false,
            FileKind::Directory => true,
            FileKind::Special => {
                (file.mode & libc::S_IFMT, file.device) == (other_file.mode & libc::S_IFMT, other_file.device)
            }
            FileKind::Symlink => {
                let read = |fd: &OwnedFd| rustix::fs::readlinkat(fd, &name[..], Vec::new());
                read(&one).map_err(fail)? == read(&two).map_err(fail)?
            }
            FileKind::File => {
                let open = |fd: &OwnedFd| {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    rustix::fs::openat(fd, &name[..], flags, Mode::empty())
                };
                same_bytes(&open(&one).map_err(fail)?, &open(&two).map_err(fail)?).map_err(fail)?
            }
        };
        Ok((content, attributes))
    }

    fn walk(&mut self, fd: BorrowedFd<'_>, path: &[u8], depth: usize) -> Result<()> {
        let depth = depth.checked_sub(1).ok_or_else(|| {
            Error::limit(format!(
                "directories are nested more than {MAX_DEPTH} deep: {}",
                show(path)
            ))
        })?;
        let fail = |e| Error::io(format!("cannot read directory {}", show(path)), e);
        if xattr::is_opaque(fd) {
            self.delete_below(path);
        }
        for name in list(fd).map_err(fail)? {
            let child = if path.is_empty() {
                name.clone()
            } else {
                [path, b"/", &name].concat()
            };
            let stat = rustix::fs::statat(fd, &name[..], AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            if is_whiteout(&stat) {
                self.delete(&child);
                continue;
            }
            self.put(&child, &stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let directory = rustix::fs::openat(fd, &name[..], flags, Mode::empty()).map_err(fail)?;
                self.walk(directory.as_fd(), &child, depth)?;
            }
        }
        Ok(())
    }

    fn top(&mut self) -> Option<&mut LayerChanges> {
        self.layers.last_mut()
    }

    fn put(&mut self, path: &[u8], stat: &Stat) {
        let layer = self.layers.len() - 1;
        let file = StackFile::new(stat, layer);
        let directory = file.kind == FileKind::Directory;
        // Its bytes count with its first name.
        let mut bytes = file.size;
        if !directory && stat.st_nlink > 1 {
            let names = self.names.entry((layer, stat.st_ino)).or_default();
            *names += 1;
            if *names > 1 {
                bytes = 0;
            }
        }
        let before = self.files.get(path).cloned();
        match &before {
            Some(before) if before.kind == FileKind::Directory && !directory => {
                self.delete_below(path);
                self.files.remove(path);
            }
            Some(before) if before.kind != FileKind::Directory => {
                self.lose(path, before);
            }
            _ => {}
        }
        let same = before
            .as_ref()
            .is_some_and(|before| (before.size, before.mtime) == (file.size, file.mtime));
        let replaced = before.is_some_and(|before| before.kind != FileKind::Directory);
        if let Some(changes) = self.top().filter(|_| !directory) {
            match replaced {
                true => changes.changed.add(bytes),
                false => changes.added.add(bytes),
            }
            if replaced && same {
                changes.attributes_only.add(bytes);
            }
            if bytes > 0 {
                let at = changes.largest.partition_point(|(_, size)| *size >= bytes);
                if at < LARGEST {
                    changes.largest.insert(at, (path.to_vec(), bytes));
                    changes.largest.truncate(LARGEST);
                }
            }
        }
        self.files.insert(path.to_vec(), file);
    }

    /// The top layer hides a path and everything below it.
    fn delete(&mut self, path: &[u8]) {
        self.delete_below(path);
        if let Some(file) = self.files.remove(path) {
            self.gone(path, &file);
        }
    }

    fn delete_below(&mut self, path: &[u8]) {
        let below: Vec<Vec<u8>> = if path.is_empty() {
            self.files.keys().cloned().collect()
        } else {
            let (first, after) = ([path, b"/"].concat(), [path, b"0"].concat());
            let range = (Bound::Included(first), Bound::Excluded(after));
            self.files.range(range).map(|(path, _)| path.clone()).collect()
        };
        for path in below {
            if let Some(file) = self.files.remove(&path) {
                self.gone(&path, &file);
            }
        }
    }

    fn gone(&mut self, path: &[u8], file: &StackFile) {
        if file.kind == FileKind::Directory {
            return;
        }
        let bytes = self.lose(path, file);
        if let Some(changes) = self.top() {
            changes.deleted.add(bytes);
        }
    }

    /// A name of a file is not seen any more. How many bytes of its layer are of no use since.
    fn lose(&mut self, path: &[u8], file: &StackFile) -> u64 {
        if let Some(names) = self.names.get_mut(&(file.layer, file.inode)) {
            *names -= 1;
            if *names > 0 {
                return 0;
            }
        }
        if let Some(changes) = self.layers.get_mut(file.layer) {
            changes.wasted += file.size;
        }
        if file.size > 0 {
            let waste = self.waste.entry(path.to_vec()).or_default();
            waste.0 += file.size;
            waste.1 += 1;
        }
        file.size
    }
}

fn same_bytes(one: &OwnedFd, two: &OwnedFd) -> Result<bool, Errno> {
    let fill = |fd: &OwnedFd, buffer: &mut [u8], at: u64| {
        let mut done = 0;
        while done < buffer.len() {
            match rustix::io::pread(fd, &mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    };
    let (mut first, mut second) = (vec![0u8; 128 << 10], vec![0u8; 128 << 10]);
    let mut at = 0;
    loop {
        let n = fill(one, &mut first, at)?;
        if fill(two, &mut second, at)? != n || first[..n] != second[..n] {
            return Ok(false);
        }
        if n < first.len() {
            return Ok(true);
        }
        at += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Layers(tempfile::TempDir);

    impl Layers {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn layer(&self, n: usize) -> PathBuf {
            let path = self.0.path().join(n.to_string());
            fs::create_dir_all(&path).unwrap();
            path
        }

        fn write(&self, layer: usize, name: &str, data: &str) {
            let path = self.layer(layer).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, data).unwrap();
        }

        fn whiteout(&self, layer: usize, name: &str) {
            let path = self.layer(layer).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        }

        fn stack(&self, layers: usize) -> LayerStack {
            let mut stack = LayerStack::new();
            for layer in 0..layers {
                stack.push(&self.layer(layer)).unwrap();
            }
            stack
        }
    }

    #[test]
    fn what_is_replaced_or_deleted_is_wasted() {
        let layers = Layers::new();
        layers.write(0, "kept", "1234567");
        layers.write(0, "replaced", "abc");
        layers.write(0, "d/gone", "12345");
        layers.write(0, "d/other", "x");
        layers.write(1, "replaced", "longer");
        layers.whiteout(1, "d");
        layers.write(1, "new", "n");
        layers.write(2, "replaced", "again");
        let stack = layers.stack(3);
        let amount = |files, bytes| Amount { files, bytes };
        let seen: Vec<_> = stack
            .files()
            .keys()
            .map(|path| String::from_utf8_lossy(path))
            .collect();
        assert_eq!(seen, ["kept", "new", "replaced"]);
        assert_eq!(stack.layers()[0].added, amount(4, 16));
        assert_eq!(stack.layers()[0].wasted, 3 + 5 + 1);
        assert_eq!(stack.layers()[1].added, amount(1, 1));
        assert_eq!(stack.layers()[1].changed, amount(1, 6));
        assert_eq!(stack.layers()[1].deleted, amount(2, 6));
        assert_eq!(stack.layers()[1].wasted, 6);
        assert_eq!(stack.layers()[2].wasted, 0);
        let waste = stack.waste();
        assert_eq!(waste[0].0, b"replaced");
        assert_eq!(
            waste[0].1,
            Waste {
                bytes: 9,
                times: 2,
                deleted: false
            }
        );
        assert!(waste[1].1.deleted);
        assert_eq!(stack.layers()[0].largest[0], (b"kept".to_vec(), 7));
    }

    #[test]
    fn a_file_with_two_names_is_lost_with_the_second() {
        let layers = Layers::new();
        layers.write(0, "one", "12345");
        fs::hard_link(layers.layer(0).join("one"), layers.layer(0).join("two")).unwrap();
        layers.whiteout(1, "one");
        layers.layer(2);
        let stack = layers.stack(2);
        assert_eq!(stack.layers()[0].added, Amount { files: 2, bytes: 5 });
        assert_eq!(stack.layers()[0].wasted, 0);
        layers.whiteout(2, "two");
        assert_eq!(layers.stack(3).layers()[0].wasted, 5);
    }

    #[test]
    fn opaque_directories_and_changes_of_type_hide_what_was_below() {
        let layers = Layers::new();
        layers.write(0, "d/a", "1");
        layers.write(0, "d/e/b", "22");
        layers.write(0, "f/x", "333");
        layers.write(0, "g", "4444");
        layers.write(1, "d/c", "5");
        rustix::fs::setxattr(
            layers.layer(1).join("d"),
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        layers.write(1, "f", "now a file");
        layers.write(1, "g/h", "now a directory");
        let stack = layers.stack(2);
        let seen: Vec<_> = stack
            .files()
            .keys()
            .map(|path| String::from_utf8_lossy(path))
            .collect();
        assert_eq!(seen, ["d", "d/c", "f", "g", "g/h"]);
        assert_eq!(stack.layers()[0].wasted, 1 + 2 + 3 + 4);
    }

    #[test]
    fn a_change_of_owner_is_told_from_one_of_content() {
        let layers = Layers::new();
        layers.write(0, "a", "same");
        layers.write(0, "b", "same");
        for name in ["a", "b"] {
            let to = layers.layer(1).join(name);
            fs::copy(layers.layer(0).join(name), &to).unwrap();
        }
        let time = fs::metadata(layers.layer(0).join("a"))
            .unwrap()
            .modified()
            .unwrap();
        let file = fs::File::options()
            .write(true)
            .open(layers.layer(1).join("a"))
            .unwrap();
        file.set_modified(time).unwrap();
        let file = fs::File::options()
            .write(true)
            .open(layers.layer(1).join("b"))
            .unwrap();
        file.set_modified(time + std::time::Duration::from_secs(1))
            .unwrap();
        let stack = layers.stack(2);
        assert_eq!(stack.layers()[1].changed.files, 2);
        assert_eq!(stack.layers()[1].attributes_only, Amount { files: 1, bytes: 4 });
    }

    #[test]
    fn contents_are_compared() {
        let (one, two) = (Layers::new(), Layers::new());
        for (name, left, right, same) in [("a", "equal", "equal", true), ("d/b", "one", "two", false)] {
            one.write(0, name, left);
            two.write(0, name, right);
            let (left, right) = (one.stack(1), two.stack(1));
            let path = name.as_bytes();
            let (left_file, right_file) = (&left.files()[path], &right.files()[path]);
            assert_eq!(
                left.same(path, left_file, &right, right_file).unwrap(),
                (same, true)
            );
        }
    }
}
