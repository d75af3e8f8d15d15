//! Stopping, killing, pausing.

use std::sync::Arc;

use crate::{Engine, Error, Result};

/// How to stop; none: as the container says.
#[derive(Debug, Clone, Default)]
pub struct StopOptions {
    /// The signal to ask with, name or number.
    pub signal: Option<String>,
    /// Seconds until it is killed; -1: never.
    pub timeout: Option<i64>,
}

impl Engine {
    /// Stops a container: asks, waits, kills.
    ///
    /// # Errors
    /// `NotModified` when it does not run.
    pub async fn container_stop(&self, _id: &str, _options: StopOptions) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Stops a container when it runs and starts it.
    ///
    /// # Errors
    /// As start.
    pub async fn container_restart(self: &Arc<Self>, _id: &str, _options: StopOptions) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Sends a signal, by name or number.
    ///
    /// # Errors
    /// Not running; no such signal.
    pub async fn container_kill(&self, _id: &str, _signal: &str) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// Not running; paused already.
    pub async fn container_pause(&self, _id: &str) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }

    /// Thaws all processes.
    ///
    /// # Errors
    /// Not paused.
    pub async fn container_unpause(&self, _id: &str) -> Result<()> {
        Err(Error::unsupported("not written yet"))
    }
}
