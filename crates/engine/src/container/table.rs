//! All containers, by ID and by name.
//!
//! The lock is held for a look-up or a change of the maps, never across anything that may wait.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::Container;
use crate::{Error, Result};

/// The containers of an engine.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    maps: RwLock<Maps>,
    /// Whether any has ever been linked to another: else nobody looks for links.
    links: AtomicBool,
}

#[derive(Debug, Default)]
struct Maps {
    by_id: BTreeMap<String, Arc<Container>>,
    /// Name to ID; a name is taken before its container is in `by_id`.
    names: HashMap<String, String>,
}

impl Containers {
    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn all(&self) -> Vec<Arc<Container>> {
        self.read().by_id.values().cloned().collect()
    }

    /// Whether there may be links.
    pub fn has_links(&self) -> bool {
        self.links.load(Ordering::Acquire)
    }

    /// By full ID.
    pub fn get(&self, id: &str) -> Option<Arc<Container>> {
        self.read().by_id.get(id).cloned()
    }

    /// By full ID, name, or the beginning of an ID, in this order.
    pub fn find(&self, name: &str) -> Result<Arc<Container>> {
        let maps = self.read();
        let word = name.strip_prefix('/').unwrap_or(name);
        if let Some(found) = maps.by_id.get(word) {
            return Ok(Arc::clone(found));
        }
        if let Some(found) = maps.names.get(word).and_then(|id| maps.by_id.get(id)) {
            return Ok(Arc::clone(found));
        }
        if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut found = maps
                .by_id
                .range(word.to_owned()..)
                .take_while(|(id, _)| id.starts_with(word));
            match (found.next(), found.next()) {
                (Some((_, found)), None) => return Ok(Arc::clone(found)),
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(format!(
                        "multiple IDs found with provided prefix: {word}: use more digits"
                    )));
                }
                (None, _) => {}
            }
        }
        Err(Error::not_found(format!("No such container: {name}")))
    }

    /// Takes a name for an ID.
    pub fn take_name(&self, name: &str, id: &str) -> Result<()> {
        match self.write().names.entry(name.to_owned()) {
            std::collections::hash_map::Entry::Occupied(taken) => Err(Error::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{}\". You have to remove (or rename) that container to be able to reuse that name.",
                taken.get()
            ))),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(id.to_owned());
                Ok(())
            }
        }
    }

    /// Gives back a name, unless it is another's by now.
    pub fn free_name(&self, name: &str, id: &str) {
        let mut maps = self.write();
        if maps.names.get(name).is_some_and(|owner| owner == id) {
            maps.names.remove(name);
        }
    }

    pub fn insert(&self, container: Arc<Container>) {
        if !container.record().links.is_empty() {
            self.links.store(true, Ordering::Release);
        }
        self.write().by_id.insert(container.id.clone(), container);
    }

    /// Takes a container out, with its name.
    pub fn remove(&self, container: &Container) {
        let name = container.record().name.clone();
        let mut maps = self.write();
        maps.by_id.remove(&container.id);
        if maps.names.get(&name) == Some(&container.id) {
            maps.names.remove(&name);
        }
    }
}

/// Checks a container's name.
///
/// # Errors
/// When it has other characters than Docker allows.
pub fn check_name(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first
        && (2..=255).contains(&name.len())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, and at least two characters"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::record::{Record, State};

    fn table(ids: &[(&str, &str)]) -> Containers {
        let table = Containers::default();
        for (id, name) in ids {
            table.take_name(name, id).unwrap();
            let record = Record {
                id: (*id).into(),
                name: (*name).into(),
                ..Record::default()
            };
            table.insert(Container::new(record, State::default(), String::new()));
        }
        table
    }

    #[test]
    fn names_go_before_prefixes_and_several_are_ambiguous() {
        let table = table(&[("abc1", "one"), ("abc2", "two"), ("f00d", "abc")]);
        let find = |word: &str| table.find(word).map(|container| container.id.clone());
        assert_eq!(find("abc1").unwrap(), "abc1");
        assert_eq!(find("/two").unwrap(), "abc2");
        assert_eq!(find("abc").unwrap(), "f00d");
        assert_eq!(find("f").unwrap(), "f00d");
        assert!(find("ab").unwrap_err().message().contains("multiple IDs found"));
        for none in ["", "xyz", "b"] {
            assert_eq!(
                find(none).unwrap_err().kind(),
                crate::ErrorKind::NotFound,
                "{none:?}"
            );
        }
    }

    #[test]
    fn a_name_is_taken_once() {
        let table = table(&[("abc1", "one")]);
        let error = table.take_name("one", "abc2").unwrap_err();
        assert!(
            error
                .message()
                .starts_with("Conflict. The container name \"/one\" is already in use by container \"abc1\"")
        );
        table.remove(&table.find("one").unwrap());
        table.take_name("one", "abc2").unwrap();
    }

    #[test]
    fn names_have_dockers_alphabet() {
        for good in ["ab", "a-b_c.d", "0x"] {
            check_name(good).unwrap();
        }
        for bad in ["", "a", "-a", "a b", "a/b", "ü1"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
