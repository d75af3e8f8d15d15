//! The order of a walk: every directory before what is in it, names within a directory ascending by their bytes.

use crate::{Error, MAX_DEPTH, MAX_NAME, MAX_PATH, Result};

/// Where an entry is, relative to the one before it.
#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    /// How many of the open directories the entry is below.
    pub depth: usize,
    /// Its name.
    pub name: String,
}

/// Checks that entries come in order and each below directories that came.
#[derive(Debug)]
pub struct Order {
    /// The open directories' paths, each with the last name that came in it.
    open: Vec<(String, String)>,
}

impl Default for Order {
    fn default() -> Self {
        Self {
            open: vec![(String::new(), String::new())],
        }
    }
}

impl Order {
    /// Takes the next path. A directory that comes is to be opened with [`Order::enter`].
    pub fn next(&mut self, path: &str) -> Result<Place> {
        if path.len() > MAX_PATH {
            return Err(Error::protocol(format!(
                "a path of {} bytes is longer than {MAX_PATH}",
                path.len()
            )));
        }
        if path.starts_with('/') {
            return Err(Error::protocol(format!("{path:?} is an absolute path")));
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        check_name(name, path)?;
        while let Some((open, _)) = self.open.last() {
            if open == parent {
                break;
            }
            // The root stays: a parent that was never sent is found missing there.
            if self.open.len() == 1 {
                return Err(Error::protocol(format!(
                    "{path:?} comes before its directory or out of order"
                )));
            }
            self.open.pop();
        }
        let depth = self.open.len();
        if let Some((_, last)) = self.open.last_mut() {
            if !last.is_empty() && last.as_str() >= name {
                return Err(Error::protocol(format!(
                    "{path:?} is out of order behind {last:?}"
                )));
            }
            name.clone_into(last);
        }
        Ok(Place {
            depth,
            name: name.to_owned(),
        })
    }

    /// The path that came last is a directory: what comes next may be in it.
    pub fn enter(&mut self, path: &str) -> Result<()> {
        if self.open.len() >= MAX_DEPTH {
            return Err(Error::protocol(format!(
                "{path:?} is deeper than {MAX_DEPTH} directories"
            )));
        }
        self.open.push((path.to_owned(), String::new()));
        Ok(())
    }
}

/// A name of one component, as the kernel takes it for nothing else.
pub fn check_name(name: &str, path: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) || name.len() > MAX_NAME {
        return Err(Error::protocol(format!("{path:?} is not a path a walk can meet")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walk(paths: &[(&str, bool)]) -> Result<Vec<usize>> {
        let mut order = Order::default();
        let mut depths = Vec::new();
        for (path, directory) in paths {
            depths.push(order.next(path)?.depth);
            if *directory {
                order.enter(path)?;
            }
        }
        Ok(depths)
    }

    #[test]
    fn a_walk_passes() {
        let tree = [
            ("a", true),
            ("a/b", true),
            ("a/b/c", false),
            ("a/d", false),
            ("a.txt", false),
            ("b", true),
        ];
        assert_eq!(walk(&tree).unwrap(), [1, 2, 3, 2, 1, 1]);
    }

    #[test]
    fn what_no_walk_meets_is_refused() {
        for wrong in [
            &[("../a", false)][..],
            &[("/a", false)],
            &[("", false)],
            &[(".", true)],
            &[("a//b", false)],
            &[("a/../b", false)],
            &[("a/", true)],
            &[("a\0b", false)],
            &[("a/b", false)],
            &[("a", false), ("a/b", false)],
            &[("b", false), ("a", false)],
            &[("a", false), ("a", false)],
            &[("a", true), ("b", true), ("a/c", false)],
        ] {
            assert!(walk(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_leave(paths in prop::collection::vec(("[a./\\PC]{0,12}", any::<bool>()), 0..20)) {
            let mut order = Order::default();
            for (path, directory) in paths {
                let Ok(place) = order.next(&path) else { break };
                prop_assert!(!path.split('/').any(|part| part.is_empty() || part == ".." || part == "."));
                prop_assert!(path.ends_with(&place.name));
                if directory && order.enter(&path).is_err() { break }
            }
        }
    }
}
