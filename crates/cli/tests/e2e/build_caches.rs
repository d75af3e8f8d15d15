//! Caches that builds leave for builds elsewhere: on one daemon a build exports, on another that knows nothing it imports.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::{Daemon, Said, VESSEL, daemon};

/// Two stages; what the first makes is different each time it is made.
const STAGES: &str = "FROM busybox AS build\n\
    ARG AGAIN\n\
    RUN --mount=type=cache,id=kept,target=/kept test -s /kept/stamp || cat /proc/sys/kernel/random/uuid > /kept/stamp\n\
    RUN --mount=type=cache,id=kept,target=/kept cat /kept/stamp > /stamp; cat /proc/sys/kernel/random/uuid > /made\n\
    COPY file /file\n\
    FROM busybox\n\
    COPY --from=build /made /stamp /from/\n\
    WORKDIR /work\n\
    RUN echo done > done\n";

/// One stage.
const STAGE: &str = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /made\nCOPY file /file\n";

/// A registry of our own.
pub struct Registry {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .to_string();
        let child = Command::new(VESSEL)
            .args(["registry", "serve", "--listen", &address, "--root"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..1000 {
            if TcpStream::connect(&address).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            child,
            address,
            directory,
        }
    }

    pub fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.directory.path();
    }
}

fn context(daemon: &Daemon, dockerfile: &str) -> PathBuf {
    let dir = daemon.dir().join("context");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.join("file"), "one\n").unwrap();
    dir
}

fn build(daemon: &Daemon, dockerfile: &str, args: &[&str]) -> Said {
    let dir = context(daemon, dockerfile);
    let mut all = vec!["build", "--progress", "plain", "-t", "result"];
    all.extend(args);
    all.push(dir.to_str().unwrap());
    let said = daemon.vessel(&all);
    assert_eq!(said.code, 0, "{said:?}");
    said
}

fn id(daemon: &Daemon) -> String {
    daemon
        .vessel(&["inspect", "--type", "image", "-f", "{{.Id}}", "result"])
        .ok()
}

fn cat(daemon: &Daemon, path: &str) -> String {
    daemon
        .vessel(&["run", "--rm", "--network", "none", "result", "cat", path])
        .ok()
}

/// How many steps came from a cache; base images that are here are told in the same way.
fn cached(said: &Said) -> usize {
    let count = |what: &dyn Fn(&str) -> bool| said.err.lines().filter(|line| what(line)).count();
    count(&|line| line.ends_with(" CACHED")) - count(&|line| line.contains("] FROM "))
}

/// What our own client prints of `--cache-to` and `--cache-from`, for a kind of place.
fn places(kind: &str, registry: &Registry, dir: &Path) -> (String, String) {
    match kind {
        "registry" => {
            let name = registry.name("team/cache:1");
            (
                format!("type=registry,ref={name}"),
                format!("type=registry,ref={name}"),
            )
        }
        _ => (
            format!("type=local,dest={}", dir.display()),
            format!("type=local,src={}", dir.display()),
        ),
    }
}

#[test]
fn all_steps_come_from_a_cache_of_elsewhere() {
    let (Some(one), Some(two), registry) = (daemon(), daemon(), Registry::start()) else {
        return;
    };
    let dir = one.dir().join("cache");
    for (kind, mode) in [
        ("registry", "max"),
        ("registry", "min"),
        ("local", "max"),
        ("local", "min"),
    ] {
        let (to, from) = places(kind, &registry, &dir);
        let first = build(&one, STAGES, &["--cache-to", &format!("{to},mode={mode}")]);
        assert!(first.err.contains("exporting cache to "), "{first:?}");
        let second = build(&two, STAGES, &["--cache-from", &from]);
        // Also those of the stage of which nothing is kept with mode=min.
        assert_eq!(cached(&second), 6, "{kind} {mode}: {second:?}");
        assert_eq!(id(&two), id(&one), "{kind} {mode}");
        // What the result does not have is not fetched.
        assert!(
            second.err.contains("fetching 3 cached layers"),
            "{kind} {mode}: {second:?}"
        );
        assert_eq!(cat(&two, "/from/stamp"), cat(&one, "/from/stamp"));
        // Nothing of it is in the way of the next kind.
        two.vessel(&["rmi", "-f", &id(&two)]).ok();
        two.empty_bin();
        two.vessel(&["builder", "prune", "-af"]).ok();
    }
}

#[test]
fn what_is_in_a_cache_mount_comes_along() {
    let (Some(one), Some(two), registry) = (daemon(), daemon(), Registry::start()) else {
        return;
    };
    let (to, from) = places("registry", &registry, one.dir());
    let with = format!("{to},mode=max,cache-mounts=true");
    let said = build(&one, STAGES, &["--cache-to", &with]);
    assert!(said.err.contains("writing cache mount kept ("), "{said:?}");
    let stamp = cat(&one, "/from/stamp");
    let again = ["--build-arg", "AGAIN=1", "--cache-from", &from];
    let said = build(&two, STAGES, &again);
    assert!(said.err.contains("fetching the cache mount kept"), "{said:?}");
    assert_eq!(cat(&two, "/from/stamp"), stamp);
    assert_ne!(cat(&two, "/from/made"), cat(&one, "/from/made"));
    // What is there is not touched, and what was not exported is not there: it is the host's, and leaves it when asked.
    let said = build(&one, STAGES, &["--cache-to", &format!("{to},mode=max")]);
    assert!(!said.err.contains("cache mount kept"), "{said:?}");
    two.vessel(&["builder", "prune", "-af"]).ok();
    let said = build(&two, STAGES, &again);
    assert!(!said.err.contains("fetching the cache mount"), "{said:?}");
    assert_ne!(cat(&two, "/from/stamp"), stamp);
}

#[test]
fn an_image_carries_its_own_cache() {
    let (Some(one), Some(two), registry) = (daemon(), daemon(), Registry::start()) else {
        return;
    };
    let name = registry.name("app:1");
    build(&one, STAGE, &["--cache-to", "type=inline"]);
    one.vessel(&["tag", "result", &name]).ok();
    one.vessel(&["push", &name]).ok();
    let said = build(&two, STAGE, &["--cache-from", &name, "--cache-to", "type=inline"]);
    assert_eq!(cached(&said), 2, "{said:?}");
    assert_eq!(id(&two), id(&one));
    assert_eq!(cat(&two, "/made"), cat(&one, "/made"));
    // One that is here needs no registry.
    two.vessel(&["tag", "result", "local:1"]).ok();
    two.vessel(&["builder", "prune", "-af"]).ok();
    let said = build(&two, STAGE, &["--cache-from", "local:1"]);
    assert_eq!(cached(&said), 2, "{said:?}");
    // Stages that are only copied from are not made again.
    let stages = format!("{STAGE}FROM scratch\nCOPY --from=0 /made /\n");
    build(&one, &stages, &["--cache-to", "type=inline"]);
    one.vessel(&["tag", "result", &name]).ok();
    one.vessel(&["push", &name]).ok();
    two.vessel(&["builder", "prune", "-af"]).ok();
    let said = build(
        &two,
        &stages,
        &["--cache-from", &name, "--cache-to", "type=inline"],
    );
    assert_eq!(cached(&said), 3, "{said:?}");
    assert_eq!(id(&two), id(&one));
}

#[test]
fn a_cache_that_is_missing_or_damaged_costs_a_warning() {
    let (Some(one), Some(two), registry) = (daemon(), daemon(), Registry::start()) else {
        return;
    };
    let none = format!("type=registry,ref={}", registry.name("none:1"));
    let said = build(
        &two,
        STAGE,
        &[
            "--cache-from",
            &none,
            "--cache-from",
            "type=local,src=/surely/not/there",
        ],
    );
    assert!(said.err.contains("importing cache manifest from"), "{said:?}");
    assert!(said.err.contains("nothing is taken from the cache"), "{said:?}");
    assert_eq!(cached(&said), 0);
    let dir = one.dir().join("cache");
    let (to, from) = places("local", &registry, &dir);
    build(&one, STAGES, &["--cache-to", &format!("{to},mode=max")]);
    two.vessel(&["builder", "prune", "-af"]).ok();
    // A bit of every layer is another.
    for entry in fs::read_dir(dir.join("blobs/sha256")).unwrap().flatten() {
        let mut bytes = fs::read(entry.path()).unwrap();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(entry.path(), bytes).unwrap();
        }
    }
    let said = build(&two, STAGES, &["--cache-from", &from]);
    assert!(said.err.contains("is not whole"), "{said:?}");
    assert_ne!(id(&two), id(&one));
    assert_eq!(cat(&two, "/work/done"), "done");
    // A failed export fails the build, unless told otherwise.
    let refused = format!("type=registry,ref={}", "127.0.0.1:1/x:1");
    let path = context(&two, STAGE);
    let args = ["build", "--cache-to", &refused, path.to_str().unwrap()];
    assert!(two.vessel(&args).fails(1).contains("exporting cache to registry"));
    build(
        &two,
        STAGE,
        &["--cache-to", &format!("{refused},ignore-error=true")],
    );
}

#[test]
fn docker_of_20_10_imports_an_inline_cache() {
    let (Some(one), Some(two), registry) = (daemon(), daemon(), Registry::start()) else {
        return;
    };
    if !Path::new("/usr/bin/docker").exists() {
        return eprintln!("skipped: there is no /usr/bin/docker");
    }
    let docker = |daemon: &Daemon, args: &[&str]| {
        let dir = context(daemon, STAGE);
        let said: Said = Command::new("/usr/bin/docker")
            .env("DOCKER_HOST", daemon.socket())
            .env("DOCKER_CONFIG", daemon.dir().join("dockercfg"))
            .env("DOCKER_BUILDKIT", "1")
            .args(["build", "--progress", "plain", "-t", "result"])
            .args(args)
            .arg(dir)
            .stdin(Stdio::null())
            .output()
            .unwrap()
            .into();
        assert_eq!(said.code, 0, "{said:?}");
        said
    };
    let name = registry.name("app:1");
    docker(&one, &["-t", &name, "--build-arg", "BUILDKIT_INLINE_CACHE=1"]);
    one.vessel(&["push", &name]).ok();
    let said = docker(
        &two,
        &["--cache-from", &name, "--build-arg", "BUILDKIT_INLINE_CACHE=1"],
    );
    assert_eq!(cached(&said), 2, "{said:?}");
    assert_eq!(id(&two), id(&one));
}
