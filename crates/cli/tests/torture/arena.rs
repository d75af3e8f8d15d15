//! The daemon that is tortured, the clients that use it, and the kills.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::harness::{Daemon, Said};
use crate::random::Random;

/// No operation here takes longer, unless something hangs.
const HANGS: Duration = Duration::from_secs(60);
/// How much of what was done is printed after a failure.
const REMEMBERED: usize = 120;

/// What a shim that waits has in place of a container.
const SPARE: &str = "spare";

/// Whom a kill hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Daemon,
    /// The daemon, and the next one while it takes over.
    TwoDaemons,
    Client,
    Shim,
    /// A container's first process, or what is about to become it.
    First,
}

/// A kill that is to come.
#[derive(Debug, Clone)]
pub struct Interruption {
    pub victim: Victim,
    /// After the operation began.
    pub delay: Duration,
    /// Whose shim or first process, if that exists then.
    pub container: Option<String>,
    pub random: Random,
}

/// How a client's operation went.
#[derive(Debug)]
pub struct Outcome {
    pub said: Said,
    pub began: Instant,
    /// Whether the client or the daemon was killed while it was under way: then it may have failed, wholly or half done.
    pub disturbed: bool,
}

/// A kill of a shim or a first process.
struct Wound {
    container: String,
    at: Instant,
}

pub struct Arena {
    daemon: RwLock<Daemon>,
    /// The directory of the daemon's own files and of ours.
    pub dir: PathBuf,
    shims: PathBuf,
    /// How many operations were begun that may be cut short.
    pub operations: AtomicU64,
    /// Changes whenever a daemon dies.
    deaths: AtomicU64,
    wounds: Mutex<Vec<Wound>>,
    /// Containers that are never hurt.
    spared: Mutex<HashSet<String>>,
    kills: Mutex<BTreeMap<Victim, u64>>,
    history: Mutex<VecDeque<String>>,
    failures: Mutex<Vec<String>>,
    failed: AtomicBool,
    begin: Instant,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    pub fn new(daemon: Daemon) -> Self {
        Self {
            dir: daemon.dir().to_owned(),
            shims: daemon.run_dir().join("shims"),
            daemon: RwLock::new(daemon),
            operations: AtomicU64::new(0),
            deaths: AtomicU64::new(0),
            wounds: Mutex::default(),
            spared: Mutex::default(),
            kills: Mutex::default(),
            history: Mutex::default(),
            failures: Mutex::default(),
            failed: AtomicBool::new(false),
            begin: Instant::now(),
        }
    }

    /// Uses the daemon as nobody else does meanwhile.
    pub fn with_daemon<T>(&self, act: impl FnOnce(&mut Daemon) -> T) -> T {
        act(&mut self.daemon.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn remember(&self, what: &str) {
        let mut history = lock(&self.history);
        if history.len() == REMEMBERED {
            history.pop_front();
        }
        history.push_back(format!("{:9.3} {what}", self.begin.elapsed().as_secs_f64()));
    }

    /// Something that must not be.
    pub fn fail(&self, what: String) {
        self.remember(&format!("FAILURE {what}"));
        lock(&self.failures).push(what);
        self.failed.store(true, Ordering::Release);
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// What failed, and what is needed to find out why. None when nothing did.
    pub fn report(&self) -> Option<String> {
        let failures = lock(&self.failures);
        if failures.is_empty() {
            return None;
        }
        let log = self.with_daemon(|daemon| daemon.log());
        let log: Vec<&str> = log.lines().rev().take(80).collect();
        let log: Vec<&str> = log.into_iter().rev().collect();
        let history: Vec<String> = lock(&self.history).iter().cloned().collect();
        Some(format!(
            "{}\n\nlast operations:\n{}\n\nlast lines of the daemon's log:\n{}",
            failures.join("\n"),
            history.join("\n"),
            log.join("\n")
        ))
    }

    /// How many were killed, in words.
    pub fn toll(&self) -> String {
        let kills = lock(&self.kills);
        let parts: Vec<String> = kills
            .iter()
            .map(|(victim, count)| format!("{victim:?} {count}"))
            .collect();
        parts.join(", ")
    }

    pub fn spare(&self, container: &str) {
        lock(&self.spared).insert(container.to_owned());
    }

    /// Whether the shim or the first process of a container was killed since.
    pub fn wounded(&self, container: &str, since: Instant) -> bool {
        lock(&self.wounds)
            .iter()
            .any(|wound| wound.at >= since && wound.container == container)
    }

    /// Whether the shim that waits for the next start was killed since: nobody knows whose it was about to become.
    pub fn spare_wounded(&self, since: Instant) -> bool {
        // A moment earlier, too: it may be given a start while it dies.
        self.wounded(SPARE, since - Duration::from_secs(1))
    }

    /// The same for any container.
    pub fn anybody_wounded(&self, since: Instant) -> bool {
        lock(&self.wounds).iter().any(|wound| wound.at >= since)
    }

    /// Runs a client without disturbing it, again if others did.
    pub fn ask(&self, args: &[&str]) -> Said {
        for _ in 0..50 {
            let outcome = self.run("", args, None, None);
            if !outcome.disturbed {
                return outcome.said;
            }
        }
        self.fail(format!("{args:?} was disturbed fifty times"));
        Said {
            code: -1,
            out: String::new(),
            err: String::new(),
        }
    }

    /// Runs a client; `who` gets a line in the history.
    pub fn run(
        &self,
        who: &str,
        args: &[&str],
        input: Option<Vec<u8>>,
        interruption: Option<Interruption>,
    ) -> Outcome {
        let (mut child, deaths) = {
            // Nobody kills the daemon between these two.
            let daemon = self.daemon.read().unwrap_or_else(PoisonError::into_inner);
            let mut command = daemon.command(args);
            if input.is_some() {
                command.stdin(Stdio::piped());
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn().expect("the client runs");
            (child, self.deaths.load(Ordering::Acquire))
        };
        let began = Instant::now();
        if !who.is_empty() {
            let how = interruption.as_ref().map_or(String::new(), |kill| {
                format!("   [kill {:?} after {} ms]", kill.victim, kill.delay.as_millis())
            });
            self.remember(&format!("{who} {}{how}", args.join(" ")));
        }
        let client =
            pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("a descriptor of the client");
        let stdin = child.stdin.take();
        let (ended, wait) = channel::<()>();
        let output = std::thread::scope(|scope| {
            scope.spawn(move || {
                if let (Some(mut stdin), Some(input)) = (stdin, input) {
                    let _ = stdin.write_all(&input);
                }
            });
            let client = &client;
            scope.spawn(move || {
                if let Some(interruption) = interruption {
                    std::thread::sleep(interruption.delay);
                    match interruption.victim {
                        Victim::Client => {
                            if pidfd_send_signal(client, Signal::KILL).is_ok() {
                                self.count(Victim::Client);
                            }
                        }
                        _ => self.kill(interruption),
                    }
                }
                if wait.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
                    self.fail(format!("{args:?} hangs: it has not ended in {HANGS:?}"));
                    let _ = pidfd_send_signal(client, Signal::KILL);
                }
            });
            let output = child.wait_with_output().expect("the client ends");
            drop(ended);
            output
        });
        let killed = output.status.signal() == Some(9);
        let outcome = Outcome {
            began,
            disturbed: killed || self.deaths.load(Ordering::Acquire) != deaths,
            said: output.into(),
        };
        if !who.is_empty() && outcome.said.code != 0 {
            self.remember(&format!(
                "{who} ... {}: {} {}{}",
                args.first().unwrap_or(&""),
                outcome.said.code,
                outcome.said.err.trim_end(),
                if outcome.disturbed { "   [disturbed]" } else { "" }
            ));
        }
        outcome
    }

    fn count(&self, victim: Victim) {
        *lock(&self.kills).entry(victim).or_default() += 1;
    }

    fn kill(&self, mut interruption: Interruption) {
        let random = &mut interruption.random;
        match interruption.victim {
            Victim::Daemon | Victim::TwoDaemons => {
                let twice = interruption.victim == Victim::TwoDaemons;
                self.with_daemon(|daemon| {
                    self.deaths.fetch_add(1, Ordering::AcqRel);
                    daemon.crash();
                    self.remember("the daemon is dead");
                    if twice {
                        daemon.spawn();
                        std::thread::sleep(Duration::from_millis(random.below(40)));
                        daemon.crash();
                    }
                    // Containers may end while nobody looks.
                    std::thread::sleep(Duration::from_millis(random.below(30)));
                    daemon.start();
                    self.remember("the next daemon answers");
                });
                self.count(interruption.victim);
            }
            Victim::Client => {}
            Victim::Shim | Victim::First => {
                let wanted = interruption.container.as_deref();
                if self.kill_in_container(interruption.victim, wanted, random) {
                    self.count(interruption.victim);
                }
            }
        }
    }

    fn kill_in_container(&self, victim: Victim, wanted: Option<&str>, random: &mut Random) -> bool {
        let spared = lock(&self.spared).clone();
        if victim == Victim::Shim && random.chance(20) {
            return self.kill_spare();
        }
        let mut shims = self.shims();
        shims.retain(|(_, id)| !spared.contains(id));
        // The newest ones are the most vulnerable.
        let place = shims
            .iter()
            .position(|(_, id)| Some(id.as_str()) == wanted)
            .or_else(|| match shims.len() {
                0 => None,
                count if random.chance(50) => Some(count - 1),
                count => Some(random.below(count as u64) as usize),
            });
        let Some((shim, id)) = place.map(|place| shims.swap_remove(place)) else {
            return false;
        };
        let pid = match victim {
            Victim::Shim => Some(shim),
            _ => children(shim).first().copied(),
        };
        let Some(raw) = pid.and_then(Pid::from_raw) else {
            return false;
        };
        let Ok(descriptor) = pidfd_open(raw, PidfdFlags::empty()) else {
            return false;
        };
        // Still the one it was when it was looked up: numbers are used again.
        let same = match victim {
            Victim::Shim => shim_of(shim).as_deref() == Some(&*id),
            _ => children(shim).contains(&raw.as_raw_nonzero().get()),
        };
        if !same {
            return false;
        }
        lock(&self.wounds).push(Wound {
            container: id.clone(),
            at: Instant::now(),
        });
        self.remember(&format!("kill {victim:?} of {}", &id[..12]));
        pidfd_send_signal(&descriptor, Signal::KILL).is_ok()
    }

    /// Kills the shim that the daemon keeps for the next start.
    fn kill_spare(&self) -> bool {
        // Nobody else kills the daemon meanwhile: the children are its own.
        let daemon = self.daemon.read().unwrap_or_else(PoisonError::into_inner);
        let daemon = daemon.pid().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0);
        let spare = children(daemon).into_iter().find(|pid| is_spare(*pid));
        let Some(Ok(descriptor)) = spare
            .and_then(Pid::from_raw)
            .map(|pid| pidfd_open(pid, PidfdFlags::empty()))
        else {
            return false;
        };
        if !spare.is_some_and(|pid| children(daemon).contains(&pid)) {
            return false;
        }
        lock(&self.wounds).push(Wound {
            container: SPARE.to_owned(),
            at: Instant::now(),
        });
        self.remember("kill the spare shim");
        pidfd_send_signal(&descriptor, Signal::KILL).is_ok()
    }

    /// The running shims of this daemon, oldest first: process and container.
    fn shims(&self) -> Vec<(i32, String)> {
        let mut shims: Vec<(i32, String)> = processes()
            .into_iter()
            .filter_map(|pid| Some((pid, shim_of(pid)?)))
            .filter(|(_, id)| self.shims.join(id).exists())
            .collect();
        shims.sort_by_key(|(pid, _)| started(*pid));
        shims
    }
}

/// All processes.
pub fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

pub fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// Whether a process is a shim that waits for its container.
pub fn is_spare(pid: i32) -> bool {
    shim_of(pid).is_some_and(|id| id.trim_end() == SPARE)
}

/// The container whose shim a process is.
fn shim_of(pid: i32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|byte| *byte == 0);
    let (_, shim, id) = (words.next()?, words.next()?, words.next()?);
    (shim == b"shim").then(|| String::from_utf8_lossy(id).into_owned())
}

fn started(pid: i32) -> u64 {
    // The 22nd field of proc_pid_stat(5); the second is in parentheses and may hold anything.
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace()
        .nth(19)
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}
