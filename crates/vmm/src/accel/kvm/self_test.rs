//! A guest of five steps that does what every kernel does: `cmpxchg16b`, SSE in kernel mode, `int3` and `iretq`, `sysretq` into a user program, `syscall` out of it.
//!
//! It is entered in 64-bit mode with paging. Each step ends with a write to a port. A KVM that emulates a processor without
//! virtualization stops at one of them, or crawls: a time limit is part of the test.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags};

use super::super::{
    Accelerator, Bus, DescriptorTable, Error, ErrorKind, MemoryRegion, Result, Segment, VcpuHandle,
    VcpuState, VmConfig,
};
use super::Kvm;

/// On a processor with virtualization the guest takes microseconds.
const LIMIT: Duration = Duration::from_millis(50);

/// Where a step's number is written.
const PORT: u16 = 0x80;

/// What ends with each step, for the sentence that complains; the first is to come as far as the first instruction.
const STEPS: [&str; 5] = [
    "64-bit code with paging",
    "cmpxchg16b in kernel mode",
    "SSE instructions in kernel mode",
    "exceptions and iretq",
    "sysretq and syscall of user programs",
];

// Where everything is in the guest's memory.
const SIZE: usize = 0x1_0000;
const PML4: u64 = 0x1000;
const DIRECTORY_POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TASK: u64 = 0x6000;
const CODE: u64 = 0x7000;
const BREAKPOINT: u64 = 0x7060;
const SYSCALL: u64 = 0x7070;
const STACK: u64 = 0xa000;

const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
/// `sysretq` takes data from 8, 64-bit code from 16 bytes behind it.
const USER: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x30;

/// At [`CODE`]:
///
/// ```text
/// 7000  mov al, 1            out 0x80, al        ; step 1
/// 7004  xor eax, eax         xor edx, edx
/// 7008  mov ebx, 1           mov ecx, 2
/// 7012  lock cmpxchg16b [0xb000]                 ; of zeros
/// 701c  jnz 7057             mov al, 2           out 0x80, al
/// 7022  movdqu xmm0, [0xb000]
/// 702b  movdqu [0xb010], xmm0
/// 7034  cmp dword [0xb018], 2
/// 703c  jne 7057             mov al, 3           out 0x80, al
/// 7042  int3                 mov al, 4           out 0x80, al
/// 7047  mov ecx, 0x7055      mov r11d, 2         sysretq
/// 7055  syscall                                  ; in user mode
/// 7057  hlt                  jmp 7057
/// 7060  iretq                                    ; int3 comes here
/// 7070  mov eax, cs          cmp eax, 8          ; syscall comes here
/// 7075  jne 7057             mov al, 5           out 0x80, al       jmp 7057
/// ```
const PROGRAM: [u8; 0x7d] = *b"\
\xb0\x01\xe6\x80\x31\xc0\x31\xd2\xbb\x01\x00\x00\x00\xb9\x02\x00\
\x00\x00\xf0\x48\x0f\xc7\x0c\x25\x00\xb0\x00\x00\x75\x39\xb0\x02\
\xe6\x80\xf3\x0f\x6f\x04\x25\x00\xb0\x00\x00\xf3\x0f\x7f\x04\x25\
\x10\xb0\x00\x00\x83\x3c\x25\x18\xb0\x00\x00\x02\x75\x19\xb0\x03\
\xe6\x80\xcc\xb0\x04\xe6\x80\xb9\x55\x70\x00\x00\x41\xbb\x02\x00\
\x00\x00\x48\x0f\x07\x0f\x05\xf4\xeb\xfd\x00\x00\x00\x00\x00\x00\
\x48\xcf\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\
\x8c\xc8\x83\xf8\x08\x75\xe0\xb0\x05\xe6\x80\xeb\xda";

/// Runs the guest. The error says what this host's KVM does not do.
pub(super) fn run(kvm: &Kvm) -> Result<()> {
    let memory = Memory::new()?;
    let steps = Arc::new(Steps::default());
    let vm = kvm.create_vm(VmConfig {
        vcpus: 1,
        bus: steps.clone(),
    })?;
    let region = MemoryRegion {
        guest_address: 0,
        size: SIZE as u64,
        host_address: memory.address,
        read_only: false,
        log_dirty: false,
    };
    // SAFETY: the mapping lives until the end of this function, the machine does not, and nobody has references into it from here on.
    unsafe { vm.map_memory(0, region)? };
    let mut vcpu = vm.create_vcpu(0)?;
    let mut state = vcpu.state()?;
    enter(&mut state);
    vcpu.set_state(&state)?;
    let handle = vcpu.handle();
    // Nobody has set it: it is made above.
    let _ = steps.handle.set(handle.clone());

    let (done, wait) = mpsc::channel::<()>();
    let (result, timed_out) = std::thread::scope(|scope| {
        let limit = scope.spawn(move || {
            let timed_out = wait.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout);
            if timed_out {
                handle.kick();
            }
            timed_out
        });
        let result = vcpu.run();
        drop(done);
        (result, limit.join().unwrap_or(false))
    });
    let reached = usize::from(steps.reached.load(Ordering::SeqCst));
    drop(vcpu);
    drop(vm);
    let Some(missing) = STEPS.get(reached) else {
        return Ok(());
    };
    let how = match result {
        Err(error) => format!("{error}"),
        Ok(_) if timed_out => format!("it does not come to the end within {} ms", LIMIT.as_millis()),
        Ok(_) => "the guest dies of it".to_owned(),
    };
    Err(Error::new(
        ErrorKind::Unavailable,
        format!(
            "the KVM of this host cannot run kernels: its processor has no virtualization, and what emulates it fails at {missing} ({how})"
        ),
    ))
}

/// Notes how far the guest has come, and stops it at the end.
#[derive(Default)]
struct Steps {
    reached: AtomicU8,
    handle: OnceLock<Arc<dyn VcpuHandle>>,
}

impl Bus for Steps {
    fn read_port(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        let next = self.reached.load(Ordering::SeqCst) + 1;
        if port != PORT || data != [next] {
            return;
        }
        self.reached.store(next, Ordering::SeqCst);
        if usize::from(next) == STEPS.len()
            && let Some(handle) = self.handle.get()
        {
            handle.kick();
        }
    }

    fn read_memory(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_memory(&self, _: u64, _: &[u8]) {}
}

/// The guest's memory, with everything in it.
struct Memory {
    address: *mut u8,
}

impl Memory {
    fn new() -> Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let address =
            address.map_err(|error| Error::system("no memory for a guest that tests KVM", error.into()))?;
        let memory = Self {
            address: address.cast(),
        };
        memory.fill();
        Ok(memory)
    }

    fn fill(&self) {
        const PRESENT: u64 = 7;
        const LARGE: u64 = 1 << 7;
        self.write(PML4, &(DIRECTORY_POINTERS | PRESENT).to_le_bytes());
        self.write(DIRECTORY_POINTERS, &(DIRECTORY | PRESENT).to_le_bytes());
        self.write(DIRECTORY, &(PRESENT | LARGE).to_le_bytes());
        let descriptors: [u64; 8] = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            // The task state: busy, 104 bytes.
            0x0000_8b00_0000_0067 | TASK << 16,
            0,
        ];
        for (index, descriptor) in descriptors.iter().enumerate() {
            self.write(GDT + index as u64 * 8, &descriptor.to_le_bytes());
        }
        // An interrupt gate, present.
        let gate = BREAKPOINT & 0xffff | u64::from(KERNEL_CODE) << 16 | 0x8e << 40;
        self.write(IDT + 3 * 16, &gate.to_le_bytes());
        self.write(TASK + 4, &STACK.to_le_bytes());
        self.write(CODE, &PROGRAM);
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        assert!(at as usize + bytes.len() <= SIZE, "within the guest's memory");
        // SAFETY: within the mapping, which nobody else has yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.add(at as usize), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it is this value's own mapping; the machine that had it is gone.
        let _ = unsafe { rustix::mm::munmap(self.address.cast(), SIZE) };
    }
}

/// 64-bit mode, paging, the tables of [`Memory::fill`].
fn enter(state: &mut VcpuState) {
    let registers = &mut state.registers;
    let segment = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    };
    let data = segment(KERNEL_DATA, 0xc093);
    registers.segments = [data; 6];
    registers.segments[1] = segment(KERNEL_CODE, 0xa09b);
    registers.task = Segment {
        selector: TASK_SELECTOR,
        base: TASK,
        limit: 0x67,
        attributes: 0x8b,
    };
    registers.gdt = DescriptorTable { base: GDT, limit: 63 };
    registers.idt = DescriptorTable {
        base: IDT,
        limit: 4 * 16 - 1,
    };
    // PE, MP, ET, NE, WP, PG.
    registers.cr0 = 0x8001_0033;
    registers.cr3 = PML4;
    // PAE, OSFXSR, OSXMMEXCPT.
    registers.cr4 = 0x620;
    registers.rip = CODE;
    registers.rflags = 2;
    registers.gpr[4] = STACK;
    for (number, value) in [
        // EFER: SCE, LME, LMA. STAR and LSTAR. SFMASK: all but the bit that is always set.
        (0xc000_0080, 0x501),
        (0xc000_0081, u64::from(KERNEL_CODE) << 32 | u64::from(USER) << 48),
        (0xc000_0082, SYSCALL),
        (0xc000_0084, 0x3f_7fd5),
    ] {
        state.msrs.retain(|(other, _)| *other != number);
        state.msrs.push((number, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_where_its_tables_say() {
        assert_eq!(PROGRAM[0x60..0x62], [0x48, 0xcf], "iretq at BREAKPOINT");
        assert_eq!(PROGRAM[0x70..0x72], [0x8c, 0xc8], "SYSCALL");
        assert_eq!(PROGRAM[0x47..0x4c], [0xb9, 0x55, 0x70, 0, 0], "the user program");
        assert_eq!(PROGRAM[0x55..0x57], [0x0f, 0x05], "is a syscall");
    }
}
