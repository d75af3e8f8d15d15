//! Builds the programs in `programs/`: one static executable each, without libc and without std, which `src/` includes as
//! bytes. Those of containers have a few kilobytes, the one of guests, which has a heap and formats text, less than 256.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Name, source, and the most bytes it may have.
const PROGRAMS: [(&str, &str, u64); 4] = [
    ("init", "programs/init.rs", 32 << 10),
    ("hello", "programs/hello.rs", 32 << 10),
    ("true", "programs/true.rs", 32 << 10),
    ("guest", "programs/guest/main.rs", 256 << 10),
];

fn main() {
    println!("cargo::rerun-if-changed=programs");
    // The guest's init and the host share the files of their protocol.
    println!("cargo::rerun-if-changed=src/guest");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let out = PathBuf::from(variable("OUT_DIR"));
    for (name, source, limit) in PROGRAMS {
        if let Err(reason) = build(name, source, limit, &out) {
            println!("cargo::error={reason}");
            return;
        }
    }
}

fn build(name: &str, source: &str, limit: u64, out: &Path) -> Result<(), String> {
    let program = out.join(name);
    let mut rustc = Command::new(variable("RUSTC"));
    rustc
        .arg(source)
        .args([
            "--crate-name",
            name,
            "--crate-type",
            "bin",
            "--edition",
            "2024",
            "--target",
            &variable("TARGET"),
        ])
        .arg("-o")
        .arg(&program)
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=s",
            "-C",
            "lto=fat",
            "-C",
            "codegen-units=1",
        ])
        .args([
            "-C",
            "relocation-model=static",
            "-C",
            "strip=symbols",
            "-D",
            "warnings",
        ])
        .args(["nostartfiles", "nostdlib", "static"].map(|flag| format!("-Clink-arg=-{flag}")))
        // One page for code and constants, no notes, no exception tables: every byte is also a byte of
        // memory in each container that runs it.
        .args(
            [
                "--build-id=none",
                "-z,noseparate-code",
                "-z,norelro",
                "--no-eh-frame-hdr",
                "--gc-sections",
            ]
            .map(|flag| format!("-Clink-arg=-Wl,{flag}")),
        );
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg(format!("-Clinker={linker}"));
    }
    let status = rustc
        .status()
        .map_err(|e| format!("cannot start rustc for {source}: {e}"))?;
    if !status.success() {
        return Err(format!("{source} does not compile: rustc {status}"));
    }
    let size = fs::metadata(&program)
        .map_err(|e| format!("rustc left no {}: {e}", program.display()))?
        .len();
    if size > limit {
        return Err(format!(
            "{name} has {size} bytes; something large was linked into it"
        ));
    }
    Ok(())
}

/// A variable cargo always sets for build scripts.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|e| panic!("cargo did not set {name}: {e}"))
}
