//! A machine of a test: a mebibyte of memory, a bus that takes notes, guests made of assembled pieces.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use iced_x86::code_asm::CodeAssembler;
use vessel_vmm::accel::{
    Accelerator, Bus, DescriptorTable, Exit, Kvm, MemoryRegion, Segment, Soft, Vcpu, VcpuHandle, VcpuState,
    Vm, VmConfig,
};

/// Bytes of memory.
pub const SIZE: u64 = 1 << 20;
/// Where programs begin.
pub const CODE: u64 = 0x1000;
/// Where interrupt handlers are, 256 bytes apart.
pub const HANDLERS: u64 = 0x2000;
/// Free for data.
pub const DATA: u64 = 0x1_0000;
/// Where stacks begin, downwards.
pub const STACK: u64 = 0x7000;
const GDT: u64 = 0x8000;
pub const IDT: u64 = 0x9000;
const TASK: u64 = 0xa000;
pub const PAGE_TABLES: u64 = 0x8_0000;

/// A write here ends the guest: every vCPU comes back.
pub const DONE: u16 = 0x10;
/// Writes here are noted. (0x20 and 0x21 are those of the PIC that KVM has.)
pub const NOTE: u16 = 0x50;
/// Reads here give the next of the bench's inputs.
pub const INPUT: u16 = 0x60;

const LIMIT: Duration = Duration::from_secs(30);

/// What a guest needs beyond what every KVM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Little enough for a KVM that emulates.
    Little,
    /// A processor that does everything a kernel wants of it.
    Everything,
}

/// Runs a test on every accelerator that can.
pub fn on_each(needs: Needs, test: impl Fn(Arc<dyn Accelerator>)) {
    eprintln!("on soft");
    test(Arc::new(Soft::new()));
    match kvm(needs) {
        Ok(kvm) => {
            eprintln!("on kvm");
            test(kvm);
        }
        Err(why) => eprintln!("not on kvm: {why}"),
    }
}

/// KVM, if it is there and does what is needed.
pub fn kvm(needs: Needs) -> Result<Arc<dyn Accelerator>, String> {
    let kvm = match needs {
        Needs::Little => Kvm::without_self_test(),
        Needs::Everything => Kvm::new(),
    };
    Ok(Arc::new(kvm.map_err(|error| error.to_string())?))
}

/// What the guest has done, and what it is to read.
#[derive(Default)]
pub struct Recorder {
    notes: Mutex<Vec<(u16, Vec<u8>)>>,
    stores: Mutex<Vec<(u64, Vec<u8>)>>,
    inputs: Mutex<Vec<u8>>,
    handles: Mutex<BTreeMap<u8, Arc<dyn VcpuHandle>>>,
    done: AtomicBool,
}

impl Bus for Recorder {
    fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port == INPUT {
            let mut inputs = self.inputs.lock().unwrap();
            for byte in data {
                *byte = if inputs.is_empty() { 0 } else { inputs.remove(0) };
            }
        }
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        if port == DONE {
            self.done.store(true, Ordering::SeqCst);
            for handle in self.handles.lock().unwrap().values() {
                handle.kick();
            }
        } else {
            self.notes.lock().unwrap().push((port, data.to_vec()));
        }
    }

    fn read_memory(&self, address: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = (address as u8).wrapping_add(index as u8);
        }
    }

    fn write_memory(&self, address: u64, data: &[u8]) {
        self.stores.lock().unwrap().push((address, data.to_vec()));
    }
}

/// A machine.
pub struct Bench {
    pub vm: Arc<dyn Vm>,
    pub recorder: Arc<Recorder>,
    memory: *mut u8,
}

// SAFETY: the pointer is only used to copy in and out, as other threads of the guest do.
unsafe impl Sync for Bench {}

impl Drop for Bench {
    fn drop(&mut self) {
        for slot in 0..4 {
            let _ = self.vm.unmap_memory(slot);
        }
        // SAFETY: the mapping that `new` made, which no slot has any more.
        unsafe { libc::munmap(self.memory.cast(), SIZE as usize) };
    }
}

impl Bench {
    /// With memory in slot 0.
    pub fn new(accelerator: &Arc<dyn Accelerator>, vcpus: u8) -> Self {
        let bench = Self::without_memory(accelerator, vcpus);
        bench.map(0, 0, 0, SIZE, false, false);
        bench
    }

    /// With memory that no slot has yet.
    pub fn without_memory(accelerator: &Arc<dyn Accelerator>, vcpus: u8) -> Self {
        let recorder = Arc::new(Recorder::default());
        let bus = recorder.clone();
        let vm = accelerator.create_vm(VmConfig { vcpus, bus }).unwrap();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        Self {
            vm,
            recorder,
            memory: memory.cast(),
        }
    }

    /// Gives the guest a piece of the memory.
    pub fn map(&self, slot: u32, guest: u64, offset: u64, size: u64, read_only: bool, log_dirty: bool) {
        let region = MemoryRegion {
            guest_address: guest,
            size,
            host_address: self.memory.wrapping_add(offset as usize),
            read_only,
            log_dirty,
        };
        // SAFETY: within the mapping, which lives until all slots are gone.
        unsafe { self.vm.map_memory(slot, region) }.unwrap();
    }

    /// Where the memory is.
    pub fn host(&self, offset: u64) -> *mut u8 {
        self.memory.wrapping_add(offset as usize)
    }

    /// Writes to the memory without telling anybody.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at + bytes.len() as u64 <= SIZE);
        // SAFETY: within the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host(at), bytes.len()) };
    }

    /// Reads from it.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        assert!(at + N as u64 <= SIZE);
        let mut bytes = [0; N];
        // SAFETY: within the mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.host(at), bytes.as_mut_ptr(), N) };
        bytes
    }

    pub fn read_u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    pub fn read_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }

    /// Puts a program there.
    pub fn assemble(
        &self,
        bits: u32,
        at: u64,
        program: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
    ) {
        let mut assembler = CodeAssembler::new(bits).unwrap();
        program(&mut assembler).unwrap();
        self.write(at, &assembler.assemble(at).unwrap());
    }

    /// What the next reads of [`INPUT`] give.
    pub fn input(&self, bytes: &[u8]) {
        self.recorder.inputs.lock().unwrap().extend(bytes);
    }

    /// What the guest wrote to ports since the last call.
    pub fn notes(&self) -> Vec<(u16, Vec<u8>)> {
        std::mem::take(&mut *self.recorder.notes.lock().unwrap())
    }

    /// The bytes it wrote to [`NOTE`].
    pub fn noted(&self) -> Vec<u8> {
        let notes = self.notes();
        assert!(notes.iter().all(|(port, _)| *port == NOTE), "{notes:x?}");
        notes.into_iter().flat_map(|(_, data)| data).collect()
    }

    /// What it wrote where no memory is.
    pub fn stores(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut *self.recorder.stores.lock().unwrap())
    }

    /// A vCPU that [`DONE`] makes come back, in the state after reset but for what `prepare` does.
    pub fn vcpu(&self, index: u8, prepare: impl FnOnce(&mut VcpuState)) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(index).unwrap();
        let mut state = vcpu.state().unwrap();
        prepare(&mut state);
        vcpu.set_state(&state).unwrap();
        let handle = vcpu.handle();
        self.recorder.handles.lock().unwrap().insert(index, handle);
        vcpu
    }

    /// Kicks all vCPUs.
    pub fn stop(&self) {
        for handle in self.recorder.handles.lock().unwrap().values() {
            handle.kick();
        }
    }

    /// Runs it to the guest's end.
    pub fn finish(&self, vcpu: &mut Box<dyn Vcpu>) {
        assert_eq!(run(vcpu), Exit::Kicked);
        assert!(
            self.recorder.done.swap(false, Ordering::SeqCst),
            "the guest does not come to its end; notes {:x?}, state {:x?}",
            self.notes(),
            vcpu.state().unwrap().registers,
        );
    }

    /// Runs it for a while; whether the guest comes to its end meanwhile does not matter.
    pub fn settle(&self, vcpu: &mut Box<dyn Vcpu>, time: Duration) {
        let over = AtomicBool::new(false);
        let handle = vcpu.handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                over.store(true, Ordering::SeqCst);
                handle.kick();
            });
            while !over.load(Ordering::SeqCst) {
                assert_eq!(run(vcpu), Exit::Kicked);
            }
        });
        // The last kick may be still to come.
        vcpu.handle().kick();
        assert_eq!(run(vcpu), Exit::Kicked);
        self.recorder.done.store(false, Ordering::SeqCst);
    }

    /// The whole memory.
    pub fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        // SAFETY: the mapping has as many bytes.
        unsafe { std::ptr::copy_nonoverlapping(self.memory, bytes.as_mut_ptr(), bytes.len()) };
        bytes
    }

    /// Runs several, each on a thread, to the end of one of them.
    pub fn finish_all(&self, vcpus: &mut [Box<dyn Vcpu>]) {
        thread::scope(|scope| {
            for vcpu in vcpus.iter_mut() {
                scope.spawn(move || assert_eq!(run(vcpu), Exit::Kicked));
            }
        });
        assert!(
            self.recorder.done.swap(false, Ordering::SeqCst),
            "the guest does not come to its end; notes {:x?}",
            self.notes(),
        );
    }
}

/// Runs a vCPU, but not for ever.
pub fn run(vcpu: &mut Box<dyn Vcpu>) -> Exit {
    let handle = vcpu.handle();
    let (done, wait) = mpsc::channel::<()>();
    let (exit, stalled) = thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let stalled = wait.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
            if stalled {
                handle.kick();
            }
            stalled
        });
        let exit = vcpu.run().unwrap();
        drop(done);
        (exit, watch.join().unwrap())
    });
    assert!(
        !stalled,
        "it does not come back by itself; {:x?}",
        vcpu.state().unwrap()
    );
    exit
}

pub fn set_msr(state: &mut VcpuState, number: u32, value: u64) {
    state.msrs.retain(|(other, _)| *other != number);
    state.msrs.push((number, value));
}

pub fn msr(state: &VcpuState, number: u32) -> Option<u64> {
    let found = state.msrs.iter().find(|(other, _)| *other == number);
    found.map(|(_, value)| *value)
}

/// Real mode at [`CODE`], all segments at zero.
pub fn real_mode(state: &mut VcpuState) {
    for segment in &mut state.registers.segments {
        segment.selector = 0;
        segment.base = 0;
    }
    state.registers.rip = CODE;
    state.registers.rflags = 2;
    state.registers.gpr[4] = STACK;
}

fn flat(selector: u16, attributes: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    }
}

/// The descriptors of [`protected_mode`] (8, 16), [`long_mode`] (0x28, 16), its user programs (0x23 data, 0x33 code) and the task (0x40).
pub fn write_descriptors(bench: &Bench) {
    let descriptors: [u64; 10] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_9b00_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        0x0000_8b00_0000_0067 | TASK << 16,
        0,
    ];
    for (index, descriptor) in (0..).zip(descriptors) {
        bench.write(GDT + index * 8, &u64::to_le_bytes(descriptor));
    }
}

/// 32-bit protected mode at [`CODE`] without paging. Vector `n` is handled at `HANDLERS + 256 * (n & 15)`.
pub fn protected_mode(bench: &Bench, state: &mut VcpuState) {
    write_descriptors(bench);
    for vector in 0..256_u64 {
        let handler = HANDLERS + 256 * (vector & 15);
        let gate = handler & 0xffff | 8 << 16 | 0x8e << 40 | (handler >> 16) << 48;
        bench.write(IDT + vector * 8, &gate.to_le_bytes());
    }
    let registers = &mut state.registers;
    registers.segments = [flat(16, 0xc093); 6];
    registers.segments[1] = flat(8, 0xc09b);
    registers.gdt = DescriptorTable { base: GDT, limit: 79 };
    registers.idt = DescriptorTable {
        base: IDT,
        limit: 0x7ff,
    };
    registers.cr0 = 0x31;
    registers.rip = CODE;
    registers.rflags = 2;
    registers.gpr[4] = STACK;
}

/// 64-bit mode at [`CODE`]; the first 2 MiB and the top GiB below 4 GiB are mapped to themselves, for user programs, too. Handlers as in
/// [`protected_mode`].
pub fn long_mode(bench: &Bench, state: &mut VcpuState) {
    protected_mode(bench, state);
    write_page_tables(bench);
    for vector in 0..32_u64 {
        let handler = HANDLERS + 256 * (vector & 15);
        let gate = handler & 0xffff | 0x28 << 16 | 0x8e << 40 | (handler >> 16) << 48;
        bench.write(IDT + vector * 16, &gate.to_le_bytes());
        bench.write(IDT + vector * 16 + 8, &[0; 8]);
    }
    bench.write(TASK + 4, &STACK.to_le_bytes());
    let registers = &mut state.registers;
    registers.segments[1] = flat(0x28, 0xa09b);
    registers.task = Segment {
        selector: 0x40,
        base: TASK,
        limit: 0x67,
        attributes: 0x8b,
    };
    registers.idt.limit = 32 * 16 - 1;
    registers.cr0 = 0x8001_0033;
    registers.cr3 = PAGE_TABLES;
    registers.cr4 = 0x620;
    set_msr(state, 0xc000_0080, 0x501);
}

pub fn write_page_tables(bench: &Bench) {
    let (pointers, low, high) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000, PAGE_TABLES + 0x3000);
    bench.write(PAGE_TABLES, &(pointers | 7).to_le_bytes());
    bench.write(pointers, &(low | 7).to_le_bytes());
    bench.write(pointers + 3 * 8, &(high | 7).to_le_bytes());
    bench.write(low, &0x87_u64.to_le_bytes());
    for entry in 0..512_u64 {
        let page = ((3 << 30) + (entry << 21)) | 0x87;
        bench.write(high + entry * 8, &page.to_le_bytes());
    }
}
