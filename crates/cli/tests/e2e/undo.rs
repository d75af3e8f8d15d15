//! What was removed comes back, within bounds.

use serde_json::Value;

use crate::harness::{Daemon, daemon_with_bin};

fn bin(daemon: &Daemon) -> Vec<String> {
    let text = daemon
        .vessel(&["system", "bin", "--format", "{{.Kind}} {{.Name}}"])
        .ok();
    text.lines().map(str::to_owned).collect()
}

fn kept(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.root().join("removed")).unwrap().count()
}

fn unknown(daemon: &Daemon) -> Vec<Value> {
    let text = daemon.vessel(&["system", "explain", "--format", "json"]).ok();
    let value: Value = serde_json::from_str(&text).unwrap();
    let items = value["Items"].as_array().unwrap().iter();
    items.filter(|item| item["Known"] == false).cloned().collect()
}

#[test]
fn a_container_comes_back_with_all_it_had() {
    let Some(mut daemon) = daemon_with_bin() else {
        return;
    };
    let script = "echo logged; echo kept > /file; echo mine > /data/file";
    daemon
        .vessel(&[
            "run", "--name", "web", "-e", "A=b", "-v", "/data", "busybox", "sh", "-c", script,
        ])
        .ok();
    let id = daemon.inspect("web", "{{.Id}}");
    let code = daemon.inspect("web", "{{.State.ExitCode}} {{.Config.Env}} {{.Mounts}}");
    let volume = daemon.inspect("web", "{{range .Mounts}}{{.Name}}{{end}}");
    assert_eq!(bin(&daemon), Vec::<String>::new());
    daemon.vessel(&["rm", "-v", "web"]).ok();
    daemon.vessel(&["inspect", "web"]).fails(1);
    assert_eq!(
        bin(&daemon),
        [format!("volume {volume}"), "container web".to_owned()]
    );
    assert!(!daemon.root().join("containers").join(&id).exists());
    assert_eq!(unknown(&daemon), Vec::<Value>::new());
    let df = daemon.vessel(&["system", "df"]).ok();
    assert!(df.lines().any(|line| line.starts_with("Bin ")), "{df}");

    // It outlives a crash.
    daemon.crash();
    daemon.start();
    let said = daemon.vessel(&["undo"]).ok();
    assert_eq!(said, format!("volume {volume}\ncontainer web"));
    assert_eq!(daemon.inspect("web", "{{.Id}}"), id);
    assert_eq!(
        daemon.inspect("web", "{{.State.ExitCode}} {{.Config.Env}} {{.Mounts}}"),
        code
    );
    assert_eq!(daemon.vessel(&["logs", "web"]).ok(), "logged");
    let copy = daemon.vessel(&["cp", "web:/file", "-"]);
    assert!(copy.out.contains("kept"), "{copy:?}");
    assert_eq!(kept(&daemon), 0);
    // Its anonymous volume is its own again, with what was in it.
    daemon.vessel(&["start", "web"]).ok();
    daemon.vessel(&["wait", "web"]).ok();
    let data = daemon.root().join("volumes").join(&volume).join("_data/file");
    assert_eq!(std::fs::read_to_string(&data).unwrap(), "mine\n");
    daemon.vessel(&["rm", "-v", "web"]).ok();
    assert!(!data.exists());
    assert!(
        daemon
            .vessel(&["undo", "nothing"])
            .fails(1)
            .contains("system bin")
    );
    let emptied = daemon.vessel(&["system", "bin", "empty", "-f"]).ok();
    assert!(emptied.starts_with("Removed: 2\n"), "{emptied}");
    assert_eq!(kept(&daemon), 0);
    assert!(daemon.vessel(&["undo"]).fails(1).contains("the bin is empty"));
}

/// What only the bin needs is its own, not the images'; and no reason to fetch it again.
#[test]
fn layers_in_the_bin_are_not_those_of_images() {
    let Some(daemon) = daemon_with_bin() else { return };
    let size = |kind: &str| {
        let format = format!("{{{{if eq .Type \"{kind}\"}}}}{{{{.Size}}}}{{{{end}}}}");
        daemon
            .vessel(&["system", "df", "--format", &format])
            .ok()
            .trim()
            .to_owned()
    };
    assert_ne!(size("Images"), "0B");
    let before = size("Images");
    daemon.vessel(&["rmi", "busybox"]).ok();
    assert_eq!(size("Images"), "0B");
    daemon.vessel(&["undo"]).ok();
    assert_eq!(size("Images"), before);
}

#[test]
fn one_command_is_undone_as_one_and_what_is_in_the_way_is_said() {
    let Some(daemon) = daemon_with_bin() else { return };
    daemon
        .vessel(&["network", "create", "--subnet", &daemon.further_subnet(0), "back"])
        .ok();
    let network = daemon
        .vessel(&["network", "inspect", "-f", "{{.Id}} {{.IPAM.Config}}", "back"])
        .ok();
    for name in ["one", "two", "three"] {
        daemon
            .vessel(&["create", "--name", name, "--network", "back", "busybox", "true"])
            .ok();
    }
    daemon.vessel(&["rm", "three"]).ok();
    daemon.vessel(&["rm", "one", "two"]).ok();
    daemon
        .vessel(&["create", "--name", "two", "busybox", "true"])
        .ok();
    // What can come back does, and the rest stays.
    let said = daemon.vessel(&["undo"]);
    assert_eq!((said.code, said.out.as_str()), (1, "container one\n"), "{said:?}");
    assert!(
        said.err.contains("another container is called two: rename it"),
        "{said:?}"
    );
    daemon.vessel(&["rename", "two", "other"]).ok();
    assert_eq!(daemon.vessel(&["undo", "two"]).ok(), "container two");
    assert_eq!(daemon.vessel(&["undo"]).ok(), "container three");

    daemon.vessel(&["rm", "one", "two", "three", "other"]).ok();
    daemon.vessel(&["network", "rm", "back"]).ok();
    assert_eq!(daemon.vessel(&["undo", "back"]).ok(), "network back");
    let back = daemon
        .vessel(&["network", "inspect", "-f", "{{.Id}} {{.IPAM.Config}}", "back"])
        .ok();
    assert_eq!(back, network);
    assert_eq!(daemon.vessel(&["undo"]).ok().lines().count(), 4);
    daemon.vessel(&["start", "-a", "one"]).ok();
    daemon.vessel(&["rm", "one", "two", "three", "other"]).ok();
    daemon.vessel(&["system", "bin", "empty", "-f"]).ok();
}

#[test]
fn images_and_volumes_come_back() {
    let Some(daemon) = daemon_with_bin() else { return };
    let layers = || std::fs::read_dir(daemon.root().join("layers")).unwrap().count();
    let before = layers();
    let id = daemon.vessel(&["images", "-q", "--no-trunc", "busybox"]).ok();
    daemon.vessel(&["tag", "busybox", "other:1"]).ok();
    daemon.vessel(&["rmi", "other:1"]).ok();
    assert_eq!(daemon.vessel(&["undo"]).ok(), "image busybox:latest");
    let removed = daemon.vessel(&["rmi", "busybox", "other:1"]).ok();
    assert!(removed.contains("Deleted: sha256:"), "{removed}");
    assert_eq!(daemon.vessel(&["images", "-q"]).ok(), "");
    assert_eq!(layers(), before);
    assert_eq!(unknown(&daemon), Vec::<Value>::new());
    daemon.vessel(&["undo"]).ok();
    assert_eq!(daemon.vessel(&["images", "-q", "--no-trunc", "busybox"]).ok(), id);
    daemon.vessel(&["run", "--rm", "other:1", "true"]).ok();

    daemon
        .vessel(&["volume", "create", "--label", "a=b", "data"])
        .ok();
    let file = daemon.root().join("volumes/data/_data/file");
    std::fs::write(&file, vec![1; 5_000_000]).unwrap();
    daemon.vessel(&["volume", "rm", "data"]).ok();
    assert!(!file.exists());
    daemon.vessel(&["volume", "create", "data"]).ok();
    assert!(
        daemon
            .vessel(&["undo", "data"])
            .fails(1)
            .contains("another volume is called data")
    );
    // The newer one first, which says what it is.
    daemon.vessel(&["volume", "rm", "data"]).ok();
    daemon.vessel(&["undo"]).ok();
    assert!(!file.exists());
    daemon.vessel(&["volume", "rm", "data"]).ok();
    daemon.vessel(&["volume", "prune", "-f"]).ok();
    let items = bin(&daemon);
    assert_eq!(items, ["volume data", "volume data"]);
    let list: Vec<String> = daemon
        .vessel(&["system", "bin", "--format", "{{.Command}} {{.Size}}"])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    let large = list
        .iter()
        .find(|line| line.ends_with("5MB") || line.ends_with("5.001MB") || line.contains("5.0"));
    let command = large
        .unwrap_or_else(|| panic!("{list:?}"))
        .split(' ')
        .next()
        .unwrap();
    daemon.vessel(&["undo", command]).ok();
    assert_eq!(file.metadata().unwrap().len(), 5_000_000);
    assert_eq!(
        daemon
            .vessel(&["volume", "inspect", "-f", "{{.Labels}}", "data"])
            .ok(),
        "map[a:b]"
    );
    daemon.vessel(&["volume", "rm", "data"]).ok();
    daemon.vessel(&["rmi", "busybox", "other:1"]).ok();
    daemon.vessel(&["system", "bin", "empty", "-f"]).ok();
    daemon.until("the layers are gone", |_| layers() < before);
    assert_eq!(unknown(&daemon), Vec::<Value>::new());
}

#[test]
fn the_bin_has_bounds_and_can_be_off() {
    let Some(mut daemon) = daemon_with_bin() else {
        return;
    };
    daemon.stop();
    daemon.more.extend(["--bin-age".into(), "8s".into()]);
    daemon.start();
    daemon
        .vessel(&["create", "--name", "web", "busybox", "true"])
        .ok();
    daemon.vessel(&["rm", "web"]).ok();
    assert_eq!(kept(&daemon), 1);
    daemon.until("it is too old", |daemon| kept(daemon) == 0);
    assert_eq!(bin(&daemon), Vec::<String>::new());
    daemon
        .vessel(&["create", "--name", "web", "busybox", "true"])
        .ok();
    // What removes itself is not kept.
    daemon.vessel(&["run", "--rm", "busybox", "true"]).ok();
    let mut running = daemon
        .command(&["run", "--rm", "--name", "self", "busybox", "sleep", "1000"])
        .spawn()
        .unwrap();
    daemon.until("it runs", |daemon| {
        daemon.vessel(&["exec", "self", "true"]).code == 0
    });
    daemon.vessel(&["rm", "-f", "self"]).ok();
    running.wait().unwrap();
    assert_eq!(bin(&daemon), Vec::<String>::new());
    daemon.stop();
    daemon.more = vec!["--bin".into(), "off".into()];
    daemon.start();
    daemon.vessel(&["rm", "web"]).ok();
    daemon.vessel(&["volume", "create", "data"]).ok();
    daemon.vessel(&["volume", "rm", "data"]).ok();
    assert_eq!(kept(&daemon), 0);
    assert!(daemon.vessel(&["undo"]).fails(1).contains("without a bin"));
}

/// A daemon that is killed while things are removed and brought back leaves each of them in one of both places.
#[test]
fn nothing_is_lost_by_a_crash() {
    let Some(mut daemon) = daemon_with_bin() else {
        return;
    };
    let names: Vec<String> = (0..12).map(|number| format!("c{number}")).collect();
    for name in &names {
        let script = format!("echo {name} > /file");
        daemon
            .vessel(&["run", "--name", name, "busybox", "sh", "-c", &script])
            .ok();
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    for round in 0..6u64 {
        let command = if round % 2 == 0 {
            [&["rm"][..], &all].concat()
        } else {
            vec!["undo"]
        };
        let mut client = daemon
            .command(&command)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5 + round * 7));
        daemon.crash();
        client.wait().unwrap();
        daemon.start();
        let listed = daemon.vessel(&["ps", "-a", "--format", "{{.Names}}"]).ok();
        let mut there: Vec<String> = listed.lines().map(str::to_owned).collect();
        there.extend(
            bin(&daemon)
                .iter()
                .filter_map(|line| Some(line.strip_prefix("container ")?.to_owned())),
        );
        there.sort();
        let mut wanted = names.clone();
        wanted.sort();
        assert_eq!(there, wanted, "round {round}\n{}", daemon.log());
        assert_eq!(unknown(&daemon), Vec::<Value>::new());
    }
    // Whoever is not there comes back.
    while daemon.vessel(&["undo"]).code == 0 {}
    for name in &names {
        let copy = daemon.vessel(&["cp", &format!("{name}:/file"), "-"]);
        assert!(copy.out.contains(&format!("{name}\n")), "{copy:?}");
    }
    daemon.vessel(&[&["rm"][..], &all].concat()).ok();
    daemon.vessel(&["system", "bin", "empty", "-f"]).ok();
    assert_eq!(kept(&daemon), 0);
}
