//! What the guest has looked up: nodes by number and by what they are on the host.
//!
//! A node has an `O_PATH` descriptor. Descriptors are fewer than the inodes a guest can keep, so beyond a limit those used least recently are
//! closed and opened again by name below their parent when they are needed; what is found there must be the same inode, or the guest
//! gets `ESTALE`. (File handles would need `CAP_DAC_READ_SEARCH` over the host and a file system that can export, which overlayfs is not.)
//! A node whose last known name the guest has taken away keeps its descriptor: nothing else leads to it.
//!
//! One limit remains: while a descriptor is closed its inode can be deleted *by the host* and its number given to another file. That file is then
//! the old node to the guest until its attributes expire. Directories that only the guest changes cannot get there.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::super::abi::ROOT_ID;

/// How deep a chain of closed directories may be: enough for any path (`PATH_MAX`), and an end for circles.
const DEPTH: usize = 4096;

/// What makes an inode of the host one and the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    device: u64,
    inode: u64,
    /// A file system mounted twice is two: what is below differs.
    pub mount: u64,
}

impl Key {
    /// That of what `stat` describes.
    pub fn of(stat: &Statx) -> Self {
        Self {
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: stat.stx_mnt_id,
        }
    }
}

/// The attributes of `name` below `directory`, of `directory` itself when the name is empty. Symbolic links are not followed.
pub fn stat(directory: impl AsFd, name: &CStr) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::EMPTY_PATH;
    rustix::fs::statx(
        directory,
        name,
        flags,
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )
}

/// Opens `name`, one component, for nothing but to be named.
fn open_path(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        directory,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// An open descriptor that is counted.
pub struct Descriptor {
    file: OwnedFd,
    count: Arc<AtomicUsize>,
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a node was seen last.
struct Place {
    parent: Arc<Inode>,
    name: CString,
}

/// An inode the guest knows.
pub struct Inode {
    /// Its number, never used again.
    pub id: u64,
    /// What it is on the host.
    pub key: Key,
    /// `S_IFMT` of its mode, which never changes.
    pub kind: u32,
    descriptor: Mutex<Option<Arc<Descriptor>>>,
    place: Mutex<Option<Place>>,
    /// How often the guest was told its number. Changed with the table locked.
    lookups: AtomicU64,
    used: AtomicBool,
    pinned: AtomicBool,
}

impl Inode {
    /// It is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind == libc::S_IFDIR
    }

    /// It is a regular file.
    pub fn is_regular(&self) -> bool {
        self.kind == libc::S_IFREG
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // Parents one after the other, not one inside the other: a guest can nest directories deeper than a stack.
        let mut next = self
            .place
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        while let Some(place) = next {
            next = Arc::into_inner(place.parent).and_then(|mut parent| {
                parent
                    .place
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take()
            });
        }
    }
}

struct Table {
    by_id: HashMap<u64, Arc<Inode>>,
    by_key: HashMap<Key, Arc<Inode>>,
    next: u64,
}

/// All inodes of a shared directory.
pub struct Inodes {
    table: RwLock<Table>,
    /// Nodes with descriptors, for the search for one to close ("second chance").
    clock: Mutex<VecDeque<Weak<Inode>>>,
    open: Arc<AtomicUsize>,
    /// Descriptors to keep.
    descriptors: usize,
    /// Inodes to keep.
    inodes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inodes {
    /// A table with only the root in it.
    pub fn new(root: OwnedFd, descriptors: usize, inodes: usize) -> Result<Self, Errno> {
        let stat = stat(&root, c"")?;
        let inodes = Self {
            table: RwLock::new(Table {
                by_id: HashMap::new(),
                by_key: HashMap::new(),
                next: ROOT_ID,
            }),
            clock: Mutex::default(),
            open: Arc::default(),
            descriptors: descriptors.max(16),
            inodes: inodes.max(16),
        };
        let root = inodes.insert(root, &stat, None)?;
        root.pinned.store(true, Ordering::Relaxed);
        Ok(inodes)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node of a number.
    ///
    /// # Errors
    /// `ESTALE` when the guest was not told it, or has forgotten it.
    pub fn get(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        self.read().by_id.get(&id).cloned().ok_or(Errno::STALE)
    }

    /// The node of what is `name` in `directory`, whose number the guest will be told.
    pub fn lookup(&self, directory: &Arc<Inode>, name: &CStr) -> Result<(Arc<Inode>, Statx), Errno> {
        let parent = self.descriptor(directory)?;
        let seen = stat(&*parent, name)?;
        if let Some(inode) = self.acquire(&Key::of(&seen)) {
            self.moved_to(&inode, directory, name);
            return Ok((inode, seen));
        }
        let file = open_path(&*parent, name)?;
        let seen = stat(&file, c"")?;
        let place = Place {
            parent: directory.clone(),
            name: name.to_owned(),
        };
        Ok((self.insert(file, &seen, Some(place))?, seen))
    }

    /// The node of an open `O_PATH` descriptor that has no name.
    pub fn adopt(&self, file: OwnedFd) -> Result<(Arc<Inode>, Statx), Errno> {
        let seen = stat(&file, c"")?;
        Ok((self.insert(file, &seen, None)?, seen))
    }

    /// The same for what was just made as `name` in `directory`.
    pub fn adopt_at(
        &self,
        file: OwnedFd,
        directory: &Arc<Inode>,
        name: &CStr,
    ) -> Result<(Arc<Inode>, Statx), Errno> {
        let seen = stat(&file, c"")?;
        let place = Place {
            parent: directory.clone(),
            name: name.to_owned(),
        };
        Ok((self.insert(file, &seen, Some(place))?, seen))
    }

    /// One more lookup of a known node.
    fn acquire(&self, key: &Key) -> Option<Arc<Inode>> {
        // Taking a node away needs the table for writing, so it cannot go between the look and the count.
        let table = self.read();
        let inode = table.by_key.get(key)?.clone();
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Some(inode)
    }

    fn insert(&self, file: OwnedFd, seen: &Statx, place: Option<Place>) -> Result<Arc<Inode>, Errno> {
        let key = Key::of(seen);
        let mut table = self.write();
        if let Some(inode) = table.by_key.get(&key).cloned() {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            drop(table);
            let closed = lock(&inode.descriptor).is_none();
            if closed {
                self.attach(&inode, file);
            }
            if let Some(place) = place {
                self.moved_to(&inode, &place.parent, &place.name);
            }
            return Ok(inode);
        }
        if table.by_id.len() >= self.inodes {
            return Err(Errno::NFILE);
        }
        let inode = Arc::new(Inode {
            id: table.next,
            key,
            kind: u32::from(seen.stx_mode) & libc::S_IFMT,
            descriptor: Mutex::default(),
            place: Mutex::new(place),
            lookups: AtomicU64::new(1),
            used: AtomicBool::new(true),
            pinned: AtomicBool::new(false),
        });
        table.next += 1;
        table.by_id.insert(inode.id, inode.clone());
        table.by_key.insert(key, inode.clone());
        drop(table);
        self.attach(&inode, file);
        Ok(inode)
    }

    /// The guest was told a number it does not know any more `count` times.
    pub fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let mut table = self.write();
        let Some(inode) = table.by_id.get(&id).cloned() else {
            return;
        };
        let left = inode.lookups.load(Ordering::Relaxed).saturating_sub(count);
        inode.lookups.store(left, Ordering::Relaxed);
        if left == 0 {
            table.by_id.remove(&id);
            table.by_key.remove(&inode.key);
        }
        // The node goes, with its descriptor, when the table is free again.
        drop(table);
    }

    /// Forgets all but the root.
    pub fn clear(&self) {
        let mut table = self.write();
        let all: Vec<_> = table.by_id.extract_if(|&id, _| id != ROOT_ID).collect();
        table.by_key.retain(|_, inode| inode.id == ROOT_ID);
        drop(table);
        for (_, inode) in &all {
            // Hosts can move directories into each other between two looks of the guest: such circles end here.
            *lock(&inode.place) = None;
        }
        drop(all);
        lock(&self.clock).retain(|node| node.strong_count() > 0);
    }

    /// The node's descriptor, opened again where it was closed.
    pub fn descriptor(&self, inode: &Arc<Inode>) -> Result<Arc<Descriptor>, Errno> {
        inode.used.store(true, Ordering::Relaxed);
        if let Some(file) = &*lock(&inode.descriptor) {
            return Ok(file.clone());
        }
        // Up to a directory that is open, and down again.
        let mut closed = vec![inode.clone()];
        let mut base = loop {
            let last = &closed[closed.len() - 1];
            let parent = match &*lock(&last.place) {
                Some(place) => place.parent.clone(),
                None => return Err(Errno::STALE),
            };
            let file = lock(&parent.descriptor).clone();
            match file {
                Some(file) => break file,
                None if closed.len() >= DEPTH => return Err(Errno::STALE),
                None => closed.push(parent),
            }
        };
        for node in closed.iter().rev() {
            let file = match &*lock(&node.place) {
                Some(place) => open_path(&*base, &place.name),
                None => Err(Errno::STALE),
            }
            .map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Errno::STALE,
                other => other,
            })?;
            if Key::of(&stat(&file, c"")?) != node.key {
                return Err(Errno::STALE);
            }
            base = self.attach(node, file);
        }
        Ok(base)
    }

    /// Gives a node its descriptor, and closes another's when there are too many.
    fn attach(&self, inode: &Arc<Inode>, file: OwnedFd) -> Arc<Descriptor> {
        let descriptor = {
            let mut slot = lock(&inode.descriptor);
            if let Some(other) = &*slot {
                // Another thread was faster.
                return other.clone();
            }
            self.open.fetch_add(1, Ordering::Relaxed);
            let descriptor = Arc::new(Descriptor {
                file,
                count: self.open.clone(),
            });
            *slot = Some(descriptor.clone());
            descriptor
        };
        inode.used.store(true, Ordering::Relaxed);
        let mut clock = lock(&self.clock);
        clock.push_back(Arc::downgrade(inode));
        // Two rounds find a victim if there is one: the first takes away the marks.
        let mut looks = 2 * clock.len();
        while self.open.load(Ordering::Relaxed) > self.descriptors && looks > 0 {
            looks -= 1;
            let Some(node) = clock.pop_front() else { break };
            let Some(node) = node.upgrade() else { continue };
            let keep = node.used.swap(false, Ordering::Relaxed)
                || node.pinned.load(Ordering::Relaxed)
                || lock(&node.place).is_none();
            let mut slot = lock(&node.descriptor);
            match &*slot {
                // In nobody's hand: it can be closed.
                Some(held) if !keep && Arc::strong_count(held) == 1 => *slot = None,
                Some(_) => {
                    drop(slot);
                    clock.push_back(Arc::downgrade(&node));
                }
                None => {}
            }
        }
        // Forgotten nodes leave their places in the round behind.
        if clock.len() > 2 * self.open.load(Ordering::Relaxed) + 64 {
            clock.retain(|node| node.strong_count() > 0);
        }
        descriptor
    }

    /// A node is now (also) `name` in `directory`.
    fn moved_to(&self, inode: &Arc<Inode>, directory: &Arc<Inode>, name: &CStr) {
        if inode.id == ROOT_ID {
            return;
        }
        let mut place = lock(&inode.place);
        let same = place
            .as_ref()
            .is_some_and(|known| known.name.as_c_str() == name && Arc::ptr_eq(&known.parent, directory));
        if !same {
            let before = place.replace(Place {
                parent: directory.clone(),
                name: name.to_owned(),
            });
            drop(place);
            drop(before);
        }
        inode.pinned.store(false, Ordering::Relaxed);
    }

    /// The guest is about to take away or move what is `name` in `directory`: a node of it that the guest knows stays within reach.
    pub fn hold(&self, directory: &Descriptor, name: &CStr) -> Option<Arc<Inode>> {
        let seen = stat(directory, name).ok()?;
        let inode = self.read().by_key.get(&Key::of(&seen)).cloned()?;
        inode.pinned.store(true, Ordering::Relaxed);
        self.descriptor(&inode).ok()?;
        Some(inode)
    }

    /// What [`Inodes::hold`] held has a new name.
    pub fn renamed(&self, inode: &Arc<Inode>, directory: &Arc<Inode>, name: &CStr) {
        self.moved_to(inode, directory, name);
    }

    /// What [`Inodes::hold`] held was not taken away after all.
    pub fn kept(&self, inode: &Arc<Inode>) {
        if inode.id != ROOT_ID {
            inode.pinned.store(false, Ordering::Relaxed);
        }
    }

    /// How many nodes and how many descriptors there are.
    #[cfg(test)]
    pub fn counts(&self) -> (usize, usize) {
        (self.read().by_id.len(), self.open.load(Ordering::Relaxed))
    }
}
