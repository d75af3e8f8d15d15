//! Directories of `RUN --mount=type=cache`: named by an ID, kept between builds, shared by builds as asked.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::builder::CacheRecord;
use crate::dockerfile::Sharing;
use crate::error::{Error, Result};
use crate::{time, tree};

/// All of them.
#[derive(Debug)]
pub(crate) struct Mounts {
    root: PathBuf,
    /// Those in use or used since the start: readers share, a writer is alone.
    locks: Mutex<HashMap<String, Locks>>,
}

#[derive(Debug, Clone, Default)]
struct Locks {
    /// Held by who uses it: shared, or alone when it is removed.
    users: Arc<RwLock<()>>,
    /// Held by the one `locked` user.
    alone: Arc<tokio::sync::Mutex<()>>,
}

/// What is kept beside a directory.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct About {
    description: String,
    created: i64,
    used: i64,
    uses: u64,
    size: u64,
}

/// A directory in use.
#[derive(Debug)]
pub(crate) struct Held {
    /// The directory to mount.
    pub data: PathBuf,
    /// The same, open: the path may come to name another one.
    pub opened: OwnedFd,
    directory: PathBuf,
    _guards: Guards,
}

/// What keeps others away from a directory in use.
#[derive(Debug, Default)]
struct Guards {
    shared: Option<OwnedRwLockReadGuard<()>>,
    private: Option<OwnedRwLockWriteGuard<()>>,
    alone: Option<OwnedMutexGuard<()>>,
}

impl Held {
    /// To be called, on a thread that may block, when the process has ended: what it takes on the disk is counted anew.
    pub fn count(&self) {
        if !self.data.is_dir() {
            return;
        }
        let mut about = read(&self.directory);
        about.size = tree::disk_usage(&self.data);
        about.used = time::now();
        write(&self.directory, &about);
    }
}

/// The name of a directory on disk.
fn id_of(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    digest[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(directory: &Path) -> About {
    std::fs::read(directory.join("record.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

fn write(directory: &Path, about: &About) {
    let new = directory.join(format!("record.{:x}.new", time::now()));
    let written = serde_json::to_vec(about)
        .map_err(std::io::Error::other)
        .and_then(|text| std::fs::write(&new, text))
        .and_then(|()| std::fs::rename(&new, directory.join("record.json")));
    if let Err(error) = written {
        tracing::warn!("cannot write {}: {error}", new.display());
    }
}

/// Opens a directory, a new one if there is none. None: somebody has removed it since.
fn open(
    at: &Path,
    description: String,
    make: &(impl Fn(&Path) -> Result<()> + ?Sized),
) -> Result<Option<OwnedFd>> {
    if !at.join("data").is_dir() {
        let new = at.with_file_name(format!(".{}-{:x}", time::now(), std::process::id()));
        std::fs::create_dir_all(&new)
            .map_err(|error| Error::io(format!("cannot create {}", new.display()), error))?;
        if let Err(error) = make(&new.join("data")) {
            tree::copy::remove(&new);
            return Err(error);
        }
        let about = About {
            description,
            created: time::now(),
            ..About::default()
        };
        write(&new, &about);
        if std::fs::rename(&new, at).is_err() {
            // Another user was faster.
            tree::copy::remove(&new);
        }
    }
    let data = match tree::open_root(&at.join("data")) {
        Ok(data) => data,
        Err(_) if !at.is_dir() => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut about = read(at);
    about.used = time::now();
    about.uses += 1;
    write(at, &about);
    Ok(Some(data))
}

fn is_current(all: &HashMap<String, Locks>, id: &str, locks: &Locks) -> bool {
    all.get(id)
        .is_some_and(|known| Arc::ptr_eq(&known.users, &locks.users))
}

impl Mounts {
    pub fn open(root: &Path) -> Result<Self> {
        // A removal that was interrupted, and private copies of a daemon that died.
        for entry in std::fs::read_dir(root)
            .map_err(|error| Error::io(format!("cannot list {}", root.display()), error))?
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with('.') {
                tree::copy::remove(&entry.path());
            }
        }
        Ok(Self {
            root: root.to_owned(),
            locks: Mutex::default(),
        })
    }

    fn locks(&self, id: &str) -> Locks {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(id.to_owned()).or_default().clone()
    }

    /// Whether a directory's locks are those that new users take: it was not forgotten.
    fn current(&self, id: &str, locks: &Locks) -> bool {
        is_current(
            &self.locks.lock().unwrap_or_else(PoisonError::into_inner),
            id,
            locks,
        )
    }

    /// Where a directory goes to be removed: a name no other removal has.
    fn aside(&self, id: &str) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.root
            .join(format!(".{id}.{:x}", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Takes a directory into use, waiting if another user wants to be alone with it. `make` fills a new one.
    pub async fn take(
        &self,
        name: &str,
        sharing: Sharing,
        make: impl Fn(&Path) -> Result<()> + Send + Sync + 'static,
    ) -> Result<Held> {
        let make = Arc::new(make);
        loop {
            let (id, locks, guards) = self.lock(&id_of(name), sharing).await;
            let directory = self.root.join(&id);
            let (at, description, make) = (directory.clone(), name.to_owned(), Arc::clone(&make));
            let opened = crate::blocking(move || open(&at, description, &*make)).await?;
            // One that was forgotten meanwhile is not what these locks are for.
            if let Some(data) = opened.filter(|_| self.current(&id, &locks)) {
                return Ok(Held {
                    data: directory.join("data"),
                    opened: data,
                    directory,
                    _guards: guards,
                });
            }
        }
    }

    async fn lock(&self, base: &str, sharing: Sharing) -> (String, Locks, Guards) {
        let mut guards = Guards::default();
        if sharing != Sharing::Private {
            let locks = self.locks(base);
            if sharing == Sharing::Locked {
                guards.alone = Some(Arc::clone(&locks.alone).lock_owned().await);
            }
            guards.shared = Some(Arc::clone(&locks.users).read_owned().await);
            return (base.to_owned(), locks, guards);
        }
        // The first that nobody uses; a new one if all are in use.
        let mut number = 0;
        loop {
            let id = match number {
                0 => base.to_owned(),
                _ => format!("{base}-{number}"),
            };
            let locks = self.locks(&id);
            if let Ok(guard) = Arc::clone(&locks.users).try_write_owned() {
                guards.private = Some(guard);
                return (id, locks, guards);
            }
            number += 1;
        }
    }

    /// Lets the directories of an ID, private ones too, go: the next user begins anew. Whoever uses one keeps it until it
    /// has finished; then it is removed.
    pub fn forget(&self, name: &str) -> Result<()> {
        let base = id_of(name);
        let list = |error| Error::io(format!("cannot list {}", self.root.display()), error);
        for entry in std::fs::read_dir(&self.root).map_err(list)?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let private = id.strip_prefix(&base).and_then(|rest| rest.strip_prefix('-'));
            if id != base && private.is_none() {
                continue;
            }
            let (from, to) = (entry.path(), self.aside(&id));
            // Under the lock, so that who takes the directory's locks afterwards takes a new directory, too.
            let locks = {
                let mut all = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
                match std::fs::rename(&from, &to) {
                    Ok(()) => all.remove(&id),
                    // Another build was faster.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    Err(error) => {
                        return Err(Error::io(format!("cannot remove {}", from.display()), error));
                    }
                }
            };
            match locks {
                None => tree::copy::remove(&to),
                Some(locks) => drop(tokio::spawn(async move {
                    let _unused = locks.users.write().await;
                    let _removed = tokio::task::spawn_blocking(move || tree::copy::remove(&to)).await;
                })),
            }
        }
        Ok(())
    }

    /// A directory that is there, to be read: nobody removes it meanwhile, and who is alone with it has finished.
    pub async fn read(&self, name: &str) -> Option<Held> {
        let id = id_of(name);
        let directory = self.root.join(&id);
        if !directory.join("data").is_dir() {
            return None;
        }
        let locks = self.locks(&id);
        let guards = Guards {
            alone: Some(locks.alone.lock_owned().await),
            shared: Some(locks.users.read_owned().await),
            private: None,
        };
        let data = directory.join("data");
        Some(Held {
            opened: tree::open_root(&data).ok()?,
            data,
            directory,
            _guards: guards,
        })
    }

    /// Whether a directory is there.
    pub fn has(&self, name: &str) -> bool {
        self.root.join(id_of(name)).join("data").is_dir()
    }

    pub fn records(&self) -> Vec<CacheRecord> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let Ok(id) = entry.file_name().into_string() else {
                continue;
            };
            if id.starts_with('.') {
                continue;
            }
            let about = read(&entry.path());
            out.push(CacheRecord {
                in_use: self.locks(&id).users.try_write().is_err(),
                kind: "exec.cachemount",
                description: format!("cached mount {}", about.description),
                shared: false,
                size: about.size,
                created: time::system(about.created),
                last_used: time::system(about.used),
                usage_count: about.uses,
                id,
            });
        }
        out
    }

    /// Removes a directory nobody uses.
    pub fn remove(&self, id: &str) -> Result<bool> {
        let locks = self.locks(id);
        let Ok(_alone) = locks.users.try_write() else {
            return Ok(false);
        };
        let (from, to) = (self.root.join(id), self.aside(id));
        let renamed = {
            // Under the lock, and if the directory was not forgotten meanwhile: then another one, with locks of its own,
            // may be in its place.
            let all = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            if !is_current(&all, id, &locks) {
                return Ok(false);
            }
            std::fs::rename(&from, &to)
        };
        match renamed {
            Ok(()) => {
                tree::copy::remove(&to);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(format!("cannot remove {}", from.display()), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_builds_forget_the_same_directories_at_once() {
        let root = tempfile::tempdir().unwrap();
        let mounts = Arc::new(Mounts::open(root.path()).unwrap());
        let base = id_of("x");
        for _ in 0..20 {
            for number in 0..50 {
                std::fs::create_dir(root.path().join(format!("{base}-{number}"))).unwrap();
            }
            let both = [(); 2].map(|()| {
                let mounts = Arc::clone(&mounts);
                tokio::task::spawn_blocking(move || mounts.forget("x"))
            });
            for done in both {
                done.await.unwrap().unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
