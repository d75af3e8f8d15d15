//! The host's processes: from the request over their streams and their program to their end.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use crate::fault::{Context, Fault, Result};
use crate::os::{self, Errno, Fd};
use crate::process::{self, News};
use crate::protocol::{Exit, Failure, Process, Reply, Start, Stream};
use crate::pump::Pump;
use crate::server::{Connection, Role, Server, channel, not_running};
use crate::statistics;

/// What a process was asked to be, until it is.
pub enum Plan {
    First(Start),
    Another(Process),
}

impl Plan {
    fn process(&self) -> &Process {
        match self {
            Self::First(start) => &start.process,
            Self::Another(process) => process,
        }
    }
}

/// A process of the host's making.
pub struct Running {
    pub key: u64,
    pub name: String,
    pub first: bool,
    pub leashed: bool,
    /// Until all its streams are there.
    pub plan: Option<Plan>,
    /// Until its program is executed.
    pub channel: Option<Fd>,
    /// Its streams, while its terminal is not there yet.
    pub held: Vec<(u8, Connection)>,
    /// The child; of another process in the container, the one that leads there.
    pub child: i32,
    pub pid: Option<i32>,
    pub terminal: Option<Fd>,
    /// How it ended, as wait4(2) says.
    pub status: Option<i32>,
    pub over: bool,
}

impl Server {
    pub fn plan(&mut self, index: usize, plan: Plan) {
        let process = plan.process();
        let taken = self.named(&process.name).is_some();
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if taken {
            return connection.refuse(Fault::new(
                Failure::Conflict,
                format!("there is a process {:?} already", process.name),
            ));
        }
        if process.args.is_empty() {
            return connection.refuse(Fault::invalid("there is no program to execute"));
        }
        let key = self.next_key;
        self.next_key += 1;
        connection.role = Role::Follows(key);
        self.processes.push(Running {
            key,
            name: process.name.clone(),
            first: matches!(plan, Plan::First(_)),
            leashed: process.leashed,
            plan: Some(plan),
            channel: None,
            held: Vec::new(),
            child: 0,
            pid: None,
            terminal: None,
            status: None,
            over: false,
        });
        self.try_launch(self.processes.len() - 1);
    }

    pub fn park(&mut self, index: usize, stream: Stream) {
        let late = self
            .named(&stream.process)
            .is_some_and(|process| process.plan.is_none());
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if late || stream.number > 2 {
            return connection.refuse(Fault::new(
                Failure::Conflict,
                format!(
                    "the process {:?} runs already, or has no such stream",
                    stream.process
                ),
            ));
        }
        connection.reply(&Reply::Done);
        connection.flush();
        let waiting = self
            .processes
            .iter()
            .position(|process| process.name == stream.process && process.plan.is_some());
        connection.role = Role::Parked(stream);
        if let Some(waiting) = waiting {
            self.try_launch(waiting);
        }
    }

    /// Starts a process if all its streams are there.
    fn try_launch(&mut self, index: usize) {
        let Some(running) = self.processes.get_mut(index) else {
            return;
        };
        let Some(process) = running.plan.as_ref().map(Plan::process) else {
            return;
        };
        let errors = process.stderr && process.terminal.is_none();
        let wanted = [process.stdin, process.stdout, errors];
        let is_for = |connection: &Connection, number: u8| {
            !connection.gone
                && matches!(&connection.role, Role::Parked(stream) if stream.number == number && stream.process == running.name)
        };
        let found: Vec<Option<usize>> = (0..3u8)
            .map(|number| {
                self.connections
                    .iter()
                    .position(|connection| is_for(connection, number))
            })
            .collect();
        if wanted
            .iter()
            .zip(&found)
            .any(|(wanted, found)| *wanted && found.is_none())
        {
            return;
        }
        let mut streams = Vec::new();
        for (number, (wanted, found)) in (0..3u8).zip(wanted.iter().zip(&found)) {
            if let Some(connection) = found.and_then(|found| self.connections.get_mut(found)) {
                // Its place stays, so that indices do; it is cleared away at the end of the turn.
                let empty = Connection {
                    fd: Fd::own(-1),
                    input: Vec::new(),
                    output: Vec::new(),
                    role: Role::Leaving,
                    gone: true,
                };
                let connection = core::mem::replace(connection, empty);
                if *wanted {
                    streams.push((number, connection));
                }
            }
        }
        let Some(plan) = running.plan.take() else {
            return;
        };
        let key = running.key;
        match launch(running, &plan, streams, self.container.as_ref()) {
            Ok(pumps) => self.pumps.extend(pumps),
            Err(fault) => {
                running.over = true;
                self.follower(key, |connection| connection.refuse(fault));
            }
        }
    }

    /// Does something with the connection that follows a process.
    fn follower(&mut self, key: u64, work: impl FnOnce(&mut Connection)) {
        let follows =
            |connection: &&mut Connection| matches!(connection.role, Role::Follows(of) if of == key);
        if let Some(connection) = self.connections.iter_mut().find(follows) {
            work(connection);
        }
    }

    /// Hears what the child of process `index` has to tell.
    pub fn listen_to_child(&mut self, index: usize) {
        while let Some(process) = self.processes.get_mut(index)
            && let Some(channel) = &process.channel
        {
            let key = process.key;
            match process::hear(channel) {
                Err(Errno::AGAIN) => return,
                Ok(Some(News::Terminal(terminal))) => {
                    let held = core::mem::take(&mut process.held);
                    let pumps = held.into_iter().filter_map(|(number, connection)| {
                        Some((
                            key,
                            number,
                            join(number, connection, os::duplicate(&terminal).ok()?),
                        ))
                    });
                    self.pumps.extend(pumps);
                    process.terminal = Some(terminal);
                }
                Ok(Some(News::Is(pid))) => {
                    process.pid = Some(pid);
                    // It may have been quicker than the news of it.
                    if let Some(at) = self.strays.iter().position(|(stray, _)| *stray == pid) {
                        process.status = Some(self.strays.swap_remove(at).1);
                    }
                }
                Ok(Some(News::Failed(fault))) => {
                    process.over = true;
                    process.channel = None;
                    self.follower(key, |connection| connection.refuse(fault));
                }
                Ok(None) | Err(_) => {
                    process.channel = None;
                    let pid = process.pid;
                    if process.first {
                        self.container = pid.and_then(|pid| os::pidfd(pid).ok());
                    }
                    match pid {
                        Some(pid) => {
                            self.follower(key, |connection| connection.reply(&Reply::Started { pid }))
                        }
                        None => {
                            process.over = true;
                            let fault =
                                Fault::new(Failure::System, "it was killed before its program was executed");
                            self.follower(key, |connection| connection.refuse(fault));
                        }
                    }
                    self.settle(index);
                }
            }
        }
    }

    pub fn reap(&mut self) {
        let mut information = [0; 128];
        while os::read(&self.signals, &mut information).is_ok_and(|count| count > 0) {}
        while let Some((pid, status)) = os::reap() {
            match self.processes.iter().position(|process| process.pid == Some(pid)) {
                Some(index) => {
                    if let Some(process) = self.processes.get_mut(index) {
                        process.status = Some(status);
                    }
                    // It may have executed its program, or failed, and not been heard yet.
                    self.listen_to_child(index);
                    self.settle(index);
                }
                // An orphan, a helper, or a process whose helper has not told of it yet.
                None if self.processes.iter().any(|process| process.channel.is_some()) => {
                    self.strays.push((pid, status));
                }
                None => {}
            }
        }
        if self.processes.iter().all(|process| process.channel.is_none()) {
            self.strays.clear();
        }
    }

    /// Tells of the end of process `index`, when it has ended and everything before was told.
    fn settle(&mut self, index: usize) {
        let Some(process) = self.processes.get_mut(index) else {
            return;
        };
        let Some(status) = process.status.filter(|_| process.channel.is_none()) else {
            return;
        };
        let (key, over) = (process.key, process.over);
        process.over = true;
        if process.first {
            self.container = None;
        }
        // Nobody reads its input any more; what it wrote is still on its way.
        self.pumps.retain(|(of, number, _)| *of != key || *number != 0);
        if !over {
            let exit = exit(status);
            self.follower(key, |connection| connection.finish(&Reply::Exited(exit)));
        }
    }
}

/// Forks the child of a process; gives the pumps of its streams, if it has no terminal that is yet to come.
fn launch(
    running: &mut Running,
    plan: &Plan,
    streams: Vec<(u8, Connection)>,
    container: Option<&Fd>,
) -> Result<Vec<(u64, u8, Pump)>> {
    let (ours, theirs) = channel()?;
    let mut given = [None, None, None];
    let mut pumps = Vec::new();
    if plan.process().terminal.is_some() {
        running.held = streams;
    } else {
        for (number, connection) in streams {
            let (read, write) = os::pipe().context(|| "make a pipe".into())?;
            let (kept, inside) = if number == 0 { (write, read) } else { (read, write) };
            pumps.push((running.key, number, join(number, connection, kept)));
            if let Some(slot) = given.get_mut(usize::from(number)) {
                *slot = Some(inside);
            }
        }
    }
    match plan {
        Plan::First(start) => {
            running.child = process::start(start, given, theirs)?;
            running.pid = Some(running.child);
        }
        Plan::Another(process) => {
            let container = container.ok_or_else(not_running)?;
            running.child = process::start_another(process, given, container, theirs)?;
        }
    }
    running.channel = Some(ours);
    Ok(pumps)
}

/// The pump between a connection and PID 1's end of a stream.
fn join(number: u8, connection: Connection, end: Fd) -> Pump {
    let Connection {
        fd, input, output, ..
    } = connection;
    match number {
        0 => Pump::new(fd, end, input),
        // The reply to its request may still be on its way.
        _ => Pump::new(end, fd, output),
    }
}

fn exit(status: i32) -> Exit {
    let signal = status & 0x7f;
    Exit {
        status: (signal == 0).then_some((status >> 8) & 0xff),
        signal,
        oom_kills: statistics::oom_kills(),
    }
}
