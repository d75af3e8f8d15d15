//! The children that become programs, and what they tell PID 1 on the way.

use alloc::format;
use alloc::vec::Vec;
use core::convert::Infallible;

use crate::container::CGROUP;
use crate::fault::{Context, Fault, Result, show};
use crate::identity;
use crate::mounts;
use crate::os::{self, Fd, O_DIRECTORY, O_NOCTTY, O_PATH, O_RDWR};
use crate::protocol::{Failure, Process, Size, Start};
use crate::wire::Wire;

const TIOCSCTTY: usize = 0x540e;
const TIOCSWINSZ: usize = 0x5414;
const TIOCSPTLCK: usize = 0x4004_5431;
const TIOCGPTPEER: usize = 0x5441;

/// All of a container's namespaces but the network's, which is the guest's own.
const KINDS: u64 =
    os::CLONE_NEWPID | os::CLONE_NEWNS | os::CLONE_NEWIPC | os::CLONE_NEWUTS | os::CLONE_NEWCGROUP;

/// What a child tells. That it was executed, it tells by closing the channel.
pub enum News {
    /// The other side of its terminal.
    Terminal(Fd),
    /// The process that will be the program, when it is not the child itself.
    Is(i32),
    /// Why there will be no program.
    Failed(Fault),
}

/// The child's end of the channel.
pub struct Channel(pub Fd);

impl Channel {
    fn tell(&self, kind: u8, bytes: &[u8], fd: Option<&Fd>) {
        let message = [&[kind], bytes].concat();
        let _ = os::send_message(&self.0, &message, fd);
    }
}

/// The next news of a child; none: there will be no more.
pub fn hear(channel: &Fd) -> os::Result<Option<News>> {
    let mut bytes = [0; 4096];
    let (count, fd) = os::receive_message(channel, &mut bytes)?;
    let Some((kind, mut rest)) = bytes.get(..count).and_then(<[u8]>::split_first) else {
        return Ok(None);
    };
    Ok(match (kind, fd) {
        (b'T', Some(fd)) => Some(News::Terminal(fd)),
        (b'P', _) => i32::decode(&mut rest).map(News::Is),
        _ => {
            let kind = Failure::decode(&mut rest).unwrap_or_default();
            Some(News::Failed(Fault::new(kind, show(rest))))
        }
    })
}

/// Starts the container's first process; gives its ID in the guest.
pub fn start(start: &Start, streams: [Option<Fd>; 3], channel: Fd) -> Result<i32> {
    let cgroup = crate::container::cgroup(start)?;
    // The cgroup namespace comes later: its root is where the process is then.
    let kinds = KINDS & !os::CLONE_NEWCGROUP;
    match os::fork(kinds, cgroup.as_ref()).context(|| "make a process".into())? {
        0 => child(&Channel(channel), |channel| first(start, streams, channel)),
        pid => Ok(pid),
    }
}

/// Starts another process in the container whose first process is `container`; gives the ID of a child that leads there.
pub fn start_another(
    process: &Process,
    streams: [Option<Fd>; 3],
    container: &Fd,
    channel: Fd,
) -> Result<i32> {
    let cgroup = os::open(CGROUP.as_bytes(), O_PATH | O_DIRECTORY).ok();
    match os::fork(0, cgroup.as_ref()).context(|| "make a process".into())? {
        0 => child(&Channel(channel), |channel| {
            another(process, streams, container, channel)
        }),
        pid => Ok(pid),
    }
}

/// Does something in a child, which then ends; failures are told.
pub fn aside(channel: Fd, work: impl FnOnce() -> Result<()>) -> Result<()> {
    match os::fork(0, None).context(|| "make a process".into())? {
        0 => child(&Channel(channel), |_| {
            work()?;
            os::exit(0)
        }),
        _ => Ok(()),
    }
}

fn child(channel: &Channel, work: impl FnOnce(&Channel) -> Result<Infallible>) -> ! {
    os::block_signals(0);
    let Err(fault) = work(channel);
    let mut bytes = Vec::new();
    fault.kind.encode(&mut bytes);
    bytes.extend(fault.message.bytes().take(2000));
    channel.tell(b'F', &bytes, None);
    os::exit(1)
}

fn first(start: &Start, mut streams: [Option<Fd>; 3], channel: &Channel) -> Result<Infallible> {
    let process = &start.process;
    // Modes in the configuration are meant as they are written.
    os::umask(0);
    adjust_oom_score(process)?;
    os::unshare(os::CLONE_NEWCGROUP).context(|| "make a cgroup namespace".into())?;
    let root = mounts::make(start)?;
    // A missing working directory is made, as other runtimes do.
    mounts::target(&root, &process.cwd, true, false)?;
    if let Some(size) = &process.terminal {
        let terminal = terminal(&root, size, process, channel)?;
        mounts::console(&root, &terminal)?;
        streams = shared(terminal)?;
    }
    for setting in &start.sysctls {
        set_parameter(&setting.name, &setting.value)?;
    }
    new_session(process, &streams)?;
    identity::streams(
        &streams,
        if process.terminal.is_some() {
            0
        } else {
            process.uid
        },
    )?;
    drop(streams);
    mounts::enter(&root, start)?;
    drop(root);
    if !start.hostname.is_empty() {
        os::set_host_name(&start.hostname).context(|| "set the host name".into())?;
    }
    if !start.domainname.is_empty() {
        os::set_domain_name(&start.domainname).context(|| "set the domain name".into())?;
    }
    identity::execute(process)
}

fn another(
    process: &Process,
    mut streams: [Option<Fd>; 3],
    container: &Fd,
    channel: &Channel,
) -> Result<Infallible> {
    os::umask(0);
    adjust_oom_score(process)?;
    os::enter(container, KINDS).context(|| "enter the container".into())?;
    // The namespace of process IDs counts for children only; this one's parent is PID 1 all the same.
    match os::fork(os::CLONE_PARENT, None).context(|| "make a process in the container".into())? {
        0 => {}
        pid => {
            channel.tell(b'P', &pid.to_le_bytes(), None);
            os::exit(0);
        }
    }
    if let Some(size) = &process.terminal {
        let root = os::open(b"/", O_PATH | O_DIRECTORY).context(|| "open the container's root".into())?;
        streams = shared(terminal(&root, size, process, channel)?)?;
    }
    new_session(process, &streams)?;
    identity::streams(
        &streams,
        if process.terminal.is_some() {
            0
        } else {
            process.uid
        },
    )?;
    drop(streams);
    identity::execute(process)
}

fn adjust_oom_score(process: &Process) -> Result<()> {
    match process.oom_score_adj {
        None => Ok(()),
        Some(value) => os::write_file(b"/proc/self/oom_score_adj", format!("{value}").as_bytes())
            .context(|| format!("set oom_score_adj to {value}")),
    }
}

/// A kernel parameter; still by PID 1's `/proc`, which shows those of this process's namespaces.
fn set_parameter(name: &[u8], value: &[u8]) -> Result<()> {
    // Of the two separators, the first that occurs is the one; the other stands for itself.
    let dotted = name.iter().find(|byte| matches!(byte, b'.' | b'/')) == Some(&b'.');
    let path: Vec<u8> = name
        .iter()
        .map(|byte| match byte {
            b'.' if dotted => b'/',
            b'/' if dotted => b'.',
            other => *other,
        })
        .collect();
    if path
        .split(|byte| *byte == b'/')
        .any(|part| part == b".." || part.is_empty())
    {
        return Err(Fault::invalid(format!(
            "{} is not a kernel parameter",
            show(name)
        )));
    }
    os::write_file(&[b"/proc/sys/", &path[..]].concat(), value)
        .context(|| format!("set the kernel parameter {} to {}", show(name), show(value)))
}

/// Makes a terminal in the container's devpts, so that its programs find it there; PID 1 gets the other side.
fn terminal(root: &Fd, size: &Size, process: &Process, channel: &Channel) -> Result<Fd> {
    let what = || "make a terminal; does the container have /dev/pts?".into();
    let master = os::open_in(root, b"/dev/pts/ptmx", O_RDWR | O_NOCTTY, os::RESOLVE_IN_ROOT).context(what)?;
    let unlocked = 0i32;
    os::control(master.raw(), TIOCSPTLCK, &raw const unlocked as usize).context(what)?;
    let flags = (O_RDWR | O_NOCTTY | os::O_CLOEXEC) as usize;
    let terminal = Fd::own(os::control(master.raw(), TIOCGPTPEER, flags).context(what)? as i32);
    resize(&master, size).context(what)?;
    os::change_owner(terminal.raw(), process.uid, u32::MAX).context(what)?;
    channel.tell(b'T', &[], Some(&master));
    Ok(terminal)
}

pub fn resize(terminal: &Fd, size: &Size) -> os::Result<()> {
    let window = [size.rows, size.columns, 0, 0];
    os::control(terminal.raw(), TIOCSWINSZ, window.as_ptr() as usize).map(drop)
}

fn shared(terminal: Fd) -> Result<[Option<Fd>; 3]> {
    let copy = || {
        os::duplicate(&terminal)
            .context(|| "share the terminal".into())
            .map(Some)
    };
    Ok([copy()?, copy()?, Some(terminal)])
}

fn new_session(process: &Process, streams: &[Option<Fd>; 3]) -> Result<()> {
    os::new_session().context(|| "start a session".into())?;
    if let (Some(_), [Some(terminal), ..]) = (&process.terminal, streams) {
        os::control(terminal.raw(), TIOCSCTTY, 0).context(|| "take the terminal".into())?;
    }
    Ok(())
}
