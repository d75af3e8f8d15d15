//! What parent and child say to each other while a container is being made.
//!
//! A pair of `SOCK_SEQPACKET` sockets: one message, one packet; the first byte says which. Descriptors travel with
//! `SCM_RIGHTS`. The child's end is close-on-exec, so the end of the stream means that the program was executed.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::error::{Context, Report};
use crate::{Error, ErrorKind, Result};

/// From the child to its parent.
#[derive(Debug)]
pub enum FromChild {
    /// Run the hooks of the runtime's namespaces, then [`ToChild::Go`] on.
    Hooks,
    /// The other side of the terminal.
    Terminal(OwnedFd),
    /// The seccomp listener has this number in the child; it waits until it was passed on.
    SeccompListener(i32),
    /// An intermediate process made the container's first process, with this ID.
    Pid(i32),
    /// Something asked for could not be had.
    Warning(String),
    /// All is prepared; what comes next is the program (or waiting to be started).
    Ready,
    /// It failed.
    Failed(Report),
}

/// From the parent to the child.
#[derive(Debug)]
pub enum ToChild {
    /// What the child waited for is done; with a root file system when the parent had to make it.
    Go(Option<OwnedFd>),
}

/// One end of the channel.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

const LARGEST: usize = 64 << 10;

impl Channel {
    /// Both ends.
    pub fn pair() -> Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context(|| "make a channel to the container's process")?;
        Ok((Self(a), Self(b)))
    }

    /// Closes the parent's end in a child that was made with a copy of it: while the child holds it, it would never hear
    /// that its parent died.
    ///
    /// # Safety
    /// The caller must be that child, and neither use nor drop this end afterwards: end with execve(2) or _exit(2).
    pub unsafe fn forget_in_child(&self) {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open and, by this function's contract, not used again.
        unsafe { libc::close(self.0.as_raw_fd()) };
    }

    /// Tells the parent.
    pub fn tell_parent(&self, message: &FromChild) -> Result<()> {
        let text = |tag: u8, body: Vec<u8>| [vec![tag], body].concat();
        match message {
            FromChild::Hooks => self.send(b"h", None),
            FromChild::Terminal(fd) => self.send(b"t", Some(fd.as_fd())),
            FromChild::SeccompListener(fd) => self.send(&text(b's', fd.to_le_bytes().to_vec()), None),
            FromChild::Pid(pid) => self.send(&text(b'p', pid.to_le_bytes().to_vec()), None),
            FromChild::Warning(warning) => self.send(&text(b'w', warning.clone().into_bytes()), None),
            FromChild::Ready => self.send(b"r", None),
            FromChild::Failed(report) => {
                let mut report = report.clone();
                report
                    .message
                    .truncate(report.message.floor_char_boundary(LARGEST / 8));
                self.send(&text(b'e', serde_json::to_vec(&report).unwrap_or_default()), None)
            }
        }
    }

    /// Hears the child; `None` when it executed its program or died.
    pub fn hear_child(&self) -> Result<Option<FromChild>> {
        let (body, fd) = self.receive()?;
        let Some((&tag, body)) = body.split_first() else {
            return Ok(None);
        };
        let number = || {
            <[u8; 4]>::try_from(body)
                .map(i32::from_le_bytes)
                .map_err(|_| garbled())
        };
        Ok(Some(match (tag, fd) {
            (b'h', _) => FromChild::Hooks,
            (b't', Some(fd)) => FromChild::Terminal(fd),
            (b's', _) => FromChild::SeccompListener(number()?),
            (b'p', _) => FromChild::Pid(number()?),
            (b'w', _) => FromChild::Warning(String::from_utf8_lossy(body).into_owned()),
            (b'r', _) => FromChild::Ready,
            (b'e', _) => FromChild::Failed(serde_json::from_slice(body).map_err(|_| garbled())?),
            _ => return Err(garbled()),
        }))
    }

    /// Tells the child. One that has died is not an error here: its end is heard.
    pub fn tell_child(&self, message: &ToChild) -> Result<()> {
        let ToChild::Go(fd) = message;
        match self.send_raw(b"g", fd.as_ref().map(AsFd::as_fd)) {
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(errno).context(|| "talk to the container's process"),
        }
    }

    /// Waits for the parent.
    pub fn hear_parent(&self) -> Result<ToChild> {
        let (body, fd) = self.receive()?;
        match body.as_slice() {
            b"g" => Ok(ToChild::Go(fd)),
            b"" => Err(runtime_ended()),
            _ => Err(garbled()),
        }
    }

    /// Waits until the parent has recorded the container. A system call filter that is installed already may forbid to
    /// listen; then there is nothing to wait for.
    pub fn hear_recorded(&self) -> Result<()> {
        match self.receive() {
            Ok((body, _)) if body.is_empty() => Err(runtime_ended()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn send(&self, body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.send_raw(body, fd).context(|| "talk to the runtime")
    }

    fn send_raw(&self, body: &[u8], fd: Option<BorrowedFd<'_>>) -> std::result::Result<(), Errno> {
        let parts = [std::io::IoSlice::new(body)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        rustix::net::sendmsg(&self.0, &parts, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
    }

    fn receive(&self) -> Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut body = vec![0; LARGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = loop {
            let mut parts = [std::io::IoSliceMut::new(&mut body)];
            match rustix::net::recvmsg(&self.0, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                // The other end died with something of ours unread.
                Err(Errno::CONNRESET) => return Ok((Vec::new(), None)),
                other => break other.context(|| "hear from the container's process")?,
            }
        };
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Err(garbled());
        }
        body.truncate(message.bytes);
        let mut fd = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                fd = fds.into_iter().next().or(fd);
            }
        }
        Ok((body, fd))
    }
}

fn runtime_ended() -> Error {
    Error::new(
        ErrorKind::System,
        "the runtime ended while the container was being made",
    )
}

fn garbled() -> Error {
    Error::new(
        ErrorKind::System,
        "a message between the runtime and the container's process was garbled",
    )
}
