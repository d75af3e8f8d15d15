//! One of several users: makes, uses and removes containers of its own, and knows what must be true of them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::arena::{Arena, Interruption, Outcome, Victim};
use crate::container::{Container, Program, Seen, State};
use crate::random::Random;
use crate::things::{Image, Volume};

/// How many containers a worker has at most.
const MOST: usize = 6;

pub struct Worker<'a> {
    pub arena: &'a Arena,
    pub name: String,
    pub random: Random,
    pub containers: Vec<Container>,
    /// Names that a container may have or not: its creation or removal was cut short.
    pub ghosts: Vec<String>,
    /// The same of containers that remove themselves when they end.
    pub fleeting: Vec<String>,
    pub image: Image,
    pub volume: Volume,
    serial: u32,
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    RunToEnd,
    Feed,
    RunDetached,
    Create,
    Exec,
    Logs,
    Stop,
    Kill,
    Start,
    Restart,
    Pause,
    Copy,
    Rename,
    Update,
    Remove,
    Look,
    List,
    Volume,
    Image,
}

const OPERATIONS: &[(u64, Operation)] = &[
    (16, Operation::RunToEnd),
    (6, Operation::Feed),
    (16, Operation::RunDetached),
    (4, Operation::Create),
    (9, Operation::Exec),
    (4, Operation::Logs),
    (5, Operation::Stop),
    (2, Operation::Kill),
    (6, Operation::Start),
    (4, Operation::Restart),
    (5, Operation::Pause),
    (4, Operation::Copy),
    (3, Operation::Rename),
    (3, Operation::Update),
    (9, Operation::Remove),
    (5, Operation::Look),
    (3, Operation::List),
    (4, Operation::Volume),
    (5, Operation::Image),
];

impl<'a> Worker<'a> {
    pub fn new(arena: &'a Arena, name: &str, seed: u64) -> Self {
        Self {
            arena,
            name: name.to_owned(),
            random: Random::new(seed),
            containers: Vec::new(),
            ghosts: Vec::new(),
            fleeting: Vec::new(),
            image: Image::new(arena, name),
            volume: Volume::new(name),
            serial: 0,
        }
    }

    /// One operation.
    pub fn step(&mut self) {
        match self.random.weighted(OPERATIONS) {
            Operation::RunToEnd => self.run_to_end(),
            Operation::Feed => self.feed(),
            Operation::RunDetached if self.containers.len() < MOST => self.make(true),
            Operation::Create if self.containers.len() < MOST => self.make(false),
            Operation::Exec => self.exec(),
            Operation::Logs => self.logs(),
            Operation::Stop => self.stop(),
            Operation::Kill => self.kill(),
            Operation::Start => self.start(),
            Operation::Restart => self.restart(),
            Operation::Pause => self.pause(),
            Operation::Copy => self.copy(),
            Operation::Rename => self.rename(),
            Operation::Update => self.update(),
            Operation::Remove | Operation::RunDetached | Operation::Create => self.remove(),
            Operation::Look => self.look(),
            Operation::List => self.list(),
            Operation::Volume => self.use_volume(),
            Operation::Image => self.use_image(),
        }
    }

    fn new_name(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.name, self.serial)
    }

    /// Whether, when and whom a kill hits during the next operation.
    fn interruption(&mut self, container: Option<&str>) -> Option<Interruption> {
        if !self.random.chance(40) {
            return None;
        }
        let victim = self.random.weighted(&[
            (22, Victim::Daemon),
            (5, Victim::TwoDaemons),
            (23, Victim::Client),
            (25, Victim::Shim),
            (25, Victim::First),
        ]);
        let most = if self.random.chance(75) { 15_000 } else { 80_000 };
        let delay = Duration::from_micros(self.random.below(most));
        let own = self.random.chance(60);
        Some(Interruption {
            victim,
            delay,
            container: container.filter(|_| own).map(str::to_owned),
            random: Random::new(self.random.next()),
        })
    }

    /// Runs a client that may be cut short.
    pub fn try_run(&mut self, args: &[&str], input: Option<Vec<u8>>, container: Option<&str>) -> Outcome {
        let interruption = self.interruption(container);
        self.arena.operations.fetch_add(1, Ordering::Relaxed);
        self.arena.run(&self.name, args, input, interruption)
    }

    pub fn fail(&self, what: &str, outcome: &Outcome) {
        self.arena
            .fail(format!("{}: {what}: {:?}", self.name, outcome.said));
    }

    /// The options of a new container.
    fn options(&mut self) -> Vec<String> {
        let mut options: Vec<String> = Vec::new();
        if self.random.chance(20) {
            options.push("--init".into());
        }
        if self.random.chance(20) {
            options.extend(["-v".into(), "/data".into()]);
        }
        if self.random.chance(20) {
            options.extend(["--memory".into(), "64m".into(), "--tmpfs".into(), "/tmp".into()]);
        }
        if self.random.chance(10) {
            options.push("--read-only".into());
        }
        options
    }

    fn network(&mut self) -> String {
        let joined = self
            .steady()
            .filter(|_| self.random.chance(10))
            .and_then(|place| self.containers[place].id.clone());
        match joined {
            Some(id) => format!("container:{id}"),
            None => self
                .random
                .weighted(&[(6, "bridge"), (2, "none"), (2, "host")])
                .to_owned(),
        }
    }

    /// A container that runs until somebody ends it.
    fn steady(&mut self) -> Option<usize> {
        self.any(|container| container.program.stays() && matches!(container.state, State::Running { .. }))
    }

    fn any(&mut self, fits: impl Fn(&Container) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.containers.len())
            .filter(|place| self.containers[*place].sure && fits(&self.containers[*place]))
            .collect();
        match fitting.len() {
            0 => None,
            count => Some(fitting[self.random.below(count as u64) as usize]),
        }
    }

    /// Whether a failure of an operation on a container is nobody's fault.
    fn excused(&self, outcome: &Outcome, container: &Container) -> bool {
        outcome.disturbed
            || self.arena.spare_wounded(outcome.began)
            || match &container.id {
                Some(id) => self.arena.wounded(id, container.since),
                None => self.arena.anybody_wounded(container.since),
            }
    }

    /// Whether a container was hit that an operation made.
    fn hit(&self, outcome: &Outcome, id: Option<&str>) -> bool {
        match id {
            Some(id) => self.arena.wounded(id, outcome.began) || self.arena.spare_wounded(outcome.began),
            None => self.arena.anybody_wounded(outcome.began),
        }
    }

    /// The ID a client wrote down, which it does when its container exists.
    fn written_id(&self, name: &str) -> Option<String> {
        let id = std::fs::read_to_string(self.arena.dir.join(format!("{name}.cid"))).ok()?;
        (id.len() == 64).then_some(id)
    }

    fn cid_file(&self, name: &str) -> String {
        self.arena
            .dir
            .join(format!("{name}.cid"))
            .to_string_lossy()
            .into_owned()
    }

    fn run_to_end(&mut self) {
        let name = self.new_name();
        let code = 10 + self.random.below(100) as i32;
        let network = self.network();
        let script = format!("echo {name}; exit {code}");
        let cid_file = self.cid_file(&name);
        let mut args = vec!["run", "--rm", "--name", &name, "--cidfile", &cid_file];
        let options = self.options();
        args.extend(options.iter().map(String::as_str));
        args.extend(["--network", &network, "busybox", "sh", "-c", &script]);
        let outcome = self.try_run(&args, None, None);
        let id = self.written_id(&name);
        let wounded = self.hit(&outcome, id.as_deref());
        let good = outcome.said.code == code && outcome.said.out == format!("{name}\n");
        let joined = network
            .strip_prefix("container:")
            .is_some_and(|id| self.arena.wounded(id, outcome.began - Duration::from_secs(60)));
        if !good && !outcome.disturbed && !wounded && !joined {
            self.fail(&format!("must say its name and end with {code}"), &outcome);
        }
        if outcome.disturbed || wounded || joined {
            self.fleeting.push(name);
        } else {
            self.must_be_gone(&name);
        }
    }

    fn must_be_gone(&mut self, name: &str) {
        let said = self
            .arena
            .ask(&["ps", "-aq", "--filter", &format!("name=^{name}$")]);
        if said.code != 0 || !said.out.is_empty() {
            self.arena
                .fail(format!("{name} was removed and is still there: {said:?}"));
        }
    }

    /// What goes in comes out.
    fn feed(&mut self) {
        let name = self.new_name();
        let length = self.random.below(200_000) as usize;
        let input: Vec<u8> = (0..length)
            .map(|place| b'a' + (place % 23) as u8 + (place / 4096 % 3) as u8)
            .collect();
        let cid_file = self.cid_file(&name);
        let args = [
            "run",
            "-i",
            "--rm",
            "--name",
            &name,
            "--cidfile",
            &cid_file,
            "--network",
            "none",
            "busybox",
            "cat",
        ];
        let outcome = self.try_run(&args, Some(input.clone()), None);
        let wounded = self.hit(&outcome, self.written_id(&name).as_deref());
        if outcome.disturbed || wounded {
            self.fleeting.push(name);
            return;
        }
        if outcome.said.code != 0 || outcome.said.out.as_bytes() != input {
            self.arena.fail(format!(
                "{name}: {} bytes of {length} came back, code {}: {}",
                outcome.said.out.len(),
                outcome.said.code,
                outcome.said.err
            ));
        }
    }

    /// `run -d` or `create`.
    fn make(&mut self, run: bool) {
        let name = self.new_name();
        let (code, millis) = (10 + self.random.below(100) as i32, self.random.below(300));
        let program = self.random.weighted(&[
            (30, Program::Sleeps),
            (15, Program::Serves),
            (15, Program::Obeys),
            (30, Program::Ends { code, millis }),
            (10, Program::Fails),
        ]);
        let restarts = program == Program::Sleeps && self.random.chance(40);
        let published = program == Program::Serves;
        let cid_file = self.cid_file(&name);
        let mut options = self.options();
        match program {
            Program::Fails => options.extend(["--restart".into(), "on-failure:2".into()]),
            _ if restarts => options.extend(["--restart".into(), "unless-stopped".into()]),
            _ => {}
        }
        if published {
            options.extend(["-p".into(), "127.0.0.1::8080".into()]);
        } else {
            let network = self.random.weighted(&[(6, "bridge"), (2, "none"), (2, "host")]);
            options.extend(["--network".into(), network.to_owned()]);
        }
        let command = program.command();
        let mut args: Vec<&str> = if run { vec!["run", "-d"] } else { vec!["create"] };
        args.extend(["--name", &name, "--cidfile", &cid_file]);
        args.extend(options.iter().map(String::as_str));
        args.push("busybox");
        args.extend(command.iter().map(String::as_str));
        let outcome = self.try_run(&args, None, None);
        let id = self.written_id(&name);
        let mut container = Container {
            names: vec![name.clone()],
            sure: id.is_some(),
            id,
            program,
            restarts,

            state: State::Unknown,
            since: outcome.began,
            pids: None,
            runs: u32::from(run),
        };
        if outcome.said.code == 0 {
            if container.id.as_deref() != Some(outcome.said.out.trim_end()) {
                self.fail("the ID in the file is another one than the printed one", &outcome);
            }
            container.state = if run {
                State::Running { pid: 0 }
            } else {
                State::Created
            };
        } else if !self.excused(&outcome, &container) {
            self.fail("cannot be made", &outcome);
        }
        self.containers.push(container);
    }

    fn exec(&mut self) {
        let Some(place) = self.steady() else { return };
        let container = self.containers[place].clone();
        let code = 10 + self.random.below(100) as i32;
        let script = format!("echo inside; exit {code}");
        let args = ["exec", container.address(), "sh", "-c", &script];
        let outcome = self.try_run(&args, None, container.id.as_deref());
        let good = outcome.said.code == code && outcome.said.out == "inside\n";
        if !good && !self.excused(&outcome, &container) {
            self.fail(&format!("must say inside and end with {code}"), &outcome);
        }
    }

    fn logs(&mut self) {
        let Some(place) = self.any(|container| container.state != State::Created) else {
            return;
        };
        let container = self.containers[place].clone();
        let outcome = self.try_run(&["logs", container.address()], None, None);
        if outcome.said.code != 0 {
            if !outcome.disturbed {
                self.fail("logs must be readable", &outcome);
            }
            return;
        }
        let whole = matches!(container.program, Program::Ends { .. })
            && matches!(container.state, State::Ended(_))
            && container.runs == 1;
        let wounded = container
            .id
            .as_ref()
            .is_none_or(|id| self.arena.wounded(id, container.since));
        if whole && !wounded && outcome.said.out != "begin\nend\n" {
            self.fail("output was lost", &outcome);
        }
    }

    /// An operation that changes where a container is in its life.
    fn change(&mut self, place: usize, args: &[&str], after: State) -> Outcome {
        let mut container = self.containers[place].clone();
        let outcome = self.try_run(args, None, container.id.as_deref());
        if outcome.said.code == 0 {
            container.state = after;
        } else if self.excused(&outcome, &container) {
            container.state = State::Unknown;
        } else {
            self.fail(&format!("{args:?} fails on {container:?}"), &outcome);
        }
        self.containers[place] = container;
        outcome
    }

    fn stop(&mut self) {
        let Some(place) = self.steady() else { return };
        let container = self.containers[place].clone();
        let (time, codes) = match container.program {
            Program::Obeys => ("2", vec![3, 137]),
            // With `--init` SIGTERM does end it, and may do so before SIGKILL comes.
            _ => ("0", vec![137, 143]),
        };
        self.change(
            place,
            &["stop", "-t", time, container.address()],
            State::Ended(codes),
        );
    }

    fn kill(&mut self) {
        let Some(place) = self.steady() else { return };
        let address = self.containers[place].address().to_owned();
        self.change(place, &["kill", &address], State::Ended(vec![137]));
    }

    fn start(&mut self) {
        let Some(place) = self.any(|container| matches!(container.state, State::Created | State::Ended(_)))
        else {
            return;
        };
        let address = self.containers[place].address().to_owned();
        self.containers[place].since = Instant::now();
        self.containers[place].runs += 1;
        self.change(place, &["start", &address], State::Running { pid: 0 });
    }

    fn restart(&mut self) {
        let Some(place) = self.steady() else { return };
        let address = self.containers[place].address().to_owned();
        self.containers[place].runs += 1;
        self.change(
            place,
            &["restart", "-t", "0", &address],
            State::Running { pid: 0 },
        );
    }

    /// Pauses what runs, resumes what is paused.
    fn pause(&mut self) {
        let paused = self.any(|container| matches!(container.state, State::Paused { .. }));
        let Some(place) = paused.or_else(|| self.steady()) else {
            return;
        };
        let address = self.containers[place].address().to_owned();
        match self.containers[place].state {
            State::Paused { pid } => self.change(place, &["unpause", &address], State::Running { pid }),
            State::Running { pid } => self.change(place, &["pause", &address], State::Paused { pid }),
            _ => return,
        };
    }

    /// A file into a container and out again.
    fn copy(&mut self) {
        let Some(place) = self.any(|container| !matches!(container.state, State::Paused { .. })) else {
            return;
        };
        let container = self.containers[place].clone();
        let name = self.new_name();
        let (there, back) = (
            self.arena.dir.join(&name),
            self.arena.dir.join(format!("{name}.back")),
        );
        let text = format!("{name} {}", self.random.next());
        std::fs::write(&there, &text).expect("a file");
        let inside = format!("{}:/root/{name}", container.address());
        let outcome = self.try_run(&["cp", &there.to_string_lossy(), &inside], None, None);
        let read_only = outcome.said.err.contains("read-only");
        if outcome.said.code == 0 {
            let said = self.arena.ask(&["cp", &inside, &back.to_string_lossy()]);
            let copied = std::fs::read_to_string(&back).unwrap_or_default();
            if copied != text && !self.excused(&outcome, &container) {
                self.arena.fail(format!(
                    "{inside} was copied and comes back as {copied:?}: {said:?}"
                ));
            }
        } else if !read_only && !self.excused(&outcome, &container) {
            self.fail("a file cannot be copied", &outcome);
        }
        for file in [there, back] {
            let _ = std::fs::remove_file(file);
        }
    }

    fn rename(&mut self) {
        let Some(place) = self.any(|container| container.id.is_some()) else {
            return;
        };
        let name = self.new_name();
        let address = self.containers[place].address().to_owned();
        let outcome = self.try_run(&["rename", &address, &name], None, Some(&address));
        let names = &mut self.containers[place].names;
        if outcome.said.code == 0 && names.len() == 1 {
            *names = vec![name];
        } else if outcome.said.code == 0 {
            // An earlier renaming may still be under way.
            names.push(name);
        } else if outcome.disturbed {
            names.push(name);
        } else {
            self.fail("cannot be renamed", &outcome);
        }
    }

    fn update(&mut self) {
        let Some(place) = self.any(|_| true) else { return };
        let container = self.containers[place].clone();
        let pids = 50 + self.random.below(1000);
        let limit = pids.to_string();
        let args = ["update", "--pids-limit", &limit, container.address()];
        let outcome = self.try_run(&args, None, container.id.as_deref());
        if outcome.said.code == 0 {
            self.containers[place].pids = Some(pids);
        } else {
            self.containers[place].pids = None;
            if !self.excused(&outcome, &container) {
                self.fail("cannot be updated", &outcome);
            }
        }
    }

    fn remove(&mut self) {
        if self.containers.is_empty() {
            return;
        }
        let place = self.random.below(self.containers.len() as u64) as usize;
        let mut container = self.containers.swap_remove(place);
        let outcome = self.try_run(
            &["rm", "-f", "-v", container.address()],
            None,
            container.id.as_deref(),
        );
        if outcome.said.code == 0 && container.sure {
            self.must_be_gone(&container.names[0]);
        } else if outcome.disturbed {
            container.sure = false;
            container.state = State::Unknown;
            self.containers.push(container);
        } else if container.sure {
            self.fail(&format!("cannot be removed: {container:?}"), &outcome);
        } else {
            // A creation that was cut short may still be under way.
            self.ghosts.extend(container.names);
        }
    }

    fn look(&mut self) {
        if self.containers.is_empty() {
            return;
        }
        let place = self.random.below(self.containers.len() as u64) as usize;
        self.verify(place, false);
    }

    /// Compares a container with what `inspect` says of it. False: it does not exist, and need not.
    pub fn verify(&mut self, place: usize, settled: bool) -> bool {
        let container = &mut self.containers[place];
        let said = self
            .arena
            .ask(&["inspect", "-f", Seen::TEMPLATE, container.address()]);
        if said.code != 0 {
            if container.sure {
                self.arena.fail(format!("{container:?} is lost: {said:?}"));
            }
            return false;
        }
        let Some(seen) = Seen::parse(&said.out) else {
            self.arena.fail(format!("inspect says {said:?}"));
            return true;
        };
        // After the answer: a wound that explains it came before.
        let again = container.restarts || container.program == Program::Fails;
        let wounded = self.arena.wounded(&seen.id, container.since)
            || again && self.arena.spare_wounded(container.since);
        if let Err(wrong) = container.judge(&seen, wounded, settled) {
            self.arena.fail(format!("{}: {wrong}", self.name));
        }
        true
    }

    /// Every container of ours is listed.
    fn list(&mut self) {
        let outcome = self.try_run(&["ps", "-aq", "--no-trunc"], None, None);
        if outcome.said.code != 0 {
            if !outcome.disturbed {
                self.fail("containers cannot be listed", &outcome);
            }
            return;
        }
        for container in &self.containers {
            if let (true, Some(id)) = (container.sure, &container.id)
                && !outcome.said.out.contains(id.as_str())
            {
                self.fail(&format!("{container:?} is not listed"), &outcome);
            }
        }
    }
}
