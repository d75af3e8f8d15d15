//! Removal of endpoints in the background.
//!
//! When the last process and descriptor of a namespace are gone, the kernel removes its interfaces by itself, many at a
//! time and without making anybody wait. So the reaper first lets a moment pass, then removes what is still there: that
//! costs nothing in the common case and is prompt in the other.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::bridge::{Shared, lock};
use crate::error::{Error, Result};
use crate::interface::remove_interface;
use crate::nft::elements::Mapping;

/// How long the kernel has for removing an interface on its own.
const GRACE: Duration = Duration::from_millis(100);

struct Grave {
    bridge: Arc<Shared>,
    ifname: String,
    /// Mappings of a protocol without connections, whose flows must not outlive them.
    udp: Vec<Mapping>,
}

enum Order {
    Bury(Grave),
    Flush(Sender<()>),
}

pub(crate) struct Reaper {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    pub(crate) fn start() -> Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("net-reaper".into())
            .stack_size(256 * 1024)
            .spawn(move || run(&inbox))
            .map_err(|e| Error::io("start the thread that removes endpoints", e))?;
        Ok(Self {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Removes the interface soon, then frees its address.
    pub(crate) fn bury(&self, bridge: &Arc<Shared>, ifname: String, udp: Vec<Mapping>) {
        let bridge = Arc::clone(bridge);
        self.order(Order::Bury(Grave { bridge, ifname, udp }));
    }

    /// Returns when everything buried before is gone.
    pub(crate) fn flush(&self) {
        let (done, wait) = mpsc::channel();
        self.order(Order::Flush(done));
        // An error is a dropped answer: the thread is gone, and with it the work.
        let _ = wait.recv();
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // The thread lives as long as the sender; there is nobody to tell if it does not.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(inbox: &Receiver<Order>) {
    while let Ok(first) = inbox.recv() {
        let mut graves = Vec::new();
        let mut waiting = Vec::new();
        let deadline = Instant::now() + GRACE;
        let mut next = Ok(first);
        loop {
            match next {
                Ok(Order::Bury(grave)) => graves.push(grave),
                Ok(Order::Flush(done)) => {
                    waiting.push(done);
                    break;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
            next = inbox.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        for grave in graves {
            bury(&grave);
        }
        for done in waiting {
            let _ = done.send(());
        }
    }
}

fn bury(grave: &Grave) {
    let shared = &*grave.bridge;
    if let Err(error) = crate::conntrack::forget(&grave.udp) {
        tracing::warn!(interface = grave.ifname, %error, "connections of a removed endpoint stay until they time out");
    }
    // The lock is taken per interface, so that a start never waits for more than one removal.
    let removed = remove_interface(&mut lock(&shared.route), &grave.ifname);
    match removed {
        Ok(()) => shared.buried(&grave.ifname),
        // The address stays taken: it is still in use.
        Err(error) => {
            tracing::warn!(interface = grave.ifname, %error, "an endpoint's interface could not be removed")
        }
    }
}
