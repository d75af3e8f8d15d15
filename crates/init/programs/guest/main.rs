//! PID 1 of a virtual machine's guest: `/init` of its initramfs.
//!
//! It mounts the kernel's file systems, loads the modules that `/modules/order` names, one file name per line, and then does
//! one of two things. With `root=` on the kernel's command line it mounts that root and executes the `init` on it: a machine
//! of its own. Without, it waits for a container: it serves the requests of `src/guest/protocol.rs` on vsock.
//!
//! `guest serve FD` serves on a listening socket that was inherited, without booting anything: for tests.
//!
//! One thread, nothing blocks: whatever may take time (mounts, programs) happens in forked children.

#![no_std]
#![no_main]

extern crate alloc;

#[path = "../sys.rs"]
mod sys;
#[macro_use]
#[path = "../../src/guest/wire.rs"]
mod wire;
#[path = "../../src/guest/protocol.rs"]
#[allow(dead_code, reason = "the host's half")]
mod protocol;

#[path = "../../src/guest/dns.rs"]
mod dns;

mod boot;
mod container;
mod fault;
mod identity;
mod memory;
mod mounts;
mod names;
mod network;
mod os;
mod process;
mod processes;
mod pump;
mod server;
mod statistics;

use core::ffi::CStr;

use fault::report;
use sys::Args;

#[unsafe(no_mangle)]
fn main(args: Args) -> i32 {
    let argument = |index| args.get(index).map(CStr::to_bytes);
    if let (Some(b"serve"), Some(number)) = (argument(1), argument(2)) {
        let Some(fd) = core::str::from_utf8(number)
            .ok()
            .and_then(|text| text.parse().ok())
        else {
            report("serve needs the number of a listening socket");
            return 125;
        };
        return match server::run(server::Transport::given(os::Fd::own(fd))) {
            Ok(()) => 0,
            Err(fault) => {
                report(&fault.message);
                1
            }
        };
    }
    if os::process_id() != 1 {
        report("this is the first process of a virtual machine's guest; it is of no use elsewhere");
        return 125;
    }
    let fault = match boot::boot() {
        Ok(boot::Next::HandOver(root)) => boot::hand_over(&root),
        Ok(boot::Next::Serve(modules)) => match serve(modules) {
            Ok(()) => fault::Fault::invalid("the kernel can neither power off nor restart"),
            Err(fault) => fault,
        },
        Err(fault) => fault,
    };
    report(&fault.message);
    // The machine ends, and whoever started it reads the line above.
    os::sync();
    os::reboot(false);
    os::reboot(true);
    125
}

/// Serves a container; comes back when the kernel could not end the machine.
fn serve(modules: Option<boot::Modules>) -> fault::Result<()> {
    let transport = server::Transport::open()?;
    if let Some(modules) = modules {
        modules.load_late();
    }
    server::run(transport)
}

// The precompiled `alloc` has landing pads that name these; with panic=abort none of them is ever entered.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    sys::exit(125)
}
