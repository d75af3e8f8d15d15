//! `vessel cp`

use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vessel_client::Client;

use crate::app::Run;
use crate::archive::{Rename, pack, unpack};
use crate::context::Context;
use crate::failure::{Failure, Result, words};
use crate::output;
use crate::output::units::human_size;
use crate::terminal;

/// Copy files between a container and this host
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep users and groups
    #[arg(short, long)]
    archive: bool,
    /// Follow the source when it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Do not tell what was copied
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH, a path here, or - for a tar archive on standard input
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    source: String,
    /// CONTAINER:PATH, a path here, or - for a tar archive on standard output
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    destination: String,
}

impl Args {
    /// Between two places, as on a command line.
    pub fn between(source: String, destination: String, archive: bool, follow_link: bool) -> Self {
        Self {
            archive,
            follow_link,
            quiet: false,
            source,
            destination,
        }
    }
}

impl Run for Args {
    fn run(self, context: &Context) -> Result {
        match (split(&self.source), split(&self.destination)) {
            (Some(_), Some(_)) => Err(Failure::new("copying between containers is not supported")
                .with_hint("copy to this host first")),
            (None, None) => Err(Failure::new("must specify at least one container source")
                .with_hint("a path in a container looks like CONTAINER:PATH")),
            (Some((container, path)), None) => self.copy_out(context.client()?, container, path),
            (None, Some((container, path))) => self.copy_in(context.client()?, container, path),
        }
    }
}

/// Splits `container:path`. What begins with a slash or a dot is a path here, colon or not.
pub fn split(argument: &str) -> Option<(&str, &str)> {
    if argument.starts_with('/') || argument.starts_with('.') {
        return None;
    }
    argument
        .split_once(':')
        .filter(|(container, path)| !container.is_empty() && !path.is_empty())
}

/// What a path is, for the rules of copying.
#[derive(Debug, Clone, Copy)]
struct Target {
    exists: bool,
    is_dir: bool,
}

/// Where an archive is unpacked, and under which name.
#[derive(Debug, PartialEq)]
struct Plan {
    directory: String,
    rename: Option<(String, String)>,
}

/// The rules of cp(1): into a directory that exists, else under the destination's own name.
fn plan(source: &str, source_is_dir: bool, destination: &str, target: Target) -> Result<Plan> {
    let (directory, base) = split_last(destination);
    let rename = Plan {
        directory,
        rename: Some((split_last(source).1, base)),
    };
    match target {
        Target {
            exists: true,
            is_dir: true,
        } => Ok(Plan {
            directory: destination.to_string(),
            rename: None,
        }),
        Target { exists: true, .. } if source_is_dir => Err(Failure::new(format!(
            "cannot copy the directory {source} to {destination}, which is a file"
        ))),
        Target { exists: true, .. } => Ok(rename),
        _ if source_is_dir => Ok(rename),
        _ if names_directory(destination) => Err(Failure::new(format!("no such directory: {destination}"))),
        _ => Ok(rename),
    }
}

/// The most links from one to the next, as in the kernel.
const LINKS: usize = 40;

/// A path here with its last component followed while that is a symbolic link, whether what it leads to exists or not.
fn followed(path: &Path) -> io::Result<String> {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        // No link, not there, or wrong in a way that is told by what is done with it.
        let Ok(target) = std::fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path.into_os_string().into_string().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "a link leads to a name that is not UTF-8",
        )
    })
}

/// Whether a path says of itself that it is a directory.
fn names_directory(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || path == "."
}

/// A path's directory and last component. Of `a/.` that is the dot: the contents of `a`.
fn split_last(path: &str) -> (String, String) {
    let contents = path.ends_with("/.") || path == ".";
    let trimmed = if contents {
        &path[..path.len() - 1]
    } else {
        path.trim_end_matches('/')
    };
    if contents {
        return (
            if trimmed.is_empty() { "." } else { trimmed }.to_string(),
            ".".to_string(),
        );
    }
    match trimmed.rsplit_once('/') {
        Some(("", last)) => ("/".to_string(), last.to_string()),
        Some((directory, last)) => (directory.to_string(), last.to_string()),
        None => (".".to_string(), trimmed.to_string()),
    }
}

impl Args {
    fn copy_out(&self, client: &Client, container: &str, path: &str) -> Result {
        let source = if self.follow_link {
            follow(client, container, path)?
        } else {
            path.to_string()
        };
        if self.destination == "-" {
            if terminal::stdout_is_terminal() {
                return Err(
                    Failure::new("cowardly refusing to write an archive to a terminal")
                        .with_hint("redirect it"),
                );
            }
            let (_, mut answer) = client.container_archive(container, &source)?;
            let mut stdout = io::stdout().lock();
            io::copy(&mut answer.body, &mut stdout)?;
            stdout.flush()?;
            return Ok(());
        }
        let destination = followed(Path::new(&self.destination))
            .map_err(|error| Failure::new(format!("cannot read {}: {}", self.destination, words(&error))))?;
        let destination = destination.as_str();
        let found = std::fs::metadata(destination);
        let target = Target {
            exists: found.is_ok(),
            is_dir: found.is_ok_and(|data| data.is_dir()),
        };
        let (stat, answer) = client.container_archive(container, &source)?;
        let plan = plan(&source, stat.is_dir(), destination, target)?;
        let mut counted = Counted {
            inner: answer.body,
            count: Arc::default(),
        };
        let count = counted.count.clone();
        let rename = plan.rename.map(|(from, to)| {
            // The archive has the name of what was asked for, not of the link that led there.
            let from = if from == "." || stat.name.is_empty() {
                from
            } else {
                stat.name.clone()
            };
            Rename { from, to }
        });
        unpack(&mut counted, Path::new(&plan.directory), rename.as_ref())
            .map_err(|error| Failure::new(format!("cannot copy to {destination}: {}", words(&error))))?;
        self.tell(&count, &self.destination);
        Ok(())
    }

    fn copy_in(&self, client: &Client, container: &str, path: &str) -> Result {
        let (destination, target) = destination_in(client, container, path)?;
        let shown = format!("{container}:{path}");
        if self.source == "-" {
            if !target.is_dir {
                return Err(Failure::new(format!(
                    "destination \"{shown}\" must be a directory"
                )));
            }
            return Ok(client.container_extract(container, &destination, self.archive, io::stdin())?);
        }
        let cannot =
            |error: &io::Error| Failure::new(format!("cannot read {}: {}", self.source, words(error)));
        let link = std::fs::symlink_metadata(&self.source).map_err(|error| cannot(&error))?;
        let contents = names_directory(&self.source);
        let local = if link.is_symlink() && (self.follow_link || contents) {
            std::fs::canonicalize(&self.source).map_err(|error| cannot(&error))?
        } else {
            PathBuf::from(&self.source)
        };
        let is_dir = local.symlink_metadata().map_err(|error| cannot(&error))?.is_dir();
        if contents && !is_dir {
            return Err(Failure::new(format!("{} is not a directory", self.source)));
        }
        let plan = plan(&self.source, is_dir, &destination, target)?;
        let name = match plan.rename {
            Some((_, to)) => to,
            None => split_last(&self.source).1,
        };
        let name = if name == ".." {
            local
                .canonicalize()
                .ok()
                .and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
                .unwrap_or(name)
        } else {
            name
        };
        let body = Counted {
            inner: pack(local, name),
            count: Arc::default(),
        };
        let count = body.count.clone();
        client.container_extract(container, &plan.directory, self.archive, body)?;
        self.tell(&count, &shown);
        Ok(())
    }

    fn tell(&self, count: &AtomicU64, destination: &str) {
        // As Docker has it: scripts are not told.
        if !self.quiet && terminal::stdout_is_terminal() {
            let size = human_size(count.load(Ordering::SeqCst) as f64);
            output::warn(&format!("Successfully copied {size} to {destination}"));
        }
    }
}

/// A link's target as a path in the container.
fn target_of(path: &str, link: &str) -> String {
    if link.starts_with('/') {
        return link.to_string();
    }
    let mut out = PathBuf::from("/");
    let directory = Path::new(path).parent().unwrap_or(Path::new("/"));
    for part in directory.join(link).components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out.to_string_lossy().into_owned()
}

fn follow(client: &Client, container: &str, path: &str) -> Result<String> {
    let stat = client.container_stat_path(container, path)?;
    Ok(if stat.is_symlink() {
        target_of(path, &stat.link_target)
    } else {
        path.to_string()
    })
}

/// The destination, followed when it is a link, and what it is.
fn destination_in(client: &Client, container: &str, path: &str) -> Result<(String, Target)> {
    let mut path = path.to_string();
    let mut stat = client.container_stat_path(container, &path);
    if let Ok(link) = &stat
        && link.is_symlink()
    {
        path = target_of(&path, &link.link_target);
        stat = client.container_stat_path(container, &path);
    }
    match stat {
        Ok(stat) => Ok((
            path,
            Target {
                exists: true,
                is_dir: stat.is_dir(),
            },
        )),
        Err(error) if error.is_not_found() => Ok((
            path,
            Target {
                exists: false,
                is_dir: false,
            },
        )),
        Err(error) => Err(error.into()),
    }
}

/// Counts what is read.
struct Counted<R> {
    inner: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(out)?;
        self.count.fetch_add(count as u64, Ordering::SeqCst);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        assert_eq!(split("c:/a"), Some(("c", "/a")));
        for here in ["/a:b", "./a:b", "a", ":a", "c:", "-"] {
            assert_eq!(split(here), None, "{here}");
        }
    }

    #[test]
    fn last_components() {
        for (path, directory, last) in [
            ("/a/b", "/a", "b"),
            ("/a", "/", "a"),
            ("a", ".", "a"),
            ("a/b/", "a", "b"),
            ("a/.", "a/", "."),
            (".", ".", "."),
        ] {
            assert_eq!(
                split_last(path),
                (directory.to_string(), last.to_string()),
                "{path}"
            );
        }
    }

    #[test]
    fn a_destination_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink("b", at("a")).unwrap();
        std::os::unix::fs::symlink(at("c"), at("b")).unwrap();
        for there in [false, true] {
            for name in ["a", "b", "c"] {
                assert_eq!(
                    followed(&at(name)).unwrap(),
                    at("c").display().to_string(),
                    "{name}"
                );
            }
            if !there {
                std::fs::write(at("c"), "").unwrap();
            }
        }
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert!(followed(&at("loop")).unwrap().ends_with("loop"));
    }

    #[test]
    fn plans() {
        let target = |exists, is_dir| Target { exists, is_dir };
        let into = plan("/s/f", false, "/d", target(true, true)).unwrap();
        assert_eq!(
            into,
            Plan {
                directory: "/d".into(),
                rename: None
            }
        );
        let renamed = plan("/s/f", false, "/d/g", target(false, false)).unwrap();
        assert_eq!(
            renamed,
            Plan {
                directory: "/d".into(),
                rename: Some(("f".into(), "g".into()))
            }
        );
        assert!(
            plan("/s", true, "/d/g", target(false, false))
                .unwrap()
                .rename
                .is_some()
        );
        assert!(plan("/s", true, "/d/g", target(true, false)).is_err());
        assert!(plan("/s/f", false, "/d/g/", target(false, false)).is_err());
    }

    #[test]
    fn links() {
        assert_eq!(target_of("/a/b", "../c"), "/c");
        assert_eq!(target_of("/a/b", "/c"), "/c");
        assert_eq!(target_of("/a/b", "../../../c"), "/c");
    }
}
