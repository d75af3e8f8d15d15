//! The options of `vessel build` that have a language of their own.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;

use vessel_client::build::{Build, BuildOutput, STORE_PREFIX, SecretSource, Sink, manifest_of};

use crate::failure::{Failure, Result, words};
use crate::options::csv;

use crate::terminal;

/// `NAME:ADDRESS` and `NAME=ADDRESS` as one attribute.
pub fn hosts(given: &[String]) -> Result<Option<String>> {
    let mut hosts = Vec::new();
    for text in given {
        let (name, address) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .filter(|(name, address)| !name.is_empty() && !address.is_empty())
            .ok_or_else(|| {
                Failure::usage(format!(
                    "bad format for add-host: {text:?}: NAME:ADDRESS is expected"
                ))
            })?;
        hosts.push(format!("{name}={address}"));
    }
    Ok((!hosts.is_empty()).then(|| hosts.join(",")))
}

/// Build arguments; those without a value have the environment's, and are left out when it has none.
pub fn arguments(given: &[String]) -> BTreeMap<String, String> {
    let mut arguments = BTreeMap::new();
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        arguments.insert("SOURCE_DATE_EPOCH".to_owned(), epoch);
    }
    for text in given {
        match text.split_once('=') {
            Some((name, value)) => drop(arguments.insert(name.to_owned(), value.to_owned())),
            None => {
                if let Ok(value) = std::env::var(text) {
                    arguments.insert(text.clone(), value);
                }
            }
        }
    }
    arguments
}

fn fields(what: &str, text: &str) -> Result<Vec<(String, String)>> {
    let fields =
        csv::parse(text).map_err(|error| Failure::usage(format!("invalid {what} {text:?}: {error}")))?;
    fields
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_lowercase(), value.to_owned())),
            None => Err(Failure::usage(format!(
                "invalid {what} {text:?}: NAME=VALUE is expected instead of {field:?}"
            ))),
        })
        .collect()
}

/// `--output`.
pub fn output(text: &str) -> Result<BuildOutput> {
    let mut attributes: BTreeMap<String, String> = if text == "-" {
        [
            ("type".to_owned(), "tar".to_owned()),
            ("dest".to_owned(), "-".to_owned()),
        ]
        .into()
    } else if !text.contains('=') && !text.contains(',') {
        [
            ("type".to_owned(), "local".to_owned()),
            ("dest".to_owned(), text.to_owned()),
        ]
        .into()
    } else {
        fields("output", text)?.into_iter().collect()
    };
    let kind = attributes
        .remove("type")
        .filter(|kind| !kind.is_empty())
        .ok_or_else(|| Failure::usage(format!("invalid output {text:?}: type is required")))?;
    let destination = attributes.remove("dest").filter(|path| !path.is_empty());
    let (kind, sink) = match (kind.as_str(), destination) {
        ("registry", _) => {
            attributes.insert("push".to_owned(), "true".to_owned());
            ("image", Sink::None)
        }
        ("local", Some(path)) if path != "-" => ("local", Sink::Directory(PathBuf::from(path))),
        ("local", _) => return Err(Failure::usage("dest is required for local output")),
        // What docker load would read goes straight to the store.
        ("docker", None) => ("moby", Sink::None),
        (kind @ ("tar" | "oci" | "docker"), path) => (kind, Sink::File(sink(path.as_deref())?)),
        (kind @ ("image" | "moby" | "cacheonly"), _) => (kind, Sink::None),
        (other, _) => {
            return Err(Failure::usage(format!(
                "invalid output type {other:?}: image, registry, local, tar, oci, docker or cacheonly is expected"
            )));
        }
    };
    Ok(BuildOutput {
        kind: kind.to_owned(),
        attributes,
        sink,
    })
}

fn sink(path: Option<&str>) -> Result<File> {
    match path {
        None | Some("-") => {
            if terminal::stdout_is_terminal() {
                return Err(Failure::new("an archive is not written to a terminal")
                    .with_hint("name a file with dest=FILE, or redirect the output"));
            }
            let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
            Ok(File::from(stdout))
        }
        Some(path) => File::create(path)
            .map_err(|error| Failure::new(format!("cannot write {path}: {}", words(&error)))),
    }
}

/// `--annotation`, as attributes of an output.
pub fn annotations(given: &[String]) -> Result<BTreeMap<String, String>> {
    given
        .iter()
        .map(|text| {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failure::usage(format!("invalid annotation {text:?}: NAME=VALUE is expected"))
            })?;
            let (kind, name) = match name.split_once(':') {
                Some((kind, name)) if kind.starts_with("manifest") || kind.starts_with("index") => {
                    (kind, name)
                }
                _ => ("manifest", name),
            };
            Ok((format!("annotation-{kind}.{name}"), value.to_owned()))
        })
        .collect()
}

/// `--secret`.
pub fn secrets(given: &[String]) -> Result<BTreeMap<String, SecretSource>> {
    let mut secrets = BTreeMap::new();
    for text in given {
        let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
        for (name, value) in fields("secret", text)? {
            match name.as_str() {
                "id" => id = Some(value),
                "src" | "source" => file = Some(value),
                "env" => variable = Some(value),
                "type" if matches!(value.as_str(), "file" | "env") => kind = Some(value),
                _ => {
                    return Err(Failure::usage(format!(
                        "unexpected {name:?} in secret {text:?}: id, src, env and type=file|env are known"
                    )));
                }
            }
        }
        let id = id
            .filter(|id| !id.is_empty())
            .or_else(|| file.clone())
            .ok_or_else(|| Failure::usage(format!("secret {text:?} has no id")))?;
        if kind.as_deref() == Some("env") && variable.is_none() {
            variable = file.take();
        }
        if variable.is_none()
            && file.is_none()
            && std::env::var_os(&id).is_some()
            && kind.as_deref() != Some("file")
        {
            variable = Some(id.clone());
        }
        let source = match variable {
            Some(variable) => {
                use std::os::unix::ffi::OsStringExt;
                let value = std::env::var_os(&variable).ok_or_else(|| {
                    Failure::new(format!("secret {id}: the environment has no variable {variable}"))
                })?;
                SecretSource::Value(value.into_vec())
            }
            None => {
                let path = PathBuf::from(file.unwrap_or_else(|| id.clone()));
                std::fs::metadata(&path).map_err(|error| {
                    Failure::new(format!(
                        "secret {id}: cannot read {}: {}",
                        path.display(),
                        words(&error)
                    ))
                })?;
                SecretSource::File(path)
            }
        };
        secrets.insert(id, source);
    }
    Ok(secrets)
}

/// `--ssh`.
pub fn agents(given: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    use std::os::unix::fs::FileTypeExt;
    let mut agents = BTreeMap::new();
    for text in given {
        let (id, path) = match text.split_once('=') {
            Some((id, path)) => (id, PathBuf::from(path)),
            None => {
                let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty());
                let socket = socket.ok_or_else(|| {
                    Failure::new(format!("no SSH agent for {text:?}: SSH_AUTH_SOCK is not set")).with_hint(
                        "start one with: eval $(ssh-agent), or name its socket with --ssh ID=SOCKET",
                    )
                })?;
                (text.as_str(), PathBuf::from(socket))
            }
        };
        let kind = std::fs::metadata(&path)
            .map_err(|error| Failure::new(format!("SSH agent {id}: {}: {}", path.display(), words(&error))))?
            .file_type();
        if !kind.is_socket() {
            return Err(Failure::new(format!(
                "SSH agent {id}: {} is not an agent's socket",
                path.display()
            ))
            .with_hint("load the key into an agent with ssh-add, and pass the agent"));
        }
        agents.insert(id.to_owned(), path);
    }
    Ok(agents)
}

/// `--build-context`.
pub fn contexts(given: &[String], build: &mut Build) -> Result {
    for text in given {
        let (name, value) = text
            .split_once('=')
            .filter(|(name, value)| !name.is_empty() && !value.is_empty())
            .ok_or_else(|| {
                Failure::usage(format!("invalid build context {text:?}: NAME=VALUE is expected"))
            })?;
        let attribute = format!("context:{name}");
        if value.contains("://") || super::build_context::is_remote(value) {
            build.attributes.insert(attribute, value.to_owned());
            continue;
        }
        let path = PathBuf::from(value);
        if !path.is_dir() {
            return Err(Failure::new(format!(
                "the build context {name}={value} is not a directory"
            )));
        }
        build.attributes.insert(attribute, format!("local:{name}"));
        build.directories.insert(name.to_owned(), path);
    }
    Ok(())
}

/// The tag of a manifest in a layout.
fn tag(attributes: &BTreeMap<String, String>) -> String {
    attributes
        .get("tag")
        .cloned()
        .unwrap_or_else(|| "latest".to_owned())
}

/// `--cache-from`. A layout that is not there yet is mentioned and left out, as the first build of all finds none.
pub fn cache_from(given: &[String], build: &mut Build) -> Result {
    for text in given {
        let (kind, mut attributes) = cache("cache-from", text)?;
        if kind == "local" {
            let source = attributes.get("src").filter(|path| !path.is_empty()).cloned();
            let source =
                source.ok_or_else(|| Failure::usage(format!("cache-from {text:?}: src is required")))?;
            let path = PathBuf::from(&source);
            if !attributes.contains_key("digest") {
                match manifest_of(&path, &tag(&attributes)) {
                    Ok(digest) => drop(attributes.insert("digest".to_owned(), digest)),
                    Err(why) => {
                        crate::output::warn(&format!(
                            "vessel: nothing is taken from the cache {source}: {why}"
                        ));
                        continue;
                    }
                }
            }
            build.stores.insert(format!("{STORE_PREFIX}{source}"), path);
        }
        build.cache_from.push((kind, attributes));
    }
    Ok(())
}

/// `--cache-to`. Gives the layout whose index is to be written afterwards, with the tag.
pub fn cache_to(given: &[String], build: &mut Build) -> Result<Option<(PathBuf, String)>> {
    let mut layout = None;
    for text in given {
        let (kind, attributes) = cache("cache-to", text)?;
        if kind == "local" {
            let destination = attributes.get("dest").filter(|path| !path.is_empty());
            let destination =
                destination.ok_or_else(|| Failure::usage(format!("cache-to {text:?}: dest is required")))?;
            let path = PathBuf::from(destination);
            if layout.replace((path.clone(), tag(&attributes))).is_some() {
                return Err(Failure::usage(
                    "a build exports its cache to one directory: give --cache-to type=local once",
                ));
            }
            build.stores.insert(format!("{STORE_PREFIX}{destination}"), path);
        }
        build.cache_to.push((kind, attributes));
    }
    Ok(layout)
}

fn cache(what: &str, text: &str) -> Result<(String, BTreeMap<String, String>)> {
    if !text.contains('=') {
        return Ok((
            "registry".to_owned(),
            [("ref".to_owned(), text.to_owned())].into(),
        ));
    }
    let mut attributes: BTreeMap<String, String> = fields(what, text)?.into_iter().collect();
    let kind = attributes
        .remove("type")
        .ok_or_else(|| Failure::usage(format!("invalid {what} {text:?}: type is required")))?;
    Ok((kind, attributes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn outputs() {
        let kinds = |text: &str| {
            let output = output(text).unwrap();
            let sink = match output.sink {
                Sink::None => "none",
                Sink::File(_) => "file",
                Sink::Directory(_) => "directory",
            };
            (output.kind, sink)
        };
        assert_eq!(kinds("out"), ("local".into(), "directory"));
        assert_eq!(kinds("type=local,dest=x"), ("local".into(), "directory"));
        assert_eq!(kinds("type=registry,name=r/x"), ("image".into(), "none"));
        assert_eq!(kinds("type=docker"), ("moby".into(), "none"));
        assert_eq!(kinds("type=cacheonly"), ("cacheonly".into(), "none"));
        for wrong in ["type=local", "type=x", "dest=x", "type=tar,x"] {
            assert!(output(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_and_arguments() {
        assert_eq!(
            hosts(&["a:1.2.3.4".into(), "b=::1".into()]).unwrap().unwrap(),
            "a=1.2.3.4,b=::1"
        );
        assert!(hosts(&["a".into()]).is_err());
        let arguments = arguments(&["A=1=2".into(), "SURELY_NOT_SET_ANYWHERE".into()]);
        assert_eq!(arguments["A"], "1=2");
        assert!(!arguments.contains_key("SURELY_NOT_SET_ANYWHERE"));
    }

    #[test]
    fn wrong_secrets_and_agents_are_told() {
        assert!(secrets(&["id=x,src=/surely/not/there".into()]).is_err());
        assert!(secrets(&["env=SURELY_NOT_SET_ANYWHERE,id=x".into()]).is_err());
        assert!(secrets(&["foo=x".into()]).is_err());
        assert!(agents(&["default=/dev/null".into()]).is_err());
    }

    #[test]
    fn caches() {
        let mut build = Build::default();
        let local = "type=local,src=dir,digest=sha256:0".to_owned();
        cache_from(&["r/x".into(), local], &mut build).unwrap();
        let layout = cache_to(&["type=local,dest=to,mode=max,tag=t".into()], &mut build).unwrap();
        assert_eq!(build.cache_from[0].1["ref"], "r/x");
        assert_eq!(build.stores["local:dir"], PathBuf::from("dir"));
        assert_eq!(layout, Some((PathBuf::from("to"), "t".to_owned())));
        assert_eq!(build.cache_to[0].1["mode"], "max");
        assert!(cache_to(&["type=local".into()], &mut build).is_err());
        let two = ["a", "b"].map(|to| format!("type=local,dest={to}"));
        assert!(cache_to(&two, &mut build).is_err());
    }

    proptest! {
        #[test]
        fn no_option_panics(text in "\\PC{0,40}") {
            let _ = secrets(std::slice::from_ref(&text));
            let _ = cache("cache-to", &text);
            let _ = hosts(std::slice::from_ref(&text));
            let _ = annotations(std::slice::from_ref(&text));
        }
    }
}
