//! A qcow2 image's header (QEMU's `docs/interop/qcow2.txt`), versions 2 and 3.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = 0x5146_49fb;
const HEADER_2: usize = 72;
const HEADER_3: usize = 104;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// As QEMU has it: 32 MiB of L1 table, 8 MiB of refcount table.
const L1_MAX: u32 = (32 << 20) / 8;
const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const AUTOCLEAR: u64 = 88;
const COMPRESSION_TYPE: usize = 104;

/// Where the refcount table's place is written.
pub(super) const REFCOUNT_TABLE_FIELD: u64 = 48;

/// What the header says.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) has_backing: bool,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_size: u32,
    pub(super) l1_offset: u64,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
    /// The width of a refcount is `1 << refcount_order` bits.
    pub(super) refcount_order: u32,
    /// Compressed clusters are zstd's, not deflate's.
    pub(super) zstd: bool,
}

pub(super) fn invalid(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}

impl Header {
    /// Reads and checks it. For writing it must be in order, and what others keep beside the disk's bytes is declared stale.
    pub(super) fn read(file: &File, writable: bool) -> io::Result<Self> {
        let mut bytes = [0; 112];
        let mut length = 0;
        while length < bytes.len() {
            match file.read_at(&mut bytes[length..], length as u64)? {
                0 => break,
                count => length += count,
            }
        }
        let long = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if length < HEADER_2 || word(0) != MAGIC {
            return Err(invalid("the disk is no qcow2 image"));
        }
        let version = word(4);
        if !(2..=3).contains(&version) || version == 3 && length < HEADER_3 {
            return Err(invalid(format!(
                "the qcow2 image has version {version}; 2 and 3 can be read"
            )));
        }
        let (incompatible, order) = if version == 3 {
            (long(72), word(96))
        } else {
            (0, 4)
        };
        let has_type = incompatible & INCOMPATIBLE_COMPRESSION != 0;
        let header = Self {
            version,
            has_backing: long(8) != 0,
            cluster_bits: word(20),
            size: long(24),
            l1_size: word(36),
            l1_offset: long(40),
            refcount_table_offset: long(48),
            refcount_table_clusters: word(56),
            refcount_order: order,
            zstd: has_type && bytes[COMPRESSION_TYPE] == 1,
        };
        if word(32) != 0 {
            return Err(invalid("the qcow2 image is encrypted, which cannot be read here"));
        }
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(invalid(
                "the qcow2 image has its data in another file, which cannot be read here",
            ));
        }
        if incompatible & INCOMPATIBLE_EXTENDED_L2 != 0 {
            return Err(invalid(
                "the qcow2 image has subclusters, which cannot be read here: convert it",
            ));
        }
        if incompatible >> 5 != 0 || has_type && bytes[COMPRESSION_TYPE] > 1 {
            return Err(invalid(format!(
                "the qcow2 image needs features that are not known here ({incompatible:#x})"
            )));
        }
        if writable && incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT) != 0 {
            return Err(invalid(
                "the qcow2 image was not closed in order: repair it (qemu-img check -r all), or use it read-only",
            ));
        }
        header.check()?;
        if writable && version == 3 && long(88) != 0 {
            file.write_all_at(&[0; 8], AUTOCLEAR)?;
        }
        Ok(header)
    }

    fn check(&self) -> io::Result<()> {
        let nonsense = |what: &str| Err(invalid(format!("the qcow2 image makes no sense: {what}")));
        if !CLUSTER_BITS.contains(&self.cluster_bits) {
            return nonsense("its clusters have no possible size");
        }
        if self.refcount_order > 6 {
            return nonsense("its reference counts are too wide");
        }
        let cluster = 1_u64 << self.cluster_bits;
        let aligned = |offset: u64| offset != 0 && offset.is_multiple_of(cluster) && offset < 1 << 56;
        let needed = self.size.div_ceil(cluster * (cluster / 8));
        if self.l1_size > L1_MAX || u64::from(self.l1_size) < needed {
            return nonsense("its L1 table is too large, or too small for the disk");
        }
        if self.l1_size > 0 && !aligned(self.l1_offset) || !aligned(self.refcount_table_offset) {
            return nonsense("its tables are at no possible place");
        }
        let table = u64::from(self.refcount_table_clusters) * cluster;
        if table == 0 || table > REFCOUNT_TABLE_BYTES_MAX {
            return nonsense("its refcount table has no possible size");
        }
        Ok(())
    }
}

/// Makes `file`, which is empty, an image of `size` bytes that holds nothing: version 3, clusters of 64 KiB.
pub fn create(file: &File, size: u64) -> io::Result<()> {
    const BITS: u32 = 16;
    const CLUSTER: u64 = 1 << BITS;
    let l1_size = size.div_ceil(CLUSTER * (CLUSTER / 8));
    if !size.is_multiple_of(512) || l1_size > u64::from(L1_MAX) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a qcow2 image cannot have {size} bytes: it takes whole sectors of 512 bytes, at most 2 PiB"
            ),
        ));
    }
    // Header, refcount table, its first block, L1 table.
    let l1_clusters = (l1_size * 8).div_ceil(CLUSTER).max(1);
    let mut header = [0; CLUSTER as usize];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_be_bytes());
    put(4, &3_u32.to_be_bytes());
    put(20, &BITS.to_be_bytes());
    put(24, &size.to_be_bytes());
    put(36, &u32::try_from(l1_size).unwrap_or(L1_MAX).to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    file.set_len((3 + l1_clusters) * CLUSTER)?;
    let mut block = Vec::new();
    for _ in 0..3 + l1_clusters {
        block.extend(1_u16.to_be_bytes());
    }
    file.write_all_at(&block, 2 * CLUSTER)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    file.write_all_at(&header, 0)?;
    file.sync_data()
}
