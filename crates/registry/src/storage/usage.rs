//! Who uses how much, and limits of it.
//!
//! A repository uses the sizes of all blobs it has and of uploads in progress to it, whether or not it shares the
//! bytes with others: otherwise what one may push would depend on what others delete. The whole registry uses what is
//! on disk.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Storage, list};
use crate::error::{Code, Error, Result};
use crate::name::Repository;

/// A limit of space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// It is for this repository and all below it; for all that is on disk if it is empty.
    pub prefix: String,
    /// Bytes.
    pub limit: u64,
}

impl Quota {
    fn covers(&self, name: &Repository) -> bool {
        name.as_str()
            .strip_prefix(self.prefix.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// What is used.
#[derive(Debug)]
pub struct Usage {
    quotas: Vec<Quota>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    disk: u64,
    repositories: HashMap<Repository, u64>,
    /// By quota.
    used: Vec<u64>,
}

impl Usage {
    pub(super) fn new(quotas: Vec<Quota>) -> Self {
        let state = State {
            used: vec![0; quotas.len()],
            ..State::default()
        };
        Self {
            quotas,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes on disk.
    pub fn disk(&self) -> u64 {
        self.state().disk
    }

    /// Bytes of a repository.
    pub fn repository(&self, name: &Repository) -> u64 {
        self.state().repositories.get(name).copied().unwrap_or(0)
    }

    /// The quotas and what is used of each.
    pub fn quotas(&self) -> Vec<(Quota, u64)> {
        let state = self.state();
        self.quotas
            .iter()
            .zip(&state.used)
            .map(|(quota, used)| match quota.prefix.as_str() {
                "" => (quota.clone(), state.disk),
                _ => (quota.clone(), *used),
            })
            .collect()
    }

    /// Whether a repository may have more.
    pub fn has_room(&self, name: &Repository, bytes: u64) -> bool {
        let state = self.state();
        self.quotas.iter().zip(&state.used).all(|(quota, used)| {
            let used = if quota.prefix.is_empty() {
                state.disk
            } else {
                *used
            };
            !quota.covers(name) && !quota.prefix.is_empty() || used.saturating_add(bytes) <= quota.limit
        })
    }

    /// A repository is about to have more.
    pub(super) fn charge(&self, name: &Repository, bytes: u64) -> Result<()> {
        let mut state = self.state();
        for (quota, used) in self.quotas.iter().zip(&state.used) {
            if !quota.prefix.is_empty() && quota.covers(name) && used.saturating_add(bytes) > quota.limit {
                return Err(Error::new(
                    Code::Denied,
                    format!(
                        "the quota of {} bytes for {} is used up; delete something there and collect garbage",
                        quota.limit, quota.prefix
                    ),
                ));
            }
        }
        self.add(&mut state, name, bytes);
        Ok(())
    }

    /// Without asking, for what is there already.
    fn add(&self, state: &mut State, name: &Repository, bytes: u64) {
        for (quota, used) in self.quotas.iter().zip(&mut state.used) {
            if quota.covers(name) {
                *used = used.saturating_add(bytes);
            }
        }
        if let Some(used) = state.repositories.get_mut(name) {
            *used = used.saturating_add(bytes);
        } else {
            state.repositories.insert(name.clone(), bytes);
        }
    }

    /// A repository has less.
    pub(super) fn refund(&self, name: &Repository, bytes: u64) {
        let mut state = self.state();
        for (quota, used) in self.quotas.iter().zip(&mut state.used) {
            if quota.covers(name) {
                *used = used.saturating_sub(bytes);
            }
        }
        if let Some(used) = state.repositories.get_mut(name) {
            *used = used.saturating_sub(bytes);
            if *used == 0 {
                state.repositories.remove(name);
            }
        }
    }

    /// The disk is about to hold more.
    pub(super) fn charge_disk(&self, bytes: u64) -> Result<()> {
        let mut state = self.state();
        let total = state.disk.saturating_add(bytes);
        if let Some(quota) = self
            .quotas
            .iter()
            .find(|quota| quota.prefix.is_empty() && total > quota.limit)
        {
            return Err(Error::new(
                Code::Denied,
                format!(
                    "the registry's quota of {} bytes is used up; delete something and collect garbage",
                    quota.limit
                ),
            ));
        }
        state.disk = total;
        Ok(())
    }

    /// The disk holds less.
    pub(super) fn refund_disk(&self, bytes: u64) {
        let mut state = self.state();
        state.disk = state.disk.saturating_sub(bytes);
    }
}

impl Storage {
    /// Counts what is there, once, before anything is served.
    pub(super) fn measure(&self) -> Result<()> {
        let usage = &self.0.usage;
        let mut disk = 0;
        self.each_content(|_, metadata| disk += metadata.len())?;
        usage.state().disk += disk;
        for name in self.repositories()? {
            let mut bytes = 0;
            for kind in ["blobs", "manifests"] {
                let directory = self.repository_path(&name).join(kind);
                for entry in list(&directory)? {
                    bytes += std::fs::metadata(directory.join(entry)).map_or(0, |metadata| metadata.len());
                }
            }
            usage.add(&mut usage.state(), &name, bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_of_whole_components() {
        let quota = |prefix: &str, limit| Quota {
            prefix: prefix.into(),
            limit,
        };
        let usage = Usage::new(vec![quota("team", 10), quota("team/a", 4), quota("", 12)]);
        let name = |name| Repository::parse(name).unwrap();
        assert!(usage.charge(&name("team/a/x"), 4).is_ok());
        assert!(usage.charge(&name("team/a"), 1).is_err());
        assert!(usage.charge(&name("team/ab"), 6).is_ok());
        assert!(usage.charge(&name("team"), 1).is_err());
        assert!(usage.charge(&name("teams"), 100).is_ok());
        usage.refund(&name("team/a/x"), 4);
        assert!(usage.charge(&name("team/a"), 4).is_ok());
        assert_eq!(usage.repository(&name("team/ab")), 6);
        assert!(usage.charge_disk(12).is_ok() && usage.charge_disk(1).is_err());
        usage.refund_disk(2);
        assert!(usage.charge_disk(2).is_ok());
        assert_eq!(usage.quotas()[2].1, 12);
    }
}
