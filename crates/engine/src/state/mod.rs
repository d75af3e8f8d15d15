//! The state store.

use std::marker::PhantomData;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// What an acknowledged change survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process, however it comes.
    Process,
    /// The end of the machine's power, too.
    Disk,
}

/// The one store of the engine's state.
#[derive(Debug, Clone)]
pub struct Store {}

/// One table of the store: keys to values of one type.
#[derive(Debug)]
pub struct Table<T> {
    name: &'static str,
    value: PhantomData<fn() -> T>,
}

impl Store {
    /// Opens or makes the store in a directory, which it locks.
    ///
    /// # Errors
    /// When another process holds it, and when it cannot be read.
    pub fn open(_directory: &Path) -> Result<Self> {
        Err(Error::unsupported("not written yet"))
    }

    /// A table by name.
    pub fn table<T: Serialize + DeserializeOwned>(&self, name: &'static str) -> Table<T> {
        Table { name, value: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    /// The value of a key.
    ///
    /// # Errors
    /// When the stored value is not a `T`.
    pub fn get(&self, _key: &str) -> Result<Option<T>> {
        Err(Error::unsupported(self.name))
    }

    /// All pairs, sorted by key.
    ///
    /// # Errors
    /// When a stored value is not a `T`.
    pub fn all(&self) -> Result<Vec<(String, T)>> {
        Err(Error::unsupported(self.name))
    }

    /// Sets the value of a key. It is visible and survives this process when the call is made; it survives a power
    /// failure, if that is asked for, when the future is done.
    ///
    /// # Errors
    /// When the journal cannot be written: the change is not made.
    pub async fn put(&self, _key: &str, _value: &T, _durability: Durability) -> Result<()> {
        Err(Error::unsupported(self.name))
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, _key: &str, _durability: Durability) -> Result<()> {
        Err(Error::unsupported(self.name))
    }
}
