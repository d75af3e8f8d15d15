//! Names: looking up, making, linking, renaming, taking away.

use std::ffi::CStr;

use rustix::fs::{AtFlags, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use super::super::Sharing;
use super::super::abi::{
    BatchForgetIn, EntryOut, ForgetIn, ForgetOne, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn,
};
use super::inodes::Descriptor;
use super::worker::FdName;
use super::{Answer, Call, NAME_MAX, PATH_MAX, Server, component, text};

impl Server {
    pub(super) fn lookup(&self, call: &mut Call<'_>) -> Answer {
        let bytes = call.rest(PATH_MAX)?;
        let name = component(&mut &bytes[..])?;
        let directory = self.node(call)?;
        match self.inodes.lookup(&directory, name) {
            Ok((inode, stat)) => call.answer(&self.entry(&inode, &stat)),
            // Nobody else makes files here: that there is none may be remembered.
            Err(Errno::NOENT) if self.options.sharing == Sharing::Exclusive => call.answer(&EntryOut {
                entry_valid: self.validity(),
                ..Default::default()
            }),
            Err(error) => Err(error),
        }
    }

    pub(super) fn forget(&self, call: &mut Call<'_>) -> Answer {
        let arguments: ForgetIn = call.arguments()?;
        self.inodes.forget(call.header.nodeid, arguments.nlookup);
        Ok(0)
    }

    pub(super) fn batch_forget(&self, call: &mut Call<'_>) -> Answer {
        let arguments: BatchForgetIn = call.arguments()?;
        for _ in 0..arguments.count {
            let one: ForgetOne = call.arguments()?;
            self.inodes.forget(one.nodeid, one.nlookup);
        }
        Ok(0)
    }

    /// Makes something in the directory the request is about, as the one who asks, and answers with its entry.
    fn make(
        &self,
        call: &mut Call<'_>,
        name: &CStr,
        make: impl FnOnce(&Descriptor) -> Result<(), Errno>,
    ) -> Answer {
        self.writable()?;
        let directory = self.node(call)?;
        let parent = self.inodes.descriptor(&directory)?;
        call.worker
            .as_user(call.header.uid, call.header.gid, || make(&parent))?;
        let (inode, stat) = self.inodes.lookup(&directory, name)?;
        call.answer(&self.entry(&inode, &stat))
    }

    pub(super) fn symlink(&self, call: &mut Call<'_>) -> Answer {
        let bytes = call.rest(NAME_MAX + 1 + PATH_MAX)?;
        let mut rest = &bytes[..];
        let name = component(&mut rest)?;
        let target = text(&mut rest)?;
        self.make(call, name, |parent| rustix::fs::symlinkat(target, parent, name))
    }

    pub(super) fn mknod(&self, call: &mut Call<'_>) -> Answer {
        let arguments: MknodIn = call.arguments()?;
        let bytes = call.rest(PATH_MAX)?;
        let name = component(&mut &bytes[..])?;
        let kind = match arguments.mode & libc::S_IFMT {
            libc::S_IFREG => FileType::RegularFile,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            // On the host a device file is a way to the host's devices for whoever reaches it.
            libc::S_IFCHR | libc::S_IFBLK if !self.options.devices => return Err(Errno::PERM),
            libc::S_IFCHR => FileType::CharacterDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            _ => return Err(Errno::INVAL),
        };
        let mode = Mode::from_raw_mode(arguments.mode & 0o7777);
        // The kernel's `new_encode_dev`, the other way round.
        let device = rustix::fs::makedev(
            (arguments.rdev & 0xfff00) >> 8,
            (arguments.rdev & 0xff) | ((arguments.rdev >> 12) & 0xfff00),
        );
        self.make(call, name, |parent| {
            rustix::fs::mknodat(parent, name, kind, mode, device)
        })
    }

    pub(super) fn mkdir(&self, call: &mut Call<'_>) -> Answer {
        let arguments: MkdirIn = call.arguments()?;
        let bytes = call.rest(PATH_MAX)?;
        let name = component(&mut &bytes[..])?;
        let mode = Mode::from_raw_mode(arguments.mode & 0o7777);
        self.make(call, name, |parent| rustix::fs::mkdirat(parent, name, mode))
    }

    pub(super) fn link(&self, call: &mut Call<'_>) -> Answer {
        let arguments: LinkIn = call.arguments()?;
        let bytes = call.rest(PATH_MAX)?;
        let name = component(&mut &bytes[..])?;
        self.writable()?;
        let inode = self.inodes.get(arguments.oldnodeid)?;
        if inode.is_directory() {
            return Err(Errno::PERM);
        }
        let directory = self.node(call)?;
        let parent = self.inodes.descriptor(&directory)?;
        let file = self.inodes.descriptor(&inode)?;
        rustix::fs::linkat(
            rustix::fs::CWD,
            FdName::of(&*file).path(),
            &*parent,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        let (inode, stat) = self.inodes.lookup(&directory, name)?;
        call.answer(&self.entry(&inode, &stat))
    }

    pub(super) fn unlink(&self, call: &mut Call<'_>, flags: AtFlags) -> Answer {
        let bytes = call.rest(PATH_MAX)?;
        let name = component(&mut &bytes[..])?;
        self.writable()?;
        let directory = self.node(call)?;
        let parent = self.inodes.descriptor(&directory)?;
        let held = self.inodes.hold(&parent, name);
        let removed = rustix::fs::unlinkat(&*parent, name, flags);
        if let (Err(_), Some(inode)) = (&removed, held) {
            self.inodes.kept(&inode);
        }
        removed.map(|()| 0)
    }

    pub(super) fn rename(&self, call: &mut Call<'_>) -> Answer {
        let arguments: RenameIn = call.arguments()?;
        self.rename_to(call, arguments.newdir, RenameFlags::empty())
    }

    pub(super) fn rename2(&self, call: &mut Call<'_>) -> Answer {
        let arguments: Rename2In = call.arguments()?;
        let flags = RenameFlags::from_bits(arguments.flags).ok_or(Errno::INVAL)?;
        self.rename_to(call, arguments.newdir, flags)
    }

    fn rename_to(&self, call: &mut Call<'_>, target: u64, flags: RenameFlags) -> Answer {
        let bytes = call.rest(2 * PATH_MAX)?;
        let mut rest = &bytes[..];
        let (old, new) = (component(&mut rest)?, component(&mut rest)?);
        self.writable()?;
        // A whiteout is a device file.
        if flags.contains(RenameFlags::WHITEOUT) && !self.options.devices {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.node(call)?, self.inodes.get(target)?);
        let (old_parent, new_parent) = (self.inodes.descriptor(&from)?, self.inodes.descriptor(&to)?);
        let moved = self.inodes.hold(&old_parent, old);
        let replaced = self.inodes.hold(&new_parent, new);
        let done = rustix::fs::renameat_with(&*old_parent, old, &*new_parent, new, flags);
        match done {
            Ok(()) => {
                if let Some(inode) = &moved {
                    self.inodes.renamed(inode, &to, new);
                }
                match &replaced {
                    Some(inode) if flags.contains(RenameFlags::EXCHANGE) => {
                        self.inodes.renamed(inode, &from, old);
                    }
                    _ => {}
                }
            }
            Err(_) => {
                for inode in moved.iter().chain(&replaced) {
                    self.inodes.kept(inode);
                }
            }
        }
        done.map(|()| 0)
    }

    pub(super) fn readlink(&self, call: &mut Call<'_>) -> Answer {
        let inode = self.node(call)?;
        if inode.kind != libc::S_IFLNK {
            return Err(Errno::INVAL);
        }
        let file = self.inodes.descriptor(&inode)?;
        let target = rustix::fs::readlinkat(&*file, c"", Vec::with_capacity(NAME_MAX))?;
        call.answer_bytes(target.to_bytes())
    }
}
