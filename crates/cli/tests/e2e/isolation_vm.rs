//! The second wall: the same image behind a kernel of its own.
//!
//! What is refused and shown needs no kernel. The rest does: `VESSEL_TEST_KERNEL` names one, as `vessel kernel import` takes it
//! (a file of `/boot`, a Debian package, the directory one was unpacked to); without it these tests say so and pass.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::harness::{Daemon, daemon};

/// A daemon with a kernel for virtual machines, or none with the reason printed.
fn with_kernel() -> Option<Daemon> {
    let Some(kernel) = std::env::var_os("VESSEL_TEST_KERNEL") else {
        eprintln!("skipped: there is no kernel to boot: name one in VESSEL_TEST_KERNEL");
        return None;
    };
    let daemon = daemon()?;
    let import = vessel_kernel::Import {
        described: None,
        source: std::path::Path::new(&kernel),
        modules: None,
        name: None,
        replace: false,
    };
    let store = vessel_kernel::Store::new(daemon.root().join("kernels"));
    let unpack = |image: &[u8]| Some(vessel_vmm::boot::extract_vmlinux(image).ok()?.into_owned());
    store.import(&import, &unpack).expect("a kernel");
    Some(daemon)
}

#[test]
fn what_has_no_meaning_is_refused_in_a_sentence() {
    let Some(daemon) = daemon() else { return };
    for (options, option) in [
        (&["--network", "host"][..], "--network host"),
        (&["--pid", "host"], "--pid host"),
        (&["--ipc", "host"], "--ipc host"),
        (&["--uts", "host"], "--uts host"),
        (&["--userns", "host"], "--userns host"),
        (&["--device", "/dev/null"], "--device /dev/null"),
        (&["--gpus", "all"], "--gpus"),
    ] {
        let mut words = vec!["run", "--rm", "--isolation", "vm"];
        words.extend(options);
        words.extend(["busybox", "true"]);
        let said = daemon.vessel(&words).fails(125);
        let sentence = format!("{option} has no meaning with --isolation vm: ");
        assert!(said.contains(&sentence), "{said}");
    }
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--isolation",
        "vm",
        "-v",
        "/:/host:rshared",
        "busybox",
        "true",
    ]);
    assert!(said.fails(125).contains("mounts do not travel between kernels"));
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--isolation",
        "vm",
        "--memory",
        "16m",
        "busybox",
        "true",
    ]);
    assert!(said.fails(125).contains("needs 64 MiB"));
    let said = daemon.vessel(&["run", "--rm", "--kernel", "small", "busybox", "true"]);
    assert!(said.fails(125).contains("with --isolation vm only"));
    let said = daemon.vessel(&[
        "run",
        "--rm",
        "--isolation",
        "vm",
        "--runtime",
        "runc",
        "busybox",
        "true",
    ]);
    assert!(said.fails(125).contains("conflicting options"));
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
}

#[test]
fn both_ways_to_ask_for_it_are_shown_the_same() {
    let Some(daemon) = daemon() else { return };
    daemon
        .vessel(&[
            "create",
            "--name",
            "aa",
            "--isolation",
            "vm",
            "--accel",
            "soft",
            "--kernel",
            "small",
            "busybox",
            "true",
        ])
        .ok();
    daemon
        .vessel(&[
            "create",
            "--name",
            "bb",
            "--runtime",
            "vessel-vm",
            "busybox",
            "true",
        ])
        .ok();
    let shown = "{{.HostConfig.Isolation}} {{.HostConfig.Runtime}} {{.HostConfig.CgroupnsMode}}";
    for name in ["aa", "bb"] {
        assert_eq!(daemon.inspect(name, shown), "vm vessel-vm private");
    }
    let annotations = daemon.inspect("aa", "{{json .HostConfig.Annotations}}");
    assert!(
        annotations.contains(r#""vessel.vm.accel":"soft""#)
            && annotations.contains(r#""vessel.vm.kernel":"small""#)
    );
    daemon
        .vessel(&[
            "create",
            "--name",
            "cc",
            "--isolation",
            "container",
            "busybox",
            "true",
        ])
        .ok();
    assert_eq!(
        daemon.inspect("cc", "{{.HostConfig.Isolation}} {{.HostConfig.Runtime}}"),
        "default vessel"
    );
    let info = daemon.vessel(&["info"]).ok();
    assert!(info.contains("vessel-vm"), "{info}");
    // A kernel that is not there is named, and nothing is left of the attempt.
    let said = daemon.vessel(&["start", "aa"]);
    assert!(
        said.code != 0 && said.err.contains("there is no kernel \"small\""),
        "{said:?}"
    );
    assert_eq!(daemon.inspect("aa", "{{.State.Status}}"), "created");
    // Another's namespaces are joined where there are such.
    let said = daemon.vessel(&["run", "--rm", "--pid", "container:aa", "busybox", "true"]);
    assert!(said.fails(125).contains("it is a virtual machine"), "joined");
}

#[test]
fn a_program_runs_under_another_kernel() {
    let Some(daemon) = with_kernel() else { return };
    let release = daemon
        .vessel(&["run", "--isolation", "vm", "--rm", "busybox", "uname", "-r"])
        .ok();
    let own = rustix::system::uname().release().to_string_lossy().into_owned();
    assert!(!release.is_empty() && release != own, "{release}");
    let said = daemon.vessel(&[
        "run",
        "--isolation",
        "vm",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    ]);
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (42, "out\n", "err\n")
    );
    daemon
        .vessel(&["run", "--isolation", "vm", "--rm", "busybox", "/no/such"])
        .fails(127);
    let said = daemon.feed(
        &["run", "--isolation", "vm", "--rm", "-i", "busybox", "sort"],
        b"b\na\n",
    );
    assert_eq!(said.ok(), "a\nb");
    assert_eq!(daemon.vessel(&["ps", "-aq"]).ok(), "");
}

#[test]
fn everything_of_a_container_works_on_it() {
    let Some(mut daemon) = with_kernel() else { return };
    daemon
        .vessel(&[
            "network",
            "create",
            "--subnet",
            &daemon.further_subnet(0),
            "vmnet",
        ])
        .ok();
    daemon.vessel(&["volume", "create", "data"]).ok();
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "web",
            "--isolation",
            "vm",
            "--network",
            "vmnet",
            "-p",
            "127.0.0.1::80",
            "-v",
            "data:/www",
            "--tmpfs",
            "/scratch",
            "busybox",
            "sh",
            "-c",
            "echo hello > /www/index.html; echo serving; exec httpd -f -h /www",
        ])
        .ok();
    daemon.until("the server serves", |daemon| {
        daemon.vessel(&["logs", "web"]).out.contains("serving")
    });
    assert_eq!(
        daemon.vessel(&["exec", "web", "cat", "/www/index.html"]).ok(),
        "hello"
    );
    assert_eq!(
        daemon.vessel(&["exec", "-u", "1000", "web", "id", "-u"]).ok(),
        "1000"
    );
    daemon.vessel(&["exec", "web", "sh", "-c", "exit 7"]).fails(7);
    assert!(daemon.vessel(&["top", "web"]).ok().contains("httpd"));
    assert!(
        daemon
            .vessel(&["stats", "--no-stream", "web"])
            .ok()
            .contains("web")
    );

    // A published port, and names both ways.
    let port = daemon.vessel(&["port", "web", "80"]).ok();
    let page = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&port)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    daemon.until("the page", |_| page().is_ok_and(|text| text.ends_with("hello\n")));
    let fetched = daemon.vessel(&[
        "run",
        "--rm",
        "--network",
        "vmnet",
        "busybox",
        "wget",
        "-qO-",
        "http://web/index.html",
    ]);
    assert_eq!(fetched.ok(), "hello");
    daemon
        .vessel(&[
            "run",
            "-d",
            "--name",
            "plain",
            "--network",
            "vmnet",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let address = daemon.inspect("plain", "{{.NetworkSettings.Networks.vmnet.IPAddress}}");
    assert!(
        daemon
            .vessel(&["exec", "web", "nslookup", "plain"])
            .ok()
            .contains(&address)
    );

    // Files go in and out, through the volume too.
    let file = daemon.dir().join("file");
    std::fs::write(&file, "from outside\n").unwrap();
    let path = file.to_str().unwrap();
    daemon.vessel(&["cp", path, "web:/www/in"]).ok();
    assert_eq!(
        daemon.vessel(&["exec", "web", "cat", "/www/in"]).ok(),
        "from outside"
    );
    daemon
        .vessel(&["exec", "web", "sh", "-c", "echo from inside > /made"])
        .ok();
    daemon.vessel(&["cp", "web:/made", path]).ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "from inside\n");
    assert!(daemon.vessel(&["diff", "web"]).ok().contains("A /made"));

    daemon.vessel(&["pause", "web"]).ok();
    daemon.vessel(&["unpause", "web"]).ok();
    assert_eq!(
        daemon.vessel(&["exec", "web", "cat", "/made"]).ok(),
        "from inside"
    );

    // It outlives its daemon.
    daemon.crash();
    assert!(page().unwrap().ends_with("hello\n"));
    daemon.start();
    assert_eq!(daemon.inspect("web", "{{.State.Status}}"), "running");
    assert_eq!(
        daemon.vessel(&["exec", "web", "cat", "/made"]).ok(),
        "from inside"
    );
    assert!(
        daemon
            .vessel(&["exec", "web", "nslookup", "plain"])
            .ok()
            .contains(&address)
    );
    let refused = daemon.vessel(&["network", "disconnect", "vmnet", "web"]);
    assert!(
        refused.err.contains("is a virtual machine and runs"),
        "{refused:?}"
    );

    let begin = Instant::now();
    daemon.vessel(&["stop", "web"]).ok();
    assert!(begin.elapsed() < Duration::from_secs(25));
    assert_eq!(daemon.vessel(&["exec", "plain", "nslookup", "web"]).code, 1);
    // What it wrote is there for the next run, and for a container.
    let read = daemon.vessel(&[
        "run",
        "--rm",
        "-v",
        "data:/www",
        "busybox",
        "cat",
        "/www/index.html",
    ]);
    assert_eq!(read.ok(), "hello");
}

#[test]
fn nothing_is_left_when_shim_or_monitor_is_killed() {
    let Some(daemon) = with_kernel() else { return };
    for whom in ["monitor", "shim"] {
        daemon
            .vessel(&[
                "run",
                "-d",
                "--name",
                whom,
                "--isolation",
                "vm",
                "busybox",
                "sleep",
                "600",
            ])
            .ok();
        let monitor: i32 = daemon.inspect(whom, "{{.State.Pid}}").parse().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{monitor}/stat")).unwrap();
        let parent: i32 = stat
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let victim = if whom == "monitor" { monitor } else { parent };
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(victim).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        daemon.until("its end", |daemon| {
            daemon.inspect(whom, "{{.State.Status}}") == "exited"
        });
        assert_eq!(daemon.inspect(whom, "{{.State.ExitCode}}"), "137");
        daemon.vessel(&["rm", whom]).ok();
    }
    daemon.until("the end of the interfaces", |daemon| {
        let ports = std::fs::read_dir(format!("/sys/class/net/{}/brif", daemon.bridge()));
        // What is in stock for the next containers is no TAP.
        ports.is_ok_and(|list| {
            list.flatten().all(|port| {
                !std::path::Path::new("/sys/class/net")
                    .join(port.file_name())
                    .join("tun_flags")
                    .exists()
            })
        })
    });
}
