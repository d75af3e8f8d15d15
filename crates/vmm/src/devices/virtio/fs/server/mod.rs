//! The FUSE server: one request's bytes in, its answer's bytes out, a directory of the host behind it.
//!
//! **What a guest can reach.** It names inodes by numbers it was given and entries by single components: a name that is empty, `.`, `..`, has a `/` or
//! more than 255 bytes is refused. Symbolic links are handed out as text and never followed here. Only regular files and directories
//! are opened: opening a device or a pipe would do something to the host. So nothing outside the directory can be named, and what is mounted
//! inside it is part of it (shown to the guest as a submount).
//!
//! **Who may do what** the guest's kernel decides (virtio-fs always checks by mode and owner itself); the server acts with its own
//! rights, for what it makes with the requester's identity (see [`worker`]). `ACCESS` is therefore not answered.
//!
//! **Not offered**: file locks (they are the guest kernel's own: another host process does not see them), POSIX ACLs, ioctls, `poll`, the DAX
//! window, extended attributes but `user.*` and `security.capability`.

mod attributes;
mod files;
mod handles;
#[cfg(test)]
mod hostile_tests;
mod inodes;
#[cfg(test)]
mod kernel_tests;
mod names;
mod start;
#[cfg(test)]
mod tests;
mod worker;
mod xattrs;

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::Statx;
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::super::Buffers;
use super::abi::{self, InHeader, OutHeader};
use super::{Options, Sharing};
use handles::Handles;
use inodes::{Inode, Inodes};
pub use worker::{Descriptors, Worker};

/// The longest name (`NAME_MAX`).
const NAME_MAX: usize = 255;
/// The longest path, and so the longest text of a symbolic link (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// One shared directory.
pub struct Server {
    options: Options,
    inodes: Inodes,
    handles: Handles,
    /// What INIT agreed on; 0 before.
    features: AtomicU64,
    mount: u64,
}

/// One request on its way.
struct Call<'a> {
    header: InHeader,
    /// What follows the header.
    request: &'a mut Buffers,
    /// Where the answer goes, after its header.
    reply: &'a mut Buffers,
    worker: &'a Worker,
}

/// How many bytes were put behind the answer's header.
type Answer = Result<usize, Errno>;

impl Call<'_> {
    /// The request's fixed part.
    fn arguments<T: ByteValued + Default>(&mut self) -> Result<T, Errno> {
        self.request.read_obj().ok_or(Errno::INVAL)
    }

    /// Answers with a structure.
    fn answer<T: ByteValued>(&mut self, value: &T) -> Answer {
        self.answer_bytes(value.as_slice())
    }

    /// Answers with bytes.
    fn answer_bytes(&mut self, bytes: &[u8]) -> Answer {
        if self.reply.left() < bytes.len() {
            return Err(Errno::RANGE);
        }
        Ok(self.reply.write(bytes))
    }

    /// What is left of the request, if it is at most `limit` bytes.
    fn rest(&mut self, limit: usize) -> Result<Vec<u8>, Errno> {
        if self.request.left() > limit {
            return Err(Errno::NAMETOOLONG);
        }
        let mut bytes = vec![0; self.request.left()];
        self.request.read(&mut bytes);
        Ok(bytes)
    }
}

/// The text up to the next zero byte, which `bytes` loses.
fn text<'b>(bytes: &mut &'b [u8]) -> Result<&'b CStr, Errno> {
    let text = CStr::from_bytes_until_nul(bytes).map_err(|_| Errno::INVAL)?;
    *bytes = &bytes[text.to_bytes_with_nul().len()..];
    Ok(text)
}

/// A text that is one component of a path.
fn component<'b>(bytes: &mut &'b [u8]) -> Result<&'b CStr, Errno> {
    let name = text(bytes)?;
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        long if long.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        slash if slash.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

impl Server {
    /// Shares the directory that `root` is.
    ///
    /// # Errors
    /// When it is no directory, or cannot be looked at.
    pub fn new(root: OwnedFd, options: Options) -> Result<Self, Errno> {
        let stat = inodes::stat(&root, c"")?;
        if u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::NOTDIR);
        }
        Ok(Self {
            inodes: Inodes::new(root, options.descriptors, options.inodes)?,
            handles: Handles::new(options.handles),
            features: AtomicU64::new(0),
            mount: stat.stx_mnt_id,
            options,
        })
    }

    /// The guest has gone: all numbers are invalid, all files closed.
    pub fn reset(&self) {
        self.features.store(0, Ordering::Relaxed);
        self.handles.clear();
        self.inodes.clear();
    }

    /// Answers one request. How many bytes of `reply` were written: none where nothing is to be answered.
    pub fn handle(&self, worker: &Worker, request: &mut Buffers, reply: &mut Buffers) -> usize {
        let available = request.left();
        let Some(header) = request.read_obj::<InHeader>() else {
            return 0;
        };
        let silent = matches!(header.opcode, abi::FORGET | abi::BATCH_FORGET | abi::INTERRUPT);
        let head = reply.split_front(size_of::<OutHeader>());
        if head.is_none() && !silent {
            return 0;
        }
        // What the length leaves out is not part of the request (extensions are at its end; none is agreed on).
        let length = header.len as usize;
        let rest = length
            .checked_sub(size_of::<InHeader>())
            .filter(|_| length <= available)
            .and_then(|rest| request.split_front(rest));
        let answer = match rest {
            Some(mut request) => self.dispatch(&mut Call {
                header,
                request: &mut request,
                reply,
                worker,
            }),
            None => Err(Errno::INVAL),
        };
        let Some(mut head) = head.filter(|_| !silent) else {
            return 0;
        };
        let (body, error) = match answer {
            Ok(body) => (body, 0),
            Err(error) => (0, -error.raw_os_error()),
        };
        let length = size_of::<OutHeader>() + body;
        head.write(
            OutHeader {
                // As long as a chain is, below 4 GiB: bodies are bounded by the largest read.
                len: u32::try_from(length).unwrap_or(u32::MAX),
                error,
                unique: header.unique,
            }
            .as_slice(),
        );
        length
    }

    fn dispatch(&self, call: &mut Call<'_>) -> Answer {
        let opcode = call.header.opcode;
        if self.features.load(Ordering::Relaxed) == 0 && opcode != abi::INIT {
            return Err(Errno::PROTO);
        }
        match opcode {
            abi::INIT => self.init(call),
            abi::DESTROY => {
                self.reset();
                Ok(0)
            }
            abi::LOOKUP => self.lookup(call),
            abi::FORGET => self.forget(call),
            abi::BATCH_FORGET => self.batch_forget(call),
            abi::GETATTR => self.getattr(call),
            abi::SETATTR => self.setattr(call),
            abi::STATFS => self.statfs(call),
            abi::READLINK => self.readlink(call),
            abi::SYMLINK => self.symlink(call),
            abi::MKNOD => self.mknod(call),
            abi::MKDIR => self.mkdir(call),
            abi::UNLINK => self.unlink(call, rustix::fs::AtFlags::empty()),
            abi::RMDIR => self.unlink(call, rustix::fs::AtFlags::REMOVEDIR),
            abi::RENAME => self.rename(call),
            abi::RENAME2 => self.rename2(call),
            abi::LINK => self.link(call),
            abi::OPEN => self.open(call),
            abi::CREATE => self.create(call),
            abi::TMPFILE => self.tmpfile(call),
            abi::READ => self.read(call),
            abi::WRITE => self.write(call),
            abi::FLUSH => self.flush(call),
            abi::FSYNC | abi::FSYNCDIR => self.fsync(call),
            abi::SYNCFS => self.syncfs(call),
            abi::RELEASE | abi::RELEASEDIR => self.release(call),
            abi::FALLOCATE => self.fallocate(call),
            abi::LSEEK => self.lseek(call),
            abi::COPY_FILE_RANGE => self.copy_file_range(call),
            abi::OPENDIR => self.opendir(call),
            abi::READDIR => self.readdir(call, false),
            abi::READDIRPLUS => self.readdir(call, true),
            abi::GETXATTR => self.getxattr(call),
            abi::LISTXATTR => self.listxattr(call),
            abi::SETXATTR => self.setxattr(call),
            abi::REMOVEXATTR => self.removexattr(call),
            abi::IOCTL => Err(Errno::NOTTY),
            // The guest's kernel takes it that the operation does not exist, and does not ask again.
            _ => Err(Errno::NOSYS),
        }
    }

    /// The node a request is about.
    fn node(&self, call: &Call<'_>) -> Result<Arc<Inode>, Errno> {
        self.inodes.get(call.header.nodeid)
    }

    /// Refuses what would change a directory that is shared for reading.
    fn writable(&self) -> Result<(), Errno> {
        if self.options.read_only {
            return Err(Errno::ROFS);
        }
        Ok(())
    }

    fn agreed(&self, feature: u64) -> bool {
        self.features.load(Ordering::Relaxed) & feature != 0
    }

    /// For how many seconds the guest may believe what it was told.
    fn validity(&self) -> u64 {
        match self.options.sharing {
            Sharing::Exclusive => 86_400,
            Sharing::Shared => 1,
        }
    }

    /// The attributes as the protocol has them.
    fn attr(&self, stat: &Statx) -> abi::Attr {
        let submount = self.agreed(abi::SUBMOUNTS)
            && stat.stx_mnt_id != self.mount
            && u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR
            && stat
                .stx_attributes
                .contains(rustix::fs::StatxAttributes::MOUNT_ROOT);
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        abi::Attr {
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            // Times before 1970 are negative: the same bits.
            atime: stat.stx_atime.tv_sec as u64,
            mtime: stat.stx_mtime.tv_sec as u64,
            ctime: stat.stx_ctime.tv_sec as u64,
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: u32::from(stat.stx_mode),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            // The kernel's `new_encode_dev`.
            rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            blksize: stat.stx_blksize,
            flags: if submount { abi::ATTR_SUBMOUNT } else { 0 },
        }
    }

    /// What the guest is told of an entry it has looked up.
    fn entry(&self, inode: &Inode, stat: &Statx) -> abi::EntryOut {
        abi::EntryOut {
            nodeid: inode.id,
            // Numbers are never used twice.
            generation: 0,
            entry_valid: self.validity(),
            attr_valid: self.validity(),
            attr: self.attr(stat),
            ..Default::default()
        }
    }
}
