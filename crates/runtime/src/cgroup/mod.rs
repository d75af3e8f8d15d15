//! Control groups: limits, statistics, events, freezing and killing of a container's processes.
//!
//! v1 (a hierarchy for each controller, also several controllers on one), hybrid (v1 with a v2 hierarchy beside it) and v2
//! look the same from outside. A [`Cgroup`] is a container's directory in every hierarchy, held open; only what the
//! [`Resources`] ask for is written. What this kernel cannot do comes back as a list of [`Lack`]s, for the caller to refuse
//! or to warn about.
//!
//! Order of use: [`Hierarchies::detect`] once; [`Cgroup::create`]; put the first process in with [`Cgroup::clone_into_fd`]
//! and [`Cgroup::attach_self`], or with [`Cgroup::attach`]; make its cgroup namespace only then; [`Cgroup::destroy`].
//!
//! Every hierarchy is joined, wanted or not: one that is left out would show the container the host's cgroups.
//!
//! See cgroups(7), the kernel's `Documentation/admin-guide/cgroup-v1/` and `cgroup-v2.rst`, and the OCI runtime
//! specification, `config-linux.md`, "Control groups".

mod blkio;
mod cpu;
mod cpuset;
mod devices;
mod dir;
mod events;
mod freezer;
mod hierarchy;
mod hugetlb;
mod lack;
mod make;
mod memory;
mod net;
mod path;
mod pids;
mod rdma;
pub mod resources;
pub mod stats;
mod unified;
mod view;

#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};

pub use events::OomEvents;
pub use hierarchy::{Controller, DEFAULT_BASE, Hierarchies, Hierarchy, Mode, Version};
pub use lack::{Lack, refuse};
pub use path::{CgroupPath, DEFAULT_PARENT};
pub use resources::Resources;
pub use stats::Stats;
pub use view::{View, ViewMount};

use crate::{Error, ErrorKind, Result};
use dir::Dir;
use lack::Lacks;

/// How long [`Cgroup::kill_all`] hunts processes that fork faster than they are found.
const HUNT: Duration = Duration::from_secs(10);

/// The cgroup of a container: its directory in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: CgroupPath,
    /// v1 hierarchies first, the v2 hierarchy last.
    members: Vec<Member>,
}

/// The directory in one hierarchy.
#[derive(Debug)]
struct Member {
    dir: Dir,
    version: Version,
    controllers: Vec<Controller>,
    /// Made by this very call, so nothing of it needs to be read.
    fresh: bool,
}

/// Where the files of a controller are.
#[derive(Debug, Clone, Copy)]
struct Node<'a> {
    dir: &'a Dir,
    version: Version,
}

impl Cgroup {
    /// Makes the cgroup in every hierarchy and sets the limits. On an error, what was made is removed again.
    ///
    /// A directory that exists is taken over when no process is in it.
    ///
    /// # Errors
    /// `Permission` when cgroups cannot be made by this process, `Conflict` when processes are in it, `Invalid` for a
    /// value that is not valid or that the kernel refuses.
    pub fn create(
        hierarchies: &Hierarchies,
        path: &CgroupPath,
        resources: &Resources,
    ) -> Result<(Self, Vec<Lack>)> {
        let mut made = make::Made::default();
        let mut lacks = Lacks::default();
        let mut members = Vec::with_capacity(hierarchies.list().len());
        for hierarchy in hierarchies.list() {
            match make::member(hierarchy, path, &mut made, &mut lacks.note) {
                Ok(member) => members.push(member),
                // The v2 part of a hybrid set-up is a help, not a need.
                Err(error)
                    if hierarchy.version == Version::V2
                        && !members.is_empty()
                        && error.kind() == ErrorKind::Permission => {}
                Err(error) => return Err(error),
            }
        }
        let cgroup = Self {
            path: path.clone(),
            members,
        };
        cgroup.write_limits(resources, true, &mut lacks)?;
        made.keep();
        Ok((cgroup, lacks.into_list()))
    }

    /// Opens a cgroup that exists.
    ///
    /// # Errors
    /// `NotFound` when it is in no hierarchy.
    pub fn open(hierarchies: &Hierarchies, path: &CgroupPath) -> Result<Self> {
        let mut members = Vec::with_capacity(hierarchies.list().len());
        for hierarchy in hierarchies.list() {
            let full = path.below(&hierarchy.mount);
            match Dir::open(full.clone()) {
                Ok(dir) => members.push(Member {
                    dir,
                    version: hierarchy.version,
                    controllers: hierarchy.controllers.clone(),
                    fresh: false,
                }),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(make::not_opened(&full, errno)),
            }
        }
        if members.is_empty() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no cgroup {path}"),
            ));
        }
        Ok(Self {
            path: path.clone(),
            members,
        })
    }

    /// Its path below the mount points.
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Its directories, for the state file of an OCI runtime.
    pub fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.members.iter().map(|member| member.dir.path().to_owned())
    }

    /// The v2 directory, for `clone3` with `CLONE_INTO_CGROUP`: the new process then needs [`Cgroup::attach_rest`] (or
    /// [`Cgroup::attach_self`]) for the v1 hierarchies only, and nothing on pure v2. `None` on v1.
    pub fn clone_into_fd(&self) -> Option<BorrowedFd<'_>> {
        self.unified().map(AsFd::as_fd)
    }

    /// Moves a process, with all its threads, into the cgroup in every hierarchy.
    ///
    /// # Errors
    /// `NotFound` when there is no such process; else what the kernel answers.
    pub fn attach(&self, pid: Pid) -> Result<()> {
        self.attach_where(pid, |_| true)
    }

    /// As [`Cgroup::attach`], for a process that was cloned into [`Cgroup::clone_into_fd`].
    ///
    /// # Errors
    /// As [`Cgroup::attach`].
    pub fn attach_rest(&self, pid: Pid) -> Result<()> {
        self.attach_where(pid, |member| member.version == Version::V1)
    }

    fn attach_where(&self, pid: Pid, which: impl Fn(&Member) -> bool) -> Result<()> {
        let text = pid.as_raw_pid().to_string();
        for member in self.members.iter().filter(|member| which(member)) {
            member
                .dir
                .try_write("cgroup.procs", &text)
                .map_err(|errno| Self::not_attached(&member.dir, &text, errno))?;
        }
        Ok(())
    }

    /// Moves the calling process, which must have one thread only, into the cgroup; `cloned_into` when it was cloned into
    /// [`Cgroup::clone_into_fd`]. To be called in a new child before it gives up privileges or makes its cgroup namespace.
    /// Allocates nothing unless it fails.
    ///
    /// Much cheaper than [`Cgroup::attach`]: on v1 a thread that moves itself (`0` to `tasks`) does not take the kernel's
    /// lock on all threads, and taking that lock for the first time in a while waits for an RCU grace period, some
    /// 10 ms.
    ///
    /// # Errors
    /// As [`Cgroup::attach`].
    pub fn attach_self(&self, cloned_into: bool) -> Result<()> {
        for member in &self.members {
            let file = match member.version {
                Version::V1 => "tasks",
                Version::V2 if cloned_into => continue,
                Version::V2 => "cgroup.procs",
            };
            member
                .dir
                .try_write(file, "0")
                .map_err(|errno| Self::not_attached(&member.dir, "self", errno))?;
        }
        Ok(())
    }

    /// The v2 directory in which `beside`, a process of the container, is now: for an additional process of a container
    /// whose init has made cgroups of its own and left their root, which then takes no processes (`EBUSY`). Use it where
    /// [`Cgroup::clone_into_fd`] is refused.
    ///
    /// # Errors
    /// `NotFound` when that process has ended; `Conflict` when it is in none of the container's cgroups.
    pub fn clone_beside_fd(&self, beside: Pid) -> Result<OwnedFd> {
        let file = format!("/proc/{}/cgroup", beside.as_raw_pid());
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Error::with_source(
                ErrorKind::NotFound,
                format!("cannot read {file}: has the container exited?"),
                error,
            )
        })?;
        let outside = || {
            Error::new(
                ErrorKind::Conflict,
                format!(
                    "the container's first process is not in its cgroup {} any more",
                    self.path
                ),
            )
        };
        let place = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .ok_or_else(outside)?;
        // Names the kernel made or checked: no component is "." or "..", and cgroupfs has no links.
        let below = Path::new(place)
            .strip_prefix(self.path.to_string())
            .map_err(|_| outside())?;
        let full = self.unified().ok_or_else(outside)?.path().join(below);
        let dir = Dir::open(full.clone()).map_err(|errno| make::not_opened(&full, errno))?;
        Ok(dir.into_fd())
    }

    fn not_attached(dir: &Dir, process: &str, errno: Errno) -> Error {
        let (kind, why) = match errno {
            Errno::SRCH => (ErrorKind::NotFound, ": it has exited"),
            Errno::NODEV | Errno::NOENT => (ErrorKind::NotFound, ": the cgroup was removed"),
            Errno::PERM | Errno::ACCESS => (ErrorKind::Permission, ""),
            Errno::BUSY => (
                ErrorKind::Conflict,
                ": it has nested cgroups with controllers, so v2 keeps processes out",
            ),
            Errno::NOSPC => (ErrorKind::Conflict, ": its cpuset is empty"),
            Errno::OPNOTSUPP => (ErrorKind::Conflict, ": it is, or is below, a threaded cgroup"),
            _ => (ErrorKind::System, ""),
        };
        let text = format!(
            "cannot move process {process} into cgroup {}{why}",
            dir.path().display()
        );
        Error::with_source(kind, text, std::io::Error::from(errno))
    }

    /// Changes the limits; what `resources` leaves out stays. Also while the container runs.
    ///
    /// # Errors
    /// As [`Cgroup::create`]. What was written before the error stays written.
    pub fn update(&self, resources: &Resources) -> Result<Vec<Lack>> {
        let mut lacks = Lacks::default();
        self.write_limits(resources, false, &mut lacks)?;
        Ok(lacks.into_list())
    }

    fn write_limits(&self, resources: &Resources, fresh: bool, lacks: &mut Lacks) -> Result<()> {
        let devices = self.member(Controller::Devices);
        let fresh = fresh && devices.is_some_and(|member| member.fresh);
        devices::apply(devices.map(Member::node), &resources.devices, fresh, lacks)?;
        if let Some(cpu) = &resources.cpu {
            cpuset::apply(self.node(Controller::Cpuset), cpu, lacks)?;
            cpu::apply(self.node(Controller::Cpu), cpu, lacks)?;
        }
        if let Some(memory) = &resources.memory {
            memory::apply(self.node(Controller::Memory), memory, lacks)?;
        }
        if let Some(pids) = &resources.pids {
            pids::apply(self.node(Controller::Pids), pids, lacks)?;
        }
        if let Some(io) = &resources.block_io {
            blkio::apply(self.node(Controller::Blkio), io, lacks)?;
        }
        hugetlb::apply(self.node(Controller::Hugetlb), &resources.hugepage_limits, lacks)?;
        if let Some(network) = &resources.network {
            net::apply(
                self.node(Controller::NetCls),
                self.node(Controller::NetPrio),
                network,
                lacks,
            )?;
        }
        rdma::apply(self.node(Controller::Rdma), &resources.rdma, lacks)?;
        let v2 = self.unified().map(|dir| Node {
            dir,
            version: Version::V2,
        });
        unified::apply(v2, &resources.unified, lacks)
    }

    /// Stops all processes, and returns when they have stopped.
    ///
    /// # Errors
    /// When a process does not stop within ten seconds (all are resumed then), or nothing here can freeze.
    pub fn freeze(&self) -> Result<()> {
        if let Some(dir) = self.unified()
            && freezer::freeze_v2(dir)?.is_some()
        {
            return Ok(());
        }
        match self.v1(Controller::Freezer) {
            Some(dir) => freezer::freeze_v1(dir),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                "processes cannot be paused: this kernel has neither the v1 freezer controller nor cgroup v2 with \
                 cgroup.freeze (Linux 5.2)",
            )),
        }
    }

    /// Resumes all processes.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn thaw(&self) -> Result<()> {
        self.unified().map_or(Ok(()), freezer::thaw_v2)?;
        self.v1(Controller::Freezer).map_or(Ok(()), freezer::thaw_v1)
    }

    /// Whether it is frozen, or freezing.
    pub fn is_frozen(&self) -> bool {
        self.unified().is_some_and(freezer::is_frozen_v2)
            || self.v1(Controller::Freezer).is_some_and(freezer::is_frozen_v1)
    }

    /// Sends a signal to every process, nested cgroups included. With `SIGKILL` none escapes by forking, and frozen
    /// processes die as well.
    ///
    /// # Errors
    /// When processes cannot be listed or signalled.
    pub fn kill_all(&self, signal: Signal) -> Result<()> {
        if signal != Signal::KILL {
            return self.signal_once(signal).map(drop);
        }
        if let Some(dir) = self.unified() {
            match dir.try_write("cgroup.kill", "1") {
                // What the v1 freezer holds dies when it is let go.
                Ok(()) => return self.v1(Controller::Freezer).map_or(Ok(()), freezer::thaw_v1),
                Err(Errno::NOENT) => {} // before Linux 5.14
                Err(errno) => {
                    let text = format!("cannot kill the processes of cgroup {}", dir.path().display());
                    return Err(Error::with_source(
                        ErrorKind::System,
                        text,
                        std::io::Error::from(errno),
                    ));
                }
            }
        }
        // Frozen processes cannot fork. One that cannot be frozen is hunted without.
        let frozen = self.freeze().is_ok();
        let first = self.signal_once(signal);
        self.thaw()?;
        if first? == 0 || frozen {
            return Ok(());
        }
        let end = Instant::now() + HUNT;
        while self.signal_once(signal)? > 0 {
            if Instant::now() >= end {
                let text = format!(
                    "the processes of cgroup {} do not die: one is stuck in the kernel",
                    self.path
                );
                return Err(Error::new(ErrorKind::System, text));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn signal_once(&self, signal: Signal) -> Result<usize> {
        let processes = self.processes()?;
        for &pid in &processes {
            match rustix::process::kill_process(pid, signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => {
                    let text = format!(
                        "cannot signal process {} of cgroup {}",
                        pid.as_raw_pid(),
                        self.path
                    );
                    return Err(Error::with_source(
                        ErrorKind::Permission,
                        text,
                        std::io::Error::from(errno),
                    ));
                }
            }
        }
        Ok(processes.len())
    }

    /// All processes, those of nested cgroups included, sorted.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let Some(member) = self.members.last() else {
            return Ok(Vec::new());
        };
        let mut list = Vec::new();
        match member.dir.processes_recursive(make::MAX_DEPTH, &mut list) {
            // Removed meanwhile.
            Ok(()) | Err(Errno::NODEV | Errno::NOENT) => {}
            Err(errno) => {
                let text = format!(
                    "cannot list the processes of cgroup {}",
                    member.dir.path().display()
                );
                return Err(Error::with_source(
                    ErrorKind::System,
                    text,
                    std::io::Error::from(errno),
                ));
            }
        }
        list.sort_unstable_by_key(|pid| pid.as_raw_pid());
        list.dedup();
        Ok(list)
    }

    /// The numbers at this moment.
    pub fn stats(&self) -> Stats {
        stats::collect(self)
    }

    /// Subscribes to out-of-memory events.
    ///
    /// # Errors
    /// `Unsupported` without a memory controller.
    pub fn oom_events(&self) -> Result<OomEvents> {
        match self.node(Controller::Memory) {
            Some(node) => OomEvents::subscribe(node),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                "want of memory cannot be watched: no cgroup hierarchy has the memory controller",
            )),
        }
    }

    /// How many processes were killed for want of memory so far.
    pub fn oom_kills(&self) -> u64 {
        self.node(Controller::Memory).map_or(0, events::kills)
    }

    /// Whether it is in any hierarchy.
    pub fn exists(&self) -> bool {
        self.members.iter().any(|member| member.dir.path().exists())
    }

    /// Removes the cgroup from every hierarchy, with the nested ones that the container left. Waits up to five seconds
    /// for processes that are on their way out; kills none.
    ///
    /// # Errors
    /// `Conflict` when processes are left; the hierarchies without any are done with nevertheless.
    pub fn destroy(self) -> Result<()> {
        self.remove(None)
    }

    /// As [`Self::destroy`], for a container that is over: what has not left after a tenth of a second is killed, since
    /// nothing may be in there any more.
    ///
    /// # Errors
    /// As there.
    pub fn clear(self) -> Result<()> {
        self.remove(Some(Instant::now() + make::GRACE))
    }

    fn remove(self, kill: Option<Instant>) -> Result<()> {
        let mut result = Ok(());
        let end = Instant::now() + make::PATIENCE;
        for member in self.members {
            let removed = make::remove(member.dir.path(), end, kill);
            if result.is_ok() {
                result = removed;
            }
        }
        result
    }

    /// What the container sees under `/sys/fs/cgroup`.
    pub fn view(&self, hierarchies: &Hierarchies) -> View {
        View::new(hierarchies, &self.path)
    }

    fn member(&self, controller: Controller) -> Option<&Member> {
        let v2 = match controller {
            Controller::Blkio => Controller::Io,
            other => other,
        };
        self.members.iter().find(|member| match member.version {
            Version::V1 => member.controllers.contains(&controller),
            Version::V2 => member.controllers.contains(&v2) || matches!(controller, Controller::Devices),
        })
    }

    fn node(&self, controller: Controller) -> Option<Node<'_>> {
        self.member(controller).map(Member::node)
    }

    fn v1(&self, controller: Controller) -> Option<&Dir> {
        let mut v1 = self.members.iter().filter(|member| member.version == Version::V1);
        v1.find(|member| member.controllers.contains(&controller))
            .map(|member| &member.dir)
    }

    fn unified(&self) -> Option<&Dir> {
        self.members
            .last()
            .filter(|member| member.version == Version::V2)
            .map(|member| &member.dir)
    }
}

impl Member {
    fn node(&self) -> Node<'_> {
        Node {
            dir: &self.dir,
            version: self.version,
        }
    }
}
