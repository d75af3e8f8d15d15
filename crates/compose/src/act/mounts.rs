//! Volumes, configs and secrets of a service as mounts.

use vessel_api::{BindOptions, Empty, ImageOptions, Map, Mount, TmpfsOptions, VolumeOptions};

use super::convert::texts;
use crate::error::{Error, Result};
use crate::load::parse_bytes;
use crate::project::{self, FileMount, FileObject, Project, Scalar, Service};

/// What a container is given.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    pub(super) binds: Vec<String>,
    pub(super) mounts: Vec<Mount>,
    pub(super) tmpfs: Map<String>,
    pub(super) anonymous: Map<Empty>,
}

/// A config or secret whose contents are copied into the container before it starts.
pub(super) struct Copied<'a> {
    pub(super) target: String,
    pub(super) content: &'a str,
    pub(super) mount: &'a FileMount,
}

pub(super) fn mounts(project: &Project, service: &Service) -> Result<Mounted> {
    let mut found = Mounted::default();
    for volume in &service.volumes {
        match volume.kind.as_str() {
            "volume" => volume_mount(project, volume, &mut found),
            "bind" => bind_mount(volume, &mut found),
            "tmpfs" => {
                let options = volume.tmpfs.clone().unwrap_or_default();
                found.mounts.push(Mount {
                    kind: "tmpfs".to_owned(),
                    target: volume.target.clone(),
                    read_only: volume.read_only,
                    tmpfs_options: Some(TmpfsOptions {
                        size_bytes: options.size.as_deref().and_then(parse_bytes).unwrap_or(0),
                        mode: options.mode.as_ref().map_or(0, mode),
                        options: Vec::new(),
                    }),
                    ..Mount::default()
                });
            }
            "image" => found.mounts.push(Mount {
                kind: "image".to_owned(),
                source: volume.source.clone(),
                target: volume.target.clone(),
                read_only: volume.read_only,
                image_options: volume.image.as_ref().map(|image| ImageOptions {
                    subpath: image.subpath.clone(),
                }),
                ..Mount::default()
            }),
            kind => {
                return Err(Error::project(format!(
                    "services.{}.volumes: mounts of type {kind} are not supported",
                    service.name
                )));
            }
        }
    }
    for line in &service.tmpfs.0 {
        let (target, options) = line.split_once(':').unwrap_or((line, ""));
        found.tmpfs.insert(target.to_owned(), options.to_owned());
    }
    for (mount, object, directory) in objects(project, service) {
        if !object.file.is_empty() {
            found.mounts.push(Mount {
                kind: "bind".to_owned(),
                source: object.file.clone(),
                target: target(mount, directory),
                read_only: true,
                ..Mount::default()
            });
        } else if object.external {
            return Err(Error::project(format!(
                "services.{}: {} is external, which only a swarm knows; give it a file, content or environment",
                service.name, mount.source
            )));
        }
    }
    Ok(found)
}

/// Secrets and configs of a service, and the directory in which they are unless they say otherwise.
fn objects<'a>(
    project: &'a Project,
    service: &'a Service,
) -> impl Iterator<Item = (&'a FileMount, &'a FileObject, &'static str)> {
    let configs = service
        .configs
        .iter()
        .filter_map(|mount| Some((mount, project.configs.get(&mount.source)?, "/")));
    let secrets = service
        .secrets
        .iter()
        .filter_map(|mount| Some((mount, project.secrets.get(&mount.source)?, "/run/secrets/")));
    configs.chain(secrets)
}

/// What is to be copied into a container of a service.
pub(super) fn copied<'a>(project: &'a Project, service: &'a Service) -> Result<Vec<Copied<'a>>> {
    let mut found = Vec::new();
    for (mount, object, directory) in objects(project, service) {
        if !object.file.is_empty() || object.external {
            continue;
        }
        let Some(content) = object.content.as_deref().or(object.value.as_deref()) else {
            return Err(Error::project(format!(
                "{} is of the environment, in which the variable {:?} is not set",
                mount.source, object.environment
            )));
        };
        found.push(Copied {
            target: target(mount, directory),
            content,
            mount,
        });
    }
    Ok(found)
}

fn target(mount: &FileMount, directory: &str) -> String {
    let name = if mount.target.is_empty() {
        &mount.source
    } else {
        &mount.target
    };
    if name.starts_with('/') {
        name.clone()
    } else {
        format!("{directory}{name}")
    }
}

/// Permission bits, from a number (`0440`) or text.
pub(super) fn mode(value: &Scalar) -> u32 {
    match value {
        Scalar::Int(mode) => u32::try_from(*mode).unwrap_or(0),
        Scalar::Text(text) => u32::from_str_radix(text.trim_start_matches("0o"), 8).unwrap_or(0),
        _ => 0,
    }
}

fn volume_mount(project: &Project, volume: &project::Mount, found: &mut Mounted) {
    let options = volume.volume.clone().unwrap_or_default();
    let name = match project.volumes.get(&volume.source) {
        Some(known) => known.name.clone(),
        None => volume.source.clone(),
    };
    let special = !options.subpath.is_empty() || !options.labels.is_empty();
    if name.is_empty() && !special && !volume.read_only {
        found.anonymous.insert(volume.target.clone(), Empty {});
        return;
    }
    if special || name.is_empty() {
        found.mounts.push(Mount {
            kind: "volume".to_owned(),
            source: name,
            target: volume.target.clone(),
            read_only: volume.read_only,
            volume_options: Some(VolumeOptions {
                no_copy: options.nocopy,
                labels: texts(&options.labels),
                subpath: options.subpath,
                driver_config: None,
            }),
            ..Mount::default()
        });
        return;
    }
    let mut flags = vec![if volume.read_only { "ro" } else { "rw" }];
    if options.nocopy {
        flags.push("nocopy");
    }
    found
        .binds
        .push(format!("{name}:{}:{}", volume.target, flags.join(",")));
}

fn bind_mount(volume: &project::Mount, found: &mut Mounted) {
    let options = volume.bind.clone().unwrap_or_default();
    let create = options.create_host_path.unwrap_or(false);
    // The short form makes what is missing, in every daemon; paths with a colon do not fit it.
    if create && !volume.source.contains(':') && !volume.target.contains(':') && options.recursive.is_empty()
    {
        let mut flags = vec![if volume.read_only { "ro" } else { "rw" }];
        flags.extend(
            [options.selinux.as_str(), options.propagation.as_str()]
                .into_iter()
                .filter(|flag| !flag.is_empty()),
        );
        found
            .binds
            .push(format!("{}:{}:{}", volume.source, volume.target, flags.join(",")));
        return;
    }
    found.mounts.push(Mount {
        kind: "bind".to_owned(),
        source: volume.source.clone(),
        target: volume.target.clone(),
        read_only: volume.read_only,
        consistency: volume.consistency.clone(),
        bind_options: Some(BindOptions {
            propagation: options.propagation,
            create_mountpoint: create,
            non_recursive: options.recursive == "disabled",
            read_only_non_recursive: options.recursive == "writable",
            read_only_force_recursive: options.recursive == "readonly",
        }),
        ..Mount::default()
    });
}
