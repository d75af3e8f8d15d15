//! Files from elsewhere: URLs and Git repositories, for `ADD` and as build contexts.
//!
//! Git is the one program the builder executes on the host: its protocols and their corner cases are its own. It runs
//! with nothing of this process's environment, without the system's and users' configuration, without hooks, prompts
//! and credential helpers, and with the network protocols only (no `file`, no `ext`), so that a repository's contents
//! are data to it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::process::Command;

use super::step::{Workspace, digest};
use super::vertex::Pending;
use super::{Solve, as_vertex};
use crate::blocking;
use crate::builder::Builder;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::tree::{self, copy, unpack};
use crate::worker::Download;

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// A file.
    Http(String),
    /// A tree.
    Git(GitAddress),
}

/// A part of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GitAddress {
    remote: String,
    reference: Option<String>,
    directory: Option<String>,
}

impl GitAddress {
    /// Reads `REMOTE[#REF[:DIRECTORY]]`; none: it is no repository.
    fn parse(text: &str, context: bool) -> Option<Self> {
        let (remote, fragment) = match text.split_once('#') {
            Some((remote, fragment)) => (remote, Some(fragment)),
            None => (text, None),
        };
        let (remote, query) = match remote.split_once('?') {
            Some((remote, query)) if remote.starts_with("http") || remote.starts_with("ssh:") => {
                (remote, query)
            }
            _ => (remote, ""),
        };
        let scp = || {
            let (host, path) = remote.split_once(':')?;
            let named = host.contains('@') && !host.contains('/') && !path.starts_with("//");
            named.then_some(())
        };
        let http = remote.starts_with("https://") || remote.starts_with("http://");
        let is_git = remote.starts_with("git://")
            || remote.starts_with("ssh://")
            || (http && remote.trim_end_matches('/').ends_with(".git"))
            || scp().is_some();
        let remote = match is_git {
            true => remote.to_owned(),
            false if context && remote.starts_with("github.com/") => format!("https://{remote}"),
            false => return None,
        };
        let mut address = Self {
            remote,
            reference: None,
            directory: None,
        };
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        if let Some(fragment) = fragment {
            let (reference, directory) = fragment.split_once(':').unwrap_or((fragment, ""));
            (address.reference, address.directory) = (given(reference), given(directory));
        }
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "ref" | "branch" | "tag" | "commit" => address.reference = given(value),
                "subdir" => address.directory = given(value),
                _ => {}
            }
        }
        Some(address)
    }

    /// Whether git would execute ssh: for `ssh://…` and `user@host:path`.
    fn is_ssh(&self) -> bool {
        self.remote.starts_with("ssh://") || !self.remote.contains("://")
    }
}

impl Address {
    /// What a source of `ADD` or `COPY` is; none: a path.
    pub fn parse(text: &str, add: bool) -> Result<Option<Self>> {
        let http = text.starts_with("http://") || text.starts_with("https://");
        let address = match GitAddress::parse(text, false) {
            Some(git) => Self::Git(git),
            None if http => Self::Http(text.to_owned()),
            None => return Ok(None),
        };
        if !add {
            let what = if http { "a URL" } else { "a git ref" };
            return Err(Error::invalid(format!(
                "source can't be {what} for COPY: ADD can"
            )));
        }
        Ok(Some(address))
    }
}

/// What was fetched.
pub(super) struct Remote {
    /// A directory with it.
    pub path: PathBuf,
    /// The file in it; none: all of it.
    pub name: Option<String>,
    /// What names the content.
    pub digest: String,
    _workspace: Workspace,
}

impl Solve {
    /// Fetches a source of `ADD`.
    pub(super) async fn fetch(
        &self,
        address: &Address,
        checksum: Option<&str>,
        keep_git: bool,
    ) -> Result<Arc<Remote>> {
        let builder = &self.plan.builder;
        let remote = match address {
            Address::Http(url) => download(builder, url, checksum, self.epoch, &self.plan.progress).await?,
            Address::Git(git) => checkout(builder, git, checksum, keep_git, &self.plan.progress).await?,
        };
        Ok(Arc::new(remote))
    }
}

/// A build context from elsewhere: a repository, or an archive, or a single Dockerfile.
pub(super) async fn context(
    builder: &Arc<Builder>,
    text: &str,
    progress: &Progress,
) -> Result<(PathBuf, Workspace)> {
    if let Some(git) = GitAddress::parse(text, true) {
        let remote = checkout(builder, &git, None, false, progress).await?;
        return Ok((remote.path, remote._workspace));
    }
    let remote = download(builder, text, None, None, progress).await?;
    blocking(move || {
        use std::os::fd::AsFd;
        let tree = tree::open_root(&remote.path)?;
        let name = remote.name.clone().unwrap_or_default();
        let root = remote._workspace.scratch()?;
        let into = tree::open_root(&root)?;
        if unpack::is_archive(tree.as_fd(), name.as_bytes())? {
            let making = copy::Options::default().making();
            unpack::unpack(tree.as_fd(), name.as_bytes(), into.as_fd(), b"/", &making, None)?;
        } else {
            std::fs::rename(remote.path.join(&name), root.join("Dockerfile"))
                .map_err(|error| Error::io("cannot keep the Dockerfile that was downloaded", error))?;
        }
        Ok((root, remote._workspace))
    })
    .await
}

async fn download(
    builder: &Arc<Builder>,
    url: &str,
    checksum: Option<&str>,
    epoch: Option<i64>,
    progress: &Progress,
) -> Result<Remote> {
    let path_part = url.split(['?', '#']).next().unwrap_or(url);
    let after_host = path_part.splitn(4, '/').nth(3).unwrap_or_default();
    let name = match after_host.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !matches!(name, "" | "." | "..") => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    };
    let root = builder.cache().temporary();
    let workspace = blocking(move || Workspace::new(&root)).await?;
    let path = workspace.upper.clone();
    let file = path.join(&name);
    let vertex = Pending::new(&format!("[internal] download {url}"));
    let request = Download {
        url,
        destination: &file,
        progress,
        vertex: &vertex.digest,
    };
    let downloaded = as_vertex(progress, &vertex, builder.worker().download(request)).await?;
    if let Some(wanted) = checksum {
        let wanted: vessel_image::Digest = wanted.parse()?;
        if wanted != downloaded.digest {
            return Err(Error::invalid(format!(
                "digest mismatch for {url}: --checksum says {wanted}, what came is {}",
                downloaded.digest
            )));
        }
    }
    blocking(move || {
        use std::os::unix::fs::PermissionsExt;
        let fail = |error| Error::io("cannot keep what was downloaded", error);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).map_err(fail)?;
        let modified = downloaded.modified.or(epoch).unwrap_or(0);
        let time =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(modified).unwrap_or(0));
        let opened = std::fs::File::options().write(true).open(&file).map_err(fail)?;
        opened.set_modified(time).map_err(fail)?;
        Ok(Remote {
            digest: format!("{} {name} {modified}", downloaded.digest),
            path,
            name: Some(name),
            _workspace: workspace,
        })
    })
    .await
}

/// A git command with a hardened environment.
fn git(directory: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_ASKPASS", "/bin/false")
        .env("GIT_ALLOW_PROTOCOL", "https:http:git")
        // Not even for submodules: ssh would show the keys of the daemon's own account.
        .env("GIT_SSH_COMMAND", "/bin/false")
        .env("GIT_DIR", directory.join(".git"))
        .env("GIT_WORK_TREE", directory)
        .current_dir(directory)
        .args([
            "-c",
            "core.hooksPath=/dev/null",
            "-c",
            "core.fsmonitor=false",
            "-c",
            "credential.helper=",
        ])
        .args([
            "-c",
            "protocol.file.allow=never",
            "-c",
            "protocol.ext.allow=never",
            "-c",
            "advice.detachedHead=false",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(mut command: Command, what: &str) -> Result<String> {
    let output = command.output().await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            ErrorKind::Unsupported,
            "git is not installed on this host: it is needed for Git sources",
        ),
        _ => Error::io("cannot execute git", error),
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last: String = text.trim().chars().rev().take(400).collect();
        let last: String = last.chars().rev().collect();
        return Err(Error::new(
            ErrorKind::Remote,
            format!("{what}: {}", last.replace('\n', "; ")),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn checkout(
    builder: &Arc<Builder>,
    address: &GitAddress,
    checksum: Option<&str>,
    keep_git: bool,
    progress: &Progress,
) -> Result<Remote> {
    if address.is_ssh() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{}: Git over ssh is not supported; use https, or clone it and give its directory",
                address.remote
            ),
        ));
    }
    let reference = address.reference.clone().unwrap_or_else(|| "HEAD".to_owned());
    if [&address.remote, &reference]
        .iter()
        .any(|text| text.starts_with('-') || text.contains(['\0', '\n']))
    {
        return Err(Error::invalid(format!("{} is no Git address", address.remote)));
    }
    let root = builder.cache().temporary();
    let workspace = blocking(move || Workspace::new(&root)).await?;
    let path = workspace.upper.clone();
    let what = format!("{}#{reference}", address.remote);
    let vertex = Pending::new(&format!("[internal] load git source {what}"));
    let work = async {
        let step = |arguments: &[&str]| {
            let mut command = git(&path);
            command.args(arguments);
            command
        };
        run(step(&["init", "--quiet"]), "cannot make a repository").await?;
        let fetch = |depth: &'static str| {
            let mut command = git(&path);
            command.args(["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"]);
            if !depth.is_empty() {
                command.arg(depth);
            }
            command.args(["--", &address.remote, &reference]);
            run(command, "cannot fetch from the repository")
        };
        // Servers that do not give single commits give all.
        if let Err(error) = fetch("--depth=1").await {
            fetch("").await.map_err(|_| error)?;
        }
        run(
            step(&["checkout", "--quiet", "--force", "FETCH_HEAD"]),
            "cannot check the files out",
        )
        .await?;
        let modules = path.join(".gitmodules").symlink_metadata().is_ok();
        if modules {
            let update = [
                "submodule",
                "update",
                "--quiet",
                "--init",
                "--recursive",
                "--depth=1",
            ];
            run(step(&update), "cannot fetch submodules").await?;
        }
        run(step(&["rev-parse", "HEAD"]), "cannot tell the commit").await
    };
    let commit = as_vertex(progress, &vertex, work).await?;
    if let Some(wanted) = checksum
        && (wanted.len() < 7 || !commit.starts_with(wanted))
    {
        return Err(Error::invalid(format!(
            "expected checksum to match {wanted}, got {commit}"
        )));
    }
    let directory = address
        .directory
        .clone()
        .map(|directory| tree::clean(directory.as_bytes()));
    blocking(move || {
        use std::os::unix::ffi::OsStrExt;
        let mut path = path;
        if let Some(directory) = &directory {
            use std::os::fd::AsFd;
            let root = tree::open_root(&path)?;
            let missing = || {
                Error::not_found(format!(
                    "the repository has no directory {}",
                    tree::show(directory)
                ))
            };
            let place = tree::resolve(root.as_fd(), directory)?
                .filter(tree::Place::is_dir)
                .ok_or_else(missing)?;
            drop(place);
            // A checkout: without links on the way, its path leads there.
            let inside = path.join(std::ffi::OsStr::from_bytes(
                directory.strip_prefix(b"/").unwrap_or(directory),
            ));
            if !inside.canonicalize().is_ok_and(|real| real == inside) {
                return Err(missing());
            }
            path = inside;
        } else if !keep_git {
            copy::remove(&path.join(".git"));
        }
        Ok(Remote {
            digest: digest(format!("{commit} {directory:?} {keep_git}").as_bytes()),
            path,
            name: None,
            _workspace: workspace,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let git = |text: &str| GitAddress::parse(text, false);
        let whole = git("https://example.com/a/b.git#v1:sub/dir").unwrap();
        assert_eq!(whole.remote, "https://example.com/a/b.git");
        assert_eq!(whole.reference.as_deref(), Some("v1"));
        assert_eq!(whole.directory.as_deref(), Some("sub/dir"));
        assert_eq!(git("git@example.com:a/b").unwrap().remote, "git@example.com:a/b");
        for (text, ssh) in [
            ("git@example.com:a/b", true),
            ("ssh://git@example.com/a/b", true),
            ("https://example.com/a/b.git", false),
            ("git://example.com/a/b", false),
        ] {
            assert_eq!(git(text).unwrap().is_ssh(), ssh, "{text}");
        }
        assert!(git("https://example.com/a.tar").is_none());
        assert!(git("./a@b/c:d").is_none());
        assert!(git("file").is_none());
        assert_eq!(
            git("https://e.com/x.git?ref=v2&subdir=s")
                .unwrap()
                .reference
                .as_deref(),
            Some("v2")
        );
        assert!(GitAddress::parse("github.com/a/b", true).is_some());
        assert!(Address::parse("https://example.com/x", false).is_err());
        assert_eq!(Address::parse("dir/file", true).unwrap(), None);
    }
}
