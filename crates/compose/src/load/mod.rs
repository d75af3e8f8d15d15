//! Loading: Compose files become a project.
//!
//! The steps are those of the Compose specification, in Docker Compose's order. Each document of each file is read,
//! interpolated, extended by what it includes and by the services its own extend, merged into those before it by the
//! rules of the specification, checked against the schema and brought into the long forms. Then paths become absolute,
//! names and defaults are filled in, profiles decide which services are active, and references are checked.
//!
//! Nothing is fetched: files are local. Everything is bounded: see [`crate::yaml`], and [`MAX_FILES`].

mod canonical;
pub mod dotenv;
mod environment;
mod extends;
mod files;
mod finish;
mod include;
pub mod interpolate;
mod merge;
mod paths;
mod rules;
mod schema;
mod settle;
mod short;
mod unique;
mod units;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, FileFault, Result};
use crate::project::Project;
use crate::yaml::{At, Fault, MAX_TEXT, Map, Node, Value, documents};

pub use files::{find, normalize_name};
pub use units::{parse_bytes, parse_duration, show_duration};

/// The most files that are read for a project, one that is read twice counting twice.
pub const MAX_FILES: usize = 1000;
/// How deep files may include others and services extend others.
pub const MAX_NESTING: usize = 50;

/// Variables by name.
pub type Environment = BTreeMap<String, String>;

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Files, the first of which decides about the directory; `-` is [`Options::stdin`]. None: they are looked for.
    pub files: Vec<PathBuf>,
    /// Where paths on the command line begin.
    pub current_directory: PathBuf,
    /// The directory of the project, when it is not that of the first file.
    pub project_directory: Option<PathBuf>,
    /// The project's name, when it was said.
    pub name: Option<String>,
    /// Profiles that are active; `*` for all.
    pub profiles: Vec<String>,
    /// Services that are active whatever their profiles are; what shares a profile with them is, too.
    pub services: Vec<String>,
    /// Environment files; none: `.env` of the project's directory, if there is one.
    pub env_files: Vec<PathBuf>,
    /// The caller's environment.
    pub environment: Environment,
    /// What stands for the file `-`.
    pub stdin: Option<String>,
    /// Leave variables as they are written.
    pub no_interpolate: bool,
    /// Do not read the services' environment files.
    pub no_env_resolution: bool,
    /// Do not check references between parts of the project.
    pub no_consistency: bool,
}

/// Loads a project.
///
/// # Errors
/// A file cannot be read, or says something that cannot be.
pub fn load(options: &Options) -> Result<Project> {
    let found = files::resolve(options)?;
    let mut loader = Loader {
        sources: Vec::new(),
        warnings: Vec::new(),
        interpolate: !options.no_interpolate,
        stdin: options.stdin.clone(),
        budget: interpolate::MAX_TOTAL,
    };
    let mut environment = found.environment;
    let name = loader.name(&found.files, &found.directory, &found.name, &environment)?;
    environment.insert("COMPOSE_PROJECT_NAME".to_owned(), name.clone());
    let scope = Scope {
        directory: found.directory.clone(),
        environment,
        including: Vec::new(),
    };
    let mut model = loader.model(&found.files, &scope)?;
    if model.as_map().is_none_or(Map::is_empty) {
        return Err(Error::project("empty compose file"));
    }
    let finished = finish::finish(&mut loader, &mut model, &name, &scope, options, &found.profiles)?;
    Ok(Project {
        name,
        directory: found.directory,
        files: found.files,
        env_files: found.env_files,
        environment: scope.environment,
        warnings: loader.warnings,
        ..finished
    })
}

/// Where files stand and which variables they see.
#[derive(Debug, Clone)]
struct Scope {
    directory: PathBuf,
    environment: Environment,
    /// Files on the way here, for cycles of includes.
    including: Vec<PathBuf>,
}

/// What is known while files are loaded.
struct Loader {
    /// Names of files by their numbers.
    sources: Vec<PathBuf>,
    warnings: Vec<String>,
    interpolate: bool,
    stdin: Option<String>,
    /// How many bytes texts with variables may still become.
    budget: usize,
}

impl Loader {
    /// A fault with the name of its file.
    fn fault(&self, fault: Fault) -> Error {
        let file = self.sources.get(fault.at.file as usize);
        Error::File(Box::new(FileFault {
            file: file.map_or_else(|| "compose file".to_owned(), |file| file.display().to_string()),
            place: (fault.at.line > 0).then_some((fault.at.line, fault.at.column)),
            path: fault.path,
            message: fault.message,
        }))
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) && self.warnings.len() < 1000 {
            self.warnings.push(warning);
        }
    }

    /// The documents of a file.
    fn read(&mut self, path: &Path) -> Result<Vec<Node>> {
        if self.sources.len() >= MAX_FILES {
            return Err(Error::project(format!(
                "the project takes more than {MAX_FILES} files"
            )));
        }
        let number = u32::try_from(self.sources.len()).unwrap_or(u32::MAX);
        self.sources.push(path.to_owned());
        let text = if path == Path::new("-") {
            self.stdin.clone().unwrap_or_default()
        } else {
            files::text(path)?
        };
        if text.len() as u64 > MAX_TEXT {
            return Err(self.fault(Fault::new(At::file(number), "", "the file is too large")));
        }
        documents(&text, number).map_err(|fault| self.fault(fault))
    }

    /// The name of the project: as it was said, of the files, or of the directory.
    fn name(
        &mut self,
        paths: &[PathBuf],
        directory: &Path,
        said: &Option<String>,
        environment: &Environment,
    ) -> Result<String> {
        if let Some(name) = said {
            return if normalize_name(name) == *name && !name.is_empty() {
                Ok(name.clone())
            } else {
                Err(Error::project(invalid_name(name)))
            };
        }
        let mut name = String::new();
        let mut place = At::file(0);
        for path in paths {
            for document in self.read(path)? {
                if let Some(node) = document.get("name")
                    && let Some(text) = node.as_str().filter(|text| !text.is_empty())
                {
                    (name, place) = (text.to_owned(), node.at);
                }
            }
        }
        if self.interpolate && !name.is_empty() {
            let lookup = |name: &str| environment.get(name).cloned();
            name = interpolate::substitute(&name, &lookup, &mut |_| {})
                .map_err(|message| self.fault(Fault::new(place, "name", message)))?;
        }
        if !name.is_empty() {
            // As Docker does: what a file says is put right, what the user says is refused.
            let normal = normalize_name(&name);
            return if normal.is_empty() {
                Err(self.fault(Fault::new(place, "name", invalid_name(&name))))
            } else {
                Ok(normal)
            };
        }
        let base = directory.file_name().unwrap_or_default().to_string_lossy();
        let name = normalize_name(&base);
        if name.is_empty() {
            return Err(Error::project(
                "project name must not be empty: the directory's name has no letter or digit; give one with --project-name, or name: in the file",
            ));
        }
        Ok(name)
    }

    /// Files, merged, with long forms and absolute paths.
    fn model(&mut self, paths: &[PathBuf], scope: &Scope) -> Result<Node> {
        let mut model = Node::map(At::file(0));
        for path in paths {
            for document in self.read(path)? {
                self.document(document, path, scope, &mut model)?;
            }
        }
        settle::defaults(&mut model);
        rules::check(&model).map_err(|fault| self.fault(fault))?;
        paths::resolve(
            &mut model,
            &scope.directory,
            scope.environment.get("HOME").map(String::as_str),
        );
        environment::contents(&mut model, &scope.environment);
        Ok(model)
    }

    /// Merges one document into what there is.
    fn document(&mut self, mut document: Node, path: &Path, scope: &Scope, model: &mut Node) -> Result<()> {
        if !matches!(document.value, Value::Map(_)) {
            if document.is_null() {
                return Ok(());
            }
            let message = format!("top-level object must be a mapping, not {}", document.kind());
            return Err(self.fault(Fault::new(document.at, "", message)));
        }
        self.interpolated(&mut document, &scope.environment)?;
        self.include(&mut document, path, scope)?;
        self.extend(&mut document, path, scope)?;
        let whole = std::mem::replace(model, Node::map(document.at));
        let merged = merge::merge(whole, document).map_err(|fault| self.fault(fault))?;
        *model = self.canonical(merged, true)?;
        Ok(())
    }

    /// Checks a merged model and brings it into the long forms.
    fn canonical(&mut self, mut model: Node, check: bool) -> Result<Node> {
        let tell = |loader: &Self, fault| loader.fault(fault);
        merge::strip(&mut model);
        unique::enforce(&mut model).map_err(|fault| tell(self, fault))?;
        if check {
            schema::check(&model).map_err(|fault| tell(self, fault))?;
            if let Some(map) = model.as_map_mut()
                && let Some(version) = map.shift_remove("version")
            {
                let file = self.sources.get(version.at.file as usize);
                let file = file.map(|file| file.display().to_string()).unwrap_or_default();
                self.warn(format!(
                    "{file}: the attribute `version` is obsolete, it will be ignored, please remove it to avoid potential confusion"
                ));
            }
        }
        canonical::canonical(&mut model, !self.interpolate).map_err(|fault| tell(self, fault))?;
        unique::enforce(&mut model).map_err(|fault| tell(self, fault))?;
        Ok(model)
    }

    /// Puts variables in, but in keys.
    fn interpolated(&mut self, document: &mut Node, environment: &Environment) -> Result<()> {
        if !self.interpolate {
            return Ok(());
        }
        let mut unset = Vec::new();
        let mut budget = self.budget;
        let lookup = |name: &str| environment.get(name).cloned();
        interpolate::tree(
            document,
            &lookup,
            &mut |name| unset.push(name.to_owned()),
            &mut budget,
        )
        .map_err(|fault| self.fault(fault))?;
        self.budget = budget;
        for name in unset {
            self.warn(format!(
                "The {name:?} variable is not set. Defaulting to a blank string."
            ));
        }
        Ok(())
    }
}

fn invalid_name(name: &str) -> String {
    format!(
        "invalid project name {name:?}: must consist only of lowercase alphanumeric characters, hyphens, and underscores as well as start with a letter or number"
    )
}

pub(crate) use finish::no_such_service;

/// Ports as they are written in short.
///
/// # Errors
/// They make no sense.
pub fn port(text: &str) -> std::result::Result<Vec<crate::project::Port>, String> {
    short::ports(text, At::file(0))?
        .iter()
        .map(|node| serde_json::from_value(node.to_json()).map_err(|error| error.to_string()))
        .collect()
}

/// A mount as it is written in short; relative paths begin at a directory.
///
/// # Errors
/// It makes no sense.
pub fn mount(text: &str, directory: &Path) -> std::result::Result<crate::project::Mount, String> {
    let node = short::volume(text, At::file(0))?;
    let mut mount: crate::project::Mount =
        serde_json::from_value(node.to_json()).map_err(|error| error.to_string())?;
    if mount.kind == "bind" && mount.source.starts_with('.') {
        mount.source = files::absolute(directory, Path::new(&mount.source))
            .display()
            .to_string();
    }
    Ok(mount)
}
