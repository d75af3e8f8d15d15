//! A machine: memory, vCPUs, devices, from its first instruction to its end.
//!
//! A machine is made of a [`Config`] and an accelerator, [started](Machine::start) once, and [waited for](Machine::wait). It ends when the guest
//! powers off or resets, when somebody [ends](Machine::end) it, or when a vCPU cannot go on; dropping it ends it, too. Everything it has is gone then: threads
//! are joined, memory is unmapped. A reset is the machine's end: whoever wants another round makes a machine of the same configuration again, which
//! is the only way to leave nothing behind.

mod config;
mod devices;
mod vcpu;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

pub use config::{
    BackingConfig, BlockConfig, Config, ConsoleConfig, Descriptor, DeviceConfig, DiskFormat, NetConfig,
    SerialConfig,
};

use crate::accel::{self, Accelerator, Msi, Vm, VmConfig};
use crate::boot::{self, Boot};
use crate::bus::{SystemBus, Taken};
use crate::devices::events::Events;
use crate::devices::power::{self, PowerRequest, PowerSink};
use crate::devices::serial::SerialLine;
use crate::devices::virtio::{VirtioDevice, VirtioPci};
use crate::memory::{self, Memory};
use crate::pci::{self, MsiSink, PciRoot};
use crate::sync::lock;
use vcpu::{Control, VcpuThread};

/// Kernels are smaller.
const KERNEL_MAX: u64 = 1 << 30;
/// Slots devices can be put into while the machine runs; those below are for what it has from the start.
const HOTPLUG_SLOTS: std::ops::RangeInclusive<u8> = 20..=31;

/// How a machine has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest has powered off.
    PowerOff,
    /// The guest has reset the machine.
    Reset,
    /// Somebody has called [`Machine::end`].
    Asked,
    /// A vCPU could not go on, in a sentence.
    Failed(String),
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration makes no sense.
    #[error("the machine's configuration makes no sense: {0}")]
    Config(String),
    /// The accelerator refuses.
    #[error("the accelerator refuses the machine")]
    Accelerator(#[from] accel::Error),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The kernel cannot be booted.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// A device cannot be put on the bus.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// Addresses are taken: a defect.
    #[error(transparent)]
    Bus(#[from] Taken),
    /// The host refuses what a device needs.
    #[error("cannot set up {what}")]
    Device {
        /// The device.
        what: String,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn device(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Device {
            what: what.into(),
            source,
        }
    }
}

/// A machine.
pub struct Machine {
    control: Arc<Control>,
    vcpus: Mutex<Vec<VcpuThread>>,
    devices: Arc<Devices>,
    serial: Arc<SerialLine>,
    events: Arc<Events>,
    bus: Arc<SystemBus>,
    vm: Arc<dyn Vm>,
    /// Dropped after `vm`, which uses it.
    memory: Arc<Memory>,
    config: Config,
}

/// What is in the slots.
struct Devices {
    pci: Arc<PciRoot>,
    list: Mutex<Vec<(u8, Arc<VirtioPci>)>>,
    /// Threads that end devices the guest has let go of.
    ejecting: Mutex<Vec<JoinHandle<()>>>,
}

impl Devices {
    /// Takes a device out and ends its threads.
    fn take(&self, slot: u8) -> Option<Arc<VirtioPci>> {
        let device = {
            let mut list = lock(&self.list);
            let index = list.iter().position(|(other, _)| *other == slot)?;
            list.remove(index).1
        };
        self.pci.remove(slot);
        device.pause();
        Some(device)
    }
}

impl Machine {
    /// A machine as `config` says, with all its devices, that executes nothing yet.
    pub fn new(accelerator: &dyn Accelerator, config: &Config) -> Result<Self, Error> {
        config.check()?;
        let bus = Arc::new(SystemBus::default());
        let memory = Arc::new(Memory::new(config.memory)?);
        let vm = accelerator.create_vm(VmConfig {
            vcpus: config.vcpus,
            bus: bus.clone(),
        })?;
        memory.attach(&*vm, false)?;
        let control = Arc::new(Control::default());
        let pci = PciRoot::new(config.memory);
        pci.attach(&bus)?;
        let requests = control.clone();
        let sink: PowerSink = Arc::new(move |request| {
            requests.end(match request {
                PowerRequest::Off => End::PowerOff,
                PowerRequest::Reset => End::Reset,
            });
        });
        power::attach(&bus, &sink)?;
        let devices = Arc::new(Devices {
            pci,
            list: Mutex::new(Vec::new()),
            ejecting: Mutex::new(Vec::new()),
        });
        let ejected = Arc::downgrade(&devices);
        let eject = Box::new(move |slots| eject(&ejected, slots));
        let events = Events::attach(&bus, vm.clone(), eject)?;
        let serial = SerialLine::attach(&bus, vm.clone()).map_err(Error::device("the serial line"))?;
        let machine = Self {
            control,
            vcpus: Mutex::new(Vec::new()),
            devices,
            serial,
            events,
            bus,
            memory,
            vm,
            config: config.clone(),
        };
        for (number, device) in config.devices.iter().enumerate() {
            let label = format!("{}{number}", device.name());
            let built = devices::build(device).map_err(Error::device(label.clone()))?;
            machine.add_device(&label, built, false)?;
        }
        Ok(machine)
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Devices it has now: their slots, and themselves.
    pub fn devices(&self) -> Vec<(u8, Arc<VirtioPci>)> {
        lock(&self.devices.list).clone()
    }

    /// Puts a device on the bus; `plugged`: the guest runs, and is told. Returns its slot.
    pub fn add_device(&self, label: &str, device: Box<dyn VirtioDevice>, plugged: bool) -> Result<u8, Error> {
        let sink: MsiSink = {
            let vm = self.vm.clone();
            Arc::new(move |msi: Msi| {
                if let Err(error) = vm.signal_msi(msi) {
                    tracing::debug!(%error, "an interrupt is lost");
                }
            })
        };
        let ram = self.memory.ram().clone();
        let device = VirtioPci::new(device, label, ram, sink).map_err(Error::device(label))?;
        let mut list = lock(&self.devices.list);
        let slot = if plugged {
            let free = |slot: &u8| list.iter().all(|(taken, _)| taken != slot);
            Some(HOTPLUG_SLOTS.into_iter().find(free).ok_or(pci::Error::Full)?)
        } else {
            None
        };
        let slot = self.devices.pci.insert(slot, device.clone())?;
        list.push((slot, device));
        drop(list);
        if plugged {
            self.events.inserted(slot);
        }
        Ok(slot)
    }

    /// Asks the guest to let go of the device in `slot`. It is gone when the guest has: not at all, if the guest does not want.
    pub fn remove_device(&self, slot: u8) {
        self.events.remove(slot);
    }

    /// Presses the power button: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        self.events.press_power_button();
    }

    /// Loads the kernel and lets the vCPUs run. Called once.
    pub fn start(&self) -> Result<(), Error> {
        let entry = self.load()?;
        if let Some(serial) = &self.config.serial {
            let take = |descriptor: &Descriptor| descriptor.duplicate().map(Arc::new);
            let failed = Error::device("the serial line");
            let opened = serial.input.as_ref().map(take).transpose();
            let started = opened.and_then(|input| self.serial.start(input, take(&serial.output)?));
            started.map_err(failed)?;
        }
        let mut vcpus = lock(&self.vcpus);
        for index in 0..self.config.vcpus {
            let mut vcpu = self.vm.create_vcpu(index)?;
            if index == 0 {
                let mut state = vcpu.state()?;
                entry.apply(&mut state);
                vcpu.set_state(&state)?;
            }
            let thread = VcpuThread::spawn(index, vcpu, self.control.clone());
            vcpus.push(thread.map_err(Error::device("a vCPU's thread"))?);
        }
        // Each is there before one runs: the first starts the others.
        self.control.resume();
        Ok(())
    }

    fn load(&self) -> Result<boot::Entry, Error> {
        let read = |source| boot::Error::Read {
            what: "the kernel",
            source,
        };
        let open = |descriptor: &Descriptor| descriptor.duplicate().map(File::from);
        let kernel = open(&self.config.kernel).map_err(read)?;
        let kernel = read_all(&kernel).map_err(read)?;
        let initramfs = self
            .config
            .initramfs
            .as_ref()
            .map(open)
            .transpose()
            .map_err(|source| boot::Error::Read {
                what: "the initramfs",
                source,
            })?;
        let boot = Boot {
            kernel: &kernel,
            initramfs: initramfs.as_ref(),
            command_line: &self.config.command_line,
            acpi: boot::acpi::Machine {
                vcpus: self.config.vcpus,
                hotplug_slots: self.config.hotplug.then_some(HOTPLUG_SLOTS),
            },
        };
        Ok(boot::load(&self.memory, &boot)?)
    }

    /// Stops vCPUs and devices; the guest does not see it. Comes back when all have stopped.
    pub fn pause(&self) {
        self.control.pause(&lock(&self.vcpus));
        for (_, device) in self.devices() {
            device.pause();
        }
    }

    /// Goes on after [`Machine::pause`].
    pub fn resume(&self) {
        for (_, device) in self.devices() {
            device.resume();
        }
        self.control.resume();
    }

    /// Waits for the machine's end.
    pub fn wait(&self) -> End {
        self.control.wait(None).unwrap_or(End::Asked)
    }

    /// Waits for its end, but not longer than this.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<End> {
        self.control.wait(Some(timeout))
    }

    /// Ends it. [`Machine::wait`] comes back at once; an end it had before stays.
    pub fn end(&self) {
        self.control.end(End::Asked);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.end(End::Asked);
        for vcpu in lock(&self.vcpus).drain(..) {
            vcpu.join();
        }
        for thread in lock(&self.devices.ejecting).drain(..) {
            // It has nothing to say.
            let _ = thread.join();
        }
        for (slot, _) in self.devices() {
            self.devices.take(slot);
        }
        self.serial.stop();
        // Devices on the bus refer to the `Vm`, and it to the bus.
        self.bus.ports.clear();
        self.bus.memory.clear();
    }
}

/// The guest has let go of devices. Their threads are ended elsewhere: a vCPU is waiting.
fn eject(devices: &Weak<Devices>, slots: u32) {
    let Some(devices) = devices.upgrade() else {
        return;
    };
    let present: Vec<u8> = lock(&devices.list).iter().map(|(slot, _)| *slot).collect();
    for slot in present {
        if HOTPLUG_SLOTS.contains(&slot) && slots >> slot & 1 != 0 {
            let taken = devices.clone();
            let take = move || drop(taken.take(slot));
            match std::thread::Builder::new().name("eject".to_owned()).spawn(take) {
                Ok(thread) => {
                    let mut ejecting = lock(&devices.ejecting);
                    ejecting.retain(|thread| !thread.is_finished());
                    ejecting.push(thread);
                }
                Err(error) => tracing::warn!(%error, "a device cannot be taken out"),
            }
        }
    }
}

/// A whole file, from its start wherever its position is.
fn read_all(file: &File) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;

    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read_at(to, self.1)?;
            self.1 += count as u64;
            Ok(count)
        }
    }
    let size = file.metadata()?.len().min(KERNEL_MAX);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    At(file, 0).take(KERNEL_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A descriptor of our own, of a number that was inherited.
fn duplicate(number: i32) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is only handed to one call that says whether it is a descriptor; what is used is the duplicate.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?)
}
