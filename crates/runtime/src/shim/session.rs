//! A process and its standard streams, as the shim holds them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::log::Stream;
use super::machine::channel::Channel;
use super::poller::{Interest, Poller, Token};
use super::protocol::Exit;
use crate::Result;
use crate::error::Context;
use crate::process::{self, Stdio, terminal};

/// Input waiting for a process beyond which its clients are not read from.
pub const INPUT_HIGH_WATER: usize = 256 << 10;

/// How long a terminal that was hung up is left alone.
const HANGUP_PAUSE: Duration = Duration::from_millis(50);

/// An output being read.
#[derive(Debug)]
pub struct Output {
    pub fd: OwnedFd,
    pub token: Token,
    pub stream: Stream,
    /// Not read from while a client lags behind.
    pub paused: bool,
}

/// The process's input.
#[derive(Debug)]
pub struct Input {
    pub fd: OwnedFd,
    pub token: Token,
    pub queue: VecDeque<u8>,
    /// Close it when the queue is empty.
    pub ending: bool,
}

/// What is supervised, and how its end is heard of.
#[derive(Debug)]
pub enum Program {
    /// A process of this kernel.
    Host {
        pid: Pid,
        pidfd: OwnedFd,
        /// The terminal, when it has one; input and output are copies of it.
        terminal: Option<OwnedFd>,
    },
    /// One in the machine. Its terminal, when it has one, is there.
    Guest {
        /// Its ID there.
        pid: i32,
        terminal: bool,
        /// Where its end is told.
        told: Channel,
    },
}

impl Program {
    /// The process's ID, as its kernel has it.
    pub fn pid(&self) -> i32 {
        match self {
            Self::Host { pid, .. } => pid.as_raw_nonzero().get(),
            Self::Guest { pid, .. } => *pid,
        }
    }

    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        match self {
            Self::Host { terminal, .. } => terminal.is_some(),
            Self::Guest { terminal, .. } => *terminal,
        }
    }

    /// The side of the terminal that is held here.
    pub fn terminal(&self) -> Option<&OwnedFd> {
        match self {
            Self::Host { terminal, .. } => terminal.as_ref(),
            Self::Guest { .. } => None,
        }
    }
}

/// A process of the container: its first, or one of exec's.
#[derive(Debug)]
pub struct Session {
    /// Never used twice.
    pub number: u64,
    /// The exec's ID; none for the container's own process.
    pub exec: Option<String>,
    pub program: Program,
    /// Ready when it has ended.
    pub end_token: Token,
    /// The terminal's other side, held while the process lives: it may close all of its own and open it again.
    slave: Option<OwnedFd>,
    /// When a terminal that was hung up is taken up again.
    pub resume: Option<Instant>,
    pub outputs: Vec<Output>,
    /// The process has ended; until then its output is waited for that somebody else holds open.
    pub linger: Option<Instant>,
    pub input: Option<Input>,
    /// Close the input when the client that has it leaves.
    pub input_once: bool,
    /// Kill it when the client that started it leaves.
    pub leashed: bool,
    pub exit: Option<Exit>,
}

/// The shim's ends of a process's standard streams.
#[derive(Debug, Default)]
pub struct Ends {
    pub input: Option<OwnedFd>,
    pub outputs: Vec<(OwnedFd, Stream)>,
}

/// Makes the standard streams for a process.
///
/// # Errors
/// When no descriptors are left.
pub fn streams(terminal: bool, open_stdin: bool) -> Result<(Stdio, Ends)> {
    if terminal {
        return Ok((Stdio::Terminal, Ends::default()));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context(|| "make pipes for the process");
    let (output, output_end) = pipe()?;
    let (errors, errors_end) = pipe()?;
    let (input, input_end) = if open_stdin {
        let (input_end, input) = pipe()?;
        (Some(input), input_end)
    } else {
        let null = rustix::fs::open(
            "/dev/null",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .context(|| "open /dev/null")?;
        (None, null)
    };
    let ends = Ends {
        input,
        outputs: vec![(output, Stream::Output), (errors, Stream::Errors)],
    };
    Ok((
        Stdio::Streams {
            input: input_end,
            output: output_end,
            errors: errors_end,
        },
        ends,
    ))
}

/// What the server needs to know to hold a new process.
#[derive(Debug)]
pub struct NewSession {
    pub number: u64,
    pub exec: Option<String>,
    pub program: Program,
    pub ends: Ends,
    pub input_once: bool,
    pub leashed: bool,
}

impl Session {
    /// Starts watching a process.
    ///
    /// # Errors
    /// When that cannot be; the process is killed then: what is reported as failed must not run.
    pub fn new(poller: &mut Poller, new: NewSession) -> Result<Self> {
        let NewSession {
            number,
            exec,
            program,
            mut ends,
            input_once,
            leashed,
        } = new;
        let mut watch = || -> Result<_> {
            if let Some(terminal) = program.terminal() {
                let copy = || terminal.try_clone().context(|| "keep the terminal");
                ends = Ends {
                    input: Some(copy()?),
                    outputs: vec![(copy()?, Stream::Output)],
                };
            }
            let end_token = match &program {
                Program::Host { pidfd, .. } => poller.add(pidfd, Interest::READ)?,
                Program::Guest { told, .. } => told.token,
            };
            let mut outputs = Vec::new();
            for (fd, stream) in std::mem::take(&mut ends.outputs) {
                let _ = rustix::io::ioctl_fionbio(&fd, true);
                let token = poller.add(&fd, Interest::READ)?;
                outputs.push(Output {
                    fd,
                    token,
                    stream,
                    paused: false,
                });
            }
            let input = match ends.input.take() {
                Some(fd) => {
                    let _ = rustix::io::ioctl_fionbio(&fd, true);
                    let token = poller.add(&fd, Interest::NONE)?;
                    Some(Input {
                        fd,
                        token,
                        queue: VecDeque::new(),
                        ending: false,
                    })
                }
                None => None,
            };
            Ok((end_token, outputs, input))
        };
        // Without it, the first end of output is the last: nothing worse.
        let slave = program
            .terminal()
            .and_then(|master| terminal::peer(master.as_fd()).ok());
        let (end_token, outputs, input) = match watch() {
            Ok(watched) => watched,
            Err(error) => {
                // What is in the machine is on a leash, or ends with it.
                if let Program::Host { pidfd, .. } = &program {
                    process::end(pidfd);
                }
                return Err(error);
            }
        };
        Ok(Self {
            number,
            exec,
            program,
            end_token,
            slave,
            resume: None,
            outputs,
            linger: None,
            input,
            input_once,
            leashed,
            exit: None,
        })
    }

    /// The process has ended: the terminal's end is now when everybody else has closed it.
    pub fn ended(&mut self, poller: &mut Poller) {
        self.slave = None;
        if self.resume.take().is_some() {
            self.watch_again(poller);
        }
    }

    /// The terminal was hung up (vhangup(2)) while the process lives. It is taken up again a moment later: whoever does
    /// nothing but hanging up shall not keep the shim busy.
    pub fn hung_up(&mut self, poller: &Poller) {
        for output in &self.outputs {
            poller.remove(&output.fd);
        }
        if let Some(input) = &self.input {
            poller.remove(&input.fd);
        }
        self.resume = Some(Instant::now() + HANGUP_PAUSE);
    }

    /// Takes up the terminal again when its time has come.
    pub fn take_up(&mut self, poller: &mut Poller) {
        if self.resume.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.resume = None;
        self.slave = self
            .program
            .terminal()
            .and_then(|master| terminal::peer(master.as_fd()).ok());
        if self.slave.is_some() {
            self.watch_again(poller);
        } else {
            self.outputs.clear();
            self.input = None;
        }
    }

    fn watch_again(&mut self, poller: &mut Poller) {
        self.outputs.retain_mut(|output| {
            let watched = poller.add(&output.fd, Interest::READ);
            output.paused = false;
            watched.map(|token| output.token = token).is_ok()
        });
        if let Some(input) = &mut self.input {
            match poller.add(&input.fd, Interest::NONE) {
                Ok(token) => input.token = token,
                Err(_) => self.input = None,
            }
        }
        self.push_input(poller);
    }

    /// Queues input and writes what the process takes now.
    pub fn feed(&mut self, poller: &Poller, bytes: &[u8]) {
        if let Some(input) = &mut self.input {
            input.queue.extend(bytes);
        }
        self.push_input(poller);
    }

    /// No more input will come.
    pub fn end_input(&mut self, poller: &Poller) {
        // A terminal has no end of input other than its hang-up.
        if self.program.has_terminal() {
            return;
        }
        if let Some(input) = &mut self.input {
            input.ending = true;
        }
        self.push_input(poller);
    }

    /// Nobody reads the input any more.
    pub fn input_unread(&mut self, poller: &Poller) {
        match &self.input {
            Some(_) if self.program.terminal().is_some() && self.exit.is_none() => self.hung_up(poller),
            _ => self.input = None,
        }
    }

    /// Writes queued input; closes the input when it has ended or nobody reads it.
    pub fn push_input(&mut self, poller: &Poller) {
        let Some(input) = &mut self.input else { return };
        let mut closed = false;
        while !input.queue.is_empty() {
            match rustix::io::write(&input.fd, input.queue.as_slices().0) {
                Ok(count) => drop(input.queue.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    closed = true;
                    break;
                }
            }
        }
        if closed || (input.ending && input.queue.is_empty()) {
            self.input = None;
            return;
        }
        if input.queue.is_empty() {
            input.queue.shrink_to(4096);
        }
        poller.set(
            input.token,
            &input.fd,
            Interest {
                read: false,
                write: !input.queue.is_empty(),
            },
        );
    }

    /// Whether clients may send more input now.
    pub fn wants_input(&self) -> bool {
        self.input
            .as_ref()
            .is_none_or(|input| input.queue.len() < INPUT_HIGH_WATER)
    }

    /// Whether the process has ended and all its output was read.
    pub fn finished(&self) -> bool {
        self.exit.is_some() && self.outputs.is_empty()
    }
}
