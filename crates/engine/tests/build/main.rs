//! Builds through an engine on a private root, bridge and network namespace. This executable is also the shim that the
//! engine launches, so it has no test harness: names of cases are arguments, none means all.

mod cases;
mod checks;
mod conformance;
mod copies;
mod faults;
mod mounts;
mod remotes;
mod squash;
mod world;

use std::process::ExitCode;

use vessel_runtime::shim;

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "shim") {
        let spare = shim::is_spare(arguments.get(1).map(AsRef::as_ref));
        let code = if spare { shim::run_spare() } else { shim::run() };
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    if !rustix::process::geteuid().is_root() {
        world::report("skipped: needs root");
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<String> = arguments
        .iter()
        .filter_map(|word| word.to_str())
        .filter(|word| !word.starts_with('-'))
        .map(str::to_owned)
        .collect();
    let mut failed = 0;
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let ok = std::panic::catch_unwind(case).is_ok();
        world::report(&format!("{name} ... {}", if ok { "ok" } else { "FAILED" }));
        failed += usize::from(!ok);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
