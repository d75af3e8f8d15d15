//! Containers and their life.
//!
//! A [`Container`] has its own state and its own order of operations. `op` is held by whoever changes its life (start,
//! remove, pause, ...), also across waits; `inner` guards the data and is held for moments only. What follows a running
//! container (`follow`) changes the state without `op`, since an operation may be waiting for just that.

pub mod attach;
pub mod create;
pub mod exec;
mod follow;
pub(crate) use follow::reap;
pub(crate) mod health;
pub mod inspect;
mod links;
pub mod list;
pub(crate) mod log_drivers;
mod machine;
pub(crate) mod names;
pub(crate) mod prepare;
pub mod record;
pub mod remove;
pub(crate) mod restart;
pub(crate) mod shim;
mod sources;
pub mod start;
pub mod stop;
pub(crate) mod table;
pub mod update;
pub mod wait;

use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};
use vessel_runtime::cgroup::{Cgroup, CgroupPath};
use vessel_runtime::shim::Attach;

use record::{Record, State, Status};

use crate::{Engine, Error, Result};

/// A container.
#[derive(Debug)]
pub struct Container {
    id: String,
    /// Its cgroup, absolute in every hierarchy.
    cgroup: String,
    /// Held across an operation that changes its life: see [`Engine::lock_op`].
    op: Arc<tokio::sync::Mutex<()>>,
    /// Read while a process is added, written while all are frozen: a shim would wait for a process that was frozen
    /// half made, and answer nobody.
    adding: Arc<tokio::sync::RwLock<()>>,
    inner: Mutex<Inner>,
    life: watch::Sender<Life>,
}

#[derive(Debug)]
struct Inner {
    record: Arc<Record>,
    state: Counted,
    /// How the list showed it last.
    row: Option<Arc<list::Row>>,
    /// Clients that attached before the start.
    waiting: Vec<(OwnedFd, Attach)>,
    /// Whether those were handed to a shim that has not said yet that the program runs.
    launching: bool,
    /// Execs that were created and have not ended.
    execs: Vec<String>,
    /// Whether its end is part of a restart by the user: neither removal nor restart policy apply.
    restarting_by_user: bool,
    /// How long the next restart by the policy waits.
    backoff: restart::Backoff,
    /// Counts starts and stops: a delayed restart that finds another number than its own is out of date.
    generation: u64,
    /// Whether its record is deleted: nothing is journaled any more.
    removed: bool,
}

/// A state that counts how often it may have been changed: what was made of it is good as long as the count is the same.
#[derive(Debug)]
struct Counted {
    state: State,
    changes: u64,
}

impl Deref for Counted {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Counted {
    fn deref_mut(&mut self) -> &mut State {
        self.changes += 1;
        &mut self.state
    }
}

/// What waiters look at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    /// Whether it runs or is about to be restarted.
    pub running: bool,
    /// Whether there is a process.
    pub process: bool,
    /// When the run began that goes on and is not paused; 0: there is none.
    pub active: i64,
    /// How often a run of it has ended, whether or not another one follows.
    pub exits: u64,
    /// Of the last end.
    pub exit_code: i32,
    /// Whether it is gone.
    pub removed: bool,
}

/// Where a container's root comes from.
#[derive(Debug, Clone)]
pub struct RootPaths {
    /// Read-only layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs' work directory.
    pub work: PathBuf,
    /// What is written need not outlive a crash of the machine.
    pub volatile: bool,
}

impl Container {
    pub(crate) fn new(record: Record, state: State, cgroup: String) -> Arc<Self> {
        let life = Life {
            running: state.status.is_running(),
            process: state.status.has_process(),
            active: state.active(),
            exit_code: state.exit_code,
            ..Life::default()
        };
        Arc::new(Self {
            id: record.id.clone(),
            cgroup,
            op: Arc::default(),
            adding: Arc::default(),
            inner: Mutex::new(Inner {
                record: Arc::new(record),
                state: Counted { state, changes: 0 },
                row: None,
                waiting: Vec::new(),
                launching: false,
                execs: Vec::new(),
                restarting_by_user: false,
                backoff: restart::Backoff::default(),
                generation: 0,
                removed: false,
            }),
            life: watch::Sender::new(life),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment, or can be repeated: a panic leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What was asked for; a snapshot.
    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.inner().record)
    }

    pub(crate) fn set_record(&self, record: Record) {
        self.inner().record = Arc::new(record);
    }

    /// Where it is in its life; a snapshot.
    pub fn state(&self) -> State {
        self.inner().state.clone()
    }

    pub(crate) fn status(&self) -> Status {
        self.inner().state.status
    }

    pub(crate) fn life(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    /// Its cgroup while it runs.
    pub fn cgroup_path(&self) -> String {
        self.cgroup.clone()
    }

    /// Execs that were created and have not ended.
    pub(crate) fn execs(&self) -> Vec<String> {
        self.inner().execs.clone()
    }

    /// Changes the state, lets `keep` see it, and tells who waits.
    ///
    /// All of it under one lock: what waiters saw last is what the state is.
    fn change(&self, change: impl FnOnce(&mut State), keep: impl FnOnce(&State)) {
        let mut inner = self.inner();
        let before = inner.state.status;
        change(&mut inner.state);
        inner.state.end_health(before);
        if !inner.removed {
            keep(&inner.state);
        }
        let (running, process) = (inner.state.status.is_running(), inner.state.status.has_process());
        let (exit_code, active) = (inner.state.exit_code, inner.state.active());
        self.life.send_if_modified(|life| {
            let changed = (life.running, life.process, life.active) != (running, process, active);
            // A run that its policy follows with another has ended, too; so has a pause between two that is cut short.
            if life.process && !process || life.running && !running {
                life.exits += 1;
                life.exit_code = exit_code;
            }
            (life.running, life.process, life.active) = (running, process, active);
            changed
        });
    }

    /// The name with a slash, as messages have it.
    pub(crate) fn display_name(&self) -> String {
        format!("/{}", self.inner().record.name)
    }
}

impl Engine {
    /// All containers, in no order.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.all()
    }

    /// A container by name, ID or the beginning of one.
    ///
    /// # Errors
    /// `No such container: …`, and when a short ID means several.
    pub fn container(&self, name: &str) -> Result<Arc<Container>> {
        let found = self.containers.find(name);
        match self.linked(name) {
            Some(linked) if found.is_err() => Ok(linked),
            _ => found,
        }
    }

    /// Where a container's root comes from.
    ///
    /// # Errors
    /// When its record names layers that make no sense.
    pub async fn container_root(&self, container: &Container) -> Result<RootPaths> {
        self.root_paths(&container.record())
    }

    pub(crate) fn root_paths(&self, record: &Record) -> Result<RootPaths> {
        let own = self.paths.container(&record.id);
        let mut lower = vec![self.paths.init_layer()];
        lower.append(&mut self.layer_paths(&record.layers)?);
        Ok(RootPaths {
            lower,
            upper: own.join("upper"),
            work: own.join("work"),
            volatile: record.host.auto_remove,
        })
    }

    /// Waits until nobody else changes a container's life, and keeps it so. Only with this may a record be written, the
    /// status relied on, or something begun.
    ///
    /// # Errors
    /// When it was removed meanwhile.
    pub(crate) async fn lock_op(&self, container: &Arc<Container>) -> Result<OwnedMutexGuard<()>> {
        let op = Arc::clone(&container.op).lock_owned().await;
        match self.containers.get(&container.id) {
            Some(_) => Ok(op),
            None => Err(Error::not_found(format!("No such container: {}", container.id))),
        }
    }

    /// The cgroup of a container that runs.
    pub(crate) fn container_cgroup(&self, container: &Container) -> Result<Cgroup> {
        Ok(Cgroup::open(
            &self.hierarchies,
            &CgroupPath::parse(&container.cgroup)?,
        )?)
    }

    /// Changes a container's state, in memory and in the journal, and tells who waits.
    ///
    /// A journal that cannot be written does not undo what has happened: it is said, and the change stands.
    pub(crate) fn change(&self, container: &Container, change: impl FnOnce(&mut State)) {
        container.change(change, |state| {
            if let Err(error) = self.states.put_now(&container.id, state) {
                tracing::warn!(
                    container = container.id,
                    "{error}; a restart of the daemon may find an older state"
                );
            }
        });
    }

    /// Publishes an event of a container.
    pub(crate) fn container_event(&self, record: &Record, action: &str, more: &[(&str, String)]) {
        let mut attributes = record.config.labels.clone();
        attributes.insert("image".into(), record.config.image.clone());
        attributes.insert("name".into(), record.name.clone());
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.events.publish("container", action, &record.id, attributes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One who only touches the state must not bring back what it was before another's end.
    #[test]
    fn the_last_change_is_what_waiters_see() {
        let container = Container::new(Record::default(), State::default(), String::new());
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    container.change(|state| state.stopped_by_user = true, |_| {});
                }
            });
            let mut wrong = 0;
            for round in 0..2_000 {
                let status = [Status::Running, Status::Exited][round % 2];
                container.change(|state| state.status = status, |_| {});
                std::thread::yield_now();
                wrong += usize::from(container.life().borrow().running != status.is_running());
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(wrong, 0);
        });
    }
}
