//! Open files and directories: what is read, written and listed.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::PoisonError;

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;
use vm_memory::ByteValued;

use super::super::Sharing;
use super::super::abi::{
    self, CopyFileRangeIn, CreateIn, Dirent, EntryOut, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut,
    OpenIn, OpenOut, ReadIn, ReleaseIn, WriteIn, WriteOut,
};
use super::inodes::Inode;
use super::worker::{read_vectored, write_vectored};
use super::{Answer, Call, PATH_MAX, Server, component};

/// The most bytes of one answer to READDIR: the kernel asks for a page, or for 32.
const READDIR_MAX: usize = 128 << 10;

/// What a guest may say when it opens a file; all else is its own affair or has no meaning here.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC)
    .union(OFlags::DIRECT)
    .union(OFlags::NOATIME);

impl Server {
    /// How a file is to be opened here when the guest opens it with `flags`.
    fn open_flags(&self, flags: u32) -> Result<OFlags, Errno> {
        let mut flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let access = flags & OFlags::ACCMODE;
        if access == OFlags::ACCMODE {
            return Err(Errno::INVAL);
        }
        if self.options.read_only && (access != OFlags::RDONLY || flags.contains(OFlags::TRUNC)) {
            return Err(Errno::ROFS);
        }
        if self.agreed(abi::WRITEBACK_CACHE) {
            // Pages that are written in part are read first.
            if access == OFlags::WRONLY {
                flags = (flags - OFlags::ACCMODE) | OFlags::RDWR;
            }
            // The cache has its own idea of alignment.
            flags -= OFlags::DIRECT;
        }
        // O_APPEND stays with the guest: positions are the request's, see `write`.
        Ok(flags)
    }

    /// What the guest's kernel may do with the pages it has of a file.
    fn open_answer(&self, fh: u64) -> OpenOut {
        OpenOut {
            fh,
            open_flags: match self.options.sharing {
                Sharing::Exclusive => abi::FOPEN_KEEP_CACHE,
                Sharing::Shared => 0,
            },
            padding: 0,
        }
    }

    pub(super) fn open(&self, call: &mut Call<'_>) -> Answer {
        let arguments: OpenIn = call.arguments()?;
        let inode = self.node(call)?;
        let fh = self.open_inode(call, &inode, arguments.flags, arguments.open_flags)?;
        call.answer(&self.open_answer(fh))
    }

    fn open_inode(
        &self,
        call: &Call<'_>,
        inode: &std::sync::Arc<Inode>,
        flags: u32,
        open_flags: u32,
    ) -> Result<u64, Errno> {
        if !inode.is_regular() {
            return Err(if inode.is_directory() {
                Errno::ISDIR
            } else {
                Errno::NXIO
            });
        }
        let flags = self.open_flags(flags)?;
        let file = self.inodes.descriptor(inode)?;
        let kill = open_flags & abi::OPEN_KILL_SUIDGID != 0 && flags.contains(OFlags::TRUNC);
        let open = call
            .worker
            .without_fsetid(call.header.gid, kill, || call.worker.reopen(&*file, flags))?;
        self.handles.add(open)
    }

    pub(super) fn create(&self, call: &mut Call<'_>) -> Answer {
        let arguments: CreateIn = call.arguments()?;
        let bytes = call.rest(PATH_MAX)?;
        let name = component(&mut &bytes[..])?;
        self.writable()?;
        let directory = self.node(call)?;
        let flags = self.open_flags(arguments.flags)?;
        let mode = Mode::from_raw_mode(arguments.mode & 0o7777);
        let parent = self.inodes.descriptor(&directory)?;
        // Exclusively, so that nothing that is there is opened: it could be a pipe.
        let made = call.worker.as_user(call.header.uid, call.header.gid, || {
            rustix::fs::openat(
                &*parent,
                name,
                flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC,
                mode,
            )
        });
        let exclusive = arguments.flags & libc::O_EXCL as u32 != 0;
        let (inode, stat, fh) = match made {
            Ok(open) => {
                let path = call.worker.reopen(&open, OFlags::PATH)?;
                let (inode, stat) = self.inodes.adopt_at(path, &directory, name)?;
                (inode, stat, self.handles.add(open))
            }
            Err(Errno::EXIST) if !exclusive => {
                let (inode, stat) = self.inodes.lookup(&directory, name)?;
                let fh = self.open_inode(call, &inode, arguments.flags, arguments.open_flags);
                (inode, stat, fh)
            }
            Err(error) => return Err(error),
        };
        self.answer_created(call, &inode, &stat, fh)
    }

    /// The entry and the handle, or neither.
    fn answer_created(
        &self,
        call: &mut Call<'_>,
        inode: &Inode,
        stat: &rustix::fs::Statx,
        fh: Result<u64, Errno>,
    ) -> Answer {
        let fh = match fh {
            Ok(fh) => fh,
            Err(error) => {
                self.inodes.forget(inode.id, 1);
                return Err(error);
            }
        };
        let entry = call.answer(&self.entry(inode, stat))?;
        Ok(entry + call.answer(&self.open_answer(fh))?)
    }

    pub(super) fn tmpfile(&self, call: &mut Call<'_>) -> Answer {
        let arguments: CreateIn = call.arguments()?;
        self.writable()?;
        let directory = self.node(call)?;
        if !directory.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let flags = (self.open_flags(arguments.flags)? - OFlags::ACCMODE) | OFlags::RDWR;
        // With O_EXCL it can never get a name.
        let flags = flags | (OFlags::from_bits_retain(arguments.flags) & OFlags::EXCL);
        let mode = Mode::from_raw_mode(arguments.mode & 0o7777);
        let parent = self.inodes.descriptor(&directory)?;
        let open = call.worker.as_user(call.header.uid, call.header.gid, || {
            rustix::fs::openat(
                &*parent,
                c".",
                (flags - OFlags::TRUNC) | OFlags::TMPFILE | OFlags::CLOEXEC,
                mode,
            )
        })?;
        let path = call.worker.reopen(&open, OFlags::PATH)?;
        let (inode, stat) = self.inodes.adopt(path)?;
        let fh = self.handles.add(open);
        self.answer_created(call, &inode, &stat, fh)
    }

    pub(super) fn read(&self, call: &mut Call<'_>) -> Answer {
        let arguments: ReadIn = call.arguments()?;
        let handle = self.handles.get(arguments.fh)?;
        let size = call.reply.left().min(arguments.size as usize);
        match call.reply.split_front(size) {
            Some(target) if size > 0 => read_vectored(handle.regular()?, &target, arguments.offset),
            _ => Ok(0),
        }
    }

    pub(super) fn write(&self, call: &mut Call<'_>) -> Answer {
        let arguments: WriteIn = call.arguments()?;
        self.writable()?;
        let handle = self.handles.get(arguments.fh)?;
        let size = arguments.size as usize;
        let bytes = call.request.split_front(size).ok_or(Errno::INVAL)?;
        let file = handle.regular()?;
        let cached = arguments.write_flags & abi::WRITE_CACHE != 0;
        // A page that comes from the cache has its place in the file, whatever the handle it goes through was opened for.
        let append = !cached
            && !self.agreed(abi::WRITEBACK_CACHE)
            && OFlags::from_bits_retain(arguments.flags).contains(OFlags::APPEND);
        let kill = arguments.write_flags & abi::WRITE_KILL_SUIDGID != 0;
        let written = if size == 0 {
            0
        } else {
            call.worker.without_fsetid(call.header.gid, kill, || {
                write_vectored(file, &bytes, arguments.offset, append)
            })?
        };
        call.answer(&WriteOut {
            // At most what was asked for, which is 32 bits.
            size: written as u32,
            padding: 0,
        })
    }

    pub(super) fn flush(&self, call: &mut Call<'_>) -> Answer {
        let arguments: FlushIn = call.arguments()?;
        if self.options.sharing == Sharing::Exclusive {
            // There is nothing to do on a file system of the host's own, so it need not ask.
            return Err(Errno::NOSYS);
        }
        // A file system over a network says at `close` what went wrong: close a copy.
        let handle = self.handles.get(arguments.fh)?;
        let copy = rustix::io::fcntl_dupfd_cloexec(handle.file(), 0)?;
        // SAFETY: `copy` is ours, and not used any more.
        match unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(copy)) } {
            0 => Ok(0),
            _ => Err(Errno::IO),
        }
    }

    pub(super) fn fsync(&self, call: &mut Call<'_>) -> Answer {
        let arguments: FsyncIn = call.arguments()?;
        let handle = self.handles.get(arguments.fh)?;
        if arguments.fsync_flags & abi::FSYNC_FDATASYNC != 0 {
            rustix::fs::fdatasync(handle.file())?;
        } else {
            rustix::fs::fsync(handle.file())?;
        }
        Ok(0)
    }

    pub(super) fn syncfs(&self, call: &mut Call<'_>) -> Answer {
        let inode = self.node(call)?;
        if !inode.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let file = self.inodes.descriptor(&inode)?;
        let open = call.worker.reopen(&*file, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::syncfs(open)?;
        Ok(0)
    }

    pub(super) fn release(&self, call: &mut Call<'_>) -> Answer {
        let arguments: ReleaseIn = call.arguments()?;
        self.handles.remove(arguments.fh)?;
        Ok(0)
    }

    pub(super) fn fallocate(&self, call: &mut Call<'_>) -> Answer {
        let arguments: FallocateIn = call.arguments()?;
        self.writable()?;
        let handle = self.handles.get(arguments.fh)?;
        let mode = FallocateFlags::from_bits(arguments.mode).ok_or(Errno::OPNOTSUPP)?;
        call.worker.without_fsetid(call.header.gid, kills(call), || {
            rustix::fs::fallocate(handle.regular()?, mode, arguments.offset, arguments.length)
        })?;
        Ok(0)
    }

    pub(super) fn lseek(&self, call: &mut Call<'_>) -> Answer {
        let arguments: LseekIn = call.arguments()?;
        let handle = self.handles.get(arguments.fh)?;
        // All others the guest's kernel does without asking; the position of the descriptor is nobody's.
        let position = match arguments.whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(arguments.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(arguments.offset),
            _ => return Err(Errno::INVAL),
        };
        let offset = rustix::fs::seek(handle.regular()?, position)?;
        call.answer(&LseekOut { offset })
    }

    pub(super) fn copy_file_range(&self, call: &mut Call<'_>) -> Answer {
        let arguments: CopyFileRangeIn = call.arguments()?;
        self.writable()?;
        if arguments.flags != 0 {
            return Err(Errno::INVAL);
        }
        let source = self.handles.get(arguments.fh_in)?;
        let target = self.handles.get(arguments.fh_out)?;
        let (mut from, mut to) = (arguments.off_in, arguments.off_out);
        // One call copies 2 GiB at most; the guest goes on with the rest.
        let length = usize::try_from(arguments.len.min(1 << 30)).map_err(|_| Errno::INVAL)?;
        let copied = call.worker.without_fsetid(call.header.gid, kills(call), || {
            rustix::fs::copy_file_range(
                source.regular()?,
                Some(&mut from),
                target.regular()?,
                Some(&mut to),
                length,
            )
        })?;
        call.answer(&WriteOut {
            size: u32::try_from(copied).map_err(|_| Errno::IO)?,
            padding: 0,
        })
    }

    pub(super) fn opendir(&self, call: &mut Call<'_>) -> Answer {
        let _: OpenIn = call.arguments()?;
        let inode = self.node(call)?;
        if !inode.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let file = self.inodes.descriptor(&inode)?;
        let open = call.worker.reopen(&*file, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let fh = self.handles.add_directory(open)?;
        call.answer(&OpenOut {
            fh,
            open_flags: match self.options.sharing {
                Sharing::Exclusive => abi::FOPEN_KEEP_CACHE | abi::FOPEN_CACHE_DIR,
                Sharing::Shared => 0,
            },
            padding: 0,
        })
    }

    pub(super) fn readdir(&self, call: &mut Call<'_>, plus: bool) -> Answer {
        let arguments: ReadIn = call.arguments()?;
        let inode = self.node(call)?;
        let handle = self.handles.get(arguments.fh)?;
        let mut directory = handle.directory()?.lock().unwrap_or_else(PoisonError::into_inner);
        let room = (arguments.size as usize).min(call.reply.left()).min(READDIR_MAX);
        if directory.position != arguments.offset {
            // A position the file system does not know is its affair: it refuses, or starts somewhere.
            let offset = i64::try_from(arguments.offset).map_err(|_| Errno::INVAL)?;
            rustix::fs::seek(handle.file(), SeekFrom::Start(offset as u64))?;
        }
        // Until it is known how far this comes.
        directory.position = u64::MAX;
        // Entries are smaller here than there: all that are read in one go have room, but for READDIRPLUS.
        let mut buffer = vec![MaybeUninit::uninit(); room.clamp(1024, 32 << 10)];
        let mut entries = RawDir::new(handle.file(), &mut buffer);
        let mut out = Vec::with_capacity(room.min(32 << 10));
        let mut position = arguments.offset;
        let mut whole = true;
        // One call of the kernel: it says how much there was.
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let head = if plus { size_of::<EntryOut>() } else { 0 };
            let size = (size_of::<Dirent>() + name.to_bytes().len()).next_multiple_of(8);
            if out.len() + head + size > room {
                whole = false;
                break;
            }
            if plus && !self.looked_up(&inode, name, &mut out)? {
                // It went since it was read, or cannot be looked at: others can.
                position = entry.next_entry_cookie();
                continue;
            }
            position = entry.next_entry_cookie();
            let dirent = Dirent {
                ino: entry.ino(),
                off: position,
                namelen: name.to_bytes().len() as u32,
                kind: kind_of(entry.file_type()),
            };
            out.extend_from_slice(dirent.as_slice());
            out.extend_from_slice(name.to_bytes());
            out.resize(out.len().next_multiple_of(8), 0);
            if entries.is_buffer_empty() && !out.is_empty() {
                break;
            }
        }
        if whole && entries.is_buffer_empty() {
            directory.position = position;
        }
        if out.is_empty() && !whole {
            return Err(Errno::INVAL);
        }
        call.answer_bytes(&out)
    }

    /// Puts what a lookup of `name` would answer into `out`. Whether there is such a thing.
    fn looked_up(
        &self,
        directory: &std::sync::Arc<Inode>,
        name: &CStr,
        out: &mut Vec<u8>,
    ) -> Result<bool, Errno> {
        let entry = if matches!(name.to_bytes(), b"." | b"..") {
            // Not a lookup: number 0.
            EntryOut::default()
        } else {
            match self.inodes.lookup(directory, name) {
                Ok((inode, stat)) => self.entry(&inode, &stat),
                Err(Errno::NOENT) => return Ok(false),
                // No more nodes or descriptors: it is still an entry.
                Err(Errno::NFILE | Errno::MFILE | Errno::ACCESS | Errno::PERM) => EntryOut::default(),
                Err(error) => return Err(error),
            }
        };
        out.extend_from_slice(entry.as_slice());
        Ok(true)
    }
}

/// Whether a change of a file's contents takes its set-user-ID and set-group-ID bits away, where the protocol has no flag that says so
/// and the guest's kernel leaves it to the server all the same: unless root asks, who has the right to keep them (`CAP_FSETID`).
fn kills(call: &Call<'_>) -> bool {
    call.header.uid != 0
}

/// `DT_*` of a directory's entry.
fn kind_of(kind: FileType) -> u32 {
    u32::from(match kind {
        FileType::RegularFile => libc::DT_REG,
        FileType::Directory => libc::DT_DIR,
        FileType::Symlink => libc::DT_LNK,
        FileType::Fifo => libc::DT_FIFO,
        FileType::Socket => libc::DT_SOCK,
        FileType::CharacterDevice => libc::DT_CHR,
        FileType::BlockDevice => libc::DT_BLK,
        FileType::Unknown => libc::DT_UNKNOWN,
    })
}
