//! What is run, as whom, where, and what happens to it.

use vessel_api::{ContainerConfig, HostConfig, LogConfig, RestartPolicy};

use super::env;
use crate::output::units::parse_size;

/// The process.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ProcessOptions {
    /// Give the container a name
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Keep standard input open
    #[arg(short = 'i', long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short = 'a', long, value_name = "list")]
    pub attach: Vec<String>,
    /// Remove the container when it exits
    #[arg(long)]
    pub rm: bool,
    /// Set environment variables: NAME=VALUE, or NAME for the value here
    #[arg(short = 'e', long, value_name = "list")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "list")]
    pub env_file: Vec<String>,
    /// Working directory
    #[arg(
        short = 'w',
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub workdir: String,
    /// User, by name or number: USER[:GROUP]
    #[arg(
        short = 'u',
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    pub user: String,
    /// Additional groups
    #[arg(long, value_name = "list")]
    pub group_add: Vec<String>,
    /// Replace the image's entrypoint
    #[arg(long, value_name = "string")]
    pub entrypoint: Option<String>,
    /// Run an init that forwards signals and reaps processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    pub init: Option<bool>,
    /// When to restart it: no, on-failure[:MAX], always, unless-stopped
    #[arg(long, value_name = "string", default_value = "no")]
    pub restart: String,
    /// Signal to stop it with
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub stop_signal: String,
    /// Seconds to wait before it is killed; -1 for no limit
    #[arg(long, value_name = "int", allow_hyphen_values = true)]
    pub stop_timeout: Option<i64>,
    /// Set labels: NAME=VALUE
    #[arg(short = 'l', long, value_name = "list")]
    pub label: Vec<String>,
    /// Read labels from a file
    #[arg(long, value_name = "list")]
    pub label_file: Vec<String>,
    /// Add annotations, which are passed to the OCI runtime
    #[arg(long, value_name = "map")]
    pub annotation: Vec<String>,
    /// Logging driver
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub log_driver: String,
    /// Options of the logging driver
    #[arg(long, value_name = "list")]
    pub log_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes", value_parser = parse_size)]
    pub shm_size: Option<i64>,
    /// Write the container's ID to a file
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    pub cidfile: String,
}

impl ProcessOptions {
    /// Fills in its part of the request.
    pub fn fill(&self, config: &mut ContainerConfig, host: &mut HostConfig) -> Result<(), String> {
        self.fill_streams(config)?;
        config.env = env::environment(&self.env_file, &self.env, |name| std::env::var(name).ok())?;
        config.labels = env::labels(&self.label_file, &self.label)?;
        config.user = self.user.clone();
        config.working_dir = self.workdir.clone();
        // An empty one removes the image's.
        config.entrypoint = self.entrypoint.clone().map(|entrypoint| vec![entrypoint]);
        config.stop_signal = self.stop_signal.clone();
        config.stop_timeout = self.stop_timeout;
        host.group_add = self.group_add.clone();
        host.init = self.init;
        host.auto_remove = self.rm;
        host.restart_policy = restart_policy(&self.restart)?;
        if self.rm && !host.restart_policy.is_none() {
            return Err("conflicting options: cannot specify both --restart and --rm".to_string());
        }
        host.annotations = env::to_map(&self.annotation);
        if self.log_driver == "none" && !self.log_opt.is_empty() {
            return Err("invalid logging opts for driver none".to_string());
        }
        host.log_config = LogConfig {
            kind: self.log_driver.clone(),
            config: env::to_map(&self.log_opt),
        };
        host.shm_size = self.shm_size.unwrap_or(0);
        host.container_id_file = self.cidfile.clone();
        Ok(())
    }

    fn fill_streams(&self, config: &mut ContainerConfig) -> Result<(), String> {
        for stream in &self.attach {
            match stream.to_ascii_lowercase().as_str() {
                "stdin" => config.attach_stdin = true,
                "stdout" => config.attach_stdout = true,
                "stderr" => config.attach_stderr = true,
                _ => return Err("valid streams are STDIN, STDOUT and STDERR".to_string()),
            }
        }
        if self.attach.is_empty() {
            config.attach_stdout = true;
            config.attach_stderr = true;
        }
        config.attach_stdin |= self.interactive;
        config.open_stdin = self.interactive;
        // When this client goes, so does its input.
        config.stdin_once = config.open_stdin && config.attach_stdin;
        config.tty = self.tty;
        Ok(())
    }
}

/// Reads `--restart`.
pub fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() && text.contains(':') {
        return Err("invalid restart policy format: no policy provided before colon".to_string());
    }
    let maximum_retry_count = match count {
        "" => 0,
        count => count.parse().map_err(|_| {
            "invalid restart policy format: maximum retry count must be an integer".to_string()
        })?,
    };
    Ok(RestartPolicy {
        name: name.to_string(),
        maximum_retry_count,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        assert_eq!(restart_policy("always").unwrap().name, "always");
        assert_eq!(restart_policy("on-failure:3").unwrap().maximum_retry_count, 3);
        assert!(restart_policy(":3").is_err() && restart_policy("on-failure:x").is_err());
    }

    #[test]
    fn streams() {
        let fill = |options: ProcessOptions| {
            let (mut config, mut host) = (ContainerConfig::default(), HostConfig::default());
            options.fill(&mut config, &mut host).map(|()| config)
        };
        let plain = fill(ProcessOptions::default()).unwrap();
        assert_eq!(
            (plain.attach_stdin, plain.attach_stdout, plain.attach_stderr),
            (false, true, true)
        );
        let input = fill(ProcessOptions {
            interactive: true,
            attach: vec!["StdIn".into()],
            ..Default::default()
        })
        .unwrap();
        assert_eq!(
            (input.attach_stdin, input.attach_stdout, input.stdin_once),
            (true, false, true)
        );
        assert!(
            fill(ProcessOptions {
                attach: vec!["x".into()],
                ..Default::default()
            })
            .is_err()
        );
        let both = ProcessOptions {
            rm: true,
            restart: "always".into(),
            ..Default::default()
        };
        assert!(fill(both).unwrap_err().contains("--rm"));
    }
}
