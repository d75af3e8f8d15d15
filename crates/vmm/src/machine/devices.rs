//! Devices of a configuration.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::{DeviceConfig, DiskFormat};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::block::{Block, BlockOptions, Disk, RawDisk};
use crate::devices::virtio::console::Console;
use crate::devices::virtio::net::{Net, NetOptions, Tap};
use crate::devices::virtio::rng::Rng;

/// Makes a device, with descriptors of its own.
pub(super) fn build(config: &DeviceConfig) -> io::Result<Box<dyn VirtioDevice>> {
    Ok(match config {
        DeviceConfig::Block(config) => {
            let file = File::from(config.file.duplicate()?);
            let disk: Arc<dyn Disk> = match config.format {
                DiskFormat::Raw => Arc::new(RawDisk::new(file)?),
            };
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
            let input = config
                .input
                .as_ref()
                .map(super::Descriptor::duplicate)
                .transpose()?;
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
