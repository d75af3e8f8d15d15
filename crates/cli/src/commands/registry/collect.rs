//! `vessel registry garbage-collect`

use std::path::PathBuf;
use std::time::Duration;

use vessel_registry::{CollectOptions, Storage, StorageOptions, collect_running};

use super::{default_root, duration};
use crate::app::Run;
use crate::context::Context;
use crate::failure::{Failure, Result};
use crate::output::{self, units};

/// Remove blobs that no manifest needs, also while the registry serves
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the registry's content
    #[arg(long, value_name = "dir")]
    root: Option<PathBuf>,
    /// Remove manifests without a tag, too
    #[arg(short = 'm', long, visible_alias = "delete-untagged")]
    untagged: bool,
    /// What is younger stays, since a push may be about to need it
    #[arg(long, value_name = "time", default_value = "1h", value_parser = duration)]
    grace: Duration,
    /// Only tell what would be removed
    #[arg(short, long)]
    dry_run: bool,
}

impl Run for Args {
    fn run(self, _context: &Context) -> Result {
        let root = self.root.unwrap_or_else(default_root);
        if !root.join("blobs").is_dir() {
            return Err(Failure::new(format!(
                "{} is not the directory of a registry",
                root.display()
            )));
        }
        let options = CollectOptions {
            grace: self.grace,
            untagged: self.untagged,
            dry_run: self.dry_run,
        };
        let collected = match collect_running(&root, &options).map_err(Failure::new)? {
            Some(collected) => collected,
            None => Storage::open(&root, StorageOptions::default())
                .map_err(Failure::new)?
                .collect(&options)
                .map_err(Failure::new)?,
        };
        let would = if self.dry_run { "Would remove" } else { "Removed" };
        output::print_line(&format!(
            "{would} {} manifests and {} blobs from repositories, and {} files of {} from the disk",
            collected.manifests,
            collected.blobs,
            collected.contents,
            units::human_size(collected.bytes as f64)
        ))?;
        if collected.skipped > 0 {
            output::warn(&format!(
                "WARNING: nothing was removed from {} repositories, because a manifest of theirs cannot be read; the registry's log says which",
                collected.skipped
            ));
        }
        Ok(())
    }
}
