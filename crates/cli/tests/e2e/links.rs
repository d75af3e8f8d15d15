//! Links on the default network.

use crate::harness::daemon;

#[test]
fn a_linked_container_is_known_by_names_and_variables() {
    let Some(daemon) = daemon() else { return };
    let run = [
        "run",
        "-d",
        "--name",
        "db",
        "--hostname",
        "dbhost",
        "--expose",
        "5432",
        "-e",
        "POSTGRES_DB=x",
    ];
    daemon
        .vessel(&[&run[..], &["busybox", "sleep", "1000"]].concat())
        .ok();
    let address = daemon.inspect("db", "{{.NetworkSettings.IPAddress}}");
    let run = [
        "run", "-d", "--name", "web", "--link", "db:my-db", "busybox", "sleep", "1000",
    ];
    daemon.vessel(&run).ok();
    let environment = daemon.vessel(&["exec", "web", "env"]).ok();
    for pair in [
        format!("MY_DB_PORT=tcp://{address}:5432"),
        format!("MY_DB_PORT_5432_TCP_ADDR={address}"),
        "MY_DB_NAME=/web/my-db".to_owned(),
        "MY_DB_ENV_POSTGRES_DB=x".to_owned(),
    ] {
        assert!(
            environment.lines().any(|line| line == pair),
            "{pair}: {environment}"
        );
    }
    let hosts = daemon.vessel(&["exec", "web", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains(&format!("{address}\tmy-db dbhost db")), "{hosts}");
    assert_eq!(
        daemon.inspect("web", "{{index .HostConfig.Links 0}}"),
        "/db:/web/my-db"
    );
    let names = daemon
        .vessel(&["ps", "--no-trunc", "--format", "{{.Names}}"])
        .ok();
    assert!(names.lines().any(|line| line.contains("web/my-db")), "{names}");

    // The address follows, the daemon forgets nothing.
    daemon.vessel(&["stop", "-t", "0", "db"]).ok();
    daemon
        .vessel(&["run", "-d", "--name", "other", "busybox", "sleep", "1000"])
        .ok();
    daemon.vessel(&["start", "db"]).ok();
    let moved = daemon.inspect("db", "{{.NetworkSettings.IPAddress}}");
    let hosts = daemon.vessel(&["exec", "web", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains(&format!("{moved}\tmy-db")), "{moved}: {hosts}");

    // A link needs a container that runs.
    daemon.vessel(&["stop", "-t", "0", "db", "web"]).ok();
    let said = daemon.vessel(&["start", "web"]).fails(1);
    assert!(
        said.contains("Cannot link to a non running container: /db AS /web/my-db"),
        "{said}"
    );
    let said = daemon
        .vessel(&["create", "--link", "nosuch:x", "busybox"])
        .fails(1);
    assert!(said.contains("could not get container for nosuch"), "{said}");
    for (word, why) in [("nosuch", "No such container: nosuch"), ("db", "Conflict")] {
        let said = daemon.vessel(&["rm", "--link", word]).fails(1);
        assert!(said.contains(why), "{said}");
    }
    daemon.vessel(&["rm", "--link", "web/my-db"]).ok();
    daemon.vessel(&["start", "web"]).ok();
    assert_eq!(daemon.inspect("web", "{{json .HostConfig.Links}}"), "null");
}

#[test]
fn a_wait_ends_with_the_run_even_if_another_follows() {
    let Some(daemon) = daemon() else { return };
    let run = [
        "run",
        "-d",
        "--name",
        "again",
        "--restart",
        "always",
        "--network",
        "none",
    ];
    daemon
        .vessel(&[&run[..], &["busybox", "sh", "-c", "sleep 1; exit 3"]].concat())
        .ok();
    assert_eq!(daemon.vessel(&["wait", "again"]).ok(), "3");
    daemon.vessel(&["rm", "-f", "again"]).ok();
}
