//! The one thread that syncs and compacts: all who ask while a sync is under way share the next.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::held;
use super::journal::{Journal, write_compacted};
use crate::error::Context;
use crate::{Error, Result};

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<oneshot::Sender<Result<()>>>,
    compact: bool,
    end: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The thread's other end.
#[derive(Debug)]
pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    pub fn start(journal: Arc<Mutex<Journal>>) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .stack_size(128 << 10)
            .spawn({
                let shared = Arc::clone(&shared);
                move || run(&shared, &journal)
            })
            .context(|| "start the state journal's thread")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_one();
    }

    pub async fn sync(&self) -> Result<()> {
        let (sender, done) = oneshot::channel();
        self.change(|queue| queue.waiting.push(sender));
        done.await
            .unwrap_or_else(|_| Err(Error::system("the state journal's thread has ended")))
    }

    pub fn compact(&self) {
        self.change(|queue| queue.compact = true);
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.change(|queue| queue.end = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, journal: &Mutex<Journal>) {
    loop {
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.waiting.is_empty() && !queue.compact && !queue.end {
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let waiting = std::mem::take(&mut queue.waiting);
        let compact = std::mem::take(&mut queue.compact);
        let end = queue.end;
        drop(queue);

        if !waiting.is_empty() {
            // Everything written before this line is covered, so what was written before anyone in `waiting` asked is.
            let file = held(journal).file();
            let result = file.sync_data().context(|| "sync the state journal");
            for sender in waiting {
                // Who no longer waits needs no answer.
                let _ = sender.send(result.clone());
            }
        }
        if compact && let Err(error) = compact_now(journal) {
            tracing::warn!("{error}; the journal goes on growing");
        }
        if end {
            return;
        }
    }
}

fn compact_now(journal: &Mutex<Journal>) -> Result<()> {
    let snapshot = {
        let mut journal = held(journal);
        if !journal.wants_compaction() {
            return Ok(());
        }
        journal.begin_compaction()
    };
    match write_compacted(&snapshot) {
        Ok(new) => held(journal).finish_compaction(new),
        Err(error) => {
            held(journal).abort_compaction();
            Err(error)
        }
    }
}
