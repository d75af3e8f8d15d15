//! The helper process: the test binary itself, which moves into cgroups and does what is limited there.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use vessel_runtime::cgroup::{Cgroup, CgroupPath, Hierarchies, Resources};

use crate::harness::Scratch;

const HELPER: &str = "VESSEL_CGROUP_TEST_HELPER";
const READY: &str = "READY";
/// Emulated guests and busy machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const KILLED: &str = "signal: 9 (SIGKILL)";

/// The helper process. It waits for a line, acts, and answers with lines.
pub struct Actor {
    child: Child,
    pub lines: Receiver<String>,
}

impl Actor {
    pub fn command(action: &str) -> Command {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["--exact", "helper::act", "--nocapture", "--test-threads=1"])
            .env(HELPER, action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
    }

    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // Its test harness talks first.
            let mut lines = output
                .lines()
                .map_while(Result::ok)
                .skip_while(|line| line != READY);
            while lines.next().is_some_and(|line| sender.send(line).is_ok()) {}
        });
        assert_eq!(lines.recv_timeout(PATIENCE).unwrap(), READY);
        Self { child, lines }
    }

    pub fn new(action: &str) -> Self {
        Self::start(Self::command(action))
    }

    pub fn within(scratch: &Scratch, action: &str) -> Self {
        let actor = Self::new(action);
        scratch.get().attach(actor.pid()).unwrap();
        actor
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    pub fn answer(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| format!("(no answer: {error})"))
    }

    pub fn ask(&mut self) -> String {
        self.go();
        self.answer()
    }

    pub fn how_it_ended(&mut self) -> String {
        self.child.wait().unwrap().to_string()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test: what the helper process does. Does nothing when the suite is run.
#[test]
fn act() {
    let Ok(action) = std::env::var(HELPER) else { return };
    println!("\n{READY}");
    let mut words = action.split(' ');
    let name = words.next().unwrap();
    let argument = words.next().unwrap_or_default();
    for line in std::io::stdin().lines() {
        line.unwrap();
        match name {
            "sleep" => println!("awake"),
            "spin" => {
                let end = Instant::now() + Duration::from_millis(argument.parse().unwrap());
                std::thread::scope(|scope| {
                    for _ in 0..4 {
                        scope.spawn(|| while Instant::now() < end {});
                    }
                });
                println!("done");
            }
            "fork" => {
                let mut children = Vec::new();
                for _ in 0..argument.parse().unwrap() {
                    // SAFETY: the child calls nothing but pause(2), which is async-signal-safe.
                    match unsafe { libc::fork() } {
                        0 => loop {
                            // SAFETY: no arguments, no memory.
                            unsafe { libc::pause() };
                        },
                        -1 => break,
                        child => children.push(child),
                    }
                }
                println!("{}", children.len());
                for child in children {
                    // SAFETY: plain integers; the child is ours and not reaped yet.
                    unsafe {
                        libc::kill(child, libc::SIGKILL);
                        libc::waitpid(child, std::ptr::null_mut(), 0);
                    }
                }
            }
            "eat" => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                for _ in 0..argument.parse().unwrap() {
                    eaten.push(std::hint::black_box(vec![1; 1 << 20]));
                }
                println!("ate {}", eaten.len());
            }
            "open" => match std::fs::OpenOptions::new().read(true).open(argument) {
                Ok(_) => println!("opened"),
                Err(error) => println!("{}", error.raw_os_error().unwrap()),
            },
            "mknod" => {
                let path = std::ffi::CString::new(argument).unwrap();
                // SAFETY: the path is a NUL-terminated string that outlives the call.
                let made = unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 5)) };
                let errno = std::io::Error::last_os_error().raw_os_error().unwrap();
                println!("{}", if made == 0 { 0 } else { errno });
            }
            "create" => {
                let path = CgroupPath::parse(argument).unwrap();
                match Cgroup::create(&Hierarchies::detect().unwrap(), &path, &Resources::default()) {
                    Ok(_) => println!("created"),
                    Err(error) => println!("{:?} {}", error.kind(), error.report().message),
                }
            }
            other => panic!("{other}"),
        }
    }
}
