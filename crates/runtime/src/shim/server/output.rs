//! Output, from the processes to the log and the clients.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{FIRST, PIECE, Server, now};
use crate::shim::connection::Role;
use crate::shim::log::Stream;

/// How long output is waited for when all processes are gone and others hold it open, as in Docker.
pub(super) const LINGER: Duration = Duration::from_secs(2);

impl Server {
    /// Reads an output once and hands on what there is; closes it at its end. Returns how much it was.
    pub(super) fn read_output(&mut self, index: usize, output: usize) -> usize {
        let session = &mut self.sessions[index];
        let number = session.number;
        let from = &session.outputs[output];
        let stream = from.stream;
        match rustix::io::read(&from.fd, &mut self.buffer[..]) {
            Ok(count @ 1..) => {
                let bytes = std::mem::take(&mut self.buffer);
                self.deliver(number, stream, &bytes[..count]);
                self.buffer = bytes;
                count
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // The terminal's other side is closed everywhere, ours too: it was hung up.
            Err(Errno::IO) if session.program.terminal().is_some() && session.exit.is_none() => {
                session.hung_up(&self.poller);
                0
            }
            Ok(0) | Err(_) => {
                session.outputs.remove(output);
                self.output_ended(number, stream);
                0
            }
        }
    }

    fn output_ended(&mut self, number: u64, stream: Stream) {
        if number == FIRST
            && let Some(log) = &mut self.log
        {
            log.finish(stream, now());
        }
    }

    /// Reads what the outputs of a process that has ended hold now, and no more than that: whoever else has them open may
    /// write for ever.
    pub(super) fn drain(&mut self, index: usize) {
        for output in (0..self.sessions[index].outputs.len()).rev() {
            let waiting = rustix::io::ioctl_fionread(&self.sessions[index].outputs[output].fd).unwrap_or(0);
            // A terminal does not count what it has yet to process.
            let mut left = usize::try_from(waiting).unwrap_or(0).max(2 * PIECE);
            while left > 0 {
                match self.read_output(index, output) {
                    0 => break,
                    count => left = left.saturating_sub(count),
                }
            }
        }
    }

    /// Drops the outputs of a process that has ended, after what they hold now.
    pub(super) fn end_outputs(&mut self, index: usize) {
        self.drain(index);
        let number = self.sessions[index].number;
        for output in std::mem::take(&mut self.sessions[index].outputs) {
            self.output_ended(number, output.stream);
        }
    }

    /// Does what has its time with sessions: terminals that were hung up, output that others hold open.
    pub(super) fn sessions_due(&mut self) {
        for index in 0..self.sessions.len() {
            self.sessions[index].take_up(&mut self.poller);
            if self.sessions[index]
                .linger
                .is_some_and(|until| until <= Instant::now())
            {
                self.sessions[index].linger = None;
                self.end_outputs(index);
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
        let raw = session.program.has_terminal();
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
}
