//! BuildKit's exporters and cache exports, as outputs of a build.

use std::collections::{BTreeMap, HashMap};

use vessel_build::request::{CacheExport, CacheExportOptions, Output};
use vessel_image::{Compression, Format};

use super::attributes::boolean;

/// The attribute by which our own client names a directory of its session.
pub const SESSION: &str = "vessel.session";
/// Outputs of one build at most.
const MAX: usize = 64;

/// The output that an exporter stands for; `index` is its place among those of the request, which is what the client's
/// session knows it by. None: nothing but the cache.
///
/// # Errors
/// A sentence for the client.
pub fn output(index: usize, kind: &str, attributes: &HashMap<String, String>) -> Result<Output, String> {
    if index >= MAX {
        return Err(format!("a build may have {MAX} outputs"));
    }
    let get = |name: &str| attributes.get(name).map(String::as_str);
    let flag = |name: &str| match get(name) {
        None => Ok(None),
        Some(text) => boolean(text)
            .map(Some)
            .ok_or_else(|| format!("non-bool value {text:?} specified for {name}")),
    };
    let names: Vec<String> = get("name")
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    let exporter = index.to_string();
    Ok(match kind {
        "moby" | "image" => {
            if flag("push-by-digest")?.unwrap_or_default() {
                return Err("push-by-digest is not there: push a name".to_owned());
            }
            Output::Image {
                names,
                store: flag("store")?.unwrap_or(true),
                push: flag("push")?.unwrap_or_default(),
                compression: compression(get("compression"))?,
                annotations: annotations(attributes),
            }
        }
        "docker" | "oci" => {
            if flag("tar")? == Some(false) {
                return Err(format!(
                    "{kind} output with tar=false is not there: write an archive and unpack it"
                ));
            }
            let format = if kind == "oci" {
                Format::Oci
            } else {
                Format::Docker
            };
            Output::Archive {
                exporter,
                format,
                names,
            }
        }
        "local" => {
            if get("mode").is_some_and(|mode| mode != "copy") {
                return Err(
                    "local output with mode=delete is not there: empty the directory first".to_owned(),
                );
            }
            Output::Local {
                exporter,
                platform_split: flag("platform-split")?,
            }
        }
        "tar" => Output::Tar {
            exporter,
            platform_split: flag("platform-split")?,
        },
        "cacheonly" => Output::CacheOnly,
        other => {
            return Err(format!(
                "output of type {other:?} is not known: image, docker, oci, local, tar and cacheonly are"
            ));
        }
    })
}

fn annotations(attributes: &HashMap<String, String>) -> BTreeMap<String, String> {
    attributes
        .iter()
        .filter_map(|(name, value)| {
            // `annotation.K` and `annotation-manifest.K`, with or without a platform in brackets.
            let rest = name
                .strip_prefix("annotation-manifest")
                .or_else(|| name.strip_prefix("annotation"))?;
            let (selector, key) = rest.split_once('.')?;
            (selector.is_empty() || selector.starts_with('[')).then(|| (key.to_owned(), value.clone()))
        })
        .collect()
}

fn compression(name: Option<&str>) -> Result<Option<Compression>, String> {
    Ok(Some(match name {
        None | Some("") => return Ok(None),
        Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        Some("uncompressed") => Compression::None,
        Some(other) => {
            return Err(format!(
                "unsupported compression {other:?}: gzip, zstd and uncompressed are there"
            ));
        }
    }))
}

/// Where the cache is to be exported to.
///
/// # Errors
/// A sentence for the client.
pub fn cache(kind: &str, attributes: &HashMap<String, String>) -> Result<CacheExport, String> {
    let get = |name: &str| attributes.get(name).map(String::as_str);
    let truth = |name: &str| {
        get(name)
            .map(|text| boolean(text).ok_or_else(|| format!("non-bool value {text:?} specified for {name}")))
            .transpose()
    };
    let max = match get("mode") {
        None | Some("" | "min") => false,
        Some("max") => true,
        Some(other) => {
            return Err(format!(
                "invalid cache export mode {other:?}: min or max is expected"
            ));
        }
    };
    let options = CacheExportOptions {
        max,
        mounts: truth("mounts")?.unwrap_or_default(),
        compression: compression(get("compression"))?,
        ignore_error: truth("ignore-error")?.unwrap_or_default(),
    };
    match kind {
        "inline" => Ok(CacheExport::Inline),
        "registry" => Ok(CacheExport::Registry {
            reference: get("ref").ok_or("cache export of type registry needs a ref")?.to_owned(),
            options,
        }),
        "local" => Ok(CacheExport::Local {
            session: get(SESSION)
                .ok_or("a local cache cannot be written through this client: use vessel build, or a cache of type registry")?
                .to_owned(),
            options,
        }),
        other => Err(format!(
            "cache export of type {other:?} is not known: inline, registry and local are"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn images() {
        let attributes = map(&[
            ("name", "a,b:1"),
            ("push", "true"),
            ("annotation.k", "v"),
            ("annotation-manifest[linux/amd64].l", "w"),
        ]);
        let Output::Image {
            names,
            store,
            push,
            annotations,
            ..
        } = output(0, "moby", &attributes).unwrap()
        else {
            panic!("an image is asked for");
        };
        assert_eq!(names, ["a", "b:1"]);
        assert!(store && push);
        assert_eq!(annotations.len(), 2);
    }

    #[test]
    fn what_is_not_there_is_told() {
        for (kind, pairs) in [
            ("oci", &[("tar", "false")][..]),
            ("image", &[("push", "x")]),
            ("image", &[("push-by-digest", "true")]),
            ("image", &[("compression", "xz")]),
            ("local", &[("mode", "delete")]),
            ("other", &[]),
        ] {
            assert!(output(0, kind, &map(pairs)).is_err(), "{kind}");
        }
        assert!(output(MAX, "tar", &map(&[])).is_err());
        assert!(cache("registry", &map(&[])).is_err());
        assert!(cache("gha", &map(&[])).is_err());
        assert!(cache("registry", &map(&[("ref", "r"), ("mode", "max")])).is_ok());
    }
}
