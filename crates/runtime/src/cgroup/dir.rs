//! One cgroup directory of one hierarchy: reading and writing its files by descriptor.
//!
//! A cgroup file takes one write(2) per command and answers with the verdict of the controller; nothing is buffered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::lack::Lacks;
use crate::{Error, ErrorKind, Result};

/// Limit of what is read from one file: far above the longest list of a kernel's controllers.
const MAX_READ: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    pub fn open(path: PathBuf) -> Result<Self, Errno> {
        let fd = rustix::fs::openat(
            CWD,
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { fd, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Opens one of its files.
    pub fn file(&self, file: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(&self.fd, file, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// The raw verdict of the kernel on a write.
    pub fn try_write(&self, file: &str, value: &str) -> Result<(), Errno> {
        let fd = self.file(file, OFlags::WRONLY)?;
        loop {
            match rustix::io::write(&fd, value.as_bytes()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Writes a value on behalf of the property `property`.
    pub fn write(&self, property: &str, file: &str, value: &str) -> Result<()> {
        self.try_write(file, value)
            .map_err(|errno| self.write_error(property, file, value, errno))
    }

    /// As [`Dir::write`]; a file that does not exist is a lack of the kernel, not an error.
    pub fn write_or_lack(&self, property: &str, file: &str, value: &str, lacks: &mut Lacks) -> Result<()> {
        match self.try_write(file, value) {
            Err(Errno::NOENT) => {
                lacks.add(property, format!("there is no {file}"));
                Ok(())
            }
            result => result.map_err(|errno| self.write_error(property, file, value, errno)),
        }
    }

    /// Writes values that constrain each other (a limit and what must not be below it) in an order that the kernel
    /// accepts at every step: what is refused as invalid is tried again after the others went through.
    pub fn write_settling(&self, writes: &[(&str, &str, String)], lacks: &mut Lacks) -> Result<()> {
        let mut pending: Vec<&(&str, &str, String)> = writes.iter().collect();
        loop {
            let before = pending.len();
            let mut refused = None;
            let mut left = Vec::new();
            for write in pending {
                let (property, file, value) = write;
                match self.try_write(file, value) {
                    Ok(()) => {}
                    Err(Errno::NOENT) => lacks.add(property, format!("there is no {file}")),
                    Err(Errno::INVAL) => {
                        refused.get_or_insert((property, file, value));
                        left.push(write);
                    }
                    Err(errno) => return Err(self.write_error(property, file, value, errno)),
                }
            }
            match refused {
                None => return Ok(()),
                Some((property, file, value)) if left.len() == before => {
                    return Err(self.write_error(property, file, value, Errno::INVAL));
                }
                Some(_) => pending = left,
            }
        }
    }

    pub fn write_error(&self, property: &str, file: &str, value: &str, errno: Errno) -> Error {
        let path = self.path.join(file);
        let (kind, why) = match errno {
            Errno::INVAL | Errno::RANGE | Errno::OVERFLOW => {
                (ErrorKind::Invalid, "the kernel does not accept this value here")
            }
            Errno::PERM | Errno::ACCESS | Errno::ROFS => {
                (ErrorKind::Permission, "this process may not write it")
            }
            Errno::NOENT => (ErrorKind::Unsupported, "the file does not exist"),
            Errno::NODEV | Errno::NXIO => (ErrorKind::Invalid, "there is no such device"),
            Errno::BUSY => (ErrorKind::Conflict, "it is in use"),
            Errno::NOSPC => (
                ErrorKind::Conflict,
                "the processors or memory nodes of the parent cgroup do not suffice",
            ),
            _ => (ErrorKind::System, "the write failed"),
        };
        Error::with_source(
            kind,
            format!("cannot set {property} to {value:?}: {why} ({})", path.display()),
            io::Error::from(errno),
        )
    }

    /// The whole of a file.
    pub fn try_read(&self, file: &str) -> Result<String, Errno> {
        let fd = self.file(file, OFlags::RDONLY)?;
        read_to_string(fd.as_fd())
    }

    /// The whole of a file; nothing when it does not exist or cannot be read now.
    pub fn read(&self, file: &str) -> Option<String> {
        self.try_read(file).ok()
    }

    /// The whole of a file, which must exist.
    pub fn read_required(&self, file: &str) -> Result<String> {
        self.try_read(file).map_err(|errno| {
            Error::with_source(
                if errno == Errno::NOENT {
                    ErrorKind::NotFound
                } else {
                    ErrorKind::System
                },
                format!("cannot read {}", self.path.join(file).display()),
                io::Error::from(errno),
            )
        })
    }

    /// A file that holds one number; `max` is nothing.
    pub fn read_number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// Its directories, i.e. nested cgroups.
    pub fn children(&self) -> Result<Vec<Dir>, Errno> {
        let mut children = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type() != rustix::fs::FileType::Directory || matches!(name.to_bytes(), b"." | b"..")
            {
                continue;
            }
            let fd = match rustix::fs::openat(
                &self.fd,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Err(Errno::NOENT) => continue,
                result => result?,
            };
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
            children.push(Dir {
                fd,
                path: self.path.join(name),
            });
        }
        Ok(children)
    }

    /// The names of its files.
    pub fn file_names(&self) -> Vec<String> {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.fd) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .collect()
    }

    /// Removes a directory in it.
    pub fn remove_child(&self, child: &Dir) -> Result<(), Errno> {
        match child.path.file_name() {
            Some(name) => rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR),
            None => Err(Errno::INVAL),
        }
    }

    /// The processes of this very directory. Empty for what cannot list any (a threaded v2 cgroup).
    pub fn processes(&self) -> Result<Vec<rustix::process::Pid>, Errno> {
        let text = match self.try_read("cgroup.procs") {
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            result => result?,
        };
        // A zero is a process outside of this PID namespace: it cannot be named, nor signalled, from here.
        Ok(text
            .lines()
            .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?))
            .collect())
    }

    /// The processes of this directory and of those nested in it.
    pub fn processes_recursive(
        &self,
        depth: usize,
        into: &mut Vec<rustix::process::Pid>,
    ) -> Result<(), Errno> {
        into.extend(self.processes()?);
        if depth == 0 {
            return Ok(());
        }
        for child in self.children()? {
            match child.processes_recursive(depth - 1, into) {
                Err(Errno::NOENT | Errno::NODEV) => {} // removed meanwhile
                result => result?,
            }
        }
        Ok(())
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Reads from the start of a file, wherever its offset is.
pub(super) fn read_to_string(fd: BorrowedFd<'_>) -> Result<String, Errno> {
    let mut buffer = vec![0u8; 4096];
    let mut length = 0;
    loop {
        match rustix::io::pread(fd, &mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        }
        if length == buffer.len() {
            if length >= MAX_READ {
                return Err(Errno::FBIG);
            }
            buffer.resize(length * 4, 0);
        }
    }
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| Errno::ILSEQ)
}
