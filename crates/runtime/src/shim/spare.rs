//! The spare shim: one that was executed in advance and waits for what a launch gives it.
//!
//! Executing a program costs about a millisecond before its first line (the processor's features asked from a
//! hypervisor, pages mapped). The launcher therefore keeps one shim ready and executes the next when nothing is being
//! started ([`Spare::calm`]), 20 ms after the launch at the latest. The spare waits at a socket, is a child of the daemon like every shim, and ends when the daemon does.
//!
//! There is one message: the payload is the container's ID, the descriptors are the shim's, in the order of their
//! numbers, from 3 on. Nothing is answered: the shim's control stream tells how it goes.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::launch::spawn;
use crate::error::Context;
use crate::sys::close_range::close_range;
use crate::{Error, ErrorKind, Result};

/// The spare's argument: as long as an ID, so that the container's can take its place.
const ARGUMENT: &str = "spare                                                           ";

/// The most descriptors one message carries (the kernel's `SCM_MAX_FD`).
const MAX_FDS: usize = 253;

/// How long after a launch the next spare is executed at the latest. Until then it would take a processor from a start
/// under way, unless that is over before: see [`Spare::calm`].
const LATEST: Duration = Duration::from_millis(20);

/// Where a shim's descriptors begin.
const FIRST_FD: i32 = 3;

/// The launcher's spare shim, when there is one.
#[derive(Debug)]
pub struct Spare {
    ready: Arc<Mutex<Option<Ready>>>,
    /// Closed with this, which ends the thread that executes spares.
    tell: SyncSender<Word>,
}

/// What the thread that executes spares is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// A spare was taken.
    Wanted,
    /// Nothing is being started right now.
    Calm,
}

#[derive(Debug)]
struct Ready {
    socket: OwnedFd,
    pid: i32,
}

impl Spare {
    /// Executes the first one, on a thread that executes all the later ones.
    pub fn keep(executable: OwnedFd) -> Result<Self> {
        let ready = Arc::new(Mutex::new(None));
        let (tell, words) = sync_channel(4);
        let slot = Arc::clone(&ready);
        std::thread::Builder::new()
            .name("vessel-spare".to_owned())
            .spawn(move || refill(&executable, &slot, &words))
            .context(|| "start the thread that keeps a shim ready")?;
        let _ = tell.try_send(Word::Wanted);
        Ok(Self { ready, tell })
    }

    /// Hands a launch to the spare, which inherits `fds`, numbered from 3. Its process ID, or nothing when a shim has to
    /// be executed for this launch.
    pub fn take(&self, id: &str, fds: &[BorrowedFd<'_>]) -> Option<i32> {
        if fds.len() > MAX_FDS || id.len() > ARGUMENT.len() {
            return None;
        }
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Full: it has enough to hear.
        let _ = self.tell.try_send(Word::Wanted);
        let ready = ready?;
        match ready.send(id, fds) {
            Ok(()) => Some(ready.pid),
            Err(_) => {
                ready.discard();
                None
            }
        }
    }

    /// A start and all that followed from it is over: a good moment to execute the next spare.
    pub fn calm(&self) {
        let _ = self.tell.try_send(Word::Calm);
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(ready) = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take() {
            ready.discard();
        }
    }
}

fn refill(executable: &OwnedFd, slot: &Mutex<Option<Ready>>, words: &Receiver<Word>) {
    while let Ok(word) = words.recv() {
        if word == Word::Calm || slot.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            continue;
        }
        let end = Instant::now() + LATEST;
        loop {
            match words.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Word::Wanted) => {}
                Ok(Word::Calm) | Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // Without a spare a launch executes its own, and says what is wrong.
        if let Ok(ready) = Ready::start(executable) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(ready);
        }
    }
}

impl Ready {
    fn start(executable: &OwnedFd) -> Result<Self> {
        let (socket, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context(|| "make the spare shim's socket")?;
        let pid = spawn(executable, &["vessel", "shim", ARGUMENT], &[theirs.as_raw_fd()])?;
        Ok(Self { socket, pid })
    }

    /// Fails when the spare was killed.
    fn send(&self, id: &str, fds: &[BorrowedFd<'_>]) -> std::result::Result<(), Errno> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(fds));
        let payload = [std::io::IoSlice::new(id.as_bytes())];
        rustix::io::retry_on_intr(|| sendmsg(&self.socket, &payload, &mut control, SendFlags::NOSIGNAL))
            .map(drop)
    }

    /// Ends the spare, which sees its socket closed, and collects it.
    fn discard(self) {
        drop(self.socket);
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
        }
    }
}

/// Whether the program's argument after `shim` means the spare.
pub fn is_spare(argument: Option<&std::ffi::OsStr>) -> bool {
    argument.is_some_and(|argument| argument == ARGUMENT)
}

/// Waits for a launch and runs the shim. Returns the process's exit code; 0, too, when the daemon ended first.
pub fn run_spare() -> i32 {
    let _ = rustix::thread::set_name(c"vessel-shim");
    // SAFETY: the launcher made the first number the socket; nothing here owns another yet. What the daemon's own parent
    // left open to it would stand in the way of the numbers.
    let socket = unsafe {
        let _ = close_range(FIRST_FD as u32 + 1, u32::MAX);
        OwnedFd::from_raw_fd(FIRST_FD)
    };
    match receive(socket) {
        Ok(Some(id)) => {
            set_title(&id);
            super::run::run()
        }
        Ok(None) => 0,
        Err(_) => 1,
    }
}

/// Receives the launch: afterwards the shim's descriptors have their numbers. Tells the container's ID; `None` when the
/// daemon is gone.
fn receive(socket: OwnedFd) -> Result<Option<Vec<u8>>> {
    // The lowest numbers that are free are given to what is received: they are the shim's when the socket is away.
    rustix::stdio::dup2_stdin(&socket).context(|| "wait for a launch")?;
    drop(socket);
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut id = [0; ARGUMENT.len()];
    let received = rustix::io::retry_on_intr(|| {
        let mut payload = [std::io::IoSliceMut::new(&mut id)];
        recvmsg(
            rustix::stdio::stdin(),
            &mut payload,
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })
    .context(|| "wait for a launch")?;
    if received.bytes == 0 {
        return Ok(None);
    }
    // Fewer descriptors than were sent: this process may not have so many.
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Error::new(
            ErrorKind::System,
            "a launch came with more descriptors than a process may have",
        ));
    }
    let fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    for (number, fd) in (FIRST_FD..).zip(fds.flatten()) {
        // From here on the number is the owner, as in a shim that was executed for its launch.
        if fd.into_raw_fd() != number {
            return Err(Error::new(
                ErrorKind::System,
                "a launch came with descriptors out of order",
            ));
        }
    }
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    null.and_then(|null| rustix::stdio::dup2_stdin(&null))
        .context(|| "open /dev/null")?;
    Ok(Some(id[..received.bytes].to_vec()))
}

/// Puts the container's ID where this process's argument was, for ps(1) and its like. Without the privilege of
/// `PR_SET_MM` the only way is to write over the argument itself.
fn set_title(id: &[u8]) {
    let Some((start, end)) = arguments() else { return };
    // SAFETY: the kernel put the program's arguments there; they are writable, stay as long as the process, and nobody
    // refers to them: std copies what it hands out.
    let area = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
    let found = area
        .windows(ARGUMENT.len())
        .position(|bytes| bytes == ARGUMENT.as_bytes());
    if let Some(at) = found {
        let place = &mut area[at..at + ARGUMENT.len()];
        place.fill(0);
        place[..id.len()].copy_from_slice(id);
    }
}

/// Where the arguments are: proc_pid_stat(5), fields 48 and 49 (`arg_start`, `arg_end`).
fn arguments() -> Option<(usize, usize)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name may contain spaces; the fields after it are numbered from 3.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (0 < start && start < end && end - start < 4096).then_some((start, end))
}
