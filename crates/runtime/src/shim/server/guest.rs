//! A container behind a kernel of its own: asking its init, hearing of ends, and the machine's end.
//!
//! Everything here is a connection to the guest's init that is watched like all else; what is not answered in time is given up.
//! When the first process has ended and its output is here, the guest is asked to write everything to its disks and to power
//! off; only then the container has ended. SIGKILL is given to the guest first: its processes end with their output complete. A guest that
//! does not obey in time is killed from outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vessel_init::guest::client;
use vessel_init::guest::protocol::{self as init, Reply as Answer, Request as Asked};
use vessel_vmm::control::Event;

use super::exec::has_exited;
use super::{FIRST, Server, Watch, first, load_program, not_running, now, output};
use crate::cgroup::Cgroup;
use crate::shim::connection::Role;
use crate::shim::log::{Log, Stream};
use crate::shim::machine::channel::{Channel, in_the_guest, not_executed};
use crate::shim::machine::relay::Relay;
use crate::shim::machine::vmm::Heard;
use crate::shim::machine::{First, Machine, words};
use crate::shim::poller::{Interest, Ready, Token};
use crate::shim::protocol::{
    Attach, ExecRequest, Exit, GuestProcess, Held, Question, Reply, Request, ShimConfig,
};
use crate::shim::session::{Ends, NewSession, Program, Session};
use crate::{Error, ErrorKind, Result};

/// How long the guest's init may take for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a guest has for its end after SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How long a guest has to write everything to its disks and power off.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Questions for the DNS server that are under way; more are not asked.
const RELAYS: usize = 64;

/// The machine, and what is asked of it.
pub(super) struct Guest {
    machine: Machine,
    /// Of the monitor: its process, its control socket, and the pipes it prints to.
    end: Token,
    control: Token,
    console: Option<Token>,
    report: Option<Token>,
    calls: Vec<Call>,
    starting: Vec<StartingInGuest>,
    relays: Vec<Relay>,
    /// It was asked to power off.
    ending: bool,
    /// When it is killed if it has not ended by itself.
    kill_at: Option<Instant>,
    /// The monitor is gone.
    ended: bool,
}

/// A question that is not answered.
struct Call {
    channel: Channel,
    /// Who waits for the answer; nobody: it is the machine's end that was asked for.
    connection: Option<u64>,
    deadline: Instant,
}

/// An exec whose program was not executed yet.
struct StartingInGuest {
    id: String,
    connection: u64,
    attach: Option<Attach>,
    leashed: bool,
    terminal: bool,
    told: Channel,
    /// Its process ID, when the program was executed.
    pid: Option<i32>,
    /// The standard streams, and whether the guest knows of them.
    streams: Vec<(Channel, u8, bool)>,
    deadline: Instant,
}

impl Server {
    /// Takes over a machine in which the container's process was just started.
    ///
    /// # Errors
    /// When it cannot be watched; nothing is left of it then.
    pub fn with_machine(
        config: ShimConfig,
        dir: OwnedFd,
        listener: OwnedFd,
        (machine, first_process, cgroup): (Machine, First, Cgroup),
        log: Option<Log>,
    ) -> Result<Self> {
        let First {
            pid,
            terminal,
            told,
            input,
            outputs,
        } = first_process;
        let watched = Watch::new(&listener, &cgroup).and_then(|mut watch| {
            let vmm = &machine.vmm;
            let copy = vmm
                .pidfd
                .try_clone()
                .map_err(|error| Error::with_source(ErrorKind::System, "keep the monitor's pidfd", error))?;
            let _ = rustix::io::ioctl_fionbio(&told, true);
            let told = Channel::listening(&mut watch.poller, told)?;
            let program = Program::Guest { pid, terminal, told };
            let session = Session::new(
                &mut watch.poller,
                first(&config, program, Ends { input, outputs }),
            )?;
            let mut add = |fd: BorrowedFd<'_>| watch.poller.add(fd, Interest::READ);
            let tokens = (
                add(vmm.pidfd.as_fd())?,
                add(vmm.control.as_fd())?,
                add(vmm.console.pipe.as_fd()).ok(),
                add(vmm.report.pipe.as_fd()).ok(),
            );
            Ok((watch, session, tokens, copy))
        });
        let (watch, session, (end, control, console, report), copy) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                machine.vmm.kill();
                machine.reap();
                let _ = cgroup.clear();
                return Err(error);
            }
        };
        let held = (cgroup, machine.vmm.pid, copy);
        let mut server = Self::holding(config, dir, listener, watch, session, held, log);
        server.guest = Some(Guest {
            machine,
            end,
            control,
            console,
            report,
            calls: Vec::new(),
            starting: Vec::new(),
            relays: Vec::new(),
            ending: false,
            kill_at: None,
            ended: false,
        });
        Ok(server)
    }

    /// Handles an event of the machine's.
    pub(super) fn guest_ready(&mut self, event: Ready) -> bool {
        let Some(guest) = &mut self.guest else {
            return false;
        };
        if event.token == guest.end {
            self.machine_ended();
        } else if event.token == guest.control {
            self.hear_monitor();
        } else if guest.console == Some(event.token) {
            if !guest.machine.vmm.console.read() {
                self.poller.remove(&guest.machine.vmm.console.pipe);
                guest.console = None;
            }
        } else if guest.report == Some(event.token) {
            if !guest.machine.vmm.report.read() {
                self.poller.remove(&guest.machine.vmm.report.pipe);
                guest.report = None;
            }
        } else if let Some(index) = guest
            .calls
            .iter()
            .position(|call| call.channel.token == event.token)
        {
            self.call_ready(index, event);
        } else if let Some(index) = guest.relays.iter().position(|relay| relay.has(event)) {
            if !guest.relays[index].push(&self.poller, &mut self.buffer) {
                guest.relays.swap_remove(index);
            }
        } else if let Some(index) = guest.starting.iter().position(|exec| exec.has(event)) {
            self.exec_ready(index, event);
        } else {
            return false;
        }
        true
    }

    /// Passes a request on to the guest. It is answered when the guest has answered.
    pub(super) fn ask_guest(&mut self, number: u64, request: Request) -> Result<()> {
        let name = |exec: Option<String>| exec.unwrap_or_else(|| words::FIRST.to_owned());
        let asked = match request {
            Request::Ask(Question::Processes) => Asked::Top,
            Request::Ask(Question::Statistics) => Asked::Statistics,
            Request::Ask(Question::Clock) => Asked::Clock { realtime: realtime() },
            Request::Resize { exec, size } => {
                // Clients tell their size before they know; without a terminal there is none to change.
                if !self.session(exec.as_deref())?.program.has_terminal() {
                    self.tell(number, &Reply::Done);
                    self.close_later(number);
                    return Ok(());
                }
                Asked::Resize {
                    process: name(exec),
                    size: words::size(size),
                }
            }
            Request::Kill { exec, signal, all } => {
                self.session(exec.as_deref())?;
                if !(0 < signal && signal <= 64) {
                    return Err(Error::invalid(format!("{signal} is not a signal number")));
                }
                if exec.is_none() && signal == libc::SIGKILL {
                    // This one is obeyed, by whomever.
                    self.kill_in_guest(None);
                    self.tell(number, &Reply::Done);
                    self.close_later(number);
                    return Ok(());
                }
                Asked::Signal {
                    process: name(exec),
                    signal,
                    all,
                }
            }
            _ => return Err(Error::invalid("this is nothing to ask a machine")),
        };
        self.call(&asked, Some(number))?;
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.role = Role::Waiting;
        }
        Ok(())
    }

    /// Hands out what the daemon cannot reach by a process.
    pub(super) fn hand_out(&mut self, number: u64, what: Held) {
        let guest = self.guest.as_ref().filter(|_| self.exit.is_none());
        let held = guest.and_then(|guest| match what {
            Held::Root => Some(&guest.machine.root.directory),
            Held::Network => guest.machine.netns.as_ref(),
        });
        match (held, crate::shim::protocol::encode(&Reply::Done)) {
            (Some(held), Ok(frame)) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.send_with(&frame, held.as_fd());
                }
                self.close_later(number);
            }
            _ => self.refuse(number, &has_exited()),
        }
    }

    /// Kills a process in the guest; with the first one the machine ends, if need be by force.
    pub(super) fn kill_in_guest(&mut self, exec: Option<&str>) {
        let asked = Asked::Signal {
            process: exec.unwrap_or(words::FIRST).to_owned(),
            signal: libc::SIGKILL,
            all: false,
        };
        let told = self.call(&asked, None);
        if exec.is_none()
            && let Some(guest) = &mut self.guest
        {
            match told {
                Ok(()) => {
                    guest.kill_at.get_or_insert_with(|| Instant::now() + GRACE);
                }
                Err(_) => guest.machine.vmm.kill(),
            }
        }
    }

    fn call(&mut self, asked: &Asked, connection: Option<u64>) -> Result<()> {
        let Some(guest) = self.guest.as_mut().filter(|guest| !guest.ended) else {
            return Err(has_exited());
        };
        let fd = guest.machine.vmm.connect(init::PORT)?;
        guest.calls.push(Call {
            channel: Channel::new(&mut self.poller, fd, asked)?,
            connection,
            deadline: Instant::now() + ANSWER,
        });
        Ok(())
    }

    fn call_ready(&mut self, index: usize, event: Ready) {
        let Some(guest) = &mut self.guest else { return };
        let call = &mut guest.calls[index];
        if event.write {
            call.channel.push(&self.poller);
        }
        let answer = match call.channel.hear() {
            Ok(None) => return,
            Ok(Some(answer)) => Ok(answer),
            Err(error) => Err(error),
        };
        let call = guest.calls.swap_remove(index);
        let Some(number) = call.connection else { return };
        let reply = answer.and_then(|answer| match answer {
            Answer::Done => Ok(Reply::Done),
            Answer::Processes(list) => Ok(Reply::Processes(list.into_iter().map(process).collect())),
            Answer::Files(files) => Ok(Reply::Files(
                files
                    .into_iter()
                    .map(|file| (file.name, lossy(&file.content)))
                    .collect(),
            )),
            _ => Err(in_the_guest(client::Error::Unexpected)),
        });
        match reply {
            Ok(reply) => {
                self.tell(number, &reply);
                self.close_later(number);
            }
            Err(error) => self.refuse(number, &error),
        }
    }

    /// Hears what the monitor says.
    fn hear_monitor(&mut self) {
        loop {
            let Some(guest) = &mut self.guest else { return };
            match guest.machine.vmm.hear() {
                Ok(Heard::Said(
                    Event::Accepted {
                        port: init::DNS_PORT, ..
                    },
                    Some(stream),
                )) => {
                    let Some(netns) = guest.machine.names() else {
                        continue;
                    };
                    if guest.relays.len() < RELAYS
                        && let Ok(relay) = Relay::begin(&mut self.poller, stream, netns)
                    {
                        guest.relays.push(relay);
                    }
                }
                Ok(Heard::Said(..)) => {}
                Ok(Heard::Nothing) => return,
                Ok(Heard::End) => {
                    self.poller.remove(&guest.machine.vmm.control);
                    return;
                }
                // A monitor that talks nonsense is no monitor.
                Err(_) => {
                    self.poller.remove(&guest.machine.vmm.control);
                    guest.machine.vmm.kill();
                    return;
                }
            }
        }
    }

    /// The monitor's process has ended, and with it everything in the machine.
    fn machine_ended(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        let Some((code, signal)) = guest.machine.vmm.ended() else {
            return;
        };
        self.poller.remove(&guest.machine.vmm.pidfd);
        guest.ended = true;
        guest.kill_at = None;
        guest.relays.clear();
        let calls = std::mem::take(&mut guest.calls);
        for number in calls.into_iter().filter_map(|call| call.connection) {
            self.refuse(number, &has_exited());
        }
        self.give_up_in_guest(&has_exited());
        // One that powered off by itself, or whose kernel panicked, without the process's end being told: nothing is known of it.
        let code = if code == 0 { 255 } else { code };
        for index in 0..self.sessions.len() {
            // It may have been told just before.
            self.told_in_guest(index);
            if self.sessions[index].exit.is_none() {
                self.exited_in_guest(index, code, signal, false);
            }
        }
    }

    /// The end of a process in the guest was told, or never will be.
    pub(super) fn told_in_guest(&mut self, index: usize) {
        let session = &mut self.sessions[index];
        let (Program::Guest { told, .. }, None) = (&mut session.program, session.exit) else {
            return;
        };
        let answer = match told.hear() {
            Ok(None) => return,
            Ok(Some(Answer::Exited(exit))) => Some(exit),
            Ok(Some(_)) | Err(_) => None,
        };
        self.poller.remove(&told.fd);
        match answer {
            Some(exit) => {
                let signal =
                    (exit.status.is_none() && (1..=64).contains(&exit.signal)).then_some(exit.signal);
                let code = match (exit.status, signal) {
                    (Some(status), _) => status & 0xff,
                    (None, Some(signal)) => 128 + signal,
                    (None, None) => 255,
                };
                if exit.oom_kills > self.oom_kills {
                    self.count_oom(exit.oom_kills);
                }
                self.exited_in_guest(index, code, signal, exit.oom_kills > 0);
            }
            // The monitor's end is about to be heard of, unless the guest's init has lost its mind.
            None => {
                let first = session.number == FIRST;
                match self.guest.as_mut().filter(|guest| !guest.ended) {
                    Some(guest) if first => {
                        guest.kill_at.get_or_insert_with(|| Instant::now() + GRACE);
                    }
                    Some(_) => self.exited_in_guest(index, 255, None, false),
                    None => {}
                }
            }
        }
    }

    fn exited_in_guest(&mut self, index: usize, code: i32, signal: Option<i32>, oom_killed: bool) {
        let session = &mut self.sessions[index];
        session.exit = Some(Exit {
            code,
            signal,
            oom_killed,
            at: now(),
        });
        // Its output comes by other ways than the news of its end.
        session.linger = Some(Instant::now() + output::LINGER);
    }

    /// Whether a session that has ended may be finished. The first one only when the machine has ended, too, which it is asked
    /// to do now.
    pub(super) fn guest_lets_go(&mut self, index: usize) -> bool {
        let first = self.sessions[index].number == FIRST;
        let Some(guest) = self.guest.as_mut().filter(|guest| first && !guest.ended) else {
            return true;
        };
        if !guest.ending {
            guest.ending = true;
            guest.kill_at = Some(Instant::now() + SHUTDOWN);
            if self.call(&Asked::Shutdown { restart: false }, None).is_err()
                && let Some(guest) = &self.guest
            {
                guest.machine.vmm.kill();
            }
        }
        false
    }

    /// When something asked of the guest has had its time.
    pub(super) fn guest_deadline(&self) -> Option<Instant> {
        let guest = self.guest.as_ref()?;
        let calls = guest.calls.iter().map(|call| call.deadline);
        let starting = guest.starting.iter().map(|exec| exec.deadline);
        calls.chain(starting).chain(guest.kill_at).min()
    }

    /// Gives up what the guest does not do in time.
    pub(super) fn guest_overdue(&mut self) {
        let now = Instant::now();
        let Some(guest) = &mut self.guest else { return };
        if guest.kill_at.is_some_and(|at| at <= now) {
            guest.kill_at = None;
            guest.machine.vmm.kill();
        }
        let silent = Error::new(
            ErrorKind::System,
            format!(
                "the machine's init did not answer within {} s: is the machine paused, or its kernel stuck?",
                ANSWER.as_secs()
            ),
        );
        while let Some(index) = self.overdue(now) {
            let call = self.guest.as_mut().map(|guest| guest.calls.swap_remove(index));
            if let Some(number) = call.and_then(|call| call.connection) {
                self.refuse(number, &silent);
            }
        }
        while let Some(index) = self
            .guest
            .as_ref()
            .and_then(|guest| guest.starting.iter().position(|exec| exec.deadline <= now))
        {
            self.give_up_exec(index, &silent);
        }
    }

    fn overdue(&self, now: Instant) -> Option<usize> {
        let guest = self.guest.as_ref()?;
        guest.calls.iter().position(|call| call.deadline <= now)
    }

    /// Whatever is left of the machine is gone after this.
    pub(super) fn end_guest(&mut self) {
        if let Some(guest) = &mut self.guest
            && !guest.ended
        {
            guest.ended = true;
            guest.machine.vmm.kill();
            guest.machine.reap();
        }
        self.give_up_in_guest(&has_exited());
    }

    /// Begins an exec in the guest; the reply follows when its program was executed.
    pub(super) fn exec_in_guest(&mut self, number: u64, request: ExecRequest) -> Result<()> {
        let Some(guest) = self.guest.as_mut().filter(|guest| !guest.ended && !guest.ending) else {
            return Err(has_exited());
        };
        if guest.starting.iter().any(|exec| exec.id == request.id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("exec {} exists already", request.id),
            ));
        }
        let filter = request.seccomp_program.as_deref().map(load_program).transpose()?;
        let wants_input = request.attach.as_ref().is_some_and(|attach| attach.stdin);
        // It ends when its connection does, in any case: what nobody here knows of would run on.
        let process = words::process(&request.id, &request.process, wants_input, true, filter.as_ref())?;
        let terminal = process.terminal.is_some();
        let wanted = [(process.stdin, 0), (process.stdout, 1), (process.stderr, 2)];
        let vmm = &mut guest.machine.vmm;
        let mut streams = Vec::new();
        for (_, number) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
            let announced = Asked::Stream(init::Stream {
                process: request.id.clone(),
                number,
            });
            let channel = Channel::new(&mut self.poller, vmm.connect(init::PORT)?, &announced)?;
            streams.push((channel, number, false));
        }
        let told = Channel::new(&mut self.poller, vmm.connect(init::PORT)?, &Asked::Exec(process))?;
        guest.starting.push(StartingInGuest {
            id: request.id,
            connection: number,
            attach: request.attach,
            leashed: request.leashed,
            terminal,
            told,
            pid: None,
            streams,
            deadline: Instant::now() + ANSWER,
        });
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.role = Role::Waiting;
        }
        Ok(())
    }

    fn exec_ready(&mut self, index: usize, event: Ready) {
        let Some(guest) = &mut self.guest else { return };
        let exec = &mut guest.starting[index];
        match exec.ready(event, &self.poller) {
            Ok(false) => {}
            Ok(true) => {
                let exec = guest.starting.swap_remove(index);
                let number = exec.connection;
                if let Err(error) = self.executed_in_guest(exec) {
                    self.refuse(number, &error);
                }
            }
            Err(error) => self.give_up_exec(index, &error),
        }
    }

    fn executed_in_guest(&mut self, exec: StartingInGuest) -> Result<()> {
        let number = self.next;
        self.next += 1;
        let pid = exec.pid.ok_or_else(not_running)?;
        let mut ends = Ends::default();
        for (channel, number, _) in exec.streams {
            // From here on they are bytes, watched for themselves.
            self.poller.remove(&channel.fd);
            match number {
                0 => ends.input = Some(channel.fd),
                1 => ends.outputs.push((channel.fd, Stream::Output)),
                _ => ends.outputs.push((channel.fd, Stream::Errors)),
            }
        }
        let session = Session::new(
            &mut self.poller,
            NewSession {
                number,
                exec: Some(exec.id),
                program: Program::Guest {
                    pid,
                    terminal: exec.terminal,
                    told: exec.told,
                },
                ends,
                input_once: true,
                leashed: exec.leashed,
            },
        )?;
        self.sessions.push(session);
        self.tell(exec.connection, &Reply::Started { pid });
        match self.connections.get_mut(&exec.connection) {
            Some(connection) => {
                connection.role = match exec.attach {
                    Some(to) => Role::Attached { session: number, to },
                    None => Role::Closing,
                };
            }
            None => self.client_left(number),
        }
        // Its end may have been told with its beginning.
        let index = self.sessions.len() - 1;
        self.told_in_guest(index);
        Ok(())
    }

    fn give_up_exec(&mut self, index: usize, error: &Error) {
        let Some(guest) = &mut self.guest else { return };
        // Its connections close with it, and so the process, should there be one, is killed.
        let exec = guest.starting.swap_remove(index);
        self.refuse(exec.connection, error);
    }

    fn give_up_in_guest(&mut self, error: &Error) {
        while self
            .guest
            .as_ref()
            .is_some_and(|guest| !guest.starting.is_empty())
        {
            self.give_up_exec(0, error);
        }
    }
}

impl StartingInGuest {
    fn has(&self, event: Ready) -> bool {
        self.told.token == event.token
            || self
                .streams
                .iter()
                .any(|(channel, ..)| channel.token == event.token)
    }

    /// Hears what there is. True when the program was executed and all streams are known.
    fn ready(&mut self, event: Ready, poller: &crate::shim::poller::Poller) -> Result<bool> {
        let unexpected = || in_the_guest(client::Error::Unexpected);
        if self.told.token == event.token {
            if event.write {
                self.told.push(poller);
            }
            if self.pid.is_none() {
                match self.told.hear().map_err(not_executed)? {
                    None => {}
                    Some(Answer::Started { pid }) => self.pid = Some(pid),
                    Some(_) => return Err(unexpected()),
                }
            }
            if self.pid.is_some() {
                // What follows is for the session; until there is one it would be told again and again.
                poller.set(self.told.token, &self.told.fd, Interest::NONE);
            }
        }
        for (channel, _, known) in &mut self.streams {
            if channel.token != event.token || *known {
                continue;
            }
            if event.write {
                channel.push(poller);
            }
            match channel.hear()? {
                None => {}
                Some(Answer::Done) => {
                    *known = true;
                    poller.set(channel.token, &channel.fd, Interest::NONE);
                }
                Some(_) => return Err(unexpected()),
            }
        }
        let complete = self.pid.is_some() && self.streams.iter().all(|(.., known)| *known);
        if complete {
            poller.set(self.told.token, &self.told.fd, Interest::READ);
        }
        Ok(complete)
    }
}

fn realtime() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn process(files: init::ProcessFiles) -> GuestProcess {
    GuestProcess {
        pid: files.pid,
        stat: lossy(&files.stat),
        status: lossy(&files.status),
        cmdline: lossy(&files.cmdline),
    }
}
