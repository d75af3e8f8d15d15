//! What there is of a project.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use vessel_api::ContainerSummary;
use vessel_client::{Client, ContainerListOptions};

use super::graph::Edges;
use super::{Engine, labels};
use crate::error::{Error, Result};
use crate::project::{Dependency, Project, Service};

/// Which containers are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OneOff {
    /// Those of services.
    Exclude,
    /// Those of `run`, too.
    Include,
    /// Only those of `run`.
    Only,
}

/// A container of a project.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// Its name, without a slash.
    pub name: String,
    /// Its service.
    pub service: String,
    /// Its number, from 1.
    pub number: u32,
    /// Whether it was made by `run`.
    pub one_off: bool,
    /// What the list says.
    pub summary: ContainerSummary,
}

impl Container {
    /// One of the list, when it belongs to a project.
    pub fn of(summary: ContainerSummary) -> Option<Self> {
        let label = |name: &str| summary.labels.get(name).cloned();
        let own = summary
            .names
            .iter()
            .find(|name| name.matches('/').count() == 1)
            .or_else(|| summary.names.first());
        Some(Self {
            id: summary.id.clone(),
            name: own
                .map(|name| name.trim_start_matches('/').to_owned())
                .unwrap_or_default(),
            service: label(labels::SERVICE)?,
            number: label(labels::NUMBER)
                .and_then(|number| number.parse().ok())
                .unwrap_or(0),
            one_off: label(labels::ONE_OFF).is_some_and(|value| value.eq_ignore_ascii_case("true")),
            summary,
        })
    }

    /// A label.
    pub fn label(&self, name: &str) -> &str {
        self.summary.labels.get(name).map_or("", String::as_str)
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        matches!(self.summary.state.as_str(), "running" | "paused" | "restarting")
    }

    /// What progress calls it.
    pub fn resource(&self) -> String {
        format!("Container {}", self.name)
    }
}

/// The containers of a project, by service and number.
///
/// # Errors
/// The daemon cannot be asked.
pub fn containers(client: &Client, project: &str, one_off: OneOff) -> Result<Vec<Container>> {
    let options = ContainerListOptions {
        all: true,
        filters: labels::of_project(project),
        ..ContainerListOptions::default()
    };
    let listed = client
        .container_list(&options)
        .map_err(Error::engine("cannot list the project's containers"))?;
    let mut found: Vec<Container> = listed
        .into_iter()
        .filter_map(Container::of)
        .filter(|container| match one_off {
            OneOff::Exclude => !container.one_off,
            OneOff::Include => true,
            OneOff::Only => container.one_off,
        })
        .collect();
    found.sort_by(|a, b| (&a.service, a.number, &a.name).cmp(&(&b.service, b.number, &b.name)));
    Ok(found)
}

/// A project as its containers tell of it, for commands that need no files.
///
/// # Errors
/// The daemon cannot be asked, or knows nothing of the project.
pub fn project_of_containers(client: &Client, name: &str) -> Result<Project> {
    let found = containers(client, name, OneOff::Include)?;
    let mut project = crate::project::empty(name);
    for container in &found {
        let service = project
            .services
            .entry(container.service.clone())
            .or_insert_with(|| Service {
                name: container.service.clone(),
                image: container.summary.image.clone(),
                ..Service::default()
            });
        for (other, dependency) in depends_on(container.label(labels::DEPENDS_ON)) {
            service.depends_on.insert(other, dependency);
        }
        project.directory = PathBuf::from(container.label(labels::WORKING_DIR));
        project.files = container
            .label(labels::CONFIG_FILES)
            .split(',')
            .filter(|file| !file.is_empty())
            .map(PathBuf::from)
            .collect();
    }
    Ok(project)
}

fn depends_on(label: &str) -> BTreeMap<String, Dependency> {
    label
        .split(',')
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let mut parts = entry.split(':');
            let name = parts.next().unwrap_or_default().to_owned();
            let condition = parts.next().unwrap_or("service_started").to_owned();
            let restart = parts.next() == Some("true");
            let dependency = Dependency {
                condition,
                required: true,
                restart,
            };
            (name, dependency)
        })
        .collect()
}

impl Engine<'_> {
    /// The containers of the project.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub fn containers(&self, one_off: OneOff) -> Result<Vec<Container>> {
        containers(self.client, &self.project.name, one_off)
    }

    /// The containers of services; of all when none is named.
    ///
    /// # Errors
    /// There is no such service, or the daemon cannot be asked.
    pub fn containers_of(&self, services: &[String], one_off: OneOff) -> Result<Vec<Container>> {
        for name in services {
            self.project.service(name)?;
        }
        let mut found = self.containers(one_off)?;
        if !services.is_empty() {
            found.retain(|container| services.contains(&container.service));
        }
        Ok(found)
    }

    /// One container of a service: the one with a number, or the first.
    ///
    /// # Errors
    /// There is none.
    pub fn container(&self, service: &str, number: u32, running: bool) -> Result<Container> {
        self.project.service(service)?;
        let found = self.containers(OneOff::Exclude)?;
        let mut of_service = found
            .into_iter()
            .filter(|container| container.service == service && (!running || container.is_running()));
        let container = if number > 0 {
            of_service.find(|container| container.number == number)
        } else {
            of_service.next()
        };
        container.ok_or_else(|| match (running, number) {
            (true, 0) => Error::project(format!("service {service:?} is not running")),
            (true, number) => {
                Error::project(format!("service {service:?} is not running container #{number}"))
            }
            (false, 0) => Error::project(format!("no container found for service {service:?}")),
            (false, number) => {
                Error::project(format!("no container #{number} found for service {service:?}"))
            }
        })
    }

    /// What depends on what, among some services.
    pub fn edges(&self, services: &BTreeSet<String>) -> Edges {
        services
            .iter()
            .map(|name| {
                let needs = self
                    .project
                    .services
                    .get(name)
                    .map(|service| service.depends_on.keys().cloned().collect())
                    .unwrap_or_default();
                (name.clone(), needs)
            })
            .collect()
    }
}
