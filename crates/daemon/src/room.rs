//! Room for connections: how many there are at most, and who goes when there is none left.
//!
//! Clients keep connections for a next request that may never come. When all room is taken and another client is at the door,
//! the connection that is idle for the longest time since an answer is asked to leave: it is closed at once, as any server
//! may close it, and the client connects again when it has something to say. When there is none, those are asked that have
//! said nothing yet, after a short grace: they may be about to. Then those with a request under way, who finish it first;
//! meanwhile the next is asked. Streams that have left HTTP are never asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long one that was asked to leave may take before another is asked.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long one that connected has to say something before it is asked to leave.
const GRACE: Duration = Duration::from_secs(1);

/// The room of a listener.
#[derive(Debug)]
pub struct Room {
    free: Arc<Semaphore>,
    guests: Mutex<Guests>,
}

/// Who may be asked to leave, by what they do and since when.
#[derive(Debug, Default)]
struct Guests {
    next: u64,
    idle: BTreeMap<u64, Arc<Notify>>,
    silent: BTreeMap<u64, (Instant, Arc<Notify>)>,
    busy: BTreeMap<u64, Arc<Notify>>,
}

impl Guests {
    /// Who is to leave next, at this time.
    fn pop(&mut self, now: Instant) -> Option<Arc<Notify>> {
        if let Some((_, guest)) = self.idle.pop_first() {
            return Some(guest);
        }
        if let Some(silent) = self.silent.first_entry()
            && now.duration_since(silent.get().0) >= GRACE
        {
            return Some(silent.remove().1);
        }
        self.busy.pop_first().map(|(_, guest)| guest)
    }

    /// Takes one out that was not asked yet.
    fn take(&mut self, turn: u64) -> Option<Arc<Notify>> {
        let silent = |guests: &mut Self| Some(guests.silent.remove(&turn)?.1);
        let found = self.busy.remove(&turn).or_else(|| self.idle.remove(&turn));
        found.or_else(|| silent(self))
    }

    fn turn(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
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
            let leaves = locked(&self.guests).pop(Instant::now());
            if let Some(guest) = leaves {
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
        let turn = guests.turn();
        guests.silent.insert(turn, (Instant::now(), Arc::clone(&leave)));
        Guest {
            room: Arc::clone(self),
            turn: Mutex::new(turn),
            leave,
        }
    }
}

impl Guest {
    /// It has a request. One that was asked to leave already does so all the same.
    pub fn spoke(&self) {
        let mut guests = locked(&self.room.guests);
        let mut turn = locked(&self.turn);
        if let Some(leave) = guests.take(*turn) {
            *turn = guests.turn();
            guests.busy.insert(*turn, leave);
        }
    }

    /// It has an answer, all of which is there.
    pub fn answered(&self) {
        let mut guests = locked(&self.room.guests);
        let mut turn = locked(&self.turn);
        if let Some(leave) = guests.take(*turn) {
            *turn = guests.turn();
            guests.idle.insert(*turn, leave);
        }
    }

    /// Resolves when it is to leave.
    pub async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = locked(&self.room.guests);
        guests.take(*locked(&self.turn));
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

    /// Whether somebody is the next to leave, at a time.
    fn leaves(room: &Room, now: Instant, guest: &Guest) -> bool {
        let next = locked(&room.guests).pop(now);
        next.is_some_and(|next| Arc::ptr_eq(&next, &guest.leave))
    }

    #[test]
    fn the_idle_leave_first_then_the_silent_then_the_busy() {
        let before = Instant::now();
        let room = Room::new(9);
        let guests: [Guest; 4] = std::array::from_fn(|_| room.guest());
        let [first, second, silent, busy] = &guests;
        for guest in [second, first] {
            guest.spoke();
            guest.answered();
        }
        busy.spoke();
        assert!(leaves(&room, before, second) && leaves(&room, before, first));
        // It may be about to speak.
        assert!(leaves(&room, before, busy));
        let later = Instant::now() + GRACE;
        assert!(leaves(&room, later, silent));
        // Nobody is asked twice, whatever it says.
        first.spoke();
        silent.spoke();
        silent.answered();
        assert!(locked(&room.guests).pop(later).is_none());
        // One that has its answer goes before one that has not, one that has said nothing for long between them.
        let guests: [Guest; 3] = std::array::from_fn(|_| room.guest());
        let [busy, silent, idle] = &guests;
        busy.spoke();
        idle.spoke();
        idle.answered();
        let later = Instant::now() + GRACE;
        for guest in [idle, silent, busy] {
            assert!(leaves(&room, later, guest));
        }
        let gone = room.guest();
        drop(gone);
        assert!(locked(&room.guests).pop(later).is_none());
    }

    #[tokio::test]
    async fn who_enters_makes_room() {
        let room = Room::new(1);
        let permit = room.enter().await.unwrap();
        let guest = room.guest();
        guest.spoke();
        guest.answered();
        let leaving = tokio::spawn(async move {
            guest.asked_to_leave().await;
            drop((guest, permit));
        });
        let entered = timeout(Duration::from_secs(20), room.enter()).await;
        assert!(entered.unwrap().is_some());
        leaving.await.unwrap();
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
