//! ACPI tables (ACPI 6.5): a hardware-reduced machine.
//!
//! There are no PM timer, no GPE blocks and no legacy devices: sleep and reset are registers of their own (4.8.3.7), events come by a
//! generic event device (5.6.9). PCI interrupts by MSI, so there is no `_PRT`.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, MethodCall, Name,
    Notify, OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Scope, Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use std::ops::RangeInclusive;
use vm_memory::{Bytes, GuestAddress};

use super::error::{Error, Result};
use crate::accel::{IOAPIC_BASE, LAPIC_BASE};
use crate::devices::events::{EVENT_PCI, EVENT_POWER_BUTTON};
use crate::devices::power::{RESET_PORT, RESET_VALUE, SLEEP_TYPE_OFF};
use crate::memory::Memory;
use crate::memory::layout::{
    ACPI_END, ACPI_START, EVENT_GSI, EVENT_PORT, PCI_CONFIG_PORT, PCI_ECAM_SIZE, PCI_ECAM_START,
    PCI_WINDOW32_SIZE, PCI_WINDOW32_START, PCI_WINDOW64_SIZE, POWER_PORT, SERIAL_GSI, SERIAL_PORT,
    pci_window64_start,
};

const OEM: [u8; 6] = *b"VESSEL";
const TABLE: [u8; 8] = *b"VESSELVM";
const REVISION: u32 = 1;

/// VGA is not there, ASPM must not be touched, there is no CMOS clock (table 5.11).
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 4 | 1 << 5;

/// What the tables say of a machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// vCPUs; each one's local APIC has its number.
    pub vcpus: u8,
    /// Slots into which devices can be put while it runs. Every one costs the kernel some time when it starts.
    pub hotplug_slots: Option<RangeInclusive<u8>>,
}

/// Writes all tables.
pub(super) fn write(memory: &Memory, machine: &Machine) -> Result<()> {
    let mut area = Area {
        bytes: vec![0; Rsdp::len().next_multiple_of(16)],
    };
    let dsdt = area.add(&dsdt(machine, memory.size()));
    let tables = [
        area.add(&fadt(dsdt)),
        area.add(&madt(machine.vcpus)),
        area.add(&mcfg()),
        area.add(&spcr()),
    ];
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in tables {
        xsdt.add_entry(table);
    }
    let xsdt = area.add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    if area.bytes.len() as u64 > ACPI_END - ACPI_START {
        return Err(Error::Acpi(area.bytes.len()));
    }
    memory.ram().write_slice(&area.bytes, GuestAddress(ACPI_START))?;
    Ok(())
}

/// Tables one after the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Adds a table; returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend(table);
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn register(port: u16) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // The power button and the sleep button, if any, are devices.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.sleep_control_reg = register(POWER_PORT);
    fadt.sleep_status_reg = register(POWER_PORT + 1);
    fadt.reset_reg = register(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(low(LAPIC_BASE)),
    );
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    // Its own ID is of no meaning since there is no APIC bus.
    madt.add_structure(IoApic::new(0, low(IOAPIC_BASE), 0));
    bytes(&madt)
}

fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(PCI_ECAM_START, 0, 0, 0);
    bytes(&mcfg)
}

/// The serial console (Serial Port Console Redirection Table, revision 2).
fn spcr() -> Vec<u8> {
    let mut spcr = Sdt::new(*b"SPCR", 36, 2, OEM, TABLE, REVISION);
    // A 16550, at a port.
    spcr.append_slice(&[0, 0, 0, 0]);
    spcr.append_slice(&bytes(&register(SERIAL_PORT)));
    // Interrupts come by the I/O APIC.
    spcr.append_slice(&[1 << 1, 0]);
    spcr.append_slice(&SERIAL_GSI.to_le_bytes());
    // 115200 baud, no parity, one stop bit, no flow control, VT-UTF8.
    spcr.append_slice(&[7, 0, 1, 0, 3, 0]);
    // No PCI device.
    spcr.append_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    spcr.append_slice(&[0; 4]);
    spcr.as_slice().to_vec()
}

fn low(address: u64) -> u32 {
    // Both controllers are below 4 GiB.
    #[expect(clippy::cast_possible_truncation)]
    {
        address as u32
    }
}

fn dsdt(machine: &Machine, ram: u64) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    // Power off is the one sleep there is.
    let sleep = Package::new(vec![&SLEEP_TYPE_OFF, &0_u8, &0_u8, &0_u8]);
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &sleep)));
    dsdt.append_slice(&processors(machine.vcpus));
    dsdt.append_slice(&serial());
    dsdt.append_slice(&events(machine));
    dsdt.append_slice(&pci(machine, ram));
    dsdt.as_slice().to_vec()
}

fn processors(vcpus: u8) -> Vec<u8> {
    let mut all = Vec::new();
    for vcpu in 0..vcpus {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &vcpu);
        all.extend(bytes(&Device::new(
            format!("C{vcpu:03}").as_str().into(),
            vec![&hid, &uid],
        )));
    }
    Scope::raw("\\_SB_".into(), all)
}

fn serial() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &1_u8);
    let port = IO::new(SERIAL_PORT, SERIAL_PORT, 0, 8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_GSI);
    let resources = ResourceTemplate::new(vec![&interrupt, &port]);
    let resources = Name::new("_CRS".into(), &resources);
    let device = Device::new("COM1".into(), vec![&hid, &uid, &resources]);
    bytes(&Scope::new("\\_SB_".into(), vec![&device]))
}

/// The generic event device, its registers ([`crate::devices::events`]) and the power button.
fn events(machine: &Machine) -> Vec<u8> {
    let region = OpRegion::new("EVRG".into(), OpRegionSpace::SystemIO, &EVENT_PORT, &16_u8);
    let fields = Field::new(
        "EVRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"EVTS", 32),
            FieldEntry::Named(*b"PCIU", 32),
            FieldEntry::Named(*b"PCID", 32),
            FieldEntry::Named(*b"PCIE", 32),
        ],
    );
    let button_id = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    let button_uid = Name::new("_UID".into(), &0_u8);
    let button = Device::new("PWRB".into(), vec![&button_id, &button_uid]);

    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &0_u8);
    let interrupt = Interrupt::new(true, true, false, false, EVENT_GSI);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let resources = Name::new("_CRS".into(), &resources);
    let (events, pressed, changed) = (Path::new("\\_SB_.EVTS"), Local(1), Local(2));
    let pending = Local(0);
    let take = Store::new(&pending, &events);
    let is_pressed = And::new(&pressed, &pending, &EVENT_POWER_BUTTON);
    let button_path = Path::new("\\_SB_.PWRB");
    let press = Notify::new(&button_path, &0x80_u8);
    let on_press = If::new(&pressed, vec![&press]);
    let is_changed = And::new(&changed, &pending, &EVENT_PCI);
    let change = MethodCall::new("\\_SB_.PCI0.PCNT".into(), vec![]);
    let on_change = If::new(&changed, vec![&change]);
    let mut steps: Vec<&dyn Aml> = vec![&take, &is_pressed, &on_press];
    if machine.hotplug_slots.is_some() {
        steps.extend([&is_changed as &dyn Aml, &on_change]);
    }
    let method = Method::new("_EVT".into(), 1, true, steps);
    let device = Device::new("GED_".into(), vec![&hid, &uid, &resources, &method]);
    bytes(&Scope::new(
        "\\_SB_".into(),
        vec![&region, &fields, &button, &device],
    ))
}

fn pci(machine: &Machine, ram: u64) -> Vec<u8> {
    let window64 = pci_window64_start(ram);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let segment = Name::new("_SEG".into(), &0_u8);
    let uid = Name::new("_UID".into(), &0_u8);
    let buses = AddressSpace::new_bus_number(0_u16, 0_u16);
    let ports = IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, 8);
    let memory32 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low(PCI_WINDOW32_START),
        low(PCI_WINDOW32_START + PCI_WINDOW32_SIZE - 1),
        None,
    );
    let memory64 = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window64,
        window64 + PCI_WINDOW64_SIZE - 1,
        None,
    );
    let resources = ResourceTemplate::new(vec![&buses, &ports, &memory32, &memory64]);
    let resources = Name::new("_CRS".into(), &resources);
    let children: [&dyn Aml; 5] = [&hid, &cid, &segment, &uid, &resources];
    let mut body: Vec<u8> = children.into_iter().flat_map(bytes).collect();
    if let Some(slots) = machine.hotplug_slots.clone() {
        body.extend(hotplug(slots));
    }
    let mut devices = bytes(&Device::new("PCI0".into(), vec![&Raw(&body)]));
    // Kernels believe in ECAM where a motherboard resource says so.
    let board_id = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let board_uid = Name::new("_UID".into(), &0_u8);
    let ecam = Memory32Fixed::new(true, low(PCI_ECAM_START), low(PCI_ECAM_SIZE));
    let board_resources = ResourceTemplate::new(vec![&ecam]);
    let board_resources = Name::new("_CRS".into(), &board_resources);
    devices.extend(bytes(&Device::new(
        "MBRD".into(),
        vec![&board_id, &board_uid, &board_resources],
    )));
    Scope::raw("\\_SB_".into(), devices)
}

/// Slots whose devices come and go, and the method that looks which.
fn hotplug(slots: RangeInclusive<u8>) -> Vec<u8> {
    let mut all = Vec::new();
    for slot in slots.clone() {
        let number = Name::new("_SUN".into(), &slot);
        let address = Name::new("_ADR".into(), &(u32::from(slot) << 16));
        let register = Path::new("\\_SB_.PCIE");
        let bit: u32 = 1 << slot;
        let eject = Store::new(&register, &bit);
        let method = Method::new("_EJ0".into(), 1, true, vec![&eject]);
        all.extend(bytes(&Device::new(
            slot_path(slot),
            vec![&number, &address, &method],
        )));
    }
    let mut steps = Vec::new();
    // 1: a device was put in. 3: one is to be taken out.
    for (register, code) in [("\\_SB_.PCIU", 1_u8), ("\\_SB_.PCID", 3)] {
        steps.extend(bytes(&Store::new(&Local(0), &Path::new(register))));
        for slot in slots.clone() {
            let bit: u32 = 1 << slot;
            let device = slot_path(slot);
            let notify = Notify::new(&device, &code);
            steps.extend(bytes(&And::new(&Local(1), &Local(0), &bit)));
            steps.extend(bytes(&If::new(&Local(1), vec![&notify])));
        }
    }
    all.extend(bytes(&Method::new("PCNT".into(), 0, true, vec![&Raw(&steps)])));
    all
}

/// What a slot's device is called.
fn slot_path(slot: u8) -> Path {
    Path::new(&format!("S{slot:03}"))
}

/// AML that is bytes already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::LOW_RAM_END;

    fn read(memory: &Memory, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.ram().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes[at..at + N].try_into().unwrap()
    }

    fn table(memory: &Memory, at: u64) -> Vec<u8> {
        let length = u32::from_le_bytes(number(&read(memory, at, 8), 4));
        let table = read(memory, at, length.try_into().unwrap());
        assert_eq!(
            table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
            0,
            "checksum"
        );
        table
    }

    #[test]
    fn tables_are_found_from_the_root() {
        for (vcpus, slots) in [(1, None), (4, Some(16..=31)), (255, Some(1..=31))] {
            let memory = Memory::new(LOW_RAM_END + (1 << 20)).unwrap();
            let machine = Machine {
                vcpus,
                hotplug_slots: slots,
            };
            write(&memory, &machine).unwrap();
            let root = read(&memory, ACPI_START, 36);
            assert_eq!(&root[..8], b"RSD PTR ");
            let xsdt = table(&memory, u64::from_le_bytes(number(&root, 24)));
            let mut seen = Vec::new();
            for entry in xsdt[36..].chunks_exact(8) {
                let table = table(&memory, u64::from_le_bytes(number(entry, 0)));
                seen.push(String::from_utf8(table[..4].to_vec()).unwrap());
                match &table[..4] {
                    b"FACP" => {
                        let dsdt = self::table(&memory, u64::from_le_bytes(number(&table, 140)));
                        assert_eq!(&dsdt[..4], b"DSDT");
                        assert_eq!(
                            u32::from_le_bytes(number(&table, 112)) >> 20 & 1,
                            1,
                            "hardware-reduced"
                        );
                        assert_eq!(
                            number::<4>(&table, 244),
                            [1, 8, 0, 1],
                            "sleep control is a port of a byte"
                        );
                    }
                    b"APIC" => assert_eq!(table.len(), 44 + 8 * usize::from(vcpus) + 12),
                    b"SPCR" => assert_eq!(table.len(), 80),
                    _ => {}
                }
            }
            assert_eq!(seen, ["FACP", "APIC", "MCFG", "SPCR"]);
        }
    }
}
