//! What a disk's bytes are in.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// Bytes of zeroes written at once where the file system knows nothing better.
const ZEROES: usize = 64 << 10;

/// A disk as virtio-blk sees it. All offsets and lengths are multiples of 512 and within [`Disk::size`]. It is called by several threads.
///
/// Vectors point into the guest's memory, which the guest can change meanwhile; they are only given to the kernel or copied from.
pub trait Disk: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Reads all of `to`.
    fn read(&self, to: &[libc::iovec], offset: u64) -> io::Result<()>;

    /// Writes all of `from`.
    fn write(&self, from: &[libc::iovec], offset: u64) -> io::Result<()>;

    /// Everything written is on stable storage when this has come back.
    fn flush(&self) -> io::Result<()>;

    /// These bytes are of no value any more; they may read as anything they were, or as zeroes.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Makes these bytes zeroes, and gives their room back if `unmap`.
    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()>;

    /// The file whose byte `n` is the disk's byte `n`, if there is one: it can be read and written beside this.
    fn raw_file(&self) -> Option<&File> {
        None
    }
}

/// A file or block device that is the disk.
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
}

impl RawDisk {
    /// The disk in `file`, as large as it is now.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let size = if metadata.file_type().is_block_device() {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?
        } else {
            metadata.len()
        };
        Ok(Self { file, size })
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, to: &[libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: who made the vectors keeps the guest's memory mapped (see `Disk`); the kernel writes no byte beyond them.
        whole(to, offset, |vectors, count, at| unsafe {
            libc::preadv(self.file.as_raw_fd(), vectors, count, at)
        })
    }

    fn write(&self, from: &[libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: as above; the kernel only reads them.
        whole(from, offset, |vectors, count, at| unsafe {
            libc::pwritev(self.file.as_raw_fd(), vectors, count, at)
        })
    }

    fn flush(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match punch(&self.file, offset, length) {
            // A discard is a hint.
            Err(Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if unmap && punch(&self.file, offset, length).is_ok() {
            return Ok(());
        }
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, length) {
            Err(Errno::OPNOTSUPP) => write_zeroes(self, offset, length),
            other => Ok(other?),
        }
    }

    fn raw_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

fn punch(file: impl AsFd, offset: u64, length: u64) -> rustix::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, offset, length)
}

/// Writes zeroes byte by byte.
fn write_zeroes(disk: &RawDisk, offset: u64, length: u64) -> io::Result<()> {
    let zeroes = vec![0_u8; ZEROES];
    let mut done = 0;
    while done < length {
        let here = usize::try_from(length - done).unwrap_or(ZEROES).min(ZEROES);
        let vector = libc::iovec {
            iov_base: zeroes.as_ptr().cast_mut().cast(),
            iov_len: here,
        };
        disk.write(&[vector], offset + done)?;
        done += here as u64;
    }
    Ok(())
}

/// Repeats a vectored call until all is done.
pub(super) fn whole(
    vectors: &[libc::iovec],
    offset: u64,
    mut call: impl FnMut(*const libc::iovec, libc::c_int, libc::off_t) -> isize,
) -> io::Result<()> {
    let mut rest = vectors.to_vec();
    let mut start = 0;
    let mut at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    while start < rest.len() {
        let count = libc::c_int::try_from(rest.len() - start).map_err(|_| io::ErrorKind::InvalidInput)?;
        let done = call(rest[start..].as_ptr(), count, at);
        let Ok(mut done) = usize::try_from(done) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if done == 0 {
            // The file has become shorter than the disk.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += libc::off_t::try_from(done).map_err(|_| io::ErrorKind::InvalidInput)?;
        while let Some(vector) = rest.get_mut(start)
            && done >= vector.iov_len
        {
            done -= vector.iov_len;
            start += 1;
        }
        if let Some(vector) = rest.get_mut(start) {
            vector.iov_base = vector.iov_base.wrapping_byte_add(done);
            vector.iov_len -= done;
        }
    }
    Ok(())
}
