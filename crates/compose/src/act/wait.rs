//! Waiting for services: started, healthy, completed.

use std::time::{Duration, Instant};

use super::state::{Container, OneOff};
use super::{Engine, Status};
use crate::error::{Error, Result};
use crate::project::Service;

/// How often a state is looked at.
const TICK: Duration = Duration::from_millis(100);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    /// It is healthy; with `or_running`, what has no health check must run.
    Healthy { or_running: bool },
    /// It ended well.
    Completed,
}

impl Engine<'_> {
    /// Waits for what a service depends on.
    pub(super) fn wait_dependencies(&self, service: &Service) -> Result<()> {
        for (name, how) in &service.depends_on {
            let condition = match how.condition.as_str() {
                "service_healthy" => Condition::Healthy { or_running: false },
                "service_completed_successfully" => Condition::Completed,
                _ => continue,
            };
            let containers = self.containers(OneOff::Exclude)?;
            let of_service: Vec<&Container> = containers
                .iter()
                .filter(|container| container.service == *name)
                .collect();
            if of_service.is_empty() {
                if how.required {
                    return Err(Error::project(format!(
                        "dependency failed to start: service {name:?} has no container"
                    )));
                }
                continue;
            }
            for container in of_service {
                match self.wait_for(container, condition, None) {
                    Ok(()) => {}
                    Err(Error::Project(message)) if !how.required => {
                        self.tell(
                            &container.resource(),
                            Status::Warning,
                            "Skipped - optional dependency failed",
                        );
                        self.observer.warn(&format!(
                            "optional dependency {name:?} failed to start: {message}"
                        ));
                    }
                    Err(Error::Project(message)) => {
                        return Err(Error::project(match condition {
                            Condition::Completed => message,
                            Condition::Healthy { .. } => format!("dependency failed to start: {message}"),
                        }));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Waits for a container.
    pub(super) fn wait_for(
        &self,
        container: &Container,
        condition: Condition,
        limit: Option<Duration>,
    ) -> Result<()> {
        let resource = container.resource();
        self.tell(&resource, Status::Working, "Waiting");
        let begin = Instant::now();
        loop {
            self.check()?;
            match self.is_met(container, condition) {
                Ok(true) => {
                    let text = match condition {
                        Condition::Healthy { .. } => "Healthy",
                        Condition::Completed => "Exited",
                    };
                    self.tell(&resource, Status::Done, text);
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    self.tell(&resource, Status::Failed, "Error");
                    return Err(error);
                }
            }
            if limit.is_some_and(|limit| begin.elapsed() > limit) {
                self.tell(&resource, Status::Failed, "Error");
                return Err(Error::project(format!(
                    "timeout: container {} is not ready",
                    container.name
                )));
            }
            std::thread::sleep(TICK);
        }
    }

    fn is_met(&self, container: &Container, condition: Condition) -> Result<bool> {
        let found = self
            .client
            .container_inspect(&container.id, false)
            .map_err(Error::engine(format!(
                "cannot look at container {}",
                container.name
            )))?;
        let state = &found.state;
        let name = &container.name;
        let ended = matches!(state.status.as_str(), "exited" | "dead");
        match condition {
            Condition::Completed if ended && state.exit_code == 0 => Ok(true),
            Condition::Completed if ended => Err(Error::project(format!(
                "service {:?} didn't complete successfully: exit {}",
                container.service, state.exit_code
            ))),
            Condition::Completed => Ok(false),
            Condition::Healthy { .. } if ended && !state.restarting => Err(Error::project(format!(
                "container {name} exited ({})",
                state.exit_code
            ))),
            Condition::Healthy { or_running } => {
                match state.health.as_ref().map(|health| health.status.as_str()) {
                    Some("healthy") => Ok(true),
                    Some("unhealthy") => Err(Error::project(format!("container {name} is unhealthy"))),
                    Some("starting") => Ok(false),
                    _ if or_running => Ok(state.running && !state.restarting),
                    _ => Err(Error::project(format!(
                        "container {name} has no healthcheck configured"
                    ))),
                }
            }
        }
    }

    /// Waits until services run, or are healthy where they say what that is.
    ///
    /// # Errors
    /// One ends, is unhealthy, or takes too long.
    pub fn wait_ready(&self, services: &[String], limit: Option<Duration>) -> Result<()> {
        let containers = self.containers(OneOff::Exclude)?;
        let chosen: Vec<Container> = containers
            .into_iter()
            .filter(|container| services.contains(&container.service))
            .collect();
        super::graph::each(&chosen, |container| {
            self.wait_for(container, Condition::Healthy { or_running: true }, limit)
        })
    }
}
