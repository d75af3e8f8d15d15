//! Sockets: vsock, netlink, DNS on loopback, and descriptors sent to PID 1 by its children.

use super::{Errno, Fd, O_CLOEXEC, O_NONBLOCK, Result, call};

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_NETLINK: u16 = 16;
pub const AF_VSOCK: u16 = 40;
pub const SOCK_STREAM: i32 = 1;
pub const SOCK_DGRAM: i32 = 2;
pub const SOCK_RAW: i32 = 3;
pub const SOCK_SEQPACKET: i32 = 5;
pub const SOCK_NONBLOCK: i32 = O_NONBLOCK;

/// A socket address as the kernel has it.
#[derive(Clone, Copy)]
pub struct Address {
    bytes: [u8; 16],
    length: u32,
}

impl Address {
    pub fn inet(address: [u8; 4], port: u16) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&AF_INET.to_le_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&address);
        Self { bytes, length: 16 }
    }

    pub fn vsock(context: u32, port: u32) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&AF_VSOCK.to_le_bytes());
        bytes[4..8].copy_from_slice(&port.to_le_bytes());
        bytes[8..12].copy_from_slice(&context.to_le_bytes());
        Self { bytes, length: 16 }
    }

    pub fn netlink() -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&AF_NETLINK.to_le_bytes());
        Self { bytes, length: 12 }
    }

    pub fn family(&self) -> u16 {
        u16::from_le_bytes([self.bytes[0], self.bytes[1]])
    }

    /// The context ID of a vsock address.
    pub fn context(&self) -> u32 {
        u32::from_le_bytes([self.bytes[8], self.bytes[9], self.bytes[10], self.bytes[11]])
    }
}

pub fn socket(family: u16, kind: i32, protocol: i32) -> Result<Fd> {
    open!(41, family, kind | O_CLOEXEC, protocol)
}

pub fn socket_pair(kind: i32) -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    sys!(53, AF_UNIX, kind | O_CLOEXEC, 0, ends.as_mut_ptr())?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

pub fn bind(socket: &Fd, address: &Address) -> Result<()> {
    sys!(49, socket.0, address.bytes.as_ptr(), address.length).map(drop)
}

pub fn listen(socket: &Fd) -> Result<()> {
    sys!(50, socket.0, 128).map(drop)
}

/// A connection, not blocking, and where it comes from.
pub fn accept(listener: &Fd) -> Result<(Fd, Address)> {
    let mut address = Address {
        bytes: [0; 16],
        length: 16,
    };
    let fd = open!(
        288,
        listener.0,
        address.bytes.as_mut_ptr(),
        &raw mut address.length,
        O_NONBLOCK | O_CLOEXEC
    )?;
    Ok((fd, address))
}

/// Begins to connect; an error that means "under way" is none.
pub fn connect(socket: &Fd, address: &Address) -> Result<()> {
    match sys!(42, socket.0, address.bytes.as_ptr(), address.length) {
        Err(Errno(115)) => Ok(()),
        result => result.map(drop),
    }
}

pub fn end_writing(socket: &Fd) {
    let _ = sys!(48, socket.0, 1);
}

pub fn send_to(socket: &Fd, bytes: &[u8], to: &Address) -> Result<usize> {
    sys!(
        44,
        socket.0,
        bytes.as_ptr(),
        bytes.len(),
        0,
        to.bytes.as_ptr(),
        to.length
    )
}

pub fn receive_from(socket: &Fd, into: &mut [u8]) -> Result<(usize, Address)> {
    let mut from = Address {
        bytes: [0; 16],
        length: 16,
    };
    let count = sys!(
        45,
        socket.0,
        into.as_mut_ptr(),
        into.len(),
        0,
        from.bytes.as_mut_ptr(),
        &raw mut from.length
    )?;
    Ok((count, from))
}

#[repr(C)]
struct Message {
    name: usize,
    name_length: u32,
    vector: *const Vector,
    vector_length: usize,
    control: *mut u64,
    control_length: usize,
    flags: i32,
}

#[repr(C)]
struct Vector {
    base: *mut u8,
    length: usize,
}

/// Room for one `struct cmsghdr` with one descriptor: length 8, level 4, type 4, descriptor 4, padding 4.
type Control = [u64; 3];
const SCM_RIGHTS: u64 = 1 << 32 | 1;

/// Sends bytes, and a descriptor with them.
pub fn send_message(socket: &Fd, bytes: &[u8], descriptor: Option<&Fd>) -> Result<()> {
    let vector = Vector {
        base: bytes.as_ptr().cast_mut(),
        length: bytes.len(),
    };
    let mut control: Control = [20, SCM_RIGHTS, descriptor.map_or(0, |fd| fd.0 as u64)];
    let message = Message {
        name: 0,
        name_length: 0,
        vector: &vector,
        vector_length: 1,
        control: control.as_mut_ptr(),
        control_length: if descriptor.is_some() { 24 } else { 0 },
        flags: 0,
    };
    // MSG_NOSIGNAL
    sys!(46, socket.0, &raw const message, 0x4000).map(drop)
}

/// Receives bytes, and the descriptor that came with them.
pub fn receive_message(socket: &Fd, into: &mut [u8]) -> Result<(usize, Option<Fd>)> {
    let vector = Vector {
        base: into.as_mut_ptr(),
        length: into.len(),
    };
    let mut control: Control = [0; 3];
    let mut message = Message {
        name: 0,
        name_length: 0,
        vector: &vector,
        vector_length: 1,
        control: control.as_mut_ptr(),
        control_length: 24,
        flags: 0,
    };
    // MSG_CMSG_CLOEXEC
    let count = sys!(47, socket.0, &raw mut message, 0x4000_0000)?;
    let passed = message.control_length >= 20 && control[0] == 20 && control[1] == SCM_RIGHTS;
    Ok((count, passed.then(|| Fd(control[2] as u32 as i32))))
}
