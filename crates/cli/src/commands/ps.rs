//! `vessel ps`

use vessel_api::{ContainerSummary, Port};
use vessel_client::ContainerListOptions;

use super::filters;
use crate::app::Run;
use crate::context::Context;
use crate::failure::Result;
use crate::output::format::{Headers, Row, render};
use crate::output::text::{ellipsis, quote, short_id};
use crate::output::units::{ago, human_size_digits};
use crate::output::{self};

/// List containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All, not only those that run
    #[arg(short, long)]
    all: bool,
    /// Only some: NAME=VALUE
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// table, json, or a Go template
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// So many of the newest, running or not
    #[arg(short = 'n', long, value_name = "int", allow_hyphen_values = true, default_value_t = -1)]
    last: i64,
    /// The newest, running or not
    #[arg(short, long)]
    latest: bool,
    /// Do not cut anything short
    #[arg(long)]
    no_trunc: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Show sizes
    #[arg(short, long)]
    size: bool,
}

/// The fields of a container's row.
pub const HEADERS: &Headers = &[
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Ports", "PORTS"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Size", "SIZE"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Networks", "NETWORKS"),
    ("Platform", "PLATFORM"),
];
const TABLE: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const TABLE_SIZE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let format = match &self.format {
            Some(format) if !format.is_empty() => format.as_str(),
            _ if self.quiet => "{{.ID}}",
            _ => "table",
        };
        let last = if self.latest { 1 } else { self.last };
        let wants_size = self.size || (self.format.is_some() && format.contains(".Size"));
        let options = ContainerListOptions {
            all: self.all || last > 0,
            limit: (last > 0).then_some(last),
            size: wants_size,
            filters: filters(&self.filter)?,
        };
        let list = context.client()?.container_list(&options)?;
        let rows = list
            .iter()
            .map(|container| row(container, !self.no_trunc))
            .collect();
        let format = if self.quiet && format == "table" {
            "{{.ID}}"
        } else {
            format
        };
        output::print(&render(
            format,
            if self.size { TABLE_SIZE } else { TABLE },
            HEADERS,
            rows,
        )?)?;
        Ok(())
    }
}

fn row(container: &ContainerSummary, truncate: bool) -> Row {
    let command = if truncate {
        ellipsis(&container.command, 20)
    } else {
        container.command.clone()
    };
    let volumes = container
        .mounts
        .iter()
        .filter(|mount| mount.driver == "local")
        .count();
    Row::default()
        .text(
            "ID",
            if truncate {
                short_id(&container.id)
            } else {
                &container.id
            },
        )
        .text("Names", names(&container.names, truncate))
        .text("Image", image(container, truncate))
        .text("Command", quote(&command))
        .text("CreatedAt", created_at(container.created))
        .text("RunningFor", ago(container.created))
        .text("Ports", ports(&container.ports))
        .text("State", &container.state)
        .text("Status", &container.status)
        .text("Size", size(container))
        .text("Labels", labels(&container.labels))
        .text("Mounts", mounts(container, truncate))
        .text("LocalVolumes", volumes.to_string())
        .text(
            "Networks",
            container
                .network_settings
                .networks
                .keys()
                .cloned()
                .collect::<Vec<_>>()
                .join(","),
        )
        .text("Platform", "")
        .labels(&container.labels)
}

/// The same with the size of the container's own layer alone.
pub fn row_without_virtual_size(container: &ContainerSummary, truncate: bool) -> Row {
    row(container, truncate).text("Size", human_size_digits(container.size_rw as f64, 3))
}

fn names(names: &[String], truncate: bool) -> String {
    let plain = names.iter().map(|name| name.strip_prefix('/').unwrap_or(name));
    // Names by way of a link have a second slash; they are left out of a short list.
    plain
        .filter(|name| !truncate || !name.contains('/'))
        .collect::<Vec<_>>()
        .join(",")
}

fn image(container: &ContainerSummary, truncate: bool) -> String {
    if container.image.is_empty() {
        return "<no image>".to_string();
    }
    if truncate && container.image == container.image_id {
        return short_id(&container.image_id).to_string();
    }
    if !truncate {
        return container.image.clone();
    }
    // A digest says nothing to people when a name does.
    match container.image.split_once('@') {
        Some((name, _)) if !name.is_empty() => name.to_string(),
        _ => container.image.clone(),
    }
}

/// Go's default format of a time, in local time.
pub fn created_at(seconds: i64) -> String {
    let Ok(time) = jiff::Timestamp::from_second(seconds) else {
        return String::new();
    };
    time.to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S %z %Z")
        .to_string()
}

fn size(container: &ContainerSummary) -> String {
    let own = human_size_digits(container.size_rw as f64, 3);
    if container.size_root_fs > 0 {
        return format!(
            "{own} (virtual {})",
            human_size_digits(container.size_root_fs as f64, 3)
        );
    }
    own
}

/// `a=b,c=d`
pub fn labels(labels: &vessel_api::Map<String>) -> String {
    labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn mounts(container: &ContainerSummary, truncate: bool) -> String {
    let name = |mount: &vessel_api::MountPoint| {
        let name = if mount.name.is_empty() {
            &mount.source
        } else {
            &mount.name
        };
        if truncate {
            ellipsis(name, 15)
        } else {
            name.clone()
        }
    };
    container.mounts.iter().map(name).collect::<Vec<_>>().join(",")
}

/// `0.0.0.0:8080->80/tcp`, neighbouring ports joined to ranges.
pub fn ports(ports: &[Port]) -> String {
    #[derive(PartialEq)]
    struct Group<'a> {
        ip: &'a str,
        kind: &'a str,
        public: Option<(u16, u16)>,
        private: (u16, u16),
    }
    let mut sorted: Vec<&Port> = ports.iter().collect();
    sorted.sort_by(|a, b| {
        (a.private_port, &a.ip, a.public_port, &a.kind).cmp(&(b.private_port, &b.ip, b.public_port, &b.kind))
    });
    let mut groups: Vec<Group> = Vec::new();
    let mut host_only: Vec<String> = Vec::new();
    for port in sorted {
        let public = (port.public_port != 0).then_some(port.public_port);
        // A port published under another number stands alone.
        if let Some(public) = public
            && public != port.private_port
        {
            let address = join_address(&port.ip, &public.to_string());
            host_only.push(format!("{address}->{}/{}", port.private_port, port.kind));
            continue;
        }
        let neighbour = groups.iter_mut().find(|group| {
            group.ip == port.ip
                && group.kind == port.kind
                && group.public.is_some() == public.is_some()
                && u32::from(group.private.1) + 1 == u32::from(port.private_port)
        });
        match neighbour {
            Some(group) => {
                group.private.1 = port.private_port;
                if let (Some(range), Some(public)) = (&mut group.public, public) {
                    range.1 = public;
                }
            }
            None => groups.push(Group {
                ip: &port.ip,
                kind: &port.kind,
                public: public.map(|public| (public, public)),
                private: (port.private_port, port.private_port),
            }),
        }
    }
    let range = |(first, last): (u16, u16)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let mut out: Vec<String> = groups
        .iter()
        .map(|group| match group.public {
            Some(public) => {
                format!(
                    "{}->{}/{}",
                    join_address(group.ip, &range(public)),
                    range(group.private),
                    group.kind
                )
            }
            None => format!("{}/{}", range(group.private), group.kind),
        })
        .collect();
    out.extend(host_only);
    out.join(", ")
}

fn join_address(ip: &str, port: &str) -> String {
    match ip {
        "" => port.to_string(),
        ip if ip.contains(':') => format!("[{ip}]:{port}"),
        ip => format!("{ip}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, private: u16, public: u16, kind: &str) -> Port {
        Port {
            ip: ip.into(),
            private_port: private,
            public_port: public,
            kind: kind.into(),
        }
    }

    #[test]
    fn port_lists() {
        for (list, expected) in [
            (vec![], ""),
            (vec![port("", 80, 0, "tcp")], "80/tcp"),
            (vec![port("0.0.0.0", 80, 8080, "tcp")], "0.0.0.0:8080->80/tcp"),
            (vec![port("::", 80, 8080, "tcp")], "[::]:8080->80/tcp"),
            (
                vec![
                    port("", 81, 0, "tcp"),
                    port("", 80, 0, "tcp"),
                    port("", 82, 0, "udp"),
                ],
                "80-81/tcp, 82/udp",
            ),
            (
                vec![
                    port("0.0.0.0", 80, 80, "tcp"),
                    port("0.0.0.0", 81, 81, "tcp"),
                    port("0.0.0.0", 90, 9000, "tcp"),
                ],
                "0.0.0.0:80-81->80-81/tcp, 0.0.0.0:9000->90/tcp",
            ),
        ] {
            assert_eq!(ports(&list), expected);
        }
    }

    #[test]
    fn name_lists() {
        let list = ["/a".to_string(), "/b/a".to_string()];
        assert_eq!(names(&list, true), "a");
        assert_eq!(names(&list, false), "a,b/a");
    }
}
