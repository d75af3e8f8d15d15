//! Capabilities: names, sets, Docker's arithmetic with them, and giving them to a process.
//!
//! A set is 64 bits. Names are accepted with or without `CAP_`, in any case, where users write them; OCI configurations
//! must spell them in full. What the kernel does not know, or this process does not own, is left out and reported:
//! an engine meets hosts (nested ones above all) that lack a capability, and a container without it is better than
//! none. Rights that should go and cannot are an error.
//!
//! See `capabilities(7)`, and `config.md` of the OCI runtime specification.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Sub};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::Context;
use crate::{Error, Result};

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapSet(u64);

/// Every capability's name by its number, without `CAP_`. See `include/uapi/linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities one by one, as sets of one.
#[allow(missing_docs)]
pub mod cap {
    use super::CapSet;

    pub const CHOWN: CapSet = CapSet::number(0);
    pub const DAC_OVERRIDE: CapSet = CapSet::number(1);
    pub const DAC_READ_SEARCH: CapSet = CapSet::number(2);
    pub const FOWNER: CapSet = CapSet::number(3);
    pub const FSETID: CapSet = CapSet::number(4);
    pub const KILL: CapSet = CapSet::number(5);
    pub const SETGID: CapSet = CapSet::number(6);
    pub const SETUID: CapSet = CapSet::number(7);
    pub const SETPCAP: CapSet = CapSet::number(8);
    pub const LINUX_IMMUTABLE: CapSet = CapSet::number(9);
    pub const NET_BIND_SERVICE: CapSet = CapSet::number(10);
    pub const NET_BROADCAST: CapSet = CapSet::number(11);
    pub const NET_ADMIN: CapSet = CapSet::number(12);
    pub const NET_RAW: CapSet = CapSet::number(13);
    pub const IPC_LOCK: CapSet = CapSet::number(14);
    pub const IPC_OWNER: CapSet = CapSet::number(15);
    pub const SYS_MODULE: CapSet = CapSet::number(16);
    pub const SYS_RAWIO: CapSet = CapSet::number(17);
    pub const SYS_CHROOT: CapSet = CapSet::number(18);
    pub const SYS_PTRACE: CapSet = CapSet::number(19);
    pub const SYS_PACCT: CapSet = CapSet::number(20);
    pub const SYS_ADMIN: CapSet = CapSet::number(21);
    pub const SYS_BOOT: CapSet = CapSet::number(22);
    pub const SYS_NICE: CapSet = CapSet::number(23);
    pub const SYS_RESOURCE: CapSet = CapSet::number(24);
    pub const SYS_TIME: CapSet = CapSet::number(25);
    pub const SYS_TTY_CONFIG: CapSet = CapSet::number(26);
    pub const MKNOD: CapSet = CapSet::number(27);
    pub const LEASE: CapSet = CapSet::number(28);
    pub const AUDIT_WRITE: CapSet = CapSet::number(29);
    pub const AUDIT_CONTROL: CapSet = CapSet::number(30);
    pub const SETFCAP: CapSet = CapSet::number(31);
    pub const MAC_OVERRIDE: CapSet = CapSet::number(32);
    pub const MAC_ADMIN: CapSet = CapSet::number(33);
    pub const SYSLOG: CapSet = CapSet::number(34);
    pub const WAKE_ALARM: CapSet = CapSet::number(35);
    pub const BLOCK_SUSPEND: CapSet = CapSet::number(36);
    pub const AUDIT_READ: CapSet = CapSet::number(37);
    pub const PERFMON: CapSet = CapSet::number(38);
    pub const BPF: CapSet = CapSet::number(39);
    pub const CHECKPOINT_RESTORE: CapSet = CapSet::number(40);
}

impl CapSet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// All that this program has a name for.
    pub const KNOWN: Self = Self((1 << NAMES.len()) - 1);

    /// What a container gets unless told otherwise: Docker's set.
    pub const DEFAULT: Self = Self(
        cap::CHOWN.0
            | cap::DAC_OVERRIDE.0
            | cap::FOWNER.0
            | cap::FSETID.0
            | cap::KILL.0
            | cap::SETGID.0
            | cap::SETUID.0
            | cap::SETPCAP.0
            | cap::NET_BIND_SERVICE.0
            | cap::NET_RAW.0
            | cap::SYS_CHROOT.0
            | cap::MKNOD.0
            | cap::AUDIT_WRITE.0
            | cap::SETFCAP.0,
    );

    const fn number(number: u8) -> Self {
        Self(1 << number)
    }

    /// The set with these bits, of which bit n is capability number n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The capability with this full name (`CAP_SYS_ADMIN`), exactly as the OCI specification spells it.
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix("CAP_")?;
        let number = NAMES.iter().position(|&known| known == name)?;
        Some(Self::number(number as u8))
    }

    /// The capability a user means: any case, `CAP_` or not.
    pub fn meant(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let number = NAMES.iter().position(|&known| known == name)?;
        Some(Self::number(number as u8))
    }

    /// Whether all of `other` is in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in it, one by one, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Self> {
        (0..64)
            .map(|number| Self(1 << number))
            .filter(move |&one| self.contains(one))
    }

    /// Their full names; numbers without a name (`CAP_41`) for those newer than this program.
    pub fn names(self) -> Vec<String> {
        self.iter().map(|one| one.name()).collect()
    }

    fn name(self) -> String {
        let number = self.0.trailing_zeros() as usize;
        NAMES
            .get(number)
            .map_or_else(|| format!("CAP_{number}"), |name| format!("CAP_{name}"))
    }

    /// All that the running kernel knows.
    pub fn of_kernel() -> Self {
        static OF_KERNEL: OnceLock<CapSet> = OnceLock::new();
        *OF_KERNEL.get_or_init(|| {
            let exists = |number: u32| {
                rustix::thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << number))
                    .is_ok()
            };
            // Numbers are dense: the kernel knows those below the first it refuses to speak of.
            let (mut known, mut unknown) = (0, 64);
            while known < unknown {
                let middle = (known + unknown) / 2;
                if exists(middle) {
                    known = middle + 1;
                } else {
                    unknown = middle;
                }
            }
            if known == 64 {
                Self(u64::MAX)
            } else {
                Self((1 << known) - 1)
            }
        })
    }

    /// What this thread may hand on: its permitted set.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn own() -> Result<Self> {
        let sets = rustix::thread::capabilities(None).context(|| "read this process's capabilities")?;
        Ok(Self(sets.permitted.bits()))
    }
}

impl BitOr for CapSet {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for CapSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for CapSet {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Without those of the other set.
impl Sub for CapSet {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// Full names, separated by commas.
impl fmt::Display for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, one) in self.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { ", " }, one.name())?;
        }
        Ok(())
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

/// Docker's `--cap-add`, `--cap-drop` and `--privileged`: what a container's bounding set is.
///
/// `available` is what the engine can give ([`CapSet::own`]); `ALL` and privileged mean all of that. `ALL` among the
/// added wins over the default set, and single drops over it; `ALL` among the dropped leaves what is added by name.
///
/// # Errors
/// Names what is unknown, or not available here.
pub fn resolve(
    add: &[impl AsRef<str>],
    drop: &[impl AsRef<str>],
    privileged: bool,
    available: CapSet,
) -> Result<CapSet> {
    if privileged {
        return Ok(available);
    }
    let (drop_all, drop) = meant(drop, available)?;
    let (add_all, add) = meant(add, available)?;
    Ok(match (add_all, drop_all) {
        (true, _) => available - drop,
        (false, true) => add,
        (false, false) => ((CapSet::DEFAULT & available) - drop) | add,
    })
}

/// What names mean: whether `ALL` is among them, and the others.
fn meant(names: &[impl AsRef<str>], available: CapSet) -> Result<(bool, CapSet)> {
    let mut all = false;
    let mut set = CapSet::EMPTY;
    for name in names {
        let name = name.as_ref();
        if name.eq_ignore_ascii_case("ALL") {
            all = true;
            continue;
        }
        let one = CapSet::meant(name).ok_or_else(|| {
            Error::invalid(format!(
                "unknown capability: {name:?}: see capabilities(7) for the names"
            ))
        })?;
        if !available.contains(one) {
            return Err(Error::invalid(format!(
                "capability {one} is not supported by this kernel, or the engine does not have it to give"
            )));
        }
        set |= one;
    }
    Ok((all, set))
}

/// The five sets of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// What the process and all it executes can ever have.
    pub bounding: CapSet,
    /// What the kernel checks.
    pub effective: CapSet,
    /// What it may make effective.
    pub permitted: CapSet,
    /// What it keeps when it executes a file that has the same in its own inheritable set.
    pub inheritable: CapSet,
    /// What it keeps when it executes an ordinary file as an ordinary user.
    pub ambient: CapSet,
}

impl Sets {
    /// Docker's choice: an ordinary user starts without capabilities, and may gain those of the bounding set through
    /// set-user-ID programs and file capabilities; root has them all at once. Nothing is inheritable
    /// (CVE-2022-24769).
    pub fn for_user(bounding: CapSet, uid: u32) -> Self {
        let held = if uid == 0 { bounding } else { CapSet::EMPTY };
        Self {
            bounding,
            effective: held,
            permitted: held,
            ..Self::default()
        }
    }

    /// Reads the OCI lists. Names that are misspelt, or that this kernel does not know, are left out and returned.
    pub fn from_names(
        bounding: &[String],
        effective: &[String],
        permitted: &[String],
        inheritable: &[String],
        ambient: &[String],
    ) -> (Self, Vec<String>) {
        let known = CapSet::of_kernel();
        let mut unknown = Vec::new();
        let mut read = |names: &[String]| {
            let mut set = CapSet::EMPTY;
            for name in names {
                match CapSet::named(name) {
                    Some(one) if known.contains(one) => set |= one,
                    _ if unknown.contains(name) => {}
                    _ => unknown.push(name.clone()),
                }
            }
            set
        };
        let sets = Self {
            bounding: read(bounding),
            effective: read(effective),
            permitted: read(permitted),
            inheritable: read(inheritable),
            ambient: read(ambient),
        };
        (sets, unknown)
    }

    /// Step one, as root in the container's user namespace: cuts the bounding set, and keeps the permitted set over
    /// the change of user that comes next.
    ///
    /// # Errors
    /// When the bounding set cannot be cut.
    pub fn before_user(&self) -> Result<()> {
        for one in (CapSet::of_kernel() - self.bounding).iter() {
            let raw = CapabilitySet::from_bits_retain(one.bits());
            let failed = match rustix::thread::remove_capability_from_bounding_set(raw) {
                // Without CAP_SETPCAP nothing can be cut; but perhaps there is nothing to cut.
                Err(Errno::PERM) if rustix::thread::capability_is_in_bounding_set(raw) == Ok(false) => Ok(()),
                result => result,
            };
            failed.context(|| format!("remove {one} from the capability bounding set"))?;
        }
        rustix::thread::set_keep_capabilities(true).context(|| "keep capabilities over the change of user")
    }

    /// Step two, as the container's user: sets the other four. Returns those asked for that could not be had, because
    /// this process does not have them, or because the sets contradict each other.
    ///
    /// # Errors
    /// When the kernel refuses even what it should grant.
    pub fn after_user(&self) -> Result<CapSet> {
        let what = || "set the capabilities of the container's process";
        rustix::thread::set_keep_capabilities(false).context(what)?;
        let old = rustix::thread::capabilities(None).context(what)?;
        let own = CapSet(old.permitted.bits());
        let permitted = self.permitted & own;
        let effective = self.effective & permitted;
        let inheritable = self.inheritable & ((own & self.bounding) | CapSet(old.inheritable.bits()));
        let raw = |set: CapSet| CapabilitySet::from_bits_retain(set.0);
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: raw(effective),
                permitted: raw(permitted),
                inheritable: raw(inheritable),
            },
        )
        .context(what)?;
        match rustix::thread::clear_ambient_capability_set() {
            // Before Linux 4.3 there is no such set.
            Ok(()) | Err(Errno::INVAL) => {}
            result => result.context(what)?,
        }
        let mut ambient = CapSet::EMPTY;
        for one in (self.ambient & permitted & inheritable).iter() {
            if rustix::thread::configure_capability_in_ambient_set(raw(one), true).is_ok() {
                ambient |= one;
            }
        }
        Ok((self.permitted - permitted)
            | (self.effective - effective)
            | (self.inheritable - inheritable)
            | (self.ambient - ambient))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Capabilities belong to threads: what is done to this one ends with it.
    fn in_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    fn current() -> CapabilitySets {
        rustix::thread::capabilities(None).unwrap()
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn names_and_numbers() {
        assert_eq!(
            CapSet::named("CAP_CHECKPOINT_RESTORE"),
            Some(cap::CHECKPOINT_RESTORE)
        );
        assert_eq!(cap::CHECKPOINT_RESTORE.bits(), 1 << 40);
        assert_eq!(CapSet::named("sys_admin"), None);
        assert_eq!(CapSet::meant("sys_admin"), Some(cap::SYS_ADMIN));
        assert_eq!(CapSet::meant("Cap_Net_Raw"), Some(cap::NET_RAW));
        assert_eq!(CapSet::meant(""), None);
        assert_eq!(CapSet::KNOWN.iter().count(), 41);
        assert_eq!((cap::BPF | CapSet(1 << 50)).to_string(), "CAP_BPF, CAP_50");
        // The constants are in the order of the names.
        assert_eq!(CapSet::named("CAP_AUDIT_READ"), Some(cap::AUDIT_READ));
        assert_eq!(CapSet::named("CAP_MKNOD"), Some(cap::MKNOD));
    }

    #[test]
    fn the_kernel_s_agree_with_proc() {
        let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(CapSet::of_kernel().bits(), u64::MAX >> (63 - last));
    }

    #[test]
    fn docker_arithmetic() {
        let all = CapSet::KNOWN - cap::SYS_RESOURCE;
        let of = |add: &[&str], drop: &[&str]| resolve(add, drop, false, all);
        assert_eq!(of(&[], &[]).unwrap(), CapSet::DEFAULT);
        assert_eq!(CapSet::DEFAULT.iter().count(), 14);
        assert_eq!(
            of(&["net_admin"], &["CAP_MKNOD"]).unwrap(),
            (CapSet::DEFAULT | cap::NET_ADMIN) - cap::MKNOD
        );
        assert_eq!(of(&["ALL"], &["sys_admin"]).unwrap(), all - cap::SYS_ADMIN);
        assert_eq!(of(&["kill"], &["all"]).unwrap(), cap::KILL);
        assert_eq!(of(&["ALL"], &["ALL"]).unwrap(), all);
        assert_eq!(of(&["kill"], &["kill"]).unwrap(), CapSet::DEFAULT);
        assert_eq!(resolve(&NONE, &NONE, true, all).unwrap(), all);
        assert!(
            of(&["nonsense"], &[])
                .unwrap_err()
                .to_string()
                .contains("\"nonsense\"")
        );
        assert!(
            of(&["sys_resource"], &[])
                .unwrap_err()
                .to_string()
                .contains("CAP_SYS_RESOURCE")
        );
        assert!(of(&[], &["nonsense"]).is_err());
    }

    #[test]
    fn unknown_names_are_returned_once() {
        let list = ["CAP_KILL", "CAP_NEWER", "cap_kill"].map(String::from);
        let (sets, unknown) = Sets::from_names(&list, &list[..1], &[], &list, &[]);
        assert_eq!(sets.bounding, cap::KILL);
        assert_eq!(sets.inheritable, cap::KILL);
        assert_eq!(unknown, ["CAP_NEWER", "cap_kill"]);
    }

    #[test]
    fn sets_survive_the_change_of_user() {
        in_a_thread(|| {
            let held = cap::KILL | cap::NET_BIND_SERVICE;
            let sets = Sets {
                bounding: held | cap::CHOWN,
                effective: held,
                permitted: held,
                inheritable: held,
                ambient: cap::KILL,
            };
            sets.before_user().unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(12345)).unwrap();
            assert_eq!(sets.after_user().unwrap(), CapSet::EMPTY);
            let now = current();
            assert_eq!(now.effective.bits(), held.bits());
            assert_eq!(now.permitted.bits(), held.bits());
            assert_eq!(now.inheritable.bits(), held.bits());
            let bounding = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = |name: &str| {
                let line = bounding.lines().find(|line| line.starts_with(name)).unwrap();
                u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
            };
            assert_eq!(line("CapBnd:"), sets.bounding.bits());
            assert_eq!(line("CapAmb:"), cap::KILL.bits());
        });
    }

    #[test]
    fn an_ordinary_user_starts_without() {
        in_a_thread(|| {
            let sets = Sets::for_user(CapSet::DEFAULT, 1000);
            sets.before_user().unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(1000)).unwrap();
            assert_eq!(sets.after_user().unwrap(), CapSet::EMPTY);
            assert!(current().permitted.is_empty());
        });
        let root = Sets::for_user(CapSet::DEFAULT, 0);
        assert_eq!(
            (root.effective, root.inheritable),
            (CapSet::DEFAULT, CapSet::EMPTY)
        );
    }

    #[test]
    fn what_is_not_owned_is_lowered_and_reported() {
        in_a_thread(|| {
            let own = CapSet::own().unwrap();
            let first = Sets::for_user(own, 0);
            let less = Sets {
                permitted: own - cap::SYS_ADMIN,
                effective: own - cap::SYS_ADMIN,
                ..first
            };
            less.before_user().unwrap();
            less.after_user().unwrap();
            let wanted = cap::SYS_ADMIN | cap::KILL;
            let again = Sets {
                bounding: own,
                effective: wanted,
                permitted: wanted,
                inheritable: CapSet::EMPTY,
                ambient: cap::KILL,
            };
            // SYS_ADMIN is gone; KILL cannot be ambient without being inheritable.
            assert_eq!(again.after_user().unwrap(), wanted);
            assert_eq!(current().effective.bits(), cap::KILL.bits());
        });
    }

    #[test]
    fn a_bounding_set_that_cannot_be_cut_is_an_error() {
        in_a_thread(|| {
            let own = CapSet::own().unwrap();
            let first = Sets {
                bounding: own,
                permitted: cap::KILL,
                effective: cap::KILL,
                ..Sets::default()
            };
            first.before_user().unwrap();
            first.after_user().unwrap();
            first.before_user().unwrap();
            let error = Sets::default().before_user().unwrap_err();
            // What is not in it need not be cut: this host may lack some, and the rest is kept.
            let missing = CapSet::of_kernel() - own;
            Sets {
                bounding: CapSet::of_kernel() - missing,
                ..Sets::default()
            }
            .before_user()
            .unwrap();
            assert_eq!(error.kind(), crate::ErrorKind::Permission);
            assert!(error.to_string().contains("CAP_"), "{error}");
        });
    }

    proptest! {
        #[test]
        fn names_round_trip(bits: u64) {
            let set = CapSet::from_bits(bits) & CapSet::KNOWN;
            let back = set.names().iter().filter_map(|name| CapSet::named(name)).fold(CapSet::EMPTY, BitOr::bitor);
            prop_assert_eq!(back, set);
        }

        #[test]
        fn any_name_is_survived(name in "\\PC{0,40}") {
            let _ = (CapSet::named(&name), resolve(&[&name], &[&name], false, CapSet::KNOWN));
        }

        #[test]
        fn never_more_than_available(available: u64, add in prop::sample::subsequence(&NAMES[..], 0..5)) {
            let available = CapSet::from_bits(available);
            if let Ok(set) = resolve(&add, &NONE, false, available) {
                prop_assert!(available.contains(set));
            }
        }
    }
}
