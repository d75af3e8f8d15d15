//! Containers of services are stopped, started, paused, killed, removed.

use std::collections::BTreeSet;

use super::Engine;
use super::graph::{self, Direction, each};
use super::state::{Container, OneOff};
use crate::error::{Error, Result};

impl Engine<'_> {
    /// The containers of active services, of the named ones if any: what the files do not name may be another
    /// directory's of the same name, and stays as it is.
    ///
    /// # Errors
    /// There is no such service, or the daemon cannot be asked.
    pub fn own_containers(&self, services: &[String]) -> Result<Vec<Container>> {
        let mut containers = self.containers_of(services, OneOff::Exclude)?;
        containers.retain(|container| self.project.services.contains_key(&container.service));
        Ok(containers)
    }

    fn grouped(&self, services: &[String]) -> Result<(BTreeSet<String>, Vec<Container>)> {
        let containers = self.own_containers(services)?;
        let names = containers
            .iter()
            .map(|container| container.service.clone())
            .collect();
        Ok((names, containers))
    }

    /// Stops services, those that depend on others first.
    ///
    /// # Errors
    /// A container cannot be stopped.
    pub fn stop(&self, services: &[String], timeout: Option<i64>) -> Result<()> {
        let (names, containers) = self.grouped(services)?;
        graph::run(&self.edges(&names), Direction::DependentsFirst, |name| {
            let own: Vec<&Container> = containers
                .iter()
                .filter(|container| container.service == name && container.is_running())
                .collect();
            each(&own, |container| self.stop_and_tell(container, timeout))
        })
    }

    /// Starts what is stopped.
    ///
    /// # Errors
    /// A service has no container, or one cannot be started.
    pub fn start_stopped(&self, services: &[String]) -> Result<()> {
        // What they depend on is started, too, as far as it was made.
        let needed: Vec<String> = self.project.select(services, true)?.into_iter().collect();
        let (names, _) = self.grouped(&needed)?;
        for name in services {
            if !names.contains(name) {
                return Err(Error::project(format!(
                    "service {name:?} has no container to start"
                )));
            }
        }
        if names.is_empty() {
            return Err(Error::project(format!(
                "no container found for project {:?}: nothing to start",
                self.project.name
            )));
        }
        self.start(&names, true)
    }

    /// Restarts services, and those that ask to be restarted with them.
    ///
    /// # Errors
    /// A container cannot be restarted.
    pub fn restart(&self, services: &[String], timeout: Option<i64>, dependents: bool) -> Result<()> {
        let mut wanted = services.to_vec();
        if dependents && !services.is_empty() {
            let asks = self.project.services.values().filter(|service| {
                service
                    .depends_on
                    .iter()
                    .any(|(name, how)| how.restart && services.contains(name))
            });
            wanted.extend(asks.map(|service| service.name.clone()));
        }
        let (names, containers) = self.grouped(&wanted)?;
        graph::run(&self.edges(&names), Direction::DependenciesFirst, |name| {
            let own: Vec<&Container> = containers
                .iter()
                .filter(|container| container.service == name)
                .collect();
            let hooks = self
                .project
                .services
                .get(name)
                .map(|service| service.post_start.clone());
            each(&own, |container| {
                self.step(&container.resource(), "Restarting", "Started", || {
                    self.client
                        .container_restart(&container.id, "", timeout)
                        .map_err(Error::engine(format!(
                            "cannot restart container {}",
                            container.name
                        )))?;
                    self.hooks(container, hooks.as_deref().unwrap_or_default())
                })
            })
        })
    }

    /// Sends a signal to what runs.
    ///
    /// # Errors
    /// Nothing runs, or a container does not get it.
    pub fn kill(&self, services: &[String], signal: &str, remove_orphans: bool) -> Result<()> {
        let mut containers = if remove_orphans {
            self.containers_of(services, OneOff::Exclude)?
        } else {
            self.own_containers(services)?
        };
        containers.retain(Container::is_running);
        each(&containers, |container| {
            self.step(&container.resource(), "Killing", "Killed", || {
                self.client
                    .container_kill(&container.id, signal)
                    .map_err(Error::engine(format!("cannot kill container {}", container.name)))
            })
        })
    }

    /// Pauses what runs.
    ///
    /// # Errors
    /// A container cannot be paused.
    pub fn pause(&self, services: &[String]) -> Result<()> {
        let mut containers = self.own_containers(services)?;
        containers.retain(|container| container.summary.state == "running");
        each(&containers, |container| {
            self.step(&container.resource(), "Pausing", "Paused", || {
                self.client
                    .container_pause(&container.id)
                    .map_err(Error::engine(format!(
                        "cannot pause container {}",
                        container.name
                    )))
            })
        })
    }

    /// Goes on with what is paused.
    ///
    /// # Errors
    /// A container cannot go on.
    pub fn unpause(&self, services: &[String]) -> Result<()> {
        let mut containers = self.own_containers(services)?;
        containers.retain(|container| container.summary.state == "paused");
        each(&containers, |container| {
            self.step(&container.resource(), "Unpausing", "Unpaused", || {
                self.client
                    .container_unpause(&container.id)
                    .map_err(Error::engine(format!(
                        "cannot unpause container {}",
                        container.name
                    )))
            })
        })
    }

    /// Removes containers, which must not run.
    ///
    /// # Errors
    /// A container cannot be removed.
    pub fn remove(&self, containers: &[Container], volumes: bool) -> Result<()> {
        each(containers, |container| self.remove_and_tell(container, volumes))
    }
}
