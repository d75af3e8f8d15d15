//! The receiving side: makes a directory what the sender's is, asking for what differs.
//!
//! Entries come in the order of a walk, so the directories on the way to the current one are open and everything
//! happens relative to the innermost. A file's contents are collected in a directory of their own
//! and renamed into place when they are complete: a transfer that breaks off leaves whole files only, and the
//! next one goes on from there. Permissions and times of directories come last, when nothing changes them any more.

use std::collections::HashMap;
use std::iter::Peekable;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tokio::sync::mpsc::{Receiver, UnboundedSender};

use crate::mode::{self, Kind};
use crate::order::{Order, check_name};
use crate::tree::{self, Entry};
use crate::{Error, MAX_ENTRIES, Packet, Result, Stat, packet, remove_tree};

/// Files that may be under way at once; senders work on four.
const MAX_OPEN: usize = 128;
const NANOS: i64 = 1_000_000_000;

/// How a tree is received.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReceiveOptions {
    /// Remove what the sender does not have. Otherwise it stays beside what comes.
    pub mirror: bool,
    /// Whose everything becomes, whatever the sender says.
    pub owner: Option<(u32, u32)>,
}

/// What a transfer came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Entries told by the sender.
    pub entries: u32,
    /// Files whose contents were asked for.
    pub files: u32,
    /// Bytes of contents that came.
    pub bytes: u64,
    /// Whether anything here is other than before.
    pub changed: bool,
}

/// The directory in the root in which contents are collected while a transfer runs.
const STAGING: &str = ".vessel-sync";

/// Receives into `root`, which nobody else changes. `packets` is
/// what comes from the sender; `progress` is told the bytes of contents so far. Blocks until the tree is complete.
/// On an error nothing more is sent: the caller tells the other side with [`crate::failure`].
///
/// # Errors
/// A sender that does not keep to the protocol, gives up or is gone; what cannot be made here.
pub fn receive(
    root: BorrowedFd<'_>,
    options: ReceiveOptions,
    packets: &mut Receiver<Packet>,
    out: &UnboundedSender<Packet>,
    progress: &mut dyn FnMut(u64),
) -> Result<Received> {
    // What a transfer left that was killed.
    remove_tree(root, STAGING)?;
    rustix::fs::mkdirat(root, STAGING, Mode::RWXU)
        .map_err(Error::io("cannot make a directory to receive into"))?;
    let staging =
        tree::open_dir(root, STAGING).map_err(Error::io("cannot open the directory to receive into"))?;
    let mut state = State {
        root,
        staging: staging.as_fd(),
        options,
        out,
        order: Order::default(),
        levels: Vec::new(),
        pending: HashMap::new(),
        open: 0,
        links: Vec::new(),
        late: Vec::new(),
        parent: None,
        walked: false,
        done: Received::default(),
    };
    let result = state.run(packets, progress);
    let done = state.done;
    drop(state);
    remove_tree(root, STAGING)?;
    result.map(|()| done)
}

/// An open directory.
struct Level {
    fd: OwnedFd,
    path: String,
    /// What was in it before and is not accounted for yet; empty unless the tree is mirrored.
    before: Peekable<std::vec::IntoIter<Entry>>,
    /// What it is to become; the root is left as it is.
    stat: Option<Stat>,
    /// Whether permissions or times have to be set at the end.
    late: bool,
}

/// A file whose contents were asked for.
struct Pending {
    parent: String,
    name: String,
    stat: Stat,
    file: Option<OwnedFd>,
    written: i64,
}

struct State<'a> {
    root: BorrowedFd<'a>,
    staging: BorrowedFd<'a>,
    options: ReceiveOptions,
    out: &'a UnboundedSender<Packet>,
    order: Order,
    levels: Vec<Level>,
    pending: HashMap<u32, Pending>,
    open: usize,
    /// Further names of files: parent, name, and the path of the first name.
    links: Vec<(String, String, String)>,
    /// Directories whose permissions and times come last, innermost first.
    late: Vec<(String, Stat)>,
    /// The directory that a file was moved to last.
    parent: Option<(String, OwnedFd)>,
    walked: bool,
    done: Received,
}

impl State<'_> {
    fn run(&mut self, packets: &mut Receiver<Packet>, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let fd =
            tree::open_dir(self.root, ".").map_err(Error::io("cannot open the directory to receive into"))?;
        let root = self.level(fd, String::new(), None)?;
        self.levels.push(root);
        while !self.walked || !self.pending.is_empty() {
            let packet = packets.blocking_recv().ok_or(Error::Closed)?;
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketStat) => match packet.stat {
                    _ if self.walked => return Err(Error::protocol("a file comes behind the last one")),
                    Some(stat) => self.entry(stat)?,
                    None => {
                        self.close_levels(0)?;
                        self.walked = true;
                    }
                },
                Ok(PacketType::PacketData) => {
                    self.done.bytes += packet.data.len() as u64;
                    self.data(packet.id, &packet.data)?;
                    progress(self.done.bytes);
                }
                Ok(PacketType::PacketErr) => {
                    return Err(Error::Peer(String::from_utf8_lossy(&packet.data).into_owned()));
                }
                Ok(PacketType::PacketFin) => return Err(Error::protocol("it ends before it is complete")),
                _ => return Err(Error::protocol("a sender sends files and nothing else")),
            }
        }
        self.finish()?;
        self.out
            .send(packet(PacketType::PacketFin))
            .map_err(|_| Error::Closed)?;
        // The sender's own end; when it just goes away everything is here all the same.
        while let Some(packet) = packets.blocking_recv() {
            if packet.r#type == i32::from(PacketType::PacketFin) {
                break;
            }
        }
        Ok(())
    }

    fn level(&self, fd: OwnedFd, path: String, stat: Option<Stat>) -> Result<Level> {
        let mut before = if self.options.mirror {
            tree::list(&fd).map_err(Error::io(format!("cannot list {path:?}")))?
        } else {
            Vec::new()
        };
        if path.is_empty() {
            before.retain(|entry| entry.name.as_bytes() != STAGING.as_bytes());
        }
        Ok(Level {
            fd,
            path,
            before: before.into_iter().peekable(),
            stat,
            late: false,
        })
    }

    /// Leaves directories until `depth` are open. What is left in them from before is gone from the sender's.
    fn close_levels(&mut self, depth: usize) -> Result<()> {
        while self.levels.len() > depth {
            let Some(mut level) = self.levels.pop() else { break };
            for entry in level.before.by_ref() {
                level.late = true;
                self.done.changed = true;
                remove_tree(&level.fd, &entry.name.to_string_lossy())?;
            }
            if let Some(stat) = level.stat.filter(|_| level.late) {
                self.late.push((level.path, stat));
            }
        }
        Ok(())
    }

    fn entry(&mut self, mut stat: Stat) -> Result<()> {
        let id = self.done.entries;
        if id >= MAX_ENTRIES {
            return Err(Error::protocol(format!(
                "there are more than {MAX_ENTRIES} files"
            )));
        }
        self.done.entries += 1;
        let place = self.order.next(&stat.path)?;
        self.close_levels(place.depth)?;
        if let Some((uid, gid)) = self.options.owner {
            (stat.uid, stat.gid) = (uid, gid);
        }
        let kind = mode::kind(stat.mode).ok_or_else(|| {
            Error::protocol(format!("{:?} is of no known type ({:o})", stat.path, stat.mode))
        })?;
        if stat.size < 0 {
            return Err(Error::protocol(format!("{:?} has a negative size", stat.path)));
        }
        let name = place.name;
        if place.depth == 1 && name == STAGING {
            return Err(Error::protocol(format!(
                "{STAGING:?} is a name that is used for the transfer itself"
            )));
        }
        self.remove_before(&name)?;
        let Some(level) = self.levels.last_mut() else {
            return Err(Error::protocol("a file comes behind the last one"));
        };
        let cannot = |doing: &str| Error::io(format!("cannot {doing} {:?}", stat.path));
        let mut old = match tree::stat(&level.fd, &*name) {
            Ok(old) => Some(old),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(cannot("look at")(error)),
        };
        if let Some(there) = &old
            && FileType::from_raw_mode(there.st_mode) != kind.file_type()
            && (kind == Kind::Directory || FileType::from_raw_mode(there.st_mode) == FileType::Directory)
        {
            remove_tree(&level.fd, &name)?;
            level.late = true;
            self.done.changed = true;
            old = None;
        }
        match kind {
            Kind::Directory => {
                if old.is_none() {
                    rustix::fs::mkdirat(&level.fd, &*name, Mode::RWXU)
                        .map_err(cannot("make the directory"))?;
                    level.late = true;
                    self.done.changed = true;
                }
                let fd = tree::open_dir(&level.fd, &*name).map_err(cannot("open"))?;
                self.order.enter(&stat.path)?;
                let late =
                    old.is_none_or(|old| !same_owner(&old, &stat) || tree::modified(&old) != stat.mod_time);
                self.done.changed |= late;
                let mut inner = self.level(fd, stat.path.clone(), Some(stat))?;
                inner.late = late;
                self.levels.push(inner);
                Ok(())
            }
            Kind::File if !stat.linkname.is_empty() => {
                level.late = true;
                self.links.push((level.path.clone(), name, stat.linkname));
                Ok(())
            }
            Kind::File => {
                if let Some(old) = &old
                    && old.st_size == stat.size
                    && tree::modified(old) == stat.mod_time
                    && FileType::from_raw_mode(old.st_mode) == FileType::RegularFile
                {
                    if same_owner(old, &stat) {
                        return Ok(());
                    }
                    if old.st_nlink == 1 {
                        self.done.changed = true;
                        return set_owner(&level.fd, &name, &stat);
                    }
                }
                level.late = true;
                self.done.changed = true;
                self.done.files += 1;
                let pending = Pending {
                    parent: level.path.clone(),
                    name,
                    stat,
                    file: None,
                    written: 0,
                };
                self.pending.insert(id, pending);
                let request = Packet {
                    id,
                    ..packet(PacketType::PacketReq)
                };
                self.out.send(request).map_err(|_| Error::Closed)
            }
            Kind::Symlink | Kind::Fifo | Kind::CharacterDevice | Kind::BlockDevice => {
                if let Some(old) = &old
                    && same_special(&level.fd, &name, old, &stat, kind)
                {
                    return Ok(());
                }
                level.late = true;
                self.done.changed = true;
                special(self.staging, &level.fd, &name, id, &stat, kind)
            }
        }
    }

    /// Removes what was before `name` in the current directory and was not told of.
    fn remove_before(&mut self, name: &str) -> Result<()> {
        let Some(level) = self.levels.last_mut() else {
            return Ok(());
        };
        while let Some(entry) = level
            .before
            .next_if(|entry| entry.name.as_bytes() <= name.as_bytes())
        {
            if entry.name.as_bytes() != name.as_bytes() {
                level.late = true;
                self.done.changed = true;
                remove_tree(&level.fd, &entry.name.to_string_lossy())?;
            }
        }
        Ok(())
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<()> {
        let Some(pending) = self.pending.get_mut(&id) else {
            return Err(Error::protocol(format!(
                "contents of file {id} come, which nobody asked for"
            )));
        };
        let cannot = |doing: &str| Error::io(format!("cannot {doing} {:?}", pending.stat.path));
        let file = match &pending.file {
            Some(file) => file,
            None => {
                if self.open >= MAX_OPEN {
                    return Err(Error::protocol(format!(
                        "more than {MAX_OPEN} files come at once"
                    )));
                }
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(self.staging, id.to_string(), flags, Mode::RUSR | Mode::WUSR)
                    .map_err(cannot("make"))?;
                self.open += 1;
                pending.file.insert(file)
            }
        };
        if !data.is_empty() {
            // A file that grows while it is sent is what it was when it was looked at.
            let room = usize::try_from(pending.stat.size - pending.written).unwrap_or_default();
            let mut rest = &data[..data.len().min(room)];
            while !rest.is_empty() {
                match rustix::io::write(file, rest) {
                    Ok(count) => {
                        pending.written += count as i64;
                        rest = &rest[count..];
                    }
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(cannot("write")(error)),
                }
            }
            return Ok(());
        }
        let name = id.to_string();
        set_metadata(self.staging, &name, &pending.stat).map_err(cannot("set the attributes of"))?;
        let parent = parent(&mut self.parent, self.root, &pending.parent)?;
        rustix::fs::renameat(self.staging, &*name, parent, &*pending.name)
            .map_err(cannot("move into place"))?;
        self.pending.remove(&id);
        self.open -= 1;
        Ok(())
    }

    /// Further names, then permissions and times of directories.
    fn finish(&mut self) -> Result<()> {
        for (at, name, target) in std::mem::take(&mut self.links) {
            let cannot = || Error::io(format!("cannot link {name:?} in {at:?} to {target:?}"));
            let (target_parent, target_name) = target.rsplit_once('/').unwrap_or(("", &target));
            check_name(target_name, &target)?;
            let from = open_below(self.root, target_parent).map_err(cannot())?;
            let source = tree::stat(&from, target_name).map_err(cannot())?;
            if FileType::from_raw_mode(source.st_mode) != FileType::RegularFile {
                return Err(Error::protocol(format!(
                    "{name:?} in {at:?} is a further name of {target:?}, which is no file"
                )));
            }
            let to = parent(&mut self.parent, self.root, &at)?;
            match tree::stat(to, &*name) {
                Ok(there) if (there.st_dev, there.st_ino) == (source.st_dev, source.st_ino) => continue,
                Ok(_) => remove_tree(to, &name)?,
                Err(Errno::NOENT) => {}
                Err(error) => return Err(cannot()(error)),
            }
            rustix::fs::linkat(&from, target_name, to, &*name, AtFlags::empty()).map_err(cannot())?;
            self.done.changed = true;
        }
        for (path, stat) in std::mem::take(&mut self.late) {
            let cannot = || Error::io(format!("cannot set the attributes of {path:?}"));
            let dir = open_below(self.root, &path).map_err(cannot())?;
            set_owner(&dir, ".", &stat)?;
            set_times(dir.as_fd(), ".", &stat).map_err(cannot())?;
        }
        Ok(())
    }
}

/// The directory at a path of the tree, the last one from memory.
fn parent<'a>(
    memory: &'a mut Option<(String, OwnedFd)>,
    root: BorrowedFd<'_>,
    path: &str,
) -> Result<&'a OwnedFd> {
    if memory.as_ref().is_none_or(|(known, _)| known != path) {
        let fd = open_below(root, path).map_err(Error::io(format!("cannot open {path:?}")))?;
        *memory = Some((path.to_owned(), fd));
    }
    match memory {
        Some((_, fd)) => Ok(fd),
        None => Err(Error::Closed),
    }
}

fn open_below(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        root,
        if path.is_empty() { "." } else { path },
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn same_owner(old: &rustix::fs::Stat, stat: &Stat) -> bool {
    old.st_mode & 0o7777 == mode::permissions(stat.mode) && old.st_uid == stat.uid && old.st_gid == stat.gid
}

fn same_special(dir: &OwnedFd, name: &str, old: &rustix::fs::Stat, stat: &Stat, kind: Kind) -> bool {
    if FileType::from_raw_mode(old.st_mode) != kind.file_type() || tree::modified(old) != stat.mod_time {
        return false;
    }
    match kind {
        Kind::Symlink => {
            old.st_uid == stat.uid
                && old.st_gid == stat.gid
                && rustix::fs::readlinkat(dir, name, Vec::new())
                    .is_ok_and(|target| target.as_bytes() == stat.linkname.as_bytes())
        }
        Kind::Fifo => same_owner(old, stat),
        _ => same_owner(old, stat) && Ok(old.st_rdev) == device(stat),
    }
}

fn device(stat: &Stat) -> Result<u64, Errno> {
    let part = |number: i64| u32::try_from(number).map_err(|_| Errno::INVAL);
    Ok(rustix::fs::makedev(part(stat.devmajor)?, part(stat.devminor)?))
}

/// Makes what has no contents, beside its place first.
fn special(
    staging: BorrowedFd<'_>,
    dir: &OwnedFd,
    name: &str,
    id: u32,
    stat: &Stat,
    kind: Kind,
) -> Result<()> {
    let cannot = |doing: &str| Error::io(format!("cannot {doing} {:?}", stat.path));
    let temporary = id.to_string();
    if kind == Kind::Symlink {
        if stat.linkname.is_empty() || stat.linkname.contains('\0') {
            return Err(Error::protocol(format!("the link {:?} leads nowhere", stat.path)));
        }
        rustix::fs::symlinkat(&*stat.linkname, staging, &*temporary).map_err(cannot("make the link"))?;
    } else {
        let number = if kind == Kind::Fifo { Ok(0) } else { device(stat) }.map_err(cannot("make"))?;
        rustix::fs::mknodat(
            staging,
            &*temporary,
            kind.file_type(),
            Mode::RUSR | Mode::WUSR,
            number,
        )
        .map_err(cannot("make"))?;
    }
    let made = set_metadata(staging, &temporary, stat)
        .map_err(cannot("set the attributes of"))
        .and_then(|()| {
            rustix::fs::renameat(staging, &*temporary, dir, name).map_err(cannot("move into place"))
        });
    if made.is_err() {
        let _ = rustix::fs::unlinkat(staging, &*temporary, AtFlags::empty());
    }
    made
}

fn set_owner(dir: &OwnedFd, name: &str, stat: &Stat) -> Result<()> {
    owner(dir.as_fd(), name, stat).map_err(Error::io(format!("cannot set the attributes of {:?}", stat.path)))
}

fn owner(dir: BorrowedFd<'_>, name: &str, stat: &Stat) -> Result<(), Errno> {
    let there = tree::stat(dir, name)?;
    if (there.st_uid, there.st_gid) != (stat.uid, stat.gid) {
        let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if FileType::from_raw_mode(there.st_mode) != FileType::Symlink {
        // Nothing but the receiver changes the tree, so that the name cannot become a link meanwhile.
        rustix::fs::chmodat(
            dir,
            name,
            Mode::from_raw_mode(mode::permissions(stat.mode)),
            AtFlags::empty(),
        )?;
    }
    Ok(())
}

fn set_metadata(dir: BorrowedFd<'_>, name: &str, stat: &Stat) -> Result<(), Errno> {
    owner(dir, name, stat)?;
    set_times(dir, name, stat)
}

fn set_times(dir: BorrowedFd<'_>, name: &str, stat: &Stat) -> Result<(), Errno> {
    let time = Timespec {
        tv_sec: stat.mod_time.div_euclid(NANOS),
        tv_nsec: stat.mod_time.rem_euclid(NANOS),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}
