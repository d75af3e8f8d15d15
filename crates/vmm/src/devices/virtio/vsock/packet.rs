//! The header of every packet (5.10.6).

use vm_memory::ByteValued;

/// The host's context ID.
pub const HOST_CID: u64 = 2;

/// Bytes of a header.
pub const HEADER: usize = 44;

pub const TYPE_STREAM: u16 = 1;

pub const OP_REQUEST: u16 = 1;
pub const OP_RESPONSE: u16 = 2;
pub const OP_RST: u16 = 3;
pub const OP_SHUTDOWN: u16 = 4;
pub const OP_RW: u16 = 5;
pub const OP_CREDIT_UPDATE: u16 = 6;
pub const OP_CREDIT_REQUEST: u16 = 7;

/// The sender of a SHUTDOWN will receive nothing more.
pub const SHUTDOWN_RCV: u32 = 1;
/// It will send nothing more.
pub const SHUTDOWN_SEND: u32 = 2;
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// A header as it lies in memory: the fields follow each other without padding.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

// SAFETY: packed integers, every bit pattern of which is valid.
unsafe impl ByteValued for Header {}

const _: () = assert!(size_of::<Header>() == HEADER);
