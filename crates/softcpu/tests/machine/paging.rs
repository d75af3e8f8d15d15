//! Page tables: faults, their error codes, accessed and dirty bits.

use iced_x86::code_asm::*;

use crate::machine::page::{ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITE};
use crate::machine::{Machine, at, both};

const PAGE: u64 = 0x9_0000;

/// What is done to [`PAGE`].
#[derive(Clone, Copy, Debug)]
enum Access {
    Read,
    Write,
    Modify,
    Locked,
    Push,
    Vector,
    String,
    Execute,
}

fn perform(machine: &mut Machine, access: Access, user: bool) -> u64 {
    let address = if user { at::USER_CODE } else { at::CODE };
    // The stack may be what faults.
    machine.gate(3, at::HANDLERS + 3, 1);
    machine.gate(14, at::HANDLERS + 14, 1);
    if user {
        machine.user();
    }
    machine.code(address, 64, |a| {
        a.mov(rbx, PAGE + 8).unwrap();
        match access {
            Access::Read => a.mov(rax, qword_ptr(rbx)),
            Access::Write => a.mov(qword_ptr(rbx), rax),
            Access::Modify => a.add(qword_ptr(rbx), 1),
            Access::Locked => a.lock().xadd(qword_ptr(rbx), rax),
            Access::Push => {
                a.lea(rsp, ptr(rbx + 8)).unwrap();
                a.push(rax)
            }
            Access::Vector => a.movups(xmmword_ptr(rbx), xmm0),
            Access::String => {
                a.mov(rdi, rbx).unwrap();
                a.stosq()
            }
            Access::Execute => a.jmp(rbx),
        }
        .unwrap();
        a.int3().unwrap();
    });
    address
}

/// The vector, the error code and CR2 of an access to a page with certain rights.
fn fault(machine: &mut Machine, rights: u64, access: Access, user: bool) -> Option<(u64, u64)> {
    machine.protect(PAGE, rights);
    machine.write(PAGE + 8, &[0xcc]);
    perform(machine, access, user);
    let state = machine.run(&mut machine.cpu(0));
    let trap = machine.trap(&state);
    match trap.vector {
        3 => None,
        14 => Some((trap.error, state.cr2)),
        other => panic!("vector {other}"),
    }
}

#[test]
fn error_codes_say_what_was_wrong() {
    use Access::{Execute, Locked, Modify, Push, Read, String, Vector, Write};
    let writes = [Write, Modify, Locked, Push, Vector, String];
    for translated in [false, true] {
        let check = |rights: u64, access: Access, user: bool, expected: Option<u64>| {
            let mut machine = Machine::new(translated);
            let found = fault(&mut machine, rights, access, user);
            let expected = expected.map(|code| (code, PAGE + 8));
            assert_eq!(found, expected, "{access:?} of rights {rights:#x}, user {user}");
        };
        for user in [false, true] {
            let mode = if user { 4 } else { 0 };
            let needed = if user { USER } else { 0 };
            check(0, Read, user, Some(mode));
            check(PRESENT | needed, Read, user, None);
            check(0, Execute, user, Some(mode | 16));
            check(PRESENT | needed, Execute, user, None);
            check(PRESENT | needed | NO_EXECUTE, Execute, user, Some(mode | 17));
            check(PRESENT | needed | NO_EXECUTE, Read, user, None);
            // A reserved bit.
            check(PRESENT | needed | 1 << 51, Read, user, Some(mode | 9));
            for access in writes {
                check(0, access, user, Some(mode | 2));
                check(PRESENT | needed, access, user, Some(mode | 3));
                check(PRESENT | WRITE | needed, access, user, None);
            }
        }
        // The supervisor's pages are not the user's; the other way round they are, without SMAP.
        check(PRESENT | WRITE, Read, true, Some(5));
        check(PRESENT | WRITE, Write, true, Some(7));
        check(PRESENT | WRITE | USER, Write, false, None);
    }
}

#[test]
fn without_wp_the_supervisor_writes_what_is_read_only() {
    both(|mut machine| {
        machine.state.cr0 &= !(1 << 16);
        assert_eq!(fault(&mut machine, PRESENT, Access::Write, false), None);
    });
}

#[test]
fn smep_keeps_the_supervisor_from_executing_the_users_pages() {
    both(|mut machine| {
        machine.state.cr4 |= 1 << 20;
        let found = fault(&mut machine, PRESENT | USER, Access::Execute, false);
        assert_eq!(found, Some((17, PAGE + 8)));
    });
}

#[test]
fn accessed_and_dirty_bits_follow_what_is_done() {
    both(|machine| {
        machine.protect(PAGE, PRESENT | WRITE);
        machine.protect(PAGE + 0x1000, PRESENT | WRITE);
        machine.protect(PAGE + 0x2000, PRESENT | WRITE);
        machine.execute(|a| {
            a.mov(rbx, PAGE).unwrap();
            a.mov(rax, qword_ptr(rbx)).unwrap();
            // Read first, written later: the dirty bit must still come.
            a.mov(rax, qword_ptr(rbx + 0x1000)).unwrap();
            a.mov(qword_ptr(rbx + 0x1000), rax).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(machine.entry(PAGE) & (ACCESSED | DIRTY), ACCESSED);
        assert_eq!(
            machine.entry(PAGE + 0x1000) & (ACCESSED | DIRTY),
            ACCESSED | DIRTY
        );
        assert_eq!(machine.entry(PAGE + 0x2000) & (ACCESSED | DIRTY), 0);
        assert_ne!(machine.get(at::DIRECTORY) & ACCESSED, 0);
    });
}

#[test]
fn a_page_that_changes_is_seen_after_invlpg() {
    both(|machine| {
        machine.put(PAGE, 1);
        machine.put(PAGE + 0x1000, 2);
        let state = machine.execute(|a| {
            a.mov(rbx, PAGE).unwrap();
            a.mov(rcx, at::TABLE + PAGE / 4096 * 8).unwrap();
            a.mov(rax, qword_ptr(rbx)).unwrap();
            a.mov(rdx, PAGE + 0x1000 + 3).unwrap();
            a.mov(qword_ptr(rcx), rdx).unwrap();
            a.invlpg(ptr(rbx)).unwrap();
            a.mov(rsi, qword_ptr(rbx)).unwrap();
            // And by a load of CR3.
            a.mov(rdx, PAGE + 3).unwrap();
            a.mov(qword_ptr(rcx), rdx).unwrap();
            a.mov(rdx, cr3).unwrap();
            a.mov(cr3, rdx).unwrap();
            a.mov(rdi, qword_ptr(rbx)).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!((state.gpr[0], state.gpr[6], state.gpr[7]), (1, 2, 1));
    });
}

#[test]
fn an_access_across_two_pages_does_nothing_when_the_second_faults() {
    both(|machine| {
        machine.put(PAGE + 0xff8, 0x1111_1111_1111_1111);
        machine.protect(PAGE + 0x1000, 0);
        let state = machine.execute(|a| {
            a.mov(rbx, PAGE + 0xffc).unwrap();
            a.mov(rax, 0x2222_2222_2222_2222_u64).unwrap();
            a.mov(qword_ptr(rbx), rax).unwrap();
            a.hlt().unwrap();
        });
        let trap = machine.trap(&state);
        assert_eq!((trap.vector, trap.error, state.cr2), (14, 2, PAGE + 0x1000));
        assert_eq!(machine.get(PAGE + 0xff8), 0x1111_1111_1111_1111);
    });
}

#[test]
fn a_string_instruction_goes_on_after_a_fault_in_its_middle() {
    both(|machine| {
        machine.protect(PAGE + 0x1000, 0);
        // The handler maps the page and returns.
        let handler = at::CODE + 0x1000;
        machine.gate(14, handler, 0);
        machine.code(handler, 64, |a| {
            a.push(rax).unwrap();
            a.mov(rax, at::TABLE + (PAGE + 0x1000) / 4096 * 8).unwrap();
            a.mov(qword_ptr(rax), (PAGE + 0x1000 + 3) as i32).unwrap();
            a.inc(r15).unwrap();
            a.pop(rax).unwrap();
            a.add(rsp, 8).unwrap();
            a.iretq().unwrap();
        });
        let state = machine.execute(|a| {
            a.mov(rdi, PAGE + 0xf00).unwrap();
            a.mov(rcx, 0x200_u64).unwrap();
            a.mov(eax, 0x5a).unwrap();
            a.xor(r15, r15).unwrap();
            a.rep().stosb().unwrap();
            a.hlt().unwrap();
        });
        assert_eq!((state.gpr[1], state.gpr[7], state.gpr[15]), (0, PAGE + 0x1100, 1));
        assert_eq!(machine.get(PAGE + 0x10f8), 0x5a5a_5a5a_5a5a_5a5a);
    });
}

#[test]
fn addresses_that_are_not_canonical_are_a_protection_fault() {
    both(|mut machine| {
        const WRONG: u64 = 0x8000_0000_0000;
        let trap = machine.trapped(|a| {
            a.mov(rbx, WRONG).unwrap();
            a.mov(rax, qword_ptr(rbx)).unwrap();
        });
        assert_eq!((trap.vector, trap.error), (13, 0));
        // The last byte counts.
        let trap = machine.trapped(|a| {
            a.mov(rbx, WRONG - 4).unwrap();
            a.mov(rax, qword_ptr(rbx)).unwrap();
        });
        assert_eq!((trap.vector, trap.error), (13, 0));
        let trap = machine.trapped(|a| {
            a.mov(rbx, WRONG).unwrap();
            a.jmp(rbx).unwrap();
        });
        // Some processors say where it is, others where it goes to.
        assert!(
            trap.vector == 13 && [at::CODE + 10, WRONG].contains(&trap.rip),
            "{trap:x?}"
        );
        let trap = machine.trapped(|a| {
            a.mov(rbx, WRONG).unwrap();
            a.push(rbx).unwrap();
            a.ret().unwrap();
        });
        // Some processors say where it is, others where it goes to.
        assert!(
            trap.vector == 13 && [at::CODE + 11, WRONG].contains(&trap.rip),
            "{trap:x?}"
        );
        // LSTAR takes no such address.
        let trap = machine.trapped(|a| {
            a.mov(ecx, 0xc000_0082_u32).unwrap();
            a.mov(edx, 0x8000_u32).unwrap();
            a.xor(eax, eax).unwrap();
            a.wrmsr().unwrap();
        });
        assert_eq!(trap.vector, 13);
        // Neither does `sysretq`.
        machine.state.gpr[1] = WRONG;
        let trap = machine.trapped(|a| {
            a.sysretq().unwrap();
        });
        assert_eq!((trap.vector, trap.cs, trap.rip), (13, 0x10, at::CODE));
    });
}

#[test]
fn what_is_no_ram_is_the_environments() {
    both(|machine| {
        // 2 MiB, just behind RAM, as a large page.
        machine.put(at::DIRECTORY + 8, 0x20_0000 | PRESENT | WRITE | 1 << 7);
        let state = machine.execute(|a| {
            a.mov(rbx, 0x20_0040_u64).unwrap();
            a.mov(eax, dword_ptr(rbx)).unwrap();
            a.mov(dword_ptr(rbx + 4), 0x1234_5678).unwrap();
            a.add(byte_ptr(rbx + 8), 1).unwrap();
            a.movups(xmmword_ptr(rbx + 16), xmm0).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(state.gpr[0], 0x4040_4040);
        let outside = machine.outside.0.lock().unwrap();
        assert_eq!(
            outside.stored[0],
            (0x20_0044, 0x1234_5678_u32.to_le_bytes().to_vec())
        );
        assert_eq!(outside.stored[1], (0x20_0048, vec![0x49]));
        let bytes: usize = outside.stored[2..].iter().map(|(_, data)| data.len()).sum();
        assert_eq!(bytes, 16);
    });
}
