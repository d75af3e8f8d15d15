//! What a request asks for (virtio 1.2, 5.2.6): a header, data, a byte for the status.

use vm_memory::ByteValued;

use super::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR};
use crate::devices::virtio::Buffers;
use crate::devices::virtio::Chain;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const RANGE_UNMAP: u32 = 1;

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

/// What may be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) read_only: bool,
    pub(super) sectors: u64,
}

/// A piece of the disk: first byte, length, whether its room may be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) unmap: bool,
}

/// A sound request. Offsets and lengths are multiples of a sector and within the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Into what is left of the chain's writable buffers.
    Read {
        offset: u64,
        length: u64,
    },
    /// From what is left of its readable ones.
    Write {
        offset: u64,
        length: u64,
    },
    Flush,
    GetId,
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

// SAFETY: integers without padding: any bytes are a value.
unsafe impl ByteValued for Header {}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RawRange {
    sector: u64,
    sectors: u32,
    flags: u32,
}

// SAFETY: as above.
unsafe impl ByteValued for RawRange {}

/// Takes the status's byte from a chain. `None`: there is none, and so no way to answer.
pub(super) fn take_status(chain: &mut Chain) -> Option<Buffers> {
    chain.writable.split_back(1)
}

/// Reads a chain whose status was taken.
pub(super) fn parse(chain: &mut Chain, access: Access) -> Result<Request, Status> {
    let header: Header = chain.readable.read_obj().ok_or(Status::Error)?;
    let sector = u64::from_le(header.sector);
    match u32::from_le(header.kind) {
        TYPE_IN => {
            let (offset, length) = place(access, sector, chain.writable.left() as u64)?;
            Ok(Request::Read { offset, length })
        }
        TYPE_OUT if access.read_only => Err(Status::Error),
        TYPE_OUT => {
            let (offset, length) = place(access, sector, chain.readable.left() as u64)?;
            Ok(Request::Write { offset, length })
        }
        TYPE_FLUSH => Ok(Request::Flush),
        TYPE_GET_ID => Ok(Request::GetId),
        TYPE_DISCARD | TYPE_WRITE_ZEROES if access.read_only => Err(Status::Error),
        TYPE_DISCARD => Ok(Request::Discard(ranges(chain, access, false)?)),
        TYPE_WRITE_ZEROES => Ok(Request::WriteZeroes(ranges(chain, access, true)?)),
        _ => Err(Status::Unsupported),
    }
}

/// First byte and length, if they are on the disk.
fn place(access: Access, sector: u64, length: u64) -> Result<(u64, u64), Status> {
    let end = sector.checked_add(length / SECTOR);
    if !length.is_multiple_of(SECTOR) || end.is_none_or(|end| end > access.sectors) {
        return Err(Status::Error);
    }
    Ok((sector * SECTOR, length))
}

fn ranges(chain: &mut Chain, access: Access, may_unmap: bool) -> Result<Vec<Range>, Status> {
    let length = chain.readable.left();
    let count = length / size_of::<RawRange>();
    if !length.is_multiple_of(size_of::<RawRange>()) || count == 0 || count > RANGES_MAX as usize {
        return Err(Status::Error);
    }
    let mut ranges = Vec::with_capacity(count);
    while let Some(raw) = chain.readable.read_obj::<RawRange>() {
        let (sectors, flags) = (u32::from_le(raw.sectors), u32::from_le(raw.flags));
        let allowed = if may_unmap { RANGE_UNMAP } else { 0 };
        if flags & !allowed != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > RANGE_SECTORS_MAX {
            return Err(Status::Error);
        }
        let (offset, length) = place(access, u64::from_le(raw.sector), u64::from(sectors) * SECTOR)?;
        ranges.push(Range {
            offset,
            length,
            unmap: flags & RANGE_UNMAP != 0,
        });
    }
    Ok(ranges)
}
