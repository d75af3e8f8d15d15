//! Instructions per second. Not a test of anything: `cargo test -p vessel-softcpu --test machine speed -- --ignored --nocapture`.

use iced_x86::code_asm::*;

use crate::machine::{Machine, at};

/// Seconds that this thread has had a core for.
fn seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is there to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What a loop makes: million instructions per second, interpreted and translated.
fn measure(turns: u64, instructions: u64, write: impl Fn(&mut CodeAssembler)) -> [f64; 2] {
    [false, true].map(|translated| {
        let machine = Machine::new(translated);
        machine.code(at::CODE, 64, |a| {
            let mut again = a.create_label();
            a.mov(rbx, at::DATA).unwrap();
            a.mov(r15, turns).unwrap();
            a.set_label(&mut again).unwrap();
            write(a);
            a.dec(r15).unwrap();
            a.jne(again).unwrap();
            a.hlt().unwrap();
        });
        let mut cpu = machine.cpu(0);
        let start = seconds();
        machine.run(&mut cpu);
        (turns * (instructions + 2)) as f64 / (seconds() - start) / 1e6
    })
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    const TURNS: u64 = 3_000_000;
    println!("million instructions per second, interpreted and translated");
    let show = |name: &str, [interpreted, translated]: [f64; 2]| {
        println!("{name:24} {interpreted:8.0} {translated:8.0}")
    };
    let figures = measure(TURNS, 6, |a| {
        a.add(rax, rcx).unwrap();
        a.xor(rdx, rax).unwrap();
        a.lea(rcx, ptr(rax + rdx * 4 + 1)).unwrap();
        a.shr(rdx, 3).unwrap();
        a.cmp(rcx, rdx).unwrap();
        a.cmovb(rax, rdx).unwrap();
    });
    show("registers", figures);
    let figures = measure(TURNS, 6, |a| {
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.add(rax, qword_ptr(rbx + 8)).unwrap();
        a.mov(qword_ptr(rbx + 16), rax).unwrap();
        a.add(qword_ptr(rbx + 24), rax).unwrap();
        a.movzx(ecx, byte_ptr(rbx + 32)).unwrap();
        a.mov(byte_ptr(rbx + 33), cl).unwrap();
    });
    show("loads and stores", figures);
    let figures = measure(TURNS, 5, |a| {
        let mut function = a.create_label();
        let mut after = a.create_label();
        a.call(function).unwrap();
        a.jmp(after).unwrap();
        a.set_label(&mut function).unwrap();
        a.push(rax).unwrap();
        a.pop(rcx).unwrap();
        a.ret().unwrap();
        a.set_label(&mut after).unwrap();
    });
    show("calls", figures);
    let figures = measure(TURNS, 2, |a| {
        a.lock().inc(qword_ptr(rbx)).unwrap();
        a.lock().xadd(qword_ptr(rbx + 8), rax).unwrap();
    });
    show("locked", figures);
    let figures = measure(TURNS, 4, |a| {
        a.movups(xmm0, xmmword_ptr(rbx)).unwrap();
        a.movups(xmm1, xmmword_ptr(rbx + 16)).unwrap();
        a.movaps(xmmword_ptr(rbx + 32), xmm0).unwrap();
        a.movaps(xmmword_ptr(rbx + 48), xmm1).unwrap();
    });
    show("moves of 16 bytes", figures);
    let figures = measure(TURNS, 5, |a| {
        a.movdqu(xmm0, xmmword_ptr(rbx)).unwrap();
        a.pxor(xmm1, xmm1).unwrap();
        a.pcmpeqb(xmm1, xmm0).unwrap();
        a.pmovmskb(eax, xmm1).unwrap();
        a.test(eax, eax).unwrap();
    });
    show("strlen", figures);
    let figures = measure(TURNS, 4, |a| {
        a.cvtsi2sd(xmm0, rax).unwrap();
        a.addsd(xmm1, xmm0).unwrap();
        a.mulsd(xmm1, xmm0).unwrap();
        a.ucomisd(xmm1, xmm0).unwrap();
    });
    show("floating point", figures);
    let figures = measure(TURNS / 20, 3, |a| {
        a.fld(qword_ptr(rbx)).unwrap();
        a.fadd(qword_ptr(rbx + 8)).unwrap();
        a.fstp(qword_ptr(rbx + 16)).unwrap();
    });
    show("x87", figures);
    let figures = measure(TURNS, 2, |a| {
        a.paddb(mm0, mm1).unwrap();
        a.movq(mm2, qword_ptr(rbx)).unwrap();
    });
    show("mmx", figures);
    let figures = measure(TURNS / 100, 4, |a| {
        a.lea(rsi, ptr(rbx)).unwrap();
        a.lea(rdi, ptr(rbx + 0x1000)).unwrap();
        a.mov(ecx, 4096).unwrap();
        a.rep().movsb().unwrap();
    });
    show("rep movsb of 4096", figures);
}
