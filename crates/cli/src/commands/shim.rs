//! `vessel shim`: not for people. The daemon executes it, for a container or as the spare for the next one; see
//! `vessel_runtime::shim`.

use vessel_runtime::shim;

/// Runs the shim and ends the process with its exit code.
pub fn main() -> ! {
    let argument = std::env::args_os().nth(2);
    let code = if shim::is_spare(argument.as_deref()) {
        shim::run_spare()
    } else {
        shim::run()
    };
    // SAFETY: ends the process; everything that must survive it was written already.
    unsafe { libc::_exit(code) }
}
