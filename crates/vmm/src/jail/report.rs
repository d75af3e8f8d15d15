//! Last words: a process that a panic or its filter ends says so on the control socket first.
//!
//! The line is an event of the [control protocol](crate::control): `{"event":"failed","message":"..."}`. It is sent without waiting:
//! a socket that is full loses it, and the process's end is told by its wait status all the same.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Where to; no descriptor is negative.
static SOCKET: AtomicI32 = AtomicI32::new(-1);

/// From now on this process's end by panic or by its filter is told on `socket`, which must stay open.
///
/// # Errors
/// When the kernel refuses the handler.
pub fn install(socket: impl AsFd) -> std::io::Result<()> {
    SOCKET.store(socket.as_fd().as_raw_fd(), Ordering::Release);
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let message = format!(
            "the machine's process has a defect and ends: thread '{}': {panic}",
            thread.name().unwrap_or("?")
        );
        last_words(&message);
        // Whatever the profile says of unwinding: a device that is half done must not go on.
        std::process::abort();
    }));
    // SAFETY: zeroes are a valid structure, which is filled in below.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `violation` only does what a signal handler may.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Says why this process ends, if there is room for it.
pub fn last_words(message: &str) {
    let line = serde_json::json!({ "event": "failed", "message": message });
    send(line.to_string().as_bytes());
}

/// Sends without waiting.
fn send(line: &[u8]) {
    // SAFETY: `line` is readable; a descriptor that is none is refused.
    unsafe {
        libc::send(
            SOCKET.load(Ordering::Acquire),
            line.as_ptr().cast(),
            line.len(),
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        );
    }
}

/// A text that is put together without an allocator.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(free) = self.bytes.get_mut(self.length) {
                *free = *byte;
                self.length += 1;
            }
        }
    }

    fn number(&mut self, number: i32) {
        if number < 0 {
            self.push(b"-");
        }
        let mut rest = number.unsigned_abs();
        let mut digits = [0; 10];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..]);
    }
}

/// The handler of SIGSYS: says what happened and ends the process by the same signal.
extern "C" fn violation(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // `si_syscall` follows the address of the call, in the union that follows four words.
    // SAFETY: the kernel gives a whole structure, of 128 bytes.
    let number = unsafe { info.cast::<i32>().add(6).read() };
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes 16 bytes at most.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let mut line = Line {
        bytes: [0; 256],
        length: 0,
    };
    line.push(br#"{"event":"failed","message":"the machine's process is ended: its thread '"#);
    for byte in name.iter().take_while(|byte| **byte != 0) {
        // Nothing that JSON would take for something else.
        let plain = byte.is_ascii_alphanumeric() || b" -_.:/".contains(byte);
        line.push(if plain { std::slice::from_ref(byte) } else { b"?" });
    }
    line.push(b"' has made system call ");
    line.number(number);
    line.push(br#", which it must not"}"#);
    send(&line.bytes[..line.length]);
    // The signal is blocked in here: another one, for a call that does not exist, ends the process.
    // SAFETY: there is no such call.
    unsafe { libc::syscall(-1) };
    // Without a filter the signal was somebody's `kill`.
    std::process::abort();
}
