//! `linux.seccomp` of an OCI `config.json`: which system calls a container may make.
//!
//! Follows the runtime specification 1.2 (`config-linux.md`, "Seccomp"). The types only hold what the text says;
//! [`compile`](super::compile) gives it meaning and checks it.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, Serialize};

/// A filter: rules for system calls, and what happens to all others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to a system call that no rule matches.
    pub default_action: Action,
    /// The errno (or the tracer's message) of the default action; `EPERM` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// The ABIs the rules cover, besides the machine's own. Calls through any other kill the thread.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub architectures: Vec<Architecture>,
    /// Flags for the kernel. Absent is not empty: absent leaves speculative store bypass enabled where possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<Flag>>,
    /// Unix socket of the agent that is to get the listener for [`Action::Notify`].
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub listener_path: String,
    /// Passed on to that agent.
    #[serde(
        default,
        skip_serializing_if = "String::is_empty",
        deserialize_with = "nullable"
    )]
    pub listener_metadata: String,
    /// The rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub syscalls: Vec<Syscall>,
}

/// One rule: some system calls, under some conditions, get an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Syscall {
    /// System calls by name. Names that no ABI here has are ignored.
    pub names: Vec<Cow<'static, str>>,
    /// What happens.
    pub action: Action,
    /// The errno of [`Action::Errno`] or the message of [`Action::Trace`]; `EPERM` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// Conditions on arguments: all must hold. But when one argument occurs twice, any one of them suffices.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub args: Vec<Arg>,
}

/// A condition on one argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Arg {
    /// Which argument, from 0 to 5.
    pub index: u32,
    /// What to compare with; for [`Operator::MaskedEqual`] the mask.
    pub value: u64,
    /// For [`Operator::MaskedEqual`], what the masked argument must equal.
    #[serde(default, skip_serializing_if = "is_zero", deserialize_with = "nullable")]
    pub value_two: u64,
    /// How to compare.
    pub op: Operator,
}

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// Ends the thread (the older name of [`Action::KillThread`]).
    #[serde(rename = "SCMP_ACT_KILL")]
    Kill,
    /// Ends the process.
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    /// Ends the thread.
    #[serde(rename = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    /// Sends `SIGSYS`.
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    /// Fails with an errno.
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    /// Asks the tracer; without one, `ENOSYS`.
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    /// Goes ahead.
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    /// Goes ahead and is logged.
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    /// Asks the agent at [`Seccomp::listener_path`].
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

/// How an argument is compared, as unsigned 64-bit numbers (32-bit in 32-bit ABIs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// `argument != value`
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    /// `argument < value`
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    /// `argument <= value`
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    /// `argument == value`
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    /// `argument >= value`
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    /// `argument > value`
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == valueTwo`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// Flags of `seccomp(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Flag {
    /// Every thread of the process gets the filter.
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    /// Actions other than allow are logged.
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    /// Speculative store bypass stays enabled.
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
    /// While the agent decides, only fatal signals interrupt the call.
    #[serde(rename = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")]
    WaitKillableRecv,
}

/// Every ABI the specification names. Those that this machine's kernel cannot run are accepted and generate nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Architecture {
    #[serde(rename = "SCMP_ARCH_X86")]
    X86,
    #[serde(rename = "SCMP_ARCH_X86_64")]
    X86_64,
    #[serde(rename = "SCMP_ARCH_X32")]
    X32,
    #[serde(rename = "SCMP_ARCH_ARM")]
    Arm,
    #[serde(rename = "SCMP_ARCH_AARCH64")]
    Aarch64,
    #[serde(rename = "SCMP_ARCH_LOONGARCH64")]
    Loongarch64,
    #[serde(rename = "SCMP_ARCH_M68K")]
    M68k,
    #[serde(rename = "SCMP_ARCH_MIPS")]
    Mips,
    #[serde(rename = "SCMP_ARCH_MIPS64")]
    Mips64,
    #[serde(rename = "SCMP_ARCH_MIPS64N32")]
    Mips64N32,
    #[serde(rename = "SCMP_ARCH_MIPSEL")]
    Mipsel,
    #[serde(rename = "SCMP_ARCH_MIPSEL64")]
    Mipsel64,
    #[serde(rename = "SCMP_ARCH_MIPSEL64N32")]
    Mipsel64N32,
    #[serde(rename = "SCMP_ARCH_PARISC")]
    Parisc,
    #[serde(rename = "SCMP_ARCH_PARISC64")]
    Parisc64,
    #[serde(rename = "SCMP_ARCH_PPC")]
    Ppc,
    #[serde(rename = "SCMP_ARCH_PPC64")]
    Ppc64,
    #[serde(rename = "SCMP_ARCH_PPC64LE")]
    Ppc64le,
    #[serde(rename = "SCMP_ARCH_RISCV64")]
    Riscv64,
    #[serde(rename = "SCMP_ARCH_S390")]
    S390,
    #[serde(rename = "SCMP_ARCH_S390X")]
    S390x,
    #[serde(rename = "SCMP_ARCH_SH")]
    Sh,
    #[serde(rename = "SCMP_ARCH_SHEB")]
    Sheb,
}

/// Everything this compiler knows, in the specification's spelling, for `features`.
pub mod known {
    /// [`Action`](super::Action)s.
    pub const ACTIONS: [&str; 9] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ];
    /// [`Operator`](super::Operator)s.
    pub const OPERATORS: [&str; 7] = [
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ];
    /// ABIs that rules can be compiled for on this machine.
    #[cfg(target_arch = "x86_64")]
    pub const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"];
    /// ABIs that rules can be compiled for on this machine.
    #[cfg(target_arch = "aarch64")]
    pub const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
    /// [`Flag`](super::Flag)s.
    pub const FLAGS: [&str; 4] = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
}

/// `null` stands for the empty value: Go programs write their empty lists so.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
pub(super) fn is_zero(value: &u64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_s_example() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{
                "names": ["getcwd", "chmod"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 13,
                "args": [{"index": 1, "value": 2080505856, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]
            }]
        }"#;
        let seccomp: Seccomp = serde_json::from_str(text).unwrap();
        assert_eq!(seccomp.default_action, Action::Allow);
        assert_eq!(seccomp.architectures, [Architecture::X86, Architecture::X32]);
        assert_eq!(seccomp.flags, None);
        assert_eq!(seccomp.syscalls[0].names, ["getcwd", "chmod"]);
        assert_eq!(seccomp.syscalls[0].args[0].op, Operator::MaskedEqual);
        let again = serde_json::to_string(&seccomp).unwrap();
        assert_eq!(serde_json::from_str::<Seccomp>(&again).unwrap(), seccomp);
    }

    #[test]
    fn nulls_are_empty() {
        let text = r#"{"defaultAction": "SCMP_ACT_LOG", "architectures": null, "flags": null, "syscalls": null,
            "listenerPath": null}"#;
        let seccomp: Seccomp = serde_json::from_str(text).unwrap();
        assert!(seccomp.syscalls.is_empty() && seccomp.architectures.is_empty());
        assert_eq!(seccomp.flags, None);
    }

    #[test]
    fn unknown_words_are_named() {
        for (text, word) in [
            (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "SCMP_ACT_MAYBE"),
            (r#"{"defaultAction": "SCMP_ACT_LOG", "flags": ["FAST"]}"#, "FAST"),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "architectures": ["VAX"]}"#,
                "VAX",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls":
                   [{"names": [], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 0, "op": "<"}]}]}"#,
                "<",
            ),
        ] {
            let error = serde_json::from_str::<Seccomp>(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn known_words_are_known() {
        fn parse<T: serde::de::DeserializeOwned>(words: &[&str]) {
            for word in words {
                serde_json::from_value::<T>((*word).into()).unwrap();
            }
        }
        parse::<Action>(&known::ACTIONS);
        parse::<Operator>(&known::OPERATORS);
        parse::<Architecture>(&known::ARCHITECTURES);
        parse::<Flag>(&known::FLAGS);
    }
}
