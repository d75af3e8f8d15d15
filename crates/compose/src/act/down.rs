//! Containers, networks and what else was made go again.

use std::collections::{BTreeMap, BTreeSet};

use vessel_client::RemoveOptions;

use super::graph::{self, Direction, each};
use super::state::{Container, OneOff};
use super::{Engine, Status, labels};
use crate::error::{Error, Result};
use crate::project::Service;

/// Which images go, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// All that services use.
    All,
    /// Those without a name of the user's own.
    Local,
}

/// How everything goes.
#[derive(Debug, Clone, Default)]
pub struct Down {
    /// Services; all, with networks and volumes, when none is named.
    pub services: Vec<String>,
    /// Containers of services that are not in the files, too.
    pub remove_orphans: bool,
    /// Seconds to stop, when it is not what services say.
    pub timeout: Option<i64>,
    /// Volumes, too: those that active services use, or all with the label when there are no files.
    pub volumes: bool,
    /// Images, too.
    pub images: Option<Images>,
}

impl Engine<'_> {
    /// Stops and removes.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn down(&self, how: &Down) -> Result<()> {
        let all = self.containers(OneOff::Include)?;
        let from_files = self.project.is_of_files();
        let mut by_service: BTreeMap<String, Vec<Container>> = BTreeMap::new();
        let mut orphans = Vec::new();
        for container in all {
            let named = how.services.is_empty() || how.services.contains(&container.service);
            if self.project.services.contains_key(&container.service) || !from_files {
                if named {
                    by_service
                        .entry(container.service.clone())
                        .or_default()
                        .push(container);
                }
            } else if how.services.is_empty() && !self.project.disabled.contains_key(&container.service) {
                orphans.push(container);
            }
        }
        let found_any = !by_service.is_empty();
        let services: BTreeSet<String> = by_service.keys().cloned().collect();
        graph::run(&self.edges(&services), Direction::DependentsFirst, |name| {
            let containers = by_service.get(name).map(Vec::as_slice).unwrap_or_default();
            each(containers, |container| {
                self.stop_and_remove(container, how.timeout, how.volumes)
            })
        })?;
        if how.remove_orphans {
            each(&orphans, |container| {
                self.stop_and_remove(container, how.timeout, how.volumes)
            })?;
        } else if !orphans.is_empty() {
            let names: Vec<&str> = orphans.iter().map(|container| container.name.as_str()).collect();
            self.observer.warn(&format!(
                "Found orphan containers ([{}]) for this project. If you removed or renamed this service in your compose file, you can run this command with the --remove-orphans flag to clean it up.",
                names.join(" ")
            ));
        }
        let mut did = found_any;
        if how.services.is_empty() {
            did |= self.remove_networks(how)?;
        }
        if how.volumes && how.services.is_empty() {
            did |= self.remove_volumes()?;
        }
        if let Some(which) = how.images {
            self.remove_images(how, which)?;
        } else if !did && how.services.is_empty() {
            self.observer.warn(&format!(
                "No resource found to remove for project {:?}.",
                self.project.name
            ));
        }
        Ok(())
    }

    fn remove_networks(&self, how: &Down) -> Result<bool> {
        let networks = self
            .client
            .network_list(&labels::of_project(&self.project.name))
            .map_err(Error::engine("cannot list the project's networks"))?;
        let kept = |key: &str| {
            // Those of services that are not in the files stay with them.
            !how.remove_orphans && self.project.is_of_files() && !self.project.networks.contains_key(key)
        };
        let networks: Vec<_> = networks
            .into_iter()
            .filter(|network| network.labels.get(labels::NETWORK).is_some_and(|key| !kept(key)))
            .collect();
        each(&networks, |network| {
            let resource = format!("Network {}", network.name);
            self.check()?;
            self.tell(&resource, Status::Working, "Removing");
            match self.client.network_remove(&network.id) {
                Ok(()) => self.tell(&resource, Status::Done, "Removed"),
                Err(error) if error.is_not_found() => self.tell(&resource, Status::Done, "Removed"),
                // dockerd says 403 where others say 409.
                Err(error) if matches!(error.status(), Some(403 | 409)) => {
                    self.tell(&resource, Status::Warning, "Resource is still in use");
                }
                Err(error) => {
                    self.tell(&resource, Status::Failed, "Error");
                    return Err(Error::engine(format!(
                        "failed to remove network {}",
                        network.name
                    ))(error));
                }
            }
            Ok(())
        })?;
        Ok(!networks.is_empty())
    }

    fn remove_volumes(&self) -> Result<bool> {
        let listed = self
            .client
            .volume_list(&labels::of_project(&self.project.name))
            .map_err(Error::engine("cannot list the project's volumes"))?;
        let mut names: BTreeSet<String> = listed.volumes.into_iter().map(|volume| volume.name).collect();
        if self.project.is_of_files() {
            // Others with the label are another directory's of the same name, or those of files and profiles that
            // are not here now: nobody asked for their data to go.
            let own = self.project.used_volumes();
            names.retain(|name| own.contains(name.as_str()));
        }
        let names: Vec<String> = names.into_iter().collect();
        each(&names, |name| {
            let resource = format!("Volume {name}");
            self.check()?;
            self.tell(&resource, Status::Working, "Removing");
            match self.client.volume_remove(name, true) {
                Err(error) if error.status() == Some(409) => {
                    self.tell(&resource, Status::Warning, "Resource is still in use");
                    Ok(())
                }
                Err(error) if !error.is_not_found() => {
                    self.tell(&resource, Status::Failed, "Error");
                    Err(Error::engine(format!("failed to remove volume {name}"))(error))
                }
                _ => {
                    self.tell(&resource, Status::Done, "Removed");
                    Ok(())
                }
            }
        })?;
        Ok(!names.is_empty())
    }

    fn remove_images(&self, how: &Down, which: Images) -> Result<()> {
        let wanted = |service: &&Service| {
            (how.services.is_empty() || how.services.contains(&service.name))
                && (which == Images::All || (service.image.is_empty() && service.build.is_some()))
        };
        let names: BTreeSet<String> = self
            .project
            .services
            .values()
            .filter(wanted)
            .map(|service| service.image_name(&self.project.name))
            .collect();
        let names: Vec<String> = names.into_iter().collect();
        each(&names, |name| {
            let resource = format!("Image {name}");
            self.check()?;
            self.tell(&resource, Status::Working, "Removing");
            match self.client.image_remove(name, false, false) {
                Ok(_) => self.tell(&resource, Status::Done, "Removed"),
                Err(error) if error.is_not_found() => {
                    self.tell(&resource, Status::Warning, "Warning: No resource found to remove");
                }
                Err(error) if error.status() == Some(409) => {
                    self.tell(&resource, Status::Warning, "Resource is still in use");
                }
                Err(error) => {
                    self.tell(&resource, Status::Failed, "Error");
                    return Err(Error::engine(format!("failed to remove image {name}"))(error));
                }
            }
            Ok(())
        })
    }

    /// Stops a container in its own time.
    pub(super) fn stop_container(&self, id: &str, service: &Service, timeout: Option<i64>) -> Result<()> {
        match self.client.container_stop(id, &service.stop_signal, timeout) {
            Err(error) if !error.is_not_found() => Err(Error::engine("cannot stop a container")(error)),
            _ => Ok(()),
        }
    }

    /// Stops a container with its hooks, and tells of it.
    pub(super) fn stop_and_tell(&self, container: &Container, timeout: Option<i64>) -> Result<()> {
        let nothing = Service::default();
        let service = self.project.services.get(&container.service).unwrap_or(&nothing);
        self.step(&container.resource(), "Stopping", "Stopped", || {
            if container.summary.state == "running" && !container.one_off {
                self.hooks(container, &service.pre_stop)?;
            }
            self.stop_container(&container.id, service, timeout)
        })
    }

    /// Stops and removes a container.
    pub(super) fn stop_and_remove(
        &self,
        container: &Container,
        timeout: Option<i64>,
        volumes: bool,
    ) -> Result<()> {
        if container.is_running() {
            self.stop_and_tell(container, timeout)?;
        }
        self.remove_and_tell(container, volumes)
    }

    pub(super) fn remove_and_tell(&self, container: &Container, volumes: bool) -> Result<()> {
        self.step(&container.resource(), "Removing", "Removed", || {
            let options = RemoveOptions {
                volumes,
                force: true,
                ..RemoveOptions::default()
            };
            match self.client.container_remove(&container.id, options) {
                // Somebody else removes it, or did.
                Err(error) if error.is_not_found() || error.status() == Some(409) => Ok(()),
                Err(error) => Err(Error::engine(format!(
                    "cannot remove container {}",
                    container.name
                ))(error)),
                Ok(()) => Ok(()),
            }
        })
    }
}
