//! What is in the kernel: mounts, interfaces, rules, cgroups, processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use vessel_api::ExplainedItem;
use vessel_network::{PublishedPort, Rule};

use super::facts::{Facts, Owner};
use super::{known, unknown};
use crate::mountinfo::mount_points;
use crate::network::from_network;
use crate::paths::Paths;
use crate::{Engine, Result};

/// A published port's side of the host, as `docker ps` writes it.
pub(super) fn port(port: &PublishedPort) -> String {
    format!("{}:{}/{}", port.host_ip, port.host_port, port.protocol)
}

impl Engine {
    pub(super) fn explain_kernel(&self, facts: &Facts, items: &mut Vec<ExplainedItem>) -> Result<()> {
        mounts(&self.paths, facts, items);
        interfaces(facts, items);
        let table = self.networks.table_name();
        for rule in vessel_network::rules(table).map_err(from_network)? {
            items.push(explain_rule(table, &rule, facts));
        }
        for published in self.networks.published()? {
            let name = port(&published);
            items.push(match facts.ports.get(&name) {
                Some(owner) => of(
                    "rule",
                    &format!("{table}: published {name}"),
                    owner,
                    "a published port",
                ),
                None => unknown(
                    "rule",
                    format!("{table}: published {name}"),
                    "a published port of no container",
                ),
            });
        }
        let mut roots: BTreeSet<&str> = facts
            .containers
            .values()
            .filter_map(|container| container.cgroup.rsplit_once('/'))
            .map(|(parent, _)| parent)
            .collect();
        roots.insert(&self.config().cgroup_parent);
        for hierarchy in self.hierarchies.list() {
            for root in &roots {
                let own = *root == self.config().cgroup_parent;
                let top = hierarchy.mount.join(root.trim_start_matches('/'));
                cgroups(&top, &hierarchy.mount, own, facts, items);
            }
        }
        self.processes(facts, items);
        Ok(())
    }

    fn processes(&self, facts: &Facts, items: &mut Vec<ExplainedItem>) {
        let places = [self.paths.root.as_path(), self.paths.run.as_path()];
        let own = std::process::id();
        let program = fs::metadata("/proc/self/exe").ok();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            let proc = entry.path();
            let line = fs::read(proc.join("cmdline")).unwrap_or_default();
            let words: Vec<String> = line
                .split(|byte| *byte == 0)
                .filter(|word| !word.is_empty())
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            // A process names itself, with any bytes.
            let comm = fs::read(proc.join("comm")).unwrap_or_default();
            let comm = String::from_utf8_lossy(&comm).replace(char::is_control, "");
            let name = format!("{pid} ({comm})");
            if pid == own {
                items.push(of("process", &name, &Owner::engine(), "the daemon"));
                continue;
            }
            let groups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
            if let Some((owner, purpose)) = inhabitant(&groups, pid, facts, &self.config().cgroup_parent) {
                items.push(match owner {
                    Some(owner) => of("process", &name, &owner, purpose),
                    None => unknown("process", name, "in a cgroup of no container"),
                });
                continue;
            }
            if let [_, shim, id, ..] = words.as_slice()
                && shim == "shim"
            {
                let owner = match (facts.containers.get(id), facts.steps.get(id)) {
                    (Some(container), _) => Some(container.run()),
                    (None, step) => step.cloned(),
                };
                match owner {
                    Some(owner) => items.push(of("process", &name, &owner, "a shim")),
                    None if parent(&proc) == Some(own) => {
                        let purpose = "a shim that waits for the next container";
                        items.push(of("process", &name, &Owner::engine(), purpose));
                    }
                    // Of another engine on this host, unless it works in these directories.
                    None if holds(&proc, &places) => {
                        items.push(unknown("process", name, "a shim of no container"));
                    }
                    None => {}
                }
                continue;
            }
            let ours = fs::metadata(proc.join("exe"))
                .ok()
                .zip(program.as_ref())
                .is_some_and(|(one, other)| {
                    use std::os::unix::fs::MetadataExt;
                    (one.dev(), one.ino()) == (other.dev(), other.ino())
                });
            if parent(&proc) == Some(own) {
                items.push(of("process", &name, &Owner::engine(), "a child of the daemon"));
            } else if ours && holds(&proc, &places) {
                items.push(unknown(
                    "process",
                    name,
                    "the same program, with files of this engine open",
                ));
            }
        }
    }
}

fn of(kind: &str, name: &str, owner: &Owner, purpose: &str) -> ExplainedItem {
    known(kind, name, &owner.name, purpose, owner.free.clone())
}

/// Whose a process is by its cgroup; the outer `None`: not one of ours, the inner one: in one that nobody explains.
fn inhabitant(groups: &str, pid: u32, facts: &Facts, parent: &str) -> Option<(Option<Owner>, &'static str)> {
    let paths: BTreeSet<&str> = groups
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .collect();
    for path in &paths {
        if let Some(container) = facts
            .containers
            .values()
            .find(|container| within(path, &container.cgroup))
        {
            let first = u32::try_from(container.pid).is_ok_and(|first| first == pid);
            let purpose = if first { "its program" } else { "a process in it" };
            return Some((Some(container.run()), purpose));
        }
        if let Some(step) = step_of(path, facts) {
            return Some((Some(step), "a process of a build"));
        }
    }
    let inside = |path: &&&str| within(path, parent) && **path != parent;
    paths.iter().find(inside).map(|_| (None, ""))
}

/// The build step whose cgroup a path leads through.
fn step_of(path: &str, facts: &Facts) -> Option<Owner> {
    path.split('/').find_map(|name| facts.steps.get(name)).cloned()
}

/// Whether a cgroup is another one or below it.
fn within(path: &str, top: &str) -> bool {
    path.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn parent(proc: &Path) -> Option<u32> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    // proc_pid_stat(5): the name in parentheses may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Whether a process has something below one of the places open.
fn holds(proc: &Path, places: &[&Path]) -> bool {
    let open = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| places.iter().any(|place| target.starts_with(place)))
}

fn mounts(paths: &Paths, facts: &Facts, items: &mut Vec<ExplainedItem>) {
    for at in mount_points(&fs::read("/proc/self/mountinfo").unwrap_or_default()) {
        let volume = at
            .strip_prefix(paths.volumes())
            .ok()
            .and_then(|below| below.iter().next())
            .and_then(|name| facts.volumes.get(&*name.to_string_lossy()));
        let name = at.display().to_string();
        if let Some(volume) = volume {
            items.push(of(
                "mount",
                &name,
                volume,
                "what the volume's options name, while it is used",
            ));
        } else if [&paths.root, &paths.run]
            .iter()
            .any(|place| at.starts_with(place) && at != **place)
        {
            items.push(unknown("mount", name, "not made by this engine"));
        }
    }
    for container in facts.containers.values().filter(|container| container.pid > 0) {
        let inside = fs::read(format!("/proc/{}/mountinfo", container.pid)).unwrap_or_default();
        let count = inside
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .count();
        let name = format!("/proc/{}/mountinfo", container.pid);
        let purpose = format!("{count} mounts in the container's own namespace, invisible to the host");
        items.push(of("mount", &name, &container.run(), &purpose));
    }
}

fn interfaces(facts: &Facts, items: &mut Vec<ExplainedItem>) {
    let all: Vec<PathBuf> = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    for path in &all {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let bridge = fs::read_link(path.join("master"))
            .ok()
            .and_then(|master| Some(master.file_name()?.to_string_lossy().into_owned()))
            .and_then(|master| facts.interfaces.get(&master).map(|(owner, _)| owner.clone()));
        match (facts.interfaces.get(&name), bridge) {
            (Some((owner, purpose)), _) => items.push(of("interface", &name, owner, purpose)),
            (None, Some(network)) => {
                let purpose = format!("a port of the bridge of {} that no container has", network.name);
                items.push(unknown("interface", name, &purpose));
            }
            // On no bridge of ours: somebody else's.
            (None, None) => {}
        }
    }
}

fn explain_rule(table: &str, rule: &Rule, facts: &Facts) -> ExplainedItem {
    let name = format!("{} {table} {} handle {}", rule.family, rule.chain, rule.handle);
    if rule.chain == "user" {
        let free = format!("nft delete rule {name}");
        return known(
            "rule",
            name,
            "administrator",
            "a rule of the administrator's own",
            free,
        );
    }
    let network = facts
        .interfaces
        .iter()
        .find(|(interface, (_, purpose))| *purpose == "the bridge of a network" && rule.names(interface));
    match network {
        Some((_, (owner, _))) => of("rule", &name, owner, "a rule for the network's bridge"),
        None => of("rule", &name, &Owner::engine(), "a rule for all networks"),
    }
}

/// A cgroup and those below it. Of a parent that is not the engine's own only what is a container's is told.
fn cgroups(top: &Path, mount: &Path, own: bool, facts: &Facts, items: &mut Vec<ExplainedItem>) {
    if !top.is_dir() {
        return;
    }
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let inner = fs::read_dir(&path).into_iter().flatten().flatten();
        let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        pending.extend(inner.map(|entry| entry.path()));
        let name = path.display().to_string();
        let Ok(group) = path.strip_prefix(mount) else {
            continue;
        };
        let group = format!("/{}", group.display());
        let container = facts
            .containers
            .values()
            .find(|container| within(&group, &container.cgroup));
        if let Some(container) = container {
            items.push(of("cgroup", &name, &container.run(), "limits and accounting"));
        } else if let Some(step) = step_of(&group, facts) {
            items.push(of("cgroup", &name, &step, "limits of a build"));
        } else if own && path == top {
            items.push(of(
                "cgroup",
                &name,
                &Owner::engine(),
                "the parent of the containers' cgroups",
            ));
        } else if own {
            items.push(unknown("cgroup", name, "a cgroup of no container"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::ContainerFacts;
    use super::*;

    fn facts() -> Facts {
        let mut facts = Facts::default();
        let container = ContainerFacts {
            name: "web".into(),
            running: true,
            pid: 7,
            cgroup: "/vessel/one".into(),
        };
        facts.containers.insert("one".into(), container);
        facts
            .steps
            .insert("step1".into(), Owner::new("build: a step that runs", ""));
        facts
    }

    #[test]
    fn processes_are_known_by_their_cgroups() {
        let facts = facts();
        let of = |groups: &str, pid| inhabitant(groups, pid, &facts, "/vessel");
        let first = of("3:memory:/vessel/one\n0::/vessel/one\n", 7).unwrap();
        assert_eq!(first.0.unwrap().name, "container web");
        assert_eq!(first.1, "its program");
        assert_eq!(
            of("0::/vessel/one/nested/deeper\n", 8).unwrap().1,
            "a process in it"
        );
        assert_eq!(of("0::/vessel/step1\n", 8).unwrap().1, "a process of a build");
        assert_eq!(of("0::/vessel/two\n", 8), Some((None, "")));
        for elsewhere in ["0::/\n", "0::/vessel\n", "0::/vessels/one\n", ""] {
            assert_eq!(of(elsewhere, 8), None, "{elsewhere:?}");
        }
    }

    #[test]
    fn rules_belong_to_the_network_whose_bridge_they_name() {
        let facts = facts();
        let mut user = Rule::default();
        user.family.push_str("ip");
        user.chain.push_str("user");
        user.handle = 3;
        let item = explain_rule("vessel0", &user, &facts);
        assert_eq!(item.free, "nft delete rule ip vessel0 user handle 3");
        let mut other = Rule::default();
        other.chain.push_str("forward");
        assert_eq!(explain_rule("vessel0", &other, &facts).owner, "engine");
    }
}
