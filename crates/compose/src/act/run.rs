//! `run`: a container of a service, beside those that it has.

use std::collections::BTreeSet;

use vessel_api::{ContainerConfig, NetworkConnectRequest};
use vessel_client::RemoveOptions;

use super::state::OneOff;
use super::{Create, Engine, PullPolicy, labels};
use crate::error::{Error, Result};
use crate::project::{Command, Service};

/// How a container is run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// The service.
    pub service: String,
    /// Instead of its command.
    pub command: Vec<String>,
    /// Instead of its entry point; empty for none at all.
    pub entrypoint: Option<String>,
    /// Variables, `NAME=value` or `NAME` for the caller's value.
    pub environment: Vec<String>,
    /// Labels.
    pub labels: Vec<String>,
    /// Its name.
    pub name: String,
    /// Its user.
    pub user: String,
    /// Its directory.
    pub workdir: String,
    /// Ports to publish.
    pub publish: Vec<String>,
    /// Volumes to mount.
    pub volumes: Vec<String>,
    /// Publish the service's ports.
    pub service_ports: bool,
    /// Be known by the names of the service.
    pub use_aliases: bool,
    /// Leave alone what it depends on.
    pub no_deps: bool,
    /// With a terminal.
    pub tty: bool,
    /// With standard input.
    pub stdin: bool,
    /// In the background.
    pub detach: bool,
    /// Remove it when it ends.
    pub rm: bool,
    /// Capabilities to add.
    pub cap_add: Vec<String>,
    /// Capabilities to drop.
    pub cap_drop: Vec<String>,
    /// Build the image first.
    pub build: bool,
    /// What is pulled.
    pub pull: PullPolicy,
    /// Show no progress of pulls.
    pub quiet_pull: bool,
    /// Remove containers of services that are not in the files.
    pub remove_orphans: bool,
}

/// A container that was made and does not run yet.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its ID.
    pub id: String,
    /// Which streams it has.
    pub config: ContainerConfig,
    /// Whether it goes when it ends.
    pub auto_remove: bool,
}

impl Engine<'_> {
    /// Starts what a service depends on and makes a container of it.
    ///
    /// # Errors
    /// Something cannot be made, or the service is not there.
    pub fn prepare(&self, run: &Run) -> Result<Prepared> {
        let mut service = self.project.service(&run.service)?.clone();
        if !run.no_deps {
            let dependencies: Vec<String> = service.depends_on.keys().cloned().collect();
            if !dependencies.is_empty() {
                let create = Create {
                    services: dependencies,
                    ignore_orphans: !run.remove_orphans,
                    remove_orphans: run.remove_orphans,
                    pull: run.pull,
                    quiet_pull: run.quiet_pull,
                    ..Create::default()
                };
                let chosen = self.create(&create)?;
                self.start(&chosen, true)?;
                self.wait_dependencies(&service)?;
            }
        }
        self.adjust(&mut service, run)?;
        let only = BTreeSet::from([run.service.clone()]);
        let build = run.build.then_some(true);
        let images = self.ensure_images(&only, run.pull, build, run.quiet_pull)?;
        self.ensure_networks(&only)?;
        self.ensure_volumes(&only)?;
        let others = self.containers(OneOff::Exclude)?;
        let slug = slug()?;
        let name = if run.name.is_empty() {
            format!("{}-{}-run-{}", self.project.name, service.name, &slug[..12])
        } else {
            run.name.clone()
        };
        let mut made = self.container_request(&service, &name, 1, !run.use_aliases, &others)?;
        let config = &mut made.request.config;
        config
            .labels
            .insert(labels::ONE_OFF.to_owned(), "True".to_owned());
        config.labels.insert(labels::SLUG.to_owned(), slug);
        config.labels.insert(
            labels::IMAGE.to_owned(),
            images.get(&service.name).cloned().unwrap_or_default(),
        );
        config.attach_stdin = run.stdin && !run.detach;
        config.stdin_once = run.stdin && !run.detach;
        config.open_stdin = run.stdin || service.stdin_open;
        config.attach_stdout = !run.detach;
        config.attach_stderr = !run.detach;
        made.request.host_config.auto_remove = run.rm;
        // It runs once, whatever the service does.
        made.request.host_config.restart_policy = vessel_api::RestartPolicy::default();
        let resource = format!("Container {name}");
        let created = self.step(&resource, "Creating", "Created", || {
            self.client
                .container_create(&name, &service.platform, &made.request)
                .map_err(Error::engine(format!("cannot create container {name}")))
        })?;
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
            self.copy_files(&service, &created.id)
        };
        if let Err(error) = finish() {
            let options = RemoveOptions {
                force: true,
                volumes: true,
                ..RemoveOptions::default()
            };
            let _ = self.client.container_remove(&created.id, options);
            return Err(error);
        }
        Ok(Prepared {
            id: created.id,
            config: made.request.config,
            auto_remove: run.rm,
        })
    }

    /// Changes a service to what the command line says.
    fn adjust(&self, service: &mut Service, run: &Run) -> Result<()> {
        let wrong = |message: String| Error::project(message);
        service.container_name.clear();
        service.tty = run.tty;
        service.healthcheck = service.healthcheck.take();
        if !run.command.is_empty() {
            service.command = Some(Command(run.command.clone()));
        }
        if let Some(entrypoint) = &run.entrypoint {
            service.entrypoint = Some(Command(crate::project::split_words(entrypoint).map_err(wrong)?));
            if run.command.is_empty() {
                service.command = Some(Command::default());
            }
        }
        for variable in &run.environment {
            let (name, value) = match variable.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (variable.as_str(), self.project.environment.get(variable).cloned()),
            };
            service.environment.insert(name.to_owned(), value);
        }
        for label in &run.labels {
            let (name, value) = label.split_once('=').unwrap_or((label, ""));
            service.labels.insert(name.to_owned(), Some(value.to_owned()));
        }
        if !run.user.is_empty() {
            service.user.clone_from(&run.user);
        }
        if !run.workdir.is_empty() {
            service.working_dir.clone_from(&run.workdir);
        }
        if !run.service_ports {
            service.ports.clear();
        }
        for text in &run.publish {
            service.ports.extend(crate::load::port(text).map_err(wrong)?);
        }
        for text in &run.volumes {
            let mount = crate::load::mount(text, &self.project.directory).map_err(wrong)?;
            service.volumes.retain(|known| known.target != mount.target);
            service.volumes.push(mount);
        }
        service.cap_add.extend(run.cap_add.iter().cloned());
        service.cap_drop.extend(run.cap_drop.iter().cloned());
        Ok(())
    }
}

/// 32 random bytes in hexadecimal.
fn slug() -> Result<String> {
    let mut bytes = [0u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::project(format!("the kernel has no random bytes: {error}")))?;
    Ok(crate::project::hex(&bytes))
}
