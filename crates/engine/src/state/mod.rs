//! The state store: tables of JSON values in one crash-safe journal.
//!
//! A change is one checksummed record appended with one write(2) to `state.journal`, then made in memory. So an
//! acknowledged change survives `kill -9` of the daemon without a sync; who needs it to survive a power failure asks
//! for [`Durability::Disk`] and shares an fdatasync(2) with all who ask at the same time. At open the journal is
//! replayed: a torn end is cut off, damage in the middle is reported and the damaged file set aside. When more than
//! half of the file is of no use it is rewritten and renamed. Everything is held in memory, encoded: the state of an
//! engine is a few kilobytes per container. See `docs/adr/0002-state-journal.md`.

mod journal;
mod lock;
mod record;
mod sync;

use std::marker::PhantomData;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use journal::Recovery;

use crate::{Error, Result};
use journal::Journal;
use record::Operation;

/// What an acknowledged change survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process, however it comes.
    Process,
    /// The end of the machine's power, too.
    Disk,
}

/// The one store of the engine's state. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Held while a record is copied into the page cache; across a sync only for the last step of a compaction.
    journal: Arc<Mutex<Journal>>,
    syncer: sync::Syncer,
    _lock: lock::Lock,
}

/// One table of the store: keys to values of one type.
#[derive(Debug, Clone)]
pub struct Table<T> {
    inner: Arc<Inner>,
    name: &'static str,
    value: PhantomData<fn() -> T>,
}

fn held(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    // A panic cannot leave the map half changed: the change is made after everything that may fail.
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens or makes the store in a directory, which it locks.
    ///
    /// # Errors
    /// When another process holds it, and when it cannot be read.
    pub fn open(directory: &Path) -> Result<(Self, Recovery)> {
        let lock = lock::Lock::take(directory)?;
        let (journal, recovery) = Journal::open(directory)?;
        let journal = Arc::new(Mutex::new(journal));
        let syncer = sync::Syncer::start(Arc::clone(&journal))?;
        Ok((
            Self {
                inner: Arc::new(Inner {
                    journal,
                    syncer,
                    _lock: lock,
                }),
            },
            recovery,
        ))
    }

    /// A table by name.
    pub fn table<T: Serialize + DeserializeOwned>(&self, name: &'static str) -> Table<T> {
        Table {
            inner: Arc::clone(&self.inner),
            name,
            value: PhantomData,
        }
    }

    /// Makes everything written so far survive a power failure.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn sync(&self) -> Result<()> {
        self.inner.syncer.sync().await
    }
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    /// The value of a key.
    ///
    /// # Errors
    /// When the stored value is not a `T`.
    pub fn get(&self, key: &str) -> Result<Option<T>> {
        let value = held(&self.inner.journal)
            .tables()
            .get(self.name)
            .and_then(|values| values.get(key))
            .cloned();
        value.map(|value| self.decode(key, &value)).transpose()
    }

    /// All pairs, sorted by key.
    ///
    /// # Errors
    /// When a stored value is not a `T`.
    pub fn all(&self) -> Result<Vec<(String, T)>> {
        let values = held(&self.inner.journal)
            .tables()
            .get(self.name)
            .cloned()
            .unwrap_or_default();
        values
            .iter()
            .map(|(key, value)| Ok((key.to_string(), self.decode(key, value)?)))
            .collect()
    }

    /// Sets the value of a key: it is visible and survives this process when this returns.
    ///
    /// # Errors
    /// When the journal cannot be written: the change is not made then.
    pub fn put_now(&self, key: &str, value: &T) -> Result<()> {
        let value = serde_json::to_vec(value).map_err(|error| {
            Error::system(format!(
                "encode {} {key} for the state journal: {error}",
                self.name
            ))
        })?;
        self.append(Operation {
            table: self.name,
            key,
            value: Some(&value),
        })
    }

    /// Removes a key, as [`Self::put_now`] sets it.
    ///
    /// # Errors
    /// As [`Self::put_now`].
    pub fn delete_now(&self, key: &str) -> Result<()> {
        if !held(&self.inner.journal)
            .tables()
            .get(self.name)
            .is_some_and(|values| values.contains_key(key))
        {
            return Ok(());
        }
        self.append(Operation {
            table: self.name,
            key,
            value: None,
        })
    }

    /// Sets the value of a key, with the durability that is asked for when the future is done.
    ///
    /// # Errors
    /// When the journal cannot be written (the change is not made), or the disk refuses to sync (it is made, and may
    /// not survive a power failure).
    pub async fn put(&self, key: &str, value: &T, durability: Durability) -> Result<()> {
        self.put_now(key, value)?;
        self.sync(durability).await
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, key: &str, durability: Durability) -> Result<()> {
        self.delete_now(key)?;
        self.sync(durability).await
    }

    /// Waits until everything written so far has this durability.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn sync(&self, durability: Durability) -> Result<()> {
        match durability {
            Durability::Process => Ok(()),
            Durability::Disk => self.inner.syncer.sync().await,
        }
    }

    fn append(&self, operation: Operation<'_>) -> Result<()> {
        let mut journal = held(&self.inner.journal);
        journal.append(operation)?;
        if journal.wants_compaction() {
            drop(journal);
            self.inner.syncer.compact();
        }
        Ok(())
    }

    fn decode(&self, key: &str, value: &[u8]) -> Result<T> {
        serde_json::from_slice(value).map_err(|error| {
            Error::system(format!(
                "the state journal's {} {key} cannot be read: {error}",
                self.name
            ))
        })
    }
}

#[cfg(test)]
mod tests;
