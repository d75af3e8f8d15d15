//! Who may do what in which repository.
//!
//! ```json
//! {
//!   "groups": { "team": ["ann", "bob"] },
//!   "rules": [
//!     { "repositories": ["public/**"], "users": ["anonymous", "*"], "actions": ["pull"] },
//!     { "repositories": ["team/**"], "users": ["@team"], "actions": ["pull", "push"] },
//!     { "repositories": ["home/{user}/**"], "users": ["*"], "actions": ["pull", "push", "delete"] }
//!   ]
//! }
//! ```
//!
//! What no rule allows is forbidden. In patterns, `*` is anything within a component, `**` anything, and `{user}` the
//! name of who asks. Users are names, `@GROUP`, `*` for everyone with a password, and `anonymous`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::name::Repository;

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Read.
    Pull,
    /// Write.
    Push,
    /// Remove.
    Delete,
}

impl Action {
    /// As it is written in scopes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
        }
    }
}

/// All rules.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    #[serde(default)]
    groups: HashMap<String, Vec<String>>,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    repositories: Vec<String>,
    users: Vec<String>,
    actions: Vec<Action>,
}

/// Reads a file of rules.
pub fn parse(text: &str) -> Result<Rules, String> {
    let rules: Rules = serde_json::from_str(text).map_err(|e| e.to_string())?;
    for rule in &rules.rules {
        for user in &rule.users {
            if let Some(group) = user.strip_prefix('@')
                && !rules.groups.contains_key(group)
            {
                return Err(format!("there is no group \"{group}\""));
            }
        }
        for pattern in &rule.repositories {
            if pattern.len() > 512 {
                return Err("a pattern is longer than 512 letters".into());
            }
        }
    }
    Ok(rules)
}

impl Rules {
    /// Whether some user (none: without a password) may do this.
    pub fn allow(&self, user: Option<&str>, repository: &Repository, action: Action) -> bool {
        self.rules.iter().any(|rule| {
            rule.actions.contains(&action)
                && rule.users.iter().any(|who| self.is(user, who))
                && rule
                    .repositories
                    .iter()
                    .any(|pattern| fits(pattern, user, repository.as_str()))
        })
    }

    /// Whether there is anything that may be done without a password.
    pub fn allow_anybody(&self, action: Action) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.actions.contains(&action) && rule.users.iter().any(|who| self.is(None, who)))
    }

    fn is(&self, user: Option<&str>, who: &str) -> bool {
        match (user, who.strip_prefix('@')) {
            (None, _) => who == "anonymous",
            (Some(user), Some(group)) => self
                .groups
                .get(group)
                .is_some_and(|group| group.iter().any(|name| name == user)),
            (Some(user), None) => who == "*" || (who == user && who != "anonymous"),
        }
    }
}

fn fits(pattern: &str, user: Option<&str>, name: &str) -> bool {
    if !pattern.contains("{user}") {
        return matches(pattern.as_bytes(), name.as_bytes());
    }
    match user {
        // Of a user with a slash or star in the name, nothing is a home.
        Some(user) if Repository::parse(user).is_ok() && !user.contains('/') => {
            matches(pattern.replace("{user}", user).as_bytes(), name.as_bytes())
        }
        _ => false,
    }
}

/// Which beginnings of the name fit which beginnings of the pattern, letter by letter of the pattern: its time is
/// bounded by the product of their lengths.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; name.len() + 1];
        if pattern[at] == b'*' {
            let any = pattern.get(at + 1) == Some(&b'*');
            at += if any { 2 } else { 1 };
            let mut reached = false;
            for (i, fit) in next.iter_mut().enumerate() {
                if i > 0 && name[i - 1] == b'/' && !any {
                    reached = false;
                }
                reached |= fits[i];
                *fit = reached;
            }
        } else {
            for i in 0..name.len() {
                next[i + 1] = fits[i] && name[i] == pattern[at];
            }
            at += 1;
        }
        fits = next;
    }
    fits[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "a", true),
            ("*", "a/b", false),
            ("**", "a/b/c", true),
            ("team/*", "team/a", true),
            ("team/*", "team", false),
            ("team/*", "team/a/b", false),
            ("team/**", "team/a/b", true),
            ("*/x", "a/x", true),
            ("**/x", "a/b/x", true),
            ("a*c", "abbc", true),
            ("a*c", "ab", false),
            ("", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn what_no_rule_allows_is_forbidden() {
        let rules = parse(
            r#"{"groups":{"team":["ann"]},"rules":[
                {"repositories":["public/**"],"users":["anonymous","*"],"actions":["pull"]},
                {"repositories":["team/**"],"users":["@team"],"actions":["pull","push"]},
                {"repositories":["home/{user}/**"],"users":["*"],"actions":["pull","push","delete"]}]}"#,
        )
        .unwrap();
        let may = |user, name, action| rules.allow(user, &Repository::parse(name).unwrap(), action);
        assert!(may(None, "public/a", Action::Pull) && may(Some("bob"), "public/a", Action::Pull));
        assert!(!may(None, "public/a", Action::Push) && !may(None, "team/a", Action::Pull));
        assert!(may(Some("ann"), "team/a", Action::Push) && !may(Some("ann"), "team/a", Action::Delete));
        assert!(!may(Some("bob"), "team/a", Action::Pull));
        assert!(
            may(Some("bob"), "home/bob/x", Action::Delete) && !may(Some("bob"), "home/ann/x", Action::Pull)
        );
        assert!(!may(Some("**"), "home/ann/x", Action::Pull) && !may(None, "home/ann/x", Action::Pull));
        assert!(rules.allow_anybody(Action::Pull) && !rules.allow_anybody(Action::Push));
        // A user who is called like that is not everybody without a password.
        assert!(!may(Some("anonymous"), "team/a", Action::Pull));
        for bad in [
            "",
            "{}",
            r#"{"rules":[],"x":1}"#,
            r#"{"rules":[{"repositories":[],"users":["@x"],"actions":[]}]}"#,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn stars_are_not_slashes(name in "[a-z]{1,5}(/[a-z]{1,5}){0,3}") {
            prop_assert!(matches(b"**", name.as_bytes()));
            prop_assert_eq!(matches(b"*", name.as_bytes()), !name.contains('/'));
            prop_assert!(matches(name.as_bytes(), name.as_bytes()));
        }
    }
}
