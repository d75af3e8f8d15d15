//! The compiler against a direct reading of the profile, and against the kernel.

use std::borrow::Cow;
use std::time::Instant;

use proptest::prelude::*;

use super::arch::{Abi, X32_BIT, audit};
use super::docker::{Host, KernelVersion};
use super::interpreter::{Data, run};
use super::profile::{Action, Architecture, Arg, Operator, Seccomp, Syscall};
use super::{Machine, Program, compile, compile_for, default_profile};
use crate::capabilities::{CapSet, cap};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_THREAD;
const fn errno(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn profile(default_action: Action, syscalls: Vec<Syscall>) -> Seccomp {
    Seccomp {
        default_action,
        default_errno_ret: None,
        architectures: Vec::new(),
        flags: None,
        listener_path: String::new(),
        listener_metadata: String::new(),
        syscalls,
    }
}

fn rule(names: &[&str], action: Action, args: &[Arg]) -> Syscall {
    let names = names.iter().map(|name| Cow::Owned((*name).to_owned())).collect();
    Syscall {
        names,
        action,
        errno_ret: None,
        args: args.to_vec(),
    }
}

fn arg(index: u32, op: Operator, value: u64, value_two: u64) -> Arg {
    Arg {
        index,
        value,
        value_two,
        op,
    }
}

fn x86_64(nr: u32, args: [u64; 6]) -> Data {
    Data {
        nr,
        arch: audit::X86_64,
        args,
    }
}

/// What the profile says, read directly: no spans, no search, no halves of numbers.
fn evaluate(profile: &Seccomp, machine: Machine, data: &Data) -> u32 {
    let value = |action, errno| super::lower::return_value(action, errno).unwrap();
    let default = value(profile.default_action, profile.default_errno_ret);
    let mut abis = vec![machine.abi()];
    abis.extend(profile.architectures.iter().filter_map(|&a| machine.abi_of(a)));
    let abi = match data.arch {
        audit::X86_64 if data.nr >= X32_BIT => Abi::X32,
        audit::X86_64 => Abi::X86_64,
        audit::I386 => Abi::I386,
        audit::AARCH64 => Abi::Aarch64,
        audit::ARM => Abi::Arm,
        _ => return KILL,
    };
    if !abis.contains(&abi) {
        return if abi == Abi::X32 && data.nr == u32::MAX && abis.contains(&Abi::X86_64) {
            default
        } else {
            KILL
        };
    }
    let forbids = !matches!(
        profile.default_action,
        Action::Allow | Action::Log | Action::Trace
    );
    let known = profile
        .syscalls
        .iter()
        .flat_map(|call| &call.names)
        .filter_map(|name| abi.number(name));
    if forbids && known.max().is_some_and(|highest| data.nr > highest) {
        return errno(libc::ENOSYS);
    }

    let holds = |arg: &Arg| {
        let cut = |value: u64| {
            if abi.is_32_bit() {
                value & 0xffff_ffff
            } else {
                value
            }
        };
        let (seen, value) = (cut(data.args[arg.index as usize]), cut(arg.value));
        match arg.op {
            Operator::Equal => seen == value,
            Operator::NotEqual => seen != value,
            Operator::Less => seen < value,
            Operator::LessOrEqual => seen <= value,
            Operator::Greater => seen > value,
            Operator::GreaterOrEqual => seen >= value,
            Operator::MaskedEqual => seen & value == cut(arg.value_two),
        }
    };
    let mut matching = None;
    for call in &profile.syscalls {
        let action = value(call.action, call.errno_ret);
        if action == default {
            continue;
        }
        let this = call.names.iter().any(|name| abi.number(name) == Some(data.nr));
        let through = call
            .names
            .iter()
            .filter_map(|name| abi.multiplexed(name))
            .any(|(nr, code)| {
                data.nr == nr
                    && data.args[0] & 0xffff_ffff == code
                    && (call.args.is_empty()
                        || !matches!(call.action, Action::Allow | Action::Log | Action::Trace))
            });
        if this && call.args.is_empty() {
            return action;
        }
        let twice = (0..6).any(|index| call.args.iter().filter(|arg| arg.index == index).count() > 1);
        let conditions = if twice {
            call.args.iter().any(holds)
        } else {
            call.args.iter().all(holds)
        };
        if through || (this && conditions) {
            matching.get_or_insert(action);
        }
    }
    matching.unwrap_or(default)
}

/// Names that exist here and there: on all ABIs, on some, on none, multiplexed.
const NAMES: [&str; 24] = [
    "read",
    "write",
    "openat",
    "clone",
    "socket",
    "socketcall",
    "accept",
    "ipc",
    "shmctl",
    "semop",
    "chown32",
    "ioctl",
    "execve",
    "mmap2",
    "arch_prctl",
    "personality",
    "set_tls",
    "setxattrat",
    "restart_syscall",
    "futex",
    "uselib",
    "rt_sigreturn",
    "no_such_call",
    "statx",
];
const VALUES: [u64; 10] = [
    0,
    1,
    2,
    5,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0005,
    u64::MAX - 1,
    u64::MAX,
];

fn any_value() -> impl Strategy<Value = u64> {
    prop_oneof![4 => prop::sample::select(&VALUES[..]), 1 => any::<u64>()]
}

fn any_arg() -> impl Strategy<Value = Arg> {
    let operator = prop::sample::select(vec![
        Operator::Equal,
        Operator::NotEqual,
        Operator::Less,
        Operator::LessOrEqual,
        Operator::Greater,
        Operator::GreaterOrEqual,
        Operator::MaskedEqual,
    ]);
    (0..6u32, operator, any_value(), any_value()).prop_map(|(index, op, value, value_two)| Arg {
        index,
        value,
        value_two,
        op,
    })
}

fn any_action() -> impl Strategy<Value = Action> {
    prop::sample::select(vec![
        Action::Allow,
        Action::Errno,
        Action::Kill,
        Action::KillProcess,
        Action::Log,
        Action::Trace,
        Action::Trap,
    ])
}

fn any_name() -> impl Strategy<Value = Cow<'static, str>> {
    let anywhere = (0..3usize, any::<prop::sample::Index>()).prop_map(|(abi, index)| {
        let table = [Abi::X86_64, Abi::I386, Abi::Aarch64][abi].table();
        table[index.index(table.len())].0
    });
    prop_oneof![prop::sample::select(&NAMES[..]), anywhere].prop_map(Cow::Borrowed)
}

/// All conditional rules of a profile have the same action: which of several overlapping ones comes first is another
/// question, and another test.
fn any_profile() -> impl Strategy<Value = (Seccomp, Machine)> {
    let names = prop::collection::vec(any_name(), 1..40);
    let args = prop_oneof![Just(Vec::new()), prop::collection::vec(any_arg(), 1..4)];
    let rules = prop::collection::vec((names, any_action(), args), 0..12);
    let architectures = prop::sample::subsequence(
        vec![
            Architecture::X86,
            Architecture::X32,
            Architecture::X86_64,
            Architecture::Arm,
            Architecture::Aarch64,
            Architecture::S390x,
        ],
        0..=6,
    );
    let machine = prop::sample::select(vec![Machine::X86_64, Machine::Aarch64]);
    (any_action(), any_action(), rules, architectures, machine).prop_map(
        |(default_action, conditional, rules, architectures, machine)| {
            let syscalls = rules
                .into_iter()
                .map(|(names, action, args)| Syscall {
                    names,
                    action: if args.is_empty() { action } else { conditional },
                    errno_ret: None,
                    args,
                })
                // Unconditional rules for multiplexed calls are conditional rules for the multiplexer.
                .map(|call| {
                    match call
                        .names
                        .iter()
                        .any(|name| Abi::I386.multiplexed(name).is_some())
                    {
                        true => Syscall {
                            action: conditional,
                            ..call
                        },
                        false => call,
                    }
                })
                .collect();
            (
                Seccomp {
                    architectures,
                    ..profile(default_action, syscalls)
                },
                machine,
            )
        },
    )
}

fn any_data() -> impl Strategy<Value = Data> {
    let arch = prop::sample::select(vec![audit::X86_64, audit::I386, audit::AARCH64, audit::ARM, 0]);
    let number = prop_oneof![
        any_name().prop_map(Err),
        (0..600u32).prop_map(Ok),
        (0..600u32).prop_map(|number| Ok(X32_BIT | number)),
        any::<u32>().prop_map(Ok),
        Just(Ok(u32::MAX)),
    ];
    (arch, number, prop::array::uniform6(any_value())).prop_map(|(arch, number, args)| {
        let abi = match arch {
            audit::I386 => Abi::I386,
            audit::AARCH64 => Abi::Aarch64,
            audit::ARM => Abi::Arm,
            _ => Abi::X86_64,
        };
        let nr = number.unwrap_or_else(|name| abi.number(&name).unwrap_or(0));
        Data { nr, arch, args }
    })
}

/// A profile's program. One with more conditions than the kernel lets a filter have is refused, and another is taken.
fn fitting(profile: &Seccomp, machine: Machine) -> Result<Program, TestCaseError> {
    compile_for(profile, machine).map_err(|error| match error.to_string() {
        large if large.contains("more than the 4096 instructions") => TestCaseError::reject(large),
        other => TestCaseError::fail(other),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn compiled_is_as_read((profile, machine) in any_profile(), calls in prop::collection::vec(any_data(), 40)) {
        let program = fitting(&profile, machine)?;
        // What is asked about, at random and one by one, with the rules' own values in the arguments.
        for data in &calls {
            prop_assert_eq!(run(&program.insns, data).0, evaluate(&profile, machine, data), "{:?}", data);
        }
        for call in &profile.syscalls {
            for name in &call.names {
                for (arch, abi) in [(audit::X86_64, Abi::X86_64), (audit::X86_64, Abi::X32), (audit::I386, Abi::I386),
                                    (audit::AARCH64, Abi::Aarch64), (audit::ARM, Abi::Arm)] {
                    let mut args = calls[0].args;
                    for arg in &call.args {
                        args[arg.index as usize] = arg.value;
                    }
                    let Some(nr) = abi.number(name) else { continue };
                    for data in [Data { nr, arch, args }, Data { nr: nr + 1, arch, args }] {
                        prop_assert_eq!(run(&program.insns, &data).0, evaluate(&profile, machine, &data), "{:?}", data);
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_round_trip((profile, machine) in any_profile()) {
        let program = fitting(&profile, machine)?;
        let bytes = program.to_bytes();
        prop_assert_eq!(Program::from_bytes(&bytes).unwrap(), program);
        prop_assert!(Program::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn any_bytes_are_survived(mut bytes in prop::collection::vec(any::<u8>(), 0..200), real: bool) {
        if real && bytes.len() >= 16 {
            bytes[..4].copy_from_slice(b"VSF1");
            bytes[4..12].fill(0);
            let count = ((bytes.len() - 16) / 8) as u32;
            bytes[12..16].copy_from_slice(&count.to_le_bytes());
        }
        if let Ok(program) = Program::from_bytes(&bytes) {
            prop_assert_eq!(program.to_bytes(), bytes);
        }
    }
}

#[test]
fn every_operator_on_64_bits() {
    let operators = [
        Operator::Equal,
        Operator::NotEqual,
        Operator::Less,
        Operator::LessOrEqual,
        Operator::Greater,
        Operator::GreaterOrEqual,
        Operator::MaskedEqual,
    ];
    for op in operators {
        for value in VALUES {
            for value_two in VALUES {
                let rules = vec![rule(&["read"], Action::Allow, &[arg(3, op, value, value_two)])];
                let profile = profile(Action::Errno, rules);
                let program = compile_for(&profile, Machine::X86_64).unwrap();
                for seen in VALUES {
                    let data = x86_64(0, [0, 0, 0, seen, 0, 0]);
                    let expected = evaluate(&profile, Machine::X86_64, &data);
                    assert_eq!(
                        run(&program.insns, &data).0,
                        expected,
                        "{op:?} {value:#x} {value_two:#x} {seen:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn libseccomp_s_rules_for_several_rules() {
    let eq = |value| arg(0, Operator::Equal, value, 0);
    let ret = |profile: &Seccomp, value: u64| {
        run(
            &compile_for(profile, Machine::X86_64).unwrap().insns,
            &x86_64(0, [value, 0, 0, 0, 0, 0]),
        )
        .0
    };
    // Alternatives.
    let either = profile(
        Action::Errno,
        vec![
            rule(&["read"], Action::Allow, &[eq(1)]),
            rule(&["read"], Action::Allow, &[eq(2)]),
        ],
    );
    assert_eq!(
        [0, 1, 2, 3].map(|v| ret(&either, v)),
        [errno(1), ALLOW, ALLOW, errno(1)]
    );
    // One argument twice in one rule: alternatives, too.
    let twice = profile(
        Action::Errno,
        vec![rule(&["read"], Action::Allow, &[eq(1), eq(2)])],
    );
    assert_eq!(
        [0, 1, 2, 3].map(|v| ret(&twice, v)),
        [errno(1), ALLOW, ALLOW, errno(1)]
    );
    // A rule without conditions covers those with, wherever it stands; the first such rule counts.
    for rules in [
        vec![
            rule(&["read"], Action::Trap, &[eq(1)]),
            rule(&["read"], Action::Allow, &[]),
        ],
        vec![
            rule(&["read"], Action::Allow, &[]),
            rule(&["read"], Action::Trap, &[eq(1)]),
        ],
        vec![
            rule(&["read"], Action::Allow, &[]),
            rule(&["read"], Action::Trap, &[]),
        ],
    ] {
        assert_eq!(ret(&profile(Action::Errno, rules), 1), ALLOW);
    }
    // Of overlapping conditions the narrower counts, wherever it stands.
    let above = arg(0, Operator::GreaterOrEqual, 1, 0);
    for rules in [
        [
            rule(&["read"], Action::Trap, &[eq(5)]),
            rule(&["read"], Action::Allow, std::slice::from_ref(&above)),
        ],
        [
            rule(&["read"], Action::Allow, std::slice::from_ref(&above)),
            rule(&["read"], Action::Trap, &[eq(5)]),
        ],
    ] {
        let both = profile(Action::Errno, rules.to_vec());
        assert_eq!(
            [0, 1, 5].map(|v| ret(&both, v)),
            [errno(1), ALLOW, libc::SECCOMP_RET_TRAP]
        );
    }
    // A rule with the default action says nothing.
    let default = profile(
        Action::Errno,
        vec![
            rule(&["read"], Action::Errno, &[]),
            rule(&["read"], Action::Allow, &[eq(1)]),
        ],
    );
    assert_eq!([0, 1].map(|v| ret(&default, v)), [errno(1), ALLOW]);
}

#[test]
fn newer_calls_are_enosys() {
    let run = |profile: &Seccomp, nr, arch| {
        run(
            &compile_for(profile, Machine::X86_64).unwrap().insns,
            &Data {
                nr,
                arch,
                args: [0; 6],
            },
        )
        .0
    };
    let mut allow = profile(
        Action::Errno,
        vec![rule(&["read", "openat2"], Action::Allow, &[])],
    );
    allow.architectures = vec![Architecture::X86];
    assert_eq!(run(&allow, 437, audit::X86_64), ALLOW);
    assert_eq!(run(&allow, 436, audit::X86_64), errno(libc::EPERM));
    assert_eq!(run(&allow, 438, audit::X86_64), errno(libc::ENOSYS));
    assert_eq!(run(&allow, 438, audit::I386), errno(libc::ENOSYS));
    assert_eq!(run(&allow, X32_BIT, audit::X86_64), KILL);
    // A call that is known only to be forbidden is known.
    allow.syscalls.push(rule(&["cachestat"], Action::Errno, &[]));
    assert_eq!(run(&allow, 451, audit::X86_64), errno(libc::EPERM));
    assert_eq!(run(&allow, 452, audit::X86_64), errno(libc::ENOSYS));
    // A deny-list lets new calls pass.
    let deny = profile(Action::Allow, vec![rule(&["read"], Action::Errno, &[])]);
    assert_eq!(run(&deny, 5000, audit::X86_64), ALLOW);
}

#[test]
fn contradictions_are_named() {
    let refused = |profile: &Seccomp, what: &str| {
        let error = compile(profile).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(&profile(Action::Notify, vec![]), "default action");
    refused(
        &profile(Action::Allow, vec![rule(&["write"], Action::Notify, &[])]),
        "write",
    );
    refused(
        &profile(Action::Allow, vec![rule(&[""], Action::Errno, &[])]),
        "empty name",
    );
    refused(
        &profile(
            Action::Allow,
            vec![rule(&["read"], Action::Errno, &[arg(6, Operator::Equal, 0, 0)])],
        ),
        "argument 6",
    );
    let mut errno_ret = rule(&["read"], Action::Allow, &[]);
    errno_ret.errno_ret = Some(1);
    refused(&profile(Action::Errno, vec![errno_ret.clone()]), "errnoRet");
    errno_ret.action = Action::Errno;
    errno_ret.errno_ret = Some(5000);
    refused(&profile(Action::Allow, vec![errno_ret]), "5000");
    let many = (0..1100)
        .map(|v| rule(&["read"], Action::Trap, &[arg(0, Operator::Equal, v << 33, 0)]))
        .collect();
    refused(&profile(Action::Allow, many), "4096");
    let names: Vec<&str> = Abi::X86_64.table().iter().map(|&(name, _)| name).collect();
    let args: Vec<Arg> = (0..4000).map(|v| arg(0, Operator::Equal, v, 0)).collect();
    let product = (0..100).map(|_| rule(&names, Action::Errno, &args)).collect();
    refused(&profile(Action::Allow, product), "4096");
    let hostile = (0..100_000)
        .map(|v| rule(&["read"], Action::Trap, &[arg(0, Operator::Equal, v, 0)]))
        .collect();
    refused(&profile(Action::Allow, hostile), "4096");
}

#[test]
fn long_programs_jump_right() {
    // Chains of arguments between the spans put everything out of the reach of a short jump.
    let conditions: Vec<Arg> = (0..3)
        .map(|index| arg(index, Operator::Greater, 0x1_0000_0003, 0))
        .collect();
    let names: Vec<&str> = Abi::X86_64
        .table()
        .iter()
        .step_by(2)
        .map(|&(name, _)| name)
        .collect();
    let profile = profile(Action::Errno, vec![rule(&names, Action::Allow, &conditions)]);
    let program = compile_for(&profile, Machine::X86_64).unwrap();
    assert!(program.len() > 2000);
    for &(_, nr) in Abi::X86_64.table() {
        for value in [0x1_0000_0003, 0x1_0000_0004, 0x2_0000_0000] {
            let data = x86_64(nr, [value; 6]);
            assert_eq!(
                run(&program.insns, &data).0,
                evaluate(&profile, Machine::X86_64, &data)
            );
        }
    }
}

fn default_host(bounding: CapSet) -> Host {
    let kernel = KernelVersion {
        version: 6,
        revision: 1,
    };
    Host {
        machine: Machine::X86_64,
        kernel,
        bounding,
    }
}

#[test]
fn the_default_profile() {
    let program = compile_for(&default_profile(&default_host(CapSet::DEFAULT)), Machine::X86_64).unwrap();
    let ret =
        |name: &str, args: [u64; 6]| run(&program.insns, &x86_64(Abi::X86_64.number(name).unwrap(), args)).0;
    let first = |name: &str, value: u64| ret(name, [value, 0, 0, 0, 0, 0]);
    let plain = |name: &str| first(name, 0);
    for name in [
        "read",
        "openat2",
        "execve",
        "futex",
        "ptrace",
        "chroot",
        "clone",
        "arch_prctl",
        "mseal",
    ] {
        assert_eq!(plain(name), ALLOW, "{name}");
    }
    for name in [
        "mount",
        "unshare",
        "setns",
        "bpf",
        "reboot",
        "kexec_load",
        "init_module",
        "keyctl",
        "add_key",
        "io_uring_setup",
        "userfaultfd",
        "perf_event_open",
        "open_by_handle_at",
        "pivot_root",
        "swapon",
        "settimeofday",
        "move_mount",
    ] {
        assert_eq!(plain(name), errno(libc::EPERM), "{name}");
    }
    assert_eq!(plain("clone3"), errno(libc::ENOSYS));
    assert_eq!(plain("file_getattr"), errno(libc::ENOSYS));
    assert_eq!(
        first(
            "clone",
            (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64
        ),
        ALLOW
    );
    assert_eq!(first("clone", libc::CLONE_NEWUSER as u64), errno(libc::EPERM));
    assert_eq!(first("socket", libc::AF_INET as u64), ALLOW);
    assert_eq!(first("socket", libc::AF_ALG as u64), errno(libc::EPERM));
    assert_eq!(first("socket", libc::AF_NFC as u64), ALLOW);
    assert_eq!(first("socket", libc::AF_VSOCK as u64), errno(libc::EPERM));
    assert_eq!(first("socket", libc::AF_XDP as u64), ALLOW);
    // The kernel takes an int: what is above it changes nothing.
    for family in 0..64_u64 {
        let refused = family == libc::AF_ALG as u64 || family == libc::AF_VSOCK as u64;
        let expected = if refused { errno(libc::EPERM) } else { ALLOW };
        assert_eq!(first("socket", family), expected, "{family}");
        assert_eq!(first("socket", family | 1 << 32), expected, "{family}");
    }
    assert_eq!(first("personality", 0xffff_ffff), ALLOW);
    assert_eq!(
        first("personality", libc::ADDR_NO_RANDOMIZE as u64),
        errno(libc::EPERM)
    );

    let admin = default_profile(&default_host(CapSet::DEFAULT | cap::SYS_ADMIN));
    let program = compile_for(&admin, Machine::X86_64).unwrap();
    for name in ["mount", "unshare", "clone3", "bpf"] {
        let nr = Abi::X86_64.number(name).unwrap();
        assert_eq!(run(&program.insns, &x86_64(nr, [0; 6])).0, ALLOW, "{name}");
    }

    let old = Host {
        kernel: KernelVersion {
            version: 4,
            revision: 7,
        },
        ..default_host(CapSet::DEFAULT)
    };
    let program = compile_for(&default_profile(&old), Machine::X86_64).unwrap();
    assert_eq!(
        run(&program.insns, &x86_64(101, [0; 6])).0,
        errno(libc::EPERM),
        "ptrace"
    );

    let arm = Host {
        machine: Machine::Aarch64,
        ..default_host(CapSet::DEFAULT)
    };
    let program = compile_for(&default_profile(&arm), Machine::Aarch64).unwrap();
    let nr = Abi::Arm.number("set_tls").unwrap();
    assert_eq!(
        run(
            &program.insns,
            &Data {
                nr,
                arch: audit::ARM,
                args: [0; 6]
            }
        )
        .0,
        ALLOW
    );
}

#[test]
fn the_default_profile_is_short_and_quick() {
    let host = default_host(CapSet::DEFAULT);
    let program = compile_for(&default_profile(&host), Machine::X86_64).unwrap();
    assert!(program.len() < 600, "{} instructions", program.len());
    let mut worst = 0;
    for &(name, nr) in Abi::X86_64.table() {
        let steps = run(&program.insns, &x86_64(nr, [0; 6])).1;
        worst = worst.max(steps);
        assert!(steps <= 25, "{name} takes {steps} instructions");
    }
    assert!(worst > 5);
    // Its time is measured in optimized builds; this only catches that it grows out of all proportion.
    let start = Instant::now();
    for _ in 0..10 {
        compile_for(&default_profile(&host), Machine::X86_64).unwrap();
    }
    assert!(start.elapsed().as_millis() < 500);
}
