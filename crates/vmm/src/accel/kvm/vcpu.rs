//! A vCPU of KVM: running it, and its state.

use std::sync::Arc;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::super::{Bus, Error, ErrorKind, Exit, Result, Vcpu, VcpuHandle, VcpuState};
use super::kick::Kicker;
use super::{failed, msrs, registers};

const EFER: u32 = 0xc000_0080;

/// A vCPU.
pub(super) struct KvmVcpu {
    fd: VcpuFd,
    bus: Arc<dyn Bus>,
    msrs: Arc<[u32]>,
    kicker: Arc<Kicker>,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, bus: Arc<dyn Bus>, msrs: Arc<[u32]>) -> Result<Self> {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: the descriptor is open as long as `fd`, which outlives this borrow.
        let kicker = Kicker::new(unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) })?;
        Ok(Self {
            fd,
            bus,
            msrs,
            kicker: Arc::new(kicker),
        })
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self) -> Result<Exit> {
        let kicker = self.kicker.clone();
        let _entered = kicker.enter();
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    for data in data.chunks_mut(kicker.page.port_unit().max(1)) {
                        self.bus.read_port(port, data);
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    for data in data.chunks(kicker.page.port_unit().max(1)) {
                        self.bus.write_port(port, data);
                    }
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    for (at, length) in Pieces::new(address, data.len()) {
                        self.bus
                            .read_memory(address + at as u64, &mut data[at..at + length]);
                    }
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    for (at, length) in Pieces::new(address, data.len()) {
                        self.bus.write_memory(address + at as u64, &data[at..at + length]);
                    }
                }
                Ok(VcpuExit::Shutdown) => return Ok(Exit::Shutdown),
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::InternalError) => {
                    return Err(cannot_execute(kicker.page.internal_error()));
                }
                Ok(VcpuExit::FailEntry(reason, processor)) => {
                    return Err(Error::new(
                        ErrorKind::Guest,
                        format!(
                            "the processor refuses the guest's state (reason {reason:#x}, on processor {processor})"
                        ),
                    ));
                }
                Ok(exit) => {
                    return Err(Error::new(
                        ErrorKind::Guest,
                        format!("KVM came back from the guest for what it was not set up for: {exit:?}"),
                    ));
                }
                Err(error) if error.errno() == libc::EINTR => {
                    if kicker.take() {
                        return Ok(Exit::Kicked);
                    }
                }
                // It was started, or had an INIT: it goes on from there.
                Err(error) if error.errno() == libc::EAGAIN => {}
                Err(error) => return Err(failed("cannot run a vCPU", error)),
            }
        }
    }

    fn state(&self) -> Result<VcpuState> {
        let read = |error| failed("cannot read the state of a vCPU", error);
        // First: KVM takes INIT and SIPI that wait into account here.
        let mp_state = self.fd.get_mp_state().map_err(read)?;
        let regs = self.fd.get_regs().map_err(read)?;
        let sregs = self.fd.get_sregs().map_err(read)?;
        let debug = self.fd.get_debug_regs().map_err(read)?;
        let xcrs = self.fd.get_xcrs().map_err(read)?;
        let xsave = self.fd.get_xsave().map_err(read)?;
        let lapic = self.fd.get_lapic().map_err(read)?;
        let events = self.fd.get_vcpu_events().map_err(read)?;
        let mut msrs = vec![(msrs::APIC_BASE, sregs.apic_base)];
        msrs.extend(msrs::read(&self.fd, &self.msrs)?);
        if !msrs.iter().any(|(number, _)| *number == EFER) {
            msrs.push((EFER, sregs.efer));
        }
        Ok(VcpuState {
            registers: registers::registers(&regs, &sregs, &debug, &xcrs),
            msrs,
            xsave: registers::xsave(&xsave),
            events: registers::events(&events, mp_state),
            lapic: registers::lapic(&lapic),
        })
    }

    fn set_state(&mut self, state: &VcpuState) -> Result<()> {
        let write = |error| failed("cannot write the state of a vCPU", error);
        let saved = |number| {
            let found = state.msrs.iter().find(|(saved, _)| *saved == number);
            found.map(|(_, value)| *value)
        };
        let now = self.fd.get_sregs().map_err(write)?;
        let efer = saved(EFER).unwrap_or(now.efer);
        let apic_base = saved(msrs::APIC_BASE).unwrap_or(now.apic_base);
        let registers = &state.registers;
        let xsave = registers::kvm_xsave(&state.xsave, host_xcr0());
        self.fd
            .set_mp_state(registers::kvm_mp_state(&state.events))
            .map_err(write)?;
        self.fd
            .set_sregs(&registers::kvm_sregs(registers, efer, apic_base))
            .map_err(write)?;
        self.fd.set_regs(&registers::kvm_regs(registers)).map_err(write)?;
        // SAFETY: without dynamically enabled features (this process never asks for any) KVM reads 4096 bytes.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(write)?;
        self.fd.set_xcrs(&registers::kvm_xcrs(registers)).map_err(write)?;
        self.fd
            .set_debug_regs(&registers::kvm_debugregs(registers))
            .map_err(write)?;
        // The APIC before the MSRs: its timer's mode decides whether a deadline is taken.
        self.fd
            .set_lapic(&registers::kvm_lapic(&state.lapic))
            .map_err(write)?;
        let rest: Vec<_> = state
            .msrs
            .iter()
            .copied()
            .filter(|(number, _)| *number != msrs::APIC_BASE && *number != EFER)
            .collect();
        msrs::write(&self.fd, &rest)?;
        // Last: setting registers drops what waits.
        self.fd
            .set_vcpu_events(&registers::kvm_events(&state.events))
            .map_err(write)
    }

    fn handle(&self) -> Arc<dyn VcpuHandle> {
        self.kicker.clone()
    }
}

/// What XCR0 can be on this host.
fn host_xcr0() -> u64 {
    // The leaf is there wherever KVM has `KVM_SET_XSAVE` to offer; without XSAVE it reads as zero, which leaves the legacy area.
    let leaf = std::arch::x86_64::__cpuid_count(0xd, 0);
    u64::from(leaf.edx) << 32 | u64::from(leaf.eax) | 3
}

fn cannot_execute(suberror: u32) -> Error {
    let why = match suberror {
        1 => "KVM emulates an instruction of the guest and does not know it",
        2 => "an exception of the guest was raised while another was delivered to it",
        3 => "an event could not be delivered to the guest",
        4 => "the processor came back from the guest for a reason that KVM does not know",
        _ => "KVM cannot execute the guest any further",
    };
    Error::new(ErrorKind::Guest, format!("{why} (internal error {suberror})"))
}

/// An access as a device can answer it: 1, 2, 4 or 8 bytes at once, each at a multiple of its length. Accesses across a page come in parts of any length.
struct Pieces {
    address: u64,
    at: usize,
    end: usize,
}

impl Pieces {
    fn new(address: u64, length: usize) -> Self {
        Self {
            address,
            at: 0,
            end: length,
        }
    }
}

impl Iterator for Pieces {
    type Item = (usize, usize);

    fn next(&mut self) -> Option<(usize, usize)> {
        let left = self.end - self.at;
        let length = match left {
            0 => return None,
            1 | 2 | 4 | 8 if self.at == 0 => left,
            _ => {
                let aligned = (self.address + self.at as u64).trailing_zeros().min(3);
                let fits = left.ilog2().min(3);
                1 << aligned.min(fits)
            }
        };
        let at = self.at;
        self.at += length;
        Some((at, length))
    }
}

#[cfg(test)]
mod tests {
    use super::Pieces;
    use proptest::prelude::*;

    #[test]
    fn an_ordinary_access_is_one_piece() {
        for length in [1, 2, 4, 8] {
            assert_eq!(Pieces::new(0x1001, length).collect::<Vec<_>>(), [(0, length)]);
        }
        assert_eq!(
            Pieces::new(0x1000, 7).collect::<Vec<_>>(),
            [(0, 4), (4, 2), (6, 1)]
        );
        assert_eq!(Pieces::new(0x1ffd, 3).collect::<Vec<_>>(), [(0, 1), (1, 2)]);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_access(address in 0_u64..1 << 40, length in 0_usize..=8) {
            let mut next = 0;
            for (at, piece) in Pieces::new(address, length) {
                prop_assert_eq!(at, next);
                prop_assert!([1, 2, 4, 8].contains(&piece));
                next += piece;
            }
            prop_assert_eq!(next, length);
        }
    }
}
