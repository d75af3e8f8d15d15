//! The shim's loop: one thread, one epoll set, nothing that blocks.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::connection::{Connection, HIGH_WATER, Role};
use super::log::Log;
use super::poller::{Interest, Poller, Ready, Token};
use super::protocol::{self, Attach, Event, Exit, Reply, Request, ShimConfig, Status};
use super::session::{NewSession, Program, Session, streams};
use crate::cgroup::{Cgroup, OomEvents};
use crate::error::Context;
use crate::process::{self, Init, Stdio, hooks, terminal};
use crate::spec::{ConsoleSize, NamespaceKind};
use crate::{Error, ErrorKind, Result, seccomp};

mod exec;
mod guest;
mod output;
mod record;

use exec::StartingExec;
use guest::Guest;
use record::{record, record_aside};

/// How long clients may take to fetch the last output after the container's end.
const FLUSH_TIME: Duration = Duration::from_secs(10);

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// The number of the container's own session.
const FIRST: u64 = 0;

/// A shim that holds a running container.
pub(super) struct Server {
    config: ShimConfig,
    /// The shim's directory.
    dir: OwnedFd,
    poller: Poller,
    listener: OwnedFd,
    listener_token: Token,
    /// No connection is accepted for want of descriptors.
    refusing: bool,
    connections: BTreeMap<u64, Connection>,
    sessions: Vec<Session>,
    /// Execs whose program was not executed yet.
    starting: Vec<StartingExec>,
    /// Of those that failed: killed and not yet gone.
    dying: Vec<(OwnedFd, Token)>,
    next: u64,
    log: Option<Log>,
    cgroup: Option<Cgroup>,
    oom: Option<(OomEvents, Token)>,
    oom_kills: u64,
    init_pid: Pid,
    init_pidfd: OwnedFd,
    /// The machine, when the container has a kernel of its own; `init_pid` is then its monitor.
    guest: Option<Guest>,
    started_at: i64,
    /// Set when the container has ended and everything of it but this process is gone.
    exit: Option<Exit>,
    buffer: Vec<u8>,
}

/// Nanoseconds since the epoch.
pub(super) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as i64)
}

impl Server {
    /// Takes over a container that was just started. `dir` is the shim's directory.
    ///
    /// # Errors
    /// When it cannot be watched; nothing is left of it then.
    pub fn new(
        config: ShimConfig,
        dir: OwnedFd,
        listener: OwnedFd,
        init: Init,
        ends: super::session::Ends,
        log: Option<Log>,
    ) -> Result<Self> {
        let Init {
            pid,
            pidfd,
            cgroup,
            terminal,
            ..
        } = init;
        let watched = Watch::new(&listener, &cgroup).and_then(|mut watch| {
            let copy = pidfd.try_clone().context(|| "keep the container's pidfd")?;
            let program = Program::Host {
                pid,
                pidfd: copy,
                terminal,
            };
            let session = Session::new(&mut watch.poller, first(&config, program, ends))?;
            Ok((watch, session))
        });
        let (watch, session) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                let _ = cgroup.kill_all(Signal::KILL);
                process::end(&pidfd);
                let _ = cgroup.destroy();
                return Err(error);
            }
        };
        Ok(Self::holding(
            config,
            dir,
            listener,
            watch,
            session,
            (cgroup, pid, pidfd),
            log,
        ))
    }

    /// A server that holds what runs: its first session, its cgroup, and the process that all of it ends with.
    fn holding(
        config: ShimConfig,
        dir: OwnedFd,
        listener: OwnedFd,
        watch: Watch,
        session: Session,
        (cgroup, pid, pidfd): (Cgroup, Pid, OwnedFd),
        log: Option<Log>,
    ) -> Self {
        Self {
            config,
            dir,
            poller: watch.poller,
            listener,
            listener_token: watch.listener,
            refusing: false,
            connections: BTreeMap::new(),
            sessions: vec![session],
            starting: Vec::new(),
            dying: Vec::new(),
            next: FIRST + 1,
            log,
            cgroup: Some(cgroup),
            oom: watch.oom,
            oom_kills: 0,
            init_pid: pid,
            init_pidfd: pidfd,
            guest: None,
            started_at: now(),
            exit: None,
            buffer: vec![0; PIECE],
        }
    }

    /// The first process, for whoever is to join it.
    fn first_process(&self) -> Option<Pid> {
        self.guest.is_none().then_some(self.init_pid)
    }

    /// Connects what was there from the start: the control stream and early clients.
    pub fn adopt(
        &mut self,
        control: OwnedFd,
        attach: Vec<(OwnedFd, Attach)>,
        warnings: Vec<String>,
    ) -> Result<()> {
        for (fd, to) in attach {
            self.connect(fd, Role::Attached { session: FIRST, to })?;
        }
        let number = self.connect(control, Role::Watching)?;
        let started = Event::Started {
            pid: self.init_pid.as_raw_nonzero().get(),
            at: self.started_at,
            warnings,
        };
        self.tell(number, &started);
        Ok(())
    }

    /// Serves until the container has ended and its clients have their output.
    pub fn run(&mut self) -> Result<()> {
        let mut ready = Vec::new();
        let mut deadline: Option<Instant> = None;
        loop {
            if self.exit.is_some() {
                let until = *deadline.get_or_insert_with(|| Instant::now() + FLUSH_TIME);
                let pending = self
                    .connections
                    .values()
                    .any(|connection| connection.queued() > 0 && !connection.dead);
                if !pending || Instant::now() >= until {
                    return Ok(());
                }
            }
            let sessions = self
                .sessions
                .iter()
                .flat_map(|session| [session.linger, session.resume]);
            let timeout = sessions
                .chain([deadline, self.starting_deadline(), self.guest_deadline()])
                .flatten()
                .min()
                .map(|until| until.saturating_duration_since(Instant::now()).as_millis())
                .map(|left| u32::try_from(left).unwrap_or(u32::MAX).saturating_add(1));
            self.poller.wait(&mut ready, timeout)?;
            for event in &ready {
                self.handle(*event);
            }
            self.starting_overdue();
            self.guest_overdue();
            self.sessions_due();
            self.settle();
        }
    }

    /// Ends the container: the shim cannot go on, and nobody else would.
    pub fn abort(&mut self) {
        if self.exit.is_some() {
            return;
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = cgroup.kill_all(Signal::KILL);
        }
        let exit = self.container_ended(Exit {
            code: 137,
            signal: Some(9),
            oom_killed: false,
            at: now(),
        });
        self.exit = Some(exit);
        self.announce(&Event::Exited(exit));
    }

    fn handle(&mut self, event: Ready) {
        if event.token == self.listener_token {
            self.accept();
            return;
        }
        if let Some((events, token)) = &mut self.oom
            && *token == event.token
        {
            // On v2 every event comes as an exception with an error, also one that is no kill (yet): the limit was met.
            match events.acknowledge() {
                Ok(kills) => self.count_oom(kills),
                Err(_) => self.oom = None,
            }
            return;
        }
        let connection = self
            .connections
            .iter()
            .find(|(_, connection)| connection.token == event.token);
        if let Some((&number, _)) = connection {
            self.connection_ready(number, event);
            return;
        }
        if self.starting_ready(event) || self.guest_ready(event) {
            return;
        }
        for index in 0..self.sessions.len() {
            let session = &mut self.sessions[index];
            if session.end_token == event.token {
                self.process_ended(index);
                return;
            }
            if session
                .input
                .as_ref()
                .is_some_and(|input| input.token == event.token)
            {
                if event.hangup {
                    session.input_unread(&self.poller);
                } else {
                    session.push_input(&self.poller);
                }
                return;
            }
            if let Some(output) = session
                .outputs
                .iter()
                .position(|output| output.token == event.token)
            {
                self.read_output(index, output);
                return;
            }
        }
    }

    fn count_oom(&mut self, kills: u64) {
        if kills > self.oom_kills {
            self.oom_kills = kills;
            self.announce(&Event::Oom);
        }
    }

    fn accept(&mut self) {
        use rustix::net::{SocketFlags, accept_with};
        loop {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(fd) => drop(self.connect(fd, Role::Asking)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                // Who waits is accepted when something was closed. Until then it would be told without end that he waits.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.refusing = true;
                    self.poller
                        .set(self.listener_token, &self.listener, Interest::NONE);
                    return;
                }
                Err(_) => return,
            }
        }
    }

    fn connect(&mut self, fd: OwnedFd, role: Role) -> Result<u64> {
        let connection = Connection::new(&mut self.poller, fd, role)?;
        let number = self.next;
        self.next += 1;
        self.connections.insert(number, connection);
        Ok(number)
    }

    fn tell(&mut self, number: u64, message: &impl serde::Serialize) {
        if let (Some(connection), Ok(frame)) = (self.connections.get_mut(&number), protocol::encode(message))
        {
            connection.send([&frame, &[]]);
        }
    }

    fn announce(&mut self, event: &Event) {
        let Ok(frame) = protocol::encode(event) else {
            return;
        };
        for connection in self
            .connections
            .values_mut()
            .filter(|connection| connection.role == Role::Watching)
        {
            connection.send([&frame, &[]]);
        }
    }

    fn connection_ready(&mut self, number: u64, event: Ready) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        if event.write {
            connection.flush();
        }
        match connection.role.clone() {
            Role::Asking => {
                if let Some(body) = connection.read_request(&mut self.buffer) {
                    match protocol::decode(&body) {
                        Ok(request) => self.request(number, request),
                        Err(error) => self.refuse(number, &error),
                    }
                }
            }
            Role::Attached { session, to } if event.read && !connection.input_ended => {
                match rustix::io::read(&connection.fd, &mut self.buffer[..]) {
                    Ok(0) => connection.input_ended = true,
                    Ok(count) => {
                        let session = self
                            .sessions
                            .iter_mut()
                            .find(|candidate| candidate.number == session);
                        if let (Some(session), true) = (session, to.stdin) {
                            session.feed(&self.poller, &self.buffer[..count]);
                        }
                        return;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => return,
                    Err(_) => connection.dead = true,
                }
                self.client_input_ended(session, &to);
            }
            Role::Watching | Role::Closing => {
                // Nothing is expected here but the end.
                if event.read && !matches!(rustix::io::read(&connection.fd, &mut self.buffer[..]), Ok(1..)) {
                    connection.input_ended = true;
                    connection.dead |= event.hangup;
                }
            }
            Role::Attached { .. } | Role::Waiting => {}
        }
        if event.hangup
            && let Some(connection) = self.connections.get_mut(&number)
        {
            connection.dead = true;
        }
    }

    fn client_input_ended(&mut self, session: u64, to: &Attach) {
        let session = self
            .sessions
            .iter_mut()
            .find(|candidate| candidate.number == session);
        if let Some(session) = session
            && to.stdin
            && session.input_once
        {
            session.end_input(&self.poller);
        }
    }

    /// A client is gone: what was to live no longer than it does not.
    fn client_left(&mut self, session: u64) {
        let leashed = self.sessions.iter().position(|candidate| {
            candidate.number == session && candidate.leashed && candidate.exit.is_none()
        });
        let Some(index) = leashed else { return };
        match &self.sessions[index].program {
            Program::Host { pidfd, .. } => {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
            Program::Guest { .. } => {
                let exec = self.sessions[index].exec.clone();
                self.kill_in_guest(exec.as_deref());
            }
        }
    }

    fn refuse(&mut self, number: u64, error: &Error) {
        self.tell(number, &Reply::Failed(error.report()));
        self.close_later(number);
    }

    fn close_later(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.role = Role::Closing;
        }
    }

    fn request(&mut self, number: u64, request: Request) {
        let done = match request {
            Request::Watch => {
                let status = self.status();
                self.tell(number, &Reply::Status(status));
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.role = Role::Watching;
                }
                if let Some(exit) = self.exit {
                    self.tell(number, &Event::Exited(exit));
                }
                return;
            }
            Request::Attach(to) => {
                if self.exit.is_some() {
                    self.refuse(
                        number,
                        &Error::new(ErrorKind::Conflict, "the container has exited"),
                    );
                    return;
                }
                self.tell(number, &Reply::Done);
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.role = Role::Attached { session: FIRST, to };
                }
                return;
            }
            Request::Hand(what) if self.guest.is_some() => {
                self.hand_out(number, what);
                return;
            }
            Request::Exec(exec) => {
                if let Err(error) = self.exec(number, exec) {
                    self.refuse(number, &error);
                }
                return;
            }
            Request::Resize { .. } | Request::Kill { .. } | Request::Ask(_) if self.guest.is_some() => {
                if let Err(error) = self.ask_guest(number, request) {
                    self.refuse(number, &error);
                }
                return;
            }
            Request::Resize { exec, size } => self.resize(exec.as_deref(), size),
            Request::Kill { exec, signal, all } => self.kill(exec.as_deref(), signal, all),
            Request::Ask(_) | Request::Hand(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "the container has no kernel of its own that could be asked",
            )),
        };
        match done {
            Ok(()) => {
                self.tell(number, &Reply::Done);
                self.close_later(number);
            }
            Err(error) => self.refuse(number, &error),
        }
    }

    fn status(&self) -> Status {
        let execs = self
            .sessions
            .iter()
            .filter(|session| session.exit.is_none())
            .filter_map(|session| session.exec.clone().map(|id| (id, session.program.pid())));
        Status {
            pid: self.init_pid.as_raw_nonzero().get(),
            started_at: self.started_at,
            execs: execs.collect(),
            oom_kills: self.oom_kills,
            exit: self.exit,
        }
    }

    fn session(&self, exec: Option<&str>) -> Result<&Session> {
        self.sessions
            .iter()
            .find(|session| session.exec.as_deref() == exec && session.exit.is_none())
            .ok_or_else(not_running)
    }

    fn resize(&self, exec: Option<&str>, size: ConsoleSize) -> Result<()> {
        match self.session(exec)?.program.terminal() {
            Some(master) => terminal::resize(master.as_fd(), size),
            // Clients tell their size before they know; runc's shims take it as well.
            None => Ok(()),
        }
    }

    fn kill(&self, exec: Option<&str>, signal: i32, all: bool) -> Result<()> {
        let session = self.session(exec)?;
        // SAFETY: kill-like calls only pass the number on; the kernel refuses numbers that are no signals.
        let signal = (0 < signal && signal <= 64)
            .then(|| unsafe { Signal::from_raw_unchecked(signal) })
            .ok_or_else(|| Error::invalid(format!("{signal} is not a signal number")))?;
        if all && let Some(cgroup) = &self.cgroup {
            return cgroup.kill_all(signal);
        }
        let Program::Host { pidfd, .. } = &session.program else {
            return Err(not_running());
        };
        match pidfd_send_signal(pidfd, signal) {
            Err(Errno::SRCH) => Err(not_running()),
            other => other.context(|| "send the signal"),
        }
    }

    /// A pidfd became readable: the process is to be reaped. Or its end was told.
    fn process_ended(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        let pidfd = match &session.program {
            Program::Guest { .. } => return self.told_in_guest(index),
            Program::Host { pidfd, .. } => pidfd,
        };
        if session.exit.is_some() {
            return;
        }
        let (code, signal) = match waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => {
                let signal = status.terminating_signal();
                (
                    status.exit_status().unwrap_or_else(|| 128 + signal.unwrap_or(0)),
                    signal,
                )
            }
            Ok(None) | Err(Errno::INTR) => return,
            // Not our child: nothing more can be known.
            Err(_) => (255, None),
        };
        session.exit = Some(Exit {
            code,
            signal,
            oom_killed: false,
            at: now(),
        });
        self.poller.remove(pidfd);
        session.ended(&mut self.poller);
        if session.number == FIRST {
            // Whoever shares the host's PID namespace does not die with the first process.
            if self
                .config
                .spec
                .linux()
                .namespace(NamespaceKind::Pid)
                .is_none_or(|namespace| namespace.path.is_some())
                && let Some(cgroup) = &self.cgroup
            {
                let _ = cgroup.kill_all(Signal::KILL);
            }
            // The streams may be open elsewhere: in a container they were passed to, in a process of the host.
            self.drain(index);
            self.sessions[index].linger = Some(Instant::now() + output::LINGER);
        } else {
            // Children it left behind may keep its streams open for ever: what is there now is all there is.
            self.end_outputs(index);
        }
    }

    /// After each round: closes what is done, pauses and resumes, finishes ended processes.
    fn settle(&mut self) {
        let held = self.sessions.len() + self.connections.len();
        let mut index = 0;
        while index < self.sessions.len() {
            if self.sessions[index].finished() && self.guest_lets_go(index) {
                let session = self.sessions.remove(index);
                self.finish(session);
            } else {
                index += 1;
            }
        }
        for session in &mut self.sessions {
            let lagging = self.connections.values().any(|connection| {
                matches!(&connection.role, Role::Attached { session: number, .. } if *number == session.number)
                    && connection.queued() > HIGH_WATER
                    && !connection.dead
            });
            for output in &mut session.outputs {
                if lagging != output.paused {
                    output.paused = lagging;
                    self.poller.set(
                        output.token,
                        &output.fd,
                        Interest {
                            read: !lagging,
                            write: false,
                        },
                    );
                }
            }
        }
        let mut gone = Vec::new();
        for connection in self.connections.values_mut() {
            let reading = match &connection.role {
                Role::Attached { session, .. } => self
                    .sessions
                    .iter()
                    .find(|candidate| candidate.number == *session)
                    .is_none_or(Session::wants_input),
                // What follows its request is the process's.
                Role::Waiting => false,
                _ => true,
            };
            connection.update(&self.poller, reading);
            if connection.role == Role::Closing && connection.queued() == 0 {
                connection.dead = true;
            }
            if connection.dead {
                self.poller.remove(&connection.fd);
            }
            if connection.dead
                && let Role::Attached { session, to } = &connection.role
            {
                gone.push((*session, to.clone()));
            }
        }
        self.connections.retain(|_, connection| !connection.dead);
        for (session, to) in gone {
            self.client_input_ended(session, &to);
            self.client_left(session);
        }
        if self.refusing && self.sessions.len() + self.connections.len() < held {
            self.refusing = false;
            self.poller
                .set(self.listener_token, &self.listener, Interest::READ);
        }
    }

    fn finish(&mut self, session: Session) {
        let Some(mut exit) = session.exit else { return };
        if session.number == FIRST {
            exit = self.container_ended(exit);
        }
        for connection in self.connections.values_mut() {
            if matches!(&connection.role, Role::Attached { session: number, .. } if *number == session.number)
            {
                connection.role = Role::Closing;
            }
        }
        match session.exec {
            Some(id) => self.announce(&Event::ExecExited { id, exit }),
            None => {
                self.exit = Some(exit);
                self.announce(&Event::Exited(exit));
            }
        }
    }

    /// Removes what is left of the container and records how it ended.
    fn container_ended(&mut self, mut exit: Exit) -> Exit {
        if let Some((events, _)) = &mut self.oom {
            let kills = events.acknowledge().unwrap_or(0);
            self.count_oom(kills);
        }
        exit.oom_killed |= self.oom_kills > 0;
        self.give_up_starting();
        self.end_guest();
        // Execs end with the PID namespace; without one they were killed with the cgroup. They are reaped here.
        for index in 0..self.sessions.len() {
            self.sessions[index].outputs.clear();
            let ended = &self.sessions[index];
            if ended.exit.is_none() {
                if let Program::Host { pidfd, .. } = &ended.program {
                    let _ = pidfd_send_signal(pidfd, Signal::KILL);
                    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                }
                self.sessions[index].exit = Some(Exit {
                    code: 137,
                    signal: Some(9),
                    oom_killed: false,
                    at: now(),
                });
            }
        }
        if let Some(cgroup) = self.cgroup.take() {
            let _ = cgroup.clear();
        }
        if let Some(configured) = &self.config.spec.hooks {
            let state = hook_state(&self.config.id, bundle_of(&self.config), "stopped", 0);
            let _ = hooks::run("poststop", &configured.poststop, &state);
        }
        // The record is what a later daemon finds: written before anyone is told.
        if record(&self.config.exit_file, exit, self.config.durable).is_err() {
            let _ = record_aside(&self.dir, exit);
        }
        exit
    }
}

fn not_running() -> Error {
    Error::new(ErrorKind::NotFound, "the process is not running")
}

/// What a server watches from its beginning.
struct Watch {
    poller: Poller,
    listener: Token,
    oom: Option<(OomEvents, Token)>,
}

impl Watch {
    fn new(listener: &OwnedFd, cgroup: &Cgroup) -> Result<Self> {
        let mut poller = Poller::new()?;
        let listener = poller.add(listener, Interest::READ)?;
        let oom = match cgroup.oom_events() {
            Ok(events) => {
                let token = poller.add_with(&events, events.interest())?;
                Some((events, token))
            }
            Err(_) => None,
        };
        Ok(Self {
            poller,
            listener,
            oom,
        })
    }
}

/// The container's own session.
fn first(config: &ShimConfig, program: Program, ends: super::session::Ends) -> NewSession {
    NewSession {
        number: FIRST,
        exec: None,
        program,
        ends,
        input_once: config.stdin_once,
        leashed: config.leashed,
    }
}

/// Where hooks are told to look for the configuration.
pub(super) fn bundle_of(config: &ShimConfig) -> &Path {
    config.bundle.as_deref().unwrap_or(Path::new("/"))
}

/// The container's state (runtime-spec, runtime.md) for hooks and seccomp listeners.
pub(super) fn hook_state(id: &str, bundle: &Path, status: &str, pid: i32) -> Vec<u8> {
    serde_json::json!({ "ociVersion": crate::spec::OCI_VERSION, "id": id, "status": status, "pid": pid, "bundle": bundle })
        .to_string()
        .into_bytes()
}

/// A compiled seccomp program from a file.
pub(super) fn load_program(path: &Path) -> Result<seccomp::Program> {
    let bytes = std::fs::read(path).context(|| format!("read the seccomp program {}", path.display()))?;
    seccomp::Program::from_bytes(&bytes)
}

/// Takes ownership of an inherited descriptor.
///
/// # Safety
/// `fd` must be open and owned by nobody else in this process.
pub(super) unsafe fn inherited(fd: i32) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Standard streams for a container's process according to its configuration.
pub(super) fn container_streams(config: &ShimConfig) -> Result<(Stdio, super::session::Ends)> {
    let terminal = config
        .spec
        .process
        .as_ref()
        .is_some_and(|process| process.terminal);
    streams(terminal, config.open_stdin)
}
