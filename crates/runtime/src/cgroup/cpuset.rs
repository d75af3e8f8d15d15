//! `cpuset`: which processors and memory nodes.
//!
//! A new v1 cpuset is empty and takes no process until it has both lists, and so on up to its root. Vessel makes the
//! cpusets that it creates on the way down copy their parent's lists to their children (`cgroup.clone_children`), so
//! that a container's costs nothing; foreign parents are filled in by hand.

use rustix::io::Errno;

use super::Node;
use super::dir::Dir;
use super::lack::Lacks;
use super::resources::Cpu;
use crate::Result;

const LISTS: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

pub(super) fn apply(node: Option<Node<'_>>, cpu: &Cpu, lacks: &mut Lacks) -> Result<()> {
    for (property, file, list) in [
        ("cpu.cpus", LISTS[0], &cpu.cpus),
        ("cpu.mems", LISTS[1], &cpu.mems),
    ] {
        if list.is_empty() {
            continue;
        }
        match node {
            Some(node) => node.dir.write_or_lack(property, file, list, lacks)?,
            None => lacks.add(property, "no cgroup hierarchy has the cpuset controller"),
        }
    }
    Ok(())
}

/// Makes a v1 cpuset usable: lists that are empty are taken from `parent`. One that another container's start is filling at
/// this moment may have one list and not yet the other.
pub(super) fn inherit(dir: &Dir, parent: impl FnOnce() -> Result<Dir>) -> Result<()> {
    if !LISTS.iter().any(|file| is_empty(dir.try_read(file))) {
        return Ok(());
    }
    let parent = parent()?;
    for file in LISTS {
        if is_empty(dir.try_read(file)) {
            let list = parent.read_required(file)?;
            dir.write("cpu.cpus", file, list.trim())?;
        }
    }
    Ok(())
}

/// Lets the children of a v1 cpuset start with its lists.
pub(super) fn copy_to_children(dir: &Dir) {
    // A kernel without the flag leaves the filling in to `inherit`.
    let _ = dir.try_write("cgroup.clone_children", "1");
}

fn is_empty(list: Result<String, Errno>) -> bool {
    list.is_ok_and(|list| list.trim().is_empty())
}
