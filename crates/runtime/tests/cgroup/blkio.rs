//! The blkio and io controllers.

use vessel_runtime::cgroup::Controller;

use crate::harness::{Scratch, lacks, resources};

#[test]
fn block_devices_are_throttled() {
    if lacks(Controller::Blkio) {
        return;
    }
    // A whole disk; partitions are not throttled.
    let disks = std::fs::read_dir("/sys/block").unwrap().flatten();
    let disk = disks
        .filter_map(|disk| std::fs::read_to_string(disk.path().join("dev")).ok())
        .next();
    let Some((major, minor)) = disk.as_deref().and_then(|disk| disk.trim().split_once(':')) else {
        println!("cgroup: SKIPPED, no disk to throttle");
        return;
    };
    let text = format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":[{{"major":{major},"minor":{minor},"rate":1048576}}],
        "throttleWriteIOPSDevice":[{{"major":{major},"minor":{minor},"rate":20}}]}}}}"#
    );
    let scratch = Scratch::new("blkio", &text);
    if scratch.has("io.max") {
        assert_eq!(
            scratch.file("io.max"),
            format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=20")
        );
    } else {
        assert_eq!(
            scratch.file("blkio.throttle.read_bps_device"),
            format!("{major}:{minor} 1048576")
        );
        assert_eq!(
            scratch.file("blkio.throttle.write_iops_device"),
            format!("{major}:{minor} 20")
        );
    }
    assert_eq!(
        scratch
            .get()
            .update(&resources(&text.replace("1048576", "0").replace("20}", "0}")))
            .unwrap(),
        []
    );
    let left = scratch.file_of("blkio.throttle.read_bps_device", "io.max");
    assert_eq!(left, "");
    let missing = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":4000,"minor":7,"rate":1}]}}"#;
    let message = scratch
        .get()
        .update(&resources(missing))
        .unwrap_err()
        .report()
        .message;
    assert!(message.contains("there is no such device"), "{message}");
    // A weight is set, or reported as lacking: never dropped in silence.
    let lacks = scratch
        .get()
        .update(&resources(r#"{"blockIO":{"weight":500}}"#))
        .unwrap();
    let has = ["blkio.weight", "blkio.bfq.weight", "io.bfq.weight", "io.weight"]
        .iter()
        .any(|file| scratch.has(file));
    assert_eq!(lacks.is_empty(), has, "{lacks:?}");
    for lack in lacks {
        println!("cgroup: {lack}");
    }
}
