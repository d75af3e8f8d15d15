//! `vessel info`

use std::fmt::Display;

use vessel_api::Info;

use super::FormatOption;
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output;
use crate::output::template::Data;
use crate::output::units::bytes_size;

/// Show what the daemon and its host are
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    format: FormatOption,
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        let template = self.format.template()?;
        let info = context.client()?.info()?;
        match template {
            Some(template) => {
                let value = serde_json::to_value(&info).map_err(Failure::new)?;
                output::print_line(&template.apply(&Data::new(&value)).map_err(Failure::new)?)?;
            }
            None => {
                output::print(&text(&info))?;
                for warning in &info.warnings {
                    output::warn(warning);
                }
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, indent: usize, name: &str, value: impl Display) -> &mut Self {
        self.0.push_str(&" ".repeat(indent));
        self.0.push_str(name);
        self.0.push(':');
        let value = value.to_string();
        if !value.is_empty() {
            self.0.push(' ');
            self.0.push_str(&value);
        }
        self.0.push('\n');
        self
    }
}

fn text(info: &Info) -> String {
    let mut out = Lines::default();
    out.0.push_str("Client: Vessel\n");
    out.add(1, "Version", env!("CARGO_PKG_VERSION"));
    out.0.push_str("\nServer:\n");
    out.add(1, "Containers", info.containers)
        .add(2, "Running", info.containers_running)
        .add(2, "Paused", info.containers_paused)
        .add(2, "Stopped", info.containers_stopped)
        .add(1, "Images", info.images)
        .add(1, "Server Version", &info.server_version)
        .add(1, "Storage Driver", &info.driver);
    for [name, value] in &info.driver_status {
        out.add(2, name, value);
    }
    out.add(1, "Logging Driver", &info.logging_driver)
        .add(1, "Cgroup Driver", &info.cgroup_driver)
        .add(1, "Cgroup Version", &info.cgroup_version)
        .add(1, "Plugins", "")
        .add(2, "Volume", info.plugins.volume.join(" "))
        .add(2, "Network", info.plugins.network.join(" "));
    if !info.plugins.authorization.is_empty() {
        out.add(2, "Authorization", info.plugins.authorization.join(" "));
    }
    out.add(2, "Log", info.plugins.log.join(" "))
        .add(1, "Swarm", &info.swarm.local_node_state)
        .add(
            1,
            "Runtimes",
            info.runtimes.keys().cloned().collect::<Vec<_>>().join(" "),
        )
        .add(1, "Default Runtime", &info.default_runtime)
        .add(1, "Init Binary", &info.init_binary);
    for (name, commit) in [
        ("containerd", &info.containerd_commit),
        ("runc", &info.runc_commit),
        ("init", &info.init_commit),
    ] {
        if !commit.id.is_empty() || !info.containerd_commit.id.is_empty() {
            out.add(1, &format!("{name} version"), &commit.id);
        }
    }
    security(info, &mut out);
    out.add(1, "Kernel Version", &info.kernel_version)
        .add(1, "Operating System", &info.operating_system)
        .add(1, "OSType", &info.os_type)
        .add(1, "Architecture", &info.architecture)
        .add(1, "CPUs", info.ncpu)
        .add(1, "Total Memory", bytes_size(info.mem_total as f64))
        .add(1, "Name", &info.name)
        .add(1, "ID", &info.id)
        .add(1, "Docker Root Dir", &info.docker_root_dir)
        .add(1, "Debug Mode", info.debug);
    for (name, value) in [
        ("HTTP Proxy", &info.http_proxy),
        ("HTTPS Proxy", &info.https_proxy),
        ("No Proxy", &info.no_proxy),
    ] {
        if !value.is_empty() {
            out.add(1, name, value);
        }
    }
    if !info.labels.is_empty() {
        out.add(1, "Labels", "");
        for label in &info.labels {
            out.0.push_str(&format!("  {label}\n"));
        }
    }
    out.add(1, "Experimental", info.experimental_build);
    if let Some(registries) = &info.registry_config {
        out.add(1, "Insecure Registries", "");
        for registry in &registries.insecure_registry_cidrs {
            out.0.push_str(&format!("  {registry}\n"));
        }
    }
    out.add(1, "Live Restore Enabled", info.live_restore_enabled);
    out.0.push('\n');
    out.0
}

/// `name=seccomp,profile=default` becomes a line and one below it.
fn security(info: &Info, out: &mut Lines) {
    if info.security_options.is_empty() {
        return;
    }
    out.add(1, "Security Options", "");
    for option in &info.security_options {
        let mut parts = option
            .split(',')
            .map(|part| part.split_once('=').unwrap_or(("name", part)));
        if let Some((_, name)) = parts.next() {
            out.0.push_str(&format!("  {name}\n"));
        }
        for (name, value) in parts {
            let title: String = name
                .chars()
                .take(1)
                .flat_map(char::to_uppercase)
                .chain(name.chars().skip(1))
                .collect();
            out.add(3, &title, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        let info: Info = serde_json::from_str(include_str!("../../../api/tests/golden/info.json")).unwrap();
        let text = text(&info);
        for part in [
            "\nServer:\n Containers: 3\n  Running: 2\n  Paused: 0\n  Stopped: 1\n Images: 1\n",
            " Storage Driver: overlay2\n  Backing Filesystem: extfs\n",
            " Plugins:\n  Volume: local\n  Network: bridge host",
            " Security Options:\n  seccomp\n   Profile: default\n Kernel Version: ",
            " Total Memory: 23.54GiB\n",
            " Insecure Registries:\n  127.0.0.0/8\n Live Restore Enabled: false\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
