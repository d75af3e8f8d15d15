//! The container's cgroup.

use alloc::format;
use alloc::vec::Vec;

use crate::fault::{Context, Result, report, show};
use crate::os::{self, Errno, Fd, O_DIRECTORY, O_PATH};
use crate::protocol::{Setting, Start};

/// Where it is.
pub const CGROUP: &str = "/sys/fs/cgroup/container";

/// Makes it, with its limits; none when this kernel has no cgroups and none are insisted on.
pub fn cgroup(start: &Start) -> Result<Option<Fd>> {
    let parent = b"/sys/fs/cgroup";
    let controllers = match os::read_file(&[&parent[..], b"/cgroup.controllers"].concat(), 4096) {
        Ok(controllers) => controllers,
        Err(_) if !start.limits_required => return Ok(None),
        result => result.context(|| "this guest's kernel has no cgroups v2".into())?,
    };
    let enabled: Vec<Vec<u8>> = controllers
        .split(u8::is_ascii_whitespace)
        .filter(|name| !name.is_empty())
        .map(|name| [b"+", name].concat())
        .collect();
    os::write_file(
        &[&parent[..], b"/cgroup.subtree_control"].concat(),
        &enabled.join(&b' '),
    )
    .context(|| "enable cgroup controllers".into())?;
    match os::make_directory(os::CWD, CGROUP.as_bytes(), 0o755) {
        Ok(()) | Err(Errno::EXIST) => {}
        result => result.context(|| "make the container's cgroup".into())?,
    }
    let failed = limit(&start.limits);
    match failed {
        Err(fault) if start.limits_required => return Err(fault),
        Err(fault) => report(&fault.message),
        Ok(()) => {}
    }
    os::open(CGROUP.as_bytes(), O_PATH | O_DIRECTORY)
        .map(Some)
        .context(|| "open the container's cgroup".into())
}

/// Writes limits; all are tried, the first failure is told.
pub fn limit(limits: &[Setting]) -> Result<()> {
    let mut result = Ok(());
    for limit in limits {
        let plain = !limit.name.contains(&b'/') && !limit.name.starts_with(b".");
        let path = [CGROUP.as_bytes(), b"/", &limit.name].concat();
        let written = match plain {
            true => os::write_file(&path, &limit.value),
            false => Err(Errno::INVAL),
        };
        let told = written.context(|| format!("set {} to {}", show(&limit.name), show(&limit.value)));
        if result.is_ok() {
            result = told;
        }
    }
    result
}
