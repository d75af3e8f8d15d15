//! `vessel compose run`

use vessel_compose::act::PullPolicy;
use vessel_compose::act::run::Run as Request;

use super::options::Session;
use super::up::says_yes;
use crate::commands::run::{Foreground, Mode};
use crate::failure::{Failure, Result};
use crate::output;
use crate::terminal;

/// Run a command in a new container of a service
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build the image before
    #[arg(long)]
    build: bool,
    /// Add a capability
    #[arg(long, value_name = "list")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "list")]
    cap_drop: Vec<String>,
    /// Run in the background and print the container's name
    #[arg(short, long)]
    detach: bool,
    /// Instead of the image's entry point
    #[arg(long, value_name = "string")]
    entrypoint: Option<String>,
    /// Set environment variables
    #[arg(short, long, value_name = "stringArray")]
    env: Vec<String>,
    /// Keep standard input open, which is the default
    #[arg(short, long, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    interactive: bool,
    /// Set labels
    #[arg(short, long, value_name = "stringArray")]
    label: Vec<String>,
    /// Name of the container
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    name: String,
    /// Do not give it a terminal
    #[arg(short = 'T', long = "no-tty", visible_alias = "no-TTY")]
    no_tty: bool,
    /// Do not start what it depends on
    #[arg(long)]
    no_deps: bool,
    /// Publish ports
    #[arg(short, long, value_name = "stringArray")]
    publish: Vec<String>,
    /// What is pulled before: always, missing, never or policy
    #[arg(long, value_name = "string", default_value = "policy")]
    pull: String,
    /// Show no progress of pulls
    #[arg(long)]
    quiet_pull: bool,
    /// Remove containers of services that are not in the files
    #[arg(long)]
    remove_orphans: bool,
    /// Remove the container when it ends
    #[arg(long)]
    rm: bool,
    /// Publish the ports of the service
    #[arg(short = 'P', long)]
    service_ports: bool,
    /// Be known by the names of the service
    #[arg(long)]
    use_aliases: bool,
    /// User, by name or number: USER[:GROUP]
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    user: String,
    /// Mount volumes
    #[arg(short, long, value_name = "stringArray")]
    volume: Vec<String>,
    /// Working directory
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    workdir: String,
    /// The service, and a command instead of its own
    #[arg(
        value_name = "SERVICE [COMMAND] [ARGS...]",
        required = true,
        trailing_var_arg = true
    )]
    args: Vec<String>,
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let Some((service, command)) = self.args.split_first() else {
            return Err(Failure::new("'vessel compose run' requires a service"));
        };
        let project = session.project(std::slice::from_ref(service))?;
        let tty =
            !self.no_tty && !self.detach && terminal::stdin_is_terminal() && terminal::stdout_is_terminal();
        let engine = session.engine(&project)?;
        let prepared = engine.prepare(&Request {
            service: service.clone(),
            command: command.to_vec(),
            entrypoint: self.entrypoint,
            environment: self.env,
            labels: self.label,
            name: self.name,
            user: self.user,
            workdir: self.workdir,
            publish: self.publish,
            volumes: self.volume,
            service_ports: self.service_ports,
            use_aliases: self.use_aliases,
            no_deps: self.no_deps,
            tty,
            stdin: self.interactive,
            detach: self.detach,
            rm: self.rm,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            build: self.build,
            pull: PullPolicy::parse(&self.pull)?,
            quiet_pull: self.quiet_pull,
            remove_orphans: self.remove_orphans || says_yes("COMPOSE_REMOVE_ORPHANS"),
        })?;
        session.progress().finish();
        let client = session.client()?;
        if self.detach {
            client.container_start(&prepared.id, "")?;
            let found = client.container_inspect(&prepared.id, false)?;
            return Ok(output::print_line(found.name.trim_start_matches('/'))?);
        }
        Foreground {
            client,
            id: &prepared.id,
            config: &prepared.config,
            auto_remove: prepared.auto_remove,
            sig_proxy: true,
            detach_keys: "",
            mode: Mode::Run,
        }
        .stream()
    }
}
