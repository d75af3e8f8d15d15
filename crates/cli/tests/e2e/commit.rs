//! Containers become images.

use crate::harness::daemon;

#[test]
fn what_a_container_changed_is_in_the_image() {
    let Some(daemon) = daemon() else { return };
    let script = "echo new > /new; ln /new /second; rm /etc/group; rm -r /home; mkdir /home; ln -s new /link; \
                  chown 5:6 /new; chmod 4711 /new; mkfifo /pipe; sleep 1000";
    daemon
        .vessel(&[
            "run", "-d", "--name", "source", "-e", "A=1", "busybox", "sh", "-c", script,
        ])
        .ok();
    daemon.until("it has written", |daemon| {
        daemon.vessel(&["exec", "source", "test", "-p", "/pipe"]).code == 0
    });
    let changes = [
        "ENV B=$A-2 PATH=$PATH:/x",
        "CMD [\"cat\", \"/link\"]",
        "LABEL k=v",
    ];
    let mut command = vec!["commit", "-m", "a remark", "-a", "somebody"];
    command.extend(changes.iter().flat_map(|change| ["-c", *change]));
    command.extend(["source", "result:1"]);
    let id = daemon.vessel(&command).ok();
    assert!(id.starts_with("sha256:"), "{id}");
    let state = ["inspect", "-f", "{{.State.Status}}", "source"];
    assert_eq!(daemon.vessel(&state).ok(), "running");

    assert_eq!(daemon.vessel(&["run", "--rm", "result:1"]).ok(), "new");
    let look =
        "stat -c '%a %u:%g %h' /new; stat -c %F /pipe; ls /home; test -e /etc/group || echo gone; echo $B";
    let seen = daemon.vessel(&["run", "--rm", "result:1", "sh", "-c", look]).ok();
    assert_eq!(seen, "4711 5:6 2\nfifo\ngone\n1-2");
    let form = "{{.Author}} {{.Comment}} {{.Parent}} {{len .RootFS.Layers}} {{.Config.Labels.k}}";
    let parent = daemon
        .vessel(&["inspect", "-f", "{{.Id}}", "--type", "image", "busybox"])
        .ok();
    assert_eq!(
        daemon
            .vessel(&["inspect", "-f", form, "--type", "image", "result:1"])
            .ok(),
        format!("somebody a remark {parent} 2 v")
    );
    let history = daemon
        .vessel(&[
            "history",
            "--no-trunc",
            "--format",
            "{{.ID}}|{{.CreatedBy}}|{{.Size}}|{{.Comment}}",
            "result:1",
        ])
        .ok();
    let first = history.lines().next().unwrap_or_default().to_owned();
    assert_eq!(first, format!("{id}|sh -c {script}|4B|a remark"));
    assert!(
        history
            .lines()
            .nth(1)
            .is_some_and(|line| line.starts_with(&parent)),
        "{history}"
    );

    // A save and load elsewhere does not change it.
    let archive = daemon.root().join("result.tar").display().to_string();
    daemon.vessel(&["save", "-o", &archive, "result:1"]).ok();
    daemon.vessel(&["rmi", "result:1"]).ok();
    daemon.vessel(&["load", "-i", &archive]).ok();
    assert_eq!(daemon.vessel(&["images", "-q", "--no-trunc", "result"]).ok(), id);
    assert_eq!(daemon.vessel(&["run", "--rm", "result:1"]).ok(), "new");
}

#[test]
fn a_container_that_changed_nothing_adds_no_layer() {
    let Some(daemon) = daemon() else { return };
    daemon.vessel(&["create", "--name", "source", "busybox"]).ok();
    daemon.vessel(&["commit", "source", "same"]).ok();
    let layers = [
        "inspect",
        "-f",
        "{{len .RootFS.Layers}}",
        "--type",
        "image",
        "same",
    ];
    assert_eq!(daemon.vessel(&layers).ok(), "1");
    let count = std::fs::read_dir(daemon.root().join("layers")).map(Iterator::count);
    assert_eq!(count.ok(), Some(1));
}

#[test]
fn what_cannot_be_committed_leaves_nothing() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "source",
            "busybox",
            "sh",
            "-c",
            "touch /.wh.x; sleep 1000",
        ])
        .ok();
    daemon.until("it has written", |daemon| {
        daemon.vessel(&["exec", "source", "test", "-e", "/.wh.x"]).code == 0
    });
    let said = daemon.vessel(&["commit", "source", "x"]).fails(1);
    assert!(said.contains(".wh.x"), "{said}");
    let said = daemon.vessel(&["commit", "-c", "RUN y", "source", "x"]).fails(1);
    assert!(said.contains("not a valid change command"), "{said}");
    assert_eq!(
        daemon
            .vessel(&["inspect", "-f", "{{.State.Status}}", "source"])
            .ok(),
        "running"
    );
    assert_eq!(daemon.vessel(&["images", "-q"]).ok().lines().count(), 1);
    let count = std::fs::read_dir(daemon.root().join("layers")).map(Iterator::count);
    assert_eq!(count.ok(), Some(1));
}

#[test]
fn images_are_explained_and_compared() {
    let Some(daemon) = daemon() else { return };
    let script =
        "dd if=/dev/zero of=/big bs=1000 count=100 2>/dev/null; echo x > /etc/group; mkdir /d; touch /d/e";
    daemon
        .vessel(&["run", "--name", "one", "busybox", "sh", "-c", script])
        .ok();
    daemon.vessel(&["commit", "one", "first"]).ok();
    let script = "echo y > /big; rm /etc/group; chmod 700 /etc/shadow";
    daemon
        .vessel(&["run", "--name", "two", "first", "sh", "-c", script])
        .ok();
    daemon
        .vessel(&["commit", "-c", "ENV NEW=1", "two", "second"])
        .ok();

    let explained = daemon.vessel(&["image", "explain", "-f", "json", "second"]).ok();
    let explained: serde_json::Value = serde_json::from_str(&explained).unwrap();
    let layer = |at: usize| &explained["Steps"][at]["Layer"];
    assert_eq!(
        explained["Steps"].as_array().map(Vec::len),
        Some(3),
        "{explained}"
    );
    assert_eq!(layer(1)["Wasted"], 100_002);
    assert_eq!(layer(1)["SharedBy"], serde_json::json!(["first:latest"]));
    assert_eq!(layer(2)["SharedBy"], serde_json::json!([]));
    assert_eq!(layer(2)["Deleted"]["Files"], 1);
    assert_eq!(layer(2)["AttributesOnly"]["Files"], 1);
    assert_eq!(explained["Waste"][0]["Path"], "/big");
    let seen = |name: &str| explained[name].as_u64().unwrap();
    assert_eq!(seen("Size"), seen("Visible") + seen("Wasted"));
    let text = daemon.vessel(&["image", "explain", "second"]).ok();
    assert!(text.contains("Step 2 is shared with first:latest"), "{text}");

    let difference = daemon
        .vessel(&["image", "diff", "-f", "json", "first", "second"])
        .ok();
    let difference: serde_json::Value = serde_json::from_str(&difference).unwrap();
    let files = &difference["Files"];
    assert_eq!(files["Deleted"][0]["Path"], "/etc/group");
    assert_eq!(files["Added"], serde_json::json!([]));
    let changed = files["Changed"].as_array().unwrap();
    let what: Vec<_> = changed
        .iter()
        .map(|file| (&file["Path"], &file["What"]))
        .collect();
    let expected = [("/big", vec!["content"]), ("/etc/shadow", vec!["mode"])];
    let expected: Vec<_> = expected
        .into_iter()
        .map(|(path, what)| (serde_json::json!(path), serde_json::json!(what)))
        .collect();
    assert_eq!(
        what,
        expected
            .iter()
            .map(|(path, what)| (path, what))
            .collect::<Vec<_>>()
    );
    assert!(
        difference["Config"]
            .as_array()
            .unwrap()
            .iter()
            .any(|item| item["Field"] == "Env.NEW")
    );
    assert_eq!(difference["CommonLayers"], 2);
    let tree = daemon.vessel(&["image", "ls", "--tree"]).ok();
    assert_eq!(tree.matches("linux/").count(), 3, "{tree}");
}
