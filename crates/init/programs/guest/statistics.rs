//! What the kernel knows of the container and its processes, as it says it.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::container::CGROUP;
use crate::os;
use crate::protocol::{File, ProcessFiles, STATISTICS};

/// What is read of a file at most.
const LIMIT: usize = 64 << 10;
const COMMAND_LINE: usize = 4096;
/// What a reply about processes holds at most; those with the highest IDs are left out beyond it.
const MAX_PROCESS_BYTES: usize = 768 << 10;

/// `PF_KTHREAD` of the flags in `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;

pub fn files() -> Vec<File> {
    let cgroup = STATISTICS.iter().map(|name| (*name, format!("{CGROUP}/{name}")));
    let system = ["/proc/net/dev", "/proc/meminfo", "/proc/stat"].map(|path| (path, String::from(path)));
    cgroup
        .chain(system)
        .filter_map(|(name, path)| {
            Some(File {
                name: name.into(),
                content: os::read_file(path.as_bytes(), LIMIT).ok()?,
            })
        })
        .collect()
}

/// All processes of the guest but this one and the kernel's: those of the container.
pub fn processes() -> Vec<ProcessFiles> {
    let mut all: Vec<i32> = os::names(b"/proc")
        .unwrap_or_default()
        .iter()
        .filter_map(|name| core::str::from_utf8(name).ok()?.parse().ok())
        .filter(|pid| *pid != os::process_id())
        .collect();
    all.sort_unstable();
    let mut room = MAX_PROCESS_BYTES;
    // One that goes away while it is looked at is left out.
    all.into_iter()
        .filter_map(process)
        .take_while(|one| {
            let size = one.stat.len() + one.status.len() + one.cmdline.len();
            let fits = size <= room;
            room = room.saturating_sub(size);
            fits
        })
        .collect()
}

fn process(pid: i32) -> Option<ProcessFiles> {
    let file = |name: &str, limit| os::read_file(format!("/proc/{pid}/{name}").as_bytes(), limit).ok();
    let stat = file("stat", 4096)?;
    // After the name in parentheses: state, parent, group, session, terminal, its group, flags.
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let flags = stat.get(after + 2..)?.split(|byte| *byte == b' ').nth(6)?;
    let flags: u64 = core::str::from_utf8(flags).ok()?.parse().ok()?;
    if flags & KERNEL_THREAD != 0 {
        return None;
    }
    Some(ProcessFiles {
        pid,
        status: file("status", 4096)?,
        cmdline: file("cmdline", COMMAND_LINE)?,
        stat,
    })
}

/// How many processes of the container were killed for lack of memory.
pub fn oom_kills() -> u64 {
    let events = os::read_file(format!("{CGROUP}/memory.events").as_bytes(), LIMIT).unwrap_or_default();
    events
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"oom_kill "))
        .and_then(|count| core::str::from_utf8(count).ok()?.parse().ok())
        .unwrap_or(0)
}
