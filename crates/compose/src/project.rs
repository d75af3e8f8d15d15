//! A project: what was loaded, as a tree with everything that was said, and as structures with what is acted upon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::load::Environment;
use crate::yaml::{At, Node};

/// Text by name.
pub type Texts = BTreeMap<String, String>;
/// Text by name; a name alone has none.
pub type Pairs = BTreeMap<String, Option<String>>;

/// A project.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// Where relative paths begin.
    pub directory: PathBuf,
    /// The files it was made of.
    pub files: Vec<PathBuf>,
    /// The environment file that was found, or those that were named.
    pub env_files: Vec<PathBuf>,
    /// The variables that were known.
    pub environment: Environment,
    /// What was found strange.
    pub warnings: Vec<String>,
    /// Everything, in long forms, of all services.
    pub model: Node,
    /// Active services.
    pub services: BTreeMap<String, Service>,
    /// Services none of whose profiles is active.
    pub disabled: BTreeMap<String, Service>,
    /// Networks.
    pub networks: BTreeMap<String, Network>,
    /// Volumes.
    pub volumes: BTreeMap<String, Volume>,
    /// Secrets.
    pub secrets: BTreeMap<String, FileObject>,
    /// Configs.
    pub configs: BTreeMap<String, FileObject>,
    /// Profiles that are active.
    pub profiles: Vec<String>,
}

macro_rules! parts {
    ($( $(#[$meta:meta])* pub struct $name:ident { $( $(#[$fmeta:meta])* pub $field:ident : $type:ty ),* $(,)? } )*) => { $(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs, reason = "a field means what the attribute of the same name in the Compose specification means")]
        pub struct $name { $( $(#[$fmeta])* pub $field : $type, )* }
    )* };
}

parts! {
    /// A service.
    pub struct Service {
        #[serde(skip)]
        pub name: String,
        pub annotations: Texts,
        pub attach: Option<bool>,
        pub blkio_config: BlockIo,
        pub build: Option<Build>,
        pub cap_add: Vec<String>,
        pub cap_drop: Vec<String>,
        pub cgroup: String,
        pub cgroup_parent: String,
        pub command: Option<Command>,
        pub configs: Vec<FileMount>,
        pub container_name: String,
        pub cpu_count: i64,
        pub cpu_percent: f64,
        pub cpu_period: i64,
        pub cpu_quota: i64,
        pub cpu_rt_period: Option<Scalar>,
        pub cpu_rt_runtime: Option<Scalar>,
        pub cpu_shares: i64,
        pub cpus: f64,
        pub cpuset: String,
        pub depends_on: BTreeMap<String, Dependency>,
        pub deploy: Option<Deploy>,
        pub develop: Option<Develop>,
        pub device_cgroup_rules: Vec<String>,
        pub devices: Vec<Device>,
        pub dns: Vec<String>,
        pub dns_opt: Vec<String>,
        pub dns_search: TextOrList,
        pub domainname: String,
        pub entrypoint: Option<Command>,
        pub environment: Pairs,
        pub expose: Vec<Scalar>,
        pub external_links: Vec<String>,
        pub extra_hosts: Vec<String>,
        pub gpus: Vec<DeviceRequest>,
        pub group_add: Vec<Scalar>,
        pub healthcheck: Option<HealthCheck>,
        pub hostname: String,
        pub image: String,
        pub init: Option<bool>,
        pub ipc: String,
        pub isolation: String,
        pub labels: Pairs,
        pub links: Vec<String>,
        pub logging: Option<Logging>,
        pub mac_address: String,
        pub mem_limit: Option<String>,
        pub mem_reservation: Option<String>,
        pub mem_swappiness: Option<String>,
        pub memswap_limit: Option<String>,
        pub models: BTreeMap<String, serde_json::Value>,
        pub network_mode: String,
        pub networks: BTreeMap<String, Option<Endpoint>>,
        pub oom_kill_disable: Option<bool>,
        pub oom_score_adj: i64,
        pub pid: Option<String>,
        pub pids_limit: i64,
        pub platform: String,
        pub ports: Vec<Port>,
        pub post_start: Vec<Hook>,
        pub pre_start: Vec<Hook>,
        pub pre_stop: Vec<Hook>,
        pub privileged: bool,
        pub profiles: Vec<String>,
        pub provider: Option<serde_json::Value>,
        pub pull_policy: String,
        pub read_only: bool,
        pub restart: String,
        pub runtime: String,
        pub scale: Option<i64>,
        pub secrets: Vec<FileMount>,
        pub security_opt: Vec<String>,
        pub shm_size: Option<String>,
        pub stdin_open: bool,
        pub stop_grace_period: Option<String>,
        pub stop_signal: String,
        pub storage_opt: BTreeMap<String, Scalar>,
        pub sysctls: Pairs,
        pub tmpfs: TextOrList,
        pub tty: bool,
        pub ulimits: BTreeMap<String, Limit>,
        pub use_api_socket: bool,
        pub user: String,
        pub userns_mode: String,
        pub uts: String,
        pub volumes: Vec<Mount>,
        pub volumes_from: Vec<String>,
        pub working_dir: String,
    }

    /// `blkio_config`.
    pub struct BlockIo {
        pub weight: i64,
        pub weight_device: Vec<BlockWeight>,
        pub device_read_bps: Vec<BlockRate>,
        pub device_read_iops: Vec<BlockRate>,
        pub device_write_bps: Vec<BlockRate>,
        pub device_write_iops: Vec<BlockRate>,
    }

    /// The weight of a block device.
    pub struct BlockWeight { pub path: String, pub weight: i64 }

    /// The rate of a block device; bytes or operations.
    pub struct BlockRate { pub path: String, pub rate: String }

    /// How the image of a service is built.
    pub struct Build {
        pub additional_contexts: Pairs,
        pub args: Pairs,
        pub cache_from: Vec<String>,
        pub cache_to: Vec<String>,
        pub context: String,
        pub dockerfile: String,
        pub dockerfile_inline: String,
        pub entitlements: Vec<String>,
        pub extra_hosts: Vec<String>,
        pub labels: Pairs,
        pub network: String,
        pub no_cache: bool,
        pub no_cache_filter: Vec<String>,
        pub platforms: Vec<String>,
        pub privileged: bool,
        pub pull: bool,
        pub secrets: Vec<FileMount>,
        pub shm_size: Option<String>,
        pub ssh: Pairs,
        pub tags: Vec<String>,
        pub target: String,
        pub ulimits: BTreeMap<String, Limit>,
    }

    /// What is waited for of another service.
    pub struct Dependency { pub condition: String, pub required: bool, pub restart: bool }

    /// `deploy`.
    pub struct Deploy {
        pub labels: Pairs,
        pub mode: String,
        pub replicas: Option<i64>,
        pub resources: DeployResources,
        pub restart_policy: Option<DeployRestart>,
    }

    /// `deploy.resources`.
    pub struct DeployResources { pub limits: Resources, pub reservations: Resources }

    /// Limits or reservations.
    pub struct Resources {
        pub cpus: Option<Scalar>,
        pub memory: Option<String>,
        pub pids: Option<i64>,
        pub devices: Vec<DeviceRequest>,
    }

    /// `deploy.restart_policy`.
    pub struct DeployRestart { pub condition: String, pub max_attempts: Option<i64> }

    /// `develop`.
    pub struct Develop { pub watch: Vec<Watch> }

    /// What happens when files change.
    pub struct Watch {
        pub action: String,
        pub exec: Option<Hook>,
        pub ignore: Vec<String>,
        pub include: Vec<String>,
        pub initial_sync: bool,
        pub path: String,
        pub target: String,
    }

    /// A device of the host.
    pub struct Device { pub source: String, pub target: String, pub permissions: String }

    /// Devices asked of a driver.
    pub struct DeviceRequest {
        pub capabilities: Vec<String>,
        pub count: Option<Scalar>,
        pub device_ids: Vec<String>,
        pub driver: String,
        pub options: Pairs,
    }

    /// `healthcheck`.
    pub struct HealthCheck {
        pub disable: bool,
        pub interval: Option<String>,
        pub retries: Option<i64>,
        pub start_interval: Option<String>,
        pub start_period: Option<String>,
        pub test: Vec<String>,
        pub timeout: Option<String>,
    }

    /// `logging`.
    pub struct Logging { pub driver: String, pub options: BTreeMap<String, Option<Scalar>> }

    /// A service in a network.
    pub struct Endpoint {
        pub aliases: Vec<String>,
        pub driver_opts: Texts,
        pub gw_priority: i64,
        pub interface_name: String,
        pub ipv4_address: String,
        pub ipv6_address: String,
        pub link_local_ips: Vec<String>,
        pub mac_address: String,
        pub priority: i64,
    }

    /// A published port.
    pub struct Port {
        pub host_ip: String,
        pub mode: String,
        pub protocol: String,
        pub published: Option<Scalar>,
        pub target: u16,
    }

    /// A command before or after.
    pub struct Hook {
        pub command: Option<Command>,
        pub environment: Pairs,
        pub image: String,
        pub privileged: bool,
        pub user: String,
        pub working_dir: String,
    }

    /// A secret or config of a service.
    pub struct FileMount {
        pub source: String,
        pub target: String,
        pub uid: String,
        pub gid: String,
        pub mode: Option<Scalar>,
    }

    /// A mount.
    pub struct Mount {
        #[serde(rename = "type")]
        pub kind: String,
        pub source: String,
        pub target: String,
        pub read_only: bool,
        pub consistency: String,
        pub bind: Option<BindMount>,
        pub volume: Option<VolumeMount>,
        pub tmpfs: Option<TmpfsMount>,
        pub image: Option<ImageMount>,
    }

    /// Options of a bind mount.
    pub struct BindMount {
        pub create_host_path: Option<bool>,
        pub propagation: String,
        pub recursive: String,
        pub selinux: String,
    }

    /// Options of a volume mount.
    pub struct VolumeMount { pub labels: Pairs, pub nocopy: bool, pub subpath: String }

    /// Options of a tmpfs mount.
    pub struct TmpfsMount { pub size: Option<String>, pub mode: Option<Scalar> }

    /// Options of an image mount.
    pub struct ImageMount { pub subpath: String }

    /// A network.
    pub struct Network {
        pub attachable: bool,
        pub driver: String,
        pub driver_opts: Texts,
        pub enable_ipv4: Option<bool>,
        pub enable_ipv6: Option<bool>,
        pub external: bool,
        pub internal: bool,
        pub ipam: Ipam,
        pub labels: Pairs,
        pub name: String,
    }

    /// Address management.
    pub struct Ipam { pub driver: String, pub config: Vec<Pool>, pub options: Texts }

    /// An address pool.
    pub struct Pool {
        pub aux_addresses: Texts,
        pub gateway: String,
        pub ip_range: String,
        pub subnet: String,
    }

    /// A volume.
    pub struct Volume {
        pub driver: String,
        pub driver_opts: Texts,
        pub external: bool,
        pub labels: Pairs,
        pub name: String,
    }

    /// A secret or a config.
    pub struct FileObject {
        pub content: Option<String>,
        pub environment: String,
        pub external: bool,
        pub file: String,
        pub name: String,
        pub driver: String,
        #[serde(rename = "x-#value")]
        pub value: Option<String>,
    }
}

/// A number or text where either may stand.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// An integer.
    Int(i64),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// A boolean.
    Bool(bool),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Text(text) => f.write_str(text),
            Self::Bool(value) => value.fmt(f),
        }
    }
}

/// Text, or a list of texts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(from = "OneOrMany")]
pub struct TextOrList(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for TextOrList {
    fn from(value: OneOrMany) -> Self {
        match value {
            OneOrMany::One(one) => Self(vec![one]),
            OneOrMany::Many(many) => Self(many),
        }
    }
}

/// A command's words; text is split as a shell does.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "OneOrMany")]
pub struct Command(pub Vec<String>);

impl TryFrom<OneOrMany> for Command {
    type Error = String;

    fn try_from(value: OneOrMany) -> std::result::Result<Self, String> {
        match value {
            OneOrMany::One(text) => split_words(&text).map(Self),
            OneOrMany::Many(words) => Ok(Self(words)),
        }
    }
}

/// A limit, soft and hard the same or not.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Limit {
    /// Both.
    One(i64),
    /// Each.
    Two {
        /// What counts.
        soft: i64,
        /// What the soft limit may become.
        hard: i64,
    },
}

impl Service {
    /// How many containers it has when nothing else is said.
    pub fn count(&self) -> i64 {
        self.scale
            .or_else(|| self.deploy.as_ref()?.replicas)
            .unwrap_or(1)
            .max(0)
    }

    /// The image it runs: the one it names, or the one that is built.
    pub fn image_name(&self, project: &str) -> String {
        if self.image.is_empty() {
            format!("{project}-{}", self.name)
        } else {
            self.image.clone()
        }
    }
}

impl Project {
    /// A service, active or not.
    pub fn service(&self, name: &str) -> Result<&Service> {
        self.services
            .get(name)
            .or_else(|| self.disabled.get(name))
            .ok_or_else(|| crate::load::no_such_service(name))
    }

    /// What identifies the configuration of a service: containers with another are made anew.
    pub fn config_hash(&self, service: &str) -> String {
        let mut json = self
            .model
            .get("services")
            .and_then(|services| services.get(service))
            .map(Node::to_json)
            .unwrap_or_default();
        if let Some(map) = json.as_object_mut() {
            for key in [
                "build",
                "pull_policy",
                "scale",
                "depends_on",
                "profiles",
                "develop",
                "attach",
            ] {
                map.remove(key);
            }
            if let Some(deploy) = map.get_mut("deploy").and_then(serde_json::Value::as_object_mut) {
                deploy.remove("replicas");
            }
        }
        sort(&mut json);
        hex(&Sha256::digest(json.to_string().as_bytes()))
    }

    /// Whether files say what it is; else only its containers do.
    pub fn is_of_files(&self) -> bool {
        self.model.as_map().is_some_and(|model| !model.is_empty())
    }

    /// The names of the volumes that active services use and that are the project's own.
    pub fn used_volumes(&self) -> BTreeSet<&str> {
        self.services
            .values()
            .flat_map(|service| &service.volumes)
            .filter(|mount| mount.kind == "volume")
            .filter_map(|mount| self.volumes.get(&mount.source))
            .filter(|volume| !volume.external)
            .map(|volume| volume.name.as_str())
            .collect()
    }

    /// The named services (all when none is named) and, with `dependencies`, what they depend on.
    ///
    /// # Errors
    /// There is no such service.
    pub fn select(&self, names: &[String], dependencies: bool) -> Result<BTreeSet<String>> {
        if names.is_empty() {
            return Ok(self.services.keys().cloned().collect());
        }
        let mut found = BTreeSet::new();
        let mut open: Vec<String> = names.to_vec();
        while let Some(name) = open.pop() {
            let Some(service) = self.services.get(&name) else {
                if names.contains(&name) {
                    return Err(crate::load::no_such_service(&name));
                }
                continue;
            };
            if found.insert(name) && dependencies {
                open.extend(service.depends_on.keys().cloned());
            }
        }
        Ok(found)
    }

    /// What `config` shows: active services and what they use.
    pub fn canonical(&self) -> Node {
        let mut model = self.model.clone();
        let at = model.at;
        let Some(map) = model.as_map_mut() else {
            return model;
        };
        if let Some(services) = map.get_mut("services").and_then(Node::as_map_mut) {
            services.retain(|name, _| self.services.contains_key(name));
            for service in services.values_mut() {
                if let Some(service) = service.as_map_mut() {
                    service.shift_remove("extends");
                    for key in ["command", "entrypoint"] {
                        service
                            .entry(key.to_owned())
                            .or_insert_with(|| Node::new(at, crate::yaml::Value::Null));
                    }
                    let volumes = service.get_mut("volumes").and_then(Node::as_list_mut);
                    for bind in volumes
                        .into_iter()
                        .flatten()
                        .filter_map(|volume| volume.get_mut("bind")?.as_map_mut())
                    {
                        // The default is not shown.
                        bind.retain(|key, value| {
                            key != "create_host_path" || value.value != crate::yaml::Value::Bool(true)
                        });
                    }
                    service.sort_keys();
                }
            }
        }
        if let Some(secrets) = map.get_mut("secrets").and_then(Node::as_map_mut) {
            for secret in secrets.values_mut().filter_map(Node::as_map_mut) {
                secret.shift_remove("x-#value");
            }
        }
        let order = [
            "name", "services", "networks", "volumes", "secrets", "configs", "models",
        ];
        let place = |key: &String| order.iter().position(|known| known == key).unwrap_or(order.len());
        map.sort_by(|a, _, b, _| place(a).cmp(&place(b)).then_with(|| a.cmp(b)));
        model
    }
}

/// A project of which only the name is known.
pub(crate) fn empty(name: &str) -> Project {
    Project {
        name: name.to_owned(),
        directory: PathBuf::new(),
        files: Vec::new(),
        env_files: Vec::new(),
        environment: Environment::new(),
        warnings: Vec::new(),
        model: Node::map(At::file(0)),
        services: BTreeMap::new(),
        disabled: BTreeMap::new(),
        networks: BTreeMap::new(),
        volumes: BTreeMap::new(),
        secrets: BTreeMap::new(),
        configs: BTreeMap::new(),
        profiles: Vec::new(),
    }
}

/// Makes structures of a finished model.
pub(crate) fn bind(model: Node, active: &BTreeSet<String>, profiles: &[String]) -> Result<Project> {
    let mut project = Project {
        networks: section(&model, "networks")?,
        volumes: section(&model, "volumes")?,
        secrets: section(&model, "secrets")?,
        configs: section(&model, "configs")?,
        profiles: profiles.to_vec(),
        model,
        ..empty("")
    };
    for (name, mut service) in section::<Service>(&project.model, "services")? {
        service.name.clone_from(&name);
        if active.contains(&name) {
            // What is not required and not active is not waited for.
            service
                .depends_on
                .retain(|other, how| how.required || active.contains(other));
            project.services.insert(name, service);
        } else {
            project.disabled.insert(name, service);
        }
    }
    Ok(project)
}

fn section<T: serde::de::DeserializeOwned>(model: &Node, name: &str) -> Result<BTreeMap<String, T>> {
    let mut found = BTreeMap::new();
    for (key, node) in model.get(name).and_then(Node::as_map).into_iter().flatten() {
        let part = serde_json::from_value(without_nulls(node.to_json()))
            .map_err(|error| Error::project(format!("{name}.{key}: {error}")))?;
        found.insert(key.clone(), part);
    }
    Ok(found)
}

/// Nothing said is nothing there, but in mappings of names.
fn without_nulls(mut json: serde_json::Value) -> serde_json::Value {
    if let Some(map) = json.as_object_mut() {
        map.retain(|_, value| !value.is_null());
        if let Some(serde_json::Value::Object(deploy)) = map.get_mut("deploy") {
            deploy.retain(|_, value| !value.is_null());
        }
        if let Some(serde_json::Value::Object(driver)) = map.get_mut("annotations") {
            driver.retain(|_, value| !value.is_null());
        }
    }
    json
}

/// Sorts the members of all objects.
fn sort(json: &mut serde_json::Value) {
    match json {
        serde_json::Value::Object(map) => {
            map.sort_keys();
            map.values_mut().for_each(sort);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(sort),
        _ => {}
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tree for people who write one themselves.
pub fn node_of(json: &serde_json::Value) -> Node {
    Node::from_json(At::file(0), json)
}

/// Splits a command line as a shell does, without substitutions.
///
/// # Errors
/// A quote is not closed.
pub fn split_words(text: &str) -> std::result::Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut open = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\r' | '\n' => {
                if std::mem::take(&mut open) {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            '\'' => loop {
                match chars.next() {
                    Some('\'') => break,
                    Some(c) => word.push(c),
                    None => {
                        return Err(format!(
                            "invalid command line string: a quote is not closed in {text:?}"
                        ));
                    }
                }
            },
            '"' => loop {
                match chars.next() {
                    Some('"') => break,
                    Some('\\') => match chars.next() {
                        Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                        Some('\n') => {}
                        Some(c) => {
                            word.push('\\');
                            word.push(c);
                        }
                        None => {
                            return Err(format!(
                                "invalid command line string: {text:?} ends in a backslash"
                            ));
                        }
                    },
                    Some(c) => word.push(c),
                    None => {
                        return Err(format!(
                            "invalid command line string: a quote is not closed in {text:?}"
                        ));
                    }
                }
            },
            '\\' => match chars.next() {
                Some('\n') => continue,
                Some(c) => word.push(c),
                None => word.push('\\'),
            },
            c => word.push(c),
        }
        open = true;
    }
    if open {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        for (text, expected) in [
            ("sh -c 'echo \"a b\"'", vec!["sh", "-c", "echo \"a b\""]),
            ("a\\ b \"c\\\"d\" ''", vec!["a b", "c\"d", ""]),
            ("  x\n y ", vec!["x", "y"]),
            ("", vec![]),
        ] {
            assert_eq!(split_words(text).unwrap(), expected, "{text}");
        }
        assert!(split_words("a 'b").is_err());
    }
}
