//! From names to numbers: what a profile says about every possible system call number of every ABI.
//!
//! The meaning is libseccomp's as runc uses it:
//! - a rule whose action is the default one says nothing; a name an ABI does not have is skipped there;
//! - of several rules for one call, the first without conditions decides, whatever the others say; otherwise the
//!   conditional ones are alternatives. Where those overlap and differ in action, libseccomp's choice follows from
//!   the shape of its tree; [`Rule::precedence`] comes close to it;
//! - conditions of one rule must all hold, unless an argument occurs twice: then each is an alternative of its own;
//! - 32-bit ABIs compare the low 32 bits of argument and value;
//! - calls through an ABI that the profile does not cover kill the thread.
//!
//! And runc's addition: when the default is to forbid, numbers above the highest that the profile knows fail with
//! `ENOSYS`, so that a program meets a system call newer than the profile as it would meet it on an older kernel, and
//! uses what it used before.
//!
//! One deliberate difference. Programs for 32-bit x86 make socket and System V IPC calls through a multiplexer whose
//! arguments a filter cannot see. libseccomp lets the multiplexed call pass without its conditions; here a rule with
//! conditions passes to the multiplexer only if it forbids.

use std::cmp::Reverse;

use super::arch::{Abi, Machine, X32_BIT, audit};
use super::profile::{Action, Arg, Operator, Seccomp, Syscall};
use crate::{Error, Result};

/// The most alternatives one call may have: each costs an instruction at least, and a program has 4096.
const MAX_RULES_PER_CALL: usize = 4096;
/// The most alternatives looked at for all calls of an ABI, repeated ones included.
const MAX_RULES: usize = 1 << 16;
/// `MAX_ERRNO`: the kernel cuts larger values.
const MAX_ERRNO: u32 = 4095;

/// The profile for one value of `seccomp_data.arch`.
#[derive(Debug)]
pub(super) struct Section {
    /// That value.
    pub audit: u32,
    /// What happens to which numbers: from each span's start to before the next one's. The first starts at 0;
    /// neighbours differ.
    pub spans: Vec<Span>,
    /// What [`Target::Chain`] refers to.
    pub chains: Vec<Chain>,
}

/// A range of numbers with one fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub target: Target,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// This return value of the filter.
    Return(u32),
    /// It depends on the arguments: the index of a chain.
    Chain(usize),
}

/// Alternatives, tried in order; when none matches, the default action.
#[derive(Debug)]
pub(super) struct Chain {
    pub rules: Vec<Rule>,
    pub otherwise: u32,
}

/// If all conditions hold, return `action`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub conditions: Vec<Condition>,
    pub action: u32,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// From 0 to 5.
    pub arg: u8,
    /// Whether only the low halves count.
    pub low_only: bool,
    pub operator: Operator,
    /// All ones but for [`Operator::MaskedEqual`].
    pub mask: u64,
    pub value: u64,
}

impl Rule {
    /// Which of several alternatives comes first; it matters only where alternatives with different actions overlap.
    /// As in libseccomp, the order in the profile does not decide, but roughly: the narrower comparison comes first,
    /// and one on a later argument before one on an earlier.
    fn precedence(&self) -> impl Ord + use<> {
        let rank = |condition: &Condition| {
            let (kind, breadth) = match condition.operator {
                Operator::Equal => (0u8, 0),
                Operator::MaskedEqual => (1, 0),
                Operator::NotEqual => (2, 0),
                Operator::Less | Operator::LessOrEqual => (3, condition.value),
                Operator::GreaterOrEqual | Operator::Greater => (4, !condition.value),
            };
            (Reverse(condition.arg), kind, breadth)
        };
        self.conditions.first().map(rank)
    }
}

/// The filter's return value for an action.
pub(super) fn return_value(action: Action, errno: Option<u32>) -> Result<u32> {
    if let (Some(_), false) = (errno, matches!(action, Action::Errno | Action::Trace)) {
        return Err(Error::invalid(format!(
            "seccomp: errnoRet has no meaning with {action:?}: leave it out, or use SCMP_ACT_ERRNO or SCMP_ACT_TRACE"
        )));
    }
    let data = errno.unwrap_or(libc::EPERM as u32);
    let limit = if action == Action::Errno {
        MAX_ERRNO
    } else {
        libc::SECCOMP_RET_DATA
    };
    if data > limit {
        return Err(Error::invalid(format!(
            "seccomp: errnoRet {data} is above {limit}"
        )));
    }
    Ok(match action {
        Action::Kill | Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::Errno => libc::SECCOMP_RET_ERRNO | data,
        Action::Trace => libc::SECCOMP_RET_TRACE | data,
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::Notify => libc::SECCOMP_RET_USER_NOTIF,
    })
}

/// Whether a return value lets the call happen (or, traced, lets someone else decide).
fn permissive(ret: u32) -> bool {
    matches!(
        ret & libc::SECCOMP_RET_ACTION_FULL,
        libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG | libc::SECCOMP_RET_TRACE
    )
}

/// Works out the whole profile.
pub(super) fn lower(profile: &Seccomp, machine: Machine) -> Result<Vec<Section>> {
    // defaultErrnoRet is commonly written whatever the default action is.
    let errno = profile
        .default_errno_ret
        .filter(|_| matches!(profile.default_action, Action::Errno | Action::Trace));
    let default = return_value(profile.default_action, errno)?;
    if profile.default_action == Action::Notify {
        return Err(Error::invalid(
            "seccomp: SCMP_ACT_NOTIFY cannot be the default action, because the agent could never be told of the \
             listener: name the system calls to be notified of",
        ));
    }
    let entries: Vec<Entry<'_>> = profile.syscalls.iter().map(Entry::new).collect::<Result<_>>()?;

    let mut abis = vec![machine.abi()];
    for abi in profile.architectures.iter().filter_map(|&a| machine.abi_of(a)) {
        if !abis.contains(&abi) {
            abis.push(abi);
        }
    }
    let mut sections = Vec::new();
    for &abi in &abis {
        let (audit, from) = match abi {
            Abi::X86_64 => (audit::X86_64, 0),
            // Shares its value of `arch` with x86_64, so it is part of that section.
            Abi::X32 => continue,
            Abi::I386 => (audit::I386, 0),
            Abi::Aarch64 => (audit::AARCH64, 0),
            Abi::Arm => (audit::ARM, 0),
        };
        let mut section = Section {
            audit,
            spans: Vec::new(),
            chains: Vec::new(),
        };
        section.add(abi, from, &entries, default)?;
        if abi == Abi::X86_64 {
            if abis.contains(&Abi::X32) {
                section.add(Abi::X32, X32_BIT, &entries, default)?;
            } else {
                section.push(X32_BIT, Target::Return(libc::SECCOMP_RET_KILL_THREAD));
                // Not x32: a tracer sets -1 to skip a call.
                section.push(u32::MAX, Target::Return(default));
            }
        }
        sections.push(section);
    }
    Ok(sections)
}

/// One rule of the profile, checked.
struct Entry<'a> {
    call: &'a Syscall,
    action: u32,
    /// None: unconditional.
    alternatives: Vec<Vec<&'a Arg>>,
}

impl<'a> Entry<'a> {
    fn new(call: &'a Syscall) -> Result<Self> {
        let action = return_value(call.action, call.errno_ret)?;
        if call.names.iter().any(|name| name.is_empty()) {
            return Err(Error::invalid(
                "seccomp: a rule names a system call with an empty name",
            ));
        }
        if call.action == Action::Notify && call.names.iter().any(|name| name == "write") {
            return Err(Error::invalid(
                "seccomp: SCMP_ACT_NOTIFY cannot be used for write: the container would wait for an agent that has \
                 not been told of it yet",
            ));
        }
        let mut seen = [false; 6];
        let mut twice = false;
        for arg in &call.args {
            let seen = seen.get_mut(arg.index as usize).ok_or_else(|| {
                Error::invalid(format!(
                    "seccomp: a rule for {} has a condition on argument {}: there are arguments 0 to 5",
                    call.names.first().map_or("no system call", AsRef::as_ref),
                    arg.index
                ))
            })?;
            twice |= std::mem::replace(seen, true);
        }
        let mut args: Vec<&Arg> = call.args.iter().collect();
        args.sort_by_key(|arg| arg.index);
        let alternatives = match (args.is_empty(), twice) {
            (true, _) => Vec::new(),
            (false, true) => args.into_iter().map(|arg| vec![arg]).collect(),
            (false, false) => vec![args],
        };
        Ok(Self {
            call,
            action,
            alternatives,
        })
    }

    /// Its rules for one call: one without conditions, or the alternatives.
    fn rules(&self, abi: Abi) -> Vec<Rule> {
        if self.alternatives.is_empty() {
            return vec![Rule {
                conditions: Vec::new(),
                action: self.action,
            }];
        }
        let lower = |args: &Vec<&Arg>| args.iter().map(|arg| Condition::new(arg, abi)).collect();
        self.alternatives
            .iter()
            .map(|args| Rule {
                conditions: lower(args),
                action: self.action,
            })
            .collect()
    }
}

impl Condition {
    fn new(arg: &Arg, abi: Abi) -> Self {
        let (mask, value) = match arg.op {
            Operator::MaskedEqual => (arg.value, arg.value_two),
            _ => (u64::MAX, arg.value),
        };
        let low_only = abi.is_32_bit();
        let value = if low_only {
            value & u64::from(u32::MAX)
        } else {
            value
        };
        Self {
            arg: arg.index as u8,
            low_only,
            operator: arg.op,
            mask,
            value,
        }
    }
}

impl Section {
    /// Adds what the profile says about the numbers of an ABI, which begin at `from` and are above those added before.
    fn add(&mut self, abi: Abi, from: u32, entries: &[Entry<'_>], default: u32) -> Result<()> {
        let mut found: Vec<(u32, Rule)> = Vec::new();
        let mut highest = None;
        for entry in entries {
            for name in &entry.call.names {
                let number = abi.number(name);
                // Even a rule that says nothing shows that the profile knows of the call.
                highest = highest.max(number);
                if entry.action == default {
                    continue;
                }
                if found.len() + entry.alternatives.len() > MAX_RULES {
                    return Err(super::too_long());
                }
                if let Some(number) = number {
                    found.extend(entry.rules(abi).into_iter().map(|rule| (number, rule)));
                }
                if let Some((multiplexer, code)) = abi.multiplexed(name)
                    && (entry.alternatives.is_empty() || !permissive(entry.action))
                {
                    let conditions = vec![Condition {
                        arg: 0,
                        low_only: true,
                        operator: Operator::Equal,
                        mask: u64::MAX,
                        value: code,
                    }];
                    found.push((
                        multiplexer,
                        Rule {
                            conditions,
                            action: entry.action,
                        },
                    ));
                }
            }
        }
        found.sort_by_key(|&(number, _)| number);

        self.push(from, Target::Return(default));
        let mut rest = found.as_slice();
        while let Some(&(number, _)) = rest.first() {
            let (of_this, others) = rest.split_at(rest.partition_point(|&(other, _)| other == number));
            rest = others;
            let target = self.target(of_this, default)?;
            self.push(number, target);
            self.push(number + 1, Target::Return(default));
        }
        if let (Some(highest), false) = (highest, permissive(default)) {
            let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
            self.push(highest + 1, Target::Return(enosys));
        }
        Ok(())
    }

    /// What the rules found for one call come to.
    fn target(&mut self, found: &[(u32, Rule)], default: u32) -> Result<Target> {
        if let Some((_, rule)) = found.iter().find(|(_, rule)| rule.conditions.is_empty()) {
            return Ok(Target::Return(rule.action));
        }
        if found.len() > MAX_RULES_PER_CALL {
            return Err(super::too_long());
        }
        let mut rules: Vec<Rule> = Vec::new();
        for (_, rule) in found {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        rules.sort_by_key(Rule::precedence);
        self.chains.push(Chain {
            rules,
            otherwise: default,
        });
        Ok(Target::Chain(self.chains.len() - 1))
    }

    /// From `start` on, `target`. Starts do not decrease; a later word on the same start replaces the earlier.
    fn push(&mut self, start: u32, target: Target) {
        if self.spans.last().is_some_and(|last| last.start == start) {
            self.spans.pop();
        }
        if self.spans.last().is_none_or(|last| last.target != target) {
            self.spans.push(Span { start, target });
        }
    }
}
