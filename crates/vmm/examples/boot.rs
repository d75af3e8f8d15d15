//! Boots a kernel with its serial line on this terminal:
//!
//!     boot --kernel vmlinuz --initrd initramfs.img --append "console=ttyS0" --memory 256 --cpus 2 --accel soft --disk root.img

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::Duration;

use vessel_vmm::accel::{Choice, choose};
use vessel_vmm::boot::extract_vmlinux;
use vessel_vmm::devices::virtio::block::Engine;
use vessel_vmm::devices::virtio::rate::RateLimits;
use vessel_vmm::devices::virtio::rng::Rng;
use vessel_vmm::machine::{
    BlockConfig, Config, ConsoleConfig, Descriptor, DeviceConfig, DiskFormat, End, Machine, NetConfig,
    SerialConfig,
};

struct Arguments {
    config: Config,
    accelerator: Choice,
    /// Open until the machine has its own.
    files: Vec<File>,
    statistics: bool,
    /// After so many seconds a device is put in, after as many again it is to be taken out, and then the power button is pressed.
    plug: Option<Duration>,
}

#[expect(clippy::exit)]
fn parse() -> Result<Arguments, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut keep = |file: File| {
        let number = Descriptor(file.as_raw_fd());
        files.push(file);
        number
    };
    let mut config = Config {
        memory: 256 << 20,
        vcpus: 1,
        kernel: Descriptor(-1),
        initramfs: None,
        command_line: String::new(),
        serial: Some(SerialConfig {
            input: Some(Descriptor(0)),
            output: Descriptor(1),
        }),
        hotplug: false,
        devices: Vec::new(),
    };
    let mut accelerator = Choice::Soft;
    let mut statistics = false;
    let mut plug = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{option} wants a value"));
        match option.as_str() {
            "--kernel" => config.kernel = keep(File::open(value()?)?),
            "--initrd" => config.initramfs = Some(keep(File::open(value()?)?)),
            "--append" => config.command_line = value()?,
            "--memory" => config.memory = value()?.parse::<u64>()? << 20,
            "--cpus" => config.vcpus = value()?.parse()?,
            "--accel" => accelerator = value()?.parse()?,
            "--hotplug" => config.hotplug = true,
            "--statistics" => statistics = true,
            "--plug" => plug = Some(Duration::from_secs(value()?.parse()?)),
            "--rng" => config.devices.push(DeviceConfig::Rng),
            "--no-input" => config.serial.iter_mut().for_each(|serial| serial.input = None),
            "--console" => config.devices.push(DeviceConfig::Console(ConsoleConfig {
                input: None,
                output: keep(File::create(value()?)?),
            })),
            "--disk" => {
                let path = value()?;
                let format = if path.ends_with(".qcow2") {
                    DiskFormat::Qcow2
                } else {
                    DiskFormat::Raw
                };
                let file = OpenOptions::new().read(true).write(true).open(path)?;
                config.devices.push(DeviceConfig::Block(BlockConfig {
                    file: keep(file),
                    format,
                    backing: Vec::new(),
                    read_only: false,
                    serial: String::new(),
                    queues: 1,
                    engine: Engine::Auto,
                    limits: RateLimits::default(),
                }));
            }
            "--unpack" => {
                // Writes the ELF kernel that is in a bzImage, and ends.
                let (kernel, to) = (value()?, value()?);
                std::fs::write(to, extract_vmlinux(&std::fs::read(kernel)?)?)?;
                std::process::exit(0);
            }
            "--tap" => {
                let (name, queues) = (value()?, 1);
                config.devices.push(DeviceConfig::Net(NetConfig {
                    taps: (0..queues)
                        .map(|_| open_tap(&name).map(&mut keep))
                        .collect::<io::Result<_>>()?,
                    mac: "52:54:00:12:34:56".to_owned(),
                    mtu: 0,
                    receive_limits: RateLimits::default(),
                    send_limits: RateLimits::default(),
                }));
            }
            other => return Err(format!("{other} is no option of this example").into()),
        }
    }
    Ok(Arguments {
        config,
        accelerator,
        files,
        statistics,
        plug,
    })
}

/// The TAP device of this name, made if it is not there.
fn open_tap(name: &str) -> io::Result<File> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: integers and arrays of them: zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    request.ifr_ifru.ifru_flags = 0x0002 | 0x1000 | 0x4000;
    // SAFETY: the request is what TUNSETIFF wants, and lives across the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn run() -> Result<End, Box<dyn Error>> {
    let arguments = parse()?;
    let chosen = choose(arguments.accelerator)?;
    let machine = Machine::new(&*chosen.accelerator, &arguments.config)?;
    machine.start()?;
    drop(arguments.files);
    if let Some(seconds) = arguments.plug
        && machine.wait_timeout(seconds).is_none()
    {
        let slot = machine.add_device("late", Box::new(Rng), true)?;
        machine.wait_timeout(seconds);
        machine.remove_device(slot);
        machine.wait_timeout(seconds);
        report(&format!("devices after the removal: {}", machine.devices().len()));
        machine.press_power_button();
    }
    let end = machine.wait();
    if arguments.statistics {
        for (slot, device) in machine.devices() {
            let counters = serde_json::to_string(&device.metrics().snapshot())?;
            report(&format!("slot {slot}: {}: {counters}", device.label()));
        }
    }
    Ok(end)
}

// An example is a program of its own: it may write to its terminal.
#[expect(clippy::print_stderr)]
fn report(line: &str) {
    eprintln!("{line}");
}

fn main() -> ExitCode {
    match run() {
        Ok(End::PowerOff | End::Reset | End::Asked) => ExitCode::SUCCESS,
        Ok(End::Failed(why)) => {
            report(&why);
            ExitCode::FAILURE
        }
        Err(error) => {
            let mut line = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                line = format!("{line}: {error}");
                source = error.source();
            }
            report(&line);
            ExitCode::FAILURE
        }
    }
}
