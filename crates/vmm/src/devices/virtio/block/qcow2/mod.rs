//! qcow2 images: disks that take only the room they use, on top of another one perhaps.
//!
//! Versions 2 and 3; clusters that are compressed (deflate, zstd), zeroes, shared with internal snapshots. Not: encryption, data in another file,
//! subclusters. A backing file is never opened by its name in the image, which a guest may have written: whoever opens the image
//! passes it.

mod header;
mod tables;
mod vectors;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, RwLock};

pub use header::create;

use super::disk::{Disk, whole};
use crate::sync::{lock, read, write};
use header::{Header, invalid};
use tables::{COPIED, Tables};

const COMPRESSED: u64 = 1 << 62;
/// Version 3: the cluster reads as zeroes.
const ZERO: u64 = 1;

/// What a guest's cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    /// The backing disk's, or zeroes.
    Nothing,
    /// Zeroes; a cluster may be kept for it.
    Zeroes(Option<u64>),
    /// At this offset; `true`: nobody else points there.
    Data(u64, bool),
    /// So many bytes at this offset.
    Compressed(u64, u64),
}

/// An image that is a disk.
pub struct Qcow2 {
    file: File,
    header: Header,
    backing: Option<Arc<dyn Disk>>,
    tables: Mutex<Tables>,
    /// Requests hold it for reading while they are on their way to a cluster, so that none becomes another's meanwhile. Taken before `tables`.
    passage: RwLock<()>,
    read_only: bool,
}

/// Clusters that are freed before their room is given back, at most.
const FREED_MAX: usize = 1 << 16;

impl Qcow2 {
    /// The disk in `file`. `backing` is what shows through where the image has nothing; it must be given if and only if the image has one.
    pub fn open(file: File, backing: Option<Arc<dyn Disk>>, read_only: bool) -> io::Result<Self> {
        let header = Header::read(&file, !read_only)?;
        if header.has_backing != backing.is_some() {
            return Err(invalid(if header.has_backing {
                "the qcow2 image lies on another one: that must be given, too"
            } else {
                "the qcow2 image lies on no other one, but one was given"
            }));
        }
        let tables = Tables::read(file.try_clone()?, &header)?;
        Ok(Self {
            file,
            header,
            backing,
            tables: Mutex::new(tables),
            passage: RwLock::new(()),
            read_only,
        })
    }

    fn cluster(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    fn mapping(&self, tables: &mut Tables, cluster: u64) -> io::Result<Mapping> {
        let entry = tables.entry(cluster)?;
        if entry & COMPRESSED != 0 {
            // The offset has so many bits; the rest is the number of further sectors (62 - (cluster_bits - 8)).
            let bits = 70 - self.header.cluster_bits;
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            return Ok(Mapping::Compressed(offset, (sectors + 1) * 512 - offset % 512));
        }
        let empty = entry & !(COPIED | ZERO) == 0;
        if self.header.version >= 3 && entry & ZERO != 0 {
            return Ok(Mapping::Zeroes(if empty {
                None
            } else {
                Some(tables.checked(entry)?)
            }));
        }
        if empty {
            return Ok(Mapping::Nothing);
        }
        Ok(Mapping::Data(tables.checked(entry)?, entry & COPIED != 0))
    }

    /// Calls `f` with each piece that lies in one cluster: the cluster, the offset in it, the length, the piece's offset in the request.
    fn pieces(
        &self,
        offset: u64,
        length: u64,
        mut f: impl FnMut(u64, u64, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let within = at % self.cluster();
            let here = (self.cluster() - within).min(length - done);
            f(at / self.cluster(), within, here, done)?;
            done += here;
        }
        Ok(())
    }

    /// Reads a piece of what a cluster is.
    fn read_piece(&self, mapping: Mapping, cluster: u64, within: u64, to: &[libc::iovec]) -> io::Result<()> {
        match mapping {
            Mapping::Zeroes(_) => vectors::zero(to),
            Mapping::Nothing => return self.read_backing(cluster * self.cluster() + within, to),
            Mapping::Data(offset, _) => return self.read_file(to, offset + within),
            Mapping::Compressed(offset, length) => {
                let whole = self.decompress(offset, length)?;
                let from = whole.get(vectors::small(within)?..).unwrap_or_default();
                vectors::fill(to, from);
            }
        }
        Ok(())
    }

    fn read_file(&self, to: &[libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: see `Disk`: the vectors are the guest's memory, or a buffer of ours that outlives the call.
        whole(to, offset, |vectors, count, at| unsafe {
            libc::preadv(self.file.as_raw_fd(), vectors, count, at)
        })
    }

    fn write_file(&self, from: &[libc::iovec], offset: u64) -> io::Result<()> {
        // SAFETY: as above; the kernel only reads them.
        whole(from, offset, |vectors, count, at| unsafe {
            libc::pwritev(self.file.as_raw_fd(), vectors, count, at)
        })
    }

    /// What shows through. The backing disk may be shorter.
    fn read_backing(&self, offset: u64, to: &[libc::iovec]) -> io::Result<()> {
        let length: usize = to.iter().map(|vector| vector.iov_len).sum();
        let below = self
            .backing
            .as_ref()
            .map_or(0, |backing| backing.size().saturating_sub(offset));
        let below = usize::try_from(below).unwrap_or(usize::MAX).min(length);
        if let (Some(backing), true) = (&self.backing, below > 0) {
            backing.read(&vectors::slice(to, 0, below), offset)?;
        }
        vectors::zero(&vectors::slice(to, below, length - below));
        Ok(())
    }

    fn decompress(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let size = vectors::small(self.cluster())?;
        let mut packed = vec![0; vectors::small(length.min(2 * self.cluster()))?];
        // The last sector may be cut off by the file's end.
        let mut have = 0;
        while have < packed.len() {
            match self.file.read_at(&mut packed[have..], offset + have as u64)? {
                0 => break,
                count => have += count,
            }
        }
        packed.truncate(have);
        let mut unpacked = Vec::with_capacity(size);
        let limit = size as u64;
        if self.header.zstd {
            let decoder = zstd::stream::read::Decoder::with_buffer(&packed[..])?;
            decoder.single_frame().take(limit).read_to_end(&mut unpacked)?;
        } else {
            flate2::bufread::DeflateDecoder::new(&packed[..])
                .take(limit)
                .read_to_end(&mut unpacked)?;
        }
        if unpacked.len() != size {
            return Err(invalid(
                "the qcow2 image is damaged: a compressed cluster is too short",
            ));
        }
        Ok(unpacked)
    }

    /// Writes a piece to a cluster that must be made, or made its own, first.
    fn write_new(
        &self,
        tables: &mut Tables,
        mapping: Mapping,
        cluster: u64,
        within: u64,
        from: &[libc::iovec],
    ) -> io::Result<()> {
        let length: usize = from.iter().map(|vector| vector.iov_len).sum();
        let (offset, zeroed) = match mapping {
            // The cluster that was kept for zeroes, unless a snapshot has it, too.
            Mapping::Zeroes(Some(kept)) if tables.count(kept >> self.header.cluster_bits)? == 1 => {
                (kept, false)
            }
            _ => tables.allocate()?,
        };
        let plain = match mapping {
            Mapping::Nothing => self.backing.is_none(),
            Mapping::Zeroes(_) => true,
            _ => false,
        };
        if length as u64 == self.cluster() || zeroed && plain {
            self.write_file(from, offset + within)?;
        } else {
            let mut buffer = vec![0; vectors::small(self.cluster())?];
            if !plain {
                self.read_piece(mapping, cluster, 0, &vectors::of(&mut buffer))?;
            }
            let start = vectors::small(within)?;
            vectors::gather(from, &mut buffer[start..start + length]);
            self.file.write_all_at(&buffer, offset)?;
        }
        tables.set_entry(cluster, offset | COPIED)?;
        match mapping {
            Mapping::Data(old, _) => tables.free(old, 1),
            Mapping::Zeroes(Some(old)) if old != offset => tables.free(old, 1),
            Mapping::Compressed(old, length) => tables.free(old, length),
            _ => {}
        }
        Ok(())
    }

    /// Does what changes the disk.
    fn change(&self, f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        {
            let _passage = read(&self.passage);
            f()?;
        }
        if lock(&self.tables).freed() > FREED_MAX {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn write_pieces(&self, from: &[libc::iovec], offset: u64) -> io::Result<()> {
        let length: usize = from.iter().map(|vector| vector.iov_len).sum();
        self.pieces(offset, length as u64, |cluster, within, here, done| {
            let piece = vectors::slice(from, vectors::small(done)?, vectors::small(here)?);
            let mut tables = lock(&self.tables);
            match self.mapping(&mut tables, cluster)? {
                // In place, and beside other requests.
                Mapping::Data(at, true) => {
                    drop(tables);
                    self.write_file(&piece, at + within)
                }
                mapping => self.write_new(&mut tables, mapping, cluster, within, &piece),
            }
        })
    }

    /// Makes a whole cluster read as zeroes, without room. False: this image cannot say that.
    fn drop_cluster(&self, tables: &mut Tables, cluster: u64) -> io::Result<bool> {
        let entry = match self.backing {
            None => 0,
            Some(_) if self.header.version >= 3 => ZERO,
            Some(_) => return Ok(false),
        };
        let mapping = self.mapping(tables, cluster)?;
        if mapping == Mapping::Zeroes(None) || mapping == Mapping::Nothing && self.backing.is_none() {
            return Ok(true);
        }
        tables.set_entry(cluster, entry)?;
        match mapping {
            Mapping::Data(offset, _) | Mapping::Zeroes(Some(offset)) => tables.free(offset, 1),
            Mapping::Compressed(offset, length) => tables.free(offset, length),
            Mapping::Nothing | Mapping::Zeroes(None) => {}
        }
        Ok(true)
    }
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.header.size
    }

    fn read(&self, to: &[libc::iovec], offset: u64) -> io::Result<()> {
        let _passage = read(&self.passage);
        let length: usize = to.iter().map(|vector| vector.iov_len).sum();
        self.pieces(offset, length as u64, |cluster, within, here, done| {
            let mapping = self.mapping(&mut lock(&self.tables), cluster)?;
            let piece = vectors::slice(to, vectors::small(done)?, vectors::small(here)?);
            self.read_piece(mapping, cluster, within, &piece)
        })
    }

    fn write(&self, from: &[libc::iovec], offset: u64) -> io::Result<()> {
        self.change(|| self.write_pieces(from, offset))
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        lock(&self.tables).write()?;
        if lock(&self.tables).freed() > 0 {
            let _passage = write(&self.passage);
            lock(&self.tables).release()?;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(|| {
            self.pieces(offset, length, |cluster, _, here, _| {
                if here == self.cluster() {
                    self.drop_cluster(&mut lock(&self.tables), cluster)?;
                }
                Ok(())
            })
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64, _unmap: bool) -> io::Result<()> {
        let mut zeroes = Vec::new();
        self.change(|| {
            self.pieces(offset, length, |cluster, within, here, _| {
                if here == self.cluster() && self.drop_cluster(&mut lock(&self.tables), cluster)? {
                    return Ok(());
                }
                zeroes.resize(vectors::small(here)?, 0);
                self.write_pieces(&vectors::of(&mut zeroes), cluster * self.cluster() + within)
            })
        })
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::warn!(%error, "tables of the qcow2 image are not written: what was not flushed is lost");
        }
    }
}

#[cfg(test)]
mod tests;
