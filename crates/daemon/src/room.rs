//! Room for connections: how many there are at most, and who goes when there is none left.
//!
//! Clients keep connections for a next request that may never come. When all room is taken and another client is at the door,
//! the connection whose last request is the longest ago is asked to leave: one that is idle is closed at once, as any server
//! may close it, and the client connects again when it has something to say. One with a request under way finishes it first;
//! meanwhile the next is asked. Streams that have left HTTP are never asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long one that was asked to leave may take before another is asked.
const PATIENCE: Duration = Duration::from_millis(20);

/// The room of a listener.
#[derive(Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    guests: Mutex<Guests>,
}

/// Who may be asked to leave, by when they spoke last.
#[derive(Debug, Default)]
struct Guests {
    next: u64,
    by_turn: BTreeMap<u64, Arc<Notify>>,
}

/// A connection that speaks HTTP.
#[derive(Debug)]
pub struct Guest {
    room: Arc<Room>,
    turn: Mutex<u64>,
    leave: Arc<Notify>,
}

impl Room {
    /// For so many connections.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(most)),
            guests: Mutex::default(),
        })
    }

    /// Waits for room, and makes some.
    pub async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(permit);
        }
        loop {
            let longest = locked(&self.guests).by_turn.pop_first();
            if let Some((_, guest)) = longest {
                guest.notify_one();
            }
            let entered = Arc::clone(&self.free).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(PATIENCE, entered).await {
                // It is never closed.
                return permit.ok();
            }
        }
    }

    /// One more that may be asked to leave.
    pub fn guest(self: &Arc<Self>) -> Guest {
        let leave = Arc::new(Notify::new());
        let mut guests = locked(&self.guests);
        let turn = guests.next;
        guests.next += 1;
        guests.by_turn.insert(turn, Arc::clone(&leave));
        Guest {
            room: Arc::clone(self),
            turn: Mutex::new(turn),
            leave,
        }
    }
}

impl Guest {
    /// It spoke: all others are to leave before it. One that was asked already leaves all the same.
    pub fn spoke(&self) {
        let mut guests = locked(&self.room.guests);
        let mut turn = locked(&self.turn);
        let Some(leave) = guests.by_turn.remove(&turn) else {
            return;
        };
        *turn = guests.next;
        guests.next += 1;
        guests.by_turn.insert(*turn, leave);
    }

    /// Resolves when it is to leave.
    pub async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = locked(&self.room.guests);
        guests.by_turn.remove(&*locked(&self.turn));
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    #[tokio::test]
    async fn who_spoke_last_the_longest_ago_leaves_first() {
        let room = Room::new(2);
        let (one, other) = (room.enter().await.unwrap(), room.enter().await.unwrap());
        let (first, second) = (room.guest(), room.guest());
        first.spoke();
        let mut entering = Box::pin(room.enter());
        let waited = timeout(Duration::from_millis(5), &mut entering).await;
        assert!(waited.is_err());
        timeout(Duration::from_secs(5), second.asked_to_leave())
            .await
            .unwrap();
        assert!(
            timeout(Duration::from_millis(1), first.asked_to_leave())
                .await
                .is_err()
        );
        drop((other, second));
        let _third = timeout(Duration::from_secs(5), entering).await.unwrap().unwrap();
        // The first does not go: there is nobody else, and it is not asked twice.
        let mut entering = Box::pin(room.enter());
        assert!(timeout(Duration::from_millis(50), &mut entering).await.is_err());
        timeout(Duration::from_secs(5), first.asked_to_leave())
            .await
            .unwrap();
        first.spoke();
        assert!(timeout(Duration::from_millis(50), &mut entering).await.is_err());
        drop(one);
        assert!(timeout(Duration::from_secs(5), entering).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn nobody_is_asked_while_there_is_room() {
        let room = Room::new(2);
        let _permit = room.enter().await;
        let guest = room.guest();
        let _other = room.enter().await;
        assert!(
            timeout(Duration::from_millis(50), guest.asked_to_leave())
                .await
                .is_err()
        );
    }
}
