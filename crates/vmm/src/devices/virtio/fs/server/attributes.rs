//! Attributes: GETATTR, SETATTR, STATFS.

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use super::super::abi::{self, AttrOut, GetattrIn, SetattrIn, StatfsOut};
use super::worker::FdName;
use super::{Answer, Call, Server, inodes};

impl Server {
    pub(super) fn getattr(&self, call: &mut Call<'_>) -> Answer {
        let arguments: GetattrIn = call.arguments()?;
        let inode = self.node(call)?;
        let stat = if arguments.getattr_flags & abi::GETATTR_FH != 0 {
            inodes::stat(self.handles.get(arguments.fh)?.file(), c"")?
        } else {
            inodes::stat(&*self.inodes.descriptor(&inode)?, c"")?
        };
        self.answer_attr(call, &stat)
    }

    fn answer_attr(&self, call: &mut Call<'_>, stat: &rustix::fs::Statx) -> Answer {
        call.answer(&AttrOut {
            attr_valid: self.validity(),
            attr: self.attr(stat),
            ..Default::default()
        })
    }

    pub(super) fn setattr(&self, call: &mut Call<'_>) -> Answer {
        let wanted: SetattrIn = call.arguments()?;
        self.writable()?;
        let inode = self.node(call)?;
        let file = self.inodes.descriptor(&inode)?;
        let name = FdName::of(&*file);
        let valid = wanted.valid;
        if valid & (abi::FATTR_UID | abi::FATTR_GID) != 0 {
            // `-1` would mean "leave it": no one is that user.
            if valid & abi::FATTR_UID != 0 && wanted.uid == u32::MAX
                || valid & abi::FATTR_GID != 0 && wanted.gid == u32::MAX
            {
                return Err(Errno::INVAL);
            }
            let uid = (valid & abi::FATTR_UID != 0).then(|| Uid::from_raw(wanted.uid));
            let gid = (valid & abi::FATTR_GID != 0).then(|| Gid::from_raw(wanted.gid));
            // Set-user-ID and set-group-ID bits and capabilities go with the old owner: the host's kernel sees to it.
            rustix::fs::chownat(&*file, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if valid & abi::FATTR_MODE != 0 {
            if inode.kind == libc::S_IFLNK {
                return Err(Errno::OPNOTSUPP);
            }
            let mode = Mode::from_raw_mode(wanted.mode & 0o7777);
            rustix::fs::chmod(name.path(), mode)?;
        }
        if valid & abi::FATTR_SIZE != 0 {
            let kill = valid & abi::FATTR_KILL_SUIDGID != 0;
            call.worker.without_fsetid(call.header.gid, kill, || {
                if valid & abi::FATTR_FH != 0 {
                    let handle = self.handles.get(wanted.fh)?;
                    return rustix::fs::ftruncate(handle.regular()?, wanted.size);
                }
                if !inode.is_regular() {
                    return Err(Errno::INVAL);
                }
                let open = call.worker.reopen(&*file, OFlags::WRONLY)?;
                rustix::fs::ftruncate(open, wanted.size)
            })?;
        }
        if valid & (abi::FATTR_ATIME | abi::FATTR_MTIME) != 0 {
            let times = Timestamps {
                last_access: time(
                    valid & abi::FATTR_ATIME != 0,
                    valid & abi::FATTR_ATIME_NOW != 0,
                    wanted.atime,
                    wanted.atimensec,
                )?,
                last_modification: time(
                    valid & abi::FATTR_MTIME != 0,
                    valid & abi::FATTR_MTIME_NOW != 0,
                    wanted.mtime,
                    wanted.mtimensec,
                )?,
            };
            rustix::fs::utimensat(rustix::fs::CWD, name.path(), &times, AtFlags::empty())?;
        }
        let stat = inodes::stat(&*file, c"")?;
        self.answer_attr(call, &stat)
    }

    pub(super) fn statfs(&self, call: &mut Call<'_>) -> Answer {
        let inode = self.node(call)?;
        let stat = rustix::fs::fstatfs(&*self.inodes.descriptor(&inode)?)?;
        let frsize = if stat.f_frsize != 0 {
            stat.f_frsize
        } else {
            stat.f_bsize
        };
        call.answer(&StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: u32::try_from(stat.f_bsize).unwrap_or(4096),
            namelen: u32::try_from(stat.f_namelen).unwrap_or(255),
            frsize: u32::try_from(frsize).unwrap_or(4096),
            ..Default::default()
        })
    }
}

/// What `utimensat` takes for one of the two times.
fn time(valid: bool, now: bool, seconds: u64, nanoseconds: u32) -> Result<Timespec, Errno> {
    let tv_nsec = match (valid, now) {
        (false, _) => rustix::fs::UTIME_OMIT,
        (true, true) => rustix::fs::UTIME_NOW,
        // Larger ones have special meanings.
        (true, false) if nanoseconds >= 1_000_000_000 => return Err(Errno::INVAL),
        (true, false) => nanoseconds.into(),
    };
    Ok(Timespec {
        tv_sec: seconds as i64,
        tv_nsec,
    })
}
