//! Machines from their first instruction to their end, with guests of a few instructions on the software processor.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vessel_vmm::accel::Soft;
use vessel_vmm::devices::virtio::block::Engine;
use vessel_vmm::devices::virtio::rate::RateLimits;
use vessel_vmm::devices::virtio::rng::Rng;
use vessel_vmm::machine::{
    BlockConfig, Config, Descriptor, DeviceConfig, DiskFormat, End, Error, Machine, SerialConfig,
};
use vm_memory::{Bytes, GuestAddress};

/// One test after the other: one of them counts what the process has.
static ALONE: Mutex<()> = Mutex::new(());

const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY: u64 = 16 << 20;
const COUNTER: u64 = 0x20_0000;

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Halts for ever.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

/// `inc dword [COUNTER]`, again and again.
const COUNT: &[u8] = &[0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8];

fn power_off() -> Vec<u8> {
    [&out(0x600, 0x34), HALT].concat()
}

/// An ELF kernel of one segment at 1 MiB with Xen's note, entered at its first byte.
fn kernel(code: &[u8]) -> File {
    let mut image = vec![0; 64 + 2 * 56];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01");
    put(16, &2_u16.to_le_bytes());
    put(18, &62_u16.to_le_bytes());
    put(24, &0x10_0000_u64.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(54, &56_u16.to_le_bytes());
    put(56, &2_u16.to_le_bytes());
    let length = code.len() as u64;
    let segments = [
        (64, 1_u32, [176, 0, 0x10_0000, length, length]),
        (120, 4, [176 + length, 0, 0, 20, 20]),
    ];
    for (at, kind, fields) in segments {
        put(at, &kind.to_le_bytes());
        for (field, value) in [8, 16, 24, 32, 40].into_iter().zip(fields) {
            put(at + field, &u64::to_le_bytes(value));
        }
    }
    image.extend(code);
    for word in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x10_0000] {
        image.extend(word.to_le_bytes());
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file
}

fn config(kernel: &File, devices: Vec<DeviceConfig>) -> Config {
    Config {
        memory: MEMORY,
        vcpus: 2,
        kernel: Descriptor(kernel.as_raw_fd()),
        initramfs: None,
        command_line: String::new(),
        serial: None,
        hotplug: true,
        devices,
    }
}

fn disk(file: &File) -> DeviceConfig {
    DeviceConfig::Block(BlockConfig {
        file: Descriptor(file.as_raw_fd()),
        format: DiskFormat::Raw,
        backing: Vec::new(),
        read_only: false,
        serial: "test".to_owned(),
        queues: 2,
        engine: Engine::Auto,
        limits: RateLimits::default(),
    })
}

fn run(code: &[u8]) -> End {
    let kernel = kernel(code);
    let image = tempfile::tempfile().unwrap();
    image.set_len(1 << 20).unwrap();
    let machine = Machine::new(
        &Soft::new(),
        &config(&kernel, vec![disk(&image), DeviceConfig::Rng]),
    )
    .unwrap();
    machine.start().unwrap();
    machine.wait_timeout(PATIENCE).expect("the machine has not ended")
}

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_guest_ends_its_machine() {
    let _alone = alone();
    assert_eq!(run(&power_off()), End::PowerOff);
    assert_eq!(run(&[&out(0x602, 1), HALT].concat()), End::Reset);
    assert_eq!(run(&[&out(0x64, 0xfe), HALT].concat()), End::Reset);
    // An exception without a descriptor table for it.
    assert_eq!(run(&[0x0f, 0x0b]), End::Reset);
}

#[test]
fn the_serial_line_is_written_before_the_end() {
    let _alone = alone();
    let text = b"hello from the guest\n";
    let code: Vec<u8> = text
        .iter()
        .flat_map(|byte| out(0x3f8, *byte))
        .chain(power_off())
        .collect();
    let kernel = kernel(&code);
    let mut output = tempfile::tempfile().unwrap();
    let mut config = config(&kernel, Vec::new());
    config.serial = Some(SerialConfig {
        input: None,
        output: Descriptor(output.as_raw_fd()),
    });
    let machine = Machine::new(&Soft::new(), &config).unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait_timeout(PATIENCE), Some(End::PowerOff));
    drop(machine);
    output.rewind().unwrap();
    let mut seen = Vec::new();
    output.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, text);
}

#[test]
fn a_guest_that_writes_everywhere_harms_nobody() {
    let _alone = alone();
    // Every port, with 0x5a, which no register takes for the end: mov edx, 0xffff; mov al, 0x5a; out dx, al; dec edx; jns.
    let mut code = vec![0xba, 0xff, 0xff, 0x00, 0x00, 0xb0, 0x5a, 0xee, 0x4a, 0x79, 0xfa];
    // Reads and writes of configuration space, the devices' registers, the ACPI tables and where nothing is, four bytes at a time.
    for (start, length) in [
        (0xe000_0000_u32, 0x2_0000_u32),
        (0xc000_0000, 0x1_0000),
        (0xd000_0000, 0x1000),
        (0xfec0_1000, 0x1000),
    ] {
        for value in [0_u32, u32::MAX, 0x1234_5678] {
            // mov edi, start; mov ecx, count; mov eax, value
            code.push(0xbf);
            code.extend(start.to_le_bytes());
            code.push(0xb9);
            code.extend((length / 4).to_le_bytes());
            code.push(0xb8);
            code.extend(value.to_le_bytes());
            // mov ebx, [edi]; mov [edi], eax; add edi, 4; dec ecx; jnz
            code.extend([0x8b, 0x1f, 0x89, 0x07, 0x83, 0xc7, 0x04, 0x49, 0x75, 0xf6]);
        }
    }
    code.extend(power_off());
    assert_eq!(run(&code), End::PowerOff);
}

#[test]
fn a_pause_stops_the_guest_and_it_goes_on() {
    let _alone = alone();
    let kernel = kernel(COUNT);
    let machine = Machine::new(&Soft::new(), &config(&kernel, vec![DeviceConfig::Rng])).unwrap();
    let counter = || {
        machine
            .memory()
            .ram()
            .read_obj::<u32>(GuestAddress(COUNTER))
            .unwrap()
    };
    let wait_for_more = |than: u32| {
        let end = Instant::now() + PATIENCE;
        while counter() == than {
            assert!(Instant::now() < end, "the guest does not run");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    machine.start().unwrap();
    wait_for_more(0);
    for _ in 0..5 {
        machine.pause();
        let stopped = counter();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(counter(), stopped);
        machine.resume();
        wait_for_more(stopped);
    }
    assert_eq!(machine.wait_timeout(Duration::from_millis(1)), None);
    machine.pause();
    machine.end();
    assert_eq!(machine.wait(), End::Asked);
}

#[test]
fn devices_come_while_it_runs() {
    let _alone = alone();
    let kernel = kernel(COUNT);
    let machine = Machine::new(&Soft::new(), &config(&kernel, vec![DeviceConfig::Rng])).unwrap();
    machine.start().unwrap();
    let slot = machine.add_device("late", Box::new(Rng), true).unwrap();
    assert!(slot >= 20, "{slot}");
    let slots: Vec<u8> = machine.devices().iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots, [1, slot]);
    for _ in 0..11 {
        machine.add_device("later", Box::new(Rng), true).unwrap();
    }
    assert!(matches!(
        machine.add_device("too many", Box::new(Rng), true),
        Err(Error::Pci(_))
    ));
}

#[test]
fn a_guest_lets_go_of_a_device() {
    let _alone = alone();
    // Ejects every slot, then counts: mov dx, 0x61c; mov eax, -1; out dx, eax.
    let code = [
        &[0x66, 0xba, 0x1c, 0x06, 0xb8, 0xff, 0xff, 0xff, 0xff, 0xef][..],
        COUNT,
    ]
    .concat();
    let kernel = kernel(&code);
    let machine = Machine::new(&Soft::new(), &config(&kernel, vec![DeviceConfig::Rng])).unwrap();
    machine.add_device("late", Box::new(Rng), true).unwrap();
    machine.start().unwrap();
    let end = Instant::now() + PATIENCE;
    while machine.devices().len() > 1 {
        assert!(Instant::now() < end, "the device has stayed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(machine.devices()[0].0, 1, "what was there from the start stays");
}

#[test]
fn nothing_is_left_of_a_machine() {
    let _alone = alone();
    let count = |directory: &str| std::fs::read_dir(directory).unwrap().count();
    let mapped = || {
        std::fs::read_to_string("/proc/self/maps")
            .unwrap()
            .matches("memfd:guest")
            .count()
    };
    let kernel = kernel(COUNT);
    let image = tempfile::tempfile().unwrap();
    image.set_len(1 << 20).unwrap();
    let once = || {
        let devices = vec![disk(&image), DeviceConfig::Rng];
        let machine = Machine::new(&Soft::new(), &config(&kernel, devices)).unwrap();
        machine.start().unwrap();
        machine.add_device("late", Box::new(Rng), true).unwrap();
        drop(machine);
        // One that was never started, too.
        drop(Machine::new(&Soft::new(), &config(&kernel, vec![DeviceConfig::Rng])).unwrap());
    };
    once();
    let now = || (count("/proc/self/fd"), count("/proc/self/task"), mapped());
    let before = now();
    for _ in 0..5 {
        once();
    }
    // The thread of the guest's timers ends by itself, soon after its machine.
    let end = Instant::now() + PATIENCE;
    let mut after = now();
    while (after.0 > before.0 || after.1 > before.1 || after.2 > 0) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
        after = now();
    }
    assert!(
        after.0 <= before.0 && after.1 <= before.1,
        "{after:?}, before {before:?}"
    );
    assert_eq!(after.2, 0, "memory of guests is still mapped");
}

#[test]
fn configurations_are_json_and_wrong_ones_are_told() {
    let _alone = alone();
    let text = r#"{
        "memory": 268435456, "vcpus": 2, "kernel": 3, "initramfs": 4, "command_line": "quiet",
        "serial": {"output": 1},
        "devices": [
            {"type": "block", "file": 5, "read_only": true, "limits": {"bytes": {"per_second": 1048576}}},
            {"type": "rng"},
            {"type": "net", "taps": [6, 7], "mac": "52:54:00:12:34:56"}
        ]
    }"#;
    let parsed: Config = serde_json::from_str(text).unwrap();
    assert_eq!(parsed.devices.len(), 3);
    let again: Config = serde_json::from_str(&serde_json::to_string(&parsed).unwrap()).unwrap();
    assert_eq!(format!("{again:?}"), format!("{parsed:?}"));
    assert!(serde_json::from_str::<Config>(&text.replace("rng", "zip")).is_err());
    assert!(serde_json::from_str::<Config>(&text.replace("quiet\"", "quiet\", \"memry\": 1")).is_err());

    let kernel = kernel(COUNT);
    let sound = config(&kernel, Vec::new());
    let told = |change: &dyn Fn(&mut Config)| {
        let mut config = sound.clone();
        change(&mut config);
        let machine = Machine::new(&Soft::new(), &config);
        let error = machine.and_then(|machine| machine.start()).unwrap_err();
        error.to_string()
    };
    assert!(told(&|config| config.vcpus = 0).contains("no vCPU"));
    assert!(told(&|config| config.memory = 12345).contains("12345 bytes of memory"));
    assert!(told(&|config| config.kernel = Descriptor(-1)).contains("cannot read the kernel"));
    assert!(told(&|config| config.kernel = Descriptor(9999)).contains("cannot read the kernel"));
    assert!(told(&|config| config.devices = vec![DeviceConfig::Rng; 32]).contains("32 devices"));
}
