//! Where everything comes from that the engine has on its host, and what would free it.
//!
//! What there is, is read from the host: files below root and run directory, mounts on them, the interfaces of its bridges,
//! the rules of its table, the cgroups below its parent, its processes and those of containers. Records say what it belongs
//! to; what none explains is said to be unknown. What belongs to nobody only because it comes or goes at this moment
//! is looked at again before that is said.

mod facts;
mod files;
mod kernel;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vessel_api::{ExplainedItem, Explanation};

use crate::{Engine, Result, blocking};
use facts::Facts;

/// How long what is unknown is given to become known, or to go: it is looked at again after each of these. Files of what
/// removed itself go in the background, and so do interfaces and processes of what has ended.
pub(crate) const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1000),
];

/// The kinds, in the order they are told.
const KINDS: [&str; 6] = ["file", "mount", "interface", "rule", "cgroup", "process"];

impl Engine {
    /// Explains everything.
    ///
    /// # Errors
    /// When root or run directory cannot be read, or the kernel refuses a list.
    pub async fn explain(self: &Arc<Self>) -> Result<Explanation> {
        let mut items = self.look().await?;
        for pause in PAUSES {
            if items.iter().all(|item| item.known) {
                break;
            }
            tokio::time::sleep(pause).await;
            let before: BTreeSet<String> = items
                .iter()
                .filter(|item| !item.known)
                .map(|item| item.name.clone())
                .collect();
            items = self.look().await?;
            // What only this look does not know has just come.
            items.retain(|item| item.known || before.contains(&item.name));
        }
        items.sort_by_cached_key(|item| {
            let kind = KINDS.iter().position(|kind| *kind == item.kind);
            (kind, !item.known, item.name.clone())
        });
        Ok(Explanation {
            size: items.iter().map(|item| item.size).sum(),
            unknown: items.iter().filter(|item| !item.known).count() as u64,
            items,
        })
    }

    async fn look(self: &Arc<Self>) -> Result<Vec<ExplainedItem>> {
        let facts = Facts::gather(self).await?;
        let engine = Arc::clone(self);
        blocking(move || {
            let mut items = Vec::new();
            files::explain(&engine.paths, &facts, &mut items)?;
            engine.explain_kernel(&facts, &mut items)?;
            Ok(items)
        })
        .await
    }
}

/// An item that a record explains.
fn known(
    kind: &str,
    name: impl Into<String>,
    owner: &str,
    purpose: &str,
    free: impl Into<String>,
) -> ExplainedItem {
    ExplainedItem {
        kind: kind.to_owned(),
        name: name.into(),
        owner: owner.to_owned(),
        purpose: purpose.to_owned(),
        free: free.into(),
        known: true,
        ..ExplainedItem::default()
    }
}

/// An item that none explains.
fn unknown(kind: &str, name: impl Into<String>, purpose: &str) -> ExplainedItem {
    ExplainedItem {
        kind: kind.to_owned(),
        name: name.into(),
        purpose: purpose.to_owned(),
        ..ExplainedItem::default()
    }
}
