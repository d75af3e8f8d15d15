//! What there is: volumes of ours, and those that plug-ins have beside.

use std::collections::{BTreeSet, HashMap};

use vessel_api::{Volume, VolumeList};

use super::{VolumeRecord, missing, plugin};
use crate::oci_spec::mount_points::volume_name;
use crate::{Engine, Filters, Result};

impl Engine {
    /// The volumes.
    ///
    /// # Errors
    /// A filter that is not known.
    pub async fn volume_list(&self, filters: &Filters) -> Result<VolumeList> {
        filters.check(&["dangling", "driver", "label", "name"])?;
        let dangling = filters.flag("dangling")?;
        let used = match dangling {
            Some(_) => self.used_volumes(),
            None => BTreeSet::new(),
        };
        let wanted = |name: &str, record: &VolumeRecord| {
            filters.any("name", |part| name.contains(part))
                && filters.matches("driver", record.driver())
                && filters.labels(&record.labels)
                && dangling.is_none_or(|dangling| dangling != used.contains(name))
        };
        let known = self.volumes.all();
        let (remote, warnings) = self.volumes.plugged.plugins.list().await;
        let mut volumes: Vec<Volume> = known
            .iter()
            .filter(|(name, record)| wanted(name, record))
            .map(|(name, record)| self.volume(name, record.clone()))
            .collect();
        // A plug-in may have thousands: nothing below looks at all of them for each, or asks about one.
        let places: HashMap<String, usize> = volumes
            .iter()
            .enumerate()
            .map(|(place, volume)| (volume.name.clone(), place))
            .collect();
        let mut scopes: HashMap<String, &'static str> = HashMap::new();
        for (driver, told) in remote {
            let name = told.name();
            if let Some(volume) = places.get(name).and_then(|place| volumes.get_mut(*place))
                && volume.driver == driver
            {
                volume.mountpoint = told.mountpoint();
                continue;
            }
            let scope = match scopes.get(&driver) {
                Some(scope) => *scope,
                None => {
                    let scope = self.scope_of(&driver).await;
                    scopes.insert(driver.clone(), scope);
                    scope
                }
            };
            let record = VolumeRecord {
                driver,
                ..VolumeRecord::default()
            };
            // Of volumes that others made with the plug-in, those that could be used here.
            if !known.contains_key(name) && volume_name(name).is_ok() && wanted(name, &record) {
                volumes.push(self.remote_volume(name, record, &told, scope));
            }
        }
        Ok(VolumeList { volumes, warnings })
    }

    /// One volume.
    ///
    /// # Errors
    /// `get NAME: no such volume`; its plug-in does not answer.
    pub async fn volume_inspect(&self, name: &str) -> Result<Volume> {
        let Some(record) = self.volumes.get(name) else {
            let found = match volume_name(name) {
                Ok(()) => self.volumes.plugged.plugins.with_volume(name).await,
                Err(_) => None,
            };
            let (driver, told) = found.ok_or_else(|| missing(name))?;
            let record = VolumeRecord {
                driver,
                ..VolumeRecord::default()
            };
            let scope = self.scope_of(&record.driver).await;
            return Ok(self.remote_volume(name, record, &told, scope));
        };
        if record.is_local() {
            return Ok(self.volume(name, record));
        }
        let told = async {
            let plugin = self.volumes.plugged.plugins.get(&record.driver).await?;
            plugin.inspect(name).await
        };
        let told = told.await.map_err(|error| {
            error.wrap(format!(
                "get {name}: error while checking if volume \"{name}\" exists in driver \"{}\"",
                record.driver
            ))
        })?;
        let scope = self.scope_of(&record.driver).await;
        Ok(self.remote_volume(name, record, &told, scope))
    }

    /// The scope of a plug-in's volumes.
    async fn scope_of(&self, driver: &str) -> &'static str {
        match self.volumes.plugged.plugins.get(driver).await {
            Ok(plugin) => plugin.scope().await,
            Err(_) => "local",
        }
    }

    /// A volume of a plug-in, with what that says of it.
    fn remote_volume(&self, name: &str, record: VolumeRecord, told: &plugin::Remote, scope: &str) -> Volume {
        let known = record.created != 0;
        let volume = self.volume(name, record);
        Volume {
            mountpoint: told.mountpoint(),
            scope: scope.to_owned(),
            status: told.status(),
            created_at: match told.created_at() {
                at if !at.is_empty() || !known => at,
                _ => volume.created_at,
            },
            ..volume
        }
    }
}
