//! `up` in the foreground: the output of containers as it comes, until all have ended or the user has had enough.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vessel_api::EventMessage;
use vessel_client::{Client, EventsOptions, LogsOptions};
use vessel_compose::act::labels;
use vessel_compose::act::state::OneOff;
use vessel_compose::act::{Create, Engine, logs};
use vessel_compose::{Error, Project};

use super::options::Session;
use super::printer::{Printer, short_name};
use super::up::Attached;
use crate::failure::{Failure, Result};
use crate::output;
use crate::terminal::signals::Signals;

/// How often signals are looked at.
const TICK: Duration = Duration::from_millis(50);

/// What happens while containers run.
enum Message {
    /// A container started.
    Started {
        id: String,
        name: String,
        service: String,
    },
    /// A container ended, at so many nanoseconds.
    Died {
        id: String,
        name: String,
        service: String,
        code: i64,
        at: i64,
    },
    /// The log of a container ended, or cannot be read.
    LogEnded(String),
    /// Nobody reads what is shown.
    Unread,
    /// All were started, or could not be.
    AllStarted(std::result::Result<(), Error>),
}

/// Starts what was made and shows its output.
pub fn run(
    session: &Session<'_>,
    project: &Project,
    engine: &Engine<'_>,
    chosen: &BTreeSet<String>,
    create: &Create,
    options: &Attached,
) -> Result {
    if let Some(service) = &options.exit_code_from {
        project.service(service)?;
    }
    let shown = shown(project, chosen, &create.services, options)?;
    session.progress().finish();
    let signals = Signals::block([libc::SIGINT, libc::SIGTERM])?;
    let client = session.client()?.clone();
    let (sender, receiver) = channel();
    let running = engine.containers(OneOff::Exclude)?;
    let printer = Arc::new(Printer::new(
        session.colour() && !options.no_color,
        !options.no_log_prefix,
    ));
    let mut names: Vec<String> = Vec::new();
    for container in running
        .iter()
        .filter(|container| shown.contains(&container.service))
    {
        let name = short_name(&project.name, &container.name);
        printer.register(&name);
        names.push(name);
    }
    if !names.is_empty() {
        output::print_line(&format!("Attaching to {}", names.join(", ")))?;
    }
    listen(&client, &project.name, sender.clone())?;
    let mut watch = Watch {
        client,
        project: project.name.clone(),
        shown,
        printer,
        timestamps: options.timestamps,
        sender: sender.clone(),
        alive: BTreeMap::new(),
        following: BTreeSet::new(),
        again: BTreeSet::new(),
        later: VecDeque::new(),
        ended: BTreeMap::new(),
    };
    // What ran before shows what it writes from now on.
    for container in running
        .iter()
        .filter(|container| container.is_running() && chosen.contains(&container.service))
    {
        watch
            .alive
            .insert(container.id.clone(), container.service.clone());
        watch.follow(&container.id, &container.name, &container.service, Since::Now);
    }
    // What ran before and ended shows nothing of that.
    for container in running.iter().filter(|container| !container.is_running()) {
        let found = watch.client.container_inspect(&container.id, false)?;
        let finished = found.state.finished_at.parse::<jiff::Timestamp>();
        if let Some(at) = finished
            .ok()
            .and_then(|at| i64::try_from(at.as_nanosecond()).ok())
            .filter(|at| *at > 0)
        {
            watch.ended.insert(container.id.clone(), at);
        }
    }
    std::thread::scope(|scope| {
        let starter = sender;
        scope.spawn(move || {
            let result = engine.start(chosen, !create.no_deps);
            let _ = starter.send(Message::AllStarted(result));
        });
        let end = watch.until_end(session, chosen, options, &signals, &receiver);
        // Whoever is still starting gives up.
        session.interrupted.store(true, Ordering::Relaxed);
        end
    })
    .and_then(|end| {
        session.interrupted.store(false, Ordering::Relaxed);
        finish(
            engine,
            &signals,
            chosen,
            end,
            options.exit_code_from.as_deref(),
            create.timeout,
        )
    })
}

/// Why the end came.
enum End {
    /// All containers ended.
    Natural,
    /// A container ended, and all shall: with this code.
    Abort(i64),
    /// The user wants it.
    Signal,
    /// Nobody reads the output any more.
    Unread,
    /// Starting failed.
    Failed(Error),
}

fn shown(
    project: &Project,
    chosen: &BTreeSet<String>,
    named: &[String],
    options: &Attached,
) -> Result<BTreeSet<String>> {
    for name in options.attach.iter().chain(&options.no_attach) {
        project.service(name)?;
    }
    let mut shown: BTreeSet<String> = if !options.attach.is_empty() {
        let names = &options.attach;
        project.select(names, options.attach_dependencies)?
    } else if named.is_empty() || options.attach_dependencies {
        chosen.clone()
    } else {
        named.iter().cloned().collect()
    };
    shown.retain(|name| {
        !options.no_attach.contains(name)
            && (options.attach.contains(name)
                || project
                    .services
                    .get(name)
                    .is_none_or(|service| service.attach != Some(false)))
    });
    Ok(shown)
}

/// Tells of containers that start and end, until the program ends.
fn listen(client: &Client, project: &str, sender: Sender<Message>) -> Result {
    let mut filters = labels::of_project(project);
    filters.add("type", "container");
    filters.add("event", "start");
    filters.add("event", "die");
    let options = EventsOptions {
        filters,
        ..EventsOptions::default()
    };
    let events = client.events(&options)?;
    std::thread::spawn(move || {
        for event in events {
            let Some(message) = event.ok().and_then(message) else {
                continue;
            };
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    Ok(())
}

fn message(event: EventMessage) -> Option<Message> {
    let attribute = |name: &str| event.actor.attributes.get(name).cloned().unwrap_or_default();
    if attribute(labels::ONE_OFF).eq_ignore_ascii_case("true") {
        return None;
    }
    let (id, name, service) = (
        event.actor.id.clone(),
        attribute("name"),
        attribute(labels::SERVICE),
    );
    match event.action.as_str() {
        "start" => Some(Message::Started { id, name, service }),
        "die" => Some(Message::Died {
            id,
            name,
            service,
            code: attribute("exitCode").parse().unwrap_or(0),
            at: event.time_nano,
        }),
        _ => None,
    }
}

struct Watch {
    client: Client,
    project: String,
    shown: BTreeSet<String>,
    printer: Arc<Printer>,
    timestamps: bool,
    sender: Sender<Message>,
    /// Services of containers that run, by ID.
    alive: BTreeMap<String, String>,
    /// Whose log is being read.
    following: BTreeSet<String>,
    /// What started anew while the log of its former life is still being read.
    again: BTreeSet<String>,
    /// What came while something else was waited for.
    later: VecDeque<Message>,
    /// When containers ended, in nanoseconds.
    ended: BTreeMap<String, i64>,
}

/// Since when the output of a container is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    /// What comes from now on.
    Now,
    /// What it wrote since it ended last.
    LastEnd,
}

impl Watch {
    /// Shows what a container writes.
    fn follow(&mut self, id: &str, name: &str, service: &str, from: Since) {
        if !self.shown.contains(service) || !self.following.insert(id.to_owned()) {
            return;
        }
        let short = short_name(&self.project, name);
        self.printer.register(&short);
        let (client, printer, sender) = (self.client.clone(), self.printer.clone(), self.sender.clone());
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            follow: true,
            timestamps: self.timestamps,
            tail: if from == Since::Now { "0" } else { "all" }.to_owned(),
            since: self
                .ended
                .get(id)
                .filter(|_| from == Since::LastEnd)
                .map(|at| {
                    format!(
                        "{}.{:09}",
                        at.div_euclid(1_000_000_000),
                        at.rem_euclid(1_000_000_000)
                    )
                })
                .unwrap_or_default(),
            ..LogsOptions::default()
        };
        let id = id.to_owned();
        std::thread::spawn(move || {
            // What cannot be read is shown by nobody; that a container ended is told by its event.
            let mut read = true;
            let _ = logs::read(&client, &id, &options, |line| {
                read = printer.line(&short, line);
                read
            });
            if !read {
                let _ = sender.send(Message::Unread);
            }
            let _ = sender.send(Message::LogEnded(id));
        });
    }

    fn until_end(
        &mut self,
        session: &Session<'_>,
        chosen: &BTreeSet<String>,
        options: &Attached,
        signals: &Signals,
        receiver: &Receiver<Message>,
    ) -> Result<End> {
        let aborts = options.abort_on_container_exit || options.exit_code_from.is_some();
        let mut all_started = false;
        loop {
            if signals.next().is_some() {
                return Ok(End::Signal);
            }
            let next = self.later.pop_front();
            let Some(message) = next.or_else(|| receiver.recv_timeout(TICK).ok()) else {
                if all_started
                    && self.alive.is_empty()
                    && self.following.is_empty()
                    && !self.restarts(chosen)?
                {
                    return Ok(End::Natural);
                }
                continue;
            };
            match message {
                Message::AllStarted(Ok(())) => {
                    session.progress().finish();
                    all_started = true;
                }
                Message::AllStarted(Err(error)) => return Ok(End::Failed(error)),
                Message::Started { id, name, service } if chosen.contains(&service) => {
                    self.alive.insert(id.clone(), service.clone());
                    // While the log of its former life has not ended, it is followed when that does.
                    if self.following.contains(&id) {
                        self.again.insert(id.clone());
                    }
                    self.follow(&id, &name, &service, Since::LastEnd);
                }
                Message::Died {
                    id,
                    name,
                    service,
                    code,
                    at,
                } if chosen.contains(&service) => {
                    self.alive.remove(&id);
                    self.ended.insert(id.clone(), at);
                    if self.shown.contains(&service) {
                        let short = short_name(&self.project, &name);
                        self.drain(&id, receiver);
                        output::print_line(&format!("{short} exited with code {code}"))?;
                    }
                    if aborts || (options.abort_on_container_failure && code != 0) {
                        return Ok(End::Abort(code));
                    }
                }
                Message::LogEnded(id) => self.log_ended(&id),
                Message::Unread => return Ok(End::Unread),
                _ => {}
            }
        }
    }

    /// The log of a container ended. When it started again since, its next one is followed; one that cannot be read is
    /// not tried again before that.
    fn log_ended(&mut self, id: &str) {
        self.following.remove(id);
        if self.again.remove(id)
            && let Some(service) = self.alive.get(id).cloned()
        {
            let name = self.client.container_inspect(id, false).map(|found| found.name);
            let name = name.unwrap_or_default().trim_start_matches('/').to_owned();
            self.follow(id, &name, &service, Since::LastEnd);
        }
    }

    /// Waits a moment for the last lines of a container that ended.
    fn drain(&mut self, id: &str, receiver: &Receiver<Message>) {
        let begin = std::time::Instant::now();
        while self.following.contains(id) && begin.elapsed() < Duration::from_secs(1) {
            match receiver.recv_timeout(TICK) {
                Ok(Message::LogEnded(ended)) => self.log_ended(&ended),
                Ok(other) => self.later.push_back(other),
                Err(_) => {}
            }
        }
    }

    /// Whether a container is about to be started again by its restart policy.
    fn restarts(&self, chosen: &BTreeSet<String>) -> Result<bool> {
        let found = vessel_compose::act::state::containers(&self.client, &self.project, OneOff::Exclude)?;
        Ok(found
            .iter()
            .any(|container| chosen.contains(&container.service) && container.is_running()))
    }
}

/// Stops what runs, when it shall.
fn finish(
    engine: &Engine<'_>,
    signals: &Signals,
    chosen: &BTreeSet<String>,
    end: End,
    code_of: Option<&str>,
    timeout: Option<i64>,
) -> Result {
    let names: Vec<String> = chosen.iter().cloned().collect();
    let stop = || -> Result {
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| engine.stop(&names, timeout));
            while !stopping.is_finished() {
                if signals.next().is_some() {
                    let _ = engine.kill(&names, "SIGKILL", true);
                }
                std::thread::sleep(TICK);
            }
            stopping
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(())
    };
    match end {
        End::Natural => Ok(()),
        End::Abort(code) => {
            output::warn("Aborting on container exit...");
            stop()?;
            let code = match code_of {
                None => code,
                // Its own code, whichever container ended first.
                Some(service) => {
                    let id = engine.container(service, 0, false)?.id;
                    let found = engine.client.container_inspect(&id, false)?;
                    found.state.exit_code
                }
            };
            match i32::try_from(code).unwrap_or(1) {
                0 => Ok(()),
                code => Err(Failure::silent(code)),
            }
        }
        End::Signal => {
            output::warn("Gracefully stopping... (press Ctrl+C again to force)");
            stop()?;
            Err(Failure::silent(130))
        }
        // As if by SIGPIPE; what runs goes on.
        End::Unread => Err(Failure::silent(141)),
        End::Failed(error) => Err(error.into()),
    }
}
