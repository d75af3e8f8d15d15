//! Execs, from the request to the program.
//!
//! Until its program is executed, an exec's process is the runtime's own work in a place where it can be held up: others
//! in the container's PID namespace may stop it, and the cgroup may be frozen. So it is watched like everything else, and
//! given up when it takes too long; the shim answers everybody meanwhile.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use super::{Server, load_program};
use crate::process::{self, ExecPlan, Starting};
use crate::shim::connection::Role;
use crate::shim::poller::{Interest, Ready, Token};
use crate::shim::protocol::{Attach, ExecRequest, Reply};
use crate::shim::session::{Ends, NewSession, Program, Session, streams};
use crate::{Error, ErrorKind, Result};

/// How long a process may take to execute its program: milliseconds, unless it is held up.
const PATIENCE: Duration = Duration::from_secs(10);

/// An exec whose program was not executed yet.
pub(super) struct StartingExec {
    /// Its ID.
    pub id: String,
    /// Who asked for it.
    connection: u64,
    attach: Option<Attach>,
    leashed: bool,
    starting: Starting,
    token: Token,
    ends: Ends,
    deadline: Instant,
}

impl Server {
    /// Begins an exec; the reply follows when its program was executed.
    pub(super) fn exec(&mut self, number: u64, request: ExecRequest) -> Result<()> {
        let running = self.sessions.iter().filter_map(|session| session.exec.as_ref());
        let mut taken = running.chain(self.starting.iter().map(|exec| &exec.id));
        if taken.any(|id| *id == request.id) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("exec {} exists already", request.id),
            ));
        }
        if self.guest.is_some() {
            return self.exec_in_guest(number, request);
        }
        let (Some(cgroup), None, Some(init)) = (&self.cgroup, self.exit, self.first_process()) else {
            return Err(has_exited());
        };
        let program = request.seccomp_program.as_deref().map(load_program).transpose()?;
        let wants_input = request.attach.as_ref().is_some_and(|attach| attach.stdin);
        let (stdio, ends) = streams(request.process.terminal, wants_input)?;
        let starting = process::begin(&ExecPlan {
            spec: &self.config.spec,
            init: self.init_pidfd.as_fd(),
            init_pid: init,
            cgroup,
            process: &request.process,
            seccomp: program,
            stdio,
            preserve_fds: 0,
        })?;
        let token = match self.poller.add(starting.channel(), Interest::READ) {
            Ok(token) => token,
            Err(error) => {
                self.abandon(starting);
                return Err(error);
            }
        };
        self.starting.push(StartingExec {
            id: request.id,
            connection: number,
            attach: request.attach,
            leashed: request.leashed,
            starting,
            token,
            ends,
            deadline: Instant::now() + PATIENCE,
        });
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.role = Role::Waiting;
        }
        Ok(())
    }

    /// Handles an event of an exec that is starting, or of one that was given up.
    pub(super) fn starting_ready(&mut self, event: Ready) -> bool {
        if let Some(index) = self.dying.iter().position(|(_, token)| *token == event.token) {
            let pidfd = self.dying[index].0.as_fd();
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            if !matches!(waitid(WaitId::PidFd(pidfd), options), Ok(None)) {
                self.dying.swap_remove(index);
            }
            return true;
        }
        let Some(index) = self.starting.iter().position(|exec| exec.token == event.token) else {
            return false;
        };
        match self.starting[index].starting.hear() {
            Ok(false) => {}
            Ok(true) => {
                let exec = self.starting.swap_remove(index);
                let number = exec.connection;
                if let Err(error) = self.executed(exec) {
                    self.refuse(number, &error);
                }
            }
            Err(error) => self.give_up(index, &error),
        }
        true
    }

    /// The program was executed.
    fn executed(&mut self, exec: StartingExec) -> Result<()> {
        self.poller.remove(exec.starting.channel());
        let executed = exec.starting.executed();
        let number = self.next;
        self.next += 1;
        let pid = executed.pid.as_raw_nonzero().get();
        let session = Session::new(
            &mut self.poller,
            NewSession {
                number,
                exec: Some(exec.id),
                program: Program::Host {
                    pid: executed.pid,
                    pidfd: executed.pidfd,
                    terminal: executed.terminal,
                },
                ends: exec.ends,
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
        Ok(())
    }

    /// When the first of the starting execs has had its time.
    pub(super) fn starting_deadline(&self) -> Option<Instant> {
        self.starting.iter().map(|exec| exec.deadline).min()
    }

    /// Gives up the execs that take too long.
    pub(super) fn starting_overdue(&mut self) {
        let now = Instant::now();
        while let Some(index) = self.starting.iter().position(|exec| exec.deadline <= now) {
            let error = Error::new(
                ErrorKind::System,
                format!(
                    "the process did not execute its program within {} s and was killed: is it stopped by another process of the container, or is the container frozen?",
                    PATIENCE.as_secs()
                ),
            );
            self.give_up(index, &error);
        }
    }

    /// Gives up all of them: the container has ended.
    pub(super) fn give_up_starting(&mut self) {
        while !self.starting.is_empty() {
            self.give_up(0, &has_exited());
        }
        for (pidfd, _) in self.dying.drain(..) {
            process::end(&pidfd);
        }
    }

    fn give_up(&mut self, index: usize, error: &Error) {
        let exec = self.starting.swap_remove(index);
        self.poller.remove(exec.starting.channel());
        self.refuse(exec.connection, error);
        self.abandon(exec.starting);
    }

    /// Kills it. It is not waited for here: in a frozen cgroup (v1) it dies when that is thawed.
    fn abandon(&mut self, starting: Starting) {
        let pidfd = starting.executed().pidfd;
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        // What cannot be watched is reaped with the shim.
        if let Ok(token) = self.poller.add(&pidfd, Interest::READ) {
            self.dying.push((pidfd, token));
        }
    }
}

pub(super) fn has_exited() -> Error {
    Error::new(ErrorKind::Conflict, "the container has exited")
}
