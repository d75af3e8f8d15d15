//! Pieces of vectors into the guest's memory.

use std::io;

/// The `length` bytes from `skip` on of what the vectors cover.
pub(super) fn slice(vectors: &[libc::iovec], mut skip: usize, mut length: usize) -> Vec<libc::iovec> {
    let mut all = Vec::new();
    for vector in vectors {
        if skip >= vector.iov_len {
            skip -= vector.iov_len;
            continue;
        }
        let here = (vector.iov_len - skip).min(length);
        if here == 0 {
            break;
        }
        all.push(libc::iovec {
            iov_base: vector.iov_base.wrapping_byte_add(skip),
            iov_len: here,
        });
        length -= here;
        skip = 0;
    }
    all
}

/// A vector of a buffer of our own, for reading into it.
pub(super) fn of(buffer: &mut [u8]) -> [libc::iovec; 1] {
    [libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    }]
}

/// Fills what the vectors cover with zeroes.
pub(super) fn zero(vectors: &[libc::iovec]) {
    for vector in vectors {
        // SAFETY: who made the vectors keeps the guest's memory mapped (see `Disk`), and it is no Rust object.
        unsafe { std::ptr::write_bytes(vector.iov_base.cast::<u8>(), 0, vector.iov_len) };
    }
}

/// Copies into what the vectors cover.
pub(super) fn fill(vectors: &[libc::iovec], mut from: &[u8]) {
    for vector in vectors {
        let (now, later) = from.split_at(vector.iov_len.min(from.len()));
        // SAFETY: as above; `now` is no longer than the vector.
        unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), vector.iov_base.cast(), now.len()) };
        from = later;
    }
}

/// Copies out of what the vectors cover.
pub(super) fn gather(vectors: &[libc::iovec], mut to: &mut [u8]) {
    for vector in vectors {
        let (now, later) = to.split_at_mut(vector.iov_len.min(to.len()));
        // SAFETY: as above, the other way.
        unsafe { std::ptr::copy_nonoverlapping(vector.iov_base.cast(), now.as_mut_ptr(), now.len()) };
        to = later;
    }
}

/// A length that is within a cluster.
pub(super) fn small(length: u64) -> io::Result<usize> {
    usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput.into())
}
