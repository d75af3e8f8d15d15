//! Which files make a project, and what surrounds them.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Environment, Options, dotenv};
use crate::error::{Error, FileFault, Result};
use crate::yaml::MAX_TEXT;

/// Names of Compose files, the first that exists is taken.
const NAMES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];
/// Names of files that go on top of it.
const OVERRIDES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// What was found.
pub(super) struct Found {
    pub(super) files: Vec<PathBuf>,
    pub(super) directory: PathBuf,
    pub(super) environment: Environment,
    pub(super) env_files: Vec<PathBuf>,
    pub(super) name: Option<String>,
    pub(super) profiles: Vec<String>,
}

/// Finds files, directory and environment. `COMPOSE_FILE` and the like may themselves stand in `.env`.
pub(super) fn resolve(options: &Options) -> Result<Found> {
    let here = &options.current_directory;
    let mut environment = options.environment.clone();
    let start = options
        .project_directory
        .as_ref()
        .map_or_else(|| here.clone(), |directory| absolute(here, directory));
    if options.env_files.is_empty() && !env_files_named(&environment) {
        add_dotenv(&start.join(".env"), &mut environment)?;
    } else {
        add_env_files(options, here, &mut environment)?;
    }
    let mut files: Vec<PathBuf> = options.files.clone();
    if files.is_empty()
        && let Some(named) = environment.get("COMPOSE_FILE").filter(|named| !named.is_empty())
    {
        let separator = environment
            .get("COMPOSE_PATH_SEPARATOR")
            .filter(|separator| !separator.is_empty())
            .map_or(":", String::as_str);
        files = named.split(separator).map(PathBuf::from).collect();
    }
    let files = if files.is_empty() {
        find(&start)?
    } else {
        files
            .into_iter()
            .map(|file| match file.to_str() {
                Some("-") => file,
                _ => absolute(here, &file),
            })
            .collect()
    };
    let directory = match (&options.project_directory, files.first()) {
        (Some(_), _) => start.clone(),
        (None, Some(first)) if first != Path::new("-") => match first.parent() {
            Some(parent) => parent.to_owned(),
            None => start.clone(),
        },
        _ => start.clone(),
    };
    let mut env_files: Vec<PathBuf> = options
        .env_files
        .iter()
        .map(|file| absolute(here, file))
        .collect();
    if options.env_files.is_empty() && !env_files_named(&options.environment) {
        let file = directory.join(".env");
        if directory != start {
            // What lies beside the files wins over what lies here.
            let mut beside = options.environment.clone();
            add_dotenv(&file, &mut beside)?;
            for (name, value) in environment {
                beside.entry(name).or_insert(value);
            }
            environment = beside;
        }
        env_files.extend(file.is_file().then_some(file));
    }
    let name = options
        .name
        .clone()
        .or_else(|| environment.get("COMPOSE_PROJECT_NAME").cloned())
        .filter(|name| !name.is_empty());
    let mut profiles = options.profiles.clone();
    if profiles.is_empty()
        && let Some(named) = environment.get("COMPOSE_PROFILES")
    {
        profiles.extend(named.split(',').map(|name| name.trim().to_owned()));
    }
    profiles.retain(|name| !name.is_empty());
    Ok(Found {
        files,
        directory,
        environment,
        env_files,
        name,
        profiles,
    })
}

fn env_files_named(environment: &Environment) -> bool {
    environment
        .get("COMPOSE_ENV_FILES")
        .is_some_and(|names| !names.is_empty())
        || environment
            .get("COMPOSE_DISABLE_ENV_FILE")
            .is_some_and(|value| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "t"))
}

/// Reads the named environment files; later ones win, the caller's environment wins over all.
fn add_env_files(options: &Options, here: &Path, environment: &mut Environment) -> Result<()> {
    let mut names = options.env_files.clone();
    if names.is_empty()
        && let Some(named) = environment.get("COMPOSE_ENV_FILES")
    {
        names = named
            .split(',')
            .filter(|name| !name.is_empty())
            .map(PathBuf::from)
            .collect();
    }
    let files: Vec<PathBuf> = names.iter().map(|name| absolute(here, name)).collect();
    for (name, value) in variables(&files, environment)? {
        environment.entry(name).or_insert(value);
    }
    Ok(())
}

/// The variables of several files, of which later ones win.
pub(super) fn variables(files: &[PathBuf], environment: &Environment) -> Result<Environment> {
    let mut found = Environment::new();
    for file in files {
        let text = text(file)?;
        let lookup = |name: &str| environment.get(name).or_else(|| found.get(name)).cloned();
        let more = dotenv::parse(&text, &lookup).map_err(|fault| line_fault(file, fault))?;
        found.extend(more);
    }
    Ok(found)
}

fn add_dotenv(file: &Path, environment: &mut Environment) -> Result<()> {
    if !file.is_file() {
        return Ok(());
    }
    for (name, value) in variables(&[file.to_owned()], environment)? {
        environment.entry(name).or_insert(value);
    }
    Ok(())
}

pub(super) fn line_fault(file: &Path, fault: dotenv::LineFault) -> Error {
    Error::File(Box::new(FileFault {
        file: file.display().to_string(),
        place: Some((fault.line, 1)),
        path: String::new(),
        message: fault.message,
    }))
}

/// The Compose file of a directory, or of one above it, and what overrides it.
///
/// # Errors
/// There is none.
pub fn find(directory: &Path) -> Result<Vec<PathBuf>> {
    let exists = |directory: &Path, names: &[&str]| {
        names
            .iter()
            .map(|name| directory.join(name))
            .find(|path| path.is_file())
    };
    for place in directory.ancestors() {
        if let Some(file) = exists(place, &NAMES) {
            let mut files = vec![file];
            files.extend(exists(place, &OVERRIDES));
            return Ok(files);
        }
    }
    Err(Error::NoFile(directory.to_owned()))
}

/// A path below `directory` unless it is absolute, without `.` and `..`.
pub(super) fn absolute(directory: &Path, path: &Path) -> PathBuf {
    clean(&directory.join(path))
}

/// A path without `.`, `..` and empty components, by its letters, as Go's `filepath.Clean` has it.
pub(super) fn clean(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => match out.components().next_back() {
                Some(Component::Normal(_)) => {
                    out.pop();
                }
                Some(Component::RootDir) => {}
                _ => out.push(".."),
            },
            other => out.push(other),
        }
    }
    if out.as_os_str().is_empty() {
        out.push(".");
    }
    out
}

/// A file's text, within the bound.
pub(super) fn text(path: &Path) -> Result<String> {
    let fail = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(MAX_TEXT + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_TEXT {
        return Err(fail(std::io::Error::other(format!(
            "it has more than {} MiB, which is too much for a file of a project",
            MAX_TEXT >> 20
        ))));
    }
    String::from_utf8(bytes).map_err(|_| fail(std::io::Error::other("it is not text in UTF-8")))
}

/// A name as a project may have it: lowercase letters, digits, `-` and `_`, beginning with a letter or digit.
pub fn normalize_name(name: &str) -> String {
    let kept: String = name
        .to_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-' || *c == '_')
        .collect();
    kept.trim_start_matches(['-', '_']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths() {
        assert_eq!(normalize_name("My.App_1"), "myapp_1");
        assert_eq!(normalize_name("_-x"), "x");
        assert_eq!(clean(Path::new("/a/./b/../c/")), Path::new("/a/c"));
        assert_eq!(clean(Path::new("/../a")), Path::new("/a"));
        assert_eq!(clean(Path::new("../a/..")), Path::new(".."));
        assert_eq!(clean(Path::new("a/..")), Path::new("."));
    }
}
