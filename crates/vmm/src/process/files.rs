//! The process that serves shared directories: a child of the machine's, forked before that has threads or walls.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::{DirectoryConfig, Failure};
use crate::devices::virtio::fs::{self, Descriptors, RemoteFs, Server, SharedMemory};
use crate::jail::{self, Jail, filter, report};

/// The process, and the devices whose directories it serves.
pub(super) struct FileServer {
    /// It.
    pub process: Pid,
    /// By tag.
    pub devices: Vec<(String, RemoteFs)>,
}

/// One directory, in the process.
struct Share {
    server: Arc<Server>,
    channels: Vec<OwnedFd>,
}

/// Starts it. The calling process must have one thread.
pub(super) fn start(
    directories: &[DirectoryConfig],
    control: &OwnedFd,
    jailed: bool,
) -> Result<FileServer, Failure> {
    let mut devices = Vec::new();
    let mut inside = Vec::new();
    for config in directories {
        let failed = |source| Failure::Directory {
            tag: config.tag.clone(),
            source,
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..config.queues.max(1) {
            let (end, other) = fs::channel().map_err(failed)?;
            ours.push(end);
            theirs.push(other);
        }
        let directory = inherited(config.directory.0).map_err(failed)?;
        devices.push((
            config.tag.clone(),
            RemoteFs::new(&config.tag, ours).map_err(failed)?,
        ));
        inside.push((config, directory, theirs));
    }
    // SAFETY: there is one thread, so the child's memory is consistent, locks of the allocator included.
    match unsafe { libc::fork() } {
        -1 => Err(Failure::Fork(io::Error::last_os_error())),
        0 => {
            drop(devices);
            let code = match child(inside, control, jailed) {
                Ok(()) => 0,
                Err(error) => {
                    let message = format!("shared directories cannot be served: {error}");
                    report::last_words(&message);
                    1
                }
            };
            // SAFETY: ends the process; what its parent had open is the parent's to close.
            unsafe { libc::_exit(code) }
        }
        child => Ok(FileServer {
            // Not 0 and not negative.
            process: Pid::from_raw(child).ok_or(Failure::Fork(io::ErrorKind::Other.into()))?,
            devices,
        }),
    }
}

fn child(
    directories: Vec<(&DirectoryConfig, OwnedFd, Vec<OwnedFd>)>,
    control: &OwnedFd,
    jailed: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    // It has no reason to be without its machine.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut kept = vec![control.as_raw_fd()];
    for (_, directory, channels) in &directories {
        kept.push(directory.as_raw_fd());
        kept.extend(channels.iter().map(AsRawFd::as_raw_fd));
    }
    close_others(kept);
    raise_descriptors();
    let descriptors = Arc::new(Descriptors::open()?);
    let mut shares = Vec::new();
    for (config, directory, channels) in directories {
        shares.push(Share {
            server: Arc::new(Server::new(directory, config.options)?),
            channels,
        });
    }
    // By capabilities alone it is somebody: files of the guest's root are made without changing the thread's identity.
    let jail = Jail {
        user: None,
        network: true,
        capabilities: jail::file_capabilities(),
    };
    if jailed {
        jail.enter()?;
        filter::install(filter::Kind::Files)?;
    }
    let mut threads = Vec::new();
    for share in shares {
        let memory = SharedMemory::default();
        for channel in share.channels {
            let (server, descriptors, memory) = (share.server.clone(), descriptors.clone(), memory.clone());
            let thread = std::thread::Builder::new().name("files".to_owned());
            threads.push(thread.spawn(move || fs::serve(&channel, &server, &descriptors, &memory))?);
        }
    }
    for thread in threads {
        // A panic has ended the process.
        if let Ok(result) = thread.join() {
            result?;
        }
    }
    Ok(())
}

/// Closes what was inherited and is not `kept`: disks, the network, the machine's ends of channels.
fn close_others(mut kept: Vec<RawFd>) {
    kept.extend([0, 1, 2]);
    kept.sort_unstable();
    let mut next: u32 = 0;
    for fd in kept {
        let fd = fd.unsigned_abs();
        if next < fd {
            close_range(next, fd - 1);
        }
        next = fd + 1;
    }
    close_range(next, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: nothing that is still used has these numbers: all of it is in the list.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// As many descriptors as may be.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // What there is must do if not: the server keeps to a number of its own.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}

/// Takes an inherited descriptor.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: asks only.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and whoever started this process left it to it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
