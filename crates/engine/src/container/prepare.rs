//! What a start needs from this host: addresses, files, the specification. All of it blocks, seldom for long.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use vessel_network::EndpointRecord;
use vessel_runtime::rlimits;
use vessel_runtime::seccomp::{self, docker};
use vessel_runtime::shim::protocol::InheritedFds;
use vessel_runtime::shim::{Overlay, RootSource, ShimConfig, ShimFds};
use vessel_runtime::spec::{Mount, Spec};

use super::record::{MountKind, MountRecord, Record};
use super::sources::{self, SHM};
use super::{Container, RootPaths, log_drivers, names};
use crate::cdi::Registry;
use crate::error::Context;
use crate::network::{End, Joined};
use crate::oci_spec::modes::{Ipc, Namespace, NetworkMode};
use crate::oci_spec::user::{Accounts, Identity};
use crate::oci_spec::{self, Inputs, Namespaces, Owner, UserMount, devices, ports, security, wall};
use crate::paths::remove_tree;
use crate::{Engine, Error, Result};

/// Account files of images, by the image's topmost chain ID.
#[derive(Debug, Default)]
pub(crate) struct AccountCache(Mutex<HashMap<String, Arc<Accounts>>>);

/// Compiled filters that are on disk, by the bits of the bounding set.
#[derive(Debug, Default)]
pub(crate) struct FilterCache(Mutex<HashMap<u64, PathBuf>>);

/// Everything a shim is launched with.
pub(super) struct Prepared {
    pub config: ShimConfig,
    pub fds: ShimFds,
    pub endpoints: BTreeMap<String, EndpointRecord>,
}

impl Engine {
    /// Prepares a start. On an error nothing is left of it.
    pub(super) fn prepare(&self, container: &Container) -> Result<Prepared> {
        let record = container.record();
        let directory = self.paths.shim(&record.id);
        remove_tree(&directory).context(|| format!("remove what is left in {}", directory.display()))?;
        std::fs::create_dir(&directory).context(|| format!("create {}", directory.display()))?;
        let mut endpoints = BTreeMap::new();
        let prepared = self.prepare_in(container, &record, &directory, &mut endpoints);
        if prepared.is_err() {
            self.give_back(&record.id, &endpoints);
        }
        prepared
    }

    /// Releases what a run had: its ends of networks, its volumes' mounts, its shim's directory.
    pub(crate) fn give_back(&self, id: &str, endpoints: &BTreeMap<String, EndpointRecord>) {
        self.release_volumes(id);
        self.networks.forget(id, endpoints.keys());
        for endpoint in endpoints.values() {
            self.networks.release(endpoint);
        }
        let directory = self.paths.shim(id);
        if let Err(error) = remove_tree(&directory) {
            tracing::warn!("remove {}: {error}", directory.display());
        }
    }

    fn prepare_in(
        &self,
        container: &Container,
        record: &Arc<Record>,
        directory: &Path,
        endpoints: &mut BTreeMap<String, EndpointRecord>,
    ) -> Result<Prepared> {
        let host = &record.host;
        let root = self.root_paths(record)?;
        let mode = NetworkMode::parse(&host.network_mode)?;
        let identity = self.container_user(record, &root)?;
        let machine = wall::is_machine(host);
        let security = security::security(host, self.available(host))?;
        self.use_volumes(&record.id, &record.mounts)?;
        let mut sources = Vec::new();
        let mounts = self.mount_sources(record, &mut sources)?;
        let ipc = Ipc::parse(&host.ipc_mode)?;
        let mut namespaces = self.namespaces(record, &ipc)?;
        if namespaces.user.is_some() && record.mounts.iter().any(|mount| mount.idmap) {
            return Err(Error::unsupported(
                "a bind mount with idmap has no meaning where the container's IDs are remapped: use --userns host, or leave idmap out",
            ));
        }
        if let Ipc::Container(name) = &ipc
            && !record.mounts.iter().any(|mount| mount.destination == SHM)
        {
            sources.push((SHM.into(), self.shared_memory(name)?));
        }

        let (netns, reservations, taps) = match &mode {
            NetworkMode::Host => (None, Vec::new(), Vec::new()),
            NetworkMode::Container(name) => {
                let pid = self.joined_pid(name, "network")?;
                (Some(open_namespace(pid, "net")?), Vec::new(), Vec::new())
            }
            NetworkMode::None => (Some(self.networks.isolated()?.netns), Vec::new(), Vec::new()),
            NetworkMode::Bridge | NetworkMode::Named(_) => {
                let Joined {
                    netns,
                    endpoints: made,
                    reservations,
                    taps,
                } = match (End::all(record)?, ports::published(&record.config, host)?) {
                    (ends, ports) if machine => self.networks.join_machine(&ends, &ports)?,
                    (ends, ports) => self.networks.join(&ends, &ports)?,
                };
                *endpoints = made;
                self.networks.announce(record, endpoints, &self.config.dns);
                self.networks.serve_names(&record.id, endpoints, netns.as_fd())?;
                (Some(netns), reservations, taps)
            }
        };
        namespaces.network = netns.is_some().then_some(None);

        let names = match &mode {
            NetworkMode::Container(name) => self.names_of_another(name)?,
            _ => names::write(
                directory,
                record,
                &names::Surroundings {
                    mode: &mode,
                    addresses: endpoints.values().flat_map(EndpointRecord::addresses).collect(),
                    links: self.link_hosts(record),
                    own_server: crate::network::has_names(endpoints),
                    gateway: self.networks.bridge().map(|bridge| IpAddr::V4(bridge.gateway())),
                    dns: &self.config.dns,
                    owner: namespaces.user.map(|range| range.start),
                },
            )?,
        };
        let seccomp_program = match security.filter {
            security::Filter::Default => Some(self.default_filter(security.capabilities)?),
            security::Filter::Unconfined | security::Filter::Custom(_) => None,
        };
        let (taps, interfaces) = taps.into_iter().unzip();
        let (machine, boot) = match machine {
            true => {
                let names = crate::network::has_names(endpoints);
                let (machine, boot) = self.machine(host, interfaces, names)?;
                (Some(machine), Some(boot))
            }
            false => (None, None),
        };
        let init = host.init.unwrap_or(self.config.init).then(|| self.paths.init());
        let mut spec = oci_spec::compose(Inputs {
            record,
            identity,
            security: &security,
            devices: match machine {
                Some(_) => devices::Devices::default(),
                None => devices::devices(host)?,
            },
            namespaces,
            ipc,
            names,
            mounts,
            init,
            link_environment: self.link_environment(record, endpoints)?,
            cgroup: container.cgroup.clone(),
        })?;
        self.add_devices(record, &mut spec, &mut sources)?;
        let bundle = write_bundle(directory, &mut spec)?;
        let log = log_drivers::config(record, self.paths.log(&record.id))?;
        let config = ShimConfig {
            id: record.id.clone(),
            spec,
            bundle,
            root: RootSource::Overlay(Overlay {
                lower: root.lower,
                upper: Some(root.upper),
                work: Some(root.work),
                volatile: root.volatile,
            }),
            machine,
            hierarchies: self.hierarchies.clone(),
            seccomp_program,
            open_stdin: record.config.open_stdin,
            stdin_once: record.config.stdin_once,
            leashed: false,
            log,
            // What removes itself has no exit status once the machine was off.
            exit_file: if host.auto_remove {
                directory.join(vessel_runtime::shim::protocol::EXIT)
            } else {
                self.paths.exit_file(&record.id)
            },
            durable: !host.auto_remove,
            fds: InheritedFds {
                limit: rlimits::descriptors_before(),
                ..InheritedFds::default()
            },
        };
        let fds = ShimFds {
            netns,
            sources,
            taps,
            boot,
            keep: reservations,
            attach: Vec::new(),
        };
        Ok(Prepared {
            config,
            fds,
            endpoints: endpoints.clone(),
        })
    }

    /// Gives the container the devices it asks for by CDI.
    fn add_devices(
        &self,
        record: &Record,
        spec: &mut Spec,
        sources: &mut Vec<(PathBuf, OwnedFd)>,
    ) -> Result<()> {
        let requests = &record.host.resources.device_requests;
        if requests.is_empty() {
            return Ok(());
        }
        let before = spec.mounts.clone();
        Registry::read(&self.config.cdi_spec_dirs).inject(requests, spec)?;
        let at =
            |mounts: &[Mount], path: &Path| mounts.iter().find(|mount| mount.destination == path).cloned();
        // What a device's mount took the place of is attached no more.
        sources.retain(|(path, _)| at(&before, path) == at(&spec.mounts, path));
        Ok(())
    }

    /// The files with the names of a network that belongs to another container: that one's.
    pub(crate) fn names_of_another(&self, container: &str) -> Result<oci_spec::NameFiles> {
        let other = self.paths.shim(self.container(container)?.id());
        Ok(oci_spec::NameFiles {
            hosts: Some(other.join("hosts")),
            hostname: Some(other.join("hostname")),
            resolv_conf: Some(other.join("resolv.conf")),
        })
    }

    /// Who the container runs as.
    fn container_user(&self, record: &Record, root: &RootPaths) -> Result<Identity> {
        let accounts = if std::fs::symlink_metadata(root.upper.join("etc")).is_ok() {
            // The container may have accounts of its own.
            let layers = std::iter::once(&root.upper).chain(&root.lower).cloned().collect();
            Arc::new(oci_spec::user::read_stack(layers)?)
        } else {
            self.image_accounts(record, root)?
        };
        accounts.identity(&record.config.user, &record.host.group_add)
    }

    fn image_accounts(&self, record: &Record, root: &RootPaths) -> Result<Arc<Accounts>> {
        let Some(top) = record.layers.last() else {
            return Ok(Arc::default());
        };
        let cache = || self.accounts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(accounts) = cache().get(top) {
            return Ok(Arc::clone(accounts));
        }
        let accounts = Arc::new(oci_spec::user::read_stack(root.lower.clone())?);
        let mut cache = cache();
        // Images come and go: the cache is for those in use now.
        if cache.len() >= 64 {
            cache.clear();
        }
        cache.insert(top.clone(), Arc::clone(&accounts));
        Ok(accounts)
    }

    /// The default filter for a bounding set, compiled once per daemon.
    pub(crate) fn default_filter(&self, bounding: vessel_runtime::capabilities::CapSet) -> Result<PathBuf> {
        let mut cache = self.filters.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = cache.get(&bounding.bits()) {
            return Ok(path.clone());
        }
        let program = seccomp::compile(&seccomp::default_profile(&docker::Host::current(bounding)))?;
        let path = self.paths.seccomp().join(format!("{:016x}.bpf", bounding.bits()));
        let new = path.with_extension("new");
        std::fs::write(&new, program.to_bytes())
            .and_then(|()| std::fs::rename(&new, &path))
            .context(|| format!("write the system call filter {}", path.display()))?;
        cache.insert(bounding.bits(), path.clone());
        Ok(path)
    }

    fn namespaces(&self, record: &Record, ipc: &Ipc) -> Result<Namespaces> {
        let host = &record.host;
        let own_user = self.config.userns_remap.filter(|_| wall::is_remapped(host));
        let path = |name: &str, what: &str, file: &str| -> Result<Option<Option<PathBuf>>> {
            let pid = self.joined_pid(name, what)?;
            Ok(Some(Some(format!("/proc/{pid}/ns/{file}").into())))
        };
        Ok(Namespaces {
            network: None,
            pid: match Namespace::parse("PID", &host.pid_mode)? {
                Namespace::Private => Some(None),
                Namespace::Host => None,
                Namespace::Container(name) => path(&name, "PID", "pid")?,
            },
            ipc: match ipc {
                Ipc::Host => None,
                Ipc::Container(name) => path(name, "IPC", "ipc")?,
                Ipc::Private | Ipc::Shareable | Ipc::None => Some(None),
            },
            uts: host.uts_mode != "host",
            cgroup: host.cgroupns_mode == "private",
            user: own_user,
        })
    }

    /// The process whose namespace is to be joined.
    pub(crate) fn joined_pid(&self, name: &str, what: &str) -> Result<i32> {
        let other = self.container(name)?;
        if wall::is_machine(&other.record().host) {
            return Err(Error::invalid(format!(
                "cannot join {what} of container {}: it is a virtual machine, with a kernel of its own",
                other.id()
            )));
        }
        let state = other.state();
        if !state.status.has_process() || state.pid == 0 {
            return Err(Error::conflict(format!(
                "cannot join {what} of a non running container: {}",
                other.id()
            )));
        }
        Ok(state.pid)
    }

    /// A detached copy of the `/dev/shm` of a container that shares it.
    fn shared_memory(&self, name: &str) -> Result<OwnedFd> {
        let other = self.container(name)?;
        if Ipc::parse(&other.record().host.ipc_mode)? != Ipc::Shareable {
            return Err(Error::conflict(format!(
                "can't join IPC of container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
                other.id()
            )));
        }
        sources::shared_memory(self.joined_pid(name, "IPC")?)
            .context(|| format!("cannot share the {SHM} of container {}", other.id()))
    }

    fn mount_sources(
        &self,
        record: &Record,
        sources: &mut Vec<(PathBuf, OwnedFd)>,
    ) -> Result<Vec<UserMount>> {
        record
            .mounts
            .iter()
            .map(|mount| {
                let source = match mount.kind {
                    MountKind::Tmpfs => PathBuf::new(),
                    MountKind::Volume => {
                        let data = self.volume_path(&record.id, &mount.name)?;
                        if mount.subpath.is_empty() {
                            data
                        } else {
                            sources.push((mount.destination.clone().into(), sources::subpath(mount, &data)?));
                            data.join(&mount.subpath)
                        }
                    }
                    MountKind::Bind => bind_source(mount)?,
                };
                let owner = match mount.idmap {
                    true => Some(owner(&source)?),
                    false => None,
                };
                Ok(UserMount {
                    record: mount.clone(),
                    source,
                    owner,
                })
            })
            .collect()
    }
}

/// Writes what hooks are told of: they find the container's root by the configuration in its bundle.
fn write_bundle(directory: &Path, spec: &mut Spec) -> Result<Option<PathBuf>> {
    if spec.hooks.is_none() {
        return Ok(None);
    }
    let root = directory.join("rootfs");
    std::fs::create_dir(&root).context(|| format!("create {}", root.display()))?;
    if let Some(configured) = &mut spec.root {
        configured.path = root;
    }
    let path = directory.join("config.json");
    let text = serde_json::to_vec(spec)
        .map_err(|error| Error::system(format!("encode the configuration: {error}")))?;
    std::fs::write(&path, text).context(|| format!("write {}", path.display()))?;
    Ok(Some(directory.to_owned()))
}

fn bind_source(mount: &MountRecord) -> Result<PathBuf> {
    let source = PathBuf::from(&mount.source);
    match std::fs::metadata(&source) {
        Ok(_) => Ok(source),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && mount.create_source => {
            std::fs::create_dir_all(&source)
                .context(|| format!("error while creating mount source path '{}'", source.display()))?;
            Ok(source)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {}",
            source.display()
        ))),
        Err(error) => Err(error).context(|| format!("look at the mount source {}", source.display())),
    }
}

fn owner(source: &Path) -> Result<Owner> {
    let stat = rustix::fs::stat(source).context(|| format!("look at {}", source.display()))?;
    Ok(Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    })
}

pub(crate) fn open_namespace(pid: i32, kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{kind}");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open {path}"))
}
