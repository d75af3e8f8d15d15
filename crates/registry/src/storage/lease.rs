//! Pins: what a request works with cannot be collected.
//!
//! A push names content in one moment and stores the manifest that needs it in a later one. Whoever is about to
//! refer to content pins its digest first, then looks whether it is there, then writes the reference. The collector
//! asks [`Pins::condemn`] before it removes anything: refused for what is pinned, and for what was pinned at any time
//! since the collection began, because its list of references may be older than what that pin was for. While the
//! collector removes something, whoever wants to pin it waits (for a few system calls), and then finds it gone. A client
//! that deletes a manifest does so by [`Pins::alone`]: before or after whatever else is done with it.

use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vessel_image::Digest;

use super::Storage;

/// All pins.
#[derive(Debug, Default)]
pub(super) struct Pins {
    state: Mutex<State>,
    spared: Condvar,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<Digest, usize>,
    /// What was pinned since the collection began; none when there is no collection.
    touched: Option<HashSet<Digest>>,
    condemned: HashSet<Digest>,
}

impl Pins {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(&self, digest: &Digest) {
        let mut state = self.state();
        while state.condemned.contains(digest) {
            state = self.spared.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state.held.entry(digest.clone()).or_insert(0) += 1;
        if let Some(touched) = &mut state.touched {
            touched.insert(digest.clone());
        }
    }

    fn unpin(&self, digest: &Digest) {
        let mut state = self.state();
        if let Some(count) = state.held.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(digest);
                drop(state);
                // Who wants it alone.
                self.spared.notify_all();
            }
        }
    }

    /// Does something to what nobody has pinned meanwhile: waits for those who have, and lets others wait.
    pub(super) fn alone<T>(&self, digest: &Digest, act: impl FnOnce() -> T) -> T {
        {
            let mut state = self.state();
            while state.held.contains_key(digest) || state.condemned.contains(digest) {
                state = self.spared.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.condemned.insert(digest.clone());
        }
        let _spared = Spared(self, digest);
        act()
    }

    /// From now on until [`Pins::end`], pins are remembered.
    pub(super) fn begin(&self) {
        let mut state = self.state();
        state.touched = Some(state.held.keys().cloned().collect());
    }

    pub(super) fn end(&self) {
        self.state().touched = None;
    }

    /// Removes something that nobody has pinned; whether it was allowed to.
    pub(super) fn condemn<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        {
            let mut state = self.state();
            let spare = state.held.contains_key(digest)
                || state
                    .touched
                    .as_ref()
                    .is_some_and(|touched| touched.contains(digest));
            if spare {
                return None;
            }
            if !state.condemned.insert(digest.clone()) {
                // Somebody else removes it.
                return None;
            }
        }
        let _spared = Spared(self, digest);
        Some(remove())
    }
}

/// Ends a sentence, whatever became of it.
struct Spared<'a>(&'a Pins, &'a Digest);

impl Drop for Spared<'_> {
    fn drop(&mut self) {
        self.0.state().condemned.remove(self.1);
        self.0.spared.notify_all();
    }
}

/// Keeps content from being collected until it is dropped.
#[derive(Debug)]
pub struct Lease {
    storage: Storage,
    digests: Vec<Digest>,
}

impl Lease {
    /// Keeps this, too.
    pub fn add(&mut self, digest: &Digest) {
        self.storage.0.pins.pin(digest);
        self.digests.push(digest.clone());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        for digest in &self.digests {
            self.storage.0.pins.unpin(digest);
        }
    }
}

impl Storage {
    /// A lease that keeps nothing yet.
    pub fn lease(&self) -> Lease {
        Lease {
            storage: self.clone(),
            digests: Vec::new(),
        }
    }

    /// A lease of one thing.
    pub fn lease_of(&self, digest: &Digest) -> Lease {
        let mut lease = self.lease();
        lease.add(digest);
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pinned_during_a_collection_is_spared() {
        let pins = Pins::default();
        let [before, during, never] = [b"a", b"b", b"c"].map(|bytes| Digest::sha256(bytes));
        pins.pin(&before);
        pins.begin();
        pins.unpin(&before);
        pins.pin(&during);
        pins.unpin(&during);
        assert!(pins.condemn(&before, || ()).is_none());
        assert!(pins.condemn(&during, || ()).is_none());
        assert!(pins.condemn(&never, || ()).is_some());
        pins.end();
        assert!(pins.condemn(&before, || ()).is_some());
    }

    #[test]
    fn a_pin_waits_until_the_removal_is_over() {
        let pins = Pins::default();
        let digest = Digest::sha256(b"");
        let removed = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (begun, wait) = std::sync::mpsc::channel();
            let (pins, digest, removed) = (&pins, &digest, &removed);
            scope.spawn(move || {
                pins.condemn(digest, || {
                    let _ = begun.send(());
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    removed.store(true, std::sync::atomic::Ordering::SeqCst);
                })
            });
            wait.recv().unwrap();
            pins.pin(digest);
            assert!(removed.load(std::sync::atomic::Ordering::SeqCst));
        });
    }
}
