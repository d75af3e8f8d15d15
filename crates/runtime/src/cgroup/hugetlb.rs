//! `hugetlb`: huge pages by size, both those in use and those reserved.

use rustix::io::Errno;

use super::Node;
use super::hierarchy::Version;
use super::lack::Lacks;
use super::resources::HugepageLimit;
use crate::{Error, Result};

pub(super) fn apply(node: Option<Node<'_>>, limits: &[HugepageLimit], lacks: &mut Lacks) -> Result<()> {
    const PROPERTY: &str = "hugepageLimits";
    for limit in limits {
        let size = &limit.page_size;
        let digits = size
            .strip_suffix("KB")
            .or_else(|| size.strip_suffix("MB"))
            .or_else(|| size.strip_suffix("GB"));
        if !digits
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        {
            return Err(Error::invalid(format!(
                "hugepageLimits: {size:?} is not a page size; write it as in 2MB or 1GB"
            )));
        }
        let Some(node) = node else {
            lacks.add(PROPERTY, "no cgroup hierarchy has the hugetlb controller");
            return Ok(());
        };
        let file = if node.version == Version::V1 {
            "limit_in_bytes"
        } else {
            "max"
        };
        let value = limit.limit.to_string();
        let reserved = format!("hugetlb.{size}.rsvd.{file}");
        match node.dir.try_write(&reserved, &value) {
            Ok(()) | Err(Errno::NOENT) => {} // since Linux 5.7
            Err(errno) => return Err(node.dir.write_error(PROPERTY, &reserved, &value, errno)),
        }
        node.dir
            .write_or_lack(PROPERTY, &format!("hugetlb.{size}.{file}"), &value, lacks)?;
    }
    Ok(())
}
