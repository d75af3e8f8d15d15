//! Git repositories, checked out by git itself.
//!
//! Git is the one program the builder executes on the host: its protocols and their corner cases are its own. It runs
//! with nothing of this process's environment, without the system's and users' configuration, without hooks, prompts
//! and credential helpers, and with the network protocols only (no `file`, no `ext`), so that a repository's contents
//! are data to it. It has [`MAX_TIME`] for each step and [`MAX_BYTES`] on the disk, and is killed with all it started when
//! the build is cancelled.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::as_vertex;
use super::remote::{GitAddress, Remote, hide, redact};
use super::step::{Workspace, digest};
use super::vertex::Pending;
use crate::blocking;
use crate::builder::Builder;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::tree::{self, Usage, copy};

/// How long one command may take.
const MAX_TIME: Duration = Duration::from_secs(3600);
/// What a repository may take on the disk, with the files checked out.
const MAX_BYTES: u64 = 32 << 30;
/// How often the size is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What is kept of a command's words: the last of them.
const MAX_WORDS: usize = 64 << 10;
/// How often, and how long apart, it is looked whether killed processes are gone.
const ATTEMPTS: (u32, Duration) = (2000, Duration::from_millis(5));

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
        .current_dir(directory);
    for setting in [
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "credential.helper=",
        "protocol.file.allow=never",
        "protocol.ext.allow=never",
        "advice.detachedHead=false",
        "init.defaultBranch=main",
        "gc.auto=0",
        // A server that sends nothing for a minute.
        "http.lowSpeedLimit=1",
        "http.lowSpeedTime=60",
    ] {
        command.args(["-c", setting]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What it starts is in its group.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// A command that runs; dropped before its end, it is killed with all it started, and the workspace stays until they
/// are gone.
struct Running {
    child: Option<Child>,
    group: Option<Pid>,
    workspace: Arc<Workspace>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Some(mut child), Some(group)) = (self.child.take(), self.group) else {
            return;
        };
        // The leader was not waited for, so that the number is still its group's.
        let _gone = kill_process_group(group, Signal::KILL);
        let workspace = Arc::clone(&self.workspace);
        let wait = move || {
            for _ in 0..ATTEMPTS.0 {
                let reaped = !matches!(child.try_wait(), Ok(None));
                if reaped && test_kill_process_group(group).is_err() {
                    break;
                }
                std::thread::sleep(ATTEMPTS.1);
            }
            drop(workspace);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(wait)),
            Err(_) => wait(),
        }
    }
}

/// The last of what a command says, until its end.
async fn words(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok(kept) };
    loop {
        if from.read_buf(&mut kept).await? == 0 {
            return Ok(kept);
        }
        if kept.len() > 2 * MAX_WORDS {
            kept.drain(..kept.len() - MAX_WORDS);
        }
    }
}

/// Ends when a directory has become larger than it may.
async fn grown(path: &Path) -> Error {
    loop {
        tokio::time::sleep(LOOK).await;
        let of = path.to_owned();
        let why = match blocking(move || Ok(tree::disk_usage_to(&of, MAX_BYTES))).await {
            Ok(Usage::Bytes(_)) => continue,
            Ok(Usage::More) => format!("the repository is larger than {} GiB", MAX_BYTES >> 30),
            // Nothing could be copied from there either.
            Ok(Usage::Deep) => format!("the repository is deeper than {} directories", tree::MAX_DEPTH),
            Err(error) => return error,
        };
        return Error::new(ErrorKind::Remote, why);
    }
}

/// `remote`: the address the command speaks to, which it may say, and which is not shown as it is.
async fn run(workspace: &Arc<Workspace>, mut command: Command, remote: &str, what: &str) -> Result<String> {
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::new(
            ErrorKind::Unsupported,
            "git is not installed on this host: it is needed for Git sources",
        ),
        _ => Error::io("cannot execute git", error),
    })?;
    let (out, said) = (child.stdout.take(), child.stderr.take());
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut running = Running {
        child: Some(child),
        group,
        workspace: Arc::clone(workspace),
    };
    let whole = async {
        let (out, said) = tokio::try_join!(words(out), words(said))?;
        let status = match &mut running.child {
            Some(child) => child.wait().await?,
            None => Default::default(),
        };
        Ok((status, out, said))
    };
    let ended: std::io::Result<_> = tokio::select! {
        ended = whole => ended,
        error = grown(&workspace.upper) => return Err(error),
        () = tokio::time::sleep(MAX_TIME) => {
            let minutes = MAX_TIME.as_secs() / 60;
            return Err(Error::new(ErrorKind::Remote, format!("{what}: not done after {minutes} minutes")));
        }
    };
    let (status, out, said) = ended.map_err(|error| Error::io("cannot wait for git", error))?;
    // It was waited for.
    running.child = None;
    if !status.success() {
        // Hidden before it is cut: what is left of a cut address could not be told from other text.
        let text = hide(&String::from_utf8_lossy(&said), remote);
        let last: String = text.trim().chars().rev().take(400).collect();
        let last: String = last.chars().rev().collect();
        return Err(Error::new(
            ErrorKind::Remote,
            format!("{what}: {}", last.replace('\n', "; ")),
        ));
    }
    Ok(String::from_utf8_lossy(&out).trim().to_owned())
}

/// An address without who logs in, and with what.
fn without_login(remote: &str) -> String {
    let Some((scheme, rest)) = remote.split_once("://") else {
        return remote.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end]
        .rsplit_once('@')
        .map_or(&rest[..end], |(_, host)| host);
    format!("{scheme}://{host}{}", &rest[end..])
}

const FETCH: &str = "cannot fetch from the repository";

/// The commands of one checkout.
struct Checkout<'a> {
    workspace: &'a Arc<Workspace>,
    remote: &'a str,
    reference: &'a str,
}

impl Checkout<'_> {
    async fn step(&self, arguments: &[&str], what: &'static str) -> Result<String> {
        let mut command = git(&self.workspace.upper);
        command.args(arguments);
        run(self.workspace, command, self.remote, what).await
    }

    /// Makes an empty repository whose commits have names of that kind.
    async fn begin(&self, names: &str) -> Result<()> {
        let init = ["init", "--quiet", &format!("--object-format={names}")];
        self.step(&init, "cannot make a repository").await.map(drop)
    }

    /// Fetches the commit. Returns by which name it is here.
    async fn fetch(&self) -> Result<&str> {
        let (remote, reference) = (self.remote, self.reference);
        let fetch = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"];
        let shallow = [&fetch[..], &["--depth=1", "--", remote, reference]].concat();
        let Err(error) = self.step(&shallow, FETCH).await else {
            return Ok("FETCH_HEAD");
        };
        // Servers that do not give a part of the history give all, and those that give no single commit give branches.
        let whole = [&fetch[..], &["--", remote, reference]].concat();
        if self.step(&whole, FETCH).await.is_ok() {
            return Ok("FETCH_HEAD");
        }
        let is_commit =
            (7..=64).contains(&reference.len()) && reference.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit {
            return Err(error);
        }
        let every = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let every = [&fetch[..], &["--", remote], &every].concat();
        self.step(&every, FETCH).await.map_err(|_| error)?;
        Ok(reference)
    }

    /// Whether the server's commits have SHA-256 names, which a repository has all or none of.
    async fn has_long_names(&self) -> bool {
        let list = ["ls-remote", "--quiet", "--", self.remote, "HEAD", "refs/heads/*"];
        let said = self.step(&list, FETCH).await.unwrap_or_default();
        said.split_whitespace()
            .next()
            .is_some_and(|name| name.len() == 64)
    }

    /// Fetches the commit and puts its files into the directory. Returns its name.
    async fn run(&self) -> Result<String> {
        let path = &self.workspace.upper;
        self.begin("sha1").await?;
        let wanted = match self.fetch().await {
            Ok(wanted) => wanted,
            Err(error) => {
                if !self.has_long_names().await {
                    return Err(error);
                }
                let repository = path.join(".git");
                blocking(move || {
                    copy::remove(&repository);
                    Ok(())
                })
                .await?;
                self.begin("sha256").await?;
                self.fetch().await?
            }
        };
        let checkout = ["checkout", "--quiet", "--force", "--detach", wanted];
        self.step(&checkout, "cannot check the files out").await?;
        let origin = without_login(self.remote);
        // Addresses of submodules may begin where this one is.
        let name = ["remote", "add", "origin", "--", &origin];
        self.step(&name, "cannot name the repository").await?;
        if path.join(".gitmodules").symlink_metadata().is_ok() {
            const UPDATE: &str = "cannot fetch submodules";
            let update = ["submodule", "update", "--quiet", "--init", "--recursive"];
            let shallow = [&update[..], &["--depth=1"]].concat();
            // Here, too, some servers give all or nothing.
            if self.step(&shallow, UPDATE).await.is_err() {
                self.step(&update, UPDATE).await?;
            }
        }
        self.step(&["rev-parse", "HEAD"], "cannot tell the commit").await
    }
}

/// The files of a repository.
pub(super) async fn checkout(
    builder: &Arc<Builder>,
    address: &GitAddress,
    checksum: Option<&str>,
    keep_git: bool,
    progress: &Progress,
) -> Result<Remote> {
    let shown = redact(&address.remote);
    if address.is_ssh() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{shown}: Git over ssh is not supported; use https, or clone it and give its directory"),
        ));
    }
    let reference = address.reference.clone().unwrap_or_else(|| "HEAD".to_owned());
    if [&address.remote, &reference]
        .iter()
        .any(|text| text.starts_with('-') || text.contains(['\0', '\n']))
    {
        return Err(Error::invalid(format!("{shown} is no Git address")));
    }
    let root = builder.cache().temporary();
    let workspace = Arc::new(blocking(move || Workspace::new(&root)).await?);
    let vertex = Pending::new(&format!("[internal] load git source {shown}#{reference}"));
    let work = async {
        let checkout = Checkout {
            workspace: &workspace,
            remote: &address.remote,
            reference: &reference,
        };
        let fetched = checkout.run().await;
        let commit =
            fetched.map_err(|error| Error::new(error.kind(), hide(&error.to_string(), &address.remote)))?;
        if let Some(wanted) = checksum
            && (wanted.len() < 7 || !commit.starts_with(wanted))
        {
            return Err(Error::invalid(format!(
                "expected checksum to match {wanted}, got {commit}"
            )));
        }
        Ok(commit)
    };
    let commit = as_vertex(progress, &vertex, work).await?;
    let directory = address
        .directory
        .clone()
        .map(|directory| tree::clean(directory.as_bytes()))
        .filter(|directory| directory != b"/");
    blocking(move || {
        let path = match &directory {
            Some(directory) => inside(&workspace.upper, directory)?,
            None => workspace.upper.clone(),
        };
        if directory.is_none() && !keep_git {
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

/// A directory of a checkout.
fn inside(root: &Path, directory: &[u8]) -> Result<PathBuf> {
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    let missing = || {
        Error::not_found(format!(
            "the repository has no directory {}",
            tree::show(directory)
        ))
    };
    let opened = tree::open_root(root)?;
    let place = tree::resolve(opened.as_fd(), directory)?;
    if !place.is_some_and(|place| place.is_dir()) {
        return Err(missing());
    }
    let real = tree::canonical(opened.as_fd(), directory)?.ok_or_else(missing)?;
    let below = real.strip_prefix(b"/").unwrap_or(&real);
    if below == b".git" || below.starts_with(b".git/") {
        return Err(missing());
    }
    Ok(root.join(std::ffi::OsStr::from_bytes(below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that starts another, as git starts the programs for its protocols.
    #[tokio::test]
    async fn what_is_given_up_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let workspace = Arc::new(Workspace::new(directory.path()).unwrap());
        let (told, files) = (workspace.upper.join("pid"), workspace.upper.clone());
        let mut command = Command::new("/bin/sh");
        let script = "sleep 1000 & echo $! > pid.new; mv pid.new pid; wait";
        command.args(["-c", script]).current_dir(&files);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let running = tokio::spawn(async move { run(&workspace, command, "", "never told").await });
        let mut pid = None;
        while pid.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            pid = std::fs::read_to_string(&told)
                .ok()
                .and_then(|text| Pid::from_raw(text.trim().parse().ok()?));
        }
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        let pid = pid.unwrap();
        for _ in 0..400 {
            if rustix::process::test_kill_process(pid).is_err() && !files.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the child is alive, or the directory is still there");
    }

    #[test]
    fn origins_have_no_logins() {
        for (remote, origin) in [
            ("https://me:p@ss@host/a@b.git", "https://host/a@b.git"),
            ("https://token@host:80", "https://host:80"),
            ("git://host/x", "git://host/x"),
        ] {
            assert_eq!(without_login(remote), origin);
        }
    }

    #[tokio::test]
    async fn what_git_says_is_hidden_before_it_is_cut() {
        let directory = tempfile::tempdir().unwrap();
        let workspace = Arc::new(Workspace::new(directory.path()).unwrap());
        let remote = "https://me:hunter2@host/x";
        let mut command = Command::new("/bin/sh");
        // What is cut off ends within the login.
        let script = format!(
            "echo {remote}{} >&2; exit 1",
            "y".repeat(400 - "ter2@host/x".len())
        );
        command
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let failed = run(&workspace, command, remote, "no")
            .await
            .unwrap_err()
            .to_string();
        assert!(failed.ends_with('y') && !failed.contains("ter2"), "{failed}");
    }

    #[tokio::test]
    async fn words_are_bounded() {
        let mut endless = tokio::io::repeat(b'x').take(10 << 20);
        assert!(words(Some(&mut endless)).await.unwrap().len() <= 2 * MAX_WORDS);
    }
}
