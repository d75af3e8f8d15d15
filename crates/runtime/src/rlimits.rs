//! Resource limits: names, Docker's `--ulimit`, and setting them.
//!
//! Raising a hard limit takes `CAP_SYS_RESOURCE`, which nested and rootless hosts lack: there the limit is set as high as
//! it can be, and what was lowered is returned for the caller to tell.
//!
//! See `getrlimit(2)`.

use std::fmt;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, getrlimit, prlimit};

use crate::error::Context;
use crate::{Error, Result};

/// Every resource with its name in OCI configurations. Docker's name is the part after `RLIMIT_`, in small letters.
const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// No limit, as OCI configurations write it.
pub const UNLIMITED: u64 = u64::MAX;

/// A limit on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    resource: Resource,
    /// The limit in force; [`UNLIMITED`] for none.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

impl Limit {
    /// A limit with an OCI name.
    ///
    /// # Errors
    /// When there is no such resource, or the soft limit is above the hard one.
    pub fn new(name: &str, soft: u64, hard: u64) -> Result<Self> {
        let resource = RESOURCES.iter().find(|(known, _)| *known == name);
        let &(_, resource) = resource.ok_or_else(|| {
            Error::invalid(format!(
                "unknown resource limit {name:?}: see getrlimit(2) for the names"
            ))
        })?;
        if soft > hard {
            return Err(Error::invalid(format!(
                "the soft limit {} of {name} is above its hard limit {}",
                Number(soft),
                Number(hard)
            )));
        }
        Ok(Self { resource, soft, hard })
    }

    /// The resource's number in prlimit(2).
    pub fn number(&self) -> u32 {
        self.resource as u32
    }

    /// Reads Docker's `--ulimit`: `name=soft[:hard]`, where -1 is no limit and the hard limit is the soft one unless
    /// given.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |what: String| Error::invalid(format!("invalid ulimit {text:?}: {what}"));
        let (name, values) = text
            .split_once('=')
            .ok_or_else(|| invalid("write it as name=soft[:hard], for example nofile=1024:2048".into()))?;
        let number = |value: &str| match value {
            "-1" => Ok(UNLIMITED),
            // A sign, a space or more digits than fit: `parse` for signed numbers would take the first.
            _ if value.bytes().all(|byte| byte.is_ascii_digit()) => value
                .parse()
                .map_err(|_| invalid(format!("{value:?} is not a number"))),
            _ => Err(invalid(format!(
                "{value:?} is not a number; -1 stands for no limit"
            ))),
        };
        let (soft, hard) = match values.split_once(':') {
            Some((soft, hard)) => (number(soft)?, number(hard)?),
            None => (number(values)?, number(values)?),
        };
        let resource = RESOURCES
            .iter()
            // Docker does not offer RLIMIT_AS.
            .filter(|(_, resource)| *resource != Resource::As)
            .find(|(oci, _)| {
                oci["RLIMIT_".len()..].eq_ignore_ascii_case(name) && name == name.to_ascii_lowercase()
            });
        let &(_, resource) = resource.ok_or_else(|| {
            let names: Vec<String> = RESOURCES
                .iter()
                .filter(|(_, resource)| *resource != Resource::As)
                .map(|(oci, _)| oci["RLIMIT_".len()..].to_ascii_lowercase())
                .collect();
            invalid(format!("there is no {name:?}: use one of {}", names.join(", ")))
        })?;
        if soft > hard {
            return Err(invalid(format!(
                "the soft limit {} is above the hard limit {}",
                Number(soft),
                Number(hard)
            )));
        }
        Ok(Self { resource, soft, hard })
    }

    /// The OCI name, `RLIMIT_…`.
    pub fn name(&self) -> &'static str {
        RESOURCES
            .iter()
            .find(|(_, known)| *known == self.resource)
            .map_or("", |(name, _)| name)
    }

    /// Docker's name, without the prefix and in small letters.
    pub fn docker_name(&self) -> String {
        self.name().trim_start_matches("RLIMIT_").to_ascii_lowercase()
    }
}

/// As Docker writes it: `nofile=1024:2048`.
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}={}:{}",
            self.docker_name(),
            Number(self.soft),
            Number(self.hard)
        )
    }
}

struct Number(u64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == UNLIMITED {
            f.write_str("-1")
        } else {
            write!(f, "{}", self.0)
        }
    }
}

/// A limit that could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lowered {
    /// What was asked for.
    pub wanted: Limit,
    /// What was set.
    pub set: Limit,
}

impl fmt::Display for Lowered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ulimit {} was lowered to {}: raising it takes CAP_SYS_RESOURCE",
            self.wanted, self.set
        )
    }
}

/// Sets limits of a process (`None`: of this one). Returns those that had to be lowered.
///
/// # Errors
/// When the process is gone, or not ours to change.
pub fn apply(process: Option<Pid>, limits: &[Limit]) -> Result<Vec<Lowered>> {
    let mut lowered = Vec::new();
    for &wanted in limits {
        match set(process, wanted) {
            Ok(()) => continue,
            Err(Errno::PERM) => {}
            result => result.context(|| format!("set {wanted}"))?,
        }
        let current = current(process, wanted.resource).context(|| format!("read {}", wanted.name()))?;
        let hard = wanted.hard.min(current.hard);
        let got = Limit {
            soft: wanted.soft.min(hard),
            hard,
            ..wanted
        };
        match set(process, got) {
            Ok(()) => lowered.push(Lowered { wanted, set: got }),
            // The system's own ceiling (fs.nr_open) is below even the limit in force: leave that.
            Err(Errno::PERM) if wanted.hard >= current.hard => {
                lowered.push(Lowered { wanted, set: current });
            }
            result => result.context(|| format!("set {wanted}"))?,
        }
    }
    Ok(lowered)
}

/// The soft limit of descriptors before [`raise_descriptors`].
static DESCRIPTORS: OnceLock<Option<u64>> = OnceLock::new();

/// Raises this process's soft limit of descriptors to the hard one, where it stays. Containers should start with the limit
/// that was before ([`InheritedFds::limit`](crate::shim::protocol::InheritedFds)): programs that use `select(2)` do not
/// survive a higher one.
///
/// # Errors
/// What the kernel says.
pub fn raise_descriptors() -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    // Whoever comes second finds what the first has raised.
    DESCRIPTORS.get_or_init(|| now.current);
    let raised = rustix::process::Rlimit {
        current: now.maximum,
        ..now
    };
    rustix::process::setrlimit(Resource::Nofile, raised).context(|| "raise the limit of descriptors")
}

/// The soft limit of descriptors before they were raised, when they were.
pub fn descriptors_before() -> Option<u64> {
    *DESCRIPTORS.get()?
}

/// Sets this process's soft limit of descriptors back.
pub(crate) fn lower_descriptors(soft: u64) -> Result<()> {
    let now = rustix::process::Rlimit {
        current: Some(soft),
        ..getrlimit(Resource::Nofile)
    };
    rustix::process::setrlimit(Resource::Nofile, now).context(|| "lower the limit of descriptors")
}

fn set(process: Option<Pid>, limit: Limit) -> rustix::io::Result<()> {
    let value = |value| (value != UNLIMITED).then_some(value);
    let new = rustix::process::Rlimit {
        current: value(limit.soft),
        maximum: value(limit.hard),
    };
    prlimit(process, limit.resource, new).map(drop)
}

fn current(process: Option<Pid>, resource: Resource) -> rustix::io::Result<Limit> {
    let value = |value: Option<u64>| value.unwrap_or(UNLIMITED);
    let Some(pid) = process else {
        let now = getrlimit(resource);
        return Ok(Limit {
            resource,
            soft: value(now.current),
            hard: value(now.maximum),
        });
    };
    let mut now = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: without a new limit the call only fills `now`, a live rlimit64.
    let ret = unsafe {
        libc::prlimit64(
            pid.as_raw_nonzero().get(),
            resource as libc::__rlimit_resource_t,
            std::ptr::null(),
            &mut now,
        )
    };
    if ret != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::SRCH));
    }
    Ok(Limit {
        resource,
        soft: now.rlim_cur,
        hard: now.rlim_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Child, Command};

    /// A process to set limits of, without touching those of the tests.
    struct Victim(Child);

    impl Victim {
        fn new() -> Self {
            Self(Command::new("/bin/sleep").arg("60").spawn().unwrap())
        }

        fn pid(&self) -> Option<Pid> {
            Pid::from_raw(self.0.id() as i32)
        }
    }

    impl Drop for Victim {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn docker_notation() {
        let limit = Limit::parse("nofile=1024:2048").unwrap();
        assert_eq!(
            (limit.name(), limit.soft, limit.hard),
            ("RLIMIT_NOFILE", 1024, 2048)
        );
        assert_eq!(limit.to_string(), "nofile=1024:2048");
        assert_eq!(Limit::parse("core=-1").unwrap().to_string(), "core=-1:-1");
        assert_eq!(Limit::parse("stack=5").unwrap().hard, 5);
        assert_eq!(Limit::parse("nproc=512:-1").unwrap().hard, UNLIMITED);
        for (text, what) in [
            ("nofile", "name=soft[:hard]"),
            ("=1", "there is no \"\""),
            ("files=1", "there is no \"files\""),
            ("as=1", "there is no \"as\""),
            ("NOFILE=1", "there is no \"NOFILE\""),
            ("nofile=", "\"\" is not a number"),
            ("nofile=1:", "\"\" is not a number"),
            ("nofile=1:2:3", "\"2:3\" is not a number"),
            ("nofile=+1", "\"+1\" is not a number"),
            ("nofile=-2", "\"-2\" is not a number"),
            ("nofile=99999999999999999999", "is not a number"),
            ("nofile=2:1", "soft limit 2 is above the hard limit 1"),
            ("nofile=-1:1", "soft limit -1 is above the hard limit 1"),
        ] {
            let error = Limit::parse(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn oci_names() {
        for (name, _) in RESOURCES {
            assert_eq!(Limit::new(name, 1, 2).unwrap().name(), name);
        }
        assert!(
            Limit::new("RLIMIT_FUN", 1, 2)
                .unwrap_err()
                .to_string()
                .contains("RLIMIT_FUN")
        );
        assert!(Limit::new("nofile", 1, 2).is_err());
        assert!(Limit::new("RLIMIT_CPU", 3, 2).is_err());
    }

    #[test]
    fn limits_are_set() {
        let victim = Victim::new();
        let limit = Limit::parse("nofile=100:200").unwrap();
        assert_eq!(apply(victim.pid(), &[limit]).unwrap(), []);
        assert_eq!(current(victim.pid(), limit.resource).unwrap(), limit);
    }

    #[test]
    fn what_cannot_be_raised_is_lowered_and_told() {
        // As an ordinary user in a thread of its own, so that the test means the same with CAP_SYS_RESOURCE.
        let victim = Victim::new();
        let pid = victim.pid();
        apply(pid, &[Limit::parse("nofile=100:200").unwrap()]).unwrap();
        let lowered = std::thread::spawn(move || {
            let all = rustix::thread::capabilities(None).unwrap();
            let mut less = all;
            less.effective.remove(rustix::thread::CapabilitySet::SYS_RESOURCE);
            rustix::thread::set_capabilities(None, less).unwrap();
            let wanted = [
                Limit::parse("nofile=300:400").unwrap(),
                Limit::parse("core=0").unwrap(),
            ];
            apply(pid, &wanted).unwrap()
        })
        .join()
        .unwrap();
        assert_eq!(lowered.len(), 1);
        assert_eq!(lowered[0].set, Limit::parse("nofile=200:200").unwrap());
        assert_eq!(current(pid, lowered[0].set.resource).unwrap(), lowered[0].set);
        assert!(
            lowered[0]
                .to_string()
                .contains("nofile=300:400 was lowered to nofile=200:200")
        );
        assert_eq!(current(pid, Resource::Core).unwrap().hard, 0);
    }

    #[test]
    fn a_process_that_is_gone() {
        let mut victim = Victim::new();
        let pid = victim.pid();
        victim.0.kill().unwrap();
        victim.0.wait().unwrap();
        let error = apply(pid, &[Limit::parse("core=0").unwrap()]).unwrap_err();
        assert!(error.to_string().contains("core=0:0"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = Limit::parse(&text);
        }

        #[test]
        fn notation_round_trips(at in 1..RESOURCES.len(), soft: u64, hard: u64) {
            let limit = Limit::new(RESOURCES[at].0, soft.min(hard), soft.max(hard)).unwrap();
            prop_assert_eq!(Limit::parse(&limit.to_string()).unwrap(), limit);
        }
    }
}
