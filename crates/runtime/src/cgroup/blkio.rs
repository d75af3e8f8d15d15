//! `blkio` and its successor `io`: weights and rates of block devices.
//!
//! Weights need a scheduler that knows them: CFQ (gone since 5.0), BFQ, or v2's iocost. What this kernel has is found by
//! trying the files.

use rustix::io::Errno;

use super::Node;
use super::hierarchy::Version;
use super::lack::Lacks;
use super::resources::{BlockIo, ThrottleDevice};
use crate::{Error, Result};

pub(super) fn apply(node: Option<Node<'_>>, io: &BlockIo, lacks: &mut Lacks) -> Result<()> {
    validate(io)?;
    if io.leaf_weight.is_some_and(|weight| weight != 0)
        || io
            .weight_device
            .iter()
            .any(|device| device.leaf_weight.is_some_and(|weight| weight != 0))
    {
        lacks.add(
            "blockIO.leafWeight",
            "it went away with the CFQ scheduler in Linux 5.0",
        );
    }
    if let Some(weight) = io.weight.filter(|&weight| weight != 0) {
        weigh(
            node,
            "blockIO.weight",
            |scale| scale.value(weight).to_string(),
            lacks,
        )?;
    }
    for device in &io.weight_device {
        if let Some(weight) = device.weight.filter(|&weight| weight != 0) {
            let line = |scale: Scale| format!("{}:{} {}", device.major, device.minor, scale.value(weight));
            weigh_device(node, "blockIO.weightDevice", line, lacks)?;
        }
        if device.weight == Some(0) {
            // It has none of its own any more. Where weights are not known there is nothing to take back.
            let line = |_: Scale| format!("{}:{} default", device.major, device.minor);
            weigh_device(node, "blockIO.weightDevice", line, &mut Lacks::default())?;
        }
    }
    for (property, devices, v1, v2) in [
        (
            "blockIO.throttleReadBpsDevice",
            &io.throttle_read_bps_device,
            "blkio.throttle.read_bps_device",
            "rbps",
        ),
        (
            "blockIO.throttleWriteBpsDevice",
            &io.throttle_write_bps_device,
            "blkio.throttle.write_bps_device",
            "wbps",
        ),
        (
            "blockIO.throttleReadIOPSDevice",
            &io.throttle_read_iops_device,
            "blkio.throttle.read_iops_device",
            "riops",
        ),
        (
            "blockIO.throttleWriteIOPSDevice",
            &io.throttle_write_iops_device,
            "blkio.throttle.write_iops_device",
            "wiops",
        ),
    ] {
        for &ThrottleDevice { major, minor, rate } in devices {
            match node {
                None => lacks.add(property, "no cgroup hierarchy has the blkio or io controller"),
                Some(node) if node.version == Version::V1 => {
                    node.dir
                        .write_or_lack(property, v1, &format!("{major}:{minor} {rate}"), lacks)?;
                }
                Some(node) => {
                    let rate = if rate == 0 {
                        "max".to_owned()
                    } else {
                        rate.to_string()
                    };
                    node.dir.write_or_lack(
                        property,
                        "io.max",
                        &format!("{major}:{minor} {v2}={rate}"),
                        lacks,
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn validate(io: &BlockIo) -> Result<()> {
    let weights = io.weight.iter().chain(
        io.weight_device
            .iter()
            .filter_map(|device| device.weight.as_ref()),
    );
    for &weight in weights {
        if weight != 0 && !(10..=1000).contains(&weight) {
            return Err(Error::invalid(format!(
                "blockIO: weight {weight} is out of range: 10 to 1000"
            )));
        }
    }
    let numbers = io
        .weight_device
        .iter()
        .map(|device| (device.major, device.minor))
        .chain(
            [
                &io.throttle_read_bps_device,
                &io.throttle_write_bps_device,
                &io.throttle_read_iops_device,
                &io.throttle_write_iops_device,
            ]
            .into_iter()
            .flatten()
            .map(|device| (device.major, device.minor)),
        );
    for (major, minor) in numbers {
        if !(0..1 << 12).contains(&major) || !(0..1 << 20).contains(&minor) {
            return Err(Error::invalid(format!(
                "blockIO: {major}:{minor} is not a device number"
            )));
        }
    }
    Ok(())
}

/// The two scales of weights.
#[derive(Clone, Copy)]
enum Scale {
    /// 10 to 1000, as given.
    Plain,
    /// 1 to 10000.
    Io,
}

impl Scale {
    fn value(self, weight: u16) -> u64 {
        match self {
            Self::Plain => u64::from(weight),
            Self::Io => io_weight(weight),
        }
    }
}

/// 10 to 1000 stretched to 1 to 10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990
}

fn weigh(
    node: Option<Node<'_>>,
    property: &str,
    line: impl Fn(Scale) -> String,
    lacks: &mut Lacks,
) -> Result<()> {
    let files: &[(&str, Scale)] = match node.map(|node| node.version) {
        Some(Version::V2) => &[("io.bfq.weight", Scale::Plain), ("io.weight", Scale::Io)],
        _ => &[("blkio.weight", Scale::Plain), ("blkio.bfq.weight", Scale::Plain)],
    };
    first_that_exists(node, property, files, line, lacks)
}

fn weigh_device(
    node: Option<Node<'_>>,
    property: &str,
    line: impl Fn(Scale) -> String,
    lacks: &mut Lacks,
) -> Result<()> {
    let files: &[(&str, Scale)] = match node.map(|node| node.version) {
        Some(Version::V2) => &[("io.bfq.weight", Scale::Plain), ("io.weight", Scale::Io)],
        _ => &[
            ("blkio.weight_device", Scale::Plain),
            ("blkio.bfq.weight_device", Scale::Plain),
        ],
    };
    first_that_exists(node, property, files, line, lacks)
}

fn first_that_exists(
    node: Option<Node<'_>>,
    property: &str,
    files: &[(&str, Scale)],
    line: impl Fn(Scale) -> String,
    lacks: &mut Lacks,
) -> Result<()> {
    let Some(node) = node else {
        lacks.add(property, "no cgroup hierarchy has the blkio or io controller");
        return Ok(());
    };
    for &(file, scale) in files {
        let value = line(scale);
        match node.dir.try_write(file, &value) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(node.dir.write_error(property, file, &value, errno)),
        }
    }
    lacks.add(
        property,
        "no I/O scheduler of this kernel knows weights (BFQ or iocost)",
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_stretched() {
        assert_eq!(
            [io_weight(10), io_weight(500), io_weight(1000)],
            [1, 4950, 10_000]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |io: BlockIo| validate(&io).unwrap_err().report().message;
        assert!(
            refused(BlockIo {
                weight: Some(5),
                ..BlockIo::default()
            })
            .contains("out of range")
        );
        let throttle_read_bps_device = vec![ThrottleDevice {
            major: -1,
            minor: 0,
            rate: 1,
        }];
        assert!(
            refused(BlockIo {
                throttle_read_bps_device,
                ..BlockIo::default()
            })
            .contains("device number")
        );
    }
}
