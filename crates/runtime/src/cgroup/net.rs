//! `net_cls` and `net_prio`: marks on packets, v1 only.

use super::Node;
use super::lack::Lacks;
use super::resources::Network;
use crate::{Error, Result};

pub(super) fn apply(
    class: Option<Node<'_>>,
    priority: Option<Node<'_>>,
    network: &Network,
    lacks: &mut Lacks,
) -> Result<()> {
    if let Some(id) = network.class_id.filter(|&id| id != 0) {
        match class {
            Some(node) => {
                node.dir
                    .write_or_lack("network.classID", "net_cls.classid", &id.to_string(), lacks)?
            }
            None => lacks.add(
                "network.classID",
                "no cgroup v1 hierarchy has the net_cls controller",
            ),
        }
    }
    for interface in &network.priorities {
        if interface.name.is_empty()
            || interface.name.len() > 15
            || interface.name.bytes().any(|byte| byte <= b' ')
        {
            return Err(Error::invalid(format!(
                "network.priorities: {:?} is not an interface name",
                interface.name
            )));
        }
        let Some(node) = priority else {
            lacks.add(
                "network.priorities",
                "no cgroup v1 hierarchy has the net_prio controller",
            );
            break;
        };
        let line = format!("{} {}", interface.name, interface.priority);
        node.dir
            .write_or_lack("network.priorities", "net_prio.ifpriomap", &line, lacks)?;
    }
    Ok(())
}
