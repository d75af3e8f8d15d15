//! `vessel compose up`

use std::collections::BTreeMap;

use vessel_compose::act::{Create, PullPolicy, Recreate};

use super::options::Session;
use crate::failure::{Failure, Result};

/// Create and start containers
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build images before
    #[arg(long)]
    build: bool,
    /// Run in the background
    #[arg(short, long)]
    detach: bool,
    /// Make containers anew even if nothing changed
    #[arg(long)]
    force_recreate: bool,
    /// Make what they depend on anew, too
    #[arg(long)]
    always_recreate_deps: bool,
    /// Do not build images
    #[arg(long)]
    no_build: bool,
    /// Do not start what they depend on
    #[arg(long)]
    no_deps: bool,
    /// Keep containers that exist
    #[arg(long)]
    no_recreate: bool,
    /// Create containers and do not start them
    #[arg(long)]
    no_start: bool,
    /// What is pulled before: always, missing, never or policy
    #[arg(long, value_name = "string", default_value = "policy")]
    pull: String,
    /// Show no progress of pulls
    #[arg(long)]
    quiet_pull: bool,
    /// Remove containers of services that are not in the files
    #[arg(long)]
    remove_orphans: bool,
    /// Give new containers new anonymous volumes
    #[arg(short = 'V', long)]
    renew_anon_volumes: bool,
    /// Number of containers of a service: SERVICE=NUM
    #[arg(long, value_name = "scale")]
    scale: Vec<String>,
    /// Seconds until containers that do not stop are killed
    #[arg(short, long, value_name = "int")]
    timeout: Option<i64>,
    /// Wait until services run, or are healthy; implies -d
    #[arg(long)]
    wait: bool,
    /// Wait no longer than so many seconds
    #[arg(long, value_name = "int")]
    wait_timeout: Option<u64>,
    #[command(flatten)]
    attached: Attached,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

/// Options of `up` in the foreground.
#[derive(Debug, clap::Args)]
pub struct Attached {
    /// Stop everything when a container ends
    #[arg(long)]
    pub abort_on_container_exit: bool,
    /// Stop everything when a container fails
    #[arg(long)]
    pub abort_on_container_failure: bool,
    /// Show the output of these services only
    #[arg(long, value_name = "stringArray")]
    pub attach: Vec<String>,
    /// Show the output of what they depend on, too
    #[arg(long)]
    pub attach_dependencies: bool,
    /// End with the exit code of a service's container; implies --abort-on-container-exit
    #[arg(long, value_name = "string")]
    pub exit_code_from: Option<String>,
    /// Do not show the output of these services
    #[arg(long, value_name = "stringArray")]
    pub no_attach: Vec<String>,
    /// Do not colour
    #[arg(long)]
    pub no_color: bool,
    /// Show lines without the names of containers
    #[arg(long)]
    pub no_log_prefix: bool,
    /// Show times
    #[arg(long)]
    pub timestamps: bool,
}

/// Reads `SERVICE=NUM`.
pub fn scales(options: &[String]) -> Result<BTreeMap<String, i64>> {
    let mut found = BTreeMap::new();
    for option in options {
        let pair = option
            .split_once('=')
            .and_then(|(name, count)| Some((name, count.parse().ok()?)));
        match pair {
            Some((name, count)) if count >= 0 => found.insert(name.to_owned(), count),
            _ => {
                return Err(Failure::new(format!(
                    "invalid --scale option {option:?}: it has to look like SERVICE=NUM"
                )));
            }
        };
    }
    Ok(found)
}

/// A variable of the environment that says yes.
pub fn says_yes(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| crate::options::parse_bool(&value) == Some(true))
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let conflict = |a: bool, b: bool, names: &str| {
            if a && b {
                return Err(Failure::new(format!("{names} are incompatible")));
            }
            Ok(())
        };
        let aborts = self.attached.abort_on_container_exit || self.attached.abort_on_container_failure;
        conflict(self.build, self.no_build, "--build and --no-build")?;
        conflict(
            self.force_recreate,
            self.no_recreate,
            "--force-recreate and --no-recreate",
        )?;
        conflict(
            self.always_recreate_deps,
            self.no_recreate,
            "--always-recreate-deps and --no-recreate",
        )?;
        conflict(self.detach, aborts, "--detach and --abort-on-container-exit")?;
        conflict(self.wait, aborts, "--wait and --abort-on-container-exit")?;
        let project = session.project(&self.services)?;
        let recreate = match (self.force_recreate, self.no_recreate) {
            (true, _) => Recreate::Always,
            (_, true) => Recreate::Never,
            _ => Recreate::Changed,
        };
        let create = Create {
            services: self.services.clone(),
            no_deps: self.no_deps,
            recreate,
            recreate_dependencies: match (self.always_recreate_deps, recreate) {
                (true, _) => Recreate::Always,
                (_, Recreate::Never) => Recreate::Never,
                _ => Recreate::Changed,
            },
            renew_volumes: self.renew_anon_volumes,
            scale: scales(&self.scale)?,
            remove_orphans: self.remove_orphans || says_yes("COMPOSE_REMOVE_ORPHANS"),
            ignore_orphans: says_yes("COMPOSE_IGNORE_ORPHANS"),
            build: match (self.build, self.no_build) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            pull: PullPolicy::parse(&self.pull)?,
            quiet_pull: self.quiet_pull,
            timeout: self.timeout,
        };
        let engine = session.engine(&project)?;
        let chosen = engine.create(&create)?;
        if self.no_start {
            return Ok(());
        }
        if self.detach || self.wait {
            engine.start(&chosen, !self.no_deps)?;
            if self.wait {
                engine.wait_up(&chosen, self.wait_timeout)?;
            }
            return Ok(());
        }
        super::attached::run(session, &project, &engine, &chosen, &create, &self.attached)
    }
}
