//! What is looked at when nothing happens any more.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::arena::{Arena, children, is_spare};
use crate::census::{LOOSE, Places};
use crate::container::{Program, State};
use crate::worker::Worker;

/// How long what was cut short may take to come to rest.
const RESTS: Duration = Duration::from_secs(30);
/// How long the kernel may take to remove what died.
const GONE: Duration = Duration::from_secs(10);
/// Descriptors a daemon may have more than it had at first: connections that are kept, what is prepared.
const DESCRIPTORS: usize = 40;

/// What there was before.
pub struct Baseline {
    places: Places,
    census: BTreeSet<String>,
    descriptors: usize,
}

impl Baseline {
    pub fn take(arena: &Arena) -> Self {
        // A first run makes what is made once, such as the compiled filter.
        let said = arena.ask(&["run", "--rm", "busybox", "true"]);
        assert_eq!(said.code, 0, "{said:?}");
        // What was removed while the workers got ready is not there later: what the bin lets go is no loss.
        empty_bin(arena);
        let (places, census) = arena.with_daemon(|daemon| {
            daemon.stop();
            let places = Places::of(daemon);
            let census = until_quiet(&places, &BTreeSet::new());
            daemon.start();
            (places, census)
        });
        let busy: Vec<&String> = census.iter().filter(|line| in_use(line)).collect();
        assert!(
            busy.is_empty(),
            "a daemon that did next to nothing leaves {busy:#?}"
        );
        Self {
            places,
            census,
            descriptors: descriptors(arena),
        }
    }
}

/// A container nobody touches: it must not notice any of this.
pub struct Veteran {
    id: String,
    facts: String,
}

const FACTS: &str = "{{.State.Status}} {{.State.Pid}} {{.State.StartedAt}} {{.NetworkSettings.IPAddress}}";

impl Veteran {
    pub fn enlist(arena: &Arena) -> Self {
        let script = "httpd -p 8080 -h /; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";
        let said = arena.ask(&[
            "run",
            "-d",
            "--name",
            "veteran",
            "-p",
            "127.0.0.1::8080",
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        assert_eq!(said.code, 0, "{said:?}");
        let id = said.out.trim_end().to_owned();
        arena.spare(&id);
        let facts = arena.ask(&["inspect", "-f", FACTS, &id]).out;
        Self { id, facts }
    }

    fn check(&self, arena: &Arena) {
        let facts = arena.ask(&["inspect", "-f", FACTS, &self.id]);
        if facts.out != self.facts {
            arena.fail(format!(
                "the container nobody touched was {:?}, now {facts:?}",
                self.facts
            ));
            return;
        }
        let logs = arena.ask(&["logs", &self.id]);
        let mut next = 0;
        for line in logs.out.lines() {
            if line.parse() != Ok(next) {
                arena.fail(format!(
                    "output of the container nobody touched was lost: {line:?} instead of {next}"
                ));
                return;
            }
            next += 1;
        }
        if next == 0 {
            arena.fail(format!("the container nobody touched has no output: {logs:?}"));
        }
        serves(arena, &self.id);
    }
}

/// Settles, compares what there is with what must be, removes it, and looks for what is left.
pub fn check(arena: &Arena, workers: &mut [Worker<'_>], veteran: &Veteran, baseline: &Baseline, crash: bool) {
    arena.remember("checkpoint");
    rest(arena, workers);
    for worker in &mut *workers {
        compare(arena, worker);
    }
    veteran.check(arena);
    strangers(arena, workers, veteran);
    if arena.failed() {
        return;
    }
    free_names(arena, workers);
    remove_all(arena, workers);
    empty_bin(arena);
    if arena.failed() {
        return;
    }
    daemon_is_clean(arena, baseline);
    arena.with_daemon(|daemon| {
        if crash {
            daemon.crash();
            daemon.start();
        }
        daemon.stop();
        let left = until_quiet(&baseline.places, &baseline.census);
        for line in left.difference(&baseline.census) {
            arena.fail(format!("left behind: {line}"));
        }
        for line in baseline.census.difference(&left) {
            if line.starts_with(LOOSE) {
                continue;
            }
            arena.fail(format!("was removed and belongs to no container: {line}"));
        }
        daemon.start();
    });
}

/// The containers: ID to name and state.
fn listed(arena: &Arena) -> BTreeMap<String, (String, String)> {
    let said = arena.ask(&[
        "ps",
        "-a",
        "--no-trunc",
        "--format",
        "{{.ID}} {{.Names}} {{.State}}",
    ]);
    if said.code != 0 {
        arena.fail(format!("containers cannot be listed: {said:?}"));
    }
    said.out
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (id, name, state) = (words.next()?, words.next()?, words.next()?);
            Some((id.to_owned(), (name.to_owned(), state.to_owned())))
        })
        .collect()
}

/// Waits until everything that is about to happen has happened.
fn rest(arena: &Arena, workers: &[Worker<'_>]) {
    let begin = Instant::now();
    let mut before = BTreeMap::new();
    loop {
        let now = listed(arena);
        let busy = now.values().find(|(name, state)| {
            let fleeting = workers.iter().any(|worker| worker.fleeting.contains(name));
            matches!(state.as_str(), "restarting" | "removing") || fleeting && state != "created"
        });
        if busy.is_none() && now == before {
            return;
        }
        if begin.elapsed() > RESTS {
            arena.fail(format!("does not come to rest: {busy:?}"));
            return;
        }
        before = now;
        // Longer than what ends by itself runs.
        std::thread::sleep(Duration::from_millis(400));
    }
}

fn compare(arena: &Arena, worker: &mut Worker<'_>) {
    let mut place = 0;
    while place < worker.containers.len() {
        if worker.verify(place, true) {
            let container = &worker.containers[place];
            if container.program.stays() && matches!(container.state, State::Running { .. }) {
                // It does run: neither frozen nor without its shim.
                let said = arena.ask(&["exec", container.address(), "echo", "here"]);
                if said.out != "here\n" {
                    arena.fail(format!("nothing can be executed in {container:?}: {said:?}"));
                }
                if container.program == Program::Serves {
                    serves(arena, container.address());
                }
            }
            place += 1;
        } else {
            let gone = worker.containers.swap_remove(place);
            worker.ghosts.extend(gone.names);
        }
    }
}

/// The published port leads to the container.
fn serves(arena: &Arena, container: &str) {
    let said = arena.ask(&["port", container, "8080/tcp"]);
    let address = said.out.trim_end();
    let begin = Instant::now();
    loop {
        let answer = fetch(address);
        match answer {
            Ok(text) if text.contains("root:") => return,
            other if begin.elapsed() > Duration::from_secs(10) => {
                arena.fail(format!(
                    "the published port of {container} does not serve: {said:?}: {other:?}"
                ));
                return;
            }
            _ => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn fetch(address: &str) -> std::io::Result<String> {
    let address = address
        .parse()
        .map_err(|_| std::io::Error::other("no address is published"))?;
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET /etc/passwd HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// There is no container that nobody made.
fn strangers(arena: &Arena, workers: &[Worker<'_>], veteran: &Veteran) {
    for (id, (name, state)) in listed(arena) {
        let known = id == veteran.id
            || workers.iter().any(|worker| {
                worker.ghosts.contains(&name)
                    || worker.fleeting.contains(&name) && state == "created"
                    || worker
                        .containers
                        .iter()
                        .any(|container| container.id.as_ref() == Some(&id))
            });
        if !known {
            arena.fail(format!("{id} ({name}, {state}) should not be there"));
        }
    }
}

/// A name that no container has can be given to one.
fn free_names(arena: &Arena, workers: &mut [Worker<'_>]) {
    let listed = listed(arena);
    let taken: BTreeSet<&String> = listed.values().map(|(name, _)| name).collect();
    for worker in workers {
        let names: Vec<String> = worker.ghosts.drain(..).chain(worker.fleeting.drain(..)).collect();
        for name in names.iter().filter(|name| !taken.contains(name)) {
            let said = arena.ask(&["create", "--name", name, "busybox", "true"]);
            if said.code != 0 {
                arena.fail(format!(
                    "the name {name} belongs to nobody and cannot be used: {said:?}"
                ));
            }
        }
    }
}

fn remove_all(arena: &Arena, workers: &mut [Worker<'_>]) {
    let ids: Vec<String> = listed(arena).into_keys().collect();
    let mut args = vec!["rm", "-f", "-v"];
    args.extend(ids.iter().map(String::as_str));
    if ids.is_empty() {
        return;
    }
    let said = arena.ask(&args);
    let left = listed(arena);
    if said.code != 0 || !left.is_empty() {
        arena.fail(format!("not all could be removed: {said:?}: {left:?}"));
    }
    for worker in workers {
        worker.containers.clear();
        worker.clear_things();
    }
    let volumes = arena.ask(&["volume", "ls", "-q"]);
    if volumes.code != 0 || !volumes.out.is_empty() {
        arena.fail(format!("volumes of removed containers are left: {volumes:?}"));
    }
    // An image whose loading or removal was cut short may be there without its name: listed, and pruned.
    let pruned = arena.ask(&["image", "prune", "-f"]);
    if pruned.code != 0 {
        arena.fail(format!("images without a name cannot be pruned: {pruned:?}"));
    }
    let images = arena.ask(&["images", "-a", "--format", "{{.Repository}}"]);
    if images.out != "busybox\n" {
        arena.fail(format!("other images are left: {images:?}"));
    }
    match everything_on_disk(arena) {
        Ok(usage) if usage.contains("\"Known\":true") && !usage.contains("\"Known\":false") => {}
        other => arena.fail(format!("not everything on the disk is explained: {other:?}")),
    }
}

/// What was removed is in the bin, and nowhere when that is empty; and there is nothing that nobody can explain.
fn empty_bin(arena: &Arena) {
    let emptied = arena.ask(&["system", "bin", "empty", "-f"]);
    let left = arena.ask(&["system", "bin", "--format", "{{.Kind}} {{.Name}}"]);
    if emptied.code != 0 || !left.out.is_empty() {
        arena.fail(format!("the bin does not get empty: {emptied:?} {left:?}"));
    }
    // What was killed with its container may still be dying.
    let begin = Instant::now();
    loop {
        let unknown = arena.ask(&[
            "system",
            "explain",
            "unknown",
            "--format",
            "{{.Kind}} {{.Name}} {{.Purpose}}",
        ]);
        if unknown.code == 0 && unknown.out.is_empty() {
            return;
        }
        if begin.elapsed() > GONE {
            arena.fail(format!("not everything on the host is explained: {unknown:?}"));
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the daemon says is on its disk, with what no record explains.
fn everything_on_disk(arena: &Arena) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(arena.dir.join("vessel.sock"))?;
    stream.write_all(b"GET /system/df?vessel=1 HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A daemon without containers has no children but the shim that waits for the next one, and no more descriptors than at first.
fn daemon_is_clean(arena: &Arena, baseline: &Baseline) {
    // A spare that was killed stays a zombie until the next start, which finds it dead: this one.
    arena.ask(&["run", "--rm", "--network", "none", "busybox", "true"]);
    let begin = Instant::now();
    loop {
        let pid = arena.with_daemon(|daemon| daemon.pid().and_then(|pid| i32::try_from(pid).ok()));
        let mut children = pid.map(children).unwrap_or_default();
        children.retain(|pid| !is_spare(*pid));
        let open = descriptors(arena);
        if children.is_empty() && open <= baseline.descriptors + DESCRIPTORS {
            return;
        }
        if begin.elapsed() > GONE {
            arena.fail(format!(
                "the daemon has the children {children:?} and {open} descriptors, at first {}",
                baseline.descriptors
            ));
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn descriptors(arena: &Arena) -> usize {
    let pid = arena.with_daemon(|daemon| daemon.pid()).unwrap_or(0);
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// What must not be there when no daemon and no container runs.
fn in_use(line: &str) -> bool {
    !line.starts_with("file ") && !line.starts_with(LOOSE)
}

/// What is there once the kernel has removed what died.
fn until_quiet(places: &Places, expected: &BTreeSet<String>) -> BTreeSet<String> {
    let begin = Instant::now();
    loop {
        let found = places.take();
        let more = found
            .difference(expected)
            .any(|line| !expected.is_empty() || in_use(line));
        if !more || begin.elapsed() > GONE {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
