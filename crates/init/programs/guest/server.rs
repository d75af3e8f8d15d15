//! The host's requests, the container's processes, and everything that is waited for: one poll(2), one thread.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use crate::boot;
use crate::container;
use crate::fault::{Context, Fault, Result, report, show};
use crate::mounts;
use crate::names::Names;
use crate::network;
use crate::os::{self, Address, Errno, Fd, POLLIN, POLLOUT, PollFd};
use crate::process::{self, News};
use crate::processes::{Plan, Running};
use crate::protocol::{
    Failure, Hello, MAX_FRAME, Network, PORT, Parsed, READY_PORT, Reply, Request, Stream, frame, parse,
};
use crate::pump::{self, Pump};
use crate::statistics;

/// The context ID of the host, and of any.
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

/// More connections than that are turned away.
const MAX_CONNECTIONS: usize = 512;

/// How long a network card may take to appear, and processes to end at a shutdown, in nanoseconds.
const CARD_PATIENCE: u64 = 2_000_000_000;
const END_PATIENCE: u64 = 5_000_000_000;

/// Where the connections come from.
pub struct Transport {
    listener: Fd,
    ports: Vec<Fd>,
    /// Whether this is the guest itself, and not a test of it.
    machine: bool,
}

impl Transport {
    /// A socket of a test.
    pub fn given(listener: Fd) -> Self {
        Self {
            listener,
            ports: Vec::new(),
            machine: false,
        }
    }

    /// vsock; or, where the monitor has none, the ports of a virtio console whose names begin with `vessel.`: each is one
    /// connection.
    pub fn open() -> Result<Self> {
        let (listener, ports) = if drives(b"vmw_vsock_virtio_transport") {
            let what = || "listen for the host on vsock".into();
            let socket = os::socket(os::AF_VSOCK, os::SOCK_STREAM, 0).context(what)?;
            os::bind(&socket, &Address::vsock(ANY, PORT)).context(what)?;
            os::listen(&socket).context(what)?;
            (socket, Vec::new())
        } else {
            let ports = ports();
            if ports.is_empty() {
                return Err(Fault::new(
                    Failure::Unsupported,
                    "this machine has no vsock device, or its kernel no driver for it (vmw_vsock_virtio_transport)",
                ));
            }
            // Nobody will connect: something that never is ready listens.
            let nothing = os::signal_descriptor(0).context(|| "wait for nothing".into())?;
            (nothing, ports)
        };
        Ok(Self {
            listener,
            ports,
            machine: true,
        })
    }
}

/// Whether a virtio driver has a device.
fn drives(driver: &[u8]) -> bool {
    let path = [b"/sys/bus/virtio/drivers/", driver].concat();
    let devices = os::names(&path).unwrap_or_default();
    devices.iter().any(|name| name.starts_with(b"virtio"))
}

/// The ports, once no more of them appear: a console's come one after the other.
fn ports() -> Vec<Fd> {
    let class = b"/sys/class/virtio-ports/";
    let labelled = || -> Vec<Vec<u8>> {
        let mut names = os::names(class).unwrap_or_default();
        names.sort();
        names.retain(|name| {
            let label = os::read_file(&[class, &name[..], b"/name"].concat(), 64).unwrap_or_default();
            label.starts_with(b"vessel.")
        });
        names
    };
    let mut names = labelled();
    if drives(b"virtio_console") {
        for _ in 0..10 {
            os::sleep(100);
            let now = labelled();
            if !now.is_empty() && now.len() == names.len() {
                break;
            }
            names = now;
        }
    }
    let open = |name: Vec<u8>| os::open(&[b"/dev/", &name[..]].concat(), os::O_RDWR | os::O_NONBLOCK).ok();
    names.into_iter().filter_map(open).collect()
}

/// A connection of the host.
pub struct Connection {
    pub fd: Fd,
    pub input: Vec<u8>,
    pub output: Vec<u8>,
    pub role: Role,
    pub gone: bool,
}

pub enum Role {
    /// Its request is not complete.
    Asking,
    /// It is a stream of a process that is not started yet.
    Parked(Stream),
    /// It wants to hear of this process.
    Follows(u64),
    /// It waits for a child that does what it asked.
    Aside(Fd),
    /// It waits for network cards.
    Network(Network, u64),
    /// It is closed when everything was sent.
    Leaving,
}

impl Connection {
    fn new(fd: Fd) -> Self {
        Self {
            fd,
            input: Vec::new(),
            output: Vec::new(),
            role: Role::Asking,
            gone: false,
        }
    }

    pub fn reply(&mut self, reply: &Reply) {
        self.output.extend(frame(reply));
    }

    /// Its last reply.
    pub fn finish(&mut self, reply: &Reply) {
        self.reply(reply);
        self.role = Role::Leaving;
    }

    pub fn refuse(&mut self, fault: Fault) {
        let Fault { kind, message } = fault;
        self.finish(&Reply::Failed { kind, message });
    }

    fn settle(&mut self, result: Result<()>) {
        match result {
            Ok(()) => self.finish(&Reply::Done),
            Err(fault) => self.refuse(fault),
        }
    }

    pub fn flush(&mut self) {
        match os::write(&self.fd, &self.output) {
            Ok(count) => {
                self.output.drain(..count.min(self.output.len()));
            }
            Err(Errno::AGAIN) => {}
            Err(_) => self.gone = true,
        }
    }
}

pub struct Server {
    pub transport: Transport,
    pub signals: Fd,
    pub connections: Vec<Connection>,
    pub processes: Vec<Running>,
    /// With the process and the number of the stream each belongs to; 0 belongs to none.
    pub pumps: Vec<(u64, u8, Pump)>,
    pub names: Option<Names>,
    /// The container's first process, once it was started.
    pub container: Option<Fd>,
    pub started: bool,
    /// The machine ends: whether it restarts, and when at the latest.
    pub ending: Option<(bool, u64)>,
    /// Children that ended while it is not known yet whose they were, and how.
    pub strays: Vec<(i32, i32)>,
    pub next_key: u64,
    pub hello: Hello,
}

/// Serves for as long as the machine lives.
pub fn run(transport: Transport) -> Result<()> {
    // Whatever opens a descriptor later must not get the number of a standard stream.
    while os::open(b"/dev/null", os::O_RDWR).is_ok_and(|fd| fd.forget() < 3) {}
    os::block_signals(u64::MAX);
    let signals = os::signal_descriptor(u64::MAX).context(|| "watch for signals".into())?;
    os::set_nonblocking(&transport.listener).context(|| "listen without blocking".into())?;
    let mut server = Server {
        signals,
        connections: Vec::new(),
        processes: Vec::new(),
        pumps: Vec::new(),
        names: None,
        container: None,
        started: false,
        ending: None,
        strays: Vec::new(),
        next_key: 1,
        hello: Hello {
            release: show(&os::release()),
            uptime: os::uptime(),
        },
        transport,
    };
    let ports = core::mem::take(&mut server.transport.ports);
    server.connections.extend(ports.into_iter().map(Connection::new));
    if server.transport.machine {
        server.greet();
    }
    let mut scratch = vec![0; pump::PIECE];
    loop {
        server.turn(&mut scratch)?;
        if server.ended() {
            return Ok(());
        }
    }
}

impl Server {
    /// Tells the host that requests can come, if it wants to know.
    fn greet(&mut self) {
        let connected = os::socket(os::AF_VSOCK, os::SOCK_STREAM | os::SOCK_NONBLOCK, 0)
            .and_then(|socket| os::connect(&socket, &Address::vsock(HOST, READY_PORT)).map(|()| socket));
        if let Ok(socket) = connected {
            let mut connection = Connection::new(socket);
            connection.finish(&Reply::Hello(self.hello.clone()));
            self.connections.push(connection);
        }
    }

    /// Waits for something and does what there is to do.
    fn turn(&mut self, scratch: &mut [u8]) -> Result<()> {
        let mut fds = vec![
            wish(Some(&self.transport.listener), POLLIN),
            wish(Some(&self.signals), POLLIN),
        ];
        let connections = fds.len();
        fds.extend(self.connections.iter().map(|connection| self.wish_of(connection)));
        let channels = fds.len();
        fds.extend(
            self.processes
                .iter()
                .map(|process| wish(process.channel.as_ref(), POLLIN)),
        );
        let pumps = fds.len();
        fds.extend(self.pumps.iter().map(|(_, _, pump)| pump.wants()));
        let names = fds.len();
        if let Some(names) = &self.names {
            names.wants(&mut fds);
        }
        match os::poll(&mut fds, self.patience()) {
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
            result => result.map(drop).context(|| "wait for something to do".into())?,
        }
        let part = |from: usize, to: usize| fds.get(from..to).unwrap_or_default();
        let happened = |fd: &PollFd| fd.happened != 0;

        let mut ready = part(pumps, names).iter().map(happened);
        self.pumps
            .retain_mut(|(_, _, pump)| !ready.next().unwrap_or(false) || pump.work(scratch));
        if let Some(resolver) = &mut self.names {
            let relays = resolver.work(part(names, fds.len()), scratch);
            self.pumps.extend(relays.into_iter().map(|pump| (0, 0, pump)));
        }
        for (index, _) in part(channels, pumps)
            .iter()
            .enumerate()
            .filter(|(_, fd)| happened(fd))
        {
            self.listen_to_child(index);
        }
        if fds.get(1).is_some_and(happened) {
            self.reap();
        }
        for (index, _) in part(connections, channels)
            .iter()
            .enumerate()
            .filter(|(_, fd)| happened(fd))
        {
            self.serve(index, scratch);
        }
        if fds.first().is_some_and(happened) {
            self.accept();
        }
        self.retry_networks();
        self.connections.retain(|connection| {
            let done = matches!(connection.role, Role::Leaving) && connection.output.is_empty();
            !connection.gone && !done
        });
        self.processes.retain(|process| !process.over);
        Ok(())
    }

    fn wish_of(&self, connection: &Connection) -> PollFd {
        if !connection.output.is_empty() {
            return wish(Some(&connection.fd), POLLOUT);
        }
        match &connection.role {
            Role::Asking => wish(Some(&connection.fd), POLLIN),
            Role::Aside(channel) => wish(Some(channel), POLLIN),
            Role::Follows(key)
                if self
                    .processes
                    .iter()
                    .any(|process| process.key == *key && process.leashed) =>
            {
                wish(Some(&connection.fd), POLLIN)
            }
            _ => wish(None, 0),
        }
    }

    /// Milliseconds until something has to be done without being asked.
    fn patience(&self) -> i32 {
        let waiting = |connection: &Connection| matches!(connection.role, Role::Network(..));
        if self.ending.is_some() || self.connections.iter().any(waiting) {
            10
        } else if self.names.as_ref().is_some_and(Names::is_busy) {
            1000
        } else {
            -1
        }
    }

    fn accept(&mut self) {
        while let Ok((fd, from)) = os::accept(&self.transport.listener) {
            // Programs in the guest can reach this port, too.
            let stranger = from.family() == os::AF_VSOCK && from.context() != HOST;
            if !stranger && self.connections.len() < MAX_CONNECTIONS {
                self.connections.push(Connection::new(fd));
            }
        }
    }

    fn serve(&mut self, index: usize, scratch: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        if !connection.output.is_empty() {
            connection.flush();
            return;
        }
        match &connection.role {
            Role::Asking => self.listen_to(index, scratch),
            Role::Aside(channel) => match process::hear(channel) {
                Err(Errno::AGAIN) => {}
                Ok(Some(News::Failed(fault))) => connection.refuse(fault),
                Ok(Some(_)) => {}
                Ok(None) => connection.finish(&Reply::Done),
                Err(errno) => connection.settle(Err(errno).context(|| "hear of a child".into())),
            },
            Role::Follows(key) => {
                let key = *key;
                match os::read(&connection.fd, scratch) {
                    Err(Errno::AGAIN) => {}
                    // Nothing more is expected from the host but that it leaves.
                    Ok(1..) => {}
                    _ => {
                        connection.gone = true;
                        self.let_go(key);
                    }
                }
            }
            _ => {}
        }
    }

    /// Kills a leashed process whose host has left.
    fn let_go(&mut self, key: u64) {
        if let Some(process) = self
            .processes
            .iter_mut()
            .find(|process| process.key == key && process.leashed)
        {
            process.leashed = false;
            if process.plan.is_some() {
                process.over = true;
            } else {
                let _ = os::kill(process.pid.unwrap_or(process.child), os::SIGKILL);
            }
        }
    }

    fn listen_to(&mut self, index: usize, scratch: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        match os::read(&connection.fd, scratch) {
            Ok(count) if count > 0 => connection
                .input
                .extend_from_slice(scratch.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN) => return,
            _ => {
                connection.gone = true;
                return;
            }
        }
        match parse::<Request>(&connection.input, MAX_FRAME) {
            Parsed::Partial => {}
            Parsed::Garbage => connection.refuse(Fault::invalid("this is no request of this version")),
            Parsed::Message(request, length) => {
                connection.input.drain(..length);
                self.answer(index, request);
            }
        }
    }

    fn answer(&mut self, index: usize, request: Request) {
        // Only what follows takes the connection; everything else is answered at once.
        let result = match request {
            Request::Start(start) => {
                let again = self
                    .started
                    .then(|| Fault::new(Failure::Conflict, "this guest has its container already"));
                match again {
                    Some(fault) => Err(fault),
                    None => {
                        self.started = true;
                        return self.plan(index, Plan::First(start));
                    }
                }
            }
            Request::Exec(process) => match self.container {
                Some(_) => return self.plan(index, Plan::Another(process)),
                None => Err(not_running()),
            },
            Request::Stream(stream) => return self.park(index, stream),
            Request::Mount(mount) => {
                // Its device may have been plugged in for it.
                if mount.kind == b"virtiofs" {
                    boot::rescan();
                }
                return self.aside(index, move |first| mounts::add_running(first, &mount));
            }
            Request::Unmount { target } => {
                return self.aside(index, move |first| mounts::remove_running(first, &target));
            }
            Request::Network(network) => {
                boot::rescan();
                if let Some(connection) = self.connections.get_mut(index) {
                    connection.role = Role::Network(network, os::uptime() + CARD_PATIENCE);
                }
                return;
            }
            Request::Hello => Ok(Reply::Hello(self.hello.clone())),
            Request::Signal { process, signal, all } => {
                self.signal(&process, signal, all).map(|()| Reply::Done)
            }
            Request::Resize { process, size } => match self.named(&process) {
                Some(Running {
                    terminal: Some(terminal),
                    ..
                }) => process::resize(terminal, &size)
                    .context(|| "change the terminal's size".into())
                    .map(|()| Reply::Done),
                Some(_) => Err(Fault::new(Failure::Conflict, "this process has no terminal")),
                None => Err(no_process(&process)),
            },
            Request::Top => Ok(Reply::Processes(statistics::processes())),
            Request::Statistics => Ok(Reply::Files(statistics::files())),
            Request::Limit(limits) => container::limit(&limits).map(|()| Reply::Done),
            Request::Clock { realtime } => os::set_clock(realtime)
                .context(|| "set the clock".into())
                .map(|()| Reply::Done),
            Request::Reseed { seed } => reseed(&seed).map(|()| Reply::Done),
            Request::Sync => {
                os::sync();
                Ok(Reply::Done)
            }
            Request::Shutdown { restart } => {
                self.end(restart);
                Ok(Reply::Done)
            }
        };
        if let Some(connection) = self.connections.get_mut(index) {
            match result {
                Ok(reply) => connection.finish(&reply),
                Err(fault) => connection.refuse(fault),
            }
        }
    }

    pub fn named(&self, name: &str) -> Option<&Running> {
        self.processes
            .iter()
            .find(|process| process.name == name && !process.over)
    }

    fn signal(&self, name: &str, signal: i32, all: bool) -> Result<()> {
        let send =
            |pid: i32| os::kill(pid, signal).context(|| format!("send signal {signal} to process {pid}"));
        if all {
            // Those that have just ended need no signal.
            for process in statistics::processes() {
                let _ = send(process.pid);
            }
            return Ok(());
        }
        match self.named(name).and_then(|process| process.pid) {
            Some(pid) => send(pid),
            None => Err(no_process(name)),
        }
    }

    fn aside(&mut self, index: usize, work: impl FnOnce(&Fd) -> Result<()>) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        let started = match &self.container {
            None => Err(not_running()),
            Some(first) => channel().and_then(|(ours, theirs)| {
                process::aside(theirs, || work(first))?;
                Ok(ours)
            }),
        };
        match started {
            Ok(ours) => connection.role = Role::Aside(ours),
            Err(fault) => connection.refuse(fault),
        }
    }

    fn retry_networks(&mut self) {
        let now = os::uptime();
        let mut wants_names = false;
        for connection in &mut self.connections {
            if let Role::Network(network, deadline) = &connection.role
                && (network::is_complete(network) || now >= *deadline)
            {
                wants_names |= network.dns;
                let result = network::configure(network);
                connection.settle(result);
            }
        }
        if wants_names && self.names.is_none() {
            match Names::new() {
                Ok(names) => self.names = Some(names),
                Err(errno) => report(&format!("no DNS on 127.0.0.11: {}", errno.text())),
            }
        }
    }

    fn end(&mut self, restart: bool) {
        self.ending = Some((restart, os::uptime() + END_PATIENCE));
        // With the first, the kernel kills the others.
        for process in &self.processes {
            if let Some(pid) = process.pid {
                let _ = os::kill(pid, os::SIGKILL);
            }
        }
    }

    /// Whether everything has ended that had to; then the machine does.
    fn ended(&self) -> bool {
        let Some((restart, deadline)) = self.ending else {
            return false;
        };
        let quiet = self.processes.is_empty()
            && self.pumps.iter().all(|(of, _, _)| *of == 0)
            && self
                .connections
                .iter()
                .all(|connection| connection.output.is_empty());
        if !quiet && os::uptime() < deadline {
            return false;
        }
        os::sync();
        if self.transport.machine {
            os::reboot(restart);
        }
        true
    }
}

pub fn channel() -> Result<(Fd, Fd)> {
    let (ours, theirs) =
        os::socket_pair(os::SOCK_SEQPACKET).context(|| "make a channel to a child".into())?;
    os::set_nonblocking(&ours).context(|| "make a channel to a child".into())?;
    Ok((ours, theirs))
}

fn wish(fd: Option<&Fd>, events: i16) -> PollFd {
    PollFd {
        fd: fd.map_or(-1, Fd::raw),
        events,
        happened: 0,
    }
}

pub fn not_running() -> Fault {
    Fault::new(Failure::Conflict, "the container does not run in this guest")
}

fn no_process(name: &str) -> Fault {
    Fault::new(
        Failure::NotFound,
        format!("there is no process {name:?} in this guest"),
    )
}

/// Adds randomness and counts it, so that the generator starts anew from it.
fn reseed(seed: &[u8]) -> Result<()> {
    const RNDADDENTROPY: usize = 0x4008_5203;
    const RNDRESEEDCRNG: usize = 0x5207;
    let what = || "add randomness".into();
    if seed.len() < 32 {
        return Err(Fault::invalid("a seed has at least 32 bytes"));
    }
    // struct rand_pool_info: bits 4, bytes 4, then the bytes.
    let mut pool = Vec::new();
    pool.extend_from_slice(&(seed.len() as u32 * 8).to_le_bytes());
    pool.extend_from_slice(&(seed.len() as u32).to_le_bytes());
    pool.extend_from_slice(seed);
    let random = os::open(b"/dev/random", os::O_RDWR).context(what)?;
    os::control(random.raw(), RNDADDENTROPY, pool.as_ptr() as usize).context(what)?;
    // Not before the generator is ready for the first time; then what was added makes it so.
    let _ = os::control(random.raw(), RNDRESEEDCRNG, 0);
    Ok(())
}
