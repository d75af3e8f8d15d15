//! A machine's process: `vessel vmm NUMBER`, started by whoever is responsible for the machine, with every descriptor it needs.
//!
//! `NUMBER` is a descriptor to read the [`Config`] from. The process says on the [control socket](crate::control) when the machine runs, what happens, how
//! it ended; it prints nothing. Its exit status is 0 when the machine has ended, 1 when it could not be built or could not go on (the socket has the reason), 2
//! when not even the configuration could be read.
//!
//! Order matters: the accelerator's device is opened, the [server of shared directories](crate::devices::virtio::fs) is forked, then walls go up
//! ([`crate::jail`]), and only then anything that comes from outside (kernel, disks, the guest) is looked at.

mod config;
mod files;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

pub use config::{CONFIG_MAX, Config, DirectoryConfig, VsockConfig};

use crate::accel;
use crate::control::{Event, Sender, Server, VERSION};
use crate::devices::virtio::balloon::{Balloon, VirtioBalloon};
use crate::devices::virtio::vsock::{Accepted, Connector, VirtioVsock};
use crate::jail::{self, Jail, filter, report};
use crate::machine::{self, Machine};
use files::FileServer;

/// Why a machine's process cannot do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// The accelerator is not there.
    #[error(transparent)]
    Accelerator(#[from] accel::Error),
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] machine::Error),
    /// The walls cannot be built.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// The kernel has no filters.
    #[error("the machine's process gets no filter of system calls")]
    Filter(#[source] io::Error),
    /// A directory cannot be shared.
    #[error("the directory '{tag}' cannot be shared")]
    Directory {
        /// Its tag.
        tag: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no process for shared directories.
    #[error("there is no process for shared directories")]
    Fork(#[source] io::Error),
    /// A device cannot be made.
    #[error("cannot set up {0}")]
    Device(&'static str, #[source] io::Error),
}

/// An error and its causes in one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// What the process has beside the machine.
struct Running {
    machine: Arc<Machine>,
    connector: Option<Connector>,
    balloon: Option<Balloon>,
    files: Option<rustix::process::Pid>,
}

/// The whole life of a machine's process. `arguments` come after the word `vmm`.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    few_arenas();
    let number = arguments.next().and_then(|number| number.to_str()?.parse().ok());
    let Some((config, control)) = number.and_then(|number| read(number).ok()) else {
        return ExitCode::from(2);
    };
    let server = Server::new(control);
    if report::install(server.socket()).is_err() {
        return ExitCode::from(2);
    }
    let sender = server.sender();
    match build(&config, &server) {
        Ok(running) => serve::serve(&server, running),
        Err(failure) => {
            let message = sentence(&failure);
            // Nobody to tell: the exit status says it.
            let _ = sender.event(&Event::Failed { message });
            ExitCode::FAILURE
        }
    }
}

/// Keeps the C library's allocator to two arenas: they cost memory for every thread, and where there is no limit it reads the number of processors from
/// a file when a third would be made, which a jailed process must not.
fn few_arenas() {
    // SAFETY: sets a number, before there are threads.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

fn read(number: i32) -> io::Result<(Config, OwnedFd)> {
    let file = File::from(files::inherited(number)?);
    let mut text = Vec::new();
    file.take(CONFIG_MAX).read_to_end(&mut text)?;
    let config: Config = serde_json::from_slice(&text)?;
    let control = files::inherited(config.control.0)?;
    rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC)?;
    Ok((config, control))
}

fn build(config: &Config, server: &Server) -> Result<Running, Failure> {
    let sender = server.sender();
    let chosen = accel::choose(config.accelerator)?;
    let accelerator = chosen.accelerator;
    if let Some(reason) = &chosen.why_not_kvm {
        tracing::info!(%reason, "the software processor is used");
    }
    let files = if config.directories.is_empty() {
        None
    } else {
        Some(files::start(&config.directories, server.socket(), config.jail)?)
    };
    if config.jail {
        Jail::default().enter()?;
        let makes_code = accelerator.name() != "kvm";
        filter::install(filter::Kind::Machine { makes_code }).map_err(Failure::Filter)?;
    }
    let machine = Machine::new(&*accelerator, &config.machine)?;
    let mut running = Running {
        machine: Arc::new(machine),
        connector: None,
        balloon: None,
        files: None,
    };
    let machine = &running.machine;
    if let Some(FileServer { process, devices }) = files {
        running.files = Some(process);
        for (tag, device) in devices {
            machine.add_device(&format!("fs-{tag}"), Box::new(device), false)?;
        }
    }
    if let Some(vsock) = &config.vsock {
        let ports: HashSet<u32> = vsock.ports.iter().copied().collect();
        let device = VirtioVsock::new(vsock.cid, ports, accept(sender.clone()));
        let device = device.map_err(|error| Failure::Device("sockets to the guest", error))?;
        running.connector = Some(device.connector());
        machine.add_device("vsock", Box::new(device), false)?;
    }
    if config.balloon {
        let device = VirtioBalloon::new().map_err(|error| Failure::Device("the balloon", error))?;
        running.balloon = Some(device.balloon());
        machine.add_device("balloon", Box::new(device), false)?;
    }
    machine.start()?;
    let ready = Event::Ready {
        version: VERSION,
        accelerator: accelerator.name().to_owned(),
    };
    // Nobody to tell: the end of the socket will end the machine.
    let _ = sender.event(&ready);
    Ok(running)
}

/// Hands the guest's connections to whoever has the other end of the control socket.
fn accept(sender: Sender) -> crate::devices::virtio::vsock::Accept {
    Box::new(move |accepted| {
        let Accepted {
            port,
            guest_port,
            stream,
        } = accepted;
        sender
            .event_with(&Event::Accepted { port, guest_port }, &stream)
            .is_ok()
    })
}
