//! The accelerator that uses the processor's virtualization, through Linux' `/dev/kvm`.
//!
//! Local APICs and the I/O APIC are the kernel's (`KVM_CREATE_IRQCHIP`; the PIC that comes along is connected to nothing, there is no PIT). A vCPU is kicked by
//! `immediate_exit` and a signal ([`kick`]).
//!
//! Not every `/dev/kvm` can run a stock kernel: some clouds offer one on processors without virtualization, which emulates what they lack, and
//! not all of it. [`Kvm::new`] runs a [small guest](self_test) there and says what is wrong.

mod cpuid;
mod kick;
mod msrs;
mod registers;
mod self_test;
mod vcpu;
mod vm;

use std::io;
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use super::{Accelerator, Error, ErrorKind, Result, Vm, VmConfig};

/// What is needed of KVM, with names to complain by.
const NEEDED: [(Cap, &str); 14] = [
    (Cap::UserMemory, "memory slots"),
    (Cap::ReadonlyMem, "read-only memory slots"),
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::IrqRouting, "interrupt routing"),
    (Cap::SignalMsi, "message-signalled interrupts"),
    (Cap::SetTssAddr, "KVM_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_SET_IDENTITY_MAP_ADDR"),
    (Cap::ImmediateExit, "immediate_exit (Linux 4.12)"),
    (Cap::AdjustClock, "KVM_SET_CLOCK"),
    (Cap::MpState, "KVM_SET_MP_STATE"),
    (Cap::VcpuEvents, "KVM_SET_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_SET_DEBUGREGS"),
    (Cap::Xsave, "KVM_SET_XSAVE"),
    (Cap::Xcrs, "KVM_SET_XCRS"),
];

/// `/dev/kvm`.
pub struct Kvm {
    system: kvm_ioctls::Kvm,
    /// What its vCPUs can be told to be.
    cpuid: CpuId,
    /// The model-specific registers of a vCPU's state.
    msrs: Arc<[u32]>,
}

impl Kvm {
    /// Opens `/dev/kvm`. On a processor that has no virtualization of its own, a [small guest](self_test) must run first.
    pub fn new() -> Result<Self> {
        let kvm = Self::without_self_test()?;
        if !has_virtualization() {
            kvm.self_test()?;
        }
        Ok(kvm)
    }

    /// Runs that guest. The error says what this KVM does not do.
    pub fn self_test(&self) -> Result<()> {
        self_test::run(self)
    }

    /// The same without that guest: for others as small, which need less than a kernel.
    pub fn without_self_test() -> Result<Self> {
        let system = kvm_ioctls::Kvm::new().map_err(cannot_open)?;
        if system.get_api_version() != KVM_API_VERSION as i32 {
            return Err(unavailable(
                "/dev/kvm speaks another version of the interface than 12",
            ));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !system.check_extension(*cap)) {
            return Err(unavailable(format!(
                "/dev/kvm of this host's kernel lacks {name}"
            )));
        }
        let cpuid = system
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(|error| failed("cannot ask /dev/kvm what its processors can be", error))?;
        let msrs = system
            .get_msr_index_list()
            .map_err(|error| failed("cannot ask /dev/kvm which registers its processors have", error))?;
        Ok(Self {
            system,
            cpuid,
            msrs: msrs::of_state(msrs.as_slice()),
        })
    }
}

impl Accelerator for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn create_vm(&self, config: VmConfig) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(vm::KvmVm::new(self, config)?))
    }
}

/// Whether the processor under this kernel has VMX or SVM: then `/dev/kvm` is Linux' own and complete.
fn has_virtualization() -> bool {
    let vmx = std::arch::x86_64::__cpuid(1).ecx & 1 << 5 != 0;
    let extended = std::arch::x86_64::__cpuid(0x8000_0000).eax >= 0x8000_0001;
    let svm = extended && std::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    vmx || svm
}

fn cannot_open(error: kvm_ioctls::Error) -> Error {
    let why = match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            "there is no KVM on this host: its processor has no virtualization, the firmware disables it, or the kernel module kvm_intel or kvm_amd is not loaded"
        }
        libc::EACCES | libc::EPERM => "/dev/kvm may not be opened: it takes root or the group kvm",
        _ => "cannot open /dev/kvm",
    };
    Error::with_source(ErrorKind::Unavailable, why, io_error(error))
}

fn unavailable(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, message)
}

fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

fn failed(what: &str, error: kvm_ioctls::Error) -> Error {
    Error::system(what, io_error(error))
}
