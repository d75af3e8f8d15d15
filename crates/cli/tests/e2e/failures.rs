//! What goes wrong says what, why and what to do, with Docker's exit codes, and leaves nothing behind.

use crate::harness::daemon;

#[test]
fn exit_codes_are_dockers() {
    let Some(daemon) = daemon() else { return };
    for (args, code, needle) in [
        (
            &["run", "--rm", "busybox", "no-such-program"][..],
            127,
            "not found",
        ),
        (
            &["run", "--rm", "busybox", "/etc/passwd"][..],
            126,
            "permission denied",
        ),
        (&["run", "--rm", "busybox", "/etc"][..], 126, "/etc"),
        (
            &["run", "--rm", "no/such/image", "true"][..],
            125,
            "no/such/image",
        ),
        (
            &["run", "--rm", "--memory", "1", "busybox", "true"][..],
            125,
            "memory",
        ),
        (
            &["run", "--rm", "--cpus", "-1", "busybox", "true"][..],
            125,
            "cpu",
        ),
        (
            &[
                "run",
                "--rm",
                "--mount",
                "type=bind,src=/no/such/place,dst=/x",
                "busybox",
                "true",
            ][..],
            125,
            "/no/such/place",
        ),
        (
            &["run", "--rm", "--cap-add", "NO_SUCH", "busybox", "true"][..],
            125,
            "NO_SUCH",
        ),
        (
            &["run", "--rm", "--network", "no-such-net", "busybox", "true"][..],
            125,
            "no-such-net",
        ),
        (
            &["run", "--rm", "--network", "container:nobody", "busybox", "true"][..],
            125,
            "nobody",
        ),
        (
            // Docker's client tells these apart by their words, so this one, too, is "not found".
            &["run", "--rm", "--device", "/dev/no-such", "busybox", "true"][..],
            127,
            "/dev/no-such",
        ),
        (
            &["run", "--rm", "--sysctl", "no.such=1", "busybox", "true"][..],
            125,
            "no.such",
        ),
        (
            &["run", "--rm", "-u", "nobody-here", "busybox", "true"][..],
            125,
            "nobody-here",
        ),
        (&["run", "--no-such-flag", "busybox"][..], 125, "no-such-flag"),
    ] {
        let said = daemon.vessel(args);
        assert_eq!(said.code, code, "{args:?}: {said:?}");
        assert!(said.err.contains(needle), "{args:?}: {said:?}");
        assert!(!said.err.trim_end().ends_with(": unknown"), "{args:?}: {said:?}");
    }
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
    assert_eq!(daemon.leftovers(), Vec::<String>::new());
}

#[test]
fn names_are_unique() {
    let Some(daemon) = daemon() else { return };
    daemon.vessel(&["create", "--name", "one", "busybox"]).ok();
    let said = daemon.vessel(&["create", "--name", "one", "busybox"]).fails(1);
    assert!(said.contains("in use") && said.contains("one"), "{said}");
    let said = daemon.vessel(&["run", "--name", "a/b", "busybox"]).fails(125);
    assert!(said.contains("a/b"), "{said}");
}

#[test]
fn a_failed_start_keeps_the_container_as_docker_does() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&["run", "--name", "bad", "busybox", "no-such-program"])
        .fails(127);
    assert_eq!(
        daemon.inspect("bad", "{{.State.Status}} {{.State.ExitCode}}"),
        "created 127"
    );
}
