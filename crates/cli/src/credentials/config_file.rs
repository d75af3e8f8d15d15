//! `config.json`: read leniently, and written so that what others keep in it stays.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use vessel_image::registry::{Credentials, registry_key};

use super::Helper;
use crate::failure::{Failure, Result, words};

/// The largest file that is read.
const MAX_FILE: u64 = 4 << 20;

/// The file and where it is.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    values: Map<String, Value>,
}

impl ConfigFile {
    /// Reads the user's file; without one it is empty.
    pub fn load() -> Result<Self> {
        Self::load_from(&directory().join("config.json"))
    }

    fn load_from(path: &Path) -> Result<Self> {
        let fail = |why: &str| {
            Failure::new(format!("cannot read {}: {why}", path.display()))
                .with_hint("correct it, or move it away and log in again")
        };
        let text = match fs::metadata(path) {
            Ok(data) if data.len() > MAX_FILE => return Err(fail("it is larger than 4 MiB")),
            Ok(_) => fs::read(path).map_err(|error| fail(&words(&error)))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(fail(&words(&error))),
        };
        let values = parse(&text).ok_or_else(|| fail("it is not a JSON object"))?;
        Ok(Self {
            path: path.to_owned(),
            values,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The context in use, if any is.
    pub fn current_context(&self) -> Option<String> {
        let name = self.values.get("currentContext")?.as_str()?;
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// Changes which it is.
    pub fn set_current_context(&mut self, name: Option<&str>) -> Result {
        match name {
            Some(name) => drop(self.values.insert("currentContext".into(), json!(name))),
            None => drop(self.values.remove("currentContext")),
        }
        self.write()
    }

    /// The helper that keeps a registry's credentials, if one does.
    pub fn helper(&self, registry: &str) -> Result<Option<Helper>> {
        helper_name(&self.values, registry).map(Helper::new).transpose()
    }

    /// What is stored for a registry, by the key that `registry_key` gives.
    pub fn credentials(&self, registry: &str) -> Result<Option<Credentials>> {
        match self.helper(registry)? {
            Some(helper) => helper.get(registry),
            None => Ok(stored(&self.values, registry)),
        }
    }

    /// Stores credentials for a registry. Whether they are in the file, readable for who can read it.
    pub fn store(&mut self, registry: &str, credentials: &Credentials) -> Result<bool> {
        if let Some(helper) = self.helper(registry)? {
            helper.store(registry, credentials)?;
            // As Docker: that there is something, and nothing of it.
            set_auth(&mut self.values, registry, json!({}));
            self.write()?;
            return Ok(false);
        }
        set_auth(&mut self.values, registry, entry(credentials));
        self.write()?;
        Ok(true)
    }

    /// Forgets a registry's credentials. Whether there were any.
    pub fn erase(&mut self, registry: &str) -> Result<bool> {
        let mut known = false;
        if let Some(helper) = self.helper(registry)? {
            known = helper.get(registry)?.is_some();
            if known {
                helper.erase(registry)?;
            }
        }
        if let Some(auths) = self.values.get_mut("auths").and_then(Value::as_object_mut) {
            let before = auths.len();
            auths.retain(|key, _| registry_key(key) != registry);
            if auths.len() != before {
                known = true;
                self.write()?;
            }
        }
        Ok(known)
    }

    /// Replaces the file whole, never by a part.
    fn write(&self) -> Result<()> {
        // A link leads to where the file really is.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let fail = |error: std::io::Error| {
            Failure::new(format!("cannot write {}: {}", path.display(), words(&error)))
        };
        let mut text = Vec::new();
        let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        serde::Serialize::serialize(
            &self.values,
            &mut serde_json::Serializer::with_formatter(&mut text, tabs),
        )
        .map_err(|error| fail(error.into()))?;
        text.push(b'\n');
        let directory = path.parent().unwrap_or_else(|| Path::new("."));
        if !directory.exists() {
            fs::create_dir_all(directory).map_err(fail)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(fail)?;
        }
        let temporary = directory.join(format!(".config.json.{}", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(fail(error));
        }
        Ok(())
    }
}

/// Where Docker's clients keep what is the user's.
pub fn directory() -> PathBuf {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    match variable("DOCKER_CONFIG") {
        Some(directory) => directory,
        None => variable("HOME")
            .unwrap_or_else(|| PathBuf::from("/root"))
            .join(".docker"),
    }
}

/// An object; an empty file is an empty one.
fn parse(text: &[u8]) -> Option<Map<String, Value>> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Some(Map::new());
    }
    match serde_json::from_slice(text).ok()? {
        Value::Object(values) => Some(values),
        _ => None,
    }
}

fn helper_name<'a>(values: &'a Map<String, Value>, registry: &str) -> Option<&'a str> {
    let own = values
        .get("credHelpers")
        .and_then(Value::as_object)
        .and_then(|helpers| helpers.iter().find(|(key, _)| registry_key(key) == registry))
        .and_then(|(_, name)| name.as_str());
    own.or_else(|| values.get("credsStore")?.as_str())
        .filter(|name| !name.is_empty())
}

fn stored(values: &Map<String, Value>, registry: &str) -> Option<Credentials> {
    let auths = values.get("auths")?.as_object()?;
    // The exact key first: several may mean the same registry.
    let entry = auths.get(registry).or_else(|| {
        auths
            .iter()
            .find(|(key, _)| registry_key(key) == registry)
            .map(|(_, entry)| entry)
    })?;
    let mut credentials: Credentials = serde_json::from_value(entry.clone()).ok()?;
    credentials.split_auth();
    registry.clone_into(&mut credentials.serveraddress);
    (!credentials.is_anonymous()).then_some(credentials)
}

fn entry(credentials: &Credentials) -> Value {
    let pair = format!("{}:{}", credentials.username, credentials.password);
    let mut entry = Map::new();
    entry.insert("auth".to_owned(), super::base64(pair.as_bytes()).into());
    if !credentials.identitytoken.is_empty() {
        // The password is not needed any more.
        let name = format!("{}:", credentials.username);
        entry.insert("auth".to_owned(), super::base64(name.as_bytes()).into());
        entry.insert(
            "identitytoken".to_owned(),
            credentials.identitytoken.clone().into(),
        );
    }
    Value::Object(entry)
}

fn set_auth(values: &mut Map<String, Value>, registry: &str, entry: Value) {
    let auths = values.entry("auths").or_insert_with(|| json!({}));
    if !auths.is_object() {
        *auths = json!({});
    }
    if let Some(auths) = auths.as_object_mut() {
        auths.retain(|key, _| registry_key(key) != registry);
        auths.insert(registry.to_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(text: &str) -> Map<String, Value> {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn reads_what_docker_writes() {
        let file = values(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6cHc="},"r:5000":{"auth":"eDo=","identitytoken":"t"},
            "empty.example":{}},"credHelpers":{"gcr.io":"gcloud"},"detachKeys":"ctrl-x"}"#,
        );
        let hub = stored(&file, registry_key("docker.io")).unwrap();
        assert_eq!((hub.username.as_str(), hub.password.as_str()), ("me", "pw"));
        assert_eq!(stored(&file, "r:5000").unwrap().identitytoken, "t");
        assert_eq!(stored(&file, "empty.example"), None);
        assert_eq!(stored(&file, "other"), None);
        assert_eq!(helper_name(&file, "gcr.io"), Some("gcloud"));
        assert_eq!(helper_name(&file, "r:5000"), None);
        assert!(parse(b"[]").is_none() && parse(b"{").is_none());
        assert!(parse(b" \n").unwrap().is_empty());
    }

    #[test]
    fn writes_and_leaves_the_rest_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/config.json");
        let mut file = ConfigFile::load_from(&path).unwrap();
        assert!(file.store("r:5000", &Credentials::password("me", "pw")).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut text: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        text["psFormat"] = "x".into();
        fs::write(&path, text.to_string()).unwrap();
        let mut file = ConfigFile::load_from(&path).unwrap();
        assert_eq!(file.credentials("r:5000").unwrap().unwrap().password, "pw");
        assert!(file.erase("r:5000").unwrap());
        assert!(!file.erase("r:5000").unwrap());
        let text: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(text, json!({"auths": {}, "psFormat": "x"}));
        fs::write(&path, "nonsense").unwrap();
        assert!(ConfigFile::load_from(&path).is_err());
    }

    #[test]
    fn an_identity_token_replaces_the_password() {
        let credentials = Credentials {
            identitytoken: "token".into(),
            ..Credentials::password("me", "secret")
        };
        let entry = entry(&credentials);
        assert_eq!(entry["identitytoken"], "token");
        assert_eq!(entry["auth"], super::super::base64(b"me:"));
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}", registry in "[a-z.:/]{0,20}") {
            if let Some(values) = parse(text.as_bytes()) {
                let _ = stored(&values, &registry);
                let _ = helper_name(&values, &registry);
            }
        }

        #[test]
        fn any_entry_is_read(entry in "\\PC{0,40}") {
            let text = json!({"auths": {"r": {"auth": entry, "identitytoken": null}}}).to_string();
            let _ = stored(&parse(text.as_bytes()).unwrap(), "r");
        }
    }
}
