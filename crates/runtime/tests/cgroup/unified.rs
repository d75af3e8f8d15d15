//! Files of the v2 hierarchy that are named one by one.

use vessel_runtime::ErrorKind;
use vessel_runtime::cgroup::Mode;

use crate::harness::{HIERARCHIES, Scratch, resources};

#[test]
fn unified_files_are_written_where_there_is_v2() {
    let scratch = Scratch::new("unified", "{}");
    let lacks = scratch
        .get()
        .update(&resources(
            r#"{"unified":{"cgroup.max.depth":"7","memory.nonsense":"1"}}"#,
        ))
        .unwrap();
    let missing: Vec<_> = lacks.iter().map(|lack| lack.property.as_str()).collect();
    if HIERARCHIES.mode() == Mode::V1 {
        assert_eq!(
            missing,
            ["unified[\"cgroup.max.depth\"]", "unified[\"memory.nonsense\"]"]
        );
        return;
    }
    assert_eq!(missing, ["unified[\"memory.nonsense\"]"]);
    assert_eq!(scratch.file("cgroup.max.depth"), "7");
    let error = vessel_runtime::cgroup::refuse(&lacks).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
