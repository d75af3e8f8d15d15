//! The device rules as an eBPF program, for v2.
//!
//! The program walks the rules from the last to the first with the set of accesses that are still undecided: a rule that
//! allows takes its accesses out of the set, a rule that denies one of them ends it. So each access is decided by the
//! last rule that matches it. A program is replaced in one step, so that no access slips through.
//!
//! The context is `struct bpf_cgroup_dev_ctx` of `include/uapi/linux/bpf.h`: access in the upper and type in the lower
//! half of the first word, then major, then minor.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::super::dir::Dir;
use super::super::lack::Lacks;
use super::{ALL, Kind, Rule, relevant};
use crate::sys::bpf::{self, Insn};
use crate::{Error, ErrorKind, Result};

const LDX_W: u8 = 0x61;
const MOV64_REG: u8 = 0xbf;
const MOV64_IMM: u8 = 0xb7;
const AND_IMM: u8 = 0x54;
const AND64_IMM: u8 = 0x57;
const RSH_IMM: u8 = 0x74;
const JNE_IMM: u8 = 0x55;
const JSET_IMM: u8 = 0x45;
const JA: u8 = 0x05;
const EXIT: u8 = 0x95;

const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const DEV_BLOCK: i32 = 1;
const DEV_CHAR: i32 = 2;

pub(super) fn apply(dir: &Dir, rules: &[Rule], fresh: bool, lacks: &mut Lacks) -> Result<()> {
    let program = match bpf::load_cgroup_device(&generate(rules), "vessel_devices") {
        Ok(program) => program,
        Err(error) if error.errno == Errno::NOSYS => {
            lacks.add("devices", "device rules on cgroup v2 need eBPF");
            return Ok(());
        }
        Err(error) => {
            let kind = if error.errno == Errno::PERM {
                ErrorKind::Permission
            } else {
                ErrorKind::System
            };
            return Err(Error::with_source(
                kind,
                format!("cannot load the device rules of {}", dir.path().display()),
                error,
            ));
        }
    };
    let context = |errno: Errno| {
        let kind = if errno == Errno::PERM {
            ErrorKind::Permission
        } else {
            ErrorKind::System
        };
        let text = format!("cannot attach the device rules to {}", dir.path().display());
        Error::with_source(kind, text, std::io::Error::from(errno))
    };
    let mut old = Vec::new();
    if !fresh {
        for id in bpf::query_cgroup_device(dir.as_fd()).map_err(context)? {
            match bpf::program_by_id(id) {
                Err(Errno::NOENT) => {}
                found => old.push(found.map_err(context)?),
            }
        }
    }
    let Some((first, others)) = old.split_first() else {
        return bpf::attach_cgroup_device(dir.as_fd(), program.as_fd()).map_err(context);
    };
    match bpf::replace_cgroup_device(dir.as_fd(), program.as_fd(), first.as_fd()) {
        // Before Linux 5.6: both must agree for a moment, which denies too much rather than too little.
        Err(Errno::INVAL) => {
            bpf::attach_cgroup_device(dir.as_fd(), program.as_fd()).map_err(context)?;
            bpf::detach_cgroup_device(dir.as_fd(), first.as_fd()).map_err(context)?;
        }
        result => result.map_err(context)?,
    }
    for program in others {
        bpf::detach_cgroup_device(dir.as_fd(), program.as_fd()).map_err(context)?;
    }
    Ok(())
}

fn generate(rules: &[Rule]) -> Vec<Insn> {
    let mut program = vec![
        Insn::new(LDX_W, KIND, CONTEXT, 0, 0),
        Insn::new(MOV64_REG, UNDECIDED, KIND, 0, 0),
        Insn::new(AND_IMM, KIND, 0, 0, 0xffff),
        Insn::new(RSH_IMM, UNDECIDED, 0, 0, 16),
        Insn::new(LDX_W, MAJOR, CONTEXT, 4, 0),
        Insn::new(LDX_W, MINOR, CONTEXT, 8, 0),
    ];
    for rule in relevant(rules).iter().rev() {
        let mut conditions: Vec<(u8, u8, i32)> = Vec::with_capacity(3);
        if let Some(kind) = rule.kind {
            conditions.push((
                JNE_IMM,
                KIND,
                if kind == Kind::Block { DEV_BLOCK } else { DEV_CHAR },
            ));
        }
        // The kernel extends the sign: a number of 2^31 or more, which no device has, equals nothing.
        conditions.extend(rule.major.map(|major| (JNE_IMM, MAJOR, major.cast_signed())));
        conditions.extend(rule.minor.map(|minor| (JNE_IMM, MINOR, minor.cast_signed())));
        let access = i32::from(rule.access);
        let decision: Vec<Insn> = match (rule.allow, rule.access) {
            (true, ALL) => vec![Insn::new(MOV64_IMM, R0, 0, 0, 1), Insn::new(EXIT, 0, 0, 0, 0)],
            (false, ALL) => vec![Insn::new(MOV64_IMM, R0, 0, 0, 0), Insn::new(EXIT, 0, 0, 0, 0)],
            (true, _) => vec![
                Insn::new(AND64_IMM, UNDECIDED, 0, 0, !access),
                Insn::new(JNE_IMM, UNDECIDED, 0, 2, 0),
                Insn::new(MOV64_IMM, R0, 0, 0, 1),
                Insn::new(EXIT, 0, 0, 0, 0),
            ],
            (false, _) => vec![
                Insn::new(JSET_IMM, UNDECIDED, 0, 1, access),
                Insn::new(JA, 0, 0, 2, 0),
                Insn::new(MOV64_IMM, R0, 0, 0, 0),
                Insn::new(EXIT, 0, 0, 0, 0),
            ],
        };
        let count = conditions.len();
        for (index, (code, register, value)) in conditions.into_iter().enumerate() {
            // Over the other conditions and the decision: at most 6 instructions.
            let skip = (count - index - 1 + decision.len()) as i16;
            program.push(Insn::new(code, register, 0, skip, value));
        }
        let total = count == 0 && rule.access == ALL;
        program.extend(decision);
        if total {
            // Nothing behind it is ever reached, which the verifier would refuse.
            return program;
        }
    }
    program.push(Insn::new(MOV64_IMM, R0, 0, 0, 0));
    program.push(Insn::new(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{any_rule, every_access};
    use super::super::verdict;
    use super::*;

    /// An interpreter of the instructions used here, independent of the kernel.
    fn run(program: &[Insn], kind: Kind, major: u32, minor: u32, access: u8) -> u64 {
        let word = (u32::from(access) << 16) | if kind == Kind::Block { 1 } else { 2 };
        let context = [word, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0usize;
        for _ in 0..10_000 {
            let insn = &program[at];
            // SAFETY: the kernel's layout has eight bytes without padding; the second holds the two registers.
            let bytes: [u8; 8] = unsafe { std::mem::transmute(*insn) };
            let (dst, src) = (usize::from(bytes[1] & 0xf), usize::from(bytes[1] >> 4));
            let imm = i64::from(insn.imm).cast_unsigned();
            let mut jump = false;
            match insn.code {
                LDX_W => registers[dst] = u64::from(context[insn.off as usize / 4]),
                MOV64_REG => registers[dst] = registers[src],
                MOV64_IMM => registers[dst] = imm,
                AND_IMM => registers[dst] = u64::from(registers[dst] as u32 & imm as u32),
                AND64_IMM => registers[dst] &= imm,
                RSH_IMM => registers[dst] = u64::from((registers[dst] as u32) >> imm),
                JNE_IMM => jump = registers[dst] != imm,
                JSET_IMM => jump = registers[dst] & imm != 0,
                JA => jump = true,
                EXIT => return registers[0],
                other => panic!("instruction {other:#x}"),
            }
            at += 1;
            if jump {
                at += usize::try_from(insn.off).unwrap();
            }
        }
        panic!("it does not end");
    }

    proptest! {
        #[test]
        fn means_what_the_list_means(rules in prop::collection::vec(any_rule(), 1..10)) {
            let program = generate(&rules);
            for (kind, major, minor, access) in every_access() {
                prop_assert_eq!(
                    run(&program, kind, major, minor, access) == 1,
                    verdict(&rules, kind, major, minor, access),
                    "{:?} {}:{} {}", kind, major, minor, access
                );
            }
        }
    }

    #[test]
    fn the_kernels_verifier_accepts_it() {
        let rule = |allow, major, access| Rule {
            allow,
            kind: Some(Kind::Char),
            major,
            minor: Some(u32::MAX),
            access,
        };
        let total = Rule {
            allow: false,
            kind: None,
            major: None,
            minor: None,
            access: ALL,
        };
        for rules in [
            vec![total],
            vec![
                total,
                rule(true, Some(1), ALL),
                rule(false, None, 2),
                rule(true, Some(u32::MAX), 5),
            ],
            vec![rule(true, Some(1), 3); super::super::MAX_RULES],
            vec![rule(false, Some(1), 3); super::super::MAX_RULES],
        ] {
            bpf::load_cgroup_device(&generate(&rules), "vessel_test").unwrap();
        }
    }
}
