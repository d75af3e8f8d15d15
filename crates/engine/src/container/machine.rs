//! What a container behind a kernel of its own needs beyond what every container needs.

use std::os::fd::OwnedFd;
use std::time::Duration;

use vessel_api::HostConfig;
use vessel_api::vessel::{ACCELERATOR, KERNEL};
use vessel_runtime::capabilities::CapSet;
use vessel_runtime::shim::{GuestProcess, Held, Interface, MachineConfig, Question, Reply, Request};

use super::{Container, shim};
use crate::oci_spec::wall::{self, Size};
use crate::{Engine, Error, ErrorKind, Result, blocking};

/// The kernel's parameters: it says what it has to say on the serial line, and a panic is the machine's end.
fn command_line() -> String {
    format!(
        "console=ttyS0 quiet panic=-1 reboot=t {}",
        vessel_kernel::COMMAND_LINE
    )
}

/// How long a machine may take to count its processes for a reading that comes every second.
const STATISTICS: Duration = Duration::from_millis(900);

impl Engine {
    /// What a container can be given: what this engine may do itself. A machine's kernel knows nothing of that.
    pub(crate) fn available(&self, host: &HostConfig) -> CapSet {
        match wall::is_machine(host) {
            true => CapSet::of_kernel(),
            false => self.capabilities,
        }
    }

    /// The machine for a start, its kernel and its initramfs.
    pub(super) fn machine(
        &self,
        host: &HostConfig,
        interfaces: Vec<Interface>,
        names: bool,
    ) -> Result<(MachineConfig, (OwnedFd, OwnedFd))> {
        let annotation = |key: &str| host.annotations.get(key).map(String::as_str);
        let boot = self.guest_kernel(annotation(KERNEL))?;
        let Size { memory, vcpus } = Size::of(&host.resources);
        let config = MachineConfig {
            command_line: command_line(),
            accelerator: annotation(ACCELERATOR).unwrap_or("auto").to_owned(),
            memory,
            vcpus,
            interfaces,
            names,
        };
        Ok((config, boot))
    }

    /// The processes in a machine.
    pub(crate) async fn machine_processes(&self, container: &Container) -> Result<Vec<GuestProcess>> {
        match self.ask_machine(container, Question::Processes).await? {
            Reply::Processes(list) => Ok(list),
            _ => Err(Error::system("the machine's shim answered another question")),
        }
    }

    /// How many processes are in a machine, and how many there may be; nothing of one that does not answer soon.
    pub(crate) async fn machine_pids(&self, container: &Container) -> (u64, u64) {
        let asked = self.ask_machine(container, Question::Statistics);
        let Ok(Ok(Reply::Files(files))) = tokio::time::timeout(STATISTICS, asked).await else {
            return (0, 0);
        };
        let number = |name: &str| {
            let file = files.iter().find(|(file, _)| file == name);
            file.and_then(|(_, text)| text.trim().parse().ok()).unwrap_or(0)
        };
        (number("pids.current"), number("pids.max"))
    }

    /// Sets a machine's clock after it stood still. One that does not answer goes wrong, and is told of.
    pub(super) async fn set_machine_clock(&self, container: &Container) {
        if let Err(error) = self.ask_machine(container, Question::Clock).await {
            tracing::warn!(container = container.id, "set the machine's clock: {error}");
        }
    }

    async fn ask_machine(&self, container: &Container, question: Question) -> Result<Reply> {
        let (reply, _) = shim::request(self.paths.shim(&container.id), &Request::Ask(question)).await?;
        Ok(reply)
    }

    /// What a machine's shim holds: the root, as it is mounted on this side of the wall, or the network namespace. Blocks,
    /// seldom for long.
    pub(crate) fn of_machine(&self, id: &str, what: Held) -> Result<OwnedFd> {
        Ok(vessel_runtime::shim::hand(&self.paths.shim(id), what)?)
    }

    /// A machine's root.
    ///
    /// # Errors
    /// `NotFound` when it has ended.
    pub(crate) async fn machine_root(&self, container: &Container) -> Result<OwnedFd> {
        let directory = self.paths.shim(&container.id);
        let root = blocking(move || Ok(vessel_runtime::shim::hand(&directory, Held::Root)?)).await;
        root.map_err(|error| match error.kind() {
            ErrorKind::Conflict => Error::not_found(error.message()),
            _ => error,
        })
    }

    /// A kernel for machines, by name or the default one, and the archive that goes with it, which is made when there is none yet.
    fn guest_kernel(&self, name: Option<&str>) -> Result<(OwnedFd, OwnedFd)> {
        let store = vessel_kernel::Store::new(self.paths.kernels());
        let kernel = match name {
            Some(name) => store.get(name),
            None => store.default_kernel(),
        };
        let boot = kernel.and_then(|kernel| store.boot(&kernel, vessel_init::guest::GUEST));
        let boot = boot.map_err(from_kernel)?;
        Ok((boot.kernel.into(), boot.initramfs.into()))
    }
}

/// Nothing of this is what the client asked for by name: "not found" would be taken for the image or the container.
fn from_kernel(error: vessel_kernel::Error) -> Error {
    match error.kind() {
        vessel_kernel::ErrorKind::Invalid | vessel_kernel::ErrorKind::NotFound => {
            Error::invalid(error.to_string())
        }
        _ => Error::system(error.to_string()),
    }
}
