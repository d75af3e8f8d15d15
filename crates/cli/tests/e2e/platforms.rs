//! Images of several platforms: built together, pushed as an index, pulled one by one and pushed whole again.

use std::fs;

use crate::build_caches::Registry;
use crate::harness::{Daemon, Said, daemon};

fn build(daemon: &Daemon, dockerfile: &str, args: &[&str]) -> Said {
    let dir = daemon.dir().join("context");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("file"), "one\n").unwrap();
    let mut all = vec![
        "build",
        "--progress",
        "plain",
        "--platform",
        "linux/amd64,linux/arm64",
    ];
    all.extend(args);
    all.push(dir.to_str().unwrap());
    daemon.vessel(&all)
}

/// The platforms and digests of an index at a registry.
fn entries(daemon: &Daemon, name: &str) -> Vec<(String, String)> {
    let raw = daemon.vessel(&["manifest", "inspect", name]).ok();
    let index: serde_json::Value = serde_json::from_str(&raw).unwrap();
    let entries = index["manifests"].as_array().cloned().unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|entry| (text(&entry["platform"]["architecture"]), text(&entry["digest"])))
        .collect()
}

const COPIED: &str = "FROM scratch\nARG TARGETARCH\nCOPY file /$TARGETARCH\n";

#[test]
fn several_platforms_are_one_name() {
    let (Some(one), Some(two), registry) = (daemon(), daemon(), Registry::start()) else {
        return;
    };
    let (direct, later) = (registry.name("direct:1"), registry.name("later:1"));
    let metadata = one.dir().join("metadata");
    let said = build(
        &one,
        COPIED,
        &[
            "-t",
            &direct,
            "--push",
            "--annotation",
            "index:k=v",
            "--metadata-file",
            metadata.to_str().unwrap(),
        ],
    );
    assert_eq!(said.code, 0, "{said:?}");
    let built = entries(&one, &direct);
    let names: Vec<&str> = built.iter().map(|(platform, _)| platform.as_str()).collect();
    assert_eq!(names, ["amd64", "arm64"]);
    assert!(
        one.vessel(&["manifest", "inspect", &direct])
            .ok()
            .contains("\"k\": \"v\"")
    );
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(metadata).unwrap()).unwrap();
    let digest = &metadata["containerimage.digest"];
    assert_eq!(
        *digest, metadata["containerimage.descriptor"]["digest"],
        "{metadata}"
    );
    // The same from the store.
    build(&one, COPIED, &["-t", &later]).ok();
    one.vessel(&["push", &later]).ok();
    assert_eq!(entries(&one, &later).len(), 2);

    let again = registry.name("again:1");
    two.vessel(&["pull", "-q", &direct]).ok();
    two.vessel(&["tag", &direct, &again]).ok();
    let said = two.vessel(&["push", &again]).ok();
    assert!(said.contains("Only this platform's image was pushed"), "{said}");
    assert!(entries(&two, &again).is_empty());
    two.vessel(&["pull", "-q", "--platform", "linux/arm64", &direct])
        .ok();
    two.vessel(&["tag", &direct, &again]).ok();
    let said = two.vessel(&["push", &again]).ok();
    assert!(!said.contains("Only this platform"), "{said}");
    assert_eq!(entries(&two, &again), built);
}

#[test]
fn programs_of_another_platform_are_refused_or_run() {
    let Some(daemon) = daemon() else { return };
    let said = build(&daemon, "FROM scratch\nCOPY file /\nRUN [\"/file\"]\n", &[]);
    assert_eq!(said.code, 1, "{said:?}");
    let refused = said
        .err
        .contains("programs for linux/arm64 do not run on this host");
    // The other platform's step may fail first, and where arm64 is emulated it is no program there either.
    assert!(refused || said.err.contains("/file"), "{said:?}");
}
