//! `runtime COMMAND ROOT BUNDLE ID`: the life cycle as the command line has it.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;

use vessel_runtime::oci::{self, Container, CreateOptions, ExecOptions, ExecOutcome, RunOptions};

/// `argv[0]` of the process that runs from the protected executable.
const PROTECTED: &str = "protected";

/// Never returns.
pub fn main(arguments: &[String]) -> ! {
    let [command, root, bundle, id, rest @ ..] = arguments else {
        panic!("runtime COMMAND ROOT BUNDLE ID")
    };
    let unprotected = rest.iter().any(|flag| flag == "--unprotected");
    if !unprotected && std::env::args().next().as_deref() != Some(PROTECTED) {
        let executable = vessel_runtime::shim::launch::own_executable().unwrap();
        let mut again = std::process::Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
        panic!("{}", again.arg0(PROTECTED).args(std::env::args().skip(1)).exec());
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).unwrap();
    let code = match act(command, Path::new(root), Path::new(bundle), id, rest) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("runtime: {}", error.report().message);
            125
        }
    };
    std::process::exit(code);
}

fn act(command: &str, root: &Path, bundle: &Path, id: &str, rest: &[String]) -> vessel_runtime::Result<i32> {
    let create = CreateOptions {
        bundle: bundle.to_owned(),
        pid_file: rest
            .iter()
            .find_map(|flag| flag.strip_prefix("--pid-file="))
            .map(Into::into),
        preserve_fds: rest
            .iter()
            .find_map(|flag| flag.strip_prefix("--preserve-fds="))
            .map_or(0, |number| number.parse().unwrap()),
        ..CreateOptions::default()
    };
    let warn = |warning: &str| eprintln!("warning: {warning}");
    Ok(match command {
        "run" | "run-detached" => {
            let options = RunOptions {
                create,
                detach: command == "run-detached",
                keep: false,
            };
            oci::run(root, id, &options, &warn)?.unwrap_or(0)
        }
        "create" => {
            oci::create(root, id, &create, &warn)?;
            0
        }
        "start" => {
            Container::open(root, id)?.start()?;
            0
        }
        "exec" => {
            let process = oci::read_process(&bundle.join("process.json"))?;
            match oci::exec(&Container::open(root, id)?, &process, &ExecOptions::default())? {
                ExecOutcome::Exited(code) => code,
                ExecOutcome::Running => 0,
            }
        }
        "delete" => {
            match Container::open(root, id) {
                Ok(container) => container.delete(true)?,
                Err(_) => oci::discard_unfinished(root, id)?,
            }
            0
        }
        other => panic!("{other} is no command"),
    })
}
