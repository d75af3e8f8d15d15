//! All options of `run` and `create` together.

use vessel_api::ContainerCreateRequest;

use super::health::HealthOptions;
use super::mounts::MountOptions;
use super::network::NetworkOptions;
use super::process::ProcessOptions;
use super::resources::ResourceOptions;
use super::security::SecurityOptions;
use crate::failure::{Failure, Result};
use crate::terminal;

/// All options of `run` and `create`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ContainerOptions {
    #[command(flatten)]
    pub process: ProcessOptions,
    #[command(flatten)]
    pub network: NetworkOptions,
    #[command(flatten)]
    pub mounts: MountOptions,
    #[command(flatten)]
    pub resources: ResourceOptions,
    #[command(flatten)]
    pub security: SecurityOptions,
    #[command(flatten)]
    pub health: HealthOptions,
    /// When to pull the image: always, missing or never
    #[arg(
        long,
        value_name = "string",
        default_value = "missing",
        help_heading = "Image"
    )]
    pub pull: String,
    /// Platform of the image: OS[/ARCH[/VARIANT]]
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true,
        help_heading = "Image"
    )]
    pub platform: String,
    /// Print no progress of a pull
    #[arg(short, long, help_heading = "Image")]
    pub quiet: bool,
    /// Skip the verification of the image
    #[arg(long, hide = true)]
    pub disable_content_trust: bool,
    /// The image, and the command with its arguments
    #[arg(
        value_name = "IMAGE [COMMAND] [ARG...]",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub args: Vec<String>,
}

impl ContainerOptions {
    /// The request these options make.
    pub fn request(&self) -> Result<ContainerCreateRequest> {
        if !matches!(self.pull.as_str(), "always" | "missing" | "never") {
            let pull = &self.pull;
            let choice = "must be one of \"always\", \"missing\", or \"never\"";
            return Err(Failure::usage(format!("invalid pull option: '{pull}': {choice}")));
        }
        self.fill().map_err(Failure::usage)
    }

    fn fill(&self) -> std::result::Result<ContainerCreateRequest, String> {
        let (image, command) = self.args.split_first().ok_or("the image is missing")?;
        // Options are read before the image; what begins like one and is in its place is unknown.
        if image.starts_with('-') && image.len() > 1 {
            return Err(match image.strip_prefix("--") {
                Some(_) => format!("unknown flag: {}", image.split('=').next().unwrap_or(image)),
                None => format!(
                    "unknown shorthand flag: '{}' in {image}",
                    image.chars().nth(1).unwrap_or('-')
                ),
            });
        }
        let mut request = ContainerCreateRequest::default();
        let (config, host) = (&mut request.config, &mut request.host_config);
        config.image = image.clone();
        config.cmd = command.to_vec();
        self.process.fill(config, host)?;
        self.network.fill(config, host, &mut request.networking_config)?;
        config.volumes = self.mounts.fill(host)?;
        self.resources.fill(&mut host.resources)?;
        host.oom_score_adj = self.resources.oom_score_adj.unwrap_or(0);
        self.security.fill(host)?;
        config.healthcheck = self.health.config()?;
        if config.tty
            && let Some((rows, columns)) = terminal::size()
        {
            host.console_size = [u32::from(rows), u32::from(columns)];
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, FromArgMatches};

    fn parse(line: &str) -> std::result::Result<ContainerCreateRequest, String> {
        let command = ContainerOptions::augment_args(clap::Command::new("run")).disable_help_flag(true);
        let words = std::iter::once("run").chain(line.split(' '));
        let matches = command
            .try_get_matches_from(words)
            .map_err(|error| error.to_string())?;
        let options = ContainerOptions::from_arg_matches(&matches).map_err(|error| error.to_string())?;
        options
            .request()
            .map_err(|failure| failure.message.unwrap_or_default())
    }

    #[test]
    fn options_end_at_the_image() {
        let request = parse("-it --rm -e A=b --network none image -e --rm x").unwrap();
        assert_eq!(request.config.image, "image");
        assert_eq!(request.config.cmd, ["-e", "--rm", "x"]);
        assert!(request.config.tty && request.config.open_stdin && request.host_config.auto_remove);
        assert_eq!(request.config.env, ["A=b"]);
        let request = parse("image sh -c --help").unwrap();
        assert_eq!(request.config.cmd, ["sh", "-c", "--help"]);
        let request = parse("-- image -x").unwrap();
        assert_eq!(
            (request.config.image.as_str(), request.config.cmd[0].as_str()),
            ("image", "-x")
        );
    }

    #[test]
    fn unknown_options_are_named() {
        assert_eq!(parse("--nope image").unwrap_err(), "unknown flag: --nope");
        assert_eq!(parse("--nope=1 image").unwrap_err(), "unknown flag: --nope");
        assert!(
            parse("-x image")
                .unwrap_err()
                .contains("unknown shorthand flag: 'x'")
        );
        assert!(parse("--rm").is_err());
        assert!(
            parse("--memory x image")
                .unwrap_err()
                .contains("invalid size: 'x'")
        );
        assert!(parse("--pull sometimes image").is_err());
    }

    #[test]
    fn every_part_arrives() {
        let request = parse(
            "-d=x -m 64m --cpus 0.5 -v /a:/b:ro --mount type=tmpfs,dst=/t -p 80:80 --ulimit nofile=1:2 --init \
             --entrypoint= --stop-timeout -1 --pids-limit -1 --health-cmd true --cap-add ALL -h host image"
                .replace("-d=x ", "")
                .replace("             ", "")
                .as_str(),
        )
        .unwrap();
        let host = &request.host_config;
        assert_eq!(host.resources.memory, 64 << 20);
        assert_eq!(host.resources.nano_cpus, 500_000_000);
        assert_eq!(host.binds, ["/a:/b:ro"]);
        assert_eq!(host.mounts[0].kind, "tmpfs");
        assert!(host.port_bindings.contains_key("80/tcp"));
        assert_eq!(host.resources.ulimits[0].hard, 2);
        assert_eq!(host.init, Some(true));
        assert_eq!(request.config.entrypoint, Some(vec![String::new()]));
        assert_eq!(request.config.stop_timeout, Some(-1));
        assert_eq!(host.resources.pids_limit, Some(-1));
        assert!(request.config.healthcheck.is_some());
        assert_eq!(host.cap_add, ["ALL"]);
        assert_eq!(request.config.hostname, "host");
    }
}
