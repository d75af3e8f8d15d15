//! Devices of a configuration.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{Descriptor, DeviceConfig, DiskFormat};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::qcow2::Qcow2;
use crate::devices::virtio::block::{Block, BlockOptions, Disk, RawDisk};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::net::{Net, NetOptions, Tap};
use crate::devices::virtio::rng::Rng;

/// Makes a device, with descriptors of its own.
pub(super) fn build(config: &DeviceConfig) -> io::Result<Box<dyn VirtioDevice>> {
    Ok(match config {
        DeviceConfig::Block(config) => {
            let mut below = None;
            for image in config.backing.iter().rev() {
                below = Some(open(image.file, image.format, below, true)?);
            }
            let disk = open(config.file, config.format, below, config.read_only)?;
            let options = BlockOptions {
                read_only: config.read_only,
                serial: config.serial.clone(),
                queues: config.queues,
                engine: config.engine,
                limits: config.limits,
            };
            Box::new(Block::new(disk, options)?)
        }
        DeviceConfig::Rng => Box::new(Rng),
        DeviceConfig::Console(config) => {
            let input = config.input.as_ref().map(Descriptor::duplicate).transpose()?;
            Box::new(Console::new(input, config.output.duplicate()?))
        }
        DeviceConfig::Net(config) => {
            let taps = config.taps.iter().map(|tap| Tap::new(tap.duplicate()?));
            let options = NetOptions {
                mac: config.mac.parse()?,
                mtu: config.mtu,
                receive_limits: config.receive_limits,
                send_limits: config.send_limits,
            };
            Box::new(Net::new(taps.collect::<io::Result<_>>()?, options)?)
        }
    })
}

/// A disk's image, on top of another perhaps.
fn open(
    file: Descriptor,
    format: DiskFormat,
    below: Option<Arc<dyn Disk>>,
    read_only: bool,
) -> io::Result<Arc<dyn Disk>> {
    let file = File::from(file.duplicate()?);
    match (format, below) {
        (DiskFormat::Qcow2, below) => Ok(Arc::new(Qcow2::open(file, below, read_only)?)),
        (DiskFormat::Raw, None) => Ok(Arc::new(RawDisk::new(file)?)),
        (DiskFormat::Raw, Some(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a raw image lies on no other: only qcow2 images do",
        )),
    }
}
