//! The server in a process of its own: it needs rights over files that the process with the vCPUs must not have.
//!
//! Both have the guest's memory (a memfd). The rings belong to the machine's process: it takes requests from them, sends where their buffers are over a
//! channel, one for each request queue, and gives them back when the answer has come. So what the server has written is known here before
//! the guest can look at it (a processor in software must forget what it has translated of it), and nothing that the server does can harm more than
//! the requests it was given and the guest's memory.
//!
//! A channel is a `SOCK_SEQPACKET` pair. A request is its number, how many buffers are for reading and for writing, and the address and length of each; an answer is the
//! number and how much was written. Requests of one channel are done in turn.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::super::{
    Buffers, Chain, DeviceKind, Metrics, Poller, QueueError, QueueHandle, Ready, Start, VirtioDevice,
    Worker as QueueWorker, WorkerThread, read_from,
};
use super::device::{KIND, QUEUE_SIZE, REQUEST_QUEUES_MAX, TAG_MAX, config_space};
use super::{Descriptors, Server, Worker};
use crate::control::packet;
use crate::memory::Memory;
use crate::sync::lock;

/// Not a request: the guest's memory, its size behind the number, its file beside it. Answered.
const MEMORY: u32 = u32::MAX;
/// Not a request: the guest has gone. Answered.
const RESET: u32 = u32::MAX - 1;

/// Requests of a queue that are with the server. Their answers fit into the channel, so that the server never waits for this process.
const IN_FLIGHT: usize = 64;

const TOKEN_CHANNEL: u64 = 0;

/// A channel's two ends: for [`RemoteFs::new`] and for [`serve`].
///
/// # Errors
/// When the kernel gives no sockets.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn gone() -> io::Error {
    io::Error::other("the server of shared directories has gone")
}

/// The next little-endian number of a message, which loses it.
fn take<const N: usize>(message: &mut &[u8]) -> io::Result<[u8; N]> {
    let (number, rest) = message
        .split_first_chunk()
        .ok_or_else(|| io::Error::other("a message between a machine and its file server is cut"))?;
    *message = rest;
    Ok(*number)
}

/// A shared directory whose server is at the other ends of channels.
pub struct RemoteFs {
    config: [u8; TAG_MAX + 4],
    channels: Vec<Arc<OwnedFd>>,
}

impl RemoteFs {
    /// A device with this tag, and as many request queues as there are channels.
    ///
    /// # Errors
    /// When the tag is none, or there is no channel, or more than 64.
    pub fn new(tag: &str, channels: Vec<OwnedFd>) -> io::Result<Self> {
        let queues = u16::try_from(channels.len()).unwrap_or(u16::MAX);
        if !(1..=REQUEST_QUEUES_MAX).contains(&queues) {
            return Err(io::Error::other(format!(
                "a shared directory cannot have {queues} queues: 1 to {REQUEST_QUEUES_MAX} are possible"
            )));
        }
        Ok(Self {
            config: config_space(tag, queues)?,
            channels: channels.into_iter().map(Arc::new).collect(),
        })
    }

    /// Says something that is no request on the first channel, and waits for the answer.
    fn say(&self, message: &[u8], file: Option<&File>) -> io::Result<()> {
        let descriptors: Vec<_> = file.into_iter().map(File::as_fd).collect();
        let channel = &self.channels[0];
        packet::send(channel, message, &descriptors, SendFlags::empty())?;
        let (answer, _) = packet::receive(channel, RecvFlags::empty())?.ok_or_else(gone)?;
        if answer.first_chunk() == message.first_chunk::<4>() {
            Ok(())
        } else {
            Err(io::Error::other("the server of shared directories refuses"))
        }
    }
}

impl VirtioDevice for RemoteFs {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 1 + self.channels.len()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config, offset, data);
    }

    fn start(&mut self, start: Start) -> io::Result<Vec<WorkerThread>> {
        let size: u64 = start.memory.iter().map(GuestMemoryRegion::len).sum();
        let file = start
            .memory
            .iter()
            .find_map(|region| region.file_offset())
            .ok_or_else(|| io::Error::other("the guest's memory is no file"))?;
        let mut message = MEMORY.to_le_bytes().to_vec();
        message.extend_from_slice(&size.to_le_bytes());
        self.say(&message, Some(file.file()))?;
        let mut queues = start.queues.into_iter();
        let mut mine: Vec<QueueHandle> = queues.next().into_iter().collect();
        let mut threads = Vec::new();
        for (channel, queue) in self.channels.iter().zip(queues) {
            mine.push(queue);
            threads.push(WorkerThread {
                queues: mine.clone(),
                worker: Box::new(Relay {
                    channel: channel.clone(),
                    queues: std::mem::take(&mut mine),
                    with_server: HashMap::new(),
                    next: 0,
                    metrics: start.metrics.clone(),
                }),
            });
        }
        Ok(threads)
    }

    fn reset(&mut self) {
        if let Err(error) = self.say(&RESET.to_le_bytes(), None) {
            tracing::warn!(%error, "a shared directory cannot be reset");
        }
    }
}

/// The machine's side of a channel, while the device runs.
struct Relay {
    channel: Arc<OwnedFd>,
    queues: Vec<QueueHandle>,
    /// Requests by number: of which queue, and what can be written.
    with_server: HashMap<u32, (usize, Chain, usize)>,
    next: u32,
    metrics: Arc<Metrics>,
}

impl Relay {
    /// Sends what waits in a queue, as far as there is room.
    fn forward(&mut self, number: usize) -> Result<(), QueueError> {
        let queue = self.queues[number].clone();
        queue.lock().disable_notifications()?;
        loop {
            while self.with_server.len() < IN_FLIGHT
                && let Some(chain) = queue.pop()?
            {
                let mut message = Vec::with_capacity(64);
                while self.next >= RESET || self.with_server.contains_key(&self.next) {
                    self.next = self.next.wrapping_add(1);
                }
                let id = self.next;
                self.next = self.next.wrapping_add(1);
                message.extend_from_slice(&id.to_le_bytes());
                for buffers in [&chain.readable, &chain.writable] {
                    // A chain has at most 1024 descriptors.
                    let count = buffers.places().count() as u32;
                    message.extend_from_slice(&count.to_le_bytes());
                }
                for buffers in [&chain.readable, &chain.writable] {
                    for (address, length) in buffers.places() {
                        message.extend_from_slice(&address.to_le_bytes());
                        // One descriptor has less than 4 GiB.
                        message.extend_from_slice(&(length as u32).to_le_bytes());
                    }
                }
                self.metrics.written(chain.readable.left() as u64);
                let room = chain.writable.left();
                self.with_server.insert(id, (number, chain, room));
                // Waits while the channel is full: the server takes one request after the other without waiting for us.
                packet::send(&self.channel, &message, &[], SendFlags::empty())?;
            }
            // Those that are left are sent when an answer has come.
            if self.with_server.len() >= IN_FLIGHT || !queue.lock().enable_notifications()? {
                return Ok(());
            }
        }
    }

    /// Takes one answer; `false` when none is there.
    fn answered(&mut self, flags: RecvFlags) -> Result<bool, QueueError> {
        let (message, _) = match packet::receive(&self.channel, flags) {
            Ok(Some(received)) => received,
            Ok(None) => return Err(gone().into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut rest = &message[..];
        let id = u32::from_le_bytes(take(&mut rest)?);
        let written = u32::from_le_bytes(take(&mut rest)?);
        let Some((number, chain, room)) = self.with_server.remove(&id) else {
            return Err(io::Error::other("the file server answers what was not asked").into());
        };
        self.metrics.read(written.into());
        // Never more than there was room for, whatever it says; a chain has less than 4 GiB.
        self.queues[number].push(chain, written.min(u32::try_from(room).unwrap_or(u32::MAX)))?;
        Ok(true)
    }
}

impl QueueWorker for Relay {
    fn start(&mut self, poller: &Poller) -> Result<(), QueueError> {
        poller.add(&*self.channel, TOKEN_CHANNEL, Ready::READ)?;
        Ok(())
    }

    fn queue(&mut self, index: usize, _: &Poller) -> Result<(), QueueError> {
        match self.queues.iter().position(|queue| queue.index() == index) {
            Some(number) => self.forward(number),
            None => Ok(()),
        }
    }

    fn event(&mut self, _: u64, _: Ready, _: &Poller) -> Result<(), QueueError> {
        while self.answered(RecvFlags::DONTWAIT)? {}
        for number in 0..self.queues.len() {
            self.forward(number)?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        while !self.with_server.is_empty() {
            if let Err(error) = self.answered(RecvFlags::empty()) {
                tracing::warn!(%error, "requests to a shared directory are lost");
                self.with_server.clear();
            }
        }
    }
}

/// The guest's memory, once the machine has sent it: the same for all channels of a directory.
pub type SharedMemory = Arc<Mutex<Option<Arc<Memory>>>>;

/// Serves a directory on a channel until its other end is closed.
///
/// # Errors
/// When the channel is broken, or the other end makes no sense.
pub fn serve(
    channel: &OwnedFd,
    server: &Server,
    descriptors: &Descriptors,
    memory: &SharedMemory,
) -> io::Result<()> {
    let worker = Worker::enter(descriptors)?;
    let mut known: Option<Arc<Memory>> = None;
    while let Some((message, files)) = packet::receive(channel, RecvFlags::empty())? {
        let mut rest = &message[..];
        let id = u32::from_le_bytes(take(&mut rest)?);
        let written = match id {
            MEMORY => {
                let size = u64::from_le_bytes(take(&mut rest)?);
                let file = files
                    .into_iter()
                    .next()
                    .ok_or_else(|| io::Error::other("the guest's memory is missing"))?;
                let mapped = Memory::from_file(File::from(file), size).map_err(io::Error::other)?;
                *lock(memory) = Some(Arc::new(mapped));
                known = None;
                0
            }
            RESET => {
                server.reset();
                0
            }
            _ => {
                if known.is_none() {
                    known.clone_from(&*lock(memory));
                }
                let memory = known
                    .as_ref()
                    .ok_or_else(|| io::Error::other("a request came before the guest's memory"))?;
                let counts = [(); 2].map(|()| take(&mut rest).map(u32::from_le_bytes));
                let mut buffers = [(); 2].map(|()| Buffers::new(memory.ram().clone()));
                for (buffers, count) in buffers.iter_mut().zip(counts) {
                    for _ in 0..count? {
                        let address = u64::from_le_bytes(take(&mut rest)?);
                        let length = u32::from_le_bytes(take(&mut rest)?);
                        buffers.push(address, length).map_err(io::Error::other)?;
                    }
                }
                let [mut request, mut reply] = buffers;
                server.handle(&worker, &mut request, &mut reply)
            }
        };
        let mut answer = id.to_le_bytes().to_vec();
        answer.extend_from_slice(&u32::try_from(written).unwrap_or(u32::MAX).to_le_bytes());
        packet::send(channel, &answer, &[], SendFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread::JoinHandle;

    use super::super::super::testing::{Buffer, FakeDriver};
    use super::super::abi::{InHeader, InitIn, InitOut, OutHeader};
    use super::super::{Descriptors, Options};
    use super::*;
    use vm_memory::ByteValued;

    fn init(driver: &mut FakeDriver, queue: usize) -> u32 {
        let body = InitIn {
            major: 7,
            minor: 38,
            ..Default::default()
        };
        let header = InHeader {
            len: 56,
            opcode: 26,
            unique: 9,
            ..Default::default()
        };
        let buffers = [
            Buffer::Out(header.as_slice()),
            Buffer::Out(body.as_slice()),
            Buffer::In(80),
        ];
        let (written, answer) = driver.request(queue, &buffers);
        let mut head = OutHeader::default();
        head.as_mut_slice().copy_from_slice(&answer[..16]);
        assert_eq!((head.error, head.unique), (0, 9));
        written
    }

    /// A device, and its server on threads.
    fn shared(queues: usize) -> (RemoteFs, Vec<OwnedFd>, Vec<JoinHandle<io::Result<()>>>) {
        let dir = tempfile::tempdir().unwrap();
        let root: OwnedFd = File::open(dir.path()).unwrap().into();
        let server = Arc::new(Server::new(root, Options::default()).unwrap());
        let descriptors = Arc::new(Descriptors::open().unwrap());
        let memory = SharedMemory::default();
        let (mut ours, mut closers, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..queues {
            let (end, theirs) = channel().unwrap();
            ours.push(end);
            closers.push(theirs.try_clone().unwrap());
            let (server, descriptors, memory) = (server.clone(), descriptors.clone(), memory.clone());
            threads.push(std::thread::spawn(move || {
                serve(&theirs, &server, &descriptors, &memory)
            }));
        }
        (RemoteFs::new("root", ours).unwrap(), closers, threads)
    }

    #[test]
    fn a_driver_does_not_see_that_the_server_is_elsewhere() {
        let (device, closers, threads) = shared(2);
        drop(closers);
        let mut driver = FakeDriver::started(Box::new(device));
        assert_eq!(&driver.config::<5>(0), b"root\0");
        let expected = 16 + size_of::<InitOut>() as u32;
        for queue in [1, 2, 1] {
            assert_eq!(init(&mut driver, queue), expected);
        }
        assert_eq!(driver.request(0, &[Buffer::Out(&[1, 2, 3])]).0, 0);
        // Many at once, more than there is room for on the way.
        for _ in 0..200 {
            driver.offer(1, &[Buffer::Out(&[0; 40]), Buffer::In(16)]);
        }
        driver.ring(1);
        let mut back = 0;
        while back < 200 {
            let (_, written) = driver.wait(1);
            assert_eq!(written, 16);
            back += 1;
        }
        // A pause is not seen.
        driver.device.pause();
        driver.device.resume();
        assert_eq!(init(&mut driver, 1), expected);
        assert_eq!(init(&mut driver, 2), expected);
        drop(driver);
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_server_that_has_gone_is_noticed() {
        let (device, closers, threads) = shared(1);
        let driver = FakeDriver::started(Box::new(device));
        for closer in closers {
            rustix::net::shutdown(&closer, rustix::net::Shutdown::Both).unwrap();
        }
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
        driver.wait_for_needs_reset();
    }
}
