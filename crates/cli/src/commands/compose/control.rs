//! `vessel compose start`, `stop`, `restart`, `kill`, `pause`, `unpause` and `rm`

use super::options::Session;
use crate::commands::confirm;
use crate::failure::{Failure, Result};
use crate::output;

/// Start services
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Wait until services run, or are healthy
    #[arg(long)]
    wait: bool,
    /// Wait no longer than so many seconds
    #[arg(long, value_name = "int")]
    wait_timeout: Option<u64>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl StartArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        let engine = session.engine(&project)?;
        engine.start_stopped(&self.services)?;
        if self.wait {
            let names = project.select(&self.services, false)?;
            engine.wait_up(&names, self.wait_timeout)?;
        }
        Ok(())
    }
}

/// Stop services
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// Seconds until containers that do not stop are killed
    #[arg(short, long, value_name = "int")]
    timeout: Option<i64>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl StopArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        Ok(session.engine(&project)?.stop(&self.services, self.timeout)?)
    }
}

/// Restart services
#[derive(Debug, clap::Args)]
pub struct RestartArgs {
    /// Do not restart what asks to be restarted with them
    #[arg(long)]
    no_deps: bool,
    /// Seconds until containers that do not stop are killed
    #[arg(short, long, value_name = "int")]
    timeout: Option<i64>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl RestartArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        let engine = session.engine(&project)?;
        Ok(engine.restart(&self.services, self.timeout, !self.no_deps)?)
    }
}

/// Kill services
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// Kill those that are not in the files, too
    #[arg(long)]
    remove_orphans: bool,
    /// Signal to send
    #[arg(short, long, value_name = "string", default_value = "SIGKILL")]
    signal: String,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl KillArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        let engine = session.engine(&project)?;
        Ok(engine.kill(&self.services, &self.signal, self.remove_orphans)?)
    }
}

/// Pause services
#[derive(Debug, clap::Args)]
pub struct PauseArgs {
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl PauseArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        Ok(session.engine(&project)?.pause(&self.services)?)
    }
}

/// Go on with services that are paused
#[derive(Debug, clap::Args)]
pub struct UnpauseArgs {
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl UnpauseArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        Ok(session.engine(&project)?.unpause(&self.services)?)
    }
}

/// Remove containers that are stopped
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Stop them before
    #[arg(short, long)]
    stop: bool,
    /// Remove their anonymous volumes, too
    #[arg(short, long)]
    volumes: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl RemoveArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.acting_project(&self.services)?;
        let engine = session.engine(&project)?;
        if self.stop {
            engine.stop(&self.services, None)?;
        }
        let mut found = engine.own_containers(&self.services)?;
        found.retain(|container| !container.is_running());
        if found.is_empty() {
            output::warn("No stopped containers");
            return Ok(());
        }
        if !self.force {
            let names: Vec<&str> = found.iter().map(|container| container.name.as_str()).collect();
            if !confirm(&format!("Going to remove {}", names.join(", ")))? {
                return Err(Failure::silent(1));
            }
        }
        Ok(engine.remove(&found, self.volumes)?)
    }
}
