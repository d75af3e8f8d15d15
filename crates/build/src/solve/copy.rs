//! `COPY` and `ADD`: from a context, a stage, an image, a URL or a repository straight into a new layer.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::OFlags;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::dispatch::{Line, absolute};
use super::exec::uppercase_keyword;
use super::mounts::From;
use super::remote::{self, Remote};
use super::state::State;
use super::step::{Cached, Workspace, hex, key};
use super::{Cancelled, Solve};
use crate::blocking;
use crate::dockerfile::{Add, Copy, InlineFile, Instruction};
use crate::error::{Error, Result};
use crate::ignore::Matcher;
use crate::tree::copy::{Chmod, Copier, Options, Skip, Skipped};
use crate::tree::digest::{Digester, Memory, field};
use crate::tree::{self, glob, unpack};

/// `COPY` or `ADD`, variables expanded.
pub(super) struct Copying {
    add: bool,
    paths: Vec<String>,
    files: Vec<InlineFile>,
    dest: String,
    from: Option<String>,
    chown: Option<String>,
    chmod: Option<String>,
    link: bool,
    parents: bool,
    exclude: Vec<String>,
    checksum: Option<String>,
    keep_git_dir: bool,
    unpack: Option<bool>,
}

impl std::convert::From<Copy> for Copying {
    fn from(copy: Copy) -> Self {
        Self {
            add: false,
            paths: copy.sources.paths,
            files: copy.sources.files,
            dest: copy.sources.dest,
            from: copy.from,
            chown: copy.chown,
            chmod: copy.chmod,
            link: copy.link,
            parents: copy.parents,
            exclude: copy.exclude,
            checksum: None,
            keep_git_dir: false,
            unpack: Some(false),
        }
    }
}

impl std::convert::From<Add> for Copying {
    fn from(add: Add) -> Self {
        Self {
            add: true,
            paths: add.sources.paths,
            files: add.sources.files,
            dest: add.sources.dest,
            from: None,
            chown: add.chown,
            chmod: add.chmod,
            link: add.link,
            parents: false,
            exclude: add.exclude,
            checksum: add.checksum,
            keep_git_dir: add.keep_git_dir.unwrap_or_default(),
            unpack: add.unpack,
        }
    }
}

/// Something to copy.
enum Item {
    /// A path of a tree, expanded, and where it leads.
    Path { path: Vec<u8>, real: Vec<u8> },
    /// With the directories that lead to it from the pivot; `real` is where that leads.
    Parents {
        pivot: Vec<u8>,
        real: Vec<u8>,
        path: Vec<u8>,
    },
    /// What was fetched.
    Remote(Arc<Remote>),
    /// A here-document.
    Inline(InlineFile),
}

/// All that decides what a copy gives, beside the root and the files themselves.
#[derive(Serialize)]
struct Parts<'a> {
    root: Option<String>,
    content: &'a str,
    dest: &'a str,
    chown: Option<&'a str>,
    chmod: Option<&'a str>,
    unpack: Option<bool>,
    exclude: &'a [String],
    add: bool,
    context: bool,
    parents: bool,
    epoch: Option<i64>,
}

impl Solve {
    pub(super) async fn copy_step(
        self: &Arc<Self>,
        state: &mut State,
        line: &mut Line,
        instruction: &Instruction,
        copying: Copying,
    ) -> Result<()> {
        self.wait_for(copying.from.as_deref(), true).await;
        // Addresses of `ADD` may say who logs in, and with what.
        let original = remote::redact(&instruction.original);
        let place = Some((original.as_str(), &instruction.span));
        let shown = uppercase_keyword(&original);
        let vertex = self.line_vertex(line, &shown, place);
        self.tell(vertex.started()).await;
        let history = history(&copying);
        let prepared = Box::pin(self.prepare_copy(state, copying, &shown, line.no_cache)).await;
        let (cached, work) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.told(vertex, Err(error), |&()| (false, None)).await,
        };
        let (solve, layers) = (Arc::clone(self), state.chain.clone());
        let make = |workspace: Workspace| async move {
            let work = Box::pin(work.complete(&solve)).await?;
            let permit = solve.plan.builder.permit().await?;
            blocking(move || {
                work.run(&solve, &layers, &workspace)?;
                Ok((workspace, permit))
            })
            .await
        };
        let made = self.layer(state, line, vertex, cached, make).await?;
        state.history(history, Some(made), self.epoch);
        Ok(())
    }

    async fn prepare_copy(
        self: &Arc<Self>,
        state: &State,
        copying: Copying,
        shown: &str,
        no_cache: bool,
    ) -> Result<(Cached, Work)> {
        let chmod = copying.chmod.as_deref().filter(|text| !text.is_empty());
        let chmod = chmod.map(Chmod::parse).transpose()?;
        let chown = copying.chown.clone().filter(|text| !text.is_empty());
        let skip = excludes(&copying.exclude)?;
        let dest = destination(state, &copying.dest);
        if copying.paths.len() + copying.files.len() > 1 && !dest.ends_with('/') && !is_dot(&copying.dest) {
            return Err(Error::invalid(format!(
                "When using {} with more than one source file, the destination must be a directory and end with a / or a \\",
                if copying.add { "ADD" } else { "COPY" }
            )));
        }
        let (mut local, mut remotes) = (Vec::new(), Vec::new());
        for path in &copying.paths {
            match remote::Address::parse(path, copying.add)? {
                Some(address) => remotes.push(address),
                None => local.push(path.clone()),
            }
        }
        if copying.checksum.is_some() && (remotes.len() != 1 || !local.is_empty()) {
            return Err(Error::invalid(
                "checksum can't be specified for multiple sources, and needs an HTTP(S) or Git source",
            ));
        }
        let mut items = Vec::new();
        let mut content = Sha256::new();
        for address in remotes {
            let fetched = self
                .fetch(&address, copying.checksum.as_deref(), copying.keep_git_dir)
                .await?;
            field(&mut content, fetched.digest.as_bytes());
            items.push(Item::Remote(fetched));
        }
        let from = match &copying.from {
            _ if local.is_empty() => None,
            Some(name) => Some(self.from(name, true).await?),
            None => Some(From::Files(Box::pin(self.context()).await?)),
        };
        // Who the files belong to does not count where the copy gets another owner.
        let context = matches!(from, Some(From::Files(_)));
        let quick = match &from {
            Some(From::State(source)) => {
                let mut quick = content.clone();
                field(
                    &mut quick,
                    format!("{:?} {:?} {}", source.top(), local, copying.parents).as_bytes(),
                );
                Some(quick)
            }
            _ => None,
        };
        let parts = |hasher: Sha256| {
            let mut hasher = hasher;
            for file in &copying.files {
                field(&mut hasher, file.name.as_bytes());
                field(&mut hasher, file.content.as_bytes());
            }
            let bytes = hasher.finalize();
            let text = hex(&bytes);
            // A name is looked up in the root's accounts.
            let named = |owner: &str| !owner.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
            let root = if copying.link && !chown.as_deref().is_some_and(named) {
                None
            } else {
                state.top().map(ToString::to_string)
            };
            let parts = Parts {
                root,
                content: &text,
                dest: &dest,
                chown: chown.as_deref(),
                chmod: copying.chmod.as_deref(),
                unpack: copying.unpack,
                exclude: &copying.exclude,
                add: copying.add,
                context,
                parents: copying.parents,
                epoch: self.epoch,
            };
            key(if copying.link { "link" } else { "copy" }, &parts)
        };
        let mut aliases = Vec::new();
        if let Some(quick) = quick {
            let quick = parts(quick)?;
            if !no_cache && self.knows(&quick) {
                let cached = Cached {
                    key: quick,
                    aliases,
                    description: shown.to_owned(),
                    link: copying.link,
                    ignore: false,
                };
                // If the record vanishes in this moment, the work is done.
                let mut work = Work::new(&copying, items, from, chown, chmod, skip, dest, self.epoch);
                work.later = Some((local, copying.parents));
                return Ok((cached, work));
            }
            aliases.push(quick);
        }
        let (found, hash) = self
            .expand(from.clone(), &local, copying.parents, &skip, context)
            .await?;
        items.extend(found);
        field(&mut content, &hash);
        let cached = Cached {
            key: parts(content)?,
            aliases,
            description: shown.to_owned(),
            link: copying.link,
            ignore: no_cache,
        };
        let work = Work::new(&copying, items, from, chown, chmod, skip, dest, self.epoch);
        Ok((cached, work))
    }

    /// The paths that sources name, and a digest of what is there.
    async fn expand(
        self: &Arc<Self>,
        from: Option<From>,
        paths: &[String],
        parents: bool,
        skip: &Option<Skip>,
        context: bool,
    ) -> Result<(Vec<Item>, Vec<u8>)> {
        let Some(from) = from else {
            return Ok((Vec::new(), Vec::new()));
        };
        from.obtain(self).await?;
        let (solve, paths, skip) = (Arc::clone(self), paths.to_vec(), skip.clone());
        blocking(move || {
            let root = from.open(&solve)?;
            let mut none = Memory::default();
            let mut guard = match &from {
                From::Files(files) => Some(files.memory()),
                From::State(_) => None,
            };
            let memory = match &mut guard {
                Some(guard) => &mut **guard,
                None => &mut none,
            };
            let skipped = from.ignored();
            let ignored =
                |path: &[u8]| leaves_nothing(root.as_fd(), path, skipped.as_ref(), &solve.plan.cancelled);
            let mut items = Vec::new();
            let mut hasher = Sha256::new();
            for path in &paths {
                let (pivot, pattern) = match path.split_once("/./") {
                    // Only behind the pivot `**` is any number of directories, as in BuildKit.
                    Some((pivot, pattern)) if parents => {
                        (tree::clean(pivot.replace("**", "*").as_bytes()), pattern)
                    }
                    _ => (b"/".to_vec(), path.as_str()),
                };
                let pattern = tree::clean(pattern.as_bytes());
                let whole = if pivot == b"/" {
                    pattern.clone()
                } else {
                    [&pivot[..], &pattern].concat()
                };
                let found = if glob::has_wildcards(path) {
                    glob::expand(root.as_fd(), &whole, parents, &solve.plan.cancelled)?
                } else {
                    vec![whole]
                };
                for found in found {
                    let pivot = pivot_of(&pivot, &found);
                    let shown = String::from_utf8_lossy(&found).into_owned();
                    // An ignore file speaks of where things are, not of links that lead there.
                    let real = tree::canonical(root.as_fd(), &found)?;
                    let left_out = ignored(&found)?
                        || match &real {
                            Some(real) if *real != found => ignored(real)?,
                            _ => false,
                        };
                    let Some(real) = real.filter(|_| !left_out) else {
                        if glob::has_wildcards(path) {
                            continue;
                        }
                        let hint = if left_out {
                            "; .dockerignore leaves it out"
                        } else {
                            ""
                        };
                        return Err(Error::not_found(format!("\"{shown}\": not found{hint}")));
                    };
                    let name = match parents {
                        true => found.strip_prefix(pivot).unwrap_or(&found).to_vec(),
                        false => tree::split(&found).1.to_vec(),
                    };
                    // What rules speak of, here as in the copy: what is below the pivot, or below what was found.
                    let real = match parents {
                        true => tree::canonical(root.as_fd(), pivot)?.unwrap_or_else(|| pivot.to_vec()),
                        false => real,
                    };
                    let options = Options {
                        skip: both(beneath(from.ignored(), &real), skip.clone()),
                        ..Options::default()
                    };
                    let mut digester = Digester {
                        owners: !context,
                        options: &options,
                        memory: Some(&mut *memory),
                        cancelled: &solve.plan.cancelled,
                        read: 0,
                    };
                    items.push(if parents {
                        digester.with_parents(root.as_fd(), pivot, &name, &mut hasher)?;
                        Item::Parents {
                            pivot: pivot.to_vec(),
                            real,
                            path: name,
                        }
                    } else {
                        digester.path(root.as_fd(), &found, &name, &mut hasher)?;
                        Item::Path { path: found, real }
                    });
                }
            }
            drop(guard);
            if let From::Files(files) = &from {
                files.keep_memory();
            }
            Ok((items, hasher.finalize().to_vec()))
        })
        .await
    }
}

/// The part of a path that a pivot, which may have wildcards, has led to: as many names as the pivot has.
fn pivot_of<'a>(pivot: &[u8], found: &'a [u8]) -> &'a [u8] {
    if pivot == b"/" {
        return b"/";
    }
    let names = pivot.iter().filter(|&&byte| byte == b'/').count();
    let slashes = found.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let end = slashes.map(|(at, _)| at).nth(names).unwrap_or(found.len());
    &found[..end]
}

impl From {
    /// What of it is left out by an ignore file.
    pub(super) fn ignored(&self) -> Option<Skip> {
        match self {
            Self::Files(files) => files.skip(),
            Self::State(_) => None,
        }
    }
}

/// Whether a rule leaves out a path from the root, and all that is there: of a directory it may take something back in.
pub(super) fn leaves_nothing(
    root: BorrowedFd<'_>,
    path: &[u8],
    rule: Option<&Skip>,
    cancelled: &Cancelled,
) -> Result<bool> {
    let relative = path.strip_prefix(b"/").unwrap_or(path);
    let Some(rule) = rule.filter(|_| !relative.is_empty()) else {
        return Ok(false);
    };
    match (rule.0)(relative, true) {
        Skipped::All => return Ok(true),
        Skipped::No => return Ok(false),
        Skipped::Itself => {}
    }
    let mut directories = vec![relative.to_vec()];
    while let Some(directory) = directories.pop() {
        cancelled.check()?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        // What is no directory, the rule leaves out.
        let Ok(fd) = tree::open_in(root, &directory, flags) else {
            continue;
        };
        let fail = |error: rustix::io::Errno| Error::io("cannot read a directory of the context", error);
        for entry in rustix::fs::Dir::new(fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let below = [&directory[..], b"/", name].concat();
            let is_directory = entry.file_type() == rustix::fs::FileType::Directory;
            match (rule.0)(&below, is_directory) {
                Skipped::No => return Ok(false),
                Skipped::Itself => directories.push(below),
                Skipped::All => {}
            }
        }
    }
    Ok(true)
}

/// A rule for paths from the root, for what is below a directory, by paths from there.
pub(super) fn beneath(rule: Option<Skip>, directory: &[u8]) -> Option<Skip> {
    let prefix = directory.strip_prefix(b"/").unwrap_or(directory).to_vec();
    let rule = rule?;
    if prefix.is_empty() {
        return Some(rule);
    }
    Some(Skip(Arc::new(move |path, is_directory| {
        let whole = [&prefix[..], b"/", path].concat();
        (rule.0)(&whole, is_directory)
    })))
}

/// Both of two rules.
fn both(one: Option<Skip>, other: Option<Skip>) -> Option<Skip> {
    match (one, other) {
        (Some(one), Some(other)) => Some(Skip(Arc::new(move |path, directory| {
            match ((one.0)(path, directory), (other.0)(path, directory)) {
                (Skipped::All, _) | (_, Skipped::All) => Skipped::All,
                (Skipped::Itself, _) | (_, Skipped::Itself) => Skipped::Itself,
                _ => Skipped::No,
            }
        }))),
        (one, other) => one.or(other),
    }
}

/// What `--exclude` leaves out.
pub(super) fn excludes(patterns: &[String]) -> Result<Option<Skip>> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let matcher = Matcher::new(patterns).map_err(|error| Error::invalid(error.to_string()))?;
    Ok(Some(skipping(matcher)))
}

/// A matcher as a rule.
pub(super) fn skipping(matcher: Matcher) -> Skip {
    Skip(Arc::new(move |path, directory| {
        let text = crate::ignore::path_text(path);
        match matcher.matches(&text) {
            false => Skipped::No,
            true if directory && !matcher.prunes(&text) => Skipped::Itself,
            true => Skipped::All,
        }
    }))
}

fn is_dot(dest: &str) -> bool {
    matches!(dest, "." | "./") || dest.ends_with("/.")
}

/// The destination: absolute, with the slash at the end that makes it a directory.
fn destination(state: &State, dest: &str) -> String {
    let mut path = absolute(state, dest);
    if (dest.ends_with('/') || is_dot(dest) || dest.is_empty()) && !path.ends_with('/') {
        path.push('/');
    }
    path
}

/// A copy, ready to be made.
struct Work {
    items: Vec<Item>,
    /// Paths that were not looked at, since the step is known, and whether with `--parents`.
    later: Option<(Vec<String>, bool)>,
    inline: usize,
    from: Option<From>,
    chown: Option<String>,
    options: Options,
    /// What `.dockerignore` leaves out of the source, by paths from its root.
    ignored: Option<Skip>,
    dest: String,
    unpack: Option<bool>,
    link: bool,
    context: bool,
}

impl Work {
    #[allow(clippy::too_many_arguments, reason = "the parts of one value")]
    fn new(
        copying: &Copying,
        mut items: Vec<Item>,
        from: Option<From>,
        chown: Option<String>,
        chmod: Option<Chmod>,
        skip: Option<Skip>,
        dest: String,
        epoch: Option<i64>,
    ) -> Self {
        items.extend(copying.files.iter().cloned().map(Item::Inline));
        let ignored = from.as_ref().and_then(From::ignored);
        Self {
            items,
            later: None,
            inline: copying.files.len(),
            context: matches!(from, Some(From::Files(_))),
            from,
            chown,
            options: Options {
                owner: None,
                chmod,
                mtime: epoch,
                skip,
            },
            ignored,
            dest,
            unpack: copying.unpack,
            link: copying.link,
        }
    }

    /// Looks at what was not looked at yet.
    async fn complete(mut self, solve: &Arc<Solve>) -> Result<Self> {
        if let Some((paths, parents)) = self.later.take() {
            let from = self.from.clone();
            let (found, _) = solve
                .expand(from, &paths, parents, &self.options.skip, self.context)
                .await?;
            let at = self.items.len() - self.inline;
            self.items.splice(at..at, found);
        }
        Ok(self)
    }

    fn run(self, solve: &Solve, layers: &[vessel_image::ChainId], workspace: &Workspace) -> Result<()> {
        let worker = solve.plan.builder.worker();
        let root = if self.link {
            tree::open_root(&workspace.upper)?
        } else {
            worker.mount(layers, Some(workspace.writable()))?
        };
        let owner = match &self.chown {
            Some(text) if self.link => {
                let base = worker.mount(layers, None)?;
                Some(tree::accounts::owner(Some(base.as_fd()), text)?)
            }
            Some(text) => Some(tree::accounts::owner(Some(root.as_fd()), text)?),
            None => None,
        };
        let source = self.from.as_ref().map(|from| from.open(solve)).transpose()?;
        let dest = self.dest.as_bytes();
        let cancelled = &solve.plan.cancelled;
        for item in &self.items {
            // What a client sends is root's, what a stage has keeps its owner.
            let own = match item {
                Item::Path { .. } | Item::Parents { .. } if !self.context => owner,
                _ => owner.or(Some((0, 0))),
            };
            let ignored = match item {
                Item::Path { real, .. } => beneath(self.ignored.clone(), real),
                Item::Parents { real, .. } => beneath(self.ignored.clone(), real),
                _ => None,
            };
            let options = Options {
                owner: own,
                skip: both(ignored, self.options.skip.clone()),
                ..self.options.clone()
            };
            let making = options.making();
            let mut copier = Copier::new(root.as_fd(), options, cancelled);
            match (item, &source) {
                (Item::Path { path, .. }, Some(source)) => {
                    if self.unpack.unwrap_or(true) && unpack::is_archive(source.as_fd(), path)? {
                        unpack::unpack(source.as_fd(), path, root.as_fd(), dest, &making, owner)?;
                    } else {
                        copier.copy(source.as_fd(), path, dest)?;
                    }
                }
                (Item::Parents { pivot, path, .. }, Some(source)) => {
                    copier.copy_with_parents(source.as_fd(), pivot, path, dest)?;
                }
                (Item::Remote(remote), _) => {
                    let tree = tree::open_root(&remote.path)?;
                    let path = remote.name.as_deref().unwrap_or("/").as_bytes();
                    if remote.name.is_some()
                        && self.unpack == Some(true)
                        && unpack::is_archive(tree.as_fd(), path)?
                    {
                        unpack::unpack(tree.as_fd(), path, root.as_fd(), dest, &making, owner)?;
                    } else {
                        copier.copy(tree.as_fd(), path, dest)?;
                    }
                }
                (Item::Inline(file), _) => {
                    let scratch = workspace.scratch()?;
                    let tree = tree::open_root(&scratch)?;
                    tree::copy::write_file(tree.as_fd(), b"inline", file.content.as_bytes(), 0o644)?;
                    let dest = if self.dest.ends_with('/') {
                        format!("{}{}", self.dest, file.name)
                    } else {
                        self.dest.clone()
                    };
                    let into = tree::resolve(root.as_fd(), dest.as_bytes())?;
                    let dest = match into {
                        Some(place) if place.is_dir() => format!("{dest}/{}", file.name),
                        _ => dest,
                    };
                    copier.copy(tree.as_fd(), b"/inline", dest.as_bytes())?;
                    tree::copy::remove(&scratch);
                }
                (_, None) => return Err(Error::invalid("a path without a source")),
            }
        }
        Ok(())
    }
}

/// The history of a copy.
fn history(copying: &Copying) -> String {
    let mut text = String::from(if copying.add { "ADD" } else { "COPY" });
    if copying.parents {
        text.push_str(" --parents");
    }
    for (flag, value) in [("chown", &copying.chown), ("chmod", &copying.chmod)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            text.push_str(&format!(" --{flag}={value}"));
        }
    }
    for path in &copying.paths {
        text.push_str(&format!(" {}", remote::redact(path)));
    }
    for file in &copying.files {
        text.push_str(&format!(" <<{}", file.name));
    }
    format!("{text} {} # buildkit", copying.dest)
}
