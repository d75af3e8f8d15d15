//! BuildKit's exporters and cache exports, as outputs of a build.

use std::collections::{BTreeMap, HashMap};

use vessel_build::request::{CacheExport, CacheExportOptions, ImageStyle, Output};
use vessel_filesync::content::LOCAL;
use vessel_image::registry::PushStyle;
use vessel_image::{Compression, Format};

use super::attributes::boolean;

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
            // Times are never later than SOURCE_DATE_EPOCH, whether this is asked for or not.
            flag("rewrite-timestamp")?;
            Output::Image {
                names,
                store: flag("store")?.unwrap_or(true),
                push: flag("push")?.unwrap_or_default(),
                style: ImageStyle {
                    push: PushStyle {
                        compression: compression(get("compression"))?,
                        level: level(get("compression-level"))?,
                        force: flag("force-compression")?.unwrap_or_default(),
                        oci: flag("oci-mediatypes")?,
                        annotations: annotations("manifest", attributes)?,
                    },
                    index_annotations: annotations("index", attributes)?,
                    by_digest: flag("push-by-digest")?.unwrap_or_default(),
                },
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

/// `annotation.K`, `annotation-manifest.K` and `annotation-index.K`, with or without a platform in brackets.
fn annotations(of: &str, attributes: &HashMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    for (name, value) in attributes {
        let Some((selector, key)) = name
            .strip_prefix("annotation")
            .and_then(|rest| rest.split_once('.'))
        else {
            continue;
        };
        let kind = selector
            .split('[')
            .next()
            .unwrap_or_default()
            .trim_start_matches('-');
        match if kind.is_empty() { "manifest" } else { kind } {
            kind if kind == of => drop(found.insert(key.to_owned(), value.clone())),
            "manifest" | "index" => {}
            _ => {
                return Err(format!(
                    "annotations of the kind {kind:?} are not there: those of manifest and index are"
                ));
            }
        }
    }
    Ok(found)
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

fn level(text: Option<&str>) -> Result<Option<i32>, String> {
    text.map(|text| {
        text.parse()
            .map_err(|_| format!("non-integer value {text:?} specified for compression-level"))
    })
    .transpose()
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
    // One manifest it is in any case: every registry takes that.
    truth("image-manifest")?;
    let options = CacheExportOptions {
        max,
        mounts: truth("cache-mounts")?.unwrap_or_default(),
        compression: compression(get("compression"))?,
        level: level(get("compression-level"))?,
        oci: truth("oci-mediatypes")?,
        ignore_error: truth("ignore-error")?.unwrap_or_default(),
    };
    match kind {
        "inline" => Ok(CacheExport::Inline),
        "registry" => Ok(CacheExport::Registry {
            reference: get("ref")
                .ok_or("cache export of type registry needs a ref")?
                .to_owned(),
            options,
        }),
        "local" => Ok(CacheExport::Local {
            store: format!(
                "{LOCAL}{}",
                get("dest").ok_or("cache export of type local needs a dest")?
            ),
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
    fn cache_mounts_are_exported_when_asked_for_only() {
        let mounts = |asked: &[(&str, &str)]| {
            let all = [&[("ref", "r/x"), ("mode", "max")], asked].concat();
            match cache("registry", &map(&all)).unwrap() {
                CacheExport::Registry { options, .. } => options.mounts,
                other => panic!("{other:?}"),
            }
        };
        assert!(!mounts(&[]) && !mounts(&[("cache-mounts", "false")]));
        assert!(mounts(&[("cache-mounts", "true")]));
    }

    #[test]
    fn images() {
        let attributes = map(&[
            ("name", "a,b:1"),
            ("push", "true"),
            ("annotation.k", "v"),
            ("annotation-manifest[linux/amd64].l", "w"),
            ("annotation-index.i", "x"),
        ]);
        let Output::Image {
            names,
            store,
            push,
            style,
            ..
        } = output(0, "moby", &attributes).unwrap()
        else {
            panic!("an image is asked for");
        };
        assert_eq!(names, ["a", "b:1"]);
        assert!(store && push);
        assert_eq!(style.push.annotations.len(), 2);
        assert_eq!(style.index_annotations["i"], "x");
    }

    #[test]
    fn what_is_not_there_is_told() {
        for (kind, pairs) in [
            ("oci", &[("tar", "false")][..]),
            ("image", &[("push", "x")]),
            ("image", &[("annotation-manifest-descriptor.k", "v")]),
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
