//! Limits of memory, cpu and cpuset that change while there are processes.

use vessel_runtime::ErrorKind;
use vessel_runtime::cgroup::Controller;

use crate::harness::{Scratch, lacks, resources};

#[test]
fn limits_change_up_and_down() {
    if lacks(Controller::Memory) || lacks(Controller::Cpu) || lacks(Controller::Cpuset) {
        return;
    }
    let scratch = Scratch::new("update", r#"{"memory":{"limit":104857600}}"#);
    let update = |text: &str| scratch.get().update(&resources(text)).unwrap();
    let memory = || scratch.file_of("memory.limit_in_bytes", "memory.max");
    assert_eq!(memory(), "104857600");
    let swap = ["memory.memsw.limit_in_bytes", "memory.swap.max"]
        .iter()
        .any(|file| scratch.has(file));
    for (limit, both) in [
        (52_428_800, 52_428_800),
        (209_715_200, 314_572_800),
        (104_857_600, 157_286_400),
    ] {
        if swap {
            let text = format!(r#"{{"memory":{{"limit":{limit},"swap":{both}}}}}"#);
            assert_eq!(update(&text), [], "{text}");
            let expected = if scratch.has("memory.swap.max") {
                both - limit
            } else {
                both
            };
            assert_eq!(
                scratch.file_of("memory.memsw.limit_in_bytes", "memory.swap.max"),
                expected.to_string()
            );
        } else {
            assert_eq!(update(&format!(r#"{{"memory":{{"limit":{limit}}}}}"#)), []);
        }
        assert_eq!(memory(), limit.to_string());
    }
    assert_eq!(update(r#"{"memory":{"reservation":20971520}}"#), []);
    assert_eq!(
        scratch.file_of("memory.soft_limit_in_bytes", "memory.low"),
        "20971520"
    );
    assert_eq!(update(r#"{"memory":{"limit":-1}}"#), []);
    let stats = scratch.get().stats().memory.unwrap();
    assert_eq!((stats.limit, stats.swap_limit), (None, None));

    assert_eq!(update(r#"{"cpu":{"shares":2048,"cpus":"0","mems":"0"}}"#), []);
    assert_eq!(scratch.file("cpuset.cpus"), "0");
    if scratch.has("cpu.weight") {
        assert_eq!(scratch.file("cpu.weight"), "174");
    } else {
        assert_eq!(scratch.file("cpu.shares"), "2048");
    }
    // Only a part is given; the burst must stay below the quota at every step.
    for (text, quota, period) in [
        (r#"{"cpu":{"quota":20000,"period":50000}}"#, "20000", "50000"),
        (r#"{"cpu":{"period":40000}}"#, "20000", "40000"),
        (r#"{"cpu":{"quota":30000}}"#, "30000", "40000"),
        (r#"{"cpu":{"quota":80000,"burst":60000}}"#, "80000", "40000"),
        (r#"{"cpu":{"quota":2000,"burst":1000}}"#, "2000", "40000"),
        (r#"{"cpu":{"quota":-1}}"#, "-1", "40000"),
    ] {
        assert_eq!(update(text), [], "{text}");
        if scratch.has("cpu.max") {
            assert_eq!(
                scratch.file("cpu.max"),
                format!("{} {period}", quota.replace("-1", "max"))
            );
        } else {
            assert_eq!(
                [
                    scratch.file("cpu.cfs_quota_us"),
                    scratch.file("cpu.cfs_period_us")
                ],
                [quota, period]
            );
        }
    }
    let refused = scratch
        .get()
        .update(&resources(r#"{"cpu":{"cpus":"4000"}}"#))
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(
        refused.report().message.contains("cpu.cpus"),
        "{}",
        refused.report().message
    );
}
