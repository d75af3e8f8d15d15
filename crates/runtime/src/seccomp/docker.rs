//! Docker's profile format: the OCI form, with conditions.
//!
//! `--security-opt seccomp=FILE` takes JSON in which a rule may depend on the container's capabilities (`caps`: all
//! must be in the bounding set), the machine (`arches`) and the kernel (`minKernel`), under `includes` and `excludes`;
//! `archMap` stands for `architectures`, and old files have `name` for `names`. An OCI profile is a Docker profile
//! without conditions, so the same parser reads both.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Deserializer};

use super::arch::Machine;
use super::profile::{Action, Architecture, Arg, Flag, Seccomp, Syscall, nullable};
use crate::capabilities::CapSet;
use crate::{Error, Result};

/// What `--security-opt seccomp=` takes for no filter at all.
pub const UNCONFINED: &str = "unconfined";

/// What conditions are about: where a container runs, and with what rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// The machine.
    pub machine: Machine,
    /// The running kernel.
    pub kernel: KernelVersion,
    /// The container's bounding set.
    pub bounding: CapSet,
}

impl Host {
    /// This host, for a container with this bounding set.
    pub fn current(bounding: CapSet) -> Self {
        Self {
            machine: Machine::NATIVE,
            kernel: KernelVersion::running(),
            bounding,
        }
    }
}

/// The first two numbers of a kernel's release.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// The 6 of 6.18.
    pub version: u32,
    /// The 18 of 6.18.
    pub revision: u32,
}

impl KernelVersion {
    /// The running kernel's.
    pub fn running() -> Self {
        let uname = rustix::system::uname();
        Self::of_release(&uname.release().to_string_lossy())
    }

    /// Reads a release such as `6.18.3-cloud-amd64`; what is not there counts as 0.
    fn of_release(release: &str) -> Self {
        let mut numbers = release.split('.').map(|part| {
            let digits = part.bytes().take_while(u8::is_ascii_digit).count();
            part[..digits].parse().unwrap_or(0)
        });
        let mut next = || numbers.next().unwrap_or(0);
        Self {
            version: next(),
            revision: next(),
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.version, self.revision)
    }
}

impl<'de> Deserialize<'de> for KernelVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let parsed = text.split_once('.').and_then(|(version, revision)| {
            Some(Self {
                version: number(version)?,
                revision: number(revision)?,
            })
        });
        parsed.filter(|&parsed| parsed != Self::default()).ok_or_else(|| {
            serde::de::Error::custom(format_args!(
                "invalid kernel version {text:?}: write it as <kernel>.<revision>, for example \"4.8\""
            ))
        })
    }
}

/// Digits only: no sign, no spaces.
fn number(text: &str) -> Option<u32> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// A profile as Docker's JSON has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: Option<Action>,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    architectures: Vec<Architecture>,
    #[serde(default, deserialize_with = "nullable")]
    arch_map: Vec<ArchMap>,
    flags: Option<Vec<Flag>>,
    #[serde(default, deserialize_with = "nullable")]
    listener_path: String,
    #[serde(default, deserialize_with = "nullable")]
    listener_metadata: String,
    #[serde(default, deserialize_with = "nullable")]
    syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Architecture,
    #[serde(default, deserialize_with = "nullable")]
    sub_architectures: Vec<Architecture>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default, deserialize_with = "nullable")]
    names: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    name: String,
    action: Action,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    args: Vec<Arg>,
    #[serde(default, deserialize_with = "nullable")]
    includes: Conditions,
    #[serde(default, deserialize_with = "nullable")]
    excludes: Conditions,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    #[serde(default, deserialize_with = "nullable")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    arches: Vec<String>,
    min_kernel: Option<KernelVersion>,
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// Says where the JSON is wrong.
    pub fn parse(json: &str) -> Result<Self> {
        let profile: Self = serde_json::from_str(json)
            .map_err(|error| Error::invalid(format!("read the seccomp profile: {error}")))?;
        let both = |one: &str, other: &str| {
            Error::invalid(format!(
                "read the seccomp profile: it has both '{one}' and '{other}': use one of them"
            ))
        };
        if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
            return Err(both("architectures", "archMap"));
        }
        if profile
            .syscalls
            .iter()
            .any(|rule| !rule.name.is_empty() && !rule.names.is_empty())
        {
            return Err(both("name", "names"));
        }
        if profile.default_action.is_none() && !profile.syscalls.is_empty() {
            return Err(Error::invalid(
                "read the seccomp profile: it has no defaultAction",
            ));
        }
        Ok(profile)
    }

    /// The OCI profile it comes to on a host. `None`, for no filter, if it has neither default action nor rules.
    pub fn resolve(&self, host: &Host) -> Option<Seccomp> {
        let native = host.machine.architecture();
        let mut architectures = self.architectures.clone();
        if let Some(map) = self.arch_map.iter().find(|map| map.architecture == native) {
            architectures.push(map.architecture);
            architectures.extend(&map.sub_architectures);
        }
        let syscalls = self
            .syscalls
            .iter()
            .filter(|rule| rule.includes.all(host) && !rule.excludes.any(host))
            .map(Rule::syscall)
            .collect();
        Some(Seccomp {
            default_action: self.default_action?,
            default_errno_ret: self.default_errno_ret,
            architectures,
            flags: self.flags.clone(),
            listener_path: self.listener_path.clone(),
            listener_metadata: self.listener_metadata.clone(),
            syscalls,
        })
    }
}

impl Rule {
    fn syscall(&self) -> Syscall {
        let names = if self.name.is_empty() {
            self.names.iter().map(|name| Cow::Owned(name.clone())).collect()
        } else {
            vec![Cow::Owned(self.name.clone())]
        };
        Syscall {
            names,
            action: self.action,
            errno_ret: self.errno_ret,
            args: self.args.clone(),
        }
    }
}

impl Conditions {
    fn has(host: &Host, name: &str) -> bool {
        CapSet::named(name).is_some_and(|capability| host.bounding.contains(capability))
    }

    fn machine(&self, host: &Host) -> bool {
        self.arches.iter().any(|arch| arch == host.machine.docker_name())
    }

    /// Whether each kind of condition that there is holds.
    fn all(&self, host: &Host) -> bool {
        (self.arches.is_empty() || self.machine(host))
            && self.caps.iter().all(|name| Self::has(host, name))
            && self.min_kernel.is_none_or(|least| host.kernel >= least)
    }

    /// Whether any condition holds.
    fn any(&self, host: &Host) -> bool {
        self.machine(host)
            || self.caps.iter().any(|name| Self::has(host, name))
            || self.min_kernel.is_some_and(|least| host.kernel >= least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::cap;
    use proptest::prelude::*;

    fn host(bounding: CapSet, version: u32, revision: u32) -> Host {
        let kernel = KernelVersion { version, revision };
        Host {
            machine: Machine::X86_64,
            kernel,
            bounding,
        }
    }

    fn names(profile: &Seccomp) -> Vec<&str> {
        profile
            .syscalls
            .iter()
            .flat_map(|call| call.names.iter().map(AsRef::as_ref))
            .collect()
    }

    const CONDITIONS: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
            {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null}
        ],
        "syscalls": [
            {"names": ["always"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": {}, "excludes": null},
            {"name": "old_form", "action": "SCMP_ACT_ALLOW", "comment": "x"},
            {"names": ["kernel"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["old_kernel"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}},
            {"names": ["cap"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}},
            {"names": ["no_cap"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}},
            {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_FUTURE"]}},
            {"names": ["x86"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["not_x86"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
            {"names": ["both"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]},
             "excludes": {"caps": ["CAP_SYS_ADMIN"]}}
        ]
    }"#;

    #[test]
    fn conditions() {
        let profile = Profile::parse(CONDITIONS).unwrap();
        let plain = profile.resolve(&host(CapSet::EMPTY, 4, 7)).unwrap();
        assert_eq!(
            names(&plain),
            ["always", "old_form", "old_kernel", "no_cap", "x86", "both"]
        );
        assert_eq!(
            plain.architectures,
            [Architecture::X86_64, Architecture::X86, Architecture::X32]
        );
        let one = profile.resolve(&host(cap::SYS_ADMIN, 4, 8)).unwrap();
        assert_eq!(names(&one), ["always", "old_form", "kernel", "x86"]);
        let two = profile.resolve(&host(cap::SYS_ADMIN | cap::BPF, 5, 0)).unwrap();
        assert_eq!(names(&two), ["always", "old_form", "kernel", "cap", "x86"]);
    }

    #[test]
    fn contradictions() {
        for (json, what) in [
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "architectures": ["SCMP_ARCH_X86"],
                    "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}"#,
                "archMap",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls":
                    [{"name": "a", "names": ["b"], "action": "SCMP_ACT_LOG"}]}"#,
                "'name' and 'names'",
            ),
            (
                r#"{"syscalls": [{"name": "a", "action": "SCMP_ACT_LOG"}]}"#,
                "defaultAction",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_LOG", "syscalls":
                    [{"name": "a", "action": "SCMP_ACT_LOG", "includes": {"minKernel": "4"}}]}"#,
                "kernel version",
            ),
            ("{", "EOF"),
        ] {
            let error = Profile::parse(json).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn empty_means_no_filter() {
        assert_eq!(
            Profile::parse("{}").unwrap().resolve(&host(CapSet::EMPTY, 6, 1)),
            None
        );
    }

    #[test]
    fn releases() {
        for (release, version, revision) in [
            ("6.18.3-cloud", 6, 18),
            ("3.12-1-amd64", 3, 12),
            ("5", 5, 0),
            ("", 0, 0),
            ("x.y", 0, 0),
        ] {
            assert_eq!(
                KernelVersion::of_release(release),
                KernelVersion { version, revision }
            );
        }
        assert!(
            KernelVersion::running()
                >= KernelVersion {
                    version: 4,
                    revision: 0
                }
        );
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*") {
            let _ = Profile::parse(&text);
        }

        #[test]
        fn any_version_is_survived(text in "[0-9.+ -]{0,12}") {
            let json = serde_json::to_string(&text).unwrap();
            if let Ok(version) = serde_json::from_str::<KernelVersion>(&json) {
                prop_assert_eq!(KernelVersion::of_release(&text), version);
            }
        }

        #[test]
        fn a_cut_profile_is_survived(end in 0..CONDITIONS.len()) {
            prop_assert!(Profile::parse(&CONDITIONS[..end]).is_err());
        }
    }
}
