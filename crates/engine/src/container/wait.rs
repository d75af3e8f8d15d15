//! Waiting for a container to end.

use vessel_api::WaitResponse;

use crate::{Engine, Error, Result};

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// That it does not run: at once when it does not.
    #[default]
    NotRunning,
    /// That it ends the next time.
    NextExit,
    /// That it is removed.
    Removed,
}

/// A wait under way: from the moment it was made nothing is missed.
#[derive(Debug)]
pub struct Waiter {}

impl Waiter {
    /// Waits.
    ///
    /// # Errors
    /// When the container was removed before its end could be known.
    pub async fn wait(self) -> Result<WaitResponse> {
        Err(Error::unsupported("not written yet"))
    }
}

impl Engine {
    /// Begins to wait. The answer to a client's request can begin when this returns.
    ///
    /// # Errors
    /// No such container.
    pub fn container_wait(&self, _id: &str, _condition: WaitCondition) -> Result<Waiter> {
        Err(Error::unsupported("not written yet"))
    }
}
