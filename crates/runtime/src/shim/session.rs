//! A process and its standard streams, as the shim holds them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::log::Stream;
use super::poller::{Interest, Poller, Token};
use super::protocol::Exit;
use crate::Result;
use crate::error::Context;
use crate::process::Stdio;

/// Input waiting for a process beyond which its clients are not read from.
pub const INPUT_HIGH_WATER: usize = 256 << 10;

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

/// A process of the container: its first, or one of exec's.
#[derive(Debug)]
pub struct Session {
    /// Never used twice.
    pub number: u64,
    /// The exec's ID; none for the container's own process.
    pub exec: Option<String>,
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub pid_token: Token,
    /// The terminal, when it has one; input and output are copies of it.
    pub terminal: Option<OwnedFd>,
    pub outputs: Vec<Output>,
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
    input: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, Stream)>,
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
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub terminal: Option<OwnedFd>,
    pub ends: Ends,
    pub input_once: bool,
    pub leashed: bool,
}

impl Session {
    /// Starts watching a process.
    pub fn new(poller: &mut Poller, new: NewSession) -> Result<Self> {
        let NewSession {
            number,
            exec,
            pid,
            pidfd,
            terminal,
            mut ends,
            input_once,
            leashed,
        } = new;
        if let Some(terminal) = &terminal {
            let copy = || terminal.try_clone().context(|| "keep the terminal");
            ends = Ends {
                input: Some(copy()?),
                outputs: vec![(copy()?, Stream::Output)],
            };
        }
        let pid_token = poller.add(&pidfd, Interest::READ)?;
        let mut outputs = Vec::new();
        for (fd, stream) in ends.outputs {
            let _ = rustix::io::ioctl_fionbio(&fd, true);
            let token = poller.add(&fd, Interest::READ)?;
            outputs.push(Output {
                fd,
                token,
                stream,
                paused: false,
            });
        }
        let input = match ends.input {
            Some(fd) => {
                let _ = rustix::io::ioctl_fionbio(&fd, true);
                let token = poller.add(
                    &fd,
                    Interest {
                        read: false,
                        write: false,
                    },
                )?;
                Some(Input {
                    fd,
                    token,
                    queue: VecDeque::new(),
                    ending: false,
                })
            }
            None => None,
        };
        Ok(Self {
            number,
            exec,
            pid,
            pidfd,
            pid_token,
            terminal,
            outputs,
            input,
            input_once,
            leashed,
            exit: None,
        })
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
        if self.terminal.is_some() {
            return;
        }
        if let Some(input) = &mut self.input {
            input.ending = true;
        }
        self.push_input(poller);
    }

    /// Nobody reads the input any more. A terminal may be opened again, so it is kept, but no longer watched: its hang-up
    /// would be reported without end.
    pub fn input_unread(&mut self, poller: &Poller) {
        match &self.input {
            Some(input) if self.terminal.is_some() => poller.remove(&input.fd),
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
