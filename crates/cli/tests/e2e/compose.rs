//! Projects of several containers.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Daemon, Said, daemon};

/// Writes files into a directory of the daemon's, and returns it.
pub fn project(daemon: &Daemon, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let directory = daemon.dir().join(name);
    for (file, text) in files {
        let path = directory.join(file);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }
    directory
}

/// `vessel compose` in a directory.
pub fn command(daemon: &Daemon, directory: &PathBuf, args: &[&str]) -> Command {
    let mut command = daemon.command(&[&["compose"][..], args].concat());
    command.current_dir(directory);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("COMPOSE_")) {
        command.env_remove(name);
    }
    command
}

/// The same, run.
pub fn compose(daemon: &Daemon, directory: &PathBuf, args: &[&str]) -> Said {
    command(daemon, directory, args)
        .output()
        .expect("the client runs")
        .into()
}

/// Networks with subnets of this daemon's own, so that tests in parallel do not take one at the same time.
pub fn networks(daemon: &Daemon, names: &[&str]) -> String {
    let mut out = String::from("networks:\n");
    for (index, name) in names.iter().enumerate() {
        let subnet = daemon.further_subnet(u32::try_from(index).expect("few"));
        out.push_str(&format!(
            "  {name}: {{ipam: {{config: [{{subnet: {subnet}}}]}}}}\n"
        ));
    }
    out
}

#[test]
fn a_project_from_up_to_down() {
    let Some(daemon) = daemon() else { return };
    let text = format!(
        r#"
services:
  db:
    image: busybox
    command: sh -c 'echo db ready; touch /data/ok; exec sleep 1000'
    volumes: ["data:/data"]
    networks: [back]
    stop_grace_period: 0s
    healthcheck: {{test: test -e /data/ok, interval: 200ms}}
  web:
    image: busybox
    command: ["sh", "-c", "echo web of $$WHO; exec sleep 1000"]
    environment: {{WHO: "${{WHO:-nobody}}"}}
    ports: ["127.0.0.1::80"]
    networks: [back, default]
    stop_grace_period: 0s
    depends_on:
      db: {{condition: service_healthy}}
volumes: {{data: }}
{}"#,
        networks(&daemon, &["default", "back"])
    );
    let directory = project(&daemon, "shop", &[("compose.yaml", &text)]);
    let run = |args: &[&str]| compose(&daemon, &directory, args);
    let said = run(&["up", "-d"]);
    assert_eq!(said.code, 0, "{said:?}");
    for line in [
        "Network shop_back  Created",
        "Volume shop_data  Created",
        "Container shop-web-1  Started",
    ] {
        assert!(said.err.contains(line), "{line}: {said:?}");
    }
    let healthy = said
        .err
        .find("Container shop-db-1  Healthy")
        .expect("the database is waited for");
    assert!(
        healthy < said.err.find("Container shop-web-1  Starting").expect("started"),
        "{said:?}"
    );

    let listed = run(&["ps", "--format", "{{.Service}} {{.Name}} {{.State}} {{.Health}}"]).ok();
    assert_eq!(listed, "db shop-db-1 running healthy\nweb shop-web-1 running");
    assert!(run(&["ps"]).ok().starts_with("NAME"));
    assert_eq!(run(&["ps", "--services"]).ok(), "db\nweb");
    assert_eq!(run(&["ps", "-q", "web"]).ok().len(), 64);
    let json: serde_json::Value =
        serde_json::from_str(&run(&["ps", "--format", "json", "db"]).ok()).expect("JSON");
    assert_eq!(
        (&json["Service"], &json["Health"]),
        (&"db".into(), &"healthy".into())
    );

    let label =
        |name: &str| daemon.inspect("shop-web-1", &format!("{{{{index .Config.Labels \"{name}\"}}}}"));
    assert_eq!(label("com.docker.compose.project"), "shop");
    assert_eq!(label("com.docker.compose.container-number"), "1");
    assert_eq!(label("com.docker.compose.oneoff"), "False");
    assert_eq!(label("com.docker.compose.depends_on"), "db:service_healthy:false");
    assert_eq!(
        label("com.docker.compose.project.working_dir"),
        directory.display().to_string()
    );
    assert_eq!(label("com.docker.compose.config-hash").len(), 64);

    assert_eq!(run(&["logs"]).ok(), "db-1   | db ready\nweb-1  | web of nobody");
    assert_eq!(
        run(&["logs", "--no-log-prefix", "-n", "1", "web"]).ok(),
        "web of nobody"
    );
    let said = run(&["exec", "-T", "web", "nslookup", "db", "127.0.0.11"]).ok();
    assert!(said.contains("Name:"), "{said}");
    run(&["exec", "-T", "web", "sh", "-c", "exit 7"]).fails(7);
    assert!(
        run(&["exec", "-T", "nope", "true"])
            .fails(1)
            .contains("no such service: nope")
    );

    // Nothing changed: nothing happens. Something did: that container is made anew, the others stay.
    let ids = || run(&["ps", "-q"]).ok();
    let before = ids();
    run(&["up", "-d"]).ok();
    assert_eq!(ids(), before);
    let said: Said = command(&daemon, &directory, &["up", "-d"])
        .env("WHO", "somebody")
        .output()
        .expect("the client runs")
        .into();
    assert!(said.err.contains("Container shop-web-1  Recreated"), "{said:?}");
    let after = ids();
    assert_eq!(before.lines().next(), after.lines().next());
    assert_ne!(before.lines().nth(1), after.lines().nth(1));
    daemon.until("it has said so", |_| {
        run(&["logs", "--no-log-prefix", "web"]).ok() == "web of somebody"
    });

    // Several containers of a service, and fewer.
    run(&["up", "-d", "--scale", "web=3"]).ok();
    assert_eq!(run(&["ps", "-q", "web"]).ok().lines().count(), 3);
    run(&["up", "-d"]).ok();
    assert_eq!(run(&["ps", "-q", "web"]).ok().lines().count(), 1);

    // Without its files, by its name.
    let elsewhere = project(&daemon, "elsewhere", &[("x", "")]);
    assert_eq!(
        compose(&daemon, &elsewhere, &["-p", "shop", "ps", "--services"]).ok(),
        "db\nweb"
    );
    let refused = compose(&daemon, &elsewhere, &["ps"]).fails(1);
    assert!(refused.contains("no configuration file provided"), "{refused}");

    let said = run(&["down", "-v"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("Volume shop_data  Removed"), "{said:?}");
    let stopped = |name: &str| {
        said.err
            .find(&format!("Container {name}  Removed"))
            .expect("removed")
    };
    assert!(stopped("shop-web-1") < stopped("shop-db-1"), "{said:?}");
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
    assert!(!daemon.vessel(&["network", "ls"]).ok().contains("shop"));
    assert_eq!(daemon.vessel(&["volume", "ls", "-q"]).ok(), "");
}

#[test]
fn what_is_wrong_has_a_place() {
    let Some(daemon) = daemon() else { return };
    let directory = project(
        &daemon,
        "wrong",
        &[
            ("compose.yaml", "services:\n  web:\n    imgae: busybox\n"),
            ("loop.yaml", "include: [loop.yaml]\n"),
        ],
    );
    let said = compose(&daemon, &directory, &["config"]).fails(1);
    assert!(
        said.contains(
            "compose.yaml:3:5: services.web: additional properties 'imgae' not allowed; did you mean image?"
        ),
        "{said}"
    );
    let said = compose(&daemon, &directory, &["-f", "loop.yaml", "config"]).fails(1);
    assert!(said.contains("include cycle detected"), "{said}");
}
