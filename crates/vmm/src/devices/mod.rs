//! Devices: what answers on the bus.

pub mod virtio;
