//! Reads, writes and flushes by io_uring: all that wait at once.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::Disk;
use crate::devices::virtio::{Buffers, Chain};

/// Requests in flight at most.
const DEPTH: u32 = 128;

/// A request in flight.
pub(super) struct InFlight {
    pub(super) chain: Chain,
    pub(super) status: Buffers,
    /// Bytes that are wanted.
    pub(super) length: u64,
    pub(super) is_read: bool,
    /// Where on the disk.
    pub(super) offset: u64,
    /// The kernel may look at them until it has answered.
    vectors: Vec<libc::iovec>,
}

// SAFETY: the vectors are addresses for the kernel, of memory the chain keeps; no Rust code goes through them.
unsafe impl Send for InFlight {}

/// A ring of one queue.
pub(super) struct Uring {
    ring: IoUring,
    disk: Arc<dyn Disk>,
    requests: Vec<Option<InFlight>>,
    free: Vec<usize>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64 },
    Flush,
}

impl Uring {
    /// A ring for a raw disk. `None`: the disk is none, or this host has no io_uring for us.
    pub(super) fn new(disk: &Arc<dyn Disk>) -> Option<Self> {
        disk.raw_file()?;
        let ring = IoUring::builder().setup_clamp().build(DEPTH).ok()?;
        Some(Self {
            ring,
            disk: disk.clone(),
            requests: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH as usize).collect(),
        })
    }

    /// Whether another request has room.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.requests.len()
    }

    fn file(&self) -> io::Result<&File> {
        self.disk
            .raw_file()
            .ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Prepares a request; [`Uring::submit`] begins it. There must be room.
    pub(super) fn push(&mut self, chain: Chain, status: Buffers, operation: Operation) -> io::Result<()> {
        let fd = types::Fd(self.file()?.as_raw_fd());
        let index = self.free.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let (offset, length, is_read) = match operation {
            Operation::Read { offset, length } => (offset, length, true),
            Operation::Write { offset, length } => (offset, length, false),
            Operation::Flush => (0, 0, false),
        };
        let vectors = match operation {
            Operation::Read { .. } => chain.writable.iovecs(),
            Operation::Write { .. } => chain.readable.iovecs(),
            Operation::Flush => Vec::new(),
        };
        let request = InFlight {
            chain,
            status,
            length,
            is_read,
            offset,
            vectors,
        };
        let request = self.requests[index].insert(request);
        let (vectors, count) = (
            request.vectors.as_ptr(),
            u32::try_from(request.vectors.len()).unwrap_or(0),
        );
        let entry = match operation {
            Operation::Read { .. } => opcode::Readv::new(fd, vectors, count).offset(offset).build(),
            Operation::Write { .. } => opcode::Writev::new(fd, vectors, count).offset(offset).build(),
            Operation::Flush => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(index as u64);
        // SAFETY: the vectors and what they point to, the guest's memory, live in `self.requests` until the kernel has answered: it is only
        // taken out there, and `drain` waits for all before this is dropped. The file lives as long as the disk.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // As many entries as requests: it cannot be full; if it is, the request fails and does not hang.
            self.requests[index] = None;
            self.free.push(index);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(())
    }

    /// Begins what was prepared.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Answers must be taken first; the rest is begun after that.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The next request that has ended, and how.
    pub(super) fn next(&mut self) -> Option<(InFlight, io::Result<u64>)> {
        let answer = self.ring.completion().next()?;
        let index = usize::try_from(answer.user_data()).ok()?;
        let request = self.requests.get_mut(index)?.take()?;
        self.free.push(index);
        let result =
            u64::try_from(answer.result()).map_err(|_| io::Error::from_raw_os_error(-answer.result()));
        Some((request, result))
    }

    /// Waits until another request has ended.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel writes into the guest's memory and reads the vectors until it has answered.
        while !self.is_idle() {
            while self.next().is_some() {}
            if !self.is_idle() && self.wait().is_err() {
                // Nothing may be freed that is still used: better leaked, with the guest's memory it holds.
                for request in self.requests.drain(..).flatten() {
                    std::mem::forget(request);
                }
                self.free.clear();
                return;
            }
        }
    }
}
