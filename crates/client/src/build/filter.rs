//! What of a directory is sent: patterns to leave out, patterns to keep to, and paths whose links are followed.

use std::path::Path;

use vessel_build::ignore::{BadPattern, Matcher, State};
use vessel_filesync::{Filter, Verdict};

use super::follow::follow;

/// The filter of a transfer.
#[derive(Debug)]
pub struct Patterns {
    exclude: Matcher,
    include: Option<Include>,
    /// What the directories on the way to the current entry have matched.
    above: Vec<Above>,
}

#[derive(Debug)]
struct Include {
    matcher: Matcher,
    /// The patterns, when none has anything special in it.
    plain: Option<Vec<String>>,
}

#[derive(Debug)]
struct Above {
    path: String,
    exclude: State,
    include: State,
}

impl Patterns {
    /// Patterns as the receiver sends them.
    pub fn new(
        root: &Path,
        include: &[String],
        exclude: &[String],
        followed: &[String],
    ) -> Result<Self, BadPattern> {
        let mut wanted: Vec<String> = include.to_vec();
        let mut everything = include.is_empty() && followed.is_empty();
        if !followed.is_empty() {
            match follow(root, followed) {
                Some(paths) => wanted.extend(paths),
                None => everything = include.is_empty(),
            }
        }
        let include = if everything || wanted.is_empty() && include.is_empty() && followed.is_empty() {
            None
        } else {
            let special = |pattern: &String| pattern.contains(['*', '?', '[', ']', '\\', '^', '!']);
            Some(Include {
                plain: (!wanted.iter().any(special)).then(|| wanted.clone()),
                matcher: Matcher::new(&wanted)?,
            })
        };
        Ok(Self {
            exclude: Matcher::new(exclude)?,
            include,
            above: Vec::new(),
        })
    }
}

impl Include {
    /// Whether something below a directory that is not wanted itself may be.
    fn reaches_below(&self, directory: &str) -> bool {
        match &self.plain {
            None => true,
            Some(patterns) => patterns.iter().any(|pattern| {
                pattern
                    .strip_prefix(directory)
                    .is_some_and(|rest| rest.starts_with('/'))
            }),
        }
    }
}

impl Filter for Patterns {
    fn verdict(&mut self, path: &str, directory: bool) -> Verdict {
        while self.above.last().is_some_and(|above| {
            !path
                .strip_prefix(above.path.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        }) {
            self.above.pop();
        }
        let start = State::default();
        let (parent_exclude, parent_include) = match self.above.last() {
            Some(above) => (&above.exclude, &above.include),
            None => (&start, &start),
        };
        let (excluded, exclude) = self.exclude.enter(path, parent_exclude);
        let (included, include_state) = match &self.include {
            Some(include) => include.matcher.enter(path, parent_include),
            None => (true, State::default()),
        };
        let verdict = if included && !excluded {
            Verdict::Send
        } else if !directory
            || (excluded && self.exclude.prunes(path))
            || (!included
                && self
                    .include
                    .as_ref()
                    .is_some_and(|include| !include.reaches_below(path)))
        {
            Verdict::Skip
        } else {
            Verdict::Descend
        };
        if directory && verdict != Verdict::Skip {
            self.above.push(Above {
                path: path.to_owned(),
                exclude,
                include: include_state,
            });
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(include: &[&str], exclude: &[&str], walk: &[(&str, bool)]) -> Vec<Verdict> {
        let texts = |given: &[&str]| given.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut patterns = Patterns::new(Path::new("/"), &texts(include), &texts(exclude), &[]).unwrap();
        walk.iter()
            .map(|(path, directory)| patterns.verdict(path, *directory))
            .collect()
    }

    #[test]
    fn what_is_left_out() {
        use Verdict::{Descend, Send, Skip};
        let walk = [
            ("a", true),
            ("a/b", false),
            ("a/c", false),
            ("d", true),
            ("e.o", false),
        ];
        assert_eq!(
            verdicts(&[], &["d", "*.o"], &walk),
            [Send, Send, Send, Skip, Skip]
        );
        assert_eq!(verdicts(&[], &["a", "!a/c"], &walk)[..3], [Descend, Skip, Send]);
        assert_eq!(verdicts(&["a/c"], &[], &walk), [Descend, Skip, Send, Skip, Skip]);
        assert_eq!(verdicts(&["a"], &["a/b"], &walk), [Send, Skip, Send, Skip, Skip]);
        assert_eq!(
            verdicts(&["*.o"], &[], &walk),
            [Descend, Skip, Skip, Descend, Send]
        );
    }
}
