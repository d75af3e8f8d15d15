//! Mount options, as the OCI runtime specification lists them and as mount(8) spells them.

use crate::sys::mount_setattr::{Propagation, attr};

/// What a list of options asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// A bind mount, and whether of the whole tree.
    pub bind: Option<Recursion>,
    /// Attributes set on this mount.
    pub set: u64,
    /// Attributes cleared on this mount.
    pub clear: u64,
    /// Attributes set on this mount and all below.
    pub set_all: u64,
    /// Attributes cleared on this mount and all below.
    pub clear_all: u64,
    /// Changes of propagation, in order.
    pub propagation: Vec<(Propagation, Recursion)>,
    /// An idmapped mount, and whether of the whole tree.
    pub idmap: Option<Recursion>,
    /// Copy what the mount hides into it (tmpfs).
    pub copy_up: bool,
    /// What remains: parameters of the file system, `name` or `name=value`.
    pub data: Vec<(String, Option<String>)>,
}

/// One mount or the tree below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recursion {
    /// The one mount.
    One,
    /// It and all below.
    All,
}

impl Options {
    /// Reads the list. Nothing is refused here: the kernel knows its file systems' parameters.
    pub fn parse<S: AsRef<str>>(list: &[S]) -> Self {
        let mut options = Self::default();
        for option in list {
            options.one(option.as_ref());
        }
        options
    }

    fn one(&mut self, option: &str) {
        if let Some((set, bits)) = attribute(option) {
            change(&mut self.set, &mut self.clear, set, bits);
            return;
        }
        if let Some((set, bits)) = option.strip_prefix('r').and_then(attribute) {
            change(&mut self.set_all, &mut self.clear_all, set, bits);
            return;
        }
        match option {
            "bind" => self.bind = Some(self.bind.unwrap_or(Recursion::One)),
            "rbind" => self.bind = Some(Recursion::All),
            "private" => self.propagation.push((Propagation::Private, Recursion::One)),
            "rprivate" => self.propagation.push((Propagation::Private, Recursion::All)),
            "slave" => self.propagation.push((Propagation::Slave, Recursion::One)),
            "rslave" => self.propagation.push((Propagation::Slave, Recursion::All)),
            "shared" => self.propagation.push((Propagation::Shared, Recursion::One)),
            "rshared" => self.propagation.push((Propagation::Shared, Recursion::All)),
            "unbindable" => self.propagation.push((Propagation::Unbindable, Recursion::One)),
            "runbindable" => self.propagation.push((Propagation::Unbindable, Recursion::All)),
            "idmap" => self.idmap = Some(Recursion::One),
            "ridmap" => self.idmap = Some(Recursion::All),
            "tmpcopyup" => self.copy_up = true,
            // Defaults, or of no meaning to the kernel.
            "" | "defaults" | "nofail" | "_netdev" | "auto" | "noauto" | "user" | "nouser" | "remount"
            | "async" | "silent" | "loud" | "z" | "Z" => {}
            other => match other.split_once('=') {
                Some((name, value)) => self.data.push((name.to_owned(), Some(value.to_owned()))),
                None => self.data.push((other.to_owned(), None)),
            },
        }
    }

    /// Whether the mount is to be read-only.
    pub fn readonly(&self) -> bool {
        (self.set | self.set_all) & attr::RDONLY != 0
    }
}

fn change(set: &mut u64, clear: &mut u64, on: bool, bits: u64) {
    // The access-time modes are one field of several bits, not flags: a new value replaces the old one, and the
    // kernel wants the whole field cleared.
    let field = if bits & attr::ATIME != 0 || bits == attr::RELATIME {
        attr::ATIME
    } else {
        bits
    };
    if on {
        *set = (*set & !field) | bits;
        if field == attr::ATIME {
            *clear |= attr::ATIME;
        } else {
            *clear &= !bits;
        }
    } else {
        *set &= !field;
        *clear |= field;
    }
}

fn attribute(option: &str) -> Option<(bool, u64)> {
    Some(match option {
        "ro" => (true, attr::RDONLY),
        "rw" => (false, attr::RDONLY),
        "nosuid" => (true, attr::NOSUID),
        "suid" => (false, attr::NOSUID),
        "nodev" => (true, attr::NODEV),
        "dev" => (false, attr::NODEV),
        "noexec" => (true, attr::NOEXEC),
        "exec" => (false, attr::NOEXEC),
        "nodiratime" => (true, attr::NODIRATIME),
        "diratime" => (false, attr::NODIRATIME),
        "noatime" => (true, attr::NOATIME),
        "strictatime" => (true, attr::STRICTATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (true, attr::RELATIME),
        "nosymfollow" => (true, attr::NOSYMFOLLOW),
        "symfollow" => (false, attr::NOSYMFOLLOW),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_options_win() {
        let options = Options::parse(&["nosuid", "ro", "rw", "suid", "nosuid", "mode=755", "size=64k"]);
        assert_eq!(options.set, attr::NOSUID);
        assert_eq!(options.clear, attr::RDONLY);
        assert_eq!(options.data.len(), 2);
    }

    #[test]
    fn recursive_forms_are_apart() {
        let options = Options::parse(&["rbind", "rro", "rprivate", "ro"]);
        assert_eq!(options.bind, Some(Recursion::All));
        assert_eq!((options.set, options.set_all), (attr::RDONLY, attr::RDONLY));
        assert_eq!(options.propagation, vec![(Propagation::Private, Recursion::All)]);
    }

    #[test]
    fn access_times_are_one_field() {
        let options = Options::parse(&["noatime", "strictatime"]);
        assert_eq!(options.set, attr::STRICTATIME);
        assert_eq!(options.clear & attr::ATIME, attr::ATIME);
    }
}
