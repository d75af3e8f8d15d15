//! The model-specific registers of a vCPU's state.

use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::super::{Error, ErrorKind, Result};
use super::failed;

/// Kept in `kvm_sregs`, and not in KVM's list.
pub(super) const APIC_BASE: u32 = 0x1b;

/// The paravirtual clock's old numbers: aliases of the new ones.
const ALIASES: [u32; 2] = [0x11, 0x12];

/// What of KVM's list makes up the state.
pub(super) fn of_state(list: &[u32]) -> Arc<[u32]> {
    list.iter()
        .copied()
        .filter(|number| !ALIASES.contains(number) && *number != APIC_BASE)
        .collect()
}

/// Reads those of `numbers` that the vCPU has: KVM lists some that it then does not let be read.
pub(super) fn read(vcpu: &VcpuFd, numbers: &[u32]) -> Result<Vec<(u32, u64)>> {
    let mut result = Vec::with_capacity(numbers.len());
    let mut rest: Vec<_> = numbers
        .iter()
        .map(|number| kvm_msr_entry {
            index: *number,
            ..Default::default()
        })
        .collect();
    while !rest.is_empty() {
        let mut batch = batch(&rest)?;
        let read = vcpu
            .get_msrs(&mut batch)
            .map_err(|error| failed("cannot read the registers of a vCPU", error))?;
        let read = read.min(rest.len());
        result.extend(
            batch.as_slice()[..read]
                .iter()
                .map(|entry| (entry.index, entry.data)),
        );
        drop_done(&mut rest, read, batch.as_slice().len());
    }
    Ok(result)
}

/// Writes those that the vCPU has and takes.
pub(super) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<()> {
    let mut rest: Vec<_> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry {
            index: *index,
            data: *data,
            ..Default::default()
        })
        .collect();
    while !rest.is_empty() {
        let batch = batch(&rest)?;
        let written = vcpu
            .set_msrs(&batch)
            .map_err(|error| failed("cannot write the registers of a vCPU", error))?;
        drop_done(&mut rest, written, batch.as_slice().len());
    }
    Ok(())
}

/// KVM stops before the first that it does not have or take: that one is passed over.
fn drop_done(rest: &mut Vec<kvm_msr_entry>, done: usize, of: usize) {
    let done = if done < of { done + 1 } else { of };
    rest.drain(..done.min(rest.len()));
}

/// KVM takes 256 at once.
fn batch(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(&entries[..entries.len().min(256)])
        .map_err(|_| Error::new(ErrorKind::Invalid, "a vCPU has too many registers"))
}
