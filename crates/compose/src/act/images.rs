//! Images of services: what is missing is pulled or built.

use std::collections::{BTreeMap, BTreeSet};

use super::graph::each;
use super::{Engine, Status};
use crate::error::{Error, Result};
use crate::project::Service;

/// Which images are pulled before containers are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// As each service says; what is missing when it says nothing.
    #[default]
    Service,
    /// All.
    Always,
    /// What is missing.
    Missing,
    /// None.
    Never,
}

impl PullPolicy {
    /// Reads `--pull`.
    ///
    /// # Errors
    /// There is no such policy.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "" | "policy" => Self::Service,
            "always" => Self::Always,
            "missing" => Self::Missing,
            "never" => Self::Never,
            other => {
                return Err(Error::project(format!(
                    "invalid pull policy {other:?}: always, missing, never or policy is expected"
                )));
            }
        })
    }
}

impl Engine<'_> {
    /// The ID of an image, when it is here.
    pub(super) fn image_id(&self, name: &str) -> Result<Option<String>> {
        match self.client.image_inspect(name) {
            Ok(image) => Ok(Some(image.id)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(Error::engine(format!("cannot look at image {name}"))(error)),
        }
    }

    /// Gets what services need. `build`: `Some(true)` builds what can be built, `Some(false)` nothing.
    pub(super) fn ensure_images(
        &self,
        services: &BTreeSet<String>,
        pull: PullPolicy,
        build: Option<bool>,
        quiet_pull: bool,
    ) -> Result<BTreeMap<String, String>> {
        let mut to_build: Vec<&Service> = Vec::new();
        let mut to_pull: BTreeMap<String, &Service> = BTreeMap::new();
        let chosen = || services.iter().filter_map(|name| self.project.services.get(name));
        for service in chosen() {
            let name = service.image_name(&self.project.name);
            let policy = match pull {
                PullPolicy::Service => service.pull_policy.as_str(),
                PullPolicy::Always => "always",
                PullPolicy::Missing => "missing",
                PullPolicy::Never => "never",
            };
            let here = self.image_id(&name)?.is_some();
            if service.build.is_some() {
                let wanted = match build {
                    Some(wanted) => wanted,
                    None => !here || service.pull_policy == "build",
                };
                if wanted {
                    to_build.push(service);
                    continue;
                }
                if build == Some(false) && !here {
                    return Err(Error::project(format!(
                        "service {:?}: image {name} is not here, and building is forbidden by --no-build",
                        service.name
                    )));
                }
                continue;
            }
            match policy {
                "never" if !here => {
                    return Err(Error::project(format!(
                        "service {:?}: image {name} is not here, and its pull policy is never",
                        service.name
                    )));
                }
                "never" => {}
                "always" => {
                    to_pull.insert(name, service);
                }
                policy
                    if (policy.starts_with("every_") || matches!(policy, "daily" | "weekly" | "refresh"))
                        && here =>
                {
                    // When an image was pulled last is not told by the API: the newest is asked for.
                    to_pull.insert(name, service);
                }
                _ if !here => {
                    to_pull.insert(name, service);
                }
                _ => {}
            }
        }
        let to_pull: Vec<(String, &Service)> = to_pull.into_iter().collect();
        each(&to_pull, |(name, service)| {
            if quiet_pull {
                self.images.pull(name, &service.platform)
            } else {
                self.pull_image(name, service)
            }
        })?;
        if !to_build.is_empty() {
            // What they build upon comes first, and is built when it is not here.
            let names: Vec<String> = to_build.iter().map(|service| service.name.clone()).collect();
            let mut ordered = self.buildable(&names, false)?;
            let mut missing = BTreeSet::new();
            for service in &ordered {
                if self.image_id(&service.image_name(&self.project.name))?.is_none() {
                    missing.insert(service.name.clone());
                }
            }
            ordered.retain(|service| names.contains(&service.name) || missing.contains(&service.name));
            self.images.build(self.project, &ordered)?;
        }
        let mut ids = BTreeMap::new();
        for service in chosen() {
            let name = service.image_name(&self.project.name);
            let id = self
                .image_id(&name)?
                .ok_or_else(|| Error::project(format!("no such image: {name}")))?;
            ids.insert(service.name.clone(), id);
        }
        Ok(ids)
    }

    fn pull_image(&self, name: &str, service: &Service) -> Result<()> {
        let resource = format!("Image {name}");
        self.step(&resource, "Pulling", "Pulled", || {
            self.images.pull(name, &service.platform)
        })
    }

    /// Pulls the images of services that are not built here.
    ///
    /// # Errors
    /// One cannot be had and failures are not ignored.
    pub fn pull(
        &self,
        services: &BTreeSet<String>,
        ignore_failures: bool,
        ignore_buildable: bool,
        missing_only: bool,
    ) -> Result<()> {
        let mut wanted: BTreeMap<String, &Service> = BTreeMap::new();
        for service in services.iter().filter_map(|name| self.project.services.get(name)) {
            let name = service.image_name(&self.project.name);
            if service.build.is_some() && (service.image.is_empty() || ignore_buildable) {
                self.tell(
                    &format!("Service {}", service.name),
                    Status::Warning,
                    "Skipped - No image to be pulled",
                );
                continue;
            }
            if matches!(service.pull_policy.as_str(), "never" | "build") {
                continue;
            }
            let only_missing = missing_only || matches!(service.pull_policy.as_str(), "missing");
            if only_missing && self.image_id(&name)?.is_some() {
                self.tell(
                    &format!("Image {name}"),
                    Status::Done,
                    "Skipped - Image is already present locally",
                );
                continue;
            }
            wanted.insert(name, service);
        }
        let wanted: Vec<(String, &Service)> = wanted.into_iter().collect();
        each(&wanted, |(name, service)| match self.pull_image(name, service) {
            Err(error @ Error::Interrupted) => Err(error),
            Err(error) if ignore_failures || service.build.is_some() => {
                self.observer.warn(&format!("Warning: {error}"));
                Ok(())
            }
            other => other,
        })
    }

    /// Services with something to build, after those whose images they build upon.
    ///
    /// # Errors
    /// There is no such service.
    pub fn buildable(&self, names: &[String], dependencies: bool) -> Result<Vec<&Service>> {
        let mut chosen = self.project.select(names, dependencies)?;
        // `additional_contexts` may name services.
        let mut open: Vec<String> = chosen.iter().cloned().collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        while let Some(name) = open.pop() {
            let Some(build) = self
                .project
                .services
                .get(&name)
                .and_then(|service| service.build.as_ref())
            else {
                continue;
            };
            for other in build.additional_contexts.values().flatten() {
                if let Some(other) = other.strip_prefix("service:") {
                    edges.entry(name.clone()).or_default().insert(other.to_owned());
                    if chosen.insert(other.to_owned()) {
                        open.push(other.to_owned());
                    }
                }
            }
        }
        let mut ordered = Vec::new();
        let mut left: Vec<String> = chosen.into_iter().collect();
        while !left.is_empty() {
            let before = left.len();
            let pending: BTreeSet<String> = left.iter().cloned().collect();
            left.retain(|name| {
                let waits = edges
                    .get(name)
                    .is_some_and(|needs| needs.iter().any(|need| pending.contains(need)));
                if !waits {
                    ordered.push(name.clone());
                }
                waits
            });
            if left.len() == before {
                return Err(Error::project(format!(
                    "services build upon each other: {}",
                    left.join(", ")
                )));
            }
        }
        Ok(ordered
            .iter()
            .filter_map(|name| self.project.services.get(name))
            .filter(|service| service.build.is_some())
            .collect())
    }
}
