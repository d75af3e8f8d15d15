//! Tables of an image in memory, and when they are written.
//!
//! What points to something is written after what it points to, with a barrier between: reference counts and data, then L2 tables, then the
//! L1 table. Counts are lowered last, when nothing on the disk points there any more. So an image is in order whenever its machine or its
//! host stops; at worst clusters are counted that nobody uses.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::header::{Header, REFCOUNT_TABLE_FIELD, invalid};

/// Bytes of tables kept of each kind.
const CACHE_BYTES: usize = 4 << 20;
/// Clusters beyond the end of the file that may be counted already.
const SCAN_MAX: u64 = 1 << 20;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Nobody else points to it: it can be written in place.
pub(super) const COPIED: u64 = 1 << 63;

struct Table {
    bytes: Vec<u8>,
    dirty: bool,
    used: u64,
}

/// Tables of one kind, each a cluster.
struct Cache {
    tables: HashMap<u64, Table>,
    clock: u64,
    max: usize,
}

impl Cache {
    fn new(cluster: usize) -> Self {
        Self {
            tables: HashMap::new(),
            clock: 0,
            max: (CACHE_BYTES / cluster).max(4),
        }
    }

    /// Reads a table unless it is here.
    fn load(&mut self, file: &File, offset: u64, cluster: usize) -> io::Result<&mut Table> {
        self.clock += 1;
        let table = match self.tables.entry(offset) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut bytes = vec![0; cluster];
                file.read_exact_at(&mut bytes, offset)?;
                entry.insert(Table {
                    bytes,
                    dirty: false,
                    used: 0,
                })
            }
        };
        table.used = self.clock;
        Ok(table)
    }

    fn insert(&mut self, offset: u64, bytes: Vec<u8>) {
        self.clock += 1;
        let table = Table {
            bytes,
            dirty: true,
            used: self.clock,
        };
        self.tables.insert(offset, table);
    }

    fn is_full(&self) -> bool {
        self.tables.len() >= self.max
    }

    fn is_dirty(&self) -> bool {
        self.tables.values().any(|table| table.dirty)
    }

    fn write(&mut self, file: &File) -> io::Result<()> {
        for (offset, table) in self.tables.iter_mut().filter(|(_, table)| table.dirty) {
            file.write_all_at(&table.bytes, *offset)?;
            table.dirty = false;
        }
        Ok(())
    }

    /// Forgets the half that was not used for longest. All are written.
    fn shrink(&mut self) {
        let mut ages: Vec<u64> = self.tables.values().map(|table| table.used).collect();
        ages.sort_unstable();
        let middle = ages.get(ages.len() / 2).copied().unwrap_or(0);
        self.tables.retain(|_, table| table.dirty || table.used >= middle);
    }
}

/// All tables of an image.
pub(super) struct Tables {
    file: File,
    cluster_bits: u32,
    refcount_order: u32,
    l1: Vec<u64>,
    l1_offset: u64,
    l1_dirty: bool,
    refcount_table: Vec<u64>,
    refcount_table_offset: u64,
    l2: Cache,
    blocks: Cache,
    /// Clusters nothing points to once all is written.
    freed: Vec<u64>,
    /// Clusters nothing points to any more.
    released: Vec<u64>,
    /// Clusters that can be used again.
    free: Vec<u64>,
    /// The first cluster behind the file.
    end: u64,
}

impl Tables {
    pub(super) fn read(file: File, header: &Header) -> io::Result<Self> {
        let cluster = 1_u64 << header.cluster_bits;
        let l1 = read_table(&file, header.l1_offset, u64::from(header.l1_size) * 8)?;
        let bytes = u64::from(header.refcount_table_clusters) * cluster;
        let refcount_table = read_table(&file, header.refcount_table_offset, bytes)?;
        let cluster_bytes = 1_usize << header.cluster_bits;
        Ok(Self {
            end: file.metadata()?.len().div_ceil(cluster),
            file,
            cluster_bits: header.cluster_bits,
            refcount_order: header.refcount_order,
            l1,
            l1_offset: header.l1_offset,
            l1_dirty: false,
            refcount_table,
            refcount_table_offset: header.refcount_table_offset,
            l2: Cache::new(cluster_bytes),
            blocks: Cache::new(cluster_bytes),
            freed: Vec::new(),
            released: Vec::new(),
            free: Vec::new(),
        })
    }

    fn cluster(&self) -> usize {
        1 << self.cluster_bits
    }

    /// The place of a guest's cluster in L1 and L2.
    fn place(&self, cluster: u64) -> io::Result<(usize, usize)> {
        let per_table = self.cluster() as u64 / 8;
        let index = usize::try_from(cluster / per_table).unwrap_or(usize::MAX);
        if index >= self.l1.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Less than a table's entries.
        #[expect(clippy::cast_possible_truncation)]
        Ok((index, (cluster % per_table) as usize))
    }

    /// An offset of a cluster, if it is one.
    pub(super) fn checked(&self, entry: u64) -> io::Result<u64> {
        let offset = entry & OFFSET;
        if offset == 0 || !offset.is_multiple_of(self.cluster() as u64) {
            return Err(invalid(format!(
                "the qcow2 image is damaged: a table has the entry {entry:#x}"
            )));
        }
        Ok(offset)
    }

    /// The L2 entry of a guest's cluster.
    pub(super) fn entry(&mut self, cluster: u64) -> io::Result<u64> {
        let (index, at) = self.place(cluster)?;
        if self.l1[index] & OFFSET == 0 {
            return Ok(0);
        }
        let offset = self.checked(self.l1[index])?;
        self.make_room()?;
        let cluster = self.cluster();
        let table = self.l2.load(&self.file, offset, cluster)?;
        Ok(big_endian(&table.bytes, 8 * at))
    }

    /// Changes it. What it pointed to is the caller's to free.
    pub(super) fn set_entry(&mut self, cluster: u64, entry: u64) -> io::Result<()> {
        let (index, at) = self.place(cluster)?;
        self.make_room()?;
        let old = self.l1[index];
        let size = self.cluster();
        let offset = if old & COPIED != 0 {
            self.checked(old)?
        } else {
            let bytes = if old & OFFSET == 0 {
                vec![0; size]
            } else {
                let shared = self.checked(old)?;
                self.l2.load(&self.file, shared, size)?.bytes.clone()
            };
            let (offset, _) = self.allocate()?;
            self.l2.insert(offset, bytes);
            self.l1[index] = offset | COPIED;
            self.l1_dirty = true;
            if old & OFFSET != 0 {
                self.freed.push(old & OFFSET);
            }
            offset
        };
        let table = self.l2.load(&self.file, offset, size)?;
        table.bytes[8 * at..8 * at + 8].copy_from_slice(&entry.to_be_bytes());
        table.dirty = true;
        Ok(())
    }

    /// Nothing will point to these bytes once all is written.
    pub(super) fn free(&mut self, offset: u64, length: u64) {
        let first = offset >> self.cluster_bits;
        let last = (offset + length.max(1) - 1) >> self.cluster_bits;
        self.freed
            .extend((first..=last).map(|cluster| cluster << self.cluster_bits));
    }

    /// Forgets tables that are not needed, if there are too many.
    fn make_room(&mut self) -> io::Result<()> {
        if self.l2.is_full() {
            if self.l2.is_dirty() {
                self.write()?;
            }
            self.l2.shrink();
        }
        if self.blocks.is_full() {
            // Counts that are too high harm nobody: they can be written at any time.
            self.blocks.write(&self.file)?;
            self.blocks.shrink();
        }
        Ok(())
    }

    /// Writes everything that was changed, in order; all of it is on stable storage after that.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.blocks.write(&self.file)?;
        if self.l2.is_dirty() {
            self.file.sync_data()?;
            self.l2.write(&self.file)?;
        }
        if self.l1_dirty {
            self.file.sync_data()?;
            let bytes: Vec<u8> = self.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            self.file.write_all_at(&bytes, self.l1_offset)?;
            self.l1_dirty = false;
        }
        self.file.sync_data()?;
        self.released.append(&mut self.freed);
        Ok(())
    }

    /// Clusters that were freed and are still counted.
    pub(super) fn freed(&self) -> usize {
        self.freed.len() + self.released.len()
    }

    /// Gives clusters back nothing on the disk points to any more. No request may be on its way to one.
    pub(super) fn release(&mut self) -> io::Result<()> {
        for offset in std::mem::take(&mut self.released) {
            self.lower(offset)?;
        }
        self.blocks.write(&self.file)
    }

    /// One pointer less to a cluster.
    fn lower(&mut self, offset: u64) -> io::Result<()> {
        let cluster = offset >> self.cluster_bits;
        let count = self.count(cluster)?;
        if count == 0 {
            return Err(invalid(
                "the qcow2 image is damaged: a cluster in use is not counted",
            ));
        }
        self.set_count(cluster, count - 1)?;
        if count == 1 {
            self.l2.tables.remove(&offset);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Its room is given back if the file system can; what is in it does not matter.
            let _ = rustix::fs::fallocate(&self.file, flags, offset, self.cluster() as u64);
            if self.free.len() < CACHE_BYTES / 8 {
                self.free.push(cluster);
            }
        }
        Ok(())
    }

    /// A cluster for something new, counted once. Its offset, and whether it is certainly all zeroes.
    pub(super) fn allocate(&mut self) -> io::Result<(u64, bool)> {
        if let Some(cluster) = self.free.pop() {
            self.set_count(cluster, 1)?;
            return Ok((cluster << self.cluster_bits, false));
        }
        for _ in 0..SCAN_MAX {
            let cluster = self.end;
            self.cover(cluster)?;
            if cluster == self.end {
                self.end += 1;
                if self.count(cluster)? == 0 {
                    self.set_count(cluster, 1)?;
                    self.file.set_len(self.end << self.cluster_bits)?;
                    return Ok((cluster << self.cluster_bits, true));
                }
            }
        }
        Err(invalid(
            "the qcow2 image is damaged: clusters behind its end are in use",
        ))
    }

    /// One pointer more to a cluster.
    #[cfg(test)]
    pub(super) fn raise(&mut self, cluster: u64) -> io::Result<()> {
        let count = self.count(cluster)?;
        self.set_count(cluster, count + 1)
    }

    /// Counts in a block.
    fn per_block(&self) -> u64 {
        (self.cluster() as u64 * 8) >> self.refcount_order
    }

    /// Where a cluster's count is: the block's offset, the index in it. `None`: there is no block.
    fn block_of(&self, cluster: u64) -> io::Result<Option<(u64, u64)>> {
        let index = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
        match self.refcount_table.get(index) {
            None => Ok(None),
            Some(entry) if entry & OFFSET == 0 => Ok(None),
            Some(entry) => Ok(Some((self.checked(*entry)?, cluster % self.per_block()))),
        }
    }

    /// How many point to a cluster.
    pub(super) fn count(&mut self, cluster: u64) -> io::Result<u64> {
        let Some((offset, index)) = self.block_of(cluster)? else {
            return Ok(0);
        };
        let size = self.cluster();
        let table = self.blocks.load(&self.file, offset, size)?;
        Ok(get_count(&table.bytes, self.refcount_order, index))
    }

    fn set_count(&mut self, cluster: u64, count: u64) -> io::Result<()> {
        let Some((offset, index)) = self.block_of(cluster)? else {
            return Err(invalid(
                "the qcow2 image is damaged: a cluster in use has no reference count",
            ));
        };
        let size = self.cluster();
        let table = self.blocks.load(&self.file, offset, size)?;
        set_count(&mut table.bytes, self.refcount_order, index, count);
        table.dirty = true;
        Ok(())
    }

    /// Sees to it that there is a block for the count of `cluster`, the first behind the end. The block may take that cluster itself: then
    /// the end has moved.
    fn cover(&mut self, cluster: u64) -> io::Result<()> {
        if self.block_of(cluster)?.is_some() {
            return Ok(());
        }
        let index = usize::try_from(cluster / self.per_block()).unwrap_or(usize::MAX);
        let first_count = cluster % self.per_block();
        let mut block = vec![0; self.cluster()];
        let table_entries = self.cluster() / 8;
        let grown = index >= self.refcount_table.len();
        // A larger table, if there must be one, lies right behind the block, which counts it, too.
        let table_clusters = if grown {
            (2 * index + 1).div_ceil(table_entries)
        } else {
            0
        };
        let taken = 1 + table_clusters as u64;
        if first_count + taken > self.per_block() {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the qcow2 image cannot grow further with clusters this small: convert it to larger ones",
            ));
        }
        for count in 0..taken {
            set_count(&mut block, self.refcount_order, first_count + count, 1);
        }
        let offset = cluster << self.cluster_bits;
        self.file.set_len((cluster + taken) << self.cluster_bits)?;
        self.file.write_all_at(&block, offset)?;
        if grown {
            let old = self.refcount_table.len() * 8;
            let old_offset = self.refcount_table_offset;
            self.refcount_table.resize(table_clusters * table_entries, 0);
            self.refcount_table[index] = offset;
            let bytes: Vec<u8> = self
                .refcount_table
                .iter()
                .flat_map(|entry| entry.to_be_bytes())
                .collect();
            let new_offset = offset + self.cluster() as u64;
            self.file.write_all_at(&bytes, new_offset)?;
            self.file.sync_data()?;
            let mut field = [0; 12];
            field[..8].copy_from_slice(&new_offset.to_be_bytes());
            field[8..].copy_from_slice(&u32::try_from(table_clusters).unwrap_or(0).to_be_bytes());
            self.file.write_all_at(&field, REFCOUNT_TABLE_FIELD)?;
            self.refcount_table_offset = new_offset;
            self.free(old_offset, old as u64);
        } else {
            self.file.sync_data()?;
            self.refcount_table[index] = offset;
            let at = self.refcount_table_offset + 8 * index as u64;
            self.file.write_all_at(&offset.to_be_bytes(), at)?;
        }
        self.end = cluster + taken;
        Ok(())
    }
}

fn big_endian(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

fn read_table(file: &File, offset: u64, length: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes.chunks_exact(8).map(|entry| big_endian(entry, 0)).collect())
}

/// A count of `1 << order` bits; those of less than a byte begin with the lowest bit.
fn get_count(block: &[u8], order: u32, index: u64) -> u64 {
    let Ok(index) = usize::try_from(index) else {
        return 0;
    };
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = block[index / per_byte];
        return u64::from(byte >> ((index % per_byte) << order)) & ((1 << (1 << order)) - 1);
    }
    let width = 1 << (order - 3);
    let bytes = &block[index * width..(index + 1) * width];
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn set_count(block: &mut [u8], order: u32, index: u64, count: u64) {
    let Ok(index) = usize::try_from(index) else {
        return;
    };
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        let mask = ((1_u16 << (1 << order)) - 1) as u8;
        let byte = &mut block[index / per_byte];
        *byte = *byte & !(mask << shift) | (count as u8 & mask) << shift;
        return;
    }
    let width = 1 << (order - 3);
    block[index * width..(index + 1) * width].copy_from_slice(&count.to_be_bytes()[8 - width..]);
}
