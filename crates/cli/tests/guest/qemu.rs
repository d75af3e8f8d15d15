//! Boots a guest under QEMU without any acceleration, and returns what it wrote on its serial console.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU can be executed.
///
/// # Errors
/// One sentence on why not.
pub fn available() -> Result<(), String> {
    let out = Command::new(QEMU).arg("--version").output();
    let out = out.map_err(|error| format!("{QEMU}: {error} (Debian: qemu-system-x86)"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{QEMU} --version fails: {}",
            String::from_utf8_lossy(&out.stderr)
        ))
    }
}

/// Ends the process whatever happens.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `kernel` with `initrd`, handing it the filter of checks. Returns when the guest powers off, or at the limit.
pub fn boot(kernel: &Path, initrd: &Path, only: &str, limit: Duration) -> String {
    let append = format!("console=ttyS0 panic=-1 reboot=t quiet cryptomgr.notests checks={only}");
    let mut command = Command::new(QEMU);
    command
        .args(["-M", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "512"])
        .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", &append])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let mut guest = Guest(command.spawn().unwrap());
    let mut stdout = guest.0.stdout.take().unwrap();
    let (sender, receiver) = channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + limit;
    let mut console = Vec::new();
    loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => console.extend_from_slice(&bytes),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                console.extend_from_slice(format!("\n*** stopped after {limit:?}\n").as_bytes());
                break;
            }
        }
    }
    drop(guest);
    drop(receiver);
    reader.join().unwrap();
    String::from_utf8_lossy(&console).replace('\r', "")
}
