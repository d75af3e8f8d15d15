//! Listing containers.

use std::sync::Arc;

use vessel_api::{ContainerSummary, SummaryHostConfig, SummaryNetworkSettings};

use super::record::{MountKind, Record, State, Status};
use super::{Container, inspect};
use crate::{Engine, Error, Filters, Result, time};

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Not only those that run.
    pub all: bool,
    /// The newest so many, running or not.
    pub limit: Option<usize>,
    /// With sizes.
    pub size: bool,
    /// What must match.
    pub filters: Filters,
}

const FILTERS: [&str; 15] = [
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// How a container was listed. It is good as long as its record is that of the container, and the counts are the same.
#[derive(Debug)]
pub(super) struct Row {
    record: Arc<Record>,
    /// Changes of its state.
    changes: u64,
    /// Changes of what names of images and networks mean.
    world: u64,
    /// Its summary in JSON without the words for its state.
    text: Box<[u8]>,
    /// Where they belong.
    status_at: usize,
}

/// An element of the list.
enum Part {
    Once(Vec<u8>),
    Row(Arc<Row>, String),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Once(text) => text.len(),
            Self::Row(row, status) => row.text.len() + status.len(),
        }
    }

    fn write(&self, text: &mut Vec<u8>) {
        match self {
            Self::Once(part) => text.extend_from_slice(part),
            Self::Row(row, status) => {
                let (before, after) = row.text.split_at(row.status_at);
                text.extend_from_slice(before);
                // Letters, digits, spaces and brackets: nothing that JSON writes otherwise.
                text.extend_from_slice(status.as_bytes());
                text.extend_from_slice(after);
            }
        }
    }
}

fn encode(summary: &ContainerSummary) -> Result<Vec<u8>> {
    serde_json::to_vec(summary)
        .map_err(|error| Error::system(format!("the list of containers could not be written: {error}")))
}

impl Engine {
    /// Containers, newest first.
    ///
    /// # Errors
    /// A filter that is not known or does not make sense.
    pub async fn container_list(&self, options: ListOptions) -> Result<Vec<ContainerSummary>> {
        let chosen = self.chosen(&options).await?;
        let mut links = self.link_names();
        let mut list = Vec::with_capacity(chosen.len());
        for (record, container) in chosen {
            let mut summary = self.full_summary(&record, &container.state(), links.remove(&record.id));
            if options.size {
                (summary.size_rw, summary.size_root_fs) = self.sizes(&record).await?;
            }
            list.push(summary);
        }
        Ok(list)
    }

    /// The same as the text of a JSON list, which a client gets as it is: what was written of a container the last time it
    /// was listed is written again unless something of it has changed. With hundreds of containers that is most of them.
    ///
    /// # Errors
    /// As [`Self::container_list`].
    pub async fn container_list_json(&self, options: ListOptions) -> Result<Vec<u8>> {
        let chosen = self.chosen(&options).await?;
        // Before anything is looked at: a row is never newer than the count it is kept with.
        let world = self.images.changes().wrapping_add(self.networks.changes());
        let (mut links, now) = (self.link_names(), time::now());
        let mut parts = Vec::with_capacity(chosen.len());
        for (record, container) in chosen {
            let links = links.remove(&record.id);
            parts.push(if options.size || links.is_some() {
                let mut summary = self.full_summary(&record, &container.state(), links);
                if options.size {
                    (summary.size_rw, summary.size_root_fs) = self.sizes(&record).await?;
                }
                Part::Once(encode(&summary)?)
            } else {
                let (row, status) = self.row(&container, world, now)?;
                Part::Row(row, status)
            });
        }
        // And the newline that ends an answer.
        let length: usize = parts.iter().map(|part| part.len() + 1).sum();
        let mut text = Vec::with_capacity(length + 3);
        text.push(b'[');
        for part in &parts {
            if text.len() > 1 {
                text.push(b',');
            }
            part.write(&mut text);
        }
        text.push(b']');
        Ok(text)
    }

    /// The containers that are asked for, newest first.
    async fn chosen(&self, options: &ListOptions) -> Result<Vec<(Arc<Record>, Arc<Container>)>> {
        let fits = self.chosen_by(options).await?;
        let mut containers: Vec<_> = self
            .containers()
            .into_iter()
            .map(|container| (container.record(), container))
            .collect();
        if options.filters.is_empty() {
            // No look at more than that.
            if !options.all && options.limit.is_none() {
                containers.retain(|(_, container)| container.status().is_running());
            }
        } else {
            containers.retain(|(record, container)| fits(record, &container.state()));
        }
        containers.sort_by_key(|(record, _)| std::cmp::Reverse(record.created));
        containers.truncate(options.limit.unwrap_or(usize::MAX));
        Ok(containers)
    }

    /// How a container is listed, and the words for its state, which change with time.
    fn row(&self, container: &Container, world: u64, now: i64) -> Result<(Arc<Row>, String)> {
        let (record, state, changes) = {
            let inner = container.inner();
            let (record, changes) = (&inner.record, inner.state.changes);
            let good = |row: &&Arc<Row>| {
                Arc::ptr_eq(&row.record, record) && row.changes == changes && row.world == world
            };
            if let Some(row) = inner.row.as_ref().filter(good) {
                return Ok((Arc::clone(row), status_text(&inner.state, now)));
            }
            (Arc::clone(record), inner.state.state.clone(), changes)
        };
        let mut summary = self.summary(&record, &state);
        summary.status.clear();
        let text = encode(&summary)?;
        summary.status.push('x');
        // Where the texts differ is where the words go: labels may contain anything that could be looked for.
        let other = encode(&summary)?;
        let status_at = text
            .iter()
            .zip(&other)
            .take_while(|(one, other)| one == other)
            .count();
        let row = Arc::new(Row {
            record,
            changes,
            world,
            text: text.into(),
            status_at,
        });
        container.inner().row = Some(Arc::clone(&row));
        Ok((row, status_text(&state, now)))
    }

    fn full_summary(&self, record: &Record, state: &State, links: Option<Vec<String>>) -> ContainerSummary {
        let mut summary = self.summary(record, state);
        summary.names.extend(links.into_iter().flatten());
        summary
    }

    /// Whether a container is asked for.
    async fn chosen_by<'a>(
        &'a self,
        options: &'a ListOptions,
    ) -> Result<impl Fn(&Record, &State) -> bool + Send + 'a> {
        let filters = &options.filters;
        filters.check(&FILTERS)?;
        for status in filters.get("status") {
            if ![
                "created",
                "restarting",
                "running",
                "removing",
                "paused",
                "exited",
                "dead",
            ]
            .contains(&status)
            {
                return Err(Error::invalid(format!("invalid filter 'status={status}'")));
            }
        }
        for health in filters.get("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health) {
                return Err(Error::invalid(format!(
                    "Unrecognised filter value for health: {health}"
                )));
            }
        }
        let mut exited = Vec::new();
        for code in filters.get("exited") {
            exited.push(
                code.parse::<i32>()
                    .map_err(|_| Error::invalid(format!("invalid filter 'exited={code}'")))?,
            );
        }
        let bound = |key: &str| -> Result<Option<i64>> {
            filters
                .get(key)
                .next()
                .map(|name| Ok(self.container(name)?.record().created))
                .transpose()
        };
        let (before, since) = (bound("before")?, bound("since")?);
        let mut ancestors = Vec::new();
        for name in filters.get("ancestor") {
            // An image that does not exist has no descendants.
            if let Ok(image) = self.image(name).await {
                ancestors.push(image);
            }
        }
        let everything = options.all
            || options.limit.is_some()
            || ["status", "exited", "before", "since"]
                .iter()
                .any(|key| filters.contains(key));
        Ok(move |record: &Record, state: &State| {
            let descends = || {
                ancestors.iter().any(|image| {
                    let top = &image.record.chain_ids;
                    image.id == record.image_id || !top.is_empty() && record.layers.starts_with(top)
                })
            };
            (everything || state.status.is_running())
                && filters.any("id", |id| record.id.starts_with(id))
                && filters.any("name", |name| name_matches(name, &record.name))
                && filters.matches("status", state.status.as_str())
                && (!filters.contains("exited")
                    || state.status == Status::Exited && exited.contains(&state.exit_code))
                && before.is_none_or(|before| record.created < before)
                && since.is_none_or(|since| record.created > since)
                && filters.labels(&record.config.labels)
                && (!filters.contains("ancestor") || descends())
                && filters.any("volume", |wanted| {
                    record
                        .mounts
                        .iter()
                        .any(|mount| mount.name == wanted || mount.destination == wanted)
                })
                && filters.any("network", |wanted| {
                    self.endpoint_settings(record, &state.endpoints, state.status.has_process())
                        .iter()
                        .any(|(name, settings)| name == wanted || settings.network_id.starts_with(wanted))
                })
                && filters.any("publish", |port| has_port(port, published(record, state)))
                && filters.any("expose", |port| {
                    has_port(port, record.config.exposed_ports.keys())
                })
                && filters.matches("health", state.health_name())
                && filters.any("isolation", |_| true)
                && filters.any("is-task", |task| matches!(task, "false" | "0"))
        })
    }

    fn summary(&self, record: &Record, state: &State) -> ContainerSummary {
        let running = state.status.has_process();
        let image = &record.config.image;
        // A name that means another image by now is no help.
        let name = match self.images.id_of_tag(image) {
            Some(id) if id != record.image_id => record.image_id.clone(),
            None if image.starts_with("sha256:") => record.image_id.clone(),
            _ => image.clone(),
        };
        let mut command = record.path.clone();
        for argument in &record.args {
            command.push(' ');
            // As Docker: what has a space is quoted.
            if argument.contains(' ') {
                command.push_str(&format!("'{argument}'"));
            } else {
                command.push_str(argument);
            }
        }
        ContainerSummary {
            id: record.id.clone(),
            names: vec![format!("/{}", record.name)],
            image: name,
            image_id: record.image_id.clone(),
            command,
            created: record.created / 1_000_000_000,
            ports: inspect::ports(record, state),
            labels: record.config.labels.clone(),
            state: state.status.as_str().to_owned(),
            status: status_text(state, time::now()),
            host_config: SummaryHostConfig {
                network_mode: record.host.network_mode.clone(),
                annotations: record.host.annotations.clone(),
            },
            network_settings: SummaryNetworkSettings {
                networks: self.endpoint_settings(record, &state.endpoints, running),
            },
            mounts: record
                .mounts
                .iter()
                .filter(|mount| mount.kind != MountKind::Tmpfs)
                .map(super::record::MountRecord::to_api)
                .collect(),
            ..ContainerSummary::default()
        }
    }
}

/// Docker takes a regular expression; what people write is a part of the name, with `^` and `$` for its ends.
fn name_matches(pattern: &str, name: &str) -> bool {
    let pattern = pattern
        .strip_prefix("^/")
        .map(|rest| format!("^{rest}"))
        .unwrap_or_else(|| pattern.to_owned());
    let pattern = pattern.strip_prefix('/').unwrap_or(&pattern);
    match (pattern.strip_prefix('^'), pattern.strip_suffix('$')) {
        (Some(rest), _) if rest.ends_with('$') => rest.strip_suffix('$') == Some(name),
        (Some(start), _) => name.starts_with(start),
        (None, Some(end)) => name.ends_with(end),
        (None, None) => name.contains(pattern),
    }
}

/// The host's ports that lead to a container, written `80/tcp`.
fn published(record: &Record, state: &State) -> Vec<String> {
    let mut ports = inspect::ports(record, state);
    ports.retain(|port| port.public_port != 0);
    ports
        .iter()
        .map(|port| format!("{}/{}", port.public_port, port.kind))
        .collect()
}

/// `80`, `80/tcp` or `80-90/tcp` among ports written `80/tcp`.
fn has_port<T: AsRef<str>>(wanted: &str, ports: impl IntoIterator<Item = T>) -> bool {
    let Ok((range, protocol)) = crate::oci_spec::ports::parse_port(wanted) else {
        return false;
    };
    ports.into_iter().any(|port| {
        crate::oci_spec::ports::parse_port(port.as_ref())
            .is_ok_and(|(there, kind)| kind == protocol && range.contains(there.start()))
    })
}

/// `Up 2 hours`, `Exited (0) 5 minutes ago`, ...
fn status_text(state: &State, now: i64) -> String {
    let since = |then: i64| human_duration(now.saturating_sub(then) / 1_000_000_000);
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => {
            let up = since(state.started_at);
            match state.health_name() {
                "none" => format!("Up {up}"),
                "starting" => format!("Up {up} (health: starting)"),
                health => format!("Up {up} ({health})"),
            }
        }
        Status::Paused => format!("Up {} (Paused)", since(state.started_at)),
        Status::Restarting => format!(
            "Restarting ({}) {} ago",
            state.exit_code,
            since(state.finished_at)
        ),
        Status::Removing => "Removal In Progress".into(),
        Status::Exited if state.finished_at == 0 => "Created".into(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(state.finished_at)),
        Status::Dead => "Dead".into(),
    }
}

/// go-units' words for a duration in seconds.
fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        ..1 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        _ if minutes == 1 => "About a minute".into(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_dockers() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7 * 3600, "7 hours"),
            (47 * 3600, "47 hours"),
            (49 * 3600, "2 days"),
            (15 * 86_400, "2 weeks"),
            (70 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn names_match_by_part_or_end() {
        for (pattern, name, matches) in [
            ("we", "web", true),
            ("^web$", "web", true),
            ("^/web$", "web", true),
            ("^we$", "web", false),
            ("b$", "web", true),
            ("^eb", "web", false),
        ] {
            assert_eq!(name_matches(pattern, name), matches, "{pattern}");
        }
    }

    #[test]
    fn statuses_read_as_dockers() {
        let state = |status| State {
            status,
            started_at: 1,
            finished_at: 1,
            exit_code: 3,
            ..State::default()
        };
        assert_eq!(
            status_text(&state(Status::Paused), 5_000_000_001),
            "Up 5 seconds (Paused)"
        );
        assert_eq!(
            status_text(&state(Status::Exited), 5_000_000_001),
            "Exited (3) 5 seconds ago"
        );
        assert_eq!(status_text(&State::default(), 1), "Created");
    }
}
