//! Creating containers.

use std::sync::Arc;

use vessel_api::{ContainerCreateRequest, ContainerCreateResponse};

use super::record::{MountKind, Record, State, Status};
use super::table::check_name;
use super::{Container, health};
use crate::error::Context;
use crate::oci_spec::modes::{Namespace, NetworkMode};
use crate::oci_spec::{merge, mount_points, ports, security, validate, wall};
use crate::paths::remove_container_files;
use crate::{Durability, Engine, Error, ErrorKind, Image, Result, blocking, ids, quota};

impl Engine {
    /// Makes a container. Without a name it gets one.
    ///
    /// # Errors
    /// No such image, a name taken, any value that is not valid.
    pub async fn container_create(
        self: &Arc<Self>,
        name: Option<&str>,
        platform: Option<&str>,
        request: ContainerCreateRequest,
    ) -> Result<ContainerCreateResponse> {
        let (name, platform) = (name.map(str::to_owned), platform.map(str::to_owned));
        let engine = Arc::clone(self);
        // It goes on when the client leaves: the name it takes and the volumes it makes are a container's, or given back.
        let task =
            tokio::spawn(async move { engine.create(name.as_deref(), platform.as_deref(), request).await });
        task.await
            .map_err(|error| Error::system(format!("the creation ended abnormally: {error}")))?
    }

    async fn create(
        &self,
        name: Option<&str>,
        platform: Option<&str>,
        request: ContainerCreateRequest,
    ) -> Result<ContainerCreateResponse> {
        let ContainerCreateRequest {
            mut config,
            mut host_config,
            networking_config,
        } = request;
        let name = name
            .map(|name| name.strip_prefix('/').unwrap_or(name))
            .filter(|name| !name.is_empty());
        if let Some(name) = name {
            check_name(name)?;
        }
        if config.image.is_empty() {
            return Err(Error::invalid(
                "no image was named: the field Image must not be empty",
            ));
        }
        if let Some(health) = &config.healthcheck {
            health::validate(health)?;
        }
        let image = self.image(&config.image).await?;
        // It cannot be removed until the container is there.
        let Some(_held) = self.images.hold(&image.id) else {
            return Err(Error::not_found(format!("No such image: {}", config.image)));
        };
        check_platform(platform, &image)?;
        merge::merge(&mut config, &image.config);
        let (path, args) = merge::command(&config)?;

        wall::settle(&mut host_config)?;
        let security = security::security(&host_config, self.available(&host_config))?;
        if self.config.userns_remap.is_none() {
            Namespace::parse("userns", &host_config.userns_mode)?;
        }
        let mut warnings = validate::check(&config, &host_config, &self.facts)?;
        validate::fill_defaults(&mut host_config, &self.facts, security.system_paths_unconfined);
        if let Some(network) = self.networks.find_user(&host_config.network_mode) {
            // It may have been named by its ID.
            host_config.network_mode.clone_from(&network.record.name);
        }
        let mode = NetworkMode::parse(&host_config.network_mode)?;
        let networks = self.settle_networks(
            &mode,
            networking_config.endpoints_config,
            &config.mac_address,
            &host_config.links,
        )?;
        let links = match mode {
            NetworkMode::Named(_) => Vec::new(),
            _ => self.settle_links(&mode, &std::mem::take(&mut host_config.links))?,
        };
        let published = ports::published(&config, &host_config)?;
        if mode == NetworkMode::Host && !published.is_empty() {
            warnings.push("Published ports are discarded when using host network mode".into());
        }
        for binding in host_config.port_bindings.keys() {
            config.exposed_ports.entry(binding.clone()).or_default();
        }

        let id = ids::id();
        if config.hostname.is_empty() {
            config.hostname = match mode {
                NetworkMode::Host => rustix::system::uname().nodename().to_string_lossy().into_owned(),
                NetworkMode::Container(_) => String::new(),
                _ if host_config.uts_mode == "host" => {
                    rustix::system::uname().nodename().to_string_lossy().into_owned()
                }
                _ => id[..12].to_owned(),
            };
        }
        let others = |name: &str| {
            let other = self.container(name).map_err(not_the_image)?;
            Ok(other.record().mounts.clone())
        };
        let mut mounts = mount_points::mount_points(&config, &host_config, others)?;
        wall::check_mounts(&host_config, &mounts)?;
        for mount in &mounts {
            if mount.kind == MountKind::Bind
                && !mount.create_source
                && !std::path::Path::new(&mount.source).exists()
            {
                return Err(Error::invalid(format!(
                    "invalid mount config for type \"bind\": bind source path does not exist: {}",
                    mount.source
                )));
            }
        }

        let name = self.choose_name(name, &id)?;
        let durability = if host_config.auto_remove {
            Durability::Process
        } else {
            Durability::Disk
        };
        let settled = self.settle_volumes(&id, &mut mounts, &image.lower, durability);
        let volumes = match settled.await {
            Ok(settled) => settled,
            Err(error) => {
                self.containers.free_name(&name, &id);
                return Err(not_the_image(error));
            }
        };
        let record = Record {
            id: id.clone(),
            name: name.clone(),
            created: crate::time::now(),
            image_id: image.id.clone(),
            layers: image.record.chain_ids.clone(),
            path,
            args,
            config,
            host: host_config,
            networks,
            links,
            mounts,
        };
        if let Err(error) = self.register(record, durability).await {
            self.containers.free_name(&name, &id);
            self.undo_volumes(volumes).await;
            return Err(error);
        }
        Ok(ContainerCreateResponse { id, warnings })
    }

    fn choose_name(&self, wanted: Option<&str>, id: &str) -> Result<String> {
        if let Some(name) = wanted {
            self.containers.take_name(name, id)?;
            return Ok(name.to_owned());
        }
        for attempt in 0..16 {
            let name = ids::name(attempt);
            if self.containers.take_name(&name, id).is_ok() {
                return Ok(name);
            }
        }
        self.containers.take_name(&id[..12], id)?;
        Ok(id[..12].to_owned())
    }

    /// Makes the directories, journals the record, makes the container known.
    async fn register(&self, record: Record, durability: Durability) -> Result<()> {
        let own = self.paths.container(&record.id);
        let directory = own.clone();
        let projects = Arc::clone(&self.projects);
        let limit = quota::storage_option(&record.host.storage_opt)?;
        let made = blocking(move || {
            let make = |path: &std::path::Path, mode| {
                std::fs::create_dir(path)
                    .and_then(|()| {
                        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
                    })
                    .context(|| format!("create {}", path.display()))
            };
            // The upper directory's own mode is that of `/` inside. Programs of any user are found through it, nobody of
            // the host through the directory above.
            make(&directory, 0o710)?;
            let (upper, work) = (directory.join("upper"), directory.join("work"));
            make(&upper, 0o755)?;
            make(&work, 0o700)?;
            if limit > 0 {
                // The kernel moves files from the one to the other, which it does within a project only.
                let limited = projects.limit(&[&upper, &work], limit);
                limited.map_err(|error| match error.kind() {
                    ErrorKind::Invalid => error.wrap(
                        "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
                    ),
                    _ => error,
                })?;
            }
            Ok(())
        });
        if let Err(error) = made.await {
            let _ = remove_container_files(&own);
            return Err(error);
        }
        let cgroup = self.cgroup_for(&record)?;
        let written = self.records.put(&record.id, &record, durability).await;
        if let Err(error) = written {
            let _ = self.records.delete_now(&record.id);
            let _ = remove_container_files(&own);
            return Err(error.wrap("record the container"));
        }
        let container = Container::new(record, State::default(), cgroup);
        self.containers.insert(Arc::clone(&container));
        self.container_event(&container.record(), "create", &[]);
        Ok(())
    }

    /// Where a container's cgroup goes.
    pub(crate) fn cgroup_for(&self, record: &Record) -> Result<String> {
        let parent = match record.host.resources.cgroup_parent.as_str() {
            "" => &self.config.cgroup_parent,
            parent => parent,
        };
        let path = vessel_runtime::cgroup::CgroupPath::for_container(Some(parent), &record.id)?;
        Ok(format!("/{}", path.as_str()))
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// No such container, a bad name, a name taken.
    pub async fn container_rename(&self, id: &str, name: &str) -> Result<()> {
        let container = self.container(id)?;
        let name = name.strip_prefix('/').unwrap_or(name);
        if name.is_empty() {
            return Err(Error::invalid("Neither old nor new names may be empty"));
        }
        check_name(name)?;
        let _op = self.lock_op(&container).await?;
        let old = container.record();
        if container.status() == Status::Removing {
            return Err(Error::conflict(format!(
                "container {} is being removed",
                container.id
            )));
        }
        if old.name == name {
            return Err(Error::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        self.containers.take_name(name, &container.id)?;
        let renamed = Record {
            name: name.to_owned(),
            ..(*old).clone()
        };
        if let Err(error) = self.records.put(&container.id, &renamed, Durability::Disk).await {
            self.containers.free_name(name, &container.id);
            return Err(error);
        }
        container.set_record(renamed);
        self.containers.free_name(&old.name, &container.id);
        self.renew_names(&container);
        self.container_event(
            &container.record(),
            "rename",
            &[("oldName", format!("/{}", old.name))],
        );
        Ok(())
    }
}

/// Of what a container needs beside its image and is not there. Clients take "not found" for the image: they would pull it
/// and try again.
fn not_the_image(error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::invalid(error.message()),
        _ => error,
    }
}

fn check_platform(platform: Option<&str>, image: &Image) -> Result<()> {
    let Some(platform) = platform.filter(|platform| !platform.is_empty()) else {
        return Ok(());
    };
    let mut parts = platform.split('/');
    let (os, architecture) = (parts.next().unwrap_or_default(), parts.next());
    let matches = |wanted: &str, have: &str| {
        let wanted = match wanted {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        wanted.eq_ignore_ascii_case(have)
    };
    let fits = match architecture {
        Some(architecture) => matches(os, &image.os) && matches(architecture, &image.architecture),
        // One word is a system or an architecture.
        None => matches(os, &image.os) || matches(os, &image.architecture),
    };
    if fits {
        return Ok(());
    }
    Err(Error::not_found(format!(
        "image with reference {} was found but its platform ({}/{}) does not match the specified platform ({platform})",
        image.id, image.os, image.architecture
    )))
}
