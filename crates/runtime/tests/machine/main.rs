//! Containers behind a kernel of their own, without a kernel: the shim as it is, and a double in the monitor's place that speaks
//! its control socket and the protocol of the guest's init, and runs what it is told as processes of this host, in the directory
//! that was shared with it.
//!
//! So this test is its own shim (`shim …`), its own monitor (`vmm`), its own container program (`inside …`, from a copy of
//! itself in the root), and its own harness. Root is required.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "it is a program as well"
)]

mod double;
mod inside;
mod life;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("shim") => std::process::exit(vessel_runtime::shim::run()),
        Some("vmm") => double::main(),
        Some("inside") => inside::main(&arguments[2..]),
        Some("--list") => {}
        _ => harness(&arguments[1..]),
    }
}

fn harness(filters: &[String]) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers with cgroups need root");
        return;
    }
    let filters: Vec<&String> = filters
        .iter()
        .filter(|filter| !filter.starts_with("--"))
        .collect();
    let mut failed = Vec::new();
    for (name, test) in life::TESTS {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        match std::panic::catch_unwind(test) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed.push(*name);
            }
        }
    }
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}
