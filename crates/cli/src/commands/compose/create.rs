//! `vessel compose create` and `scale`

use vessel_compose::act::{Create, PullPolicy, Recreate};

use super::options::Session;
use super::up::{says_yes, scales};
use crate::failure::{Failure, Result};

/// Create containers
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// Build images before
    #[arg(long)]
    build: bool,
    /// Make containers anew even if nothing changed
    #[arg(long)]
    force_recreate: bool,
    /// Do not build images
    #[arg(long)]
    no_build: bool,
    /// Keep containers that exist
    #[arg(long)]
    no_recreate: bool,
    /// What is pulled before: always, missing, never or policy
    #[arg(long, value_name = "string", default_value = "policy")]
    pull: String,
    /// Show no progress of pulls
    #[arg(long)]
    quiet_pull: bool,
    /// Remove containers of services that are not in the files
    #[arg(long)]
    remove_orphans: bool,
    /// Number of containers of a service: SERVICE=NUM
    #[arg(long, value_name = "scale")]
    scale: Vec<String>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

impl CreateArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        if self.build && self.no_build {
            return Err(Failure::new("--build and --no-build are incompatible"));
        }
        if self.force_recreate && self.no_recreate {
            return Err(Failure::new(
                "--force-recreate and --no-recreate are incompatible",
            ));
        }
        let project = session.project(&self.services)?;
        let recreate = match (self.force_recreate, self.no_recreate) {
            (true, _) => Recreate::Always,
            (_, true) => Recreate::Never,
            _ => Recreate::Changed,
        };
        session.engine(&project)?.create(&Create {
            services: self.services,
            recreate,
            recreate_dependencies: if recreate == Recreate::Never {
                recreate
            } else {
                Recreate::Changed
            },
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
            ..Create::default()
        })?;
        Ok(())
    }
}

/// Set the number of containers of services
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// Do not start what they depend on
    #[arg(long)]
    no_deps: bool,
    /// SERVICE=NUM
    #[arg(value_name = "SERVICE=NUM", required = true)]
    scale: Vec<String>,
}

impl ScaleArgs {
    pub fn run(self, session: &Session<'_>) -> Result {
        let scale = scales(&self.scale)?;
        let services: Vec<String> = scale.keys().cloned().collect();
        let project = session.project(&services)?;
        let engine = session.engine(&project)?;
        let chosen = engine.create(&Create {
            services,
            no_deps: self.no_deps,
            scale,
            ignore_orphans: true,
            ..Create::default()
        })?;
        Ok(engine.start(&chosen, !self.no_deps)?)
    }
}
