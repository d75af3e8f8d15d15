//! What the container may do: capabilities, profiles, namespaces, devices.

use vessel_api::HostConfig;
use vessel_api::vessel::{ACCELERATOR, KERNEL};

use super::devices;
use crate::failure::words;

/// Privileges and isolation.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Security and isolation")]
pub struct SecurityOptions {
    /// Give all privileges to the container
    #[arg(long)]
    pub privileged: bool,
    /// Add capabilities
    #[arg(long, value_name = "list")]
    pub cap_add: Vec<String>,
    /// Drop capabilities
    #[arg(long, value_name = "list")]
    pub cap_drop: Vec<String>,
    /// Security options: seccomp=FILE, no-new-privileges, systempaths=unconfined, ...
    #[arg(long, value_name = "list")]
    pub security_opt: Vec<String>,
    /// Add a device of the host: PATH[:PATH][:rwm]
    #[arg(long, value_name = "list")]
    pub device: Vec<String>,
    /// Add a rule to the list of allowed devices: 'c 42:* rwm'
    #[arg(long, value_name = "list")]
    pub device_cgroup_rule: Vec<String>,
    /// Add GPUs: 'all' or a number
    #[arg(long, value_name = "gpu-request")]
    pub gpus: Vec<String>,
    /// What separates it from the host: container (namespaces) or vm (a kernel of its own)
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub isolation: String,
    /// With --isolation vm, what executes its instructions: kvm, soft or auto
    #[arg(long, value_name = "string", value_parser = ["auto", "kvm", "soft"], hide_possible_values = true)]
    pub accel: Option<String>,
    /// With --isolation vm, the kernel it runs, of those 'vessel kernel ls' shows
    #[arg(long, value_name = "name")]
    pub kernel: Option<String>,
    /// OCI runtime to use
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub runtime: String,
    /// PID namespace: host or container:ID
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub pid: String,
    /// IPC namespace: none, private, shareable, host or container:ID
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub ipc: String,
    /// UTS namespace: host
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub uts: String,
    /// User namespace: host
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub userns: String,
    /// Cgroup namespace: host or private
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cgroupns: String,
    /// Kernel parameters: NAME=VALUE
    #[arg(long, value_name = "map")]
    pub sysctl: Vec<String>,
}

impl SecurityOptions {
    /// Fills in its part of the request.
    pub fn fill(&self, host: &mut HostConfig) -> Result<(), String> {
        let valid = |mode: &str, names: &[&str], container: bool| {
            names.contains(&mode)
                || (container && mode.strip_prefix("container:").is_some_and(|id| !id.is_empty()))
        };
        if !valid(&self.pid, &["", "host"], true) {
            return Err("--pid: invalid PID mode".to_string());
        }
        if !valid(&self.uts, &["", "host"], false) {
            return Err("--uts: invalid UTS mode".to_string());
        }
        if !valid(&self.userns, &["", "host"], false) {
            return Err("--userns: invalid USER mode".to_string());
        }
        if !valid(&self.cgroupns, &["", "host", "private"], false) {
            return Err("--cgroupns: invalid CGROUP mode".to_string());
        }
        host.privileged = self.privileged;
        host.cap_add = self.cap_add.clone();
        host.cap_drop = self.cap_drop.clone();
        host.isolation = self.isolation.clone();
        for (key, value) in [(ACCELERATOR, &self.accel), (KERNEL, &self.kernel)] {
            if let Some(value) = value {
                host.annotations.insert(key.to_string(), value.clone());
            }
        }
        host.runtime = self.runtime.clone();
        host.pid_mode = self.pid.clone();
        host.ipc_mode = self.ipc.clone();
        host.uts_mode = self.uts.clone();
        host.userns_mode = self.userns.clone();
        host.cgroupns_mode = self.cgroupns.clone();
        for option in &self.security_opt {
            if option == "systempaths=unconfined" {
                host.masked_paths = Some(Vec::new());
                host.readonly_paths = Some(Vec::new());
            } else {
                host.security_opt.push(security_opt(option)?);
            }
        }
        for option in &self.sysctl {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| format!("invalid sysctl '{option}': NAME=VALUE is expected"))?;
            host.sysctls.insert(name.to_string(), value.to_string());
        }
        self.fill_devices(host)
    }

    fn fill_devices(&self, host: &mut HostConfig) -> Result<(), String> {
        for rule in &self.device_cgroup_rule {
            devices::cgroup_rule(rule)?;
        }
        host.resources.device_cgroup_rules = self.device_cgroup_rule.clone();
        let mut cdi = Vec::new();
        for spec in &self.device {
            if devices::is_cdi(spec) {
                cdi.push(spec.clone());
            } else {
                host.resources.devices.push(devices::device(spec)?);
            }
        }
        for spec in &self.gpus {
            host.resources.device_requests.push(devices::gpus(spec)?);
        }
        if !cdi.is_empty() {
            host.resources.device_requests.push(vessel_api::DeviceRequest {
                driver: "cdi".to_string(),
                device_ids: cdi,
                ..Default::default()
            });
        }
        Ok(())
    }
}

/// A seccomp profile is sent by its content, not by its name.
fn security_opt(option: &str) -> Result<String, String> {
    let (name, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
        Some((name, value)) if !value.is_empty() => (name, value),
        _ if option == "no-new-privileges" => return Ok(option.to_string()),
        _ => return Err(format!("Invalid --security-opt: \"{option}\"")),
    };
    if name != "seccomp" || matches!(value, "builtin" | "unconfined") {
        return Ok(option.to_string());
    }
    let failed = |why: String| format!("opening seccomp profile ({value}) failed: {why}");
    let text = std::fs::read(value).map_err(|error| failed(format!("open {value}: {}", words(&error))))?;
    let profile: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| format!("compacting json for seccomp profile ({value}) failed: {error}"))?;
    Ok(format!("seccomp={profile}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        for right in [
            "no-new-privileges",
            "no-new-privileges=false",
            "apparmor=x",
            "label:disable",
            "seccomp=unconfined",
        ] {
            assert_eq!(security_opt(right).unwrap(), right);
        }
        for wrong in ["", "seccomp", "seccomp=", "seccomp=/no/such/file"] {
            assert!(security_opt(wrong).is_err(), "{wrong}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "{ \"defaultAction\" :\n \"SCMP_ACT_ALLOW\" }").unwrap();
        let option = format!("seccomp={}", file.path().display());
        assert_eq!(
            security_opt(&option).unwrap(),
            "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"
        );
        std::fs::write(&file, "{").unwrap();
        assert!(security_opt(&option).is_err());
    }

    #[test]
    fn modes() {
        let mut host = HostConfig::default();
        let with = |set: fn(&mut SecurityOptions)| {
            let mut options = SecurityOptions::default();
            set(&mut options);
            options
        };
        assert!(with(|o| o.pid = "container:x".into()).fill(&mut host).is_ok());
        assert!(with(|o| o.pid = "container:".into()).fill(&mut host).is_err());
        assert!(with(|o| o.uts = "container:x".into()).fill(&mut host).is_err());
        assert!(with(|o| o.cgroupns = "x".into()).fill(&mut host).is_err());
        with(|o| o.security_opt = vec!["systempaths=unconfined".into()])
            .fill(&mut host)
            .unwrap();
        assert_eq!((host.masked_paths, host.security_opt), (Some(vec![]), vec![]));
    }
}
