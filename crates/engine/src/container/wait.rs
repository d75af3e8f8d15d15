//! Waiting for a container to end.

use tokio::sync::watch;
use vessel_api::WaitResponse;

use super::Life;
use crate::{Engine, Error, Result};

/// What to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// That it does not run: at once when it does not, else when the run ends, even if its policy restarts it then.
    #[default]
    NotRunning,
    /// That it ends the next time.
    NextExit,
    /// That it is removed.
    Removed,
}

/// A wait under way: from the moment it was made nothing is missed.
#[derive(Debug)]
pub struct Waiter {
    life: watch::Receiver<Life>,
    condition: WaitCondition,
    /// How often it had ended when the wait began.
    exits: u64,
}

impl Waiter {
    /// Waits.
    ///
    /// # Errors
    /// When the engine ends first.
    pub async fn wait(mut self) -> Result<WaitResponse> {
        let (condition, exits) = (self.condition, self.exits);
        let done = |life: &Life| {
            life.removed
                || match condition {
                    WaitCondition::NotRunning => !life.running || life.exits > exits,
                    WaitCondition::NextExit => life.exits > exits,
                    WaitCondition::Removed => false,
                }
        };
        let life = self
            .life
            .wait_for(done)
            .await
            .map_err(|_| Error::system("the container is gone"))?;
        Ok(WaitResponse {
            error: None,
            status_code: i64::from(life.exit_code),
        })
    }
}

impl Engine {
    /// Begins to wait. The answer to a client's request can begin when this returns.
    ///
    /// # Errors
    /// No such container.
    pub fn container_wait(&self, id: &str, condition: WaitCondition) -> Result<Waiter> {
        let container = self.container(id)?;
        let life = container.life.subscribe();
        let exits = life.borrow().exits;
        Ok(Waiter {
            life,
            condition,
            exits,
        })
    }
}

impl super::Container {
    /// Waits until there is no process, at most so long. Returns whether that is so.
    pub(crate) async fn wait_for_end(&self, limit: Option<std::time::Duration>) -> bool {
        let mut life = self.life.subscribe();
        let ended = async { life.wait_for(|life| !life.process || life.removed).await.is_ok() };
        match limit {
            Some(limit) => tokio::time::timeout(limit, ended).await.unwrap_or(false),
            None => ended.await,
        }
    }
}
