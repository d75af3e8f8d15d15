//! The processes of builds that run, for whoever wants to know what something on the host belongs to.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Steps by ID, with the host's interfaces that they have.
#[derive(Debug, Default)]
pub(crate) struct Steps(Mutex<BTreeMap<String, Vec<String>>>);

impl Steps {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub fn begin(&self, id: &str) {
        self.lock().insert(id.to_owned(), Vec::new());
    }

    /// A step has got an interface.
    pub fn connected(&self, id: &str, interface: &str) {
        if let Some(interfaces) = self.lock().get_mut(id) {
            interfaces.push(interface.to_owned());
        }
    }

    /// Nothing is left of a step.
    pub fn end(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Those that run.
    pub fn all(&self) -> BTreeMap<String, Vec<String>> {
        self.lock().clone()
    }
}
