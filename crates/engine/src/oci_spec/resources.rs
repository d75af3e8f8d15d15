//! Limits: Docker's to OCI's.

use vessel_api::{Resources as Asked, ThrottleDevice as AskedRate};
use vessel_runtime::cgroup::resources::{
    BlockIo, Cpu, DeviceRule, Memory, Pids, Resources, ThrottleDevice, WeightDevice,
};

use super::devices::block_device;
use crate::Result;

/// The period Docker counts `--cpus` in, microseconds.
const CPU_PERIOD: u64 = 100_000;

/// What is asked for, in OCI's terms. Only what is asked for is set.
///
/// # Errors
/// When a device named in a limit does not exist.
pub fn resources(asked: &Asked, device_rules: Vec<DeviceRule>) -> Result<Resources> {
    Ok(Resources {
        devices: device_rules,
        memory: memory(asked),
        cpu: cpu(asked),
        pids: asked.pids_limit.map(|limit| Pids {
            limit: Some(if limit <= 0 { -1 } else { limit }),
        }),
        block_io: block_io(asked)?,
        ..Resources::default()
    })
}

fn wanted<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// The section, if anything in it is set.
fn section<T: Default + PartialEq>(section: T) -> Option<T> {
    wanted(section)
}

fn memory(asked: &Asked) -> Option<Memory> {
    section(Memory {
        limit: wanted(asked.memory),
        reservation: wanted(asked.memory_reservation),
        swap: wanted(asked.memory_swap),
        swappiness: asked
            .memory_swappiness
            .and_then(|value| u64::try_from(value).ok()),
        disable_oom_killer: asked.oom_kill_disable.filter(|disable| *disable),
        ..Memory::default()
    })
}

fn cpu(asked: &Asked) -> Option<Cpu> {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let (quota, period) = if asked.nano_cpus > 0 {
        // Nanoseconds per second to microseconds per 100 ms.
        (Some(asked.nano_cpus / 10_000), Some(CPU_PERIOD))
    } else {
        (wanted(asked.cpu_quota), positive(asked.cpu_period))
    };
    section(Cpu {
        shares: positive(asked.cpu_shares),
        quota,
        period,
        realtime_runtime: wanted(asked.cpu_realtime_runtime),
        realtime_period: positive(asked.cpu_realtime_period),
        cpus: asked.cpuset_cpus.clone(),
        mems: asked.cpuset_mems.clone(),
        ..Cpu::default()
    })
}

fn block_io(asked: &Asked) -> Result<Option<BlockIo>> {
    let rates = |asked: &[AskedRate]| -> Result<Vec<ThrottleDevice>> {
        asked
            .iter()
            .map(|rate| {
                block_device(&rate.path).map(|(major, minor)| ThrottleDevice {
                    major,
                    minor,
                    rate: rate.rate,
                })
            })
            .collect()
    };
    let weights: Result<Vec<WeightDevice>> = asked
        .blkio_weight_device
        .iter()
        .map(|device| {
            let (major, minor) = block_device(&device.path)?;
            Ok(WeightDevice {
                major,
                minor,
                weight: Some(device.weight),
                leaf_weight: None,
            })
        })
        .collect();
    Ok(section(BlockIo {
        weight: wanted(asked.blkio_weight),
        weight_device: weights?,
        throttle_read_bps_device: rates(&asked.blkio_device_read_bps)?,
        throttle_write_bps_device: rates(&asked.blkio_device_write_bps)?,
        throttle_read_iops_device: rates(&asked.blkio_device_read_iops)?,
        throttle_write_iops_device: rates(&asked.blkio_device_write_iops)?,
        ..BlockIo::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_sets_nothing() {
        assert_eq!(
            resources(&Asked::default(), Vec::new()).unwrap(),
            Resources::default()
        );
    }

    #[test]
    fn cpus_are_a_quota() {
        let asked = Asked {
            nano_cpus: 500_000_000,
            cpu_shares: 512,
            ..Asked::default()
        };
        let cpu = resources(&asked, Vec::new()).unwrap().cpu.unwrap();
        assert_eq!(
            (cpu.quota, cpu.period, cpu.shares),
            (Some(50_000), Some(100_000), Some(512))
        );
    }

    #[test]
    fn unlimited_is_minus_one() {
        let asked = Asked {
            memory: 1 << 26,
            memory_swap: -1,
            pids_limit: Some(0),
            ..Asked::default()
        };
        let made = resources(&asked, Vec::new()).unwrap();
        assert_eq!(made.memory.unwrap().swap, Some(-1));
        assert_eq!(made.pids.unwrap().limit, Some(-1));
    }
}
