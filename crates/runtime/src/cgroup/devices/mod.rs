//! `devices`: which device nodes may be opened or made.
//!
//! The list is OCI's: rules in order, each letter of an access decided by the last rule that matches it; what no rule
//! matches is denied. v1 keeps a default and a list of exceptions in the kernel ([`v1`]); v2 runs a program that is made
//! from the list ([`program`]).

mod program;
mod v1;

use super::Node;
use super::hierarchy::Version;
use super::lack::Lacks;
use super::resources::DeviceRule;
use crate::{Error, Result};

/// More rules than any container has; also keeps the program well below the kernel's limit of instructions.
const MAX_RULES: usize = 400;

pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
const ALL: u8 = MKNOD | READ | WRITE;

/// Block or character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Block,
    Char,
}

/// A checked rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    /// Absent: both.
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// Applies the list; an empty one leaves the rules alone. `fresh`: the cgroup was made just now.
pub(super) fn apply(
    node: Option<Node<'_>>,
    list: &[DeviceRule],
    fresh: bool,
    lacks: &mut Lacks,
) -> Result<()> {
    if list.is_empty() {
        return Ok(());
    }
    let rules = parse(list)?;
    match node {
        None => {
            lacks.add("devices", "no cgroup hierarchy has the devices controller");
            Ok(())
        }
        Some(node) if node.version == Version::V1 => v1::apply(node.dir, &rules, fresh),
        Some(node) => program::apply(node.dir, &rules, fresh, lacks),
    }
}

fn parse(list: &[DeviceRule]) -> Result<Vec<Rule>> {
    if list.len() > MAX_RULES {
        return Err(Error::invalid(format!(
            "devices: more than {MAX_RULES} rules ({})",
            list.len()
        )));
    }
    list.iter()
        .enumerate()
        .map(|(index, rule)| {
            parse_rule(rule).map_err(|why| Error::invalid(format!("devices[{index}]: {why}")))
        })
        .collect()
}

fn parse_rule(rule: &DeviceRule) -> std::result::Result<Rule, String> {
    let kind = match rule.kind.as_deref() {
        None | Some("" | "a") => None,
        Some("b") => Some(Kind::Block),
        Some("c" | "u") => Some(Kind::Char),
        Some(other) => return Err(format!("type {other:?} is none of a, b, c")),
    };
    let number = |name: &str, number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| format!("{name} {number} is out of range")),
    };
    let mut access = 0;
    for letter in rule.access.as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(format!("access letter {other:?} is none of r, w, m")),
        };
    }
    Ok(Rule {
        allow: rule.allow,
        kind,
        major: number("major", rule.major)?,
        minor: number("minor", rule.minor)?,
        // An empty access is what some writers mean by all.
        access: if access == 0 { ALL } else { access },
    })
}

impl Rule {
    /// Whether it speaks of every device and every access, and so makes the rules before it void.
    fn is_total(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

/// The rules from the last total one on.
fn relevant(rules: &[Rule]) -> &[Rule] {
    &rules[rules.iter().rposition(Rule::is_total).unwrap_or(0)..]
}

/// What the specification says about an access, for comparison with the two implementations.
#[cfg(test)]
fn verdict(rules: &[Rule], kind: Kind, major: u32, minor: u32, access: u8) -> bool {
    [MKNOD, READ, WRITE]
        .iter()
        .filter(|&&bit| access & bit != 0)
        .all(|bit| {
            rules
                .iter()
                .rev()
                .find(|rule| {
                    rule.kind.is_none_or(|wanted| wanted == kind)
                        && rule.major.is_none_or(|wanted| wanted == major)
                        && rule.minor.is_none_or(|wanted| wanted == minor)
                        && rule.access & bit != 0
                })
                .is_some_and(|rule| rule.allow)
        })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn any_rule() -> impl Strategy<Value = Rule> {
        let number = || prop_oneof![Just(None), (0u32..3).prop_map(Some)];
        let kind = prop_oneof![Just(None), Just(Some(Kind::Block)), Just(Some(Kind::Char))];
        (any::<bool>(), kind, number(), number(), 1u8..8).prop_map(|(allow, kind, major, minor, access)| {
            Rule {
                allow,
                kind,
                major,
                minor,
                access,
            }
        })
    }

    pub(super) fn every_access() -> impl Iterator<Item = (Kind, u32, u32, u8)> {
        [Kind::Block, Kind::Char].into_iter().flat_map(|kind| {
            (0..4).flat_map(move |major| {
                (0..4).flat_map(move |minor| (1u8..8).map(move |access| (kind, major, minor, access)))
            })
        })
    }

    #[test]
    fn rules_are_checked() {
        let rule = |kind: &str, major, minor, access: &str| DeviceRule {
            allow: true,
            kind: Some(kind.to_owned()),
            major,
            minor,
            access: Some(access.to_owned()),
        };
        let parsed = parse(&[rule("c", Some(1), Some(-1), "rm")]).unwrap();
        let expected = Rule {
            allow: true,
            kind: Some(Kind::Char),
            major: Some(1),
            minor: None,
            access: READ | MKNOD,
        };
        assert_eq!(parsed, [expected]);
        for (bad, needle) in [
            (rule("x", None, None, "r"), "type \"x\""),
            (rule("c", Some(-2), None, "r"), "major -2"),
            (rule("c", Some(1), Some(1 << 40), "r"), "minor"),
            (rule("c", None, None, "rx"), "letter 'x'"),
        ] {
            let message = parse(&[rule("c", None, None, "r"), bad])
                .unwrap_err()
                .report()
                .message;
            assert!(
                message.contains(needle) && message.contains("devices[1]"),
                "{message}"
            );
        }
        assert!(parse(&vec![DeviceRule::default(); MAX_RULES + 1]).is_err());
        assert!(parse(&[DeviceRule::default()]).unwrap()[0].is_total());
    }
}
