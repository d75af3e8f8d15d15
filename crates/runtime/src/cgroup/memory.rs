//! `memory`: limit, swap, reservation, swappiness, what happens at the limit.
//!
//! The specification's `swap` is memory plus swap, as v1 counts; v2 counts swap alone and gets the difference.

use super::Node;
use super::hierarchy::Version;
use super::lack::Lacks;
use super::resources::Memory;
use crate::{Error, ErrorKind, Result};

pub(super) fn apply(node: Option<Node<'_>>, memory: &Memory, lacks: &mut Lacks) -> Result<()> {
    let Some(node) = node else {
        for (property, asked) in [
            ("memory.limit", memory.limit.is_some_and(|limit| limit > 0)),
            ("memory.swap", memory.swap.is_some_and(|swap| swap > 0)),
            (
                "memory.reservation",
                memory.reservation.is_some_and(|reservation| reservation > 0),
            ),
            ("memory.swappiness", memory.swappiness.is_some()),
            ("memory.disableOOMKiller", memory.disable_oom_killer == Some(true)),
        ] {
            if asked {
                lacks.add(property, "no cgroup hierarchy has the memory controller");
            }
        }
        return Ok(());
    };
    if let (Some(limit), Some(swap)) = (memory.limit, memory.swap)
        && limit > 0
        && swap > 0
        && swap < limit
    {
        return Err(Error::invalid(format!(
            "memory.swap ({swap}) counts memory plus swap, so it cannot be below memory.limit ({limit})"
        )));
    }
    if let Some(swappiness) = memory.swappiness
        && swappiness > 100
    {
        return Err(Error::invalid(format!(
            "memory.swappiness {swappiness} is out of range: 0 to 100"
        )));
    }
    if memory.check_before_update == Some(true)
        && let Some(limit) = memory
            .limit
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|&limit| limit > 0)
    {
        let file = if node.version == Version::V1 {
            "memory.usage_in_bytes"
        } else {
            "memory.current"
        };
        if let Some(usage) = node.dir.read_number(file).filter(|&usage| usage > limit) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "memory.limit {limit} is below the {usage} bytes in use, and checkBeforeUpdate is set"
                ),
            ));
        }
    }
    match node.version {
        Version::V1 => v1(node, memory, lacks),
        Version::V2 => v2(node, memory, lacks),
    }
}

fn v1(node: Node<'_>, memory: &Memory, lacks: &mut Lacks) -> Result<()> {
    let dir = node.dir;
    let limit = memory
        .limit
        .filter(|&limit| limit != 0)
        .map(|limit| limit.max(-1));
    let mut swap = memory.swap.filter(|&swap| swap != 0).map(|swap| swap.max(-1));
    // No limit on memory with one on memory plus swap would be refused: unlimited means both.
    if limit == Some(-1) && swap.is_none() && dir.read("memory.memsw.limit_in_bytes").is_some() {
        swap = Some(-1);
    }
    let mut writes = Vec::with_capacity(2);
    if let Some(limit) = limit {
        writes.push(("memory.limit", "memory.limit_in_bytes", limit.to_string()));
    }
    if let Some(swap) = swap {
        writes.push(("memory.swap", "memory.memsw.limit_in_bytes", swap.to_string()));
    }
    dir.write_settling(&writes, lacks)
        .map_err(|error| explain_busy(error, node))?;
    if let Some(reservation) = memory.reservation.filter(|&reservation| reservation != 0) {
        let value = reservation.max(-1).to_string();
        dir.write_or_lack("memory.reservation", "memory.soft_limit_in_bytes", &value, lacks)?;
    }
    if let Some(swappiness) = memory.swappiness {
        dir.write_or_lack(
            "memory.swappiness",
            "memory.swappiness",
            &swappiness.to_string(),
            lacks,
        )?;
    }
    if let Some(disable) = memory.disable_oom_killer {
        // Zero is what a new cgroup has.
        let value = if disable { "1" } else { "0" };
        dir.write_or_lack("memory.disableOOMKiller", "memory.oom_control", value, lacks)?;
    }
    Ok(())
}

fn explain_busy(error: Error, node: Node<'_>) -> Error {
    match node.dir.read_number("memory.usage_in_bytes") {
        Some(usage) if error.kind() == ErrorKind::Conflict => error.wrap(format!(
            "the container uses {usage} bytes, which the kernel could not bring below the new limit"
        )),
        _ => error,
    }
}

fn v2(node: Node<'_>, memory: &Memory, lacks: &mut Lacks) -> Result<()> {
    let dir = node.dir;
    let limit = memory.limit.filter(|&limit| limit != 0);
    if let Some(swap) = swap_max(limit, memory.swap, || dir.read_number("memory.max"))? {
        // Swap first: a smaller limit on memory may need the room.
        dir.write_or_lack("memory.swap", "memory.swap.max", &swap, lacks)?;
    }
    if let Some(limit) = limit {
        dir.write_or_lack("memory.limit", "memory.max", &or_max(limit), lacks)?;
    }
    if let Some(reservation) = memory.reservation.filter(|&reservation| reservation != 0) {
        dir.write_or_lack("memory.reservation", "memory.low", &or_max(reservation), lacks)?;
    }
    if memory.swappiness.is_some() {
        lacks.add("memory.swappiness", "cgroup v2 has no swappiness of its own");
    }
    if memory.disable_oom_killer == Some(true) {
        lacks.add("memory.disableOOMKiller", "cgroup v2 always kills at the limit");
    }
    Ok(())
}

fn or_max(bytes: i64) -> String {
    if bytes < 0 {
        "max".to_owned()
    } else {
        bytes.to_string()
    }
}

/// The v2 limit of swap alone.
fn swap_max(
    limit: Option<i64>,
    swap: Option<i64>,
    current: impl FnOnce() -> Option<u64>,
) -> Result<Option<String>> {
    match (limit, swap) {
        (Some(limit), None | Some(0)) if limit < 0 => Ok(Some("max".to_owned())),
        (_, None | Some(0)) => Ok(None),
        (_, Some(swap)) if swap < 0 => Ok(Some("max".to_owned())),
        (limit, Some(swap)) => {
            let swap = swap.unsigned_abs();
            let memory = match limit {
                Some(limit) => u64::try_from(limit).ok(),
                None => current(),
            };
            let Some(memory) = memory else {
                return Err(Error::invalid(
                    "memory.swap is limited but memory.limit is not: set both",
                ));
            };
            match swap.checked_sub(memory) {
                Some(swap) => Ok(Some(swap.to_string())),
                None => Err(Error::invalid(format!(
                    "memory.swap ({swap}) counts memory plus swap, so it cannot be below the memory limit ({memory})"
                ))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_converted() {
        let convert =
            |limit, swap, current| swap_max(limit, swap, || current).map_err(|error| error.report().message);
        assert_eq!(convert(None, None, None), Ok(None));
        assert_eq!(convert(Some(100), None, None), Ok(None));
        assert_eq!(convert(Some(-1), None, None), Ok(Some("max".into())));
        assert_eq!(convert(Some(100), Some(-1), None), Ok(Some("max".into())));
        assert_eq!(convert(Some(100), Some(100), None), Ok(Some("0".into())));
        assert_eq!(convert(Some(100), Some(250), None), Ok(Some("150".into())));
        assert_eq!(convert(None, Some(250), Some(50)), Ok(Some("200".into())));
        assert!(convert(None, Some(250), None).unwrap_err().contains("set both"));
        assert!(
            convert(Some(-1), Some(250), None)
                .unwrap_err()
                .contains("set both")
        );
        assert!(convert(Some(300), Some(250), None).unwrap_err().contains("below"));
    }
}
