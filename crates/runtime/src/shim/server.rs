//! The shim's loop: one thread, one epoll set, nothing that blocks.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::connection::{Connection, HIGH_WATER, Role};
use super::log::{Log, Stream};
use super::poller::{Interest, Poller, Ready, Token};
use super::protocol::{self, Attach, Event, ExecRequest, Exit, Reply, Request, ShimConfig, Status};
use super::session::{NewSession, Session, streams};
use crate::cgroup::{Cgroup, OomEvents};
use crate::error::Context;
use crate::process::{self, ExecPlan, Init, Stdio, hooks, terminal};
use crate::spec::{ConsoleSize, NamespaceKind};
use crate::{Error, ErrorKind, Result, seccomp};

/// How long clients may take to fetch the last output after the container's end.
const FLUSH_TIME: Duration = Duration::from_secs(10);

/// How much is read at once.
const PIECE: usize = 64 << 10;

/// The number of the container's own session.
const FIRST: u64 = 0;

/// A shim that holds a running container.
pub(super) struct Server {
    config: ShimConfig,
    poller: Poller,
    listener: OwnedFd,
    listener_token: Token,
    connections: BTreeMap<u64, Connection>,
    sessions: Vec<Session>,
    next: u64,
    log: Option<Log>,
    cgroup: Option<Cgroup>,
    oom: Option<(OomEvents, Token)>,
    oom_kills: u64,
    init_pid: Pid,
    init_pidfd: OwnedFd,
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
    /// Takes over a container that was just started.
    pub fn new(
        config: ShimConfig,
        listener: OwnedFd,
        init: Init,
        ends: super::session::Ends,
        log: Option<Log>,
    ) -> Result<Self> {
        let mut poller = Poller::new()?;
        let listener_token = poller.add(&listener, Interest::READ)?;
        let oom = match init.cgroup.oom_events() {
            Ok(events) => {
                let token = poller.add_with(&events, events.interest())?;
                Some((events, token))
            }
            Err(_) => None,
        };
        let init_pidfd = init.pidfd.try_clone().context(|| "keep the container's pidfd")?;
        let session = Session::new(
            &mut poller,
            NewSession {
                number: FIRST,
                exec: None,
                pid: init.pid,
                pidfd: init.pidfd,
                terminal: init.terminal,
                ends,
                input_once: config.stdin_once,
                leashed: false,
            },
        )?;
        Ok(Self {
            config,
            poller,
            listener,
            listener_token,
            connections: BTreeMap::new(),
            sessions: vec![session],
            next: FIRST + 1,
            log,
            cgroup: Some(init.cgroup),
            oom,
            oom_kills: 0,
            init_pid: init.pid,
            init_pidfd,
            started_at: now(),
            exit: None,
            buffer: vec![0; PIECE],
        })
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
    pub fn run(mut self) -> Result<()> {
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
            let timeout = deadline.map(|until| {
                u32::try_from(until.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u32::MAX)
                    + 1
            });
            self.poller.wait(&mut ready, timeout)?;
            for event in &ready {
                self.handle(*event);
            }
            self.settle();
        }
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
        for index in 0..self.sessions.len() {
            let session = &mut self.sessions[index];
            if session.pid_token == event.token {
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
                self.read_output(index, output, 1);
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
        while let Ok(fd) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            let _ = self.connect(fd, Role::Asking);
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
            Role::Attached { .. } => {}
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
    fn client_left(&self, session: u64) {
        let leashed = self
            .sessions
            .iter()
            .find(|candidate| candidate.number == session && candidate.leashed && candidate.exit.is_none());
        if let Some(session) = leashed {
            let _ = pidfd_send_signal(&session.pidfd, Signal::KILL);
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
            Request::Exec(exec) => {
                match self.exec(number, exec) {
                    Ok(()) => {}
                    Err(error) => self.refuse(number, &error),
                }
                return;
            }
            Request::Resize { exec, size } => self.resize(exec.as_deref(), size),
            Request::Kill { exec, signal, all } => self.kill(exec.as_deref(), signal, all),
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
            .filter_map(|session| {
                session
                    .exec
                    .clone()
                    .map(|id| (id, session.pid.as_raw_nonzero().get()))
            });
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
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "the process is not running"))
    }

    fn resize(&self, exec: Option<&str>, size: ConsoleSize) -> Result<()> {
        match &self.session(exec)?.terminal {
            Some(master) => terminal::resize(master.as_fd(), size),
            None => Err(Error::new(
                ErrorKind::Conflict,
                "the process has no terminal to resize",
            )),
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
        match pidfd_send_signal(&session.pidfd, signal) {
            Err(Errno::SRCH) => Err(Error::new(ErrorKind::NotFound, "the process is not running")),
            other => other.context(|| "send the signal"),
        }
    }

    fn exec(&mut self, number: u64, request: ExecRequest) -> Result<()> {
        if self
            .sessions
            .iter()
            .any(|session| session.exec.as_ref() == Some(&request.id))
        {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("exec {} exists already", request.id),
            ));
        }
        let (Some(cgroup), None) = (&self.cgroup, self.exit) else {
            return Err(Error::new(ErrorKind::Conflict, "the container has exited"));
        };
        let program = request.seccomp_program.as_deref().map(load_program).transpose()?;
        let wants_input = request.attach.as_ref().is_some_and(|attach| attach.stdin);
        let (stdio, ends) = streams(request.process.terminal, wants_input)?;
        let executed = process::exec(ExecPlan {
            spec: &self.config.spec,
            init: self.init_pidfd.as_fd(),
            init_pid: self.init_pid,
            cgroup,
            process: &request.process,
            seccomp: program,
            stdio,
            preserve_fds: 0,
        })?;
        let session = self.next;
        self.next += 1;
        let pid = executed.pid.as_raw_nonzero().get();
        self.sessions.push(Session::new(
            &mut self.poller,
            NewSession {
                number: session,
                exec: Some(request.id),
                pid: executed.pid,
                pidfd: executed.pidfd,
                terminal: executed.terminal,
                ends,
                input_once: true,
                leashed: request.leashed,
            },
        )?);
        self.tell(number, &Reply::Started { pid });
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.role = match request.attach {
                Some(to) => Role::Attached { session, to },
                None => Role::Closing,
            };
        }
        Ok(())
    }

    /// Reads an output and hands it on, at most `pieces` times; closes it at its end.
    fn read_output(&mut self, session: usize, output: usize, pieces: usize) {
        for _ in 0..pieces {
            let number = self.sessions[session].number;
            let from = &self.sessions[session].outputs[output];
            let stream = from.stream;
            match rustix::io::read(&from.fd, &mut self.buffer[..]) {
                Ok(count @ 1..) => {
                    let bytes = std::mem::take(&mut self.buffer);
                    self.deliver(number, stream, &bytes[..count]);
                    self.buffer = bytes;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                // A terminal whose other side is closed everywhere answers EIO.
                Ok(0) | Err(_) => {
                    self.sessions[session].outputs.remove(output);
                    if number == FIRST
                        && let Some(log) = &mut self.log
                    {
                        log.finish(stream, now());
                    }
                    return;
                }
            }
        }
    }

    fn deliver(&mut self, number: u64, stream: Stream, bytes: &[u8]) {
        if number == FIRST
            && let Some(log) = &mut self.log
        {
            log.write(stream, bytes, now());
        }
        let Some(session) = self.sessions.iter().find(|session| session.number == number) else {
            return;
        };
        let raw = session.terminal.is_some();
        // Docker's multiplexed frame: stream, three zero bytes, length. A piece is far below u32::MAX.
        let length = (bytes.len() as u32).to_be_bytes();
        let header = [stream as u8, 0, 0, 0, length[0], length[1], length[2], length[3]];
        for connection in self.connections.values_mut() {
            let Role::Attached { session, to } = &connection.role else {
                continue;
            };
            let wanted = match stream {
                Stream::Output => to.stdout,
                Stream::Errors => to.stderr,
            };
            if *session == number && (wanted || raw && to.stderr) {
                connection.send(if raw { [&[], bytes] } else { [&header, bytes] });
            }
        }
    }

    /// A pidfd became readable: the process is to be reaped.
    fn process_ended(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        if session.exit.is_some() {
            return;
        }
        let status = match waitid(
            WaitId::PidFd(session.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Ok(Some(status)) => status,
            Ok(None) | Err(Errno::INTR) => return,
            // Not our child: nothing more can be known.
            Err(_) => {
                session.exit = Some(Exit {
                    code: 255,
                    signal: None,
                    oom_killed: false,
                    at: now(),
                });
                return;
            }
        };
        let signal = status.terminating_signal();
        let code = status.exit_status().unwrap_or_else(|| 128 + signal.unwrap_or(0));
        session.exit = Some(Exit {
            code,
            signal,
            oom_killed: false,
            at: now(),
        });
        self.poller.remove(&session.pidfd);
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
        } else {
            // Children it left behind may keep its streams open for ever: what is there now is all there is.
            let session = index;
            while let Some(output) = self.sessions[session].outputs.len().checked_sub(1) {
                self.read_output(session, output, 1024);
                self.sessions[session].outputs.truncate(output);
            }
        }
    }

    /// After each round: closes what is done, pauses and resumes, finishes ended processes.
    fn settle(&mut self) {
        let mut index = 0;
        while index < self.sessions.len() {
            if self.sessions[index].finished() {
                let session = self.sessions.remove(index);
                self.finish(session);
            } else {
                index += 1;
            }
        }
        for session in &mut self.sessions {
            let ended = session.exit.is_some();
            let lagging = self.connections.values().any(|connection| {
                matches!(&connection.role, Role::Attached { session: number, .. } if *number == session.number)
                    && connection.queued() > HIGH_WATER
                    && !connection.dead
            });
            for output in &mut session.outputs {
                let pause = lagging && !ended;
                if pause != output.paused {
                    output.paused = pause;
                    self.poller.set(
                        output.token,
                        &output.fd,
                        Interest {
                            read: !pause,
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
        exit.oom_killed = self.oom_kills > 0;
        // Execs end with the PID namespace; without one they were killed with the cgroup. They are reaped here.
        for index in 0..self.sessions.len() {
            self.sessions[index].outputs.clear();
            let ended = &self.sessions[index];
            if ended.exit.is_none() {
                let _ = pidfd_send_signal(&ended.pidfd, Signal::KILL);
                let _ = waitid(WaitId::PidFd(ended.pidfd.as_fd()), WaitIdOptions::EXITED);
                self.sessions[index].exit = Some(Exit {
                    code: 137,
                    signal: Some(9),
                    oom_killed: false,
                    at: now(),
                });
            }
        }
        if let Some(cgroup) = self.cgroup.take() {
            let _ = cgroup.destroy();
        }
        if let Some(configured) = &self.config.spec.hooks {
            let _ = hooks::run("poststop", &configured.poststop, b"{}");
        }
        // The record is what a later daemon finds: written before anyone is told.
        let _ = record(&self.config.exit_file, exit, self.config.durable);
        exit
    }
}

/// Writes the exit status aside, then puts it in place.
fn record(path: &Path, exit: Exit, durable: bool) -> std::io::Result<()> {
    let text = serde_json::to_vec(&exit)?;
    let aside = path.with_extension("tmp");
    std::fs::write(&aside, text)?;
    if durable {
        std::fs::File::open(&aside)?.sync_all()?;
    }
    std::fs::rename(&aside, path)
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
