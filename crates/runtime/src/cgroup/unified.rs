//! `unified`: files of the v2 cgroup, written as they are given.

use std::collections::BTreeMap;

use super::Node;
use super::lack::Lacks;
use crate::{Error, Result};

/// Files of the cgroup core that are limits; the others move processes or change the tree, which is not for a
/// configuration to do.
const CORE: [&str; 3] = ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];

pub(super) fn apply(
    node: Option<Node<'_>>,
    files: &BTreeMap<String, String>,
    lacks: &mut Lacks,
) -> Result<()> {
    for (file, value) in files {
        let plain = file
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !plain || !file.contains('.') || file.starts_with('.') || file.len() > 255 {
            return Err(Error::invalid(format!(
                "unified: {file:?} is not the name of a cgroup file"
            )));
        }
        if file.starts_with("cgroup.") && !CORE.contains(&file.as_str()) {
            return Err(Error::invalid(format!(
                "unified: {file:?} is not a limit and may not be set"
            )));
        }
        let property = format!("unified[{file:?}]");
        let Some(node) = node else {
            lacks.add(&property, "there is no cgroup v2 hierarchy");
            continue;
        };
        // Each command is a write of its own.
        for line in value.lines() {
            node.dir.write_or_lack(&property, file, line, lacks)?;
        }
    }
    Ok(())
}
