//! Changing a container's limits and restart policy, running or not.

use std::sync::Arc;

use vessel_api::{Resources, UpdateRequest, UpdateResponse};
use vessel_runtime::cgroup::refuse;

use super::record::{Record, Status};
use crate::oci_spec::{resources, validate};
use crate::{Durability, Engine, Error, ErrorKind, Result, blocking};

impl Engine {
    /// Changes limits and restart policy.
    ///
    /// # Errors
    /// A value that is not valid or that the kernel refuses; nothing is recorded then.
    pub async fn container_update(&self, id: &str, request: UpdateRequest) -> Result<UpdateResponse> {
        let container = self.container(id)?;
        let _op = self.lock_op(&container).await?;
        let old = container.record();
        if matches!(container.status(), Status::Removing | Status::Dead) {
            return Err(Error::conflict(format!(
                "Cannot update container {id}: it is being removed"
            )));
        }
        let mut new = Record::clone(&old);
        change(&mut new.host.resources, &request.resources);
        if !request.restart_policy.name.is_empty() {
            validate::restart_policy(&request.restart_policy)?;
            if new.host.auto_remove && !request.restart_policy.is_none() {
                return Err(Error::conflict(
                    "Restart policy cannot be updated because AutoRemove is enabled for the container",
                ));
            }
            new.host.restart_policy = request.restart_policy;
        }
        let mut warnings = validate::resources(&new.host.resources, &self.facts, true)
            .map_err(|error| error.wrap(format!("Cannot update container {}", container.id)))?;
        if container.status().has_process() {
            let limits = resources::resources(&new.host.resources, Vec::new())?;
            let updated = match self.container_cgroup(&container) {
                Ok(cgroup) => blocking(move || Ok(refuse(&cgroup.update(&limits)?)?)).await,
                Err(error) => Err(error),
            };
            match updated {
                // It is ending at this moment, its cgroup is gone already: the limits are for its next start.
                Err(error)
                    if error.kind() == ErrorKind::NotFound && self.container_cgroup(&container).is_err() => {}
                other => {
                    other.map_err(|error| error.wrap(format!("Cannot update container {}", container.id)))?;
                }
            }
        }
        self.records.put(&container.id, &new, Durability::Disk).await?;
        let record = Arc::new(new);
        container.inner().record = Arc::clone(&record);
        self.container_event(&record, "update", &[]);
        warnings.sort();
        Ok(UpdateResponse { warnings })
    }
}

/// What is asked for replaces what was; what is not stays.
fn change(now: &mut Resources, asked: &Resources) {
    fn set<T: Default + PartialEq + Clone>(now: &mut T, asked: &T) {
        if *asked != T::default() {
            now.clone_from(asked);
        }
    }
    // Quota and period are one limit, and so are processors.
    if asked.nano_cpus != 0 {
        (now.cpu_quota, now.cpu_period) = (0, 0);
    } else if asked.cpu_quota != 0 || asked.cpu_period != 0 {
        now.nano_cpus = 0;
    }
    set(&mut now.cpu_shares, &asked.cpu_shares);
    set(&mut now.nano_cpus, &asked.nano_cpus);
    set(&mut now.cpu_period, &asked.cpu_period);
    set(&mut now.cpu_quota, &asked.cpu_quota);
    set(&mut now.cpu_realtime_period, &asked.cpu_realtime_period);
    set(&mut now.cpu_realtime_runtime, &asked.cpu_realtime_runtime);
    set(&mut now.cpuset_cpus, &asked.cpuset_cpus);
    set(&mut now.cpuset_mems, &asked.cpuset_mems);
    set(&mut now.memory, &asked.memory);
    set(&mut now.memory_swap, &asked.memory_swap);
    set(&mut now.memory_reservation, &asked.memory_reservation);
    set(&mut now.blkio_weight, &asked.blkio_weight);
    if let Some(limit) = asked.pids_limit {
        now.pids_limit = Some(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays() {
        let mut now = Resources {
            memory: 1 << 30,
            cpu_quota: 5000,
            cpu_period: 10_000,
            ..Resources::default()
        };
        change(
            &mut now,
            &Resources {
                nano_cpus: 1_000_000_000,
                pids_limit: Some(7),
                ..Resources::default()
            },
        );
        assert_eq!(
            (now.memory, now.cpu_quota, now.cpu_period, now.nano_cpus),
            (1 << 30, 0, 0, 1_000_000_000)
        );
        assert_eq!(now.pids_limit, Some(7));
    }
}
