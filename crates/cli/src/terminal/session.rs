//! Streams between the user and a container: output here, input in a thread of its own, so that neither
//! waits for the other however much is piped through.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use vessel_client::{Demux, Hijacked, Response, Stream, write_part};

use super::detach::Detector;
use super::signals::Signals;
use crate::failure::{Failure, Result, words};

/// How a session is set up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Send standard input.
    pub stdin: bool,
    /// The container has a terminal: its stream is raw.
    pub tty: bool,
    /// The keys that detach; empty for none.
    pub detach_keys: Vec<u8>,
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The container closed its output.
    Closed,
    /// The user pressed the keys.
    Detached,
}

/// Streams until the end. Signals that arrive meanwhile go to `on_signal`, which may end the session.
pub fn run(
    stream: Hijacked,
    options: &Options,
    signals: Option<&Signals>,
    mut on_signal: impl FnMut(i32) -> Result<()>,
) -> Result<End> {
    let multiplexed = stream.multiplexed().unwrap_or(!options.tty);
    let (mut reader, writer) = stream.split()?;
    let detached = Arc::new(AtomicBool::new(false));
    if options.stdin {
        let detector = Detector::new(options.detach_keys.clone());
        let told = detached.clone();
        std::thread::spawn(move || {
            if send_stdin(&writer, detector) {
                told.store(true, Ordering::SeqCst);
                let _ = writer.shutdown(Shutdown::Both);
            }
        });
    }
    let mut buffer = vec![0; 64 * 1024];
    let mut demux = Demux::default();
    let mut stdout = io::stdout().lock();
    let mut stderr = io::stderr().lock();
    loop {
        if !reader.has_buffered()
            && let Some(signals) = signals
        {
            wait_readable(&reader, signals, &mut on_signal)?;
        }
        let count = match reader.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) if detached.load(Ordering::SeqCst) => 0,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => {
                return Err(Failure::new(format!(
                    "the container's output broke off: {}",
                    words(&error)
                )));
            }
        };
        if detached.load(Ordering::SeqCst) {
            return Ok(End::Detached);
        }
        if count == 0 {
            if multiplexed {
                demux.finish()?;
            }
            return Ok(End::Closed);
        }
        let data = &buffer[..count];
        if multiplexed {
            demux.feed(data, |kind, part| {
                write_part(kind, part, &mut stdout, &mut stderr)
            })?;
        } else {
            stdout.write_all(data)?;
            stdout.flush()?;
        }
    }
}

/// Waits until `source` is readable, handling signals meanwhile.
fn wait_readable(
    source: &impl AsFd,
    signals: &Signals,
    on_signal: &mut impl FnMut(i32) -> Result<()>,
) -> Result<()> {
    loop {
        let mut fds = [
            PollFd::new(source, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let readable = !fds[0].revents().is_empty();
        while let Some(signal) = signals.next() {
            on_signal(signal)?;
        }
        if readable {
            return Ok(());
        }
    }
}

/// Waits until an answer's body comes, handling signals meanwhile.
pub fn wait_answer(
    answer: &Response,
    signals: Option<&Signals>,
    mut on_signal: impl FnMut(i32) -> Result<()>,
) -> Result<()> {
    match (answer.body.poll_fd(), signals) {
        (Some(fd), Some(signals)) => wait_readable(&fd, signals, &mut on_signal),
        _ => Ok(()),
    }
}

/// Sends standard input until its end, and then the end; true when the keys to detach were pressed.
fn send_stdin(mut writer: &Stream, mut detector: Detector) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    let mut passed = Vec::new();
    loop {
        let count = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => 0,
        };
        if count == 0 {
            let _ = writer.write_all(detector.rest());
            let _ = writer.shutdown(Shutdown::Write);
            return false;
        }
        passed.clear();
        let detach = detector.pass(&buffer[..count], &mut passed);
        // When the container reads no more, its output tells what goes on.
        if writer.write_all(&passed).is_err() {
            return false;
        }
        if detach {
            return true;
        }
    }
}
