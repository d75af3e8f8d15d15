//! The devices controller, and its eBPF program on v2.

use crate::harness::{Scratch, resources};
use crate::helper::Actor;

#[test]
fn devices_are_allowed_and_denied() {
    let mut rules = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
    rules.allow_default_devices();
    rules.devices.push(
        serde_json::from_str(r#"{"allow":false,"type":"c","major":1,"minor":5,"access":"rw"}"#).unwrap(),
    );
    let scratch = Scratch::new("devices", &serde_json::to_string(&rules).unwrap());
    let denied = libc::EPERM.to_string();
    let mut null = Actor::within(&scratch, "open /dev/null");
    let mut zero = Actor::within(&scratch, "open /dev/zero");
    let mut kmsg = Actor::within(&scratch, "open /dev/kmsg");
    assert_eq!(
        [null.ask(), zero.ask(), kmsg.ask()],
        ["opened", denied.as_str(), denied.as_str()]
    );
    let node = std::env::temp_dir().join(format!("vessel-test-node-{}", std::process::id()));
    let mut mknod = Actor::within(&scratch, &format!("mknod {}", node.display()));
    // Making nodes is allowed in general, opening them is not.
    assert_eq!(mknod.ask(), "0");
    std::fs::remove_file(&node).unwrap();
    // While it runs: /dev/zero comes back, making nodes goes.
    let update = r#"{"devices":[{"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
        {"allow":true,"type":"c","major":1,"minor":5,"access":"rw"}]}"#;
    assert_eq!(scratch.get().update(&resources(update)).unwrap(), []);
    assert_eq!(
        [null.ask(), zero.ask(), kmsg.ask()],
        ["opened", "opened", denied.as_str()]
    );
    assert_eq!(mknod.ask(), denied);
    // Everything, as in a privileged container; an update of something else changes nothing.
    let all = r#"{"devices":[{"allow":true,"access":"rwm"}]}"#;
    assert_eq!(scratch.get().update(&resources(all)).unwrap(), []);
    assert_eq!(
        scratch
            .get()
            .update(&resources(r#"{"pids":{"limit":1000}}"#))
            .unwrap(),
        []
    );
    assert_eq!([null.ask(), zero.ask(), mknod.ask()], ["opened", "opened", "0"]);
    std::fs::remove_file(&node).unwrap();
    let nothing = r#"{"devices":[{"allow":false}]}"#;
    assert_eq!(scratch.get().update(&resources(nothing)).unwrap(), []);
    assert_eq!(
        [null.ask(), zero.ask(), mknod.ask()],
        [denied.as_str(), denied.as_str(), denied.as_str()]
    );
}
