//! What happens in the guest: a table of checks, each a container or more, reported on the console line by line.

mod bundle;
mod devices;
mod engine;
mod groups;
mod isolation;
mod limits;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Result, bail};

/// The last line that the guest prints.
pub const END: &str = "CHECKS DONE";

/// How many checks there are: those of the table, the one of `init.sh` and the two at the end.
pub fn count() -> usize {
    table().count() + 3
}

type Check = (&'static str, fn() -> Result<()>);

/// Runs as root in a machine of its own: `init.sh` calls it. In any other place it does nothing.
#[test]
#[ignore = "runs in the guest"]
fn in_the_guest() {
    if std::env::var_os("VESSEL_GUEST").is_none() {
        return;
    }
    let only = std::env::var("VESSEL_GUEST_ONLY").unwrap_or_default();
    bundle::make_rootfs().unwrap();
    let mounts = mounts();
    for (name, check) in table() {
        if name.contains(&only) {
            report(name, check);
        }
    }
    report("engine-end", engine::stop);
    report("nothing-left", || nothing_left(&mounts));
    println!("{END}");
}

fn table() -> impl Iterator<Item = Check> {
    let parts: [&[Check]; 5] = [
        &groups::CHECKS,
        &limits::CHECKS,
        &devices::CHECKS,
        &isolation::CHECKS,
        &engine::CHECKS,
    ];
    parts.into_iter().flatten().copied()
}

fn report(name: &str, check: impl FnOnce() -> Result<()>) {
    let start = Instant::now();
    // What panics has told why on the console.
    let outcome = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| bail!("panicked"));
    match outcome {
        Ok(()) => println!("\nCHECK {name} ok {} ms", start.elapsed().as_millis()),
        Err(error) => println!(
            "\nCHECK {name} fail {}",
            format!("{error:#}").replace(['\n', '\r'], " | ")
        ),
    }
}

fn mounts() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().map(str::to_owned).collect()
}

/// No mount, cgroup, process or interface of a container is there when all are gone.
fn nothing_left(before: &[String]) -> Result<()> {
    let new: Vec<String> = mounts()
        .into_iter()
        .filter(|mount| !before.contains(mount))
        .collect();
    if !new.is_empty() {
        bail!("mounts left: {new:?}");
    }
    let groups = groups::all_below("/sys/fs/cgroup/vessel");
    if !groups.is_empty() {
        bail!("cgroups left: {groups:?}");
    }
    let states: Vec<_> = std::fs::read_dir("/run/vessel/runtime")
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    if !states.is_empty() {
        bail!("state of containers left: {states:?}");
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read_to_string(entry.path().join("cmdline"))
            .unwrap_or_default()
            .replace('\0', " ");
        if ["sleep ", "vessel "].iter().any(|name| command.starts_with(name)) {
            bail!("a process is left: {command}");
        }
    }
    Ok(())
}
