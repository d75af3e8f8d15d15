//! `pids`: how many tasks.

use super::Node;
use super::lack::Lacks;
use super::resources::Pids;
use crate::Result;

pub(super) fn apply(node: Option<Node<'_>>, pids: &Pids, lacks: &mut Lacks) -> Result<()> {
    let Some(limit) = pids.limit else { return Ok(()) };
    let value = if limit > 0 {
        limit.to_string()
    } else {
        "max".to_owned()
    };
    match node {
        Some(node) => node.dir.write_or_lack("pids.limit", "pids.max", &value, lacks),
        None if limit > 0 => {
            lacks.add("pids.limit", "no cgroup hierarchy has the pids controller");
            Ok(())
        }
        None => Ok(()),
    }
}
