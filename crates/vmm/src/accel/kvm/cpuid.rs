//! What a vCPU says it is: what KVM can offer on this host, less what has no meaning in our machines, with the machine's own topology.
//!
//! The machine is one package of as many cores as it has vCPUs, each with one thread.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// CPUID of the vCPU `index` of `count`.
pub(super) fn of_vcpu(supported: &CpuId, index: u8, count: u8) -> CpuId {
    let topology = Topology {
        id: index.into(),
        cores: u32::from(count.max(1)),
    };
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        topology.apply(entry);
    }
    // KVM can offer less of them than a topology has: a guest that reads a missing one sees zeros, which say "none".
    cpuid
}

struct Topology {
    id: u32,
    cores: u32,
}

impl Topology {
    /// Bits of the APIC's number that tell cores apart.
    fn bits(&self) -> u32 {
        self.cores.next_power_of_two().trailing_zeros()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        match entry.function {
            0x1 => self.features(entry),
            // Caches: the last level is everybody's, the others are a core's own.
            0x4 | 0x8000_001d => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { self.cores - 1 } else { 0 };
                entry.eax &= 0x3fff;
                entry.eax |= sharing << 14;
                if entry.function == 0x4 {
                    entry.eax |= (self.cores - 1).min(63) << 26;
                }
            }
            // Power: only that the APIC's timer never stops.
            0x6 => {
                entry.eax &= 1 << 2;
                entry.ebx = 0;
                entry.ecx = 0;
                entry.edx = 0;
            }
            // Performance counters: none.
            0xa => {
                entry.eax = 0;
                entry.ebx = 0;
                entry.ecx = 0;
                entry.edx = 0;
            }
            0xb | 0x1f => self.levels(entry),
            // KVM's own features: what only means something when the monitor does its part is taken away (MSIs to numbers above 255, memory encryption's migration).
            0x4000_0001 => entry.eax &= !(1 << 15 | 1 << 16 | 1 << 17),
            // No nested virtualization.
            0x8000_0001 => entry.ecx &= !(1 << 2),
            0x8000_0008 => {
                entry.ecx = (self.cores - 1) | self.bits() << 12;
            }
            0x8000_000a => {
                entry.eax = 0;
                entry.ebx = 0;
                entry.ecx = 0;
                entry.edx = 0;
            }
            0x8000_001e => {
                entry.eax = self.id;
                entry.ebx = self.id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }

    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        const VMX: u32 = 1 << 5;
        const PDCM: u32 = 1 << 15;
        const X2APIC: u32 = 1 << 21;
        const TSC_DEADLINE: u32 = 1 << 24;
        const HYPERVISOR: u32 = 1 << 31;
        const HTT: u32 = 1 << 28;
        entry.ebx = entry.ebx & 0xffff | self.cores.min(255) << 16 | self.id << 24;
        entry.ecx &= !(VMX | PDCM);
        // KVM does not offer the timer's mode here though it always has it with its own APIC.
        entry.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
        if self.cores > 1 {
            entry.edx |= HTT;
        } else {
            entry.edx &= !HTT;
        }
    }

    fn levels(&self, entry: &mut kvm_cpuid_entry2) {
        let (shift, count, kind) = match entry.index {
            0 => (0, 1, 1),
            1 => (self.bits(), self.cores, 2),
            _ => (0, 0, 0),
        };
        entry.eax = shift;
        entry.ebx = count;
        entry.ecx = entry.index & 0xff | kind << 8;
        entry.edx = self.id;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    fn of(function: u32, subleaf: u32, index: u8, count: u8) -> kvm_cpuid_entry2 {
        let supported = CpuId::from_entries(&[entry(function, subleaf)]).unwrap();
        of_vcpu(&supported, index, count).as_slice()[0]
    }

    #[test]
    fn features_are_the_machines() {
        let one = of(1, 0, 3, 4);
        assert_eq!(one.ebx, 3 << 24 | 4 << 16 | 0xffff);
        assert_eq!(one.ecx & (1 << 5 | 1 << 15), 0);
        assert_eq!(one.edx & 1 << 28, 1 << 28);
        assert_eq!(of(1, 0, 0, 1).edx & 1 << 28, 0);
        assert_eq!(of(0x8000_0001, 0, 0, 1).ecx & 1 << 2, 0);
        assert_eq!(of(0x4000_0001, 0, 0, 1).eax & 1 << 15, 0);
        assert_eq!(of(0xa, 0, 0, 1).eax, 0);
    }

    proptest! {
        /// The levels say together what makes up an APIC's number.
        #[test]
        fn every_number_is_within_its_topology(count in 1_u8.., index: u8) {
            let index = index % count;
            let threads = of(0xb, 0, index, count);
            let cores = of(0xb, 1, index, count);
            let end = of(0xb, 2, index, count);
            prop_assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
            prop_assert_eq!((cores.ebx, cores.ecx), (u32::from(count), 0x201));
            prop_assert_eq!((end.eax, end.ebx, end.ecx), (0, 0, 2));
            prop_assert_eq!(u32::from(index) >> cores.eax, 0, "one package");
            prop_assert!(cores.eax == 0 || u32::from(count) > 1 << (cores.eax - 1));
            prop_assert_eq!(cores.edx, u32::from(index));
        }
    }
}
