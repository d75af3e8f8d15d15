//! `vessel compose down`

use vessel_compose::act::down::{Down, Images};

use super::options::Session;
use super::up::says_yes;
use crate::failure::{Failure, Result};

/// Stop and remove containers and networks
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Remove containers of services that are not in the files
    #[arg(long)]
    remove_orphans: bool,
    /// Remove images: all, or local for those without a name of their own
    #[arg(long, value_name = "string")]
    rmi: Option<String>,
    /// Seconds until containers that do not stop are killed
    #[arg(short, long, value_name = "int")]
    timeout: Option<i64>,
    /// Remove volumes, too
    #[arg(short, long)]
    volumes: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICES")]
    services: Vec<String>,
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let images = match self.rmi.as_deref() {
            None | Some("") => None,
            Some("all") => Some(Images::All),
            Some("local") => Some(Images::Local),
            Some(other) => {
                return Err(Failure::new(format!(
                    "invalid value for --rmi: {other:?}: all or local is expected"
                )));
            }
        };
        let project = session.acting_project(&self.services)?;
        session.engine(&project)?.down(&Down {
            services: self.services,
            remove_orphans: self.remove_orphans || says_yes("COMPOSE_REMOVE_ORPHANS"),
            timeout: self.timeout,
            volumes: self.volumes,
            images,
        })?;
        Ok(())
    }
}
