//! One message and its descriptors, in one packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// The longest message.
pub const MESSAGE_MAX: usize = 64 << 10;
/// The most descriptors of one.
pub const DESCRIPTORS_MAX: usize = 4;

/// Sends a message.
pub fn send(
    socket: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    if message.len() > MESSAGE_MAX || descriptors.len() > DESCRIPTORS_MAX {
        return Err(io::Error::other(
            "a message on the control socket is too long, or has too many descriptors",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        let sent = rustix::net::sendmsg(
            &socket,
            &[IoSlice::new(message)],
            &mut ancillary,
            flags | SendFlags::NOSIGNAL,
        );
        match sent {
            Err(Errno::INTR) => {}
            other => return Ok(other.map(|_| ())?),
        }
    }
}

/// Receives a message; `None` at the end.
pub fn receive(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut message = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let received = rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut message)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Err(Errno::INTR) => {}
            // The other end closed it with messages of ours unread.
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message on the control socket is longer than 64 KiB, or has more than four descriptors",
        ));
    }
    if received.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    message.truncate(received.bytes);
    Ok(Some((message, descriptors)))
}
