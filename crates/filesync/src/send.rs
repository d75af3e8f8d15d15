//! The sending side: a walk that looks at everything and reads nothing, then the contents that are asked for.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::sync::mpsc::{Sender, UnboundedReceiver};

use crate::tree::{self, Entry};
use crate::{Error, MAX_DEPTH, MAX_ENTRIES, MAX_PATH, Packet, Result, Stat, mode, packet};

/// Entries are told so many at a time: each hand-over costs more than an entry.
const BATCH: usize = 128;
/// Contents travel in pieces of this size.
const PIECE: usize = 128 * 1024;

/// What a filter says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is sent; a directory is looked into.
    Send,
    /// Not for its own sake, but something in the directory may be.
    Descend,
    /// Neither it nor what is in it.
    Skip,
}

/// Chooses what is sent. Asked in the order of the walk, for every entry of directories that were not skipped.
pub trait Filter {
    /// About an entry, by its path below the root.
    fn verdict(&mut self, path: &str, directory: bool) -> Verdict;
}

/// The filter that sends everything.
#[derive(Debug, Clone, Copy)]
pub struct Everything;

impl Filter for Everything {
    fn verdict(&mut self, _path: &str, _directory: bool) -> Verdict {
        Verdict::Send
    }
}

/// Whose the files are told to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever has them.
    Keep,
    /// The superuser, as build contexts are.
    Root,
}

/// How a tree is sent.
#[derive(Debug, Clone)]
pub struct SendOptions {
    /// Whose the files are told to be.
    pub owner: Owner,
    /// The directory of the receiver's tree that the files are put into; empty: the tree itself.
    pub prefix: String,
    /// No modification time is told that is later, in nanoseconds since 1970.
    pub latest: Option<i64>,
}

/// What a transfer came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Entries told.
    pub entries: u32,
    /// Files whose contents were asked for.
    pub files: u32,
    /// Bytes of contents.
    pub bytes: u64,
}

/// Sends the tree below `root`; `out` takes packets in their order; `requests` is what comes from the
/// receiver. Blocks until the receiver has all it
/// wants. On an error nothing more is sent: the caller tells the other side with [`crate::failure`].
///
/// # Errors
/// What cannot be read or has no name that can be sent, a receiver that gave up or is gone.
pub fn send(
    root: BorrowedFd<'_>,
    filter: &mut dyn Filter,
    options: &SendOptions,
    requests: &mut UnboundedReceiver<Packet>,
    out: &Sender<Vec<Packet>>,
) -> Result<Sent> {
    let mut walk = Walk {
        out,
        options,
        batch: Vec::with_capacity(BATCH),
        next: 0,
        files: HashMap::new(),
        links: HashMap::new(),
    };
    let result = walk.run(root, filter).and_then(|()| {
        walk.batch.push(packet(PacketType::PacketStat));
        walk.flush()
    });
    if let Err(error) = result {
        return Err(told(error, requests));
    }
    let mut sent = Sent {
        entries: walk.next,
        ..Sent::default()
    };
    let mut files = walk.files;
    let mut buffer = vec![0; PIECE];
    loop {
        let request = requests.blocking_recv().ok_or(Error::Closed)?;
        match PacketType::try_from(request.r#type) {
            Ok(PacketType::PacketReq) => {
                let path = files
                    .remove(&request.id)
                    .ok_or_else(|| Error::protocol(format!("there is no file {} to ask for", request.id)))?;
                sent.files += 1;
                sent.bytes += contents(root, &path, request.id, &mut buffer, out)
                    .map_err(|error| told(error, requests))?;
            }
            Ok(PacketType::PacketFin) => {
                // Whether the receiver still listens does not matter any more.
                let _ = out.blocking_send(vec![packet(PacketType::PacketFin)]);
                return Ok(sent);
            }
            Ok(PacketType::PacketErr) => return Err(peer(&request)),
            _ => return Err(Error::protocol("a receiver sends requests and nothing else")),
        }
    }
}

fn peer(packet: &Packet) -> Error {
    Error::Peer(String::from_utf8_lossy(&packet.data).into_owned())
}

/// A receiver that gives up says why before it closes.
fn told(error: Error, requests: &mut UnboundedReceiver<Packet>) -> Error {
    if matches!(error, Error::Closed) {
        while let Ok(request) = requests.try_recv() {
            if request.r#type == i32::from(PacketType::PacketErr) {
                return peer(&request);
            }
        }
    }
    error
}

/// A directory on the way.
struct Level {
    fd: OwnedFd,
    path: String,
    rest: std::vec::IntoIter<Entry>,
    /// Whether the receiver knows of it.
    told: bool,
}

struct Walk<'a> {
    out: &'a Sender<Vec<Packet>>,
    options: &'a SendOptions,
    /// Entries that are told together.
    batch: Vec<Packet>,
    next: u32,
    files: HashMap<u32, String>,
    /// The first paths of files that have several.
    links: HashMap<(u64, u64), String>,
}

impl Walk<'_> {
    fn run(&mut self, root: BorrowedFd<'_>, filter: &mut dyn Filter) -> Result<()> {
        let fd = tree::open_dir(root, ".").map_err(Error::io("cannot open the directory to send"))?;
        self.tell_prefix(&fd)?;
        let mut levels = vec![level(fd, String::new(), true)?];
        while let Some(top) = levels.last_mut() {
            let Some(entry) = top.rest.next() else {
                levels.pop();
                continue;
            };
            let path = join(&top.path, &entry.name)?;
            let mut known = None;
            let directory = match entry.kind {
                FileType::Unknown => {
                    let stat = match tree::stat(&top.fd, &entry.name) {
                        Ok(stat) => stat,
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(Error::io(format!("cannot look at {path:?}"))(error)),
                    };
                    known = Some(stat);
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                kind => kind == FileType::Directory,
            };
            let verdict = filter.verdict(&path, directory);
            if verdict == Verdict::Skip || (verdict == Verdict::Descend && !directory) {
                continue;
            }
            if verdict == Verdict::Send {
                let stat = match known {
                    Some(stat) => stat,
                    None => match tree::stat(&top.fd, &entry.name) {
                        Ok(stat) => stat,
                        // It went away since the directory was listed.
                        Err(Errno::NOENT) => continue,
                        Err(error) => return Err(Error::io(format!("cannot look at {path:?}"))(error)),
                    },
                };
                self.tell_parents(&mut levels)?;
                let Some(top) = levels.last() else { break };
                self.tell(top.fd.as_fd(), &entry.name, &path, &stat)?;
            }
            if directory {
                self.descend(&mut levels, &entry.name, path, verdict == Verdict::Send)?;
            }
        }
        Ok(())
    }

    /// The path in the receiver's tree.
    fn prefixed(&self, path: &str) -> String {
        match (self.options.prefix.as_str(), path) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        }
    }

    /// The directory that the files are put into.
    fn tell_prefix(&mut self, root: &OwnedFd) -> Result<()> {
        if self.options.prefix.is_empty() {
            return Ok(());
        }
        let stat = rustix::fs::fstat(root).map_err(Error::io("cannot look at the directory to send"))?;
        self.tell(root.as_fd(), c".", "", &stat)
    }

    fn descend(&self, levels: &mut Vec<Level>, name: &CString, path: String, told: bool) -> Result<()> {
        if levels.len() >= MAX_DEPTH {
            return Err(Error::Name(format!(
                "{path:?} is deeper than {MAX_DEPTH} directories: leave it out with .dockerignore"
            )));
        }
        let Some(top) = levels.last() else {
            return Ok(());
        };
        match tree::open_dir(&top.fd, name) {
            Ok(fd) => levels.push(level(fd, path, told)?),
            // Replaced or removed since it was looked at.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => {
                return Err(Error::io(format!(
                    "cannot read the directory {path:?} (make it readable or leave it out with .dockerignore)"
                ))(error));
            }
        }
        Ok(())
    }

    /// Directories that were only looked into are told once something in them is sent.
    fn tell_parents(&mut self, levels: &mut [Level]) -> Result<()> {
        for level in levels.iter_mut().filter(|level| !level.told) {
            let stat = rustix::fs::fstat(&level.fd)
                .map_err(Error::io(format!("cannot look at {:?}", level.path)))?;
            self.tell(level.fd.as_fd(), c".", &level.path, &stat)?;
            level.told = true;
        }
        Ok(())
    }

    fn tell(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &std::ffi::CStr,
        path: &str,
        stat: &rustix::fs::Stat,
    ) -> Result<()> {
        let Some(go_mode) = mode::from_system(stat.st_mode) else {
            return Ok(());
        };
        if self.next >= MAX_ENTRIES {
            return Err(Error::Name(format!(
                "there are more than {MAX_ENTRIES} files: leave some out with .dockerignore"
            )));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (uid, gid) = match self.options.owner {
            Owner::Keep => (stat.st_uid, stat.st_gid),
            Owner::Root => (0, 0),
        };
        let mut told = Stat {
            path: self.prefixed(path),
            mode: go_mode,
            uid,
            gid,
            mod_time: match self.options.latest {
                Some(latest) => tree::modified(stat).min(latest),
                None => tree::modified(stat),
            },
            ..Stat::default()
        };
        match kind {
            FileType::Directory => {}
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())
                    .map_err(Error::io(format!("cannot read the link {path:?}")))?;
                told.size = stat.st_size;
                told.linkname = target
                    .into_string()
                    .map_err(|_| Error::Name(format!("the target of the link {path:?} is not UTF-8 text")))?;
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                told.devmajor = i64::from(rustix::fs::major(stat.st_rdev));
                told.devminor = i64::from(rustix::fs::minor(stat.st_rdev));
            }
            _ => told.size = stat.st_size,
        }
        if kind == FileType::RegularFile {
            let known = (stat.st_nlink > 1)
                .then(|| self.links.get(&(stat.st_dev, stat.st_ino)))
                .flatten();
            if let Some(first) = known {
                told.linkname = self.prefixed(first);
                told.size = 0;
            } else {
                if stat.st_nlink > 1 {
                    self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
                }
                self.files.insert(self.next, path.to_owned());
            }
        }
        self.next += 1;
        let packet = Packet {
            stat: Some(told),
            ..packet(PacketType::PacketStat)
        };
        self.batch.push(packet);
        if self.batch.len() < BATCH {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        self.out.blocking_send(batch).map_err(|_| Error::Closed)
    }
}

fn level(fd: OwnedFd, path: String, told: bool) -> Result<Level> {
    let entries = tree::list(&fd).map_err(Error::io(format!("cannot list the directory {path:?}")))?;
    Ok(Level {
        fd,
        path,
        rest: entries.into_iter(),
        told,
    })
}

fn join(parent: &str, name: &CString) -> Result<String> {
    let Ok(name) = name.to_str() else {
        return Err(Error::Name(format!(
            "the name {:?} in {parent:?} is not UTF-8: rename it, or leave it out with .dockerignore",
            name.to_string_lossy()
        )));
    };
    let path = if parent.is_empty() {
        name.to_owned()
    } else {
        format!("{parent}/{name}")
    };
    if path.len() > MAX_PATH {
        return Err(Error::Name(format!(
            "the path {path:?} is longer than {MAX_PATH} bytes"
        )));
    }
    Ok(path)
}

/// Sends a file's contents and their end.
fn contents(
    root: BorrowedFd<'_>,
    path: &str,
    id: u32,
    buffer: &mut [u8],
    out: &Sender<Vec<Packet>>,
) -> Result<u64> {
    let cannot = || {
        Error::io(format!(
            "cannot read {path:?} (make it readable or leave it out with .dockerignore)"
        ))
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // It may have become something that blocks when it is opened.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve);
    let mut total = 0;
    match opened {
        Ok(file) => loop {
            let count = match rustix::io::read(&file, &mut *buffer) {
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(cannot()(error)),
            };
            if count == 0 {
                break;
            }
            total += count as u64;
            data(out, id, buffer[..count].to_vec())?;
        },
        // Removed while the tree is sent: nothing is what there is of it.
        Err(Errno::NOENT) => {}
        Err(error) => return Err(cannot()(error)),
    }
    data(out, id, Vec::new())?;
    Ok(total)
}

fn data(out: &Sender<Vec<Packet>>, id: u32, data: Vec<u8>) -> Result<()> {
    let packet = Packet {
        id,
        data,
        ..packet(PacketType::PacketData)
    };
    out.blocking_send(vec![packet]).map_err(|_| Error::Closed)
}
