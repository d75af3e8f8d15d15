//! The monitor and the guest in one process, as far as the shim can tell. It misbehaves when the kernel's command line says so.

use std::collections::HashMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde_json::{Value, json};
use vessel_init::guest::protocol::{File as NamedFile, *};

struct Guest {
    control: OwnedFd,
    root: OwnedFd,
    readonly: bool,
    behaviour: String,
    streams: Mutex<HashMap<(String, u8), OwnedFd>>,
    came: Condvar,
    processes: Mutex<HashMap<String, Running>>,
    network: Mutex<Option<Network>>,
}

struct Running {
    pid: i32,
    terminal: Option<OwnedFd>,
}

pub fn main() -> ! {
    // SAFETY: the shim's promise: the configuration is the first descriptor.
    let mut config = unsafe { File::from_raw_fd(3) };
    let mut text = String::new();
    config.read_to_string(&mut text).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    // SAFETY: the configuration says what these numbers are; nothing else uses them.
    let take = |number: &Value| unsafe { OwnedFd::from_raw_fd(number.as_i64().unwrap() as i32) };
    let machine = &config["machine"];
    let mut console = File::from(take(&machine["serial"]["output"]));
    let behaviour = machine["command_line"].as_str().unwrap().to_owned();
    let guest = Arc::new(Guest {
        control: take(&config["control"]),
        root: take(&config["directories"][0]["directory"]),
        readonly: config["directories"][0]["options"]["read_only"]
            .as_bool()
            .unwrap(),
        behaviour: behaviour.clone(),
        streams: Mutex::default(),
        came: Condvar::new(),
        processes: Mutex::default(),
        network: Mutex::default(),
    });
    writeln!(console, "Linux version 0.0 {}", machine["memory"]).unwrap();
    if behaviour.contains("panic") {
        writeln!(console, "Kernel panic - not syncing: \x1b[31mno init\x1b[0m").unwrap();
        std::process::exit(1);
    }
    let ready = json!({ "event": "ready", "version": 1 }).to_string();
    rustix::net::send(&guest.control, ready.as_bytes(), SendFlags::empty()).unwrap();
    let mut hello = UnixStream::from(guest.connect_out(READY_PORT));
    let said = Reply::Hello(Hello {
        release: "0.0-double".into(),
        uptime: 1,
    });
    hello.write_all(&frame(&said)).unwrap();
    loop {
        match receive(guest.control.as_fd()) {
            None => std::process::exit(0),
            Some((order, Some(stream))) if order["request"] == "connect" && order["port"] == json!(PORT) => {
                let answer = json!({ "id": order["id"], "ok": {} }).to_string();
                rustix::net::send(&guest.control, answer.as_bytes(), SendFlags::empty()).unwrap();
                let guest = Arc::clone(&guest);
                std::thread::spawn(move || guest.serve(stream.into()));
            }
            Some(other) => panic!("{other:?}"),
        }
    }
}

fn receive(control: BorrowedFd<'_>) -> Option<(Value, Option<OwnedFd>)> {
    let mut body = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut body)];
    let received =
        rustix::net::recvmsg(control, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.into_iter().next();
        }
    }
    if received.bytes == 0 {
        return None;
    }
    Some((serde_json::from_slice(&body[..received.bytes]).unwrap(), fd))
}

fn request(stream: &mut UnixStream) -> Option<Request> {
    let mut bytes = vec![0; 4];
    stream.read_exact(&mut bytes).ok()?;
    let length = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
    bytes.resize(4 + length, 0);
    stream.read_exact(&mut bytes[4..]).ok()?;
    match parse(&bytes, MAX_FRAME) {
        Parsed::Message(request, _) => Some(request),
        other => panic!("{other:?}"),
    }
}

fn failed(kind: Failure, message: &str) -> Reply {
    Reply::Failed {
        kind,
        message: message.to_owned(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Guest {
    /// A connection to a port of the host.
    fn connect_out(&self, port: u32) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let said = json!({ "event": "accepted", "port": port, "guest_port": 2000 }).to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [theirs.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let parts = [IoSlice::new(said.as_bytes())];
        rustix::net::sendmsg(&self.control, &parts, &mut ancillary, SendFlags::empty()).unwrap();
        ours.into()
    }

    fn serve(&self, mut stream: UnixStream) {
        stream.set_nonblocking(false).unwrap();
        let Some(request) = request(&mut stream) else {
            return;
        };
        let reply = match request {
            Request::Start(start) => {
                assert_eq!(
                    (start.root.kind.as_slice(), start.root.source.as_slice()),
                    (&b"virtiofs"[..], &b"root"[..])
                );
                assert_eq!(start.root.readonly, self.readonly);
                assert!(start.mounts.iter().all(|mount| mount.kind != b"bind"));
                return self.run(stream, start.process);
            }
            Request::Exec(process) => return self.run(stream, process),
            Request::Stream(Stream { process, number }) => {
                stream.write_all(&frame(&Reply::Done)).unwrap();
                self.streams
                    .lock()
                    .unwrap()
                    .insert((process, number), stream.into());
                self.came.notify_all();
                return;
            }
            Request::Clock { realtime } => {
                assert!(realtime > 1_600_000_000_000_000_000);
                Reply::Done
            }
            Request::Network(network) => {
                if network.dns {
                    self.ask_names();
                }
                *self.network.lock().unwrap() = Some(network);
                Reply::Done
            }
            Request::Signal { process, signal, all } => self.signal(&process, signal, all),
            Request::Resize { process, size } => {
                let processes = self.processes.lock().unwrap();
                match processes
                    .get(&process)
                    .and_then(|running| running.terminal.as_ref())
                {
                    Some(terminal) => {
                        let size = rustix::termios::Winsize {
                            ws_row: size.rows,
                            ws_col: size.columns,
                            ws_xpixel: 0,
                            ws_ypixel: 0,
                        };
                        rustix::termios::tcsetwinsize(terminal, size).unwrap();
                        Reply::Done
                    }
                    None => failed(Failure::NotFound, "no terminal"),
                }
            }
            Request::Top => Reply::Processes(
                self.processes
                    .lock()
                    .unwrap()
                    .values()
                    .map(|running| ProcessFiles {
                        pid: running.pid,
                        stat: std::fs::read(format!("/proc/{}/stat", running.pid)).unwrap_or_default(),
                        ..ProcessFiles::default()
                    })
                    .collect(),
            ),
            Request::Statistics => Reply::Files(vec![NamedFile {
                name: "network".into(),
                content: format!("{:?}", self.network.lock().unwrap()).into_bytes(),
            }]),
            Request::Shutdown { restart: false } => {
                if self.behaviour.contains("deaf") {
                    return;
                }
                let _ = stream.write_all(&frame(&Reply::Done));
                std::process::exit(0);
            }
            other => panic!("{other:?}"),
        };
        let _ = stream.write_all(&frame(&reply));
    }

    /// Asks the host's DNS server, and leaves what it said in the root.
    fn ask_names(&self) {
        let mut stream = UnixStream::from(self.connect_out(DNS_PORT));
        let root = self.root.try_clone().unwrap();
        std::thread::spawn(move || {
            stream.write_all(b"\0\x05hello").unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            std::fs::write(format!("/proc/self/fd/{}/answer", root.as_raw_fd()), answer).unwrap();
        });
    }

    fn signal(&self, process: &str, signal: i32, all: bool) -> Reply {
        if self.behaviour.contains("deaf") {
            return Reply::Done;
        }
        let processes = self.processes.lock().unwrap();
        let mut found = false;
        for (name, running) in processes.iter() {
            if all || name == process {
                found = true;
                // SAFETY: a child of this process that was not waited for yet: see `run`.
                unsafe { libc::kill(running.pid, signal) };
            }
        }
        match found {
            true => Reply::Done,
            false => failed(Failure::NotFound, "no such process"),
        }
    }

    fn stream(&self, process: &Process, number: u8) -> Stdio {
        OwnedFd::from(self.taken(process, number)).into()
    }

    fn run(&self, mut told: UnixStream, process: Process) {
        let mut command = Command::new(text(&process.args[0]));
        command.args(process.args[1..].iter().map(|word| text(word)));
        command.env_clear();
        for pair in &process.env {
            let pair = text(pair);
            let (name, value) = pair.split_once('=').unwrap();
            command.env(name, value);
        }
        let terminal = process
            .terminal
            .as_ref()
            .map(|size| self.terminal(&process, size, &mut command));
        if terminal.is_none() {
            command.stdin(if process.stdin {
                self.stream(&process, 0)
            } else {
                Stdio::null()
            });
            command
                .stdout(self.stream(&process, 1))
                .stderr(self.stream(&process, 2));
        }
        let root = self.root.as_raw_fd();
        let on_terminal = terminal.is_some();
        // SAFETY: plain system calls on a descriptor that stays open.
        unsafe {
            command.pre_exec(move || {
                if libc::fchdir(root) != 0 || libc::chroot(c".".as_ptr()) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // A shim ignores these, and so does what it executes.
                for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                if on_terminal {
                    libc::setsid();
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                }
                Ok(())
            });
        }
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let kind = match error.kind() {
                    std::io::ErrorKind::NotFound => Failure::NotFound,
                    _ => Failure::Permission,
                };
                let _ = told.write_all(&frame(&failed(kind, &error.to_string())));
                return;
            }
        };
        drop(command);
        let pid = child.id() as i32;
        let running = Running { pid, terminal };
        self.processes
            .lock()
            .unwrap()
            .insert(process.name.clone(), running);
        told.write_all(&frame(&Reply::Started { pid })).unwrap();
        if process.leashed {
            let mut watch = told.try_clone().unwrap();
            std::thread::spawn(move || {
                let _ = watch.read(&mut [0]);
                // SAFETY: it may be gone, and then nothing else has its number yet: this is a test.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            });
        }
        let status = child.wait().unwrap();
        self.processes.lock().unwrap().remove(&process.name);
        let exit = Exit {
            status: status.code(),
            signal: status.signal().unwrap_or(0),
            oom_kills: u64::from(self.behaviour.contains("oom")),
        };
        let _ = told.write_all(&frame(&Reply::Exited(exit)));
        let _ = told.shutdown(std::net::Shutdown::Both);
    }

    /// Gives a command a terminal; its other side, connected to the streams.
    fn terminal(&self, process: &Process, size: &Size, command: &mut Command) -> OwnedFd {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        // A monitor opens no terminals, and its cgroup allows none: a guest's are its own kernel's.
        let _ = std::fs::write(
            "/sys/fs/cgroup/devices/cgroup.procs",
            std::process::id().to_string(),
        );
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
        let size = rustix::termios::Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).unwrap();
        let copy = || slave.try_clone().unwrap();
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let mut input = self.taken(process, 0);
        let mut output = self.taken(process, 1);
        let (mut writer, mut reader) = (
            File::from(master.try_clone().unwrap()),
            File::from(master.try_clone().unwrap()),
        );
        std::thread::spawn(move || std::io::copy(&mut input, &mut writer));
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut reader, &mut output);
        });
        master
    }

    fn taken(&self, process: &Process, number: u8) -> UnixStream {
        let key = (process.name.clone(), number);
        let mut streams = self.streams.lock().unwrap();
        loop {
            if let Some(fd) = streams.remove(&key) {
                return fd.into();
            }
            streams = self.came.wait(streams).unwrap();
        }
    }
}
