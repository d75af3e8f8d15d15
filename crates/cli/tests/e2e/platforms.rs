//! Images of several platforms: built together, pushed as an index, pulled one by one and pushed whole again.

use std::collections::BTreeSet;
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
fn a_name_means_the_index_it_was_built_with() {
    let (Some(daemon), registry) = (daemon(), Registry::start()) else {
        return;
    };
    let (app, old, single) = (
        registry.name("app:1"),
        registry.name("app:old"),
        registry.name("app:single"),
    );
    build(&daemon, COPIED, &["-t", &app]).ok();
    daemon.vessel(&["tag", &app, &old]).ok();
    let id = daemon
        .vessel(&["inspect", "--type", "image", "-f", "{{.Id}}", &app])
        .ok();
    daemon.vessel(&["tag", &id, &single]).ok();
    // The other platform has no name, and is in use.
    daemon.vessel(&["image", "prune", "-f"]).ok();
    // Names stay with what they were given to.
    build(&daemon, &format!("{COPIED}LABEL a=b\n"), &["-t", &app]).ok();
    for name in [&app, &old, &single] {
        daemon.vessel(&["push", name]).ok();
    }
    assert_eq!(entries(&daemon, &app).len(), 2);
    assert_eq!(entries(&daemon, &old).len(), 2);
    assert_ne!(entries(&daemon, &app), entries(&daemon, &old));
    assert!(entries(&daemon, &single).is_empty());
    // A part that is gone is no reason to push the other in the place of both.
    for image in images_of(&daemon, "arm64") {
        daemon.vessel(&["rmi", "-f", &image]).ok();
    }
    let said = daemon.vessel(&["push", &app]);
    assert!(said.fails(1).contains("was built for 2 platforms"));
}

/// The IDs of images for an architecture.
fn images_of(daemon: &Daemon, architecture: &str) -> BTreeSet<String> {
    let ids = daemon.vessel(&["images", "-aq", "--no-trunc"]).ok();
    let format = "{{.Architecture}}";
    let is_for = |id: &&str| {
        let said = daemon.vessel(&["inspect", "--type", "image", "-f", format, id]);
        said.ok() == architecture
    };
    ids.lines().filter(is_for).map(str::to_owned).collect()
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
