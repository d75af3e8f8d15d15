//! Counters of a device.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What a device has done since it was made.
#[derive(Debug, Default)]
pub struct Metrics {
    notifications: AtomicU64,
    interrupts: AtomicU64,
    requests: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
    errors: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MetricsSnapshot {
    /// The driver rang.
    pub notifications: u64,
    /// The driver was interrupted.
    pub interrupts: u64,
    /// Requests, packets or messages.
    pub requests: u64,
    /// Bytes the guest got.
    pub read: u64,
    /// Bytes the guest gave.
    pub written: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl Metrics {
    pub(super) fn notified(&self) {
        self.notifications.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn interrupted(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that gave the guest `bytes`.
    pub fn read(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A request by which the guest gave `bytes`.
    pub fn written(&self, bytes: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A request that failed.
    pub fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters now.
    pub fn snapshot(&self) -> MetricsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MetricsSnapshot {
            notifications: get(&self.notifications),
            interrupts: get(&self.interrupts),
            requests: get(&self.requests),
            read: get(&self.read),
            written: get(&self.written),
            errors: get(&self.errors),
        }
    }
}
