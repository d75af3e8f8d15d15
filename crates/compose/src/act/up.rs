//! Containers are made, made anew and started.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vessel_api::NetworkConnectRequest;
use vessel_client::RemoveOptions;

use super::graph::{self, Direction, each};
use super::state::{Container, OneOff};
use super::{Engine, PullPolicy, Status, labels};
use crate::error::{Error, Result};
use crate::project::Service;

/// When a container is made anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Recreate {
    /// When its configuration or its image changed.
    #[default]
    Changed,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How containers are made.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// Services; all when none is named.
    pub services: Vec<String>,
    /// Leave alone what they depend on.
    pub no_deps: bool,
    /// When those of the named services are made anew.
    pub recreate: Recreate,
    /// When those of what they depend on are.
    pub recreate_dependencies: Recreate,
    /// Do not give a new container the anonymous volumes of the old one.
    pub renew_volumes: bool,
    /// How many containers services have, when it is not what they say.
    pub scale: BTreeMap<String, i64>,
    /// Remove containers of services that are not in the files.
    pub remove_orphans: bool,
    /// Say nothing of them.
    pub ignore_orphans: bool,
    /// Build what can be built, or nothing.
    pub build: Option<bool>,
    /// What is pulled.
    pub pull: PullPolicy,
    /// Show no progress of pulls.
    pub quiet_pull: bool,
    /// Seconds to stop, when it is not what services say.
    pub timeout: Option<i64>,
}

impl Engine<'_> {
    /// Makes what services need, and their containers, and returns the services that were worked on.
    ///
    /// # Errors
    /// An image, a network, a volume or a container cannot be made.
    pub fn create(&self, how: &Create) -> Result<BTreeSet<String>> {
        let mut chosen = self.project.select(&how.services, !how.no_deps)?;
        for (name, count) in &how.scale {
            if !chosen.contains(name) {
                self.project.service(name)?;
            }
            let fixed = self
                .project
                .services
                .get(name)
                .is_some_and(|service| !service.container_name.is_empty());
            if *count > 1 && fixed {
                return Err(Error::project(format!(
                    "service {name:?} has a container_name, so it can have one container only"
                )));
            }
        }
        let images = self.ensure_images(&chosen, how.pull, how.build, how.quiet_pull)?;
        self.ensure_networks(&chosen)?;
        self.ensure_volumes(&chosen)?;
        self.orphans(how)?;
        let stopped = Mutex::new(BTreeSet::new());
        graph::run(&self.edges(&chosen), Direction::DependenciesFirst, |name| {
            let Some(service) = self.project.services.get(name) else {
                return Ok(());
            };
            let image = images.get(name).map_or("", String::as_str);
            let named = how.services.is_empty() || how.services.iter().any(|known| known == name);
            let recreate = if named {
                how.recreate
            } else {
                how.recreate_dependencies
            };
            let count = how.scale.get(name).copied().unwrap_or_else(|| service.count());
            let dependents = self.converge(service, image, recreate, count, how)?;
            let mut stopped = stopped.lock().unwrap_or_else(PoisonError::into_inner);
            stopped.extend(dependents);
            Ok(())
        })?;
        chosen.extend(stopped.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(chosen)
    }

    /// Containers of services that are not in the files.
    fn orphans(&self, how: &Create) -> Result<()> {
        let orphans: Vec<Container> = self
            .containers(OneOff::Exclude)?
            .into_iter()
            .filter(|container| {
                !self.project.services.contains_key(&container.service)
                    && !self.project.disabled.contains_key(&container.service)
            })
            .collect();
        if orphans.is_empty() || (how.ignore_orphans && !how.remove_orphans) {
            return Ok(());
        }
        if how.remove_orphans {
            return each(&orphans, |container| {
                self.stop_and_remove(container, how.timeout, false)
            });
        }
        let names: Vec<&str> = orphans.iter().map(|container| container.name.as_str()).collect();
        self.observer.warn(&format!(
            "Found orphan containers ([{}]) for this project. If you removed or renamed this service in your compose file, you can run this command with the --remove-orphans flag to clean it up.",
            names.join(" ")
        ));
        Ok(())
    }

    /// Makes a service have the containers it should. Returns the services that were stopped for that, to be started again.
    fn converge(
        &self,
        service: &Service,
        image: &str,
        recreate: Recreate,
        count: i64,
        how: &Create,
    ) -> Result<BTreeSet<String>> {
        let others = self.containers(OneOff::Exclude)?;
        let mut own: Vec<&Container> = others
            .iter()
            .filter(|container| container.service == service.name)
            .collect();
        let wanted = usize::try_from(count).unwrap_or(0);
        let surplus = own.split_off(wanted.min(own.len()));
        each(&surplus, |container| {
            self.stop_and_remove(container, how.timeout, false)
        })?;
        let hash = self.project.config_hash(&service.name);
        let mut stopped = BTreeSet::new();
        for container in &own {
            let changed = container.label(labels::CONFIG_HASH) != hash
                || self.image_changed(container, image)
                || self.shares_with_another(service, container, &others)?;
            let wanted = match recreate {
                Recreate::Always => true,
                Recreate::Never => false,
                Recreate::Changed => changed,
            };
            if wanted {
                stopped.extend(self.stop_dependents(service, how.timeout)?);
                self.recreate(service, image, container, &others, how)?;
            } else if container.is_running() {
                self.tell(&container.resource(), Status::Done, "Running");
            }
        }
        let mut next = 1;
        let taken: BTreeSet<u32> = own.iter().map(|container| container.number).collect();
        for _ in own.len()..wanted {
            while taken.contains(&next) {
                next += 1;
            }
            let name = self.container_name(service, next);
            let resource = format!("Container {name}");
            self.step(&resource, "Creating", "Created", || {
                self.create_container(service, image, &name, next, &others, None)
                    .map(drop)
            })?;
            next += 1;
        }
        Ok(stopped)
    }

    /// Stops what runs of the services that ask to be restarted with this one (`depends_on`, `restart: true`). Returns
    /// those services.
    fn stop_dependents(&self, service: &Service, timeout: Option<i64>) -> Result<BTreeSet<String>> {
        let dependents: Vec<&Service> = self
            .project
            .services
            .values()
            .filter(|other| other.depends_on.get(&service.name).is_some_and(|how| how.restart))
            .collect();
        let mut stopped = BTreeSet::new();
        if dependents.is_empty() {
            return Ok(stopped);
        }
        for container in self.containers(OneOff::Exclude)? {
            if container.is_running() && dependents.iter().any(|other| other.name == container.service) {
                self.stop_and_tell(&container, timeout)?;
                stopped.insert(container.service);
            }
        }
        Ok(stopped)
    }

    fn image_changed(&self, container: &Container, image: &str) -> bool {
        let known = match container.label(labels::IMAGE) {
            "" => container.summary.image_id.as_str(),
            label => label,
        };
        !known.is_empty() && !image.is_empty() && known != image
    }

    /// Whether a container shares the network or another namespace with a container that is gone.
    fn shares_with_another(
        &self,
        service: &Service,
        container: &Container,
        others: &[Container],
    ) -> Result<bool> {
        let is_gone = |other: &str, mode: &str| {
            !others
                .iter()
                .any(|known| known.service == other && mode == format!("container:{}", known.id))
        };
        if let Some(other) = service.network_mode.strip_prefix("service:")
            && is_gone(other, &container.summary.host_config.network_mode)
        {
            return Ok(true);
        }
        let ipc = service.ipc.strip_prefix("service:");
        let pid = service
            .pid
            .as_deref()
            .and_then(|mode| mode.strip_prefix("service:"));
        if ipc.is_none() && pid.is_none() {
            return Ok(false);
        }
        // The list does not tell these.
        let found = self
            .client
            .container_inspect(&container.id, false)
            .map_err(Error::engine(format!(
                "cannot look at container {}",
                container.name
            )))?
            .host_config;
        Ok(ipc.is_some_and(|other| is_gone(other, &found.ipc_mode))
            || pid.is_some_and(|other| is_gone(other, &found.pid_mode)))
    }

    fn container_name(&self, service: &Service, number: u32) -> String {
        if service.container_name.is_empty() {
            format!("{}-{}-{number}", self.project.name, service.name)
        } else {
            service.container_name.clone()
        }
    }

    /// Makes a container, connects it to its further networks, and puts files into it.
    fn create_container(
        &self,
        service: &Service,
        image: &str,
        name: &str,
        number: u32,
        others: &[Container],
        instead_of: Option<&Container>,
    ) -> Result<String> {
        let own_name = self.container_name(service, number);
        let mut made = self.container_request(service, &own_name, number, false, others)?;
        made.request
            .config
            .labels
            .insert(labels::IMAGE.to_owned(), image.to_owned());
        if let Some(old) = instead_of {
            made.request
                .config
                .labels
                .insert(labels::REPLACE.to_owned(), old.name.clone());
            self.inherit_volumes(old, service, image, &mut made.request)?;
        }
        let created = self
            .client
            .container_create(name, &service.platform, &made.request)
            .map_err(Error::engine(format!("cannot create container {name}")))?;
        for warning in &created.warnings {
            self.observer.warn(warning);
        }
        let finish = || {
            for (network, settings) in &made.further {
                let request = NetworkConnectRequest {
                    container: created.id.clone(),
                    endpoint_config: Some(settings.clone()),
                };
                self.client
                    .network_connect(network, &request)
                    .map_err(Error::engine(format!(
                        "cannot connect {name} to network {network}"
                    )))?;
            }
            self.copy_files(service, &created.id)
        };
        if let Err(error) = finish() {
            // What is not whole would be taken for what was asked for.
            let _ = self.client.container_remove(
                &created.id,
                RemoveOptions {
                    force: true,
                    volumes: true,
                    ..RemoveOptions::default()
                },
            );
            return Err(error);
        }
        Ok(created.id)
    }

    /// Gives a new container the volumes of the one it replaces where its service or its image asks for one without
    /// a name; those that the files named and name no more stay behind.
    fn inherit_volumes(
        &self,
        old: &Container,
        service: &Service,
        image: &str,
        request: &mut vessel_api::ContainerCreateRequest,
    ) -> Result<()> {
        let known = self
            .client
            .container_inspect(&old.id, false)
            .map_err(Error::engine(format!("cannot look at container {}", old.name)))?;
        let of_image = if image.is_empty() {
            service.image_name(&self.project.name)
        } else {
            image.to_owned()
        };
        let declared = self
            .client
            .image_inspect(&of_image)
            .map_err(Error::engine(format!("cannot look at image {of_image}")))?
            .config
            .map(|config| config.volumes)
            .unwrap_or_default();
        let unnamed = |target: &str| {
            service
                .volumes
                .iter()
                .any(|mount| mount.kind == "volume" && mount.source.is_empty() && mount.target == target)
        };
        let targets: BTreeSet<String> = request
            .host_config
            .binds
            .iter()
            .filter_map(|bind| bind.split(':').nth(1).map(str::to_owned))
            .chain(
                request
                    .host_config
                    .mounts
                    .iter()
                    .map(|mount| mount.target.clone()),
            )
            .chain(request.host_config.tmpfs.keys().cloned())
            .collect();
        for mount in known.mounts {
            let asked = declared.contains_key(&mount.destination) || unnamed(&mount.destination);
            if mount.kind == "volume"
                && asked
                && !mount.name.is_empty()
                && !targets.contains(&mount.destination)
            {
                request.config.volumes.remove(&mount.destination);
                let mode = if mount.rw { "rw" } else { "ro" };
                request
                    .host_config
                    .binds
                    .push(format!("{}:{}:{mode}", mount.name, mount.destination));
            }
        }
        Ok(())
    }

    fn recreate(
        &self,
        service: &Service,
        image: &str,
        old: &Container,
        others: &[Container],
        how: &Create,
    ) -> Result<()> {
        self.step(&old.resource(), "Recreate", "Recreated", || {
            let name = self.container_name(service, old.number);
            let short: String = old.id.chars().take(12).collect();
            let temporary = format!("{short}_{name}");
            let from = (!how.renew_volumes).then_some(old);
            let new = self.create_container(service, image, &temporary, old.number, others, from)?;
            let swap = || {
                if old.is_running() {
                    self.stop_container(&old.id, service, how.timeout)?;
                }
                let options = RemoveOptions {
                    volumes: how.renew_volumes,
                    ..RemoveOptions::default()
                };
                match self.client.container_remove(&old.id, options) {
                    Err(error) if !error.is_not_found() => {
                        return Err(Error::engine(format!("cannot remove container {}", old.name))(
                            error,
                        ));
                    }
                    _ => {}
                }
                self.client
                    .container_rename(&new, &name)
                    .map_err(Error::engine(format!(
                        "cannot rename the new container to {name}"
                    )))
            };
            swap()
        })
    }

    /// Starts the containers of services that do not run, each after what it depends on is as it should be.
    ///
    /// # Errors
    /// One cannot be started, or what it depends on does not become ready.
    pub fn start(&self, services: &BTreeSet<String>, dependencies: bool) -> Result<()> {
        graph::run(&self.edges(services), Direction::DependenciesFirst, |name| {
            let Some(service) = self.project.services.get(name) else {
                return Ok(());
            };
            if dependencies {
                self.wait_dependencies(service)?;
            }
            let own: Vec<Container> = self
                .containers(OneOff::Exclude)?
                .into_iter()
                .filter(|container| container.service == *name)
                .collect();
            each(&own, |container| {
                if container.is_running() {
                    return Ok(());
                }
                self.step(&container.resource(), "Starting", "Started", || {
                    self.client
                        .container_start(&container.id, "")
                        .map_err(Error::engine(format!(
                            "cannot start container {}",
                            container.name
                        )))?;
                    self.hooks(container, &service.post_start)
                })
            })
        })
    }

    /// Waits for services as `--wait` does.
    ///
    /// # Errors
    /// One does not become ready.
    pub fn wait_up(&self, services: &BTreeSet<String>, seconds: Option<u64>) -> Result<()> {
        let names: Vec<String> = services.iter().cloned().collect();
        self.wait_ready(&names, seconds.map(Duration::from_secs))
    }
}
