//! Open files and directories of the guest.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustix::io::Errno;

/// A directory that is being read.
pub struct Directory {
    /// Where the descriptor's position is, so that going on needs no seek.
    pub position: u64,
}

/// What a guest has open.
pub struct Handle {
    file: OwnedFd,
    /// Of directories: one reader at a time, for they share the descriptor's position.
    directory: Option<Mutex<Directory>>,
}

impl Handle {
    /// The descriptor.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The descriptor of a regular file.
    pub fn regular(&self) -> Result<BorrowedFd<'_>, Errno> {
        match self.directory {
            None => Ok(self.file.as_fd()),
            Some(_) => Err(Errno::ISDIR),
        }
    }

    /// What is known of a directory that is being read.
    pub fn directory(&self) -> Result<&Mutex<Directory>, Errno> {
        self.directory.as_ref().ok_or(Errno::NOTDIR)
    }
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Handle>>,
    next: u64,
}

/// All of them, by number.
pub struct Handles {
    table: RwLock<Table>,
    limit: usize,
}

impl Handles {
    /// An empty table for at most `limit`.
    pub fn new(limit: usize) -> Self {
        Self {
            table: RwLock::default(),
            limit,
        }
    }

    /// The handle of a number.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.table
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .open
            .get(&number)
            .cloned()
            .ok_or(Errno::BADF)
    }

    /// Gives an open file a number.
    pub fn add(&self, file: OwnedFd) -> Result<u64, Errno> {
        self.insert(Handle {
            file,
            directory: None,
        })
    }

    /// Gives an open directory a number.
    pub fn add_directory(&self, file: OwnedFd) -> Result<u64, Errno> {
        self.insert(Handle {
            file,
            directory: Some(Mutex::new(Directory { position: 0 })),
        })
    }

    fn insert(&self, handle: Handle) -> Result<u64, Errno> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.open.len() >= self.limit {
            return Err(Errno::NFILE);
        }
        let number = table.next;
        table.next += 1;
        table.open.insert(number, Arc::new(handle));
        Ok(number)
    }

    /// Closes one, when those that use it at this moment are done.
    pub fn remove(&self, number: u64) -> Result<(), Errno> {
        let removed = self
            .table
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .open
            .remove(&number);
        removed.map(drop).ok_or(Errno::BADF)
    }

    /// Closes all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut self.table.write().unwrap_or_else(PoisonError::into_inner).open);
        drop(all);
    }
}
