//! Files from elsewhere: URLs and Git repositories ([`super::git`]), for `ADD` and as build contexts. Credentials in
//! addresses are used and never shown.

use std::path::PathBuf;
use std::sync::Arc;

use super::git::checkout;
use super::step::Workspace;
use super::vertex::Pending;
use super::{Solve, as_vertex};
use crate::blocking;
use crate::builder::Builder;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tree::{self, copy, unpack};
use crate::worker::Download;

/// What a Dockerfile is called that came alone.
const DOCKERFILE: &str = "Dockerfile";

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
    /// Where it is.
    pub remote: String,
    /// A branch, a tag or a commit.
    pub reference: Option<String>,
    /// The part of it that is meant.
    pub directory: Option<String>,
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
    pub fn is_ssh(&self) -> bool {
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
    pub _workspace: Arc<Workspace>,
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

/// A build context from elsewhere: a repository, or an archive, or a single Dockerfile, whose name is returned.
pub(super) async fn context(
    builder: &Arc<Builder>,
    text: &str,
    keep_git: bool,
    progress: &Progress,
) -> Result<(PathBuf, Arc<Workspace>, Option<&'static str>)> {
    if let Some(git) = GitAddress::parse(text, true) {
        let remote = checkout(builder, &git, None, keep_git, progress).await?;
        return Ok((remote.path, remote._workspace, None));
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
            return Ok((root, remote._workspace, None));
        }
        std::fs::rename(remote.path.join(&name), root.join(DOCKERFILE))
            .map_err(|error| Error::io("cannot keep the Dockerfile that was downloaded", error))?;
        Ok((root, remote._workspace, Some(DOCKERFILE)))
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
    let workspace = Arc::new(blocking(move || Workspace::new(&root)).await?);
    let path = workspace.upper.clone();
    let file = path.join(&name);
    let shown = redact(url);
    let vertex = Pending::new(&format!("[internal] download {shown}"));
    let request = Download {
        url,
        shown: &shown,
        destination: &file,
        progress,
        vertex: &vertex.digest,
    };
    let work = async {
        let downloaded = builder.worker().download(request).await;
        downloaded.map_err(|error| Error::new(error.kind(), hide(&error.to_string(), url)))
    };
    let downloaded = as_vertex(progress, &vertex, work).await?;
    if let Some(wanted) = checksum {
        let wanted: vessel_image::Digest = wanted.parse()?;
        if wanted != downloaded.digest {
            return Err(Error::invalid(format!(
                "digest mismatch for {shown}: --checksum says {wanted}, what came is {}",
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

/// Text that somebody else wrote about an address, as it may be shown.
pub(super) fn hide(text: &str, address: &str) -> String {
    let host = address
        .split_once("://")
        .map_or("", |(_, rest)| rest.split('/').next().unwrap_or(rest));
    match host.rsplit_once('@') {
        Some((login, _)) if !login.is_empty() => redact(&text.replace(&format!("{login}@"), "xxxxx@")),
        _ => redact(text),
    }
}

/// An address as it may be shown: who logs in, and with what, is left out.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || c.is_control() || "/?#".contains(c))
            .unwrap_or(after.len());
        rest = after;
        if let Some(at) = after[..end].rfind('@') {
            let hidden = if after[..at].contains(':') {
                "xxxxx:xxxxx"
            } else {
                "xxxxx"
            };
            out.push_str(if at == 0 { "" } else { hidden });
            rest = &after[at..];
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_not_shown() {
        for (text, shown) in [
            (
                "ADD https://me:pass@host/x.git#r /d",
                "ADD https://xxxxx:xxxxx@host/x.git#r /d",
            ),
            ("https://t0ken@host:80", "https://xxxxx@host:80"),
            ("http://a:p@ss@host", "http://xxxxx:xxxxx@host"),
            // What stands in quotes elsewhere may stand in a password.
            (
                "ADD https://me:pa'ss@host/x /d",
                "ADD https://xxxxx:xxxxx@host/x /d",
            ),
            ("https://u:\"pw\"@host/x", "https://xxxxx:xxxxx@host/x"),
            ("https://<u>`@host/x", "https://xxxxx@host/x"),
            ("http://host/a@b ftp://u@h", "http://host/a@b ftp://xxxxx@h"),
            ("git@host:path nothing", "git@host:path nothing"),
            ("://", "://"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_redacted(text in "[a:/@é\\n#?]{0,40}") {
            let shown = redact(&text);
            proptest::prop_assert_eq!(redact(&shown), shown);
        }
    }

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
