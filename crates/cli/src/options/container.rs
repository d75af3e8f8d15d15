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
        trailing_var_arg = true
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
    fn values_may_be_attached_to_short_options() {
        let request =
            parse("--rm -p8080:80 -eA=b -v/tmp:/x -uroot -m100m -w/tmp -lfoo=bar -hfoo -c512 -it image -e");
        let (config, host) = request
            .map(|request| (request.config, request.host_config))
            .unwrap();
        assert_eq!(
            (config.image.as_str(), config.cmd),
            ("image", vec!["-e".to_string()])
        );
        assert_eq!(
            (config.env, config.user.as_str()),
            (vec!["A=b".to_string()], "root")
        );
        assert_eq!(
            (config.working_dir.as_str(), config.hostname.as_str()),
            ("/tmp", "foo")
        );
        assert_eq!(config.labels.get("foo").map(String::as_str), Some("bar"));
        assert!(config.tty && config.open_stdin && host.port_bindings.contains_key("80/tcp"));
        assert_eq!(
            (host.binds, host.resources.memory),
            (vec!["/tmp:/x".to_string()], 100 << 20)
        );
        assert_eq!(host.resources.cpu_shares, 512);
    }

    #[test]
    fn a_machine_is_asked_for_by_annotations_that_any_client_can_set() {
        let host = parse("--isolation vm --accel soft --kernel small --annotation a=b image")
            .unwrap()
            .host_config;
        assert_eq!(host.isolation, "vm");
        let annotation = |key: &str| host.annotations.get(key).map(String::as_str);
        assert_eq!(annotation("vessel.vm.accel"), Some("soft"));
        assert_eq!(annotation("vessel.vm.kernel"), Some("small"));
        assert_eq!(annotation("a"), Some("b"));
        assert!(parse("--isolation vm --accel tcg image").is_err());
        assert!(parse("image").unwrap().host_config.annotations.is_empty());
    }

    #[test]
    fn unknown_options_are_named() {
        assert!(parse("--nope image").unwrap_err().contains("'--nope'"));
        assert!(parse("--nope=1 image").unwrap_err().contains("'--nope'"));
        assert!(parse("-x image").unwrap_err().contains("'-x'"));
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
