//! Known escapes, each tried against this runtime. What is no business of a runtime is not here: CVE-2019-14271 (`cp`
//! loading libraries of the container) belongs to the engine's `cp`.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::bundle::{Bundle, Outcome};

pub const TESTS: &[(&str, fn())] = &[
    ("the_executable_cannot_be_overwritten", executable),
    (
        "the_attack_on_the_executable_works_on_an_unprotected_runtime",
        executable_unprotected,
    ),
    ("mount_destinations_do_not_race_out_of_the_root", destinations),
    ("release_agent_is_out_of_reach", release_agent),
    ("proc_and_sys_must_be_directories", proc_is_a_link),
    ("nothing_is_mounted_into_proc_through_a_link", fake_proc),
    ("the_working_directory_is_inside", directory),
    ("the_working_directory_is_inside_for_exec", directory_exec),
    ("descriptors_do_not_leak", descriptors),
    ("the_program_is_inside", program),
    ("the_program_is_inside_for_exec", program_exec),
    ("what_is_looked_up_for_the_program_is_inside", lookups),
    ("only_descriptors_that_were_passed_are_preserved", preserved),
    ("masks_do_not_trust_the_containers_null", masks),
    ("masks_do_not_give_away_the_hosts_null", masks_of_the_host),
    ("streams_do_not_give_away_the_hosts_null", streams),
    ("the_console_is_not_bound_over_a_link", console),
    ("nothing_is_changed_in_somebody_elses_dev", others_dev),
];

fn contained(outcome: &Outcome) {
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(
        outcome.said.contains("contained") && !outcome.said.contains("ESCAPED"),
        "{outcome:?}"
    );
}

fn refused(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.code, 125, "{outcome:?}");
    assert!(
        outcome.said.contains(words) && !outcome.said.contains("ESCAPED"),
        "{outcome:?}"
    );
}

/// CVE-2019-5736.
fn attack_executable(flags: &[&str]) -> (Outcome, bool) {
    let mut bundle = Bundle::new(&["nothing"]);
    bundle.script("entry", "#!/proc/self/exe\n");
    bundle.config["process"]["args"] = json!(["/entry"]);
    // Detached: a runtime that waits is busy itself, and so cannot be overwritten.
    let before = std::fs::read(bundle.path().join("runtime")).unwrap();
    let outcome = bundle.call("run-detached", flags);
    let mut said = String::new();
    for _ in 0..100 {
        said = std::fs::read_to_string(bundle.path().join("said")).unwrap();
        if said.contains("contained") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let changed = std::fs::read(bundle.path().join("runtime")).unwrap() != before;
    if changed {
        std::fs::remove_file(bundle.path().join("runtime")).unwrap();
        std::fs::write(bundle.path().join("runtime"), before).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bundle.path().join("runtime"), executable).unwrap();
    }
    (Outcome { said, ..outcome }, changed)
}

fn executable() {
    let (outcome, changed) = attack_executable(&[]);
    assert!(!changed);
    contained(&outcome);
    assert!(outcome.said.contains("refused"), "{outcome:?}");
}

fn executable_unprotected() {
    let (outcome, changed) = attack_executable(&["--unprotected"]);
    assert!(
        changed && outcome.said.contains("ESCAPED"),
        "the attack itself is broken: {outcome:?}"
    );
}

/// CVE-2021-30465: a directory of a shared volume turns into a link to the host and back while mounts are made below it.
fn destinations() {
    let mut bundle = Bundle::new(&["mounts"]);
    let (volume, victim) = (bundle.path().join("volume"), bundle.path().join("victim"));
    std::fs::create_dir_all(volume.join("a")).unwrap();
    std::fs::create_dir_all(&victim).unwrap();
    symlink(&victim, volume.join("b")).unwrap();
    // Where the link leads in the container.
    std::fs::create_dir_all(bundle.inside(victim.strip_prefix("/").unwrap().to_str().unwrap())).unwrap();
    bundle.mount(json!({ "destination": "/vol", "type": "bind", "source": volume, "options": ["rbind"] }));
    for name in ["x", "y", "z"] {
        bundle.mount(json!({
            "destination": format!("/vol/a/{name}"), "type": "tmpfs", "source": "tmpfs", "options": ["size=7780k"]
        }));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (stop, volume) = (Arc::clone(&stop), volume.clone());
        std::thread::spawn(move || {
            let dir = std::fs::File::open(volume).unwrap();
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            // It ends by itself when a failed test takes the directory away.
            while !stop.load(Ordering::Relaxed)
                && rustix::fs::renameat_with(&dir, "a", &dir, "b", flags).is_ok()
            {}
        })
    };
    let (mut through_directory, mut through_link) = (0, 0);
    for _ in 0..40 {
        let outcome = bundle.run();
        assert!(
            std::fs::read_dir(&victim).unwrap().next().is_none(),
            "a mount point was made on the host"
        );
        if outcome.code == 0 {
            let mounts = outcome.said.lines().filter(|line| line.contains("size=7780k"));
            let below_volume = mounts.clone().filter(|line| line.contains(" /vol/")).count();
            // All three are in the container, wherever its own root has the link lead.
            assert_eq!(mounts.count(), 3, "a mount went astray: {outcome:?}");
            through_directory += below_volume;
            through_link += 3 - below_volume;
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert!(
        through_directory > 0 && through_link > 0,
        "the race was not hit: {through_directory} {through_link}"
    );
}

/// CVE-2022-0492.
fn release_agent() {
    let mut bundle = Bundle::new(&["release-agent"]);
    let host = vessel_runtime::seccomp::docker::Host::current(vessel_runtime::capabilities::CapSet::DEFAULT);
    let profile = vessel_runtime::seccomp::default_profile(&host);
    bundle.config["linux"]["seccomp"] = serde_json::to_value(profile).unwrap();
    contained(&bundle.run());
}

/// CVE-2019-19921, CVE-2023-27561.
fn proc_is_a_link() {
    for (name, kind) in [("proc", "proc"), ("sys", "sysfs")] {
        let mut bundle = Bundle::new(&["nothing"]);
        std::fs::remove_dir(bundle.inside(name)).unwrap();
        std::fs::create_dir_all(bundle.inside("vol/evil")).unwrap();
        symlink("/vol/evil", bundle.inside(name)).unwrap();
        bundle.mounts(json!([{ "destination": format!("/{name}"), "type": kind, "source": kind }]));
        refused(&bundle.run(), "must be mounted on ordinary directory");
        assert_eq!(bundle.leftovers(), Vec::<String>::new());
    }
}

/// CVE-2019-16884, CVE-2025-52881: a volume that the image's link leads into /proc takes what is written there.
fn fake_proc() {
    let mut bundle = Bundle::new(&["sysctl"]);
    let fake = bundle.path().join("fake");
    std::fs::create_dir_all(fake.join("net/ipv4")).unwrap();
    std::fs::write(fake.join("net/ipv4/ip_forward"), "none").unwrap();
    symlink("/proc/sys", bundle.inside("data")).unwrap();
    bundle.mount(json!({ "destination": "/data", "type": "bind", "source": fake, "options": ["rbind"] }));
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    refused(&bundle.run(), "inside /proc");
    // And a tmpfs likewise.
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    bundle.mount(json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs" }));
    refused(&bundle.run(), "inside /proc");
    // Without them the parameter is set.
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    let outcome = bundle.run();
    contained(&outcome);
    assert!(outcome.said.contains("forward=1"), "{outcome:?}");
    assert_eq!(
        std::fs::read_to_string(fake.join("net/ipv4/ip_forward")).unwrap(),
        "none"
    );
}

/// Descriptors of the host's root, as a careless caller or runtime would have them.
fn leak(bundle: &mut Bundle) {
    for _ in 0..8 {
        let root = std::fs::File::open("/").unwrap();
        bundle.leaked.push(root.into());
    }
}

/// CVE-2024-21626: a working directory reached through a descriptor.
fn directory() {
    for link in [false, true] {
        for fd in 3..20 {
            let mut bundle = Bundle::new(&["directory"]);
            leak(&mut bundle);
            let target = format!("/proc/self/fd/{fd}");
            if link {
                symlink(&target, bundle.inside("here")).unwrap();
                bundle.config["process"]["cwd"] = json!("/here");
            } else {
                bundle.config["process"]["cwd"] = json!(target);
            }
            refused(&bundle.run(), "process.cwd");
        }
    }
}

fn directory_exec() {
    let mut bundle = Bundle::new(&["sleep"]);
    leak(&mut bundle);
    assert_eq!(bundle.call("run-detached", &[]).code, 0);
    for fd in 3..20 {
        for cwd in [format!("/proc/self/fd/{fd}"), "/here".to_owned()] {
            let _ = std::fs::remove_file(bundle.inside("here"));
            symlink(format!("/proc/self/fd/{fd}"), bundle.inside("here")).unwrap();
            let mut process = bundle.config["process"].clone();
            process["args"] = json!(["/program", "inside", "directory"]);
            process["cwd"] = json!(cwd);
            std::fs::write(bundle.path().join("process.json"), process.to_string()).unwrap();
            let outcome = bundle.call("exec", &[]);
            assert!(
                outcome.code == 125 && !outcome.said.contains("ESCAPED"),
                "{cwd}: {outcome:?}"
            );
        }
    }
}

/// Paths to `target` of the host through each descriptor the runtime could have open.
fn ways_out(target: &Path) -> Vec<String> {
    let up = "../".repeat(16);
    (3..64)
        .map(|fd| {
            format!(
                "/proc/self/fd/{fd}/{up}{}",
                target.strip_prefix("/").unwrap().display()
            )
        })
        .collect()
}

/// The ways a program can be named that lead to `target`: its path, a link, an interpreter, the search path.
fn programs(bundle: &Bundle, target: &Path) -> Vec<serde_json::Value> {
    let ways = ways_out(target);
    let mut programs = Vec::new();
    for (number, way) in ways.iter().enumerate() {
        programs.push(json!({ "args": [way, "inside", "outside"] }));
        symlink(way, bundle.inside(&format!("link{number}"))).unwrap();
        programs.push(json!({ "args": [format!("/link{number}"), "inside", "outside"] }));
        bundle.script(&format!("script{number}"), &format!("#!{way} inside\n"));
        programs.push(json!({ "args": [format!("/script{number}")] }));
    }
    let directories: Vec<&str> = ways
        .iter()
        .filter_map(|way| Some(way.rsplit_once('/')?.0))
        .collect();
    let name = target.file_name().unwrap().to_str().unwrap();
    programs.push(
        json!({ "args": [name, "inside", "outside"], "env": [format!("PATH={}", directories.join(":"))] }),
    );
    programs
}

fn with(process: &serde_json::Value, changes: &serde_json::Value) -> serde_json::Value {
    let mut process = process.clone();
    process
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    process
}

/// CVE-2024-21626: the program's path runs through a descriptor.
fn program() {
    for careless in [false, true] {
        let mut bundle = Bundle::new(&["nothing"]);
        if careless {
            leak(&mut bundle);
        }
        let process = bundle.config["process"].clone();
        for program in programs(&bundle, &bundle.path().join("runtime")) {
            bundle.config["process"] = with(&process, &program);
            refused(&bundle.run(), "exec: ");
        }
    }
}

fn program_exec() {
    let mut bundle = Bundle::new(&["sleep"]);
    leak(&mut bundle);
    assert_eq!(bundle.call("run-detached", &[]).code, 0);
    for program in programs(&bundle, &bundle.path().join("runtime")) {
        let process = with(&bundle.config["process"], &program);
        std::fs::write(bundle.path().join("process.json"), process.to_string()).unwrap();
        refused(&bundle.call("exec", &[]), "exec: ");
    }
}

/// /dev/null and /etc/passwd of the container are links: neither is opened on the host.
fn lookups() {
    use rustix::fs::inotify;
    let mut bundle = Bundle::new(&["sleep"]);
    leak(&mut bundle);
    let mounts = bundle.config["mounts"].as_array().unwrap().clone();
    let kept = mounts.into_iter().filter(|mount| mount["destination"] == "/proc");
    bundle.mounts(kept.collect());
    let victim = bundle.path().join("victim");
    std::fs::write(&victim, "root:x:0:0::/ESCAPED:/bin/sh\n").unwrap();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, &victim, inotify::WatchFlags::OPEN).unwrap();
    let opened = || rustix::io::read(&watch, &mut [0_u8; 4096][..]).is_ok();
    std::fs::File::open(&victim).unwrap();
    assert!(opened() && !opened());
    assert_eq!(bundle.call("run-detached", &[]).code, 0);
    for way in ways_out(&victim) {
        for name in ["dev/null", "etc/passwd"] {
            let _ = std::fs::remove_file(bundle.inside(name));
            symlink(&way, bundle.inside(name)).unwrap();
        }
        let changes = json!({ "args": ["/program", "inside", "home"], "env": [] });
        let process = with(&bundle.config["process"], &changes);
        std::fs::write(bundle.path().join("process.json"), process.to_string()).unwrap();
        contained(&bundle.call("exec", &[]));
        assert!(!opened(), "{way}");
    }
}

fn preserved() {
    let mut bundle = Bundle::new(&["open", "3", "4"]);
    for _ in 0..2 {
        bundle
            .passed
            .push(std::fs::File::open("/dev/zero").unwrap().into());
    }
    contained(&bundle.call("run", &["--preserve-fds=2"]));
    bundle.config["process"]["args"] = json!(["/program", "inside", "open"]);
    contained(&bundle.run());
    // The third is the runtime's own.
    let outcome = bundle.call("run", &["--preserve-fds=3"]);
    refused(&outcome, "descriptor 5 is to be preserved");
    refused(
        &bundle.call("run", &["--preserve-fds=4294967295"]),
        "descriptor 5 is to be preserved",
    );
    assert_eq!(bundle.leftovers(), Vec::<String>::new());
}

fn descriptors() {
    let mut bundle = Bundle::new(&["directory"]);
    leak(&mut bundle);
    contained(&bundle.run());
}

/// CVE-2025-31133: /dev/null of the container is a link to something precious.
fn masks() {
    let mut bundle = Bundle::new(&["masked", "/etc/secret"]);
    std::fs::write(bundle.inside("etc/secret"), "secret").unwrap();
    std::fs::write(bundle.inside("etc/precious"), "precious").unwrap();
    symlink("/etc/precious", bundle.inside("dev/null")).unwrap();
    let mounts = bundle.config["mounts"].as_array().unwrap().clone();
    bundle.mounts(
        mounts
            .into_iter()
            .filter(|mount| mount["destination"].as_str() == Some("/proc"))
            .collect(),
    );
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/secret"]);
    refused(&bundle.run(), "/dev/null");
}

fn masks_of_the_host() {
    let mut bundle = Bundle::new(&["masked", "/etc/secret", "/proc/timer_list"]);
    std::fs::write(bundle.inside("etc/secret"), "secret").unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/etc/secret", "/proc/timer_list"]);
    let caps = json!(["CAP_FOWNER", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]);
    bundle.config["process"]["capabilities"] =
        json!({ "bounding": caps, "effective": caps, "permitted": caps });
    contained(&bundle.run());
}

fn streams() {
    contained(&Bundle::new(&["streams"]).run());
}

/// CVE-2025-52565: the terminal is bound at /dev/console, which the image made a link.
fn console() {
    let mut bundle = Bundle::new(&["nothing"]);
    std::fs::write(bundle.inside("etc/precious"), "precious").unwrap();
    symlink("/etc/precious", bundle.inside("dev/console")).unwrap();
    bundle.config["process"]["terminal"] = json!(true);
    let mounts = bundle.config["mounts"].as_array().unwrap().clone();
    let kept = |mount: &serde_json::Value| {
        ["/proc", "/dev/pts"]
            .map(Some)
            .contains(&mount["destination"].as_str())
    };
    bundle.mounts(mounts.into_iter().filter(kept).collect());
    refused(&bundle.run(), "/dev/console");
    assert_eq!(
        std::fs::read_to_string(Path::new(&bundle.inside("etc/precious"))).unwrap(),
        "precious"
    );
}

/// `-v /dev:/dev`: what lies there is the host's.
fn others_dev() {
    use std::os::unix::fs::MetadataExt;
    for (destination, terminal, propagation) in [
        ("/dev", false, "rprivate"),
        ("//vol/.././dev/", true, "rprivate"),
        ("/dev", true, "rshared"),
    ] {
        let mut bundle = Bundle::new(&["nothing"]);
        let host = bundle.path().join("host-dev");
        for name in ["pts", "shm", "mqueue"] {
            std::fs::create_dir_all(host.join(name)).unwrap();
        }
        std::fs::write(host.join("ptmx"), "the host's").unwrap();
        let before = listing(&host);
        // Before those in it.
        let mut mounts = bundle.config["mounts"].as_array().unwrap().clone();
        let own = mounts
            .iter()
            .position(|mount| mount["destination"] == "/dev")
            .unwrap();
        mounts[own] = json!({
            "destination": destination, "type": "bind", "source": host, "options": ["rbind", propagation]
        });
        bundle.mounts(mounts.into());
        bundle.config["linux"]["devices"] =
            json!([{ "type": "c", "path": "/dev/fuse", "major": 10, "minor": 229 }]);
        bundle.config["process"]["terminal"] = json!(terminal);
        contained(&bundle.run());
        assert_eq!(listing(&host), before, "{destination}");
        // A console that is there is covered, for the container alone.
        std::fs::write(host.join("console"), "the host's").unwrap();
        let before = listing(&host);
        bundle.config["process"]["args"] = json!(["/program", "inside", "mounts"]);
        let outcome = bundle.run();
        let covered = outcome.said.lines().any(|line| line.contains(" /dev/console "));
        assert_eq!(covered, terminal && propagation == "rprivate", "{outcome:?}");
        assert_eq!(listing(&host), before, "{destination}");
    }

    fn listing(dir: &Path) -> Vec<(std::ffi::OsString, u32, u64)> {
        let mut found: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let stat = entry.metadata().unwrap();
                (entry.file_name(), stat.mode(), stat.ino())
            })
            .collect();
        found.sort();
        found
    }
}
