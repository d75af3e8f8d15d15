//! How a vCPU is made to come back from `KVM_RUN`, whatever it is doing.
//!
//! Who kicks sets `immediate_exit` in the page that the vCPU shares with the kernel, and then sends the vCPU's thread a signal. A thread in the
//! kernel's guest loop is interrupted by the signal; one that is on its way there finds the flag. The signal's handler does nothing. The signal is the first
//! real-time one; its disposition is set for the whole process with the first vCPU.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock};

use kvm_bindings::kvm_run;
use rustix::mm::{MapFlags, ProtFlags};

use super::super::{Error, Result, VcpuHandle};
use crate::sync::lock;

/// The page of a vCPU that the kernel shares, mapped once more: it outlives the vCPU as long as somebody can kick it.
pub(super) struct SharedPage {
    run: NonNull<kvm_run>,
}

// SAFETY: what is accessed from several threads is accessed atomically; the rest only by the vCPU's thread.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    fn new(vcpu: impl AsFd) -> Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let page = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size_of::<kvm_run>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                0,
            )
        };
        page.ok()
            .and_then(|page| NonNull::new(page.cast()))
            .map(|run| Self { run })
            .ok_or_else(|| {
                Error::system(
                    "cannot map the page that a vCPU shares with the kernel",
                    std::io::Error::last_os_error(),
                )
            })
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping lives as long as `self`, the byte is within it, and nobody accesses it but through this function and the kernel.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run.as_ptr()).immediate_exit) }
    }

    /// Bytes of a unit of the port access that the vCPU has just come back with.
    pub(super) fn port_unit(&self) -> usize {
        // SAFETY: the mapping lives as long as `self`; the kernel wrote the field before it came back to this thread.
        unsafe { (*self.run.as_ptr()).__bindgen_anon_1.io.size.into() }
    }

    /// The kernel's number for why it could not execute the guest.
    pub(super) fn internal_error(&self) -> u32 {
        // SAFETY: as in `port_unit`.
        unsafe { (*self.run.as_ptr()).__bindgen_anon_1.internal.suberror }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: it is this value's own mapping, and nothing borrowed from it lives longer.
        let _ = unsafe { rustix::mm::munmap(self.run.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}

/// What a vCPU shares with those who kick it.
pub(super) struct Kicker {
    pub(super) page: SharedPage,
    kicked: AtomicBool,
    /// The thread that is in `KVM_RUN` or about to be.
    thread: Mutex<Option<libc::pid_t>>,
}

impl Kicker {
    pub(super) fn new(vcpu: impl AsFd) -> Result<Self> {
        install_handler()?;
        Ok(Self {
            page: SharedPage::new(vcpu)?,
            kicked: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    /// From now until the value is dropped, kicks interrupt this thread.
    pub(super) fn enter(&self) -> Entered<'_> {
        // SAFETY: it only says the thread's number.
        *lock(&self.thread) = Some(unsafe { libc::gettid() });
        Entered(self)
    }

    /// `KVM_RUN` was interrupted: whether somebody kicked. In this order, no kick is lost: at worst the next `KVM_RUN` is interrupted once more.
    pub(super) fn take(&self) -> bool {
        self.page.immediate_exit().store(0, Ordering::SeqCst);
        self.kicked.swap(false, Ordering::SeqCst)
    }
}

impl VcpuHandle for Kicker {
    fn kick(&self) {
        self.kicked.store(true, Ordering::SeqCst);
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        // With the lock: the thread does not leave meanwhile, so its number is nobody else's.
        if let Some(thread) = *lock(&self.thread) {
            // SAFETY: a signal whose handler does nothing, to a thread of this process.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }
}

/// A thread is in [`Kicker::enter`].
pub(super) struct Entered<'a>(&'a Kicker);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        *lock(&self.0.thread) = None;
    }
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int) {}

fn install_handler() -> Result<()> {
    static INSTALLED: OnceLock<Option<i32>> = OnceLock::new();
    let error = INSTALLED.get_or_init(|| {
        // SAFETY: all-zero is a valid value of this structure of integers and a nullable pointer.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        // Without SA_RESTART `KVM_RUN` would come back all the same; with it, nothing else on the thread is disturbed.
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the structure is complete; the handler does nothing and is therefore safe at any moment.
        let result = unsafe { libc::sigaction(signal(), &action, std::ptr::null_mut()) };
        (result != 0)
            .then(std::io::Error::last_os_error)
            .and_then(|error| error.raw_os_error())
    });
    match error {
        None => Ok(()),
        Some(error) => Err(Error::system(
            "cannot set the handler of the signal that interrupts vCPUs",
            std::io::Error::from_raw_os_error(*error),
        )),
    }
}
