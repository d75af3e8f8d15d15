//! The first serial line: a 16550 (`vm_superio`'s), with descriptors for what goes in and out.
//!
//! What the guest sends is kept here and written by a thread of the line's own, so that a reader who sleeps never stops a vCPU. Beyond
//! [`OUTPUT_MAX`] it is lost, as on a wire nobody listens to.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};

use super::pulse;
use super::virtio::bell::{bell, ring, silence};
use crate::accel::Vm;
use crate::bus::{Device, SystemBus, Taken};
use crate::memory::layout::{SERIAL_GSI, SERIAL_PORT};
use crate::sync::lock;

/// Bytes of output that wait at most.
pub const OUTPUT_MAX: usize = 256 << 10;
/// How long output may gather before it is written: a kernel sends a byte at a time.
const GATHER: Duration = Duration::from_micros(500);
/// Bytes read at once.
const CHUNK: usize = 64;

struct Interrupt(Arc<dyn Vm>);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        pulse(&*self.0, SERIAL_GSI);
        Ok(())
    }
}

/// Where the 16550 puts what is sent.
struct Output {
    waiting: Vec<u8>,
    bell: Arc<OwnedFd>,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.waiting.is_empty() {
            ring(&self.bell);
        }
        let room = OUTPUT_MAX - self.waiting.len();
        self.waiting.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What of the line a snapshot keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialLineState {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Line {
    uart: Serial<Interrupt, NoEvents, Output>,
    /// Input beyond the 16550's own.
    input: VecDeque<u8>,
}

impl Line {
    /// Gives the 16550 what it has room for.
    fn feed(&mut self) {
        let count = self.uart.fifo_capacity().min(self.input.len());
        let bytes: Vec<u8> = self.input.drain(..count).collect();
        if !bytes.is_empty() {
            // It has room, and its interrupt cannot fail.
            let _ = self.uart.enqueue_raw_bytes(&bytes);
        }
    }
}

/// The line.
pub struct SerialLine {
    line: Arc<Mutex<Line>>,
    vm: Arc<dyn Vm>,
    bell: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl SerialLine {
    /// Puts the line on the bus. Nothing is done with descriptors before [`SerialLine::start`].
    pub fn attach(bus: &SystemBus, vm: Arc<dyn Vm>) -> io::Result<Arc<Self>> {
        let bell = Arc::new(bell()?);
        let output = Output {
            waiting: Vec::new(),
            bell: bell.clone(),
        };
        let line = Line {
            uart: Serial::new(Interrupt(vm.clone()), output),
            input: VecDeque::new(),
        };
        let line = Arc::new(Self {
            line: Arc::new(Mutex::new(line)),
            vm,
            bell,
            stop: Arc::new(super::virtio::bell::bell()?),
            thread: Mutex::new(None),
        });
        let taken = |taken: Taken| io::Error::new(io::ErrorKind::AddrInUse, taken);
        bus.ports
            .insert(SERIAL_PORT.into(), 8, line.clone())
            .map_err(taken)?;
        Ok(line)
    }

    /// Begins to read from `input` and to write to `output`. An input that ends, or an output that is closed, is left alone from then on.
    pub fn start(&self, input: Option<Arc<OwnedFd>>, output: Arc<OwnedFd>) -> io::Result<()> {
        let pump = Pump {
            line: self.line.clone(),
            bell: self.bell.clone(),
            stop: self.stop.clone(),
            input,
            output: Some(output),
        };
        let thread = std::thread::Builder::new()
            .name("serial".to_owned())
            .spawn(move || pump.run())?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Writes what still waits, as far as the reader takes it at once, and ends the thread.
    pub fn stop(&self) {
        if let Some(thread) = lock(&self.thread).take() {
            ring(&self.stop);
            if thread.join().is_err() {
                tracing::error!("the serial line's thread has panicked");
            }
            silence(&self.stop);
        }
    }

    /// What a snapshot keeps.
    pub fn save(&self) -> SerialLineState {
        let line = lock(&self.line);
        let state = line.uart.state();
        SerialLineState {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state
                .in_buffer
                .iter()
                .copied()
                .chain(line.input.iter().copied())
                .collect(),
            output: line.uart.writer().waiting.clone(),
        }
    }

    /// Puts it back.
    pub fn restore(&self, state: &SerialLineState) -> io::Result<()> {
        let invalid = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the saved state of the serial line makes no sense",
            )
        };
        if state.output.len() > OUTPUT_MAX || state.input.len() > 2 * CHUNK {
            return Err(invalid());
        }
        let uart_state = SerialState {
            baud_divisor_low: state.divisor[0],
            baud_divisor_high: state.divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input[..state.input.len().min(CHUNK)].to_vec(),
        };
        let output = Output {
            waiting: state.output.clone(),
            bell: self.bell.clone(),
        };
        let uart = Serial::from_state(&uart_state, Interrupt(self.vm.clone()), NoEvents, output);
        let mut line = lock(&self.line);
        line.uart = uart.map_err(|_| invalid())?;
        line.input = state.input[state.input.len().min(CHUNK)..]
            .iter()
            .copied()
            .collect();
        ring(&self.bell);
        Ok(())
    }

    /// As after power-on; what waits to be written is written yet.
    pub fn reset(&self) {
        let mut line = lock(&self.line);
        let output = Output {
            waiting: std::mem::take(&mut line.uart.writer_mut().waiting),
            bell: self.bell.clone(),
        };
        line.uart = Serial::new(Interrupt(self.vm.clone()), output);
    }
}

impl Drop for SerialLine {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Device for SerialLine {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([value], Ok(register)) = (data, u8::try_from(offset)) {
            let mut line = lock(&self.line);
            *value = line.uart.read(register);
            if register == 0 && !line.input.is_empty() && line.uart.fifo_capacity() >= CHUNK / 2 {
                line.feed();
                if line.input.is_empty() {
                    // The thread reads on.
                    ring(&self.bell);
                }
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([value], Ok(register)) = (data, u8::try_from(offset)) {
            // Neither the output nor the interrupt can fail.
            let _ = lock(&self.line).uart.write(register, *value);
        }
    }
}

/// The thread's part.
struct Pump {
    line: Arc<Mutex<Line>>,
    bell: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    input: Option<Arc<OwnedFd>>,
    output: Option<Arc<OwnedFd>>,
}

impl Pump {
    fn run(mut self) {
        loop {
            let mut stopped = self.wait(None);
            silence(&self.bell);
            if !stopped && !lock(&self.line).uart.writer().waiting.is_empty() {
                let gather = Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::from(GATHER.subsec_nanos()),
                };
                let mut fds = [PollFd::new(&self.stop, PollFlags::IN)];
                stopped = matches!(poll(&mut fds, Some(&gather)), Ok(1));
            }
            self.write(stopped);
            if stopped {
                return;
            }
        }
    }

    /// Waits for something to do, and takes input that has come. True if it is time to end.
    fn wait(&mut self, timeout: Option<&Timespec>) -> bool {
        let wants_input = lock(&self.line).input.is_empty();
        let mut fds = vec![
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::new(&self.bell, PollFlags::IN),
        ];
        if let (Some(input), true) = (&self.input, wants_input) {
            fds.push(PollFd::new(input, PollFlags::IN));
        }
        while matches!(poll(&mut fds, timeout), Err(Errno::INTR)) {}
        let stopped = !fds[0].revents().is_empty();
        let came = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
        if came && !stopped {
            self.read();
        }
        stopped
    }

    fn read(&mut self) {
        let mut bytes = [0; CHUNK];
        let Some(input) = &self.input else {
            return;
        };
        match rustix::io::read(input, &mut bytes) {
            Ok(0) => self.input = None,
            Ok(count) => {
                let mut line = lock(&self.line);
                line.input.extend(&bytes[..count]);
                line.feed();
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.input = None,
        }
    }

    /// Writes everything that waits. A reader that is slow is waited for, but not at the end.
    fn write(&mut self, stopped: bool) {
        let waiting = std::mem::take(&mut lock(&self.line).uart.writer_mut().waiting);
        let mut rest = &waiting[..];
        while let (Some(output), false) = (&self.output, rest.is_empty()) {
            let mut fds = [
                PollFd::new(output, PollFlags::OUT),
                PollFd::new(&self.stop, PollFlags::IN),
            ];
            let now = Timespec::default();
            match poll(&mut fds, stopped.then_some(&now)) {
                Ok(_) if fds[0].revents().is_empty() => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            // At most what a pipe that can be written takes without waiting.
            let chunk = &rest[..rest.len().min(PIPE_CHUNK)];
            match rustix::io::write(output.as_fd(), chunk) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => self.output = None,
            }
        }
    }
}

/// `PIPE_BUF`.
const PIPE_CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::FakeVm;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const PORT: u64 = SERIAL_PORT as u64;

    fn line() -> (SystemBus, Arc<SerialLine>, Arc<FakeVm>) {
        let bus = SystemBus::default();
        let vm = FakeVm::new();
        let line = SerialLine::attach(&bus, vm.clone()).unwrap();
        (bus, line, vm)
    }

    fn started() -> (SystemBus, Arc<SerialLine>, Arc<FakeVm>, UnixStream) {
        let (bus, line, vm) = line();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let theirs = Arc::new(OwnedFd::from(theirs));
        line.start(Some(theirs.clone()), theirs).unwrap();
        (bus, line, vm, ours)
    }

    fn load(bus: &SystemBus, register: u64) -> u8 {
        let mut data = [0];
        bus.ports.read(PORT + register, &mut data);
        data[0]
    }

    #[test]
    fn what_is_sent_comes_out() {
        let (bus, line, _, mut ours) = started();
        for byte in b"hello" {
            assert_eq!(load(&bus, 5) & 0x20, 0x20, "it can be sent");
            bus.ports.write(PORT, &[*byte]);
        }
        let mut seen = [0; 5];
        ours.read_exact(&mut seen).unwrap();
        assert_eq!(seen, *b"hello");
        bus.ports.write(PORT, b"!");
        line.stop();
        ours.read_exact(&mut seen[..1]).unwrap();
        assert_eq!(seen[0], b'!', "what waited at the end was written");
    }

    #[test]
    fn what_comes_in_is_read_with_interrupts() {
        let (bus, _line, vm, mut ours) = started();
        bus.ports.write(PORT + 1, &[1]);
        let text: Vec<u8> = (0..=255).cycle().take(1000).collect();
        ours.write_all(&text).unwrap();
        let mut seen = Vec::new();
        let mut edges = 0;
        while seen.len() < text.len() {
            edges += 1;
            vm.wait_edges(SERIAL_GSI, edges);
            while load(&bus, 5) & 1 != 0 {
                seen.push(load(&bus, 0));
            }
            edges = vm.edges(SERIAL_GSI).min(edges);
        }
        assert_eq!(seen, text);
    }

    #[test]
    fn a_reader_who_sleeps_stops_nobody() {
        let (bus, line, _, ours) = started();
        for _ in 0..2 * OUTPUT_MAX {
            bus.ports.write(PORT, b"x");
        }
        assert!(lock(&line.line).uart.writer().waiting.len() <= OUTPUT_MAX);
        drop(ours);
        line.stop();
    }

    #[test]
    fn state_goes_to_another_line() {
        let (bus, line, _) = line();
        bus.ports.write(PORT + 7, &[0x5a]);
        bus.ports.write(PORT + 3, &[0x80]);
        bus.ports.write(PORT, b"x");
        bus.ports.write(PORT + 3, &[0]);
        bus.ports.write(PORT, b"y");
        let state = serde_json::to_string(&line.save()).unwrap();
        let (other_bus, other, _, mut ours) = started();
        other.restore(&serde_json::from_str(&state).unwrap()).unwrap();
        assert_eq!(load(&other_bus, 7), 0x5a);
        assert_eq!(other.save().divisor[0], b'x');
        let mut seen = [0];
        ours.read_exact(&mut seen).unwrap();
        assert_eq!(seen, *b"y");
    }
}
