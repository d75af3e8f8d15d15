//! Starts the daemon when the default socket is dead, so that nothing has to be set up.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use vessel_client::Client;

use crate::context::Places;
use crate::failure::{Failure, Result, words};

/// A daemon adopts what runs before it answers, which takes time when there is much.
const PATIENCE: Duration = Duration::from_secs(60);
/// The log's last lines that are shown when the daemon does not come up.
const LINES: usize = 5;

/// Starts a daemon for `places` and returns when `client` reaches it. Of several that try at once one
/// starts it and the others wait.
pub fn start(places: &Places, client: &Client) -> Result<()> {
    std::fs::create_dir_all(&places.run).map_err(|error| cannot("create", &places.run, &error))?;
    let lock_path = places.run.join("start.lock");
    let lock = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&lock_path)
        .map_err(|error| cannot("open", &lock_path, &error))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| cannot("lock", &lock_path, &error.into()))?;
    match client.connect() {
        Err(error) if error.is_dead_socket() => {}
        other => return Ok(other?),
    }
    let log_path = log_path(places);
    let log = open_log(&log_path)?;
    let start_of_log = log.metadata().map(|data| data.len()).unwrap_or(0);
    let mut child = spawn(places, log)?;
    let begin = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match client.connect() {
            Err(error) if error.is_dead_socket() => {}
            other => return Ok(other?),
        }
        let gone = matches!(child.try_wait(), Ok(Some(_)));
        if gone || begin.elapsed() > PATIENCE {
            let what = if gone { "ended at once" } else { "does not answer" };
            let said = last_lines(&log_path, start_of_log);
            let said = if said.is_empty() {
                String::new()
            } else {
                format!("; it said:\n{said}")
            };
            return Err(Failure::new(format!("the daemon that was started {what}{said}"))
                .with_hint(format!("its log is {}", log_path.display())));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(format!(
        "no daemon runs and none can be started: cannot {what} {}: {}",
        path.display(),
        words(error)
    ));
    failure.with_hint("run it as root, or name a running daemon with --host or DOCKER_HOST")
}

fn log_path(places: &Places) -> PathBuf {
    if places.moved {
        places.run.join("daemon.log")
    } else {
        PathBuf::from("/var/log/vessel/daemon.log")
    }
}

fn open_log(path: &Path) -> Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| cannot("create", directory, &error))?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| cannot("open", path, &error))
}

fn spawn(places: &Places, log: File) -> Result<Child> {
    let again = log.try_clone()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("vessel")
        .arg("daemon")
        .arg("--root")
        .arg(&places.root)
        .arg("--run")
        .arg(&places.run)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(again);
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and touches no
    // memory of this process.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            Ok(())
        });
    }
    command
        .spawn()
        .map_err(|error| Failure::new(format!("cannot start the daemon: {}", words(&error))))
}

/// The last lines that were written to the log from `start` on.
fn last_lines(path: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(16 * 1024))))?;
        let mut bytes = Vec::new();
        file.take(16 * 1024).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
