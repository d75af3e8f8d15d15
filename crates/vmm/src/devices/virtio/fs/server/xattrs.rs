//! Extended attributes: those of users, and the capabilities of programs.
//!
//! The others have a meaning to the host's kernel (`trusted.overlay.*`, `security.selinux`, `system.posix_acl_*`) that a guest must not give them: to the
//! guest they do not exist.

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::ffi::CStr;

use super::super::abi::{self, GetxattrIn, GetxattrOut, SetxattrCompatIn, SetxattrIn};
use super::worker::FdName;
use super::{Answer, Call, NAME_MAX, Server, text};

/// The largest value, and the longest list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const SIZE_MAX: usize = 64 << 10;

/// Refuses names that are not the guest's.
fn attribute<'b>(bytes: &mut &'b [u8]) -> Result<&'b CStr, Errno> {
    let name = text(bytes)?;
    match name.to_bytes() {
        long if long.len() > NAME_MAX => Err(Errno::RANGE),
        known if is_shown(known) => Ok(name),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn is_shown(name: &[u8]) -> bool {
    (name.starts_with(b"user.") && name.len() > 5) || name == b"security.capability"
}

impl Server {
    pub(super) fn getxattr(&self, call: &mut Call<'_>) -> Answer {
        let arguments: GetxattrIn = call.arguments()?;
        let bytes = call.rest(NAME_MAX + 1)?;
        let name = attribute(&mut &bytes[..])?;
        let inode = self.node(call)?;
        let file = self.inodes.descriptor(&inode)?;
        let path = FdName::of(&*file);
        let mut value = vec![0; (arguments.size as usize).min(SIZE_MAX)];
        let size = if value.is_empty() {
            rustix::fs::getxattr_query(path.path(), name)?
        } else {
            rustix::fs::getxattr(path.path(), name, value.as_mut_slice())?
        };
        answer_bytes(call, arguments.size, size, &value)
    }

    pub(super) fn listxattr(&self, call: &mut Call<'_>) -> Answer {
        let arguments: GetxattrIn = call.arguments()?;
        let inode = self.node(call)?;
        let file = self.inodes.descriptor(&inode)?;
        let path = FdName::of(&*file);
        // All of it, for what is left out changes the size.
        let mut list = vec![0u8; SIZE_MAX];
        let size = rustix::fs::listxattr(path.path(), list.as_mut_slice())?;
        let mut shown = Vec::new();
        for name in list[..size.min(SIZE_MAX)].split_inclusive(|&byte| byte == 0) {
            if is_shown(name.strip_suffix(&[0]).unwrap_or(name)) {
                shown.extend_from_slice(name);
            }
        }
        if arguments.size != 0 && shown.len() > arguments.size as usize {
            return Err(Errno::RANGE);
        }
        answer_bytes(call, arguments.size, shown.len(), &shown)
    }

    pub(super) fn setxattr(&self, call: &mut Call<'_>) -> Answer {
        let arguments = if self.agreed(abi::SETXATTR_EXT) {
            call.arguments::<SetxattrIn>()?
        } else {
            let old: SetxattrCompatIn = call.arguments()?;
            SetxattrIn {
                size: old.size,
                flags: old.flags,
                ..Default::default()
            }
        };
        self.writable()?;
        let size = arguments.size as usize;
        if size > SIZE_MAX {
            return Err(Errno::TOOBIG);
        }
        let bytes = call.rest(NAME_MAX + 1 + SIZE_MAX)?;
        let mut rest = &bytes[..];
        let name = attribute(&mut rest)?;
        let value = rest.get(..size).ok_or(Errno::INVAL)?;
        let flags = XattrFlags::from_bits(arguments.flags).ok_or(Errno::INVAL)?;
        let inode = self.node(call)?;
        let file = self.inodes.descriptor(&inode)?;
        rustix::fs::setxattr(FdName::of(&*file).path(), name, value, flags)?;
        Ok(0)
    }

    pub(super) fn removexattr(&self, call: &mut Call<'_>) -> Answer {
        let bytes = call.rest(NAME_MAX + 1)?;
        let name = attribute(&mut &bytes[..])?;
        self.writable()?;
        let inode = self.node(call)?;
        let file = self.inodes.descriptor(&inode)?;
        rustix::fs::removexattr(FdName::of(&*file).path(), name)?;
        Ok(0)
    }
}

/// The value, or its size when none was asked for.
fn answer_bytes(call: &mut Call<'_>, asked: u32, size: usize, value: &[u8]) -> Answer {
    if asked == 0 {
        return call.answer(&GetxattrOut {
            size: u32::try_from(size).map_err(|_| Errno::RANGE)?,
            padding: 0,
        });
    }
    call.answer_bytes(value.get(..size).ok_or(Errno::RANGE)?)
}
