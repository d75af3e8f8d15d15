//! PCI: one bus with 32 slots, configuration by ECAM and by ports `0xcf8`/`0xcfc`, memory BARs, MSI-X.
//!
//! Follows the PCI Local Bus specification 3.0 (configuration space, MSI-X) and PCI Express 4.0, section 7.2.2 (ECAM). There is no
//! bridge but the root, a slot has one function, there are no I/O BARs and no INTx: devices interrupt by MSI-X only.

mod config;
mod msix;
mod root;

pub use config::{Bar, ConfigSpace, ConfigState, Identity};
pub use msix::{MSIX_ENTRY_SIZE, MsiSink, Msix, MsixEntry, MsixState};
pub use root::{DEVICE_SLOTS, Error, PciRoot};

/// One device on the bus. It is called by any vCPU's thread at any time.
pub trait Function: Send + Sync {
    /// A load from its 256 bytes of configuration space, within one aligned word of 4 bytes.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// A store to it. True if the function answers at other addresses now.
    fn write_config(&self, offset: usize, data: &[u8]) -> bool;

    /// BARs it has, decoded or not: number, and what it is.
    fn bars(&self) -> Vec<(usize, Bar)>;

    /// Where its BARs are, of those it answers to now: number, address, length.
    fn decoded(&self) -> Vec<(usize, u64, u64)>;

    /// Gives a BAR an address, as firmware does before a kernel starts.
    fn place_bar(&self, bar: usize, address: u64);

    /// A load from a BAR; all of it is within.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// A store to a BAR.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]);
}
