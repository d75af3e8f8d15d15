//! Contexts: daemons by name, kept where Docker keeps them.
//!
//! Below `contexts` in `DOCKER_CONFIG` or `~/.docker`, `meta/ID/meta.json` says what a context is and `tls/ID/docker` has its
//! certificates; the ID is the SHA-256 of its name. `currentContext` of `config.json` names the one in use. `default` is what
//! there is without a context, and no file.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use vessel_client::{Host, Tls, TlsFiles};
use vessel_image::Digest;

use crate::credentials::ConfigFile;
use crate::failure::{Failure, Result, words};

/// What is used without a context.
pub const DEFAULT: &str = "default";
/// The largest description that is read.
const MAX_FILE: u64 = 1 << 20;
/// Certificates and key of a context, by Docker's names.
pub const TLS_FILES: [&str; 3] = ["ca.pem", "cert.pem", "key.pem"];

/// A context.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredContext {
    /// Its name.
    pub name: String,
    /// A remark.
    pub description: String,
    /// Where its daemon is.
    pub host: String,
    /// Whether any certificate of the daemon will do.
    pub skip_verify: bool,
    /// Its certificates, when it has any: where they are.
    pub tls: Option<PathBuf>,
    /// Where its description is.
    pub meta: PathBuf,
}

impl StoredContext {
    /// The daemon.
    pub fn host(&self) -> Result<Host> {
        let host = Host::parse(&self.host).map_err(Failure::new)?;
        if self.tls.is_none() && !self.skip_verify {
            return Ok(host);
        }
        let file = |name: &str| {
            let path = self.tls.as_ref()?.join(name);
            path.exists().then_some(path)
        };
        let [authority, certificate, key] = TLS_FILES.map(file);
        let tls = Tls::open(&TlsFiles {
            authority,
            certificate: certificate.zip(key),
            trust_any: self.skip_verify,
        });
        Ok(host.with_tls(tls.map_err(Failure::new)?))
    }

    /// As `context inspect` shows it, which is Docker's shape.
    pub fn to_json(&self) -> Value {
        let files: Vec<&str> = match &self.tls {
            Some(directory) => TLS_FILES
                .into_iter()
                .filter(|name| directory.join(name).exists())
                .collect(),
            None => Vec::new(),
        };
        let tls = match files.is_empty() {
            true => json!({}),
            false => json!({"docker": files}),
        };
        let path = |path: Option<&Path>| path.map_or("<IN MEMORY>".into(), |path| path.display().to_string());
        let mut metadata = Map::new();
        if !self.description.is_empty() {
            metadata.insert("Description".into(), json!(self.description));
        }
        json!({
            "Name": self.name,
            "Metadata": metadata,
            "Endpoints": {"docker": {"Host": self.host, "SkipTLSVerify": self.skip_verify}},
            "TLSMaterial": tls,
            "Storage": {
                "MetadataPath": path(Some(&self.meta).filter(|path| !path.as_os_str().is_empty()).map(PathBuf::as_path)),
                "TLSPath": path(self.tls.as_deref().and_then(Path::parent)),
            },
        })
    }
}

/// All contexts.
#[derive(Debug)]
pub struct Contexts {
    directory: PathBuf,
}

impl Contexts {
    /// The user's.
    pub fn of_user() -> Self {
        Self {
            directory: crate::credentials::directory().join("contexts"),
        }
    }

    fn id(name: &str) -> String {
        Digest::sha256(name.as_bytes()).hex().to_owned()
    }

    fn meta(&self, name: &str) -> PathBuf {
        self.directory.join("meta").join(Self::id(name))
    }

    fn tls(&self, name: &str) -> PathBuf {
        self.directory.join("tls").join(Self::id(name)).join("docker")
    }

    /// One of them.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be read.
    pub fn find(&self, name: &str) -> Result<StoredContext> {
        let meta = self.meta(name);
        self.read(&meta)?.ok_or_else(|| {
            Failure::new(format!(
                "context \"{name}\": context not found: open {}: no such file or directory",
                meta.join("meta.json").display()
            ))
            .with_hint("vessel context ls shows those there are")
        })
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// One that cannot be read.
    pub fn all(&self) -> Result<Vec<StoredContext>> {
        let mut all = Vec::new();
        let meta = self.directory.join("meta");
        let entries = match fs::read_dir(&meta) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(cannot("read", &meta, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| cannot("read", &meta, &error))?;
            all.extend(self.read(&entry.path())?);
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    fn read(&self, directory: &Path) -> Result<Option<StoredContext>> {
        let path = directory.join("meta.json");
        let text = match fs::metadata(&path) {
            Ok(data) if data.len() > MAX_FILE => {
                return Err(Failure::new(format!("{} is larger than 1 MiB", path.display())));
            }
            Ok(_) => fs::read(&path).map_err(|error| cannot("read", &path, &error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot("read", &path, &error)),
        };
        let value: Value = serde_json::from_slice(&text).map_err(|error| {
            Failure::new(format!(
                "{} is no description of a context: {error}",
                path.display()
            ))
        })?;
        let text = |pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let name = text("/Name");
        let tls = self.tls(&name);
        Ok(Some(StoredContext {
            description: text("/Metadata/Description"),
            host: text("/Endpoints/docker/Host"),
            skip_verify: value
                .pointer("/Endpoints/docker/SkipTLSVerify")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            tls: tls.is_dir().then_some(tls),
            meta: directory.to_owned(),
            name,
        }))
    }

    /// Writes one, with the certificates that are given: contents by name.
    ///
    /// # Errors
    /// A name that is taken or none, files that cannot be written.
    pub fn create(&self, context: &StoredContext, tls: &[(&str, Vec<u8>)]) -> Result {
        check_name(&context.name)?;
        let meta = self.meta(&context.name);
        if meta.join("meta.json").exists() {
            return Err(Failure::new(format!(
                "context \"{}\" already exists",
                context.name
            )));
        }
        Host::parse(&context.host).map_err(Failure::new)?;
        if !tls.is_empty() {
            let directory = self.tls(&context.name);
            make_directory(&directory)?;
            for (name, content) in tls {
                write(&directory.join(name), content)?;
            }
        }
        let mut metadata = Map::new();
        if !context.description.is_empty() {
            metadata.insert("Description".into(), json!(context.description));
        }
        let text = json!({
            "Name": context.name,
            "Metadata": metadata,
            "Endpoints": {"docker": {"Host": context.host, "SkipTLSVerify": context.skip_verify}},
        });
        make_directory(&meta)?;
        write(&meta.join("meta.json"), text.to_string().as_bytes())
    }

    /// Removes one.
    ///
    /// # Errors
    /// When there is none of that name, or its files cannot be removed.
    pub fn remove(&self, name: &str) -> Result {
        let found = self.find(name)?;
        let tls = self.directory.join("tls").join(Self::id(name));
        for directory in [found.meta, tls] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(cannot("remove", &directory, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The name of the context in use, and what says so: the option, `DOCKER_CONTEXT`, or `config.json`. `DOCKER_HOST` goes before
/// the file.
///
/// # Errors
/// A `config.json` that cannot be read.
pub fn current(option: Option<&str>) -> Result<String> {
    if let Some(name) = option {
        return Ok(name.to_owned());
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if variable("DOCKER_HOST").is_some() {
        return Ok(DEFAULT.to_owned());
    }
    if let Some(name) = variable("DOCKER_CONTEXT") {
        return Ok(name);
    }
    Ok(ConfigFile::load()?
        .current_context()
        .unwrap_or_else(|| DEFAULT.to_owned()))
}

/// Docker's rule for names.
fn check_name(name: &str) -> Result {
    if name == DEFAULT {
        return Err(Failure::new("\"default\" is a reserved context name"));
    }
    let mut bytes = name.bytes();
    let fits = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name.len() >= 2
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte));
    if fits {
        return Ok(());
    }
    Err(Failure::new(format!(
        "context name \"{name}\" is invalid, names are validated against regexp \"^[a-zA-Z0-9][a-zA-Z0-9_.+-]+$\""
    )))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {what} {}: {}", path.display(), words(error)))
}

fn make_directory(path: &Path) -> Result {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| cannot("create", path, &error))
}

/// Keys are nobody else's.
fn write(path: &Path, content: &[u8]) -> Result {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .map_err(|error| cannot("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_kept_as_docker_keeps_them() {
        let directory = tempfile::tempdir().unwrap();
        let contexts = Contexts {
            directory: directory.path().join("contexts"),
        };
        assert!(contexts.all().unwrap().is_empty());
        let context = StoredContext {
            name: "remote".into(),
            description: "over there".into(),
            host: "tcp://192.0.2.1:2376".into(),
            skip_verify: false,
            tls: None,
            meta: PathBuf::new(),
        };
        contexts.create(&context, &[("ca.pem", b"x".to_vec())]).unwrap();
        // What `printf %s remote | sha256sum` says.
        let id = "b71199ebd070b36beab7317920c2c2f1d777df8d05e5527d8458fda57cb17a7a";
        let meta = contexts.directory.join("meta").join(id).join("meta.json");
        let written: Value = serde_json::from_slice(&fs::read(meta).unwrap()).unwrap();
        assert_eq!(written["Endpoints"]["docker"]["Host"], "tcp://192.0.2.1:2376");
        let found = contexts.find("remote").unwrap();
        assert_eq!(
            (found.description.as_str(), found.host.as_str()),
            ("over there", context.host.as_str())
        );
        assert_eq!(found.to_json()["TLSMaterial"]["docker"][0], "ca.pem");
        assert!(contexts.create(&context, &[]).is_err());
        assert_eq!(contexts.all().unwrap().len(), 1);
        contexts.remove("remote").unwrap();
        assert!(contexts.find("remote").is_err() && contexts.remove("remote").is_err());
        assert!(!contexts.tls("remote").exists());
    }

    #[test]
    fn names_have_dockers_alphabet() {
        for bad in ["", "a", "default", "a b", "../x", "-ab"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name("my-context.1+x").unwrap();
    }
}
