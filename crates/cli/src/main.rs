//! The `vessel` command: Docker's command line, for Vessel and for every daemon that speaks its API.

mod app;
mod archive;
mod autostart;
mod commands;
mod context;
mod contexts;
mod credentials;
mod failure;
mod options;
mod output;
mod terminal;

use std::process::ExitCode;

fn main() -> ExitCode {
    // What the engine starts again and again is decided before any argument is parsed.
    match std::env::args_os()
        .nth(1)
        .as_deref()
        .and_then(|word| word.to_str())
    {
        Some("shim") => commands::shim::main(),
        Some("vmm") => return vessel_vmm::process::main(std::env::args_os().skip(2)),
        Some("runtime") => commands::runtime::main(std::env::args_os().skip(2)),
        _ => {}
    }
    let arguments = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match app::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = &failure.message {
                output::warn(&format!("vessel: {message}"));
            }
            if let Some(hint) = &failure.hint {
                output::warn(&format!("  {hint}"));
            }
            u8::try_from(failure.code).map_or(ExitCode::FAILURE, ExitCode::from)
        }
    }
}
