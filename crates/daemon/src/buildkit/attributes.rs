//! The attributes of BuildKit's Dockerfile front end, as a [`BuildRequest`].
//!
//! They are those of BuildKit's `frontend/dockerui`, and the texts of its errors where there are such. An attribute
//! nobody knows is left alone, as there.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use vessel_build::request::{
    BuildRequest, CacheImport, DockerfileSource, Goal, NamedContext, Network, NoCache, Resources, Source,
    Ulimit,
};
use vessel_filesync::content::LOCAL;
use vessel_image::Platform;

/// Attributes of one build at most.
const MAX_ATTRIBUTES: usize = 4096;
/// Bytes of all of them.
const MAX_BYTES: usize = 4 << 20;
/// Front ends that are answered by ours.
const FRONT_ENDS: &[&str] = &["docker/dockerfile", "docker/dockerfile-upstream"];

/// The attribute by which our own client asks for one layer.
const SQUASH: &str = "vessel.squash";

/// What a client says of a build.
pub type Attributes = HashMap<String, String>;

/// Reads the attributes of a build with `frontend`. Outputs, cache exports and entitlements are not among them.
///
/// # Errors
/// A sentence for the client.
pub fn parse(frontend: &str, attributes: &Attributes) -> Result<BuildRequest, String> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(format!(
            "a build may have {MAX_ATTRIBUTES} attributes; this one has {}",
            attributes.len()
        ));
    }
    let bytes: usize = attributes
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > MAX_BYTES {
        return Err(format!(
            "the attributes of a build may have {MAX_BYTES} bytes; these have {bytes}"
        ));
    }
    let get = |name: &str| {
        attributes
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    };
    check_frontend(frontend, get("source"))?;
    check_syntax(get("build-arg:BUILDKIT_SYNTAX"))?;
    let context = match get("context") {
        Some(remote) => Source::Remote(remote.to_owned()),
        None => Source::Session(get("contextkey").unwrap_or("context").to_owned()),
    };
    let part = match context {
        Source::Remote(_) => get("contextsubdir").map(str::to_owned),
        _ => None,
    };
    let dockerfile = match (&context, get("dockerfilekey")) {
        (Source::Remote(_), None) => None,
        (_, key) => Some(Source::Session(key.unwrap_or("dockerfile").to_owned())),
    };
    let mut request = BuildRequest {
        goal: goal(get("requestid"))?,
        dockerfile: DockerfileSource::File {
            source: dockerfile,
            path: get("filename").unwrap_or("Dockerfile").to_owned(),
        },
        context,
        part,
        target: get("target").map(str::to_owned),
        platforms: platforms(get("platform"))?,
        no_cache: no_cache(attributes.get("no-cache")),
        pull: pull(get("image-resolve-mode"))?,
        network: network(get("force-network-mode"))?,
        extra_hosts: extra_hosts(get("add-hosts"))?,
        hostname: get("hostname").map(str::to_owned),
        shm_size: number("shm-size", get("shm-size"))?,
        ulimits: ulimits(get("ulimit"))?,
        cgroup_parent: get("cgroup-parent").map(str::to_owned),
        resources: resources(&get)?,
        cache_from: cache_imports(get("cache-imports"), get("cache-from"))?,
        squash: get(SQUASH).is_some_and(|text| boolean(text) == Some(true)),
        check: get("build-arg:BUILDKIT_DOCKERFILE_CHECK").map(str::to_owned),
        ..BuildRequest::default()
    };
    check_multi_platform(
        get("build-arg:BUILDKIT_MULTI_PLATFORM").or(get("multi-platform")),
        &request,
    )?;
    for (name, value) in attributes {
        if let Some(name) = name.strip_prefix("build-arg:") {
            request.args.insert(name.to_owned(), Some(value.clone()));
        } else if let Some(name) = name.strip_prefix("label:") {
            request.labels.insert(name.to_owned(), value.clone());
        } else if let Some(name) = name.strip_prefix("context:") {
            request
                .contexts
                .insert(name.to_owned(), named_context(name, value)?);
        }
    }
    request.source_date_epoch = epoch(get("build-arg:SOURCE_DATE_EPOCH"))?;
    Ok(request)
}

fn check_frontend(frontend: &str, source: Option<&str>) -> Result<(), String> {
    match frontend {
        "dockerfile.v0" => Ok(()),
        "gateway.v0" => match source {
            Some(source) if is_dockerfile(source) => Ok(()),
            Some(source) => Err(format!(
                "the front end {source:?} cannot be used: Vessel builds Dockerfiles by its own front end and runs no other"
            )),
            None => {
                Err("the front end gateway.v0 needs a source: name an image, or use dockerfile.v0".to_owned())
            }
        },
        "" => Err(
            "LLB definitions cannot be built: Vessel builds Dockerfiles (front end dockerfile.v0)".to_owned(),
        ),
        other => Err(format!(
            "the front end {other:?} is not known: Vessel has dockerfile.v0"
        )),
    }
}

fn check_syntax(syntax: Option<&str>) -> Result<(), String> {
    match syntax {
        Some(image) if !is_dockerfile(image.split_whitespace().next().unwrap_or_default()) => Err(format!(
            "the front end {image:?} of BUILDKIT_SYNTAX cannot be used: Vessel builds Dockerfiles by its own front end and runs no other"
        )),
        _ => Ok(()),
    }
}

/// Whether an image is one of Docker's own Dockerfile front ends, of whatever registry's copy and version.
fn is_dockerfile(image: &str) -> bool {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    };
    FRONT_ENDS.iter().any(|known| {
        name == *known
            || name
                .strip_suffix(known)
                .is_some_and(|registry| registry.ends_with('/'))
    })
}

fn goal(request: Option<&str>) -> Result<Goal, String> {
    Ok(match request {
        None => Goal::Build,
        Some("frontend.lint") => Goal::Check,
        Some("frontend.outline") => Goal::Outline,
        Some("frontend.targets") => Goal::Targets,
        Some(other) => {
            return Err(format!(
                "unsupported request {other}: frontend.lint, frontend.outline and frontend.targets are answered"
            ));
        }
    })
}

fn platforms(text: Option<&str>) -> Result<Vec<Platform>, String> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    text.split(',')
        .map(|text| match text.trim() {
            "local" => Ok(Platform::host()),
            text => Platform::parse(text)
                .map_err(|error| format!("failed to parse target platform {text}: {error}")),
        })
        .collect()
}

fn check_multi_platform(text: Option<&str>, request: &BuildRequest) -> Result<(), String> {
    let Some(text) = text else {
        return Ok(());
    };
    match boolean(text) {
        Some(false) if request.platforms.len() > 1 => {
            Err("conflicting config: returning multiple target platforms is not allowed".to_owned())
        }
        Some(_) => Ok(()),
        None => Err(format!("invalid boolean value for multi-platform: {text}")),
    }
}

fn no_cache(text: Option<&String>) -> NoCache {
    match text.map(String::as_str) {
        None => NoCache::Never,
        Some("") => NoCache::All,
        Some(stages) => NoCache::Stages(stages.split(',').map(|stage| stage.trim().to_owned()).collect()),
    }
}

fn pull(mode: Option<&str>) -> Result<bool, String> {
    match mode {
        None | Some("default" | "local") => Ok(false),
        Some("pull") => Ok(true),
        Some(other) => Err(format!(
            "invalid image-resolve-mode: {other}: default, pull or local is expected"
        )),
    }
}

/// The network of steps.
///
/// # Errors
/// A sentence for the client.
pub fn network(mode: Option<&str>) -> Result<Network, String> {
    match mode {
        None | Some("default" | "sandbox" | "bridge") => Ok(Network::Default),
        Some("none") => Ok(Network::None),
        Some("host") => Ok(Network::Host),
        Some(other) => Err(format!(
            "invalid network mode {other:?}: default, none or host is expected"
        )),
    }
}

fn extra_hosts(text: Option<&str>) -> Result<Vec<(String, IpAddr)>, String> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    text.split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(extra_host)
        .collect()
}

/// A line of `/etc/hosts`: `NAME=ADDRESS` or `NAME:ADDRESS`.
///
/// # Errors
/// A sentence for the client.
pub fn extra_host(pair: &str) -> Result<(String, IpAddr), String> {
    let pair = pair.trim();
    let split = pair.split_once('=').or_else(|| pair.split_once(':'));
    let (name, address) = split
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| format!("invalid host {pair:?}: NAME=ADDRESS is expected"))?;
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    let address = bare
        .parse()
        .map_err(|_| format!("invalid host {pair:?}: {address:?} is not an IP address"))?;
    Ok((name.to_owned(), address))
}

fn number<T: std::str::FromStr>(name: &str, text: Option<&str>) -> Result<Option<T>, String> {
    text.map(|text| {
        text.parse()
            .map_err(|_| format!("failed to parse {name}: {text:?} is not a number it can be"))
    })
    .transpose()
}

fn ulimits(text: Option<&str>) -> Result<Vec<Ulimit>, String> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    text.split(',')
        .filter(|one| !one.trim().is_empty())
        .map(ulimit)
        .collect()
}

fn ulimit(text: &str) -> Result<Ulimit, String> {
    let invalid = || format!("failed to parse ulimit {text:?}: NAME=SOFT[:HARD] is expected");
    let (name, limits) = text.trim().split_once('=').ok_or_else(invalid)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let limit = |text: &str| text.parse::<i64>().map_err(|_| invalid());
    let (soft, hard) = (limit(soft)?, limit(hard)?);
    if name.is_empty() || (hard >= 0 && soft > hard) {
        return Err(invalid());
    }
    Ok(Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

fn resources<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Result<Resources, String> {
    Ok(Resources {
        memory: number("memory", get("memory"))?,
        memory_swap: number("memswap", get("memswap"))?,
        cpu_shares: number("cpushares", get("cpushares"))?,
        cpu_quota: number("cpuquota", get("cpuquota"))?,
        cpu_period: number("cpuperiod", get("cpuperiod"))?,
        cpuset_cpus: get("cpusetcpus").map(str::to_owned),
        cpuset_mems: get("cpusetmems").map(str::to_owned),
    })
}

#[derive(serde::Deserialize)]
struct CacheEntry {
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "Attrs", default)]
    attributes: Option<BTreeMap<String, String>>,
}

fn cache_imports(json: Option<&str>, references: Option<&str>) -> Result<Vec<CacheImport>, String> {
    let mut imports = Vec::new();
    if let Some(json) = json {
        let entries: Vec<CacheEntry> = serde_json::from_str(json)
            .map_err(|error| format!("failed to unmarshal cache-imports: {error}"))?;
        for entry in entries {
            let attributes = entry.attributes.unwrap_or_default();
            imports.extend(cache_import(&entry.kind, |name| {
                attributes.get(name).map(String::as_str)
            })?);
        }
    }
    for reference in references
        .unwrap_or_default()
        .split(',')
        .filter(|text| !text.is_empty())
    {
        let import = CacheImport::Registry(reference.to_owned());
        if !imports.contains(&import) {
            imports.push(import);
        }
    }
    Ok(imports)
}

/// Where results of earlier builds may be found, as BuildKit's clients name it.
///
/// # Errors
/// A sentence for the client.
pub fn cache_import<'a>(
    kind: &str,
    get: impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<CacheImport>, String> {
    match kind {
        "registry" => match get("ref") {
            Some(reference) => Ok(Some(CacheImport::Registry(reference.to_owned()))),
            None => Err("cache import of type registry needs a ref".to_owned()),
        },
        // The cache of this builder is always looked into.
        "inline" => Ok(None),
        "local" => {
            let store = get("src").ok_or("cache import of type local needs a src")?;
            let digest = get("digest").ok_or("cache import of type local needs the digest of a manifest")?;
            let digest = digest
                .parse()
                .map_err(|_| format!("cache import of type local: {digest:?} is not a digest"))?;
            Ok(Some(CacheImport::Local {
                store: format!("{LOCAL}{store}"),
                digest,
            }))
        }
        other => Err(format!(
            "cache import of type {other:?} is not known: registry, inline and local are"
        )),
    }
}

fn named_context(name: &str, value: &str) -> Result<NamedContext, String> {
    if let Some(image) = value.strip_prefix("docker-image://") {
        return Ok(NamedContext::Image(image.to_owned()));
    }
    if let Some(session) = value.strip_prefix("local:") {
        return Ok(NamedContext::Files(Source::Session(session.to_owned())));
    }
    for scheme in ["oci-layout:", "input:", "target:"] {
        if value.starts_with(scheme) {
            return Err(format!(
                "the build context {name:?} cannot be {value:?}: give a directory, an address or docker-image://"
            ));
        }
    }
    Ok(NamedContext::Files(Source::Remote(value.to_owned())))
}

/// Seconds since 1970.
///
/// # Errors
/// A sentence for the client.
pub fn epoch(text: Option<&str>) -> Result<Option<i64>, String> {
    text.map(|text| {
        text.parse()
            .map_err(|_| format!("invalid SOURCE_DATE_EPOCH {text:?}: seconds since 1970 are expected"))
    })
    .transpose()
}

/// What Go takes for a boolean.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attributes(pairs: &[(&str, &str)]) -> Attributes {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<BuildRequest, String> {
        parse("dockerfile.v0", &attributes(pairs))
    }

    #[test]
    fn what_buildx_sends() {
        let request = read(&[
            ("filename", "x.Dockerfile"),
            ("target", "app"),
            ("build-arg:A", "1"),
            ("build-arg:SOURCE_DATE_EPOCH", "7"),
            ("label:l", "v"),
            ("platform", "linux/amd64,linux/arm64"),
            ("no-cache", ""),
            ("image-resolve-mode", "pull"),
            ("force-network-mode", "none"),
            ("add-hosts", "a=10.0.0.1,b=[::1]"),
            ("shm-size", "1048576"),
            ("ulimit", "nofile=10:20,nproc=5"),
            ("context:base", "docker-image://debian"),
            ("context:src", "local:src"),
            ("cache-imports", r#"[{"Type":"registry","Attrs":{"ref":"r/x"}}]"#),
            ("cache-from", "r/x,r/y"),
            ("frontend.caps", "x"),
        ])
        .unwrap();
        assert_eq!(request.target.as_deref(), Some("app"));
        assert_eq!(request.platforms.len(), 2);
        assert_eq!(request.no_cache, NoCache::All);
        assert!(request.pull);
        assert_eq!(request.network, Network::None);
        assert_eq!(request.extra_hosts[1].1, "::1".parse::<IpAddr>().unwrap());
        assert_eq!(request.ulimits[0].hard, 20);
        assert_eq!(request.ulimits[1].hard, 5);
        assert_eq!(request.source_date_epoch, Some(7));
        assert_eq!(request.contexts["base"], NamedContext::Image("debian".into()));
        assert_eq!(
            request.contexts["src"],
            NamedContext::Files(Source::Session("src".into()))
        );
        assert_eq!(request.cache_from.len(), 2);
        let DockerfileSource::File { source, path } = request.dockerfile else {
            panic!("a file is asked for");
        };
        assert_eq!(
            (source, path.as_str()),
            (Some(Source::Session("dockerfile".into())), "x.Dockerfile")
        );
        assert_eq!(request.context, Source::Session("context".into()));
    }

    #[test]
    fn a_remote_context_has_the_dockerfile_unless_the_client_has() {
        let source = |pairs: &[(&str, &str)]| match read(pairs).unwrap().dockerfile {
            DockerfileSource::File { source, .. } => source,
            DockerfileSource::Inline(_) => None,
        };
        assert_eq!(source(&[("context", "https://h/x.git")]), None);
        assert_eq!(
            source(&[("context", "https://h/x.git"), ("dockerfilekey", "dockerfile")]),
            Some(Source::Session("dockerfile".into()))
        );
        let part = |pairs: &[(&str, &str)]| read(pairs).unwrap().part;
        assert_eq!(
            part(&[("context", "https://h/x.tar"), ("contextsubdir", "a/b")]).as_deref(),
            Some("a/b")
        );
        assert_eq!(part(&[("contextsubdir", "a/b")]), None);
    }

    #[test]
    fn other_front_ends_are_refused() {
        for (frontend, source, fine) in [
            ("gateway.v0", "docker/dockerfile:1", true),
            ("gateway.v0", "docker.io/docker/dockerfile:1.7-labs", true),
            ("gateway.v0", "host:5000/docker/dockerfile", true),
            ("gateway.v0", "docker/dockerfile@sha256:00", true),
            ("gateway.v0", "evil/dockerfile", false),
            ("gateway.v0", "xdocker/dockerfile", false),
            ("gateway.v0", "", false),
            ("", "", false),
            ("other.v0", "", false),
        ] {
            let result = parse(frontend, &attributes(&[("source", source)]));
            assert_eq!(result.is_ok(), fine, "{frontend} {source}");
        }
        assert!(read(&[("build-arg:BUILDKIT_SYNTAX", "docker/dockerfile:1")]).is_ok());
        assert!(read(&[("build-arg:BUILDKIT_SYNTAX", "other/frontend")]).is_err());
    }

    #[test]
    fn wrong_values_are_told() {
        for (name, value) in [
            ("platform", "a/b/c/d/e"),
            ("image-resolve-mode", "x"),
            ("force-network-mode", "container:x"),
            ("add-hosts", "a=b"),
            ("add-hosts", "=1.2.3.4"),
            ("shm-size", "-1"),
            ("ulimit", "nofile"),
            ("ulimit", "nofile=5:1"),
            ("memory", "x"),
            ("cache-imports", "{"),
            ("cache-imports", r#"[{"Type":"s3"}]"#),
            ("context:x", "oci-layout://y"),
            ("build-arg:SOURCE_DATE_EPOCH", "x"),
            ("multi-platform", "x"),
            ("requestid", "frontend.other"),
        ] {
            assert!(read(&[(name, value)]).is_err(), "{name}={value}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_values_never_panic(value in "\\PC{0,40}", at in 0usize..17) {
            let names = ["filename", "target", "platform", "no-cache", "image-resolve-mode", "force-network-mode",
                "add-hosts", "hostname", "shm-size", "ulimit", "memory", "cache-imports", "cache-from", "context",
                "context:x", "requestid", "build-arg:SOURCE_DATE_EPOCH"];
            let _ = read(&[(names[at], &value)]);
            let _ = parse("gateway.v0", &attributes(&[("source", &value)]));
        }
    }
}
