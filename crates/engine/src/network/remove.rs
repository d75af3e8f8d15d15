//! Removing networks.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vessel_api::NetworksPruneReport;

use super::list::is_builtin;
use super::{Networks, UserNetwork, held, not_found};
use crate::removed::Thing;
use crate::{Durability, Engine, Error, ErrorKind, Filters, Result, blocking};

impl Engine {
    /// Removes a network that no container uses which runs.
    ///
    /// # Errors
    /// No such network, one of those that every engine has, one in use.
    pub async fn network_remove(self: &Arc<Self>, name: &str) -> Result<()> {
        let Some(network) = self.networks.find_user(name) else {
            let network = self.network_inspect(name).await?;
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("{} is a pre-defined network and cannot be removed", network.name),
            ));
        };
        let (engine, owned) = (Arc::clone(self), Arc::clone(&network));
        let kept = self.bin.keep(None, || Thing::Network {
            record: Box::new(network.record.clone()),
        })?;
        let removed = blocking(move || engine.networks.remove(&owned)).await;
        match (&removed, &kept) {
            (Ok(()), Some(key)) => self.bin.kept(key),
            (Err(_), Some(key)) => self.bin.forget(key),
            (_, None) => {}
        }
        removed?;
        let record = &network.record;
        self.publish_network("destroy", &record.id, &record.name, record.driver(), None);
        self.networks.records.sync(Durability::Disk).await
    }

    /// Removes the networks that no container uses which runs (filters `until`, `label`).
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn network_prune(self: &Arc<Self>, filters: &Filters) -> Result<NetworksPruneReport> {
        filters.check(&["until", "label", "label!"])?;
        let until = filters.until()?;
        let mut report = NetworksPruneReport::default();
        for network in self.networks.user_networks() {
            let record = &network.record;
            if is_builtin(&record.name)
                || until.is_some_and(|until| record.created > until)
                || !filters.labels(&record.labels)
            {
                continue;
            }
            match self.network_remove(&record.id).await {
                Ok(()) => report.networks_deleted.push(record.name.clone()),
                // In use, or removed by somebody else meanwhile.
                Err(error) if matches!(error.kind(), ErrorKind::Forbidden | ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }
}

impl Networks {
    pub(super) fn remove(&self, network: &UserNetwork) -> Result<()> {
        let record = &network.record;
        // Whether others are on the same parent must not change meanwhile.
        let _making = record.parent.as_ref().map(|_| held(&self.making));
        let wire = {
            let mut link = network.link();
            if link.removed {
                return Err(not_found(&record.name));
            }
            if !link.ends.is_empty() || link.coming > 0 {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    format!(
                        "error while removing network: network {} id {} has active endpoints",
                        record.name, record.id
                    ),
                ));
            }
            link.removed = true;
            link.wire.clone()
        };
        // First the bridge: what is killed in between is made again by the next start.
        let removed = match wire {
            Some(wire) => wire.retire(),
            None => Ok(()),
        };
        let removed = removed.and_then(|()| self.remove_parent(record));
        let removed = removed.and_then(|()| self.records.delete_now(&record.id));
        if let Err(error) = removed {
            network.link().removed = false;
            return Err(error.wrap(format!("cannot remove the network {}", record.name)));
        }
        network.link().wire = None;
        held(&self.user).remove(&record.name);
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }
}
