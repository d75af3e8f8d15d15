//! A machine's process from outside, with guests of a few instructions on the software processor: this program started again with the word `vmm`.

#![allow(clippy::print_stdout)]

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use serde_json::json;
use vessel_vmm::control::{Client, Ended, Event, FromMachine, Request};

const PATIENCE: Duration = Duration::from_secs(30);

/// Halts for ever.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// `mov dx, 0x600; mov al, 0x34; out dx, al`: ACPI's way to power off.
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd];

/// An ELF kernel of one segment at 1 MiB with Xen's note, entered at its first byte.
fn kernel(code: &[u8]) -> File {
    let mut image = vec![0; 64 + 2 * 56];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01");
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(24, &0x10_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &2_u16.to_le_bytes());
    let length = code.len() as u64;
    let segments = [
        (64, 1_u32, [176, 0, 0x10_0000, length, length]),
        (120, 4, [176 + length, 0, 0, 20, 20]),
    ];
    for (at, kind, fields) in segments {
        put(at, &kind.to_le_bytes());
        for (field, value) in [8, 16, 24, 32, 40].into_iter().zip(fields) {
            put(at + field, &u64::to_le_bytes(value));
        }
    }
    image.extend(code);
    for word in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        image.extend(word.to_le_bytes());
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file
}

/// A machine's process.
struct Vmm {
    client: Client,
    child: Child,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vmm {
    /// Starts one; `more` is added to its configuration. Descriptors: 3 the configuration, 4 the socket, 5 the kernel, 6 a directory.
    fn start(kernel: &File, directory: Option<&File>, more: serde_json::Value) -> Self {
        let (client, socket) = Client::pair().unwrap();
        let mut config = json!({
            "control": 4,
            "accelerator": "soft",
            "machine": { "memory": 16 << 20, "vcpus": 1, "kernel": 5 },
        });
        for (name, value) in more.as_object().unwrap() {
            config[name] = value.clone();
        }
        let mut text = tempfile::tempfile().unwrap();
        text.write_all(config.to_string().as_bytes()).unwrap();
        text.rewind().unwrap();
        Self {
            client,
            child: spawn(&[
                text.as_raw_fd(),
                socket.as_raw_fd(),
                kernel.as_raw_fd(),
                directory.map_or(kernel.as_raw_fd(), AsRawFd::as_raw_fd),
            ]),
        }
    }

    fn event(&mut self) -> Option<Event> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.client.receive() {
                Ok(Some(incoming)) => match incoming.message {
                    FromMachine::Event(event) => return Some(event),
                    FromMachine::Reply(_) => {}
                },
                Ok(None) => {
                    assert!(Instant::now() < end, "the machine's process says nothing");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
                    return None;
                }
            }
        }
    }

    fn ready(&mut self) {
        let ready = Event::Ready {
            version: 1,
            accelerator: "soft".to_owned(),
        };
        assert_eq!(self.event(), Some(ready));
    }

    fn call(&mut self, request: Request) -> Result<vessel_vmm::control::Answer, String> {
        self.client
            .call(request, None, PATIENCE)
            .map_err(|error| error.to_string())
    }

    fn status(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the machine's process does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Processes it has started.
    fn children(&self) -> Vec<i32> {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = std::fs::read_to_string(path).unwrap();
        text.split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect()
    }
}

/// Starts this program as a machine's process with these descriptors, from 3 on.
fn spawn(descriptors: &[i32]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["vmm", "3"]);
    let descriptors = descriptors.to_vec();
    // SAFETY: between fork and exec only descriptors are duplicated.
    unsafe {
        command.pre_exec(move || {
            // Out of the way first: they may be where others go.
            let mut high = [0; 8];
            for (index, fd) in descriptors.iter().enumerate() {
                high[index] = libc::fcntl(*fd, libc::F_DUPFD, 100);
            }
            for (index, fd) in high.iter().enumerate().take(descriptors.len()) {
                if libc::dup2(*fd, 3 + index as i32) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(*fd);
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn a_guest_powers_off() {
    let mut vmm = Vmm::start(&kernel(POWER_OFF), None, json!({}));
    vmm.ready();
    let ended = Event::Ended { how: Ended::PowerOff };
    assert_eq!(vmm.event(), Some(ended));
    assert_eq!(vmm.event(), None);
    assert_eq!(vmm.status().code(), Some(0));
}

fn a_machine_does_what_it_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let directory = File::open(dir.path()).unwrap();
    let more = json!({
        "balloon": true,
        "vsock": { "ports": [1024] },
        "directories": [{ "tag": "root", "directory": 6 }],
    });
    let mut vmm = Vmm::start(&kernel(HALT), Some(&directory), more);
    vmm.ready();
    for request in [
        Request::Pause,
        Request::Pause,
        Request::Resume,
        Request::Balloon { bytes: 1 << 20 },
        Request::PowerButton,
    ] {
        vmm.call(request).unwrap();
    }
    let stats = vmm.call(Request::Stats).unwrap().stats.unwrap();
    assert_eq!(stats.devices.len(), 3);
    assert_eq!(stats.balloon.unwrap().total, None);
    // A guest without a driver: the call waits, and ends with the machine.
    let (ours, theirs) = UnixStream::pair().unwrap();
    vmm.client
        .send(Request::Connect { port: 7 }, Some(theirs.as_fd()))
        .unwrap();
    drop(theirs);
    assert!(
        vmm.call(Request::Connect { port: 7 })
            .unwrap_err()
            .contains("stream socket")
    );
    // Nobody, jailed: no new privileges, a filter.
    let pid = vmm.child.id();
    let files = vmm.children();
    assert_eq!(files.len(), 1);
    for (process, uid) in [(pid.to_string(), "65534"), (files[0].to_string(), "0")] {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
        assert!(status.contains("Seccomp:\t2\n"), "{status}");
        assert!(
            status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")),
            "{status}"
        );
        let none = status.contains("CapEff:\t0000000000000000\n");
        assert_eq!(none, uid != "0", "{status}");
        assert!(status.contains("CapInh:\t0000000000000000\n"), "{status}");
        let root = std::fs::read_dir(format!("/proc/{process}/root")).unwrap();
        assert_eq!(root.count(), 0, "the root is empty");
    }
    // The machine does not keep the directory, its server keeps nothing else.
    let has = |process: &str, path: &std::path::Path| {
        std::fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .any(|target| target == path)
    };
    assert!(!has(&pid.to_string(), dir.path()));
    assert!(has(&files[0].to_string(), dir.path()));
    vmm.call(Request::Quit).unwrap();
    assert_eq!(vmm.event(), Some(Event::Ended { how: Ended::Asked }));
    assert_eq!(vmm.status().code(), Some(0));
    drop(ours);
    let end = Instant::now() + PATIENCE;
    while is_alive(files[0]) {
        assert!(Instant::now() < end, "the file server outlives its machine");
    }
}

fn a_machine_without_an_owner_ends() {
    let mut vmm = Vmm::start(&kernel(HALT), None, json!({}));
    vmm.ready();
    let (client, _) = Client::pair().unwrap();
    drop(std::mem::replace(&mut vmm.client, client));
    assert_eq!(vmm.status().code(), Some(0));
}

fn what_cannot_be_built_is_said() {
    let mut broken = tempfile::tempfile().unwrap();
    broken.write_all(b"no kernel at all").unwrap();
    let mut vmm = Vmm::start(&broken, None, json!({}));
    match vmm.event() {
        Some(Event::Failed { message }) => assert!(message.contains("kernel"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(vmm.status().code(), Some(1));
    let wrong = json!({ "vsock": { "cid": 2 } });
    let mut vmm = Vmm::start(&kernel(HALT), None, wrong);
    match vmm.event() {
        Some(Event::Failed { message }) => assert!(message.contains("context ID 2"), "{message}"),
        other => panic!("{other:?}"),
    }
    // Not even a configuration.
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let status = spawn(&[file.as_raw_fd()]).wait().unwrap();
    assert_eq!(status.code(), Some(2));
}

fn the_two_processes_do_not_outlive_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let directory = File::open(dir.path()).unwrap();
    let more = json!({ "directories": [{ "tag": "root", "directory": 6 }] });
    let mut vmm = Vmm::start(&kernel(HALT), Some(&directory), more.clone());
    vmm.ready();
    // SAFETY: the process is a child of our child.
    unsafe { libc::kill(vmm.children()[0], libc::SIGKILL) };
    match vmm.event() {
        Some(Event::Failed { message }) => assert!(message.contains("by signal 9"), "{message}"),
        other => panic!("{other:?}"),
    }
    vmm.status();
    let mut vmm = Vmm::start(&kernel(HALT), Some(&directory), more);
    vmm.ready();
    let files = vmm.children()[0];
    vmm.child.kill().unwrap();
    assert_eq!(vmm.status().signal(), Some(libc::SIGKILL));
    let end = Instant::now() + PATIENCE;
    while is_alive(files) {
        assert!(Instant::now() < end, "the file server outlives its machine");
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == "vmm") {
        return vessel_vmm::process::main(arguments);
    }
    let tests: [(&str, fn()); 5] = [
        ("a_guest_powers_off", a_guest_powers_off),
        ("a_machine_does_what_it_is_asked", a_machine_does_what_it_is_asked),
        ("a_machine_without_an_owner_ends", a_machine_without_an_owner_ends),
        ("what_cannot_be_built_is_said", what_cannot_be_built_is_said),
        (
            "the_two_processes_do_not_outlive_each_other",
            the_two_processes_do_not_outlive_each_other,
        ),
    ];
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    for (name, test) in tests {
        if filter.as_ref().is_none_or(|filter| name.contains(filter)) {
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}
