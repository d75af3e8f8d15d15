//! A service becomes what the API wants to make a container.

use std::collections::BTreeMap;

use vessel_api::{
    ContainerConfig, ContainerCreateRequest, DeviceMapping, DeviceRequest as ApiDeviceRequest, Empty,
    EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig, LogConfig, Map, NetworkingConfig,
    PortBinding, Resources, RestartPolicy, ThrottleDevice, Ulimit, WeightDevice,
};

use super::state::Container;
use super::{Engine, labels, mounts};
use crate::error::{Error, Result};
use crate::load::{parse_bytes, parse_duration};
use crate::project::{BlockRate, DeviceRequest, Endpoint, Limit, Pairs, Scalar, Service};

/// What a container is made of, and the networks it joins afterwards.
pub(super) struct Made {
    pub(super) request: ContainerCreateRequest,
    /// All but the first, by name.
    pub(super) further: Vec<(String, EndpointSettings)>,
}

/// Labels or variables: a name without a value is blank.
pub(super) fn texts(pairs: &Pairs) -> Map<String> {
    pairs
        .iter()
        .map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()))
        .collect()
}

/// `NAME=value`, or `NAME` for one that is taken away from what the image says.
pub(super) fn variables(pairs: &Pairs) -> Vec<String> {
    pairs
        .iter()
        .map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        })
        .collect()
}

/// A duration of a service in nanoseconds; 0 when nothing is said.
pub fn durations(text: Option<&String>) -> i64 {
    text.and_then(|text| parse_duration(text)).unwrap_or(0)
}

fn bytes(text: Option<&String>) -> i64 {
    text.and_then(|text| parse_bytes(text)).unwrap_or(0)
}

impl Engine<'_> {
    /// What a container of a service is made of. `others` are the project's containers.
    pub(super) fn container_request(
        &self,
        service: &Service,
        name: &str,
        number: u32,
        one_off: bool,
        others: &[Container],
    ) -> Result<Made> {
        if service.provider.is_some() {
            return Err(Error::project(format!(
                "service {:?} is of a provider; services that are not containers are not supported",
                service.name
            )));
        }
        let mounted = mounts::mounts(self.project, service)?;
        let (exposed, bindings) = ports(service);
        let (networking, further) = self.endpoints(service, name, one_off, others)?;
        let mut config = ContainerConfig {
            hostname: service.hostname.clone(),
            domainname: service.domainname.clone(),
            user: service.user.clone(),
            attach_stdout: true,
            attach_stderr: true,
            exposed_ports: exposed,
            tty: service.tty,
            open_stdin: service.stdin_open,
            env: variables(&service.environment),
            healthcheck: health(service),
            image: service.image_name(&self.project.name),
            volumes: mounted.anonymous,
            working_dir: service.working_dir.clone(),
            labels: texts(&service.labels),
            stop_signal: service.stop_signal.clone(),
            stop_timeout: service
                .stop_grace_period
                .as_ref()
                .map(|period| (durations(Some(period)) + 999_999_999) / 1_000_000_000),
            cmd: service
                .command
                .clone()
                .map(|command| command.0)
                .unwrap_or_default(),
            entrypoint: service.entrypoint.clone().map(|command| {
                if command.0.is_empty() {
                    vec![String::new()]
                } else {
                    command.0
                }
            }),
            ..ContainerConfig::default()
        };
        if further.is_empty() {
            config.mac_address = service.mac_address.clone();
        }
        config.labels.extend(self.labels(service, number, one_off));
        let host_config = HostConfig {
            binds: mounted.binds,
            mounts: mounted.mounts,
            tmpfs: mounted.tmpfs,
            log_config: logging(service),
            network_mode: self.network_mode(service, others)?,
            port_bindings: bindings,
            restart_policy: restart(service)?,
            volumes_from: self.volumes_from(service, others)?,
            annotations: service.annotations.clone(),
            cap_add: service.cap_add.clone(),
            cap_drop: service.cap_drop.clone(),
            cgroupns_mode: service.cgroup.clone(),
            dns: service.dns.clone(),
            dns_options: service.dns_opt.clone(),
            dns_search: service.dns_search.0.clone(),
            extra_hosts: service
                .extra_hosts
                .iter()
                .map(|line| line.replacen('=', ":", 1))
                .collect(),
            group_add: service.group_add.iter().map(Scalar::to_string).collect(),
            ipc_mode: self.namespace(&service.ipc, others)?,
            oom_score_adj: service.oom_score_adj,
            pid_mode: self.namespace(service.pid.as_deref().unwrap_or_default(), others)?,
            privileged: service.privileged,
            readonly_rootfs: service.read_only,
            security_opt: service.security_opt.clone(),
            storage_opt: service
                .storage_opt
                .iter()
                .map(|(name, value)| (name.clone(), value.to_string()))
                .collect(),
            uts_mode: service.uts.clone(),
            userns_mode: service.userns_mode.clone(),
            shm_size: bytes(service.shm_size.as_ref()),
            sysctls: texts(&service.sysctls),
            runtime: service.runtime.clone(),
            isolation: service.isolation.clone(),
            init: service.init,
            links: self.external_links(service),
            resources: resources(service),
            ..HostConfig::default()
        };
        Ok(Made {
            request: ContainerCreateRequest {
                config,
                host_config,
                networking_config: networking,
            },
            further,
        })
    }

    fn labels(&self, service: &Service, number: u32, one_off: bool) -> Map<String> {
        let project = self.project;
        let depends: Vec<String> = service
            .depends_on
            .iter()
            .map(|(name, how)| format!("{name}:{}:{}", how.condition, how.restart))
            .collect();
        let paths = |paths: &[std::path::PathBuf]| {
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            paths.join(",")
        };
        let mut found: Map<String> = [
            (labels::PROJECT, project.name.clone()),
            (labels::SERVICE, service.name.clone()),
            (labels::VERSION, labels::OUR_VERSION.to_owned()),
            (labels::WORKING_DIR, project.directory.display().to_string()),
            (labels::CONFIG_FILES, paths(&project.files)),
            (labels::CONFIG_HASH, project.config_hash(&service.name)),
            (labels::ONE_OFF, if one_off { "True" } else { "False" }.to_owned()),
            (labels::DEPENDS_ON, depends.join(",")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        if !one_off {
            found.insert(labels::NUMBER.to_owned(), number.to_string());
        }
        if !project.env_files.is_empty() {
            found.insert(labels::ENVIRONMENT_FILE.to_owned(), paths(&project.env_files));
        }
        found
    }

    /// The container of another service that something is shared with.
    fn shared(&self, service: &str, others: &[Container]) -> Result<String> {
        others
            .iter()
            .find(|container| container.service == service && !container.one_off)
            .map(|container| container.id.clone())
            .ok_or_else(|| Error::project(format!("service {service:?} has no container to share with")))
    }

    fn namespace(&self, mode: &str, others: &[Container]) -> Result<String> {
        match mode.strip_prefix("service:") {
            Some(service) => Ok(format!("container:{}", self.shared(service, others)?)),
            None => Ok(mode.to_owned()),
        }
    }

    fn volumes_from(&self, service: &Service, others: &[Container]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for source in &service.volumes_from {
            if let Some(container) = source.strip_prefix("container:") {
                found.push(container.to_owned());
                continue;
            }
            let (name, options) = source
                .split_once(':')
                .map_or((source.as_str(), ""), |(name, options)| (name, options));
            let id = self.shared(name, others)?;
            found.push(if options.is_empty() {
                id
            } else {
                format!("{id}:{options}")
            });
        }
        Ok(found)
    }

    fn network_mode(&self, service: &Service, others: &[Container]) -> Result<String> {
        if !service.network_mode.is_empty() {
            return self.namespace(&service.network_mode, others);
        }
        match first_network(service) {
            Some(key) => Ok(self.network_name(key)),
            None => Ok("none".to_owned()),
        }
    }

    fn network_name(&self, key: &str) -> String {
        self.project
            .networks
            .get(key)
            .map_or_else(|| key.to_owned(), |network| network.name.clone())
    }

    fn endpoints(
        &self,
        service: &Service,
        name: &str,
        one_off: bool,
        others: &[Container],
    ) -> Result<(NetworkingConfig, Vec<(String, EndpointSettings)>)> {
        let mut config = NetworkingConfig::default();
        let mut further = Vec::new();
        if !service.network_mode.is_empty() {
            return Ok((config, further));
        }
        let links = links(service, others);
        for key in by_priority(service) {
            let endpoint = service.networks.get(key).cloned().flatten().unwrap_or_default();
            let settings = endpoint_settings(service, name, one_off, &endpoint, &links);
            let network = self.network_name(key);
            if config.endpoints_config.is_empty() {
                config.endpoints_config.insert(network, settings);
            } else {
                further.push((network, settings));
            }
        }
        Ok((config, further))
    }

    /// Links on the default network, which has no names.
    fn external_links(&self, service: &Service) -> Vec<String> {
        if service.network_mode == "bridge" {
            service.external_links.clone()
        } else {
            Vec::new()
        }
    }
}

fn endpoint_settings(
    service: &Service,
    name: &str,
    one_off: bool,
    endpoint: &Endpoint,
    links: &[String],
) -> EndpointSettings {
    let addressed = !endpoint.ipv4_address.is_empty()
        || !endpoint.ipv6_address.is_empty()
        || !endpoint.link_local_ips.is_empty();
    let mut aliases = vec![name.to_owned()];
    // A container of `run` is not one of those that stand for the service.
    if !one_off {
        aliases.push(service.name.clone());
        aliases.extend(endpoint.aliases.iter().cloned());
    }
    EndpointSettings {
        ipam_config: addressed.then(|| EndpointIpamConfig {
            ipv4_address: endpoint.ipv4_address.clone(),
            ipv6_address: endpoint.ipv6_address.clone(),
            link_local_ips: endpoint.link_local_ips.clone(),
        }),
        links: links.to_vec(),
        aliases,
        mac_address: endpoint.mac_address.clone(),
        driver_opts: endpoint.driver_opts.clone(),
        gw_priority: endpoint.gw_priority,
        ..EndpointSettings::default()
    }
}

fn by_priority(service: &Service) -> Vec<&String> {
    let priority = |key: &str| {
        let endpoint = service.networks.get(key).and_then(Option::as_ref);
        endpoint.map_or(0, |endpoint| endpoint.priority)
    };
    let mut keys: Vec<&String> = service.networks.keys().collect();
    keys.sort_by(|a, b| priority(b).cmp(&priority(a)).then_with(|| a.cmp(b)));
    keys
}

fn first_network(service: &Service) -> Option<&String> {
    by_priority(service).into_iter().next()
}

/// `links` and `external_links` as `container:alias`.
fn links(service: &Service, others: &[Container]) -> Vec<String> {
    let mut found = Vec::new();
    for link in &service.links {
        let (target, alias) = link.split_once(':').unwrap_or((link, link));
        for container in others
            .iter()
            .filter(|other| other.service == target && !other.one_off)
        {
            found.push(format!("{}:{alias}", container.name));
            found.push(format!("{0}:{0}", container.name));
        }
    }
    for link in &service.external_links {
        let (container, alias) = link.split_once(':').unwrap_or((link, link));
        found.push(format!("{container}:{alias}"));
    }
    found
}

fn ports(service: &Service) -> (Map<Empty>, Map<Option<Vec<PortBinding>>>) {
    let mut exposed = Map::new();
    let mut bindings: BTreeMap<String, Option<Vec<PortBinding>>> = BTreeMap::new();
    for port in &service.expose {
        let text = port.to_string();
        let (range, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            for port in first..=last {
                exposed.insert(format!("{port}/{protocol}"), Empty {});
            }
        }
    }
    for port in &service.ports {
        let key = format!(
            "{}/{}",
            port.target,
            if port.protocol.is_empty() {
                "tcp"
            } else {
                &port.protocol
            }
        );
        exposed.insert(key.clone(), Empty {});
        let binding = PortBinding {
            host_ip: port.host_ip.clone(),
            host_port: port.published.as_ref().map(Scalar::to_string).unwrap_or_default(),
        };
        bindings
            .entry(key)
            .or_default()
            .get_or_insert_default()
            .push(binding);
    }
    (exposed, bindings)
}

fn health(service: &Service) -> Option<HealthConfig> {
    let check = service.healthcheck.as_ref()?;
    if check.disable {
        return Some(HealthConfig {
            test: vec!["NONE".to_owned()],
            ..HealthConfig::default()
        });
    }
    Some(HealthConfig {
        test: check.test.clone(),
        interval: durations(check.interval.as_ref()),
        timeout: durations(check.timeout.as_ref()),
        start_period: durations(check.start_period.as_ref()),
        start_interval: durations(check.start_interval.as_ref()),
        retries: check.retries.unwrap_or(0),
    })
}

fn logging(service: &Service) -> LogConfig {
    let Some(logging) = &service.logging else {
        return LogConfig::default();
    };
    LogConfig {
        kind: logging.driver.clone(),
        config: logging
            .options
            .iter()
            .map(|(name, value)| {
                (
                    name.clone(),
                    value.as_ref().map(Scalar::to_string).unwrap_or_default(),
                )
            })
            .collect(),
    }
}

fn restart(service: &Service) -> Result<RestartPolicy> {
    if !service.restart.is_empty() {
        let (name, count) = service.restart.split_once(':').unwrap_or((&service.restart, ""));
        let maximum_retry_count = match count {
            "" => 0,
            count => count.parse().map_err(|_| {
                Error::project(format!(
                    "services.{}.restart: {:?} is not of the form on-failure:COUNT",
                    service.name, service.restart
                ))
            })?,
        };
        return Ok(RestartPolicy {
            name: name.to_owned(),
            maximum_retry_count,
        });
    }
    let policy = service
        .deploy
        .as_ref()
        .and_then(|deploy| deploy.restart_policy.as_ref());
    Ok(
        policy.map_or_else(RestartPolicy::default, |policy| RestartPolicy {
            name: match policy.condition.as_str() {
                "none" => "no",
                "on-failure" => "on-failure",
                "unless-stopped" => "unless-stopped",
                _ => "always",
            }
            .to_owned(),
            maximum_retry_count: policy
                .max_attempts
                .filter(|_| policy.condition == "on-failure")
                .unwrap_or(0),
        }),
    )
}

fn resources(service: &Service) -> Resources {
    let weight = |weight: i64| u16::try_from(weight).unwrap_or(0);
    let rates = |rates: &[BlockRate]| -> Vec<ThrottleDevice> {
        rates
            .iter()
            .map(|rate| ThrottleDevice {
                path: rate.path.clone(),
                rate: parse_bytes(&rate.rate)
                    .and_then(|rate| u64::try_from(rate).ok())
                    .unwrap_or(0),
            })
            .collect()
    };
    let micros = |value: &Option<Scalar>| match value {
        None => 0,
        Some(Scalar::Int(value)) => *value,
        Some(other) => {
            let text = other.to_string();
            parse_duration(&text).map_or_else(|| text.parse().unwrap_or(0), |nanos| nanos / 1000)
        }
    };
    let io = &service.blkio_config;
    let mut found = Resources {
        cpu_shares: service.cpu_shares,
        memory: bytes(service.mem_limit.as_ref()),
        nano_cpus: nano_cpus(service.cpus),
        cgroup_parent: service.cgroup_parent.clone(),
        blkio_weight: weight(io.weight),
        blkio_weight_device: io
            .weight_device
            .iter()
            .map(|device| WeightDevice {
                path: device.path.clone(),
                weight: weight(device.weight),
            })
            .collect(),
        blkio_device_read_bps: rates(&io.device_read_bps),
        blkio_device_write_bps: rates(&io.device_write_bps),
        blkio_device_read_iops: rates(&io.device_read_iops),
        blkio_device_write_iops: rates(&io.device_write_iops),
        cpu_period: service.cpu_period,
        cpu_quota: service.cpu_quota,
        cpu_realtime_period: micros(&service.cpu_rt_period),
        cpu_realtime_runtime: micros(&service.cpu_rt_runtime),
        cpuset_cpus: service.cpuset.clone(),
        devices: service
            .devices
            .iter()
            .filter(|device| device.source != device.target || device.source.starts_with('/'))
            .map(|device| DeviceMapping {
                path_on_host: device.source.clone(),
                path_in_container: if device.target.is_empty() {
                    device.source.clone()
                } else {
                    device.target.clone()
                },
                cgroup_permissions: if device.permissions.is_empty() {
                    "rwm".to_owned()
                } else {
                    device.permissions.clone()
                },
            })
            .collect(),
        device_cgroup_rules: service.device_cgroup_rules.clone(),
        device_requests: service.gpus.iter().map(|gpu| device_request(gpu, true)).collect(),
        memory_reservation: bytes(service.mem_reservation.as_ref()),
        memory_swap: bytes(service.memswap_limit.as_ref()),
        memory_swappiness: service.mem_swappiness.as_ref().and_then(|text| text.parse().ok()),
        oom_kill_disable: service.oom_kill_disable,
        pids_limit: (service.pids_limit != 0).then_some(service.pids_limit),
        ulimits: ulimits(&service.ulimits),
        cpu_count: service.cpu_count,
        cpu_percent: service.cpu_percent as i64,
        ..Resources::default()
    };
    // Names of the Container Device Interface: `vendor.example/class=name`.
    let named: Vec<String> = service
        .devices
        .iter()
        .filter(|device| device.source == device.target && !device.source.starts_with('/'))
        .map(|device| device.source.clone())
        .collect();
    if !named.is_empty() {
        found.device_requests.push(ApiDeviceRequest {
            driver: "cdi".to_owned(),
            device_ids: named,
            ..ApiDeviceRequest::default()
        });
    }
    if let Some(deploy) = &service.deploy {
        let cpus = |value: &Option<Scalar>| value.as_ref().and_then(|value| value.to_string().parse().ok());
        let (limits, reserved) = (&deploy.resources.limits, &deploy.resources.reservations);
        if let Some(count) = cpus(&limits.cpus) {
            found.nano_cpus = nano_cpus(count);
        }
        if let Some(memory) = &limits.memory {
            found.memory = bytes(Some(memory));
        }
        if let Some(pids) = limits.pids {
            found.pids_limit = Some(pids);
        }
        if let Some(memory) = &reserved.memory {
            found.memory_reservation = bytes(Some(memory));
        }
        found.device_requests.extend(
            reserved
                .devices
                .iter()
                .map(|device| device_request(device, false)),
        );
    }
    found
}

fn nano_cpus(cpus: f64) -> i64 {
    (cpus * 1e9).round() as i64
}

pub(super) fn ulimits(limits: &BTreeMap<String, Limit>) -> Vec<Ulimit> {
    limits
        .iter()
        .map(|(name, limit)| {
            let (soft, hard) = match limit {
                Limit::One(both) => (*both, *both),
                Limit::Two { soft, hard } => (*soft, *hard),
            };
            Ulimit {
                name: name.clone(),
                hard,
                soft,
            }
        })
        .collect()
}

fn device_request(device: &DeviceRequest, gpu: bool) -> ApiDeviceRequest {
    let count = match &device.count {
        Some(Scalar::Int(count)) => *count,
        Some(Scalar::Text(text)) if text == "all" => -1,
        Some(other) => other.to_string().parse().unwrap_or(0),
        None => 0,
    };
    let mut capabilities = device.capabilities.clone();
    if gpu && !capabilities.iter().any(|name| name == "gpu") {
        capabilities.push("gpu".to_owned());
    }
    ApiDeviceRequest {
        driver: device.driver.clone(),
        count,
        device_ids: device.device_ids.clone(),
        capabilities: vec![capabilities],
        options: texts(&device.options),
    }
}
