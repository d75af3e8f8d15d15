//! `vessel compose watch`: files that change here are copied into containers, or images are built anew, as
//! `develop.watch` of services says.
//!
//! Directories are watched by inotify(7), each with those below it. What changes is gathered until nothing did for a
//! moment; a batch then goes into containers as one archive.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vessel_api::ExecCreateRequest;
use vessel_build::ignore::{self, Matcher};
use vessel_compose::Project;
use vessel_compose::act::state::OneOff;
use vessel_compose::act::{Create, Engine, Recreate};
use vessel_compose::project::{Service, Watch};

use super::images::BuildExtra;
use super::options::Session;
use super::tree::{Changes, Tree};
use crate::failure::{Failure, Result, words};
use crate::output;

/// Nothing changed for so long: what did is acted upon.
const QUIET: Duration = Duration::from_millis(200);
/// What editors and version control leave, which is nobody's business.
const ALWAYS_IGNORED: [&str; 8] = [
    "**/.git",
    "**/*~",
    "**/.*.sw?",
    "**/4913",
    "**/.#*",
    "**/#*#",
    "**/*___jb_tmp___",
    "**/*___jb_old___",
];

/// Copy files that change, and build images anew
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not build and start services first
    #[arg(long)]
    no_up: bool,
    /// Show no builds
    #[arg(long)]
    quiet: bool,
    /// Services; all that have something to watch when none is named
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
}

/// A rule of a service.
struct Rule<'a> {
    service: &'a Service,
    rule: &'a Watch,
    root: PathBuf,
    /// Patterns from the root.
    ignore: Matcher,
    include: Option<Matcher>,
    /// Patterns of the build's context, and where that is.
    context: Option<(PathBuf, Matcher)>,
}

fn matcher(patterns: &[String]) -> Result<Matcher> {
    Matcher::new(patterns).map_err(|error| Failure::new(format!("develop.watch: {error}")))
}

impl<'a> Rule<'a> {
    fn new(service: &'a Service, rule: &'a Watch) -> Result<Self> {
        let path = Path::new(&rule.path);
        let root = path.canonicalize().map_err(|error| {
            Failure::new(format!(
                "services.{}.develop.watch: cannot watch {}: {}",
                service.name,
                rule.path,
                words(&error)
            ))
        })?;
        let needs_target = rule.action.starts_with("sync");
        if needs_target && rule.target.is_empty() {
            return Err(Failure::new(format!(
                "services.{}.develop.watch: action {} of {} needs a target",
                service.name, rule.action, rule.path
            )));
        }
        if rule.action == "rebuild" && service.build.is_none() {
            return Err(Failure::new(format!(
                "services.{}.develop.watch: action rebuild needs a build section",
                service.name
            )));
        }
        let mut patterns: Vec<String> = ALWAYS_IGNORED
            .iter()
            .map(|pattern| (*pattern).to_owned())
            .collect();
        patterns.extend(rule.ignore.iter().cloned());
        let context = service.build.as_ref().map(|build| PathBuf::from(&build.context));
        let context = match context.filter(|context| context.is_dir()) {
            None => None,
            Some(directory) => {
                let text = std::fs::read(directory.join(".dockerignore")).unwrap_or_default();
                let patterns =
                    ignore::read(&text).map_err(|error| Failure::new(format!(".dockerignore: {error}")))?;
                let directory = directory.canonicalize()?;
                Some((directory, matcher(&patterns)?))
            }
        };
        Ok(Self {
            service,
            rule,
            root,
            ignore: matcher(&patterns)?,
            include: if rule.include.is_empty() {
                None
            } else {
                Some(matcher(&rule.include)?)
            },
            context,
        })
    }

    /// Where a file of the rule's is in containers; nothing when the rule does not care for it.
    fn place(&self, path: &Path) -> Option<String> {
        let rest = path.strip_prefix(&self.root).ok()?;
        let rest = rest.to_str()?;
        if rest.is_empty() {
            // The rule is about one file.
            return (!path.is_dir()).then(|| self.rule.target.clone());
        }
        if self.ignore.matches(rest)
            || self
                .include
                .as_ref()
                .is_some_and(|include| !include.matches(rest))
        {
            return None;
        }
        if let Some((directory, patterns)) = &self.context
            && let Some(rest) = path.strip_prefix(directory).ok().and_then(Path::to_str)
            && patterns.matches(rest)
        {
            return None;
        }
        Some(format!("{}/{rest}", self.rule.target.trim_end_matches('/')))
    }
}

/// What is to be done for a service.
#[derive(Default)]
struct Work<'a> {
    rebuild: bool,
    restart: bool,
    /// Paths in containers to paths here.
    sync: BTreeMap<String, PathBuf>,
    run: Vec<&'a vessel_compose::project::Hook>,
}

impl Args {
    pub fn run(self, session: &Session<'_>) -> Result {
        let project = session.project(&self.services)?;
        let chosen = project.select(&self.services, false)?;
        let mut rules = Vec::new();
        for service in chosen.iter().filter_map(|name| project.services.get(name)) {
            for rule in service.develop.iter().flat_map(|develop| &develop.watch) {
                rules.push(Rule::new(service, rule)?);
            }
        }
        if rules.is_empty() {
            return Err(Failure::new(
                "none of the selected services is configured for watch, consider setting a 'develop' section",
            ));
        }
        let engine = session.engine(&project)?;
        let extra = BuildExtra {
            quiet: self.quiet,
            ..BuildExtra::default()
        };
        if !self.no_up {
            let create = Create {
                services: self.services.clone(),
                build: Some(true),
                ..Create::default()
            };
            let started = engine.create(&create)?;
            engine.start(&started, true)?;
            session.progress().finish();
        }
        let roots: BTreeSet<PathBuf> = rules.iter().map(|rule| rule.root.clone()).collect();
        let mut tree = Tree::new().map_err(watch_failure)?;
        for root in &roots {
            tree.add(root, &|path| ignored(&rules, path))
                .map_err(watch_failure)?;
        }
        for rule in rules.iter().filter(|rule| rule.rule.initial_sync) {
            let mut work = Work::default();
            for path in tree.files(&rule.root) {
                if let Some(place) = rule.place(&path) {
                    work.sync.insert(place, path);
                }
            }
            act(session, &project, &engine, rule.service, &work, &extra)?;
        }
        output::warn("Watch enabled");
        loop {
            let changes = tree
                .next(QUIET, &|path| ignored(&rules, path))
                .map_err(watch_failure)?;
            let paths: Vec<PathBuf> = match changes {
                Changes::Some(paths) => paths.into_iter().collect(),
                // Too much happened to be told one by one.
                Changes::Everything => roots.iter().flat_map(|root| tree.files(root)).collect(),
            };
            let mut by_service: BTreeMap<&str, (&Service, Work<'_>)> = BTreeMap::new();
            for path in &paths {
                for rule in &rules {
                    let Some(place) = rule.place(path) else { continue };
                    let (_, work) = by_service
                        .entry(&rule.service.name)
                        .or_insert_with(|| (rule.service, Work::default()));
                    match rule.rule.action.as_str() {
                        "rebuild" => work.rebuild = true,
                        "restart" => work.restart = true,
                        action => {
                            work.sync.insert(place, path.clone());
                            work.restart |= action == "sync+restart";
                            if let Some(hook) = rule.rule.exec.as_ref().filter(|_| action == "sync+exec")
                                && !work.run.iter().any(|known| std::ptr::eq(*known, hook))
                            {
                                work.run.push(hook);
                            }
                        }
                    }
                }
            }
            for (service, work) in by_service.into_values() {
                // A failed build or copy is told, and the next change may mend it.
                if let Err(failure) = act(session, &project, &engine, service, &work, &extra) {
                    output::warn(&format!("vessel: {}", failure.message.unwrap_or_default()));
                }
            }
        }
    }
}

fn watch_failure(error: io::Error) -> Failure {
    let failure = Failure::new(format!("cannot watch files: {}", words(&error)));
    if error.raw_os_error() == Some(libc::ENOSPC) {
        return failure
            .with_hint("there are too many directories; raise fs.inotify.max_user_watches, or ignore some");
    }
    failure
}

/// Whether no rule cares for a directory.
fn ignored(rules: &[Rule<'_>], path: &Path) -> bool {
    rules.iter().all(|rule| {
        let Ok(rest) = path.strip_prefix(&rule.root) else {
            return true;
        };
        let rest = rest.to_string_lossy();
        !rest.is_empty() && rule.ignore.matches(&rest)
    })
}

fn act(
    session: &Session<'_>,
    project: &Project,
    engine: &Engine<'_>,
    service: &Service,
    work: &Work<'_>,
    extra: &BuildExtra,
) -> Result {
    let name = &service.name;
    if work.rebuild {
        output::warn(&format!(
            "Rebuilding service {name:?} after changes were detected..."
        ));
        session.images()?.build_one(project, service, extra)?;
        let create = Create {
            services: vec![name.clone()],
            no_deps: true,
            recreate: Recreate::Changed,
            build: Some(false),
            ignore_orphans: true,
            ..Create::default()
        };
        let started = engine.create(&create)?;
        engine.start(&started, false)?;
        session.progress().finish();
        output::warn(&format!("service {name:?} successfully built"));
        return Ok(());
    }
    let mut containers = engine.containers_of(std::slice::from_ref(name), OneOff::Exclude)?;
    containers.retain(|container| container.is_running());
    if !work.sync.is_empty() {
        let (archive, removed) = archive(&work.sync)?;
        for container in &containers {
            if let Some(archive) = &archive {
                session.client()?.container_extract(
                    &container.id,
                    "/",
                    false,
                    io::Cursor::new(archive.clone()),
                )?;
            }
            if !removed.is_empty() {
                remove(session, &container.id, &removed)?;
            }
        }
        output::warn(&format!(
            "Syncing service {name:?} after {} changes were detected",
            work.sync.len()
        ));
    }
    if work.restart {
        engine.restart(std::slice::from_ref(name), None, false)?;
        session.progress().finish();
        output::warn(&format!("service(s) [{name:?}] restarted"));
    }
    for hook in &work.run {
        for container in &containers {
            engine.run_hook(&container.id, &container.name, hook)?;
        }
    }
    Ok(())
}

/// Files as an archive with their places in containers, and the places of those that are gone.
fn archive(sync: &BTreeMap<String, PathBuf>) -> Result<(Option<Vec<u8>>, Vec<String>)> {
    let mut removed = Vec::new();
    let mut some = false;
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    for (place, path) in sync {
        let name = place.trim_start_matches('/');
        let result = match path.symlink_metadata() {
            Ok(data) if data.is_dir() => archive.append_dir(name, path),
            Ok(_) => archive.append_path_with_name(path, name),
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => some = true,
            // It went, or is going.
            Err(error) if error.kind() == io::ErrorKind::NotFound => removed.push(place.clone()),
            Err(error) => {
                return Err(Failure::new(format!(
                    "cannot read {}: {}",
                    path.display(),
                    words(&error)
                )));
            }
        }
    }
    let bytes = archive.into_inner()?;
    Ok((some.then_some(bytes), removed))
}

fn remove(session: &Session<'_>, container: &str, paths: &[String]) -> Result {
    let client = session.client()?;
    let mut command = ["rm", "-rf", "--"].map(str::to_owned).to_vec();
    command.extend(paths.iter().cloned());
    let request = ExecCreateRequest {
        cmd: command,
        user: "0".to_owned(),
        ..ExecCreateRequest::default()
    };
    let exec = client.exec_create(container, &request)?;
    Ok(client.exec_start_detached(&exec, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_places() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::write(root.join("one"), "").unwrap();
        let service = Service::default();
        let rule = Watch {
            action: "sync".into(),
            path: root.display().to_string(),
            target: "/app/".into(),
            ignore: vec!["node_modules/".into(), "*.log".into()],
            ..Watch::default()
        };
        let watched = Rule::new(&service, &rule).unwrap();
        let place = |name: &str| watched.place(&root.join(name));
        assert_eq!(place("src/a.js").as_deref(), Some("/app/src/a.js"));
        assert_eq!(place("node_modules/x/y"), None);
        assert_eq!(place("a.log"), None);
        assert_eq!(place(".git/HEAD"), None);
        assert_eq!(place("a.txt~"), None);
        let one = Watch {
            path: root.join("one").display().to_string(),
            target: "/etc/one".into(),
            ..rule.clone()
        };
        let watched = Rule::new(&service, &one).unwrap();
        assert_eq!(watched.place(&root.join("one")).as_deref(), Some("/etc/one"));
        assert_eq!(watched.place(&root.join("two")), None);
    }
}
