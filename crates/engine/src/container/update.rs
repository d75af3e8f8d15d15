//! Changing a container's limits and restart policy, running or not.

use std::sync::Arc;

use vessel_api::{Resources, ThrottleDevice, UpdateRequest, UpdateResponse, WeightDevice};
use vessel_runtime::cgroup::refuse;

use super::record::{Record, Status};
use crate::oci_spec::devices::block_device;
use crate::oci_spec::{resources, validate, wall};
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
        change(&mut new.host.resources, &request);
        if names_devices(&request) {
            // Also of a container that does not run: a device that is not there is told now.
            resources::resources(&new.host.resources, Vec::new())?;
        }
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
            let limits = with_lifted(&old.host.resources, &new.host.resources);
            let mut limits = resources::resources(&limits, Vec::new())?;
            if wall::is_machine(&old.host) {
                if wall::Size::of(&old.host.resources) != wall::Size::of(&new.host.resources) {
                    return Err(Error::conflict(format!(
                        "Cannot update container {}: memory and processors of a virtual machine change when it starts; stop it first",
                        container.id
                    )));
                }
                // Those are the guest's, and the monitor's cgroup has room for both.
                (limits.memory, limits.pids) = (None, None);
            }
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
fn change(now: &mut Resources, request: &UpdateRequest) {
    let asked = &request.resources;
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
    if let Some(weights) = &request.blkio_weight_device {
        now.blkio_weight_device.clone_from(weights);
    }
    for (now, asked) in [
        (&mut now.blkio_device_read_bps, &request.blkio_device_read_bps),
        (&mut now.blkio_device_write_bps, &request.blkio_device_write_bps),
        (&mut now.blkio_device_read_iops, &request.blkio_device_read_iops),
        (&mut now.blkio_device_write_iops, &request.blkio_device_write_iops),
    ] {
        if let Some(rates) = asked {
            now.clone_from(rates);
        }
    }
}

/// Whether limits of single block devices are to be other ones.
fn names_devices(request: &UpdateRequest) -> bool {
    request.blkio_weight_device.is_some()
        || [
            &request.blkio_device_read_bps,
            &request.blkio_device_write_bps,
            &request.blkio_device_read_iops,
            &request.blkio_device_write_iops,
        ]
        .iter()
        .any(|rates| rates.is_some())
}

/// The new limits, and those of devices that have none any more as the kernel takes it: 0. A device that is gone took its
/// limit along.
fn with_lifted(old: &Resources, new: &Resources) -> Resources {
    let there = |path: &str| block_device(path).is_ok();
    let mut limits = new.clone();
    for device in &old.blkio_weight_device {
        let kept = new.blkio_weight_device.iter().any(|new| new.path == device.path);
        if !kept && there(&device.path) {
            limits.blkio_weight_device.push(WeightDevice {
                path: device.path.clone(),
                weight: 0,
            });
        }
    }
    for (limits, old) in [
        (&mut limits.blkio_device_read_bps, &old.blkio_device_read_bps),
        (&mut limits.blkio_device_write_bps, &old.blkio_device_write_bps),
        (&mut limits.blkio_device_read_iops, &old.blkio_device_read_iops),
        (&mut limits.blkio_device_write_iops, &old.blkio_device_write_iops),
    ] {
        for device in old {
            let kept = limits.iter().any(|new| new.path == device.path);
            if !kept && there(&device.path) {
                limits.push(ThrottleDevice {
                    path: device.path.clone(),
                    rate: 0,
                });
            }
        }
    }
    limits
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
            &UpdateRequest {
                resources: Resources {
                    nano_cpus: 1_000_000_000,
                    pids_limit: Some(7),
                    ..Resources::default()
                },
                ..UpdateRequest::default()
            },
        );
        assert_eq!(
            (now.memory, now.cpu_quota, now.cpu_period, now.nano_cpus),
            (1 << 30, 0, 0, 1_000_000_000)
        );
        assert_eq!(now.pids_limit, Some(7));
    }

    #[test]
    fn limits_of_devices_are_set_kept_and_lifted() {
        let request = |text: &str| serde_json::from_str::<UpdateRequest>(text).unwrap();
        let mut now = Resources::default();
        change(
            &mut now,
            &request(
                r#"{"BlkioDeviceReadBps": [{"Path": "/dev/x", "Rate": 5}], "BlkioDeviceWriteIOps": [{"Path": "/dev/x", "Rate": 6}],
                "BlkioWeightDevice": [{"Path": "/dev/x", "Weight": 20}]}"#,
            ),
        );
        let rates = |now: &Resources| {
            (
                now.blkio_device_read_bps
                    .iter()
                    .map(|device| device.rate)
                    .sum::<u64>(),
                now.blkio_device_write_iops
                    .iter()
                    .map(|device| device.rate)
                    .sum::<u64>(),
                now.blkio_weight_device.len(),
            )
        };
        assert_eq!(rates(&now), (5, 6, 1));
        for stays in [r#"{"BlkioDeviceReadBps": null}"#, "{}"] {
            let stays = request(stays);
            assert!(!names_devices(&stays));
            change(&mut now, &stays);
        }
        assert_eq!(rates(&now), (5, 6, 1));
        let lifts = request(r#"{"BlkioDeviceReadBps": [], "BlkioWeightDevice": []}"#);
        assert!(names_devices(&lifts));
        change(&mut now, &lifts);
        assert_eq!(rates(&now), (0, 6, 0));
    }
}
