//! The `devices` controller of v1: a default behaviour and exceptions to it.
//!
//! The kernel takes one line per write to `devices.allow` or `devices.deny`; `a` sets the default and forgets all
//! exceptions. A running container's list is changed by the difference, so that no access fails in between.
//! See `Documentation/admin-guide/cgroup-v1/devices.rst`.

use std::collections::BTreeMap;

use super::super::dir::Dir;
use super::{ALL, Kind, MKNOD, READ, Rule, WRITE, relevant};
use crate::{Error, Result};

type Key = (Kind, Option<u32>, Option<u32>);

/// What the controller shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    allow: bool,
    /// Accesses that are the other way round.
    exceptions: BTreeMap<Key, u8>,
}

pub(super) fn apply(dir: &Dir, rules: &[Rule], fresh: bool) -> Result<()> {
    let wanted = State::of(rules)?;
    let current = if fresh {
        None
    } else {
        State::parse(&dir.read_required("devices.list")?)
    };
    // The list does not tell the exceptions to "allow", so only a list of allowed devices can be changed in steps.
    let (remove, add) = match current {
        Some(current) if !current.allow && !wanted.allow => {
            (wanted.missing_from(&current), current.missing_from(&wanted))
        }
        _ => {
            write(dir, wanted.allow, "a")?;
            (BTreeMap::new(), wanted.exceptions)
        }
    };
    // Grants come first: a device that is in both lists under different patterns stays usable throughout.
    for (key, access) in &add {
        write(dir, !wanted.allow, &line(key, *access))?;
    }
    for (key, access) in &remove {
        write(dir, wanted.allow, &line(key, *access))?;
    }
    Ok(())
}

fn write(dir: &Dir, allow: bool, line: &str) -> Result<()> {
    dir.write(
        "devices",
        if allow { "devices.allow" } else { "devices.deny" },
        line,
    )
}

fn line(&(kind, major, minor): &Key, access: u8) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
    let kind = if kind == Kind::Block { 'b' } else { 'c' };
    let mut line = format!("{kind} {}:{} ", number(major), number(minor));
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
        if access & bit != 0 {
            line.push(letter);
        }
    }
    line
}

impl State {
    fn of(rules: &[Rule]) -> Result<Self> {
        let mut state = Self {
            allow: false,
            exceptions: BTreeMap::new(),
        };
        for rule in relevant(rules) {
            if rule.is_total() {
                state = Self {
                    allow: rule.allow,
                    exceptions: BTreeMap::new(),
                };
                continue;
            }
            let kinds: &[Kind] = match rule.kind {
                None => &[Kind::Block, Kind::Char],
                Some(Kind::Block) => &[Kind::Block],
                Some(Kind::Char) => &[Kind::Char],
            };
            for &kind in kinds {
                let key = (kind, rule.major, rule.minor);
                if rule.allow == state.allow {
                    state.take_back(key, rule.access)?;
                } else {
                    *state.exceptions.entry(key).or_default() |= rule.access;
                }
            }
        }
        Ok(state)
    }

    /// Removes what the key covers from the exceptions. The controller cannot hold an exception to an exception.
    fn take_back(&mut self, key: Key, access: u8) -> Result<()> {
        let wider = |wide: Option<u32>, narrow: Option<u32>| wide.is_none() || wide == narrow;
        let overlaps = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        for (other, held) in &mut self.exceptions {
            if other.0 != key.0 || *held & access == 0 {
                continue;
            }
            if wider(key.1, other.1) && wider(key.2, other.2) {
                *held &= !access;
            } else if overlaps(key.1, other.1) && overlaps(key.2, other.2) {
                return Err(Error::invalid(format!(
                    "devices: the rule for {:?} takes back a part of the rule for {:?}, which cgroup v1 cannot do; \
                     put the narrower rules into the list instead of the wide one",
                    line(&key, access),
                    line(other, *held),
                )));
            }
        }
        self.exceptions.retain(|_, held| *held != 0);
        Ok(())
    }

    /// Reads `devices.list`; nothing when it is not understood.
    fn parse(text: &str) -> Option<Self> {
        let mut state = Self {
            allow: false,
            exceptions: BTreeMap::new(),
        };
        for row in text.lines() {
            let mut words = row.split(' ');
            let kind = match words.next()? {
                "a" => {
                    return Some(Self {
                        allow: true,
                        exceptions: BTreeMap::new(),
                    });
                }
                "b" => Kind::Block,
                "c" => Kind::Char,
                _ => return None,
            };
            let (major, minor) = words.next()?.split_once(':')?;
            let number = |text: &str| {
                if text == "*" {
                    Some(None)
                } else {
                    text.parse().ok().map(Some)
                }
            };
            let mut access = 0;
            for letter in words.next()?.chars() {
                access |= match letter {
                    'r' => READ,
                    'w' => WRITE,
                    'm' => MKNOD,
                    _ => return None,
                };
            }
            *state
                .exceptions
                .entry((kind, number(major)?, number(minor)?))
                .or_default() |= access;
        }
        Some(state)
    }

    /// The exceptions of `other` that are not here.
    fn missing_from(&self, other: &Self) -> BTreeMap<Key, u8> {
        other
            .exceptions
            .iter()
            .filter_map(|(key, access)| {
                let missing = access & ALL & !self.exceptions.get(key).copied().unwrap_or(0);
                (missing != 0).then_some((*key, missing))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{any_rule, every_access};
    use super::super::verdict;
    use super::*;

    /// What the kernel does with a state.
    fn kernel(state: &State, kind: Kind, major: u32, minor: u32, access: u8) -> bool {
        let matching = |(key, held): (&Key, &u8)| {
            (key.0 == kind && key.1.is_none_or(|m| m == major) && key.2.is_none_or(|m| m == minor))
                .then_some(*held)
        };
        if state.allow {
            state
                .exceptions
                .iter()
                .filter_map(matching)
                .all(|held| held & access == 0)
        } else {
            let held = state
                .exceptions
                .iter()
                .filter_map(matching)
                .fold(0, |all, held| all | held);
            held & access == access
        }
    }

    proptest! {
        #[test]
        fn means_what_the_list_means(rules in prop::collection::vec(any_rule(), 1..8)) {
            if let Ok(state) = State::of(&rules) {
                for (kind, major, minor, access) in every_access() {
                    prop_assert_eq!(
                        kernel(&state, kind, major, minor, access),
                        verdict(&rules, kind, major, minor, access),
                        "{:?} {}:{} {} {:?}", kind, major, minor, access, state
                    );
                }
            }
        }

        #[test]
        fn lists_survive_the_kernels_notation(rules in prop::collection::vec(any_rule(), 1..8)) {
            if let Ok(state) = State::of(&rules) && !state.allow {
                let text: String = state.exceptions.iter().map(|(key, access)| line(key, *access) + "\n").collect();
                prop_assert_eq!(State::parse(&text), Some(state));
            }
        }

        #[test]
        fn any_text_is_parsed_without_a_panic(text in "[abc*:0-9 rwm\n]{0,60}") {
            let _ = State::parse(&text);
        }
    }

    #[test]
    fn exceptions_to_exceptions_are_refused() {
        let rule = |allow, minor| Rule {
            allow,
            kind: Some(Kind::Char),
            major: Some(1),
            minor,
            access: ALL,
        };
        let message = State::of(&[rule(true, None), rule(false, Some(3))])
            .unwrap_err()
            .report()
            .message;
        assert!(
            message.contains("c 1:3 rwm") && message.contains("c 1:* rwm"),
            "{message}"
        );
    }
}
