//! Paths that are sent with what they link to, as fsutil's `FollowLinks` has it: every link on the way and the end of
//! each chain, all taken to be below the directory.

use std::collections::BTreeSet;
use std::path::Path;

use vessel_build::ignore::{clean, glob};

/// Links on the way of one path.
const MAX_LINKS: usize = 255;

/// The paths to send; `None` when the directory itself is among them, and thus everything.
pub fn follow(root: &Path, paths: &[String]) -> Option<Vec<String>> {
    let mut found = BTreeSet::new();
    for path in paths {
        let mut budget = MAX_LINKS;
        add(root, relative(path), &mut found, &mut budget);
    }
    if found.contains("") {
        return None;
    }
    // What lies in a directory that is sent comes with it.
    let mut wanted: Vec<String> = Vec::new();
    for path in found {
        let covered = wanted.last().is_some_and(|last: &String| {
            path.strip_prefix(last.as_str())
                .is_some_and(|rest| rest.starts_with('/'))
        });
        if !covered {
            wanted.push(path);
        }
    }
    Some(wanted)
}

/// The path below the root, `..` at the root being the root; empty for the root itself.
fn relative(path: &str) -> String {
    clean(&format!("/{path}")).trim_start_matches('/').to_owned()
}

fn add(root: &Path, path: String, found: &mut BTreeSet<String>, budget: &mut usize) {
    let mut current = String::new();
    let mut rest = path.as_str();
    loop {
        let (name, after) = rest.split_once('/').unwrap_or((rest, ""));
        if !current.is_empty() {
            current.push('/');
        }
        current.push_str(name);
        rest = after;
        let targets = links(root, &current);
        if !targets.is_empty() {
            if !found.insert(current) {
                return;
            }
            for target in targets {
                if *budget == 0 {
                    return;
                }
                *budget -= 1;
                add(root, relative(&format!("{target}/{rest}")), found, budget);
            }
            return;
        }
        if rest.is_empty() {
            found.insert(current);
            return;
        }
    }
}

/// Where a path leads if it is a link, and where all lead that a pattern in its last part matches.
fn links(root: &Path, path: &str) -> Vec<String> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if !name.contains(['*', '?', '[', '\\']) {
        return link(root, path).into_iter().collect();
    }
    let Ok(entries) = std::fs::read_dir(root.join(parent)) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|entry| glob::matches(name, entry) == Ok(true))
        .filter_map(|entry| {
            link(
                root,
                &if parent.is_empty() {
                    entry
                } else {
                    format!("{parent}/{entry}")
                },
            )
        })
        .collect()
}

fn link(root: &Path, path: &str) -> Option<String> {
    let target = std::fs::read_link(root.join(path)).ok()?;
    let target = target.to_str()?;
    if target.starts_with('/') {
        return Some(target.to_owned());
    }
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    Some(format!("/{parent}/{target}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_sent_with_what_they_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("/link/deep", root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("../../../real", root.join("out")).unwrap();
        let follow = |path: &str| follow(root, &[path.to_owned()]);
        assert_eq!(follow("a/b").unwrap(), ["a/b"]);
        assert_eq!(follow("link").unwrap(), ["link", "real"]);
        assert_eq!(follow("link/deep").unwrap(), ["link", "real/deep"]);
        assert_eq!(follow("absolute").unwrap(), ["absolute", "link", "real/deep"]);
        assert_eq!(follow("loop").unwrap(), ["loop"]);
        assert_eq!(follow("out").unwrap(), ["out", "real"]);
        assert_eq!(follow("li*").unwrap(), ["li*", "real"]);
        assert_eq!(follow("."), None);
        assert_eq!(follow("/"), None);
    }
}
