//! `rdma`: handles and objects by device.

use std::collections::BTreeMap;

use super::Node;
use super::lack::Lacks;
use super::resources::Rdma;
use crate::{Error, Result};

pub(super) fn apply(
    node: Option<Node<'_>>,
    devices: &BTreeMap<String, Rdma>,
    lacks: &mut Lacks,
) -> Result<()> {
    for (device, limits) in devices {
        if device.is_empty() || device.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(Error::invalid(format!(
                "rdma: {device:?} is not the name of a device"
            )));
        }
        let Some(node) = node else {
            lacks.add("rdma", "no cgroup hierarchy has the rdma controller");
            return Ok(());
        };
        let mut line = device.clone();
        for (name, limit) in [
            ("hca_handle", limits.hca_handles),
            ("hca_object", limits.hca_objects),
        ] {
            if let Some(limit) = limit {
                line.push_str(&format!(" {name}={limit}"));
            }
        }
        if line.len() > device.len() {
            node.dir.write_or_lack("rdma", "rdma.max", &line, lacks)?;
        }
    }
    Ok(())
}
