//! The console's thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::devices::virtio::{Buffers, Chain, Metrics, Poller, QueueError, QueueHandle, Ready, Worker};

const TOKEN_INPUT: u64 = 0;
const TOKEN_OUTPUT: u64 = 1;
/// Bytes moved at once: what a pipe takes that says it can be written.
const CHUNK: usize = 4096;
/// Reads of one round.
const ROUNDS: u32 = 64;

/// A descriptor that is waited for now and then.
struct End {
    fd: Arc<OwnedFd>,
    token: u64,
    ready: Ready,
    waited: bool,
}

impl End {
    /// Whether something can be done now. Also right for files, which cannot be waited for.
    fn is_ready(&self) -> bool {
        let flags = if self.ready.read {
            PollFlags::IN
        } else {
            PollFlags::OUT
        };
        let mut fds = [PollFd::new(&self.fd, flags)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1))
    }

    fn wait(&mut self, poller: &Poller, wanted: bool) -> Result<(), QueueError> {
        if wanted && !self.waited {
            poller.add(&self.fd, self.token, self.ready)?;
        } else if !wanted && self.waited {
            poller.remove(&self.fd)?;
        }
        self.waited = wanted;
        Ok(())
    }
}

pub(super) struct ConsoleWorker {
    receive: QueueHandle,
    transmit: QueueHandle,
    input: Option<End>,
    output: Option<End>,
    /// What is being written, and whether some of it was.
    sending: Option<(Chain, bool)>,
    metrics: Arc<Metrics>,
}

impl ConsoleWorker {
    pub(super) fn new(
        receive: QueueHandle,
        transmit: QueueHandle,
        input: Option<Arc<OwnedFd>>,
        output: Arc<OwnedFd>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let end = |fd, token, ready| End {
            fd,
            token,
            ready,
            waited: false,
        };
        Self {
            receive,
            transmit,
            input: input.map(|fd| end(fd, TOKEN_INPUT, Ready::READ)),
            output: Some(end(output, TOKEN_OUTPUT, Ready::WRITE)),
            sending: None,
            metrics,
        }
    }

    /// Reads what has come into buffers that wait.
    fn pump_input(&mut self, poller: &Poller) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            let Some(input) = &mut self.input else {
                return Ok(());
            };
            if self.receive.lock().waiting()? == 0 && !self.receive.lock().enable_notifications()? {
                return input.wait(poller, false);
            }
            if !input.is_ready() {
                return input.wait(poller, true);
            }
            let Some(chain) = self.receive.pop()? else {
                continue;
            };
            match transfer(&input.fd, &chain.writable, true) {
                Ok(0) if chain.writable.left() > 0 => {
                    self.receive.lock().undo(chain);
                    input.wait(poller, false)?;
                    self.input = None;
                }
                Ok(count) => {
                    self.metrics.read(count as u64);
                    // At most a chunk.
                    #[expect(clippy::cast_possible_truncation)]
                    self.receive.push(chain, count as u32)?;
                }
                Err(Errno::INTR | Errno::AGAIN) => self.receive.lock().undo(chain),
                Err(_) => {
                    self.receive.lock().undo(chain);
                    input.wait(poller, false)?;
                    self.input = None;
                }
            }
        }
        self.receive.ring();
        Ok(())
    }

    /// Writes what the guest sends.
    fn pump_output(&mut self, poller: &Poller) -> Result<(), QueueError> {
        for _ in 0..ROUNDS {
            let next = match self.sending.take() {
                Some((chain, _)) if !self.transmit.lock().is_current(&chain) => continue,
                Some(next) => Some(next),
                None => self.transmit.pop()?.map(|chain| (chain, false)),
            };
            let Some((mut chain, mut begun)) = next else {
                if self.transmit.lock().enable_notifications()? {
                    continue;
                }
                return self
                    .output
                    .as_mut()
                    .map_or(Ok(()), |output| output.wait(poller, false));
            };
            while let (Some(output), true) = (&mut self.output, chain.readable.left() > 0) {
                if !output.is_ready() {
                    output.wait(poller, true)?;
                    self.sending = Some((chain, begun));
                    return Ok(());
                }
                match transfer(&output.fd, &chain.readable, false) {
                    Ok(count) => {
                        chain.readable.skip(count);
                        begun = true;
                    }
                    Err(Errno::INTR | Errno::AGAIN) => {}
                    Err(_) => {
                        output.wait(poller, false)?;
                        self.output = None;
                    }
                }
            }
            self.metrics.written(0);
            self.transmit.push(chain, 0)?;
        }
        self.transmit.ring();
        Ok(())
    }
}

/// One `readv` or `writev` of a chunk at most.
fn transfer(fd: &OwnedFd, buffers: &Buffers, read: bool) -> rustix::io::Result<usize> {
    use std::os::fd::AsRawFd;

    let mut vectors = buffers.iovecs();
    let mut room = CHUNK;
    vectors.retain_mut(|vector| {
        vector.iov_len = vector.iov_len.min(room);
        room -= vector.iov_len;
        vector.iov_len > 0
    });
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the vectors are pieces of the guest's memory, which `buffers` keeps.
    let done = unsafe {
        if read {
            libc::readv(fd.as_raw_fd(), vectors.as_ptr(), count)
        } else {
            libc::writev(fd.as_raw_fd(), vectors.as_ptr(), count)
        }
    };
    usize::try_from(done).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    })
}

impl Worker for ConsoleWorker {
    fn queue(&mut self, index: usize, poller: &Poller) -> Result<(), QueueError> {
        if index == self.receive.index() {
            self.pump_input(poller)
        } else {
            self.pump_output(poller)
        }
    }

    fn event(&mut self, token: u64, _: Ready, poller: &Poller) -> Result<(), QueueError> {
        if token == TOKEN_INPUT {
            self.pump_input(poller)
        } else {
            self.pump_output(poller)
        }
    }

    fn stop(&mut self) {
        // What was not begun waits for the next start. What was is ended without its rest: nobody reads.
        let ended = match self.sending.take() {
            Some((chain, false)) => {
                self.transmit.lock().undo(chain);
                Ok(())
            }
            Some((chain, true)) => self.transmit.push(chain, 0),
            None => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a buffer of the console is lost");
        }
    }
}
