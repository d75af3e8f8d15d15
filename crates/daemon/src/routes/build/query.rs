//! The query parameters of `POST /build`, as a [`BuildRequest`].

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use vessel_build::request::{
    BuildRequest, CacheImport, DockerfileSource, Entitlement, Network, NoCache, Resources, Ulimit,
};
use vessel_image::Platform;

use crate::buildkit::attributes;
use crate::query::Query as Raw;

/// Tags and other lists at most.
const MAX_LIST: usize = 1024;

/// What the classic endpoint is asked for.
#[derive(Debug)]
pub struct Query {
    /// The build, but for its files and outputs.
    pub request: BuildRequest,
    /// Names of the image.
    pub tags: Vec<String>,
    /// Only the image's ID is told.
    pub quiet: bool,
}

#[derive(Debug, Deserialize)]
struct RawUlimit {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Hard")]
    hard: i64,
    #[serde(rename = "Soft")]
    soft: i64,
}

impl Query {
    /// Reads them.
    pub fn parse(raw: &Raw) -> Result<Self, String> {
        let text = |name: &str| Some(raw.text(name)).filter(|text| !text.is_empty());
        let resources = Resources {
            memory: number(raw, "memory")?,
            memory_swap: number(raw, "memswap")?,
            cpu_shares: number(raw, "cpushares")?,
            cpu_quota: number(raw, "cpuquota")?,
            cpu_period: number(raw, "cpuperiod")?,
            cpuset_cpus: text("cpusetcpus").map(str::to_owned),
            cpuset_mems: text("cpusetmems").map(str::to_owned),
        };
        let cache_from: Vec<String> = document(raw, "cachefrom")?.unwrap_or_default();
        let labels: BTreeMap<String, String> = document(raw, "labels")?.unwrap_or_default();
        let args: BTreeMap<String, Option<String>> = document(raw, "buildargs")?.unwrap_or_default();
        let ulimits: Vec<RawUlimit> = document(raw, "ulimits")?.unwrap_or_default();
        let network = match text("networkmode") {
            Some("container:") => {
                return Err("invalid network mode: container: needs a container's name".to_owned());
            }
            mode => attributes::network(mode)
                .unwrap_or_else(|_| Network::Named(mode.unwrap_or_default().to_owned())),
        };
        let on_host = network == Network::Host;
        let mut extra_hosts = Vec::new();
        for host in raw
            .all("extrahosts")
            .filter(|host| !host.is_empty())
            .take(MAX_LIST)
        {
            // One by one, or all as a list in JSON.
            match serde_json::from_str::<Vec<String>>(host) {
                Ok(hosts) => {
                    for host in &hosts {
                        extra_hosts.push(attributes::extra_host(host)?);
                    }
                }
                Err(_) => extra_hosts.push(attributes::extra_host(host)?),
            }
        }
        let mut request = BuildRequest {
            dockerfile: DockerfileSource::File {
                source: None,
                path: text("dockerfile").unwrap_or("Dockerfile").to_owned(),
            },
            target: text("target").map(str::to_owned),
            labels,
            no_cache: if raw.flag("nocache") {
                NoCache::All
            } else {
                NoCache::Never
            },
            pull: raw.flag("pull"),
            network,
            extra_hosts,
            shm_size: number::<u64>(raw, "shmsize")?.filter(|size| *size > 0),
            ulimits: ulimits
                .into_iter()
                .map(|limit| Ulimit {
                    name: limit.name,
                    soft: limit.soft,
                    hard: limit.hard,
                })
                .collect(),
            cgroup_parent: text("cgroupparent").map(str::to_owned),
            resources,
            cache_from: cache_from.into_iter().map(CacheImport::Registry).collect(),
            source_date_epoch: attributes::epoch(
                args.get("SOURCE_DATE_EPOCH")
                    .and_then(Option::as_deref)
                    .filter(|text| !text.is_empty()),
            )?,
            args,
            squash: raw.flag("squash"),
            ..BuildRequest::default()
        };
        if let Some(platform) = text("platform") {
            let platform = Platform::parse(platform)
                .map_err(|error| format!("invalid platform {platform:?}: {error}"))?;
            request.platforms.push(platform);
        }
        if on_host {
            // Who may use this endpoint is root on this host already.
            request.entitlements.insert(Entitlement::NetworkHost);
        }
        Ok(Self {
            request,
            tags: raw
                .all("t")
                .filter(|tag| !tag.is_empty())
                .take(MAX_LIST)
                .map(str::to_owned)
                .collect(),
            quiet: raw.flag("q"),
        })
    }
}

fn number<T: std::str::FromStr + Default + PartialEq>(raw: &Raw, name: &str) -> Result<Option<T>, String> {
    let text = raw.text(name);
    if text.is_empty() {
        return Ok(None);
    }
    let number = text
        .parse::<T>()
        .map_err(|_| format!("invalid value {text:?} for {name}: a number is expected"))?;
    Ok(Some(number).filter(|number| *number != T::default()))
}

fn document<T: DeserializeOwned>(raw: &Raw, name: &str) -> Result<Option<T>, String> {
    let text = raw.text(name);
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map_err(|error| format!("error reading {name}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(raw: &str) -> Result<Query, String> {
        Query::parse(&Raw::parse(Some(raw)).map_err(|error| error.message().to_owned())?)
    }

    #[test]
    fn what_docker_py_and_compose_send() {
        let query = parse(
            "t=a&t=b%3A1&q=1&nocache=True&rm=True&pull=false&dockerfile=x%2FD&buildargs=%7B%22A%22%3A%221%22%2C%22B%22%3Anull%7D\
             &labels=%7B%22l%22%3A%22v%22%7D&cachefrom=%5B%22c%22%5D&memory=1000&memswap=-1&networkmode=host&shmsize=67108864\
             &extrahosts=h%3A1.2.3.4&ulimits=%5B%7B%22Name%22%3A%22nofile%22%2C%22Hard%22%3A2%2C%22Soft%22%3A1%7D%5D&platform=linux%2Famd64",
        )
        .unwrap();
        assert_eq!(query.tags, ["a", "b:1"]);
        assert!(query.quiet && query.request.no_cache == NoCache::All && !query.request.pull);
        assert_eq!(query.request.args["A"].as_deref(), Some("1"));
        assert_eq!(query.request.args["B"], None);
        assert_eq!(query.request.labels["l"], "v");
        assert_eq!(query.request.resources.memory_swap, Some(-1));
        assert_eq!(query.request.network, Network::Host);
        assert!(query.request.entitlements.contains(&Entitlement::NetworkHost));
        assert_eq!(query.request.extra_hosts.len(), 1);
        assert_eq!(query.request.ulimits[0].hard, 2);
        assert_eq!(query.request.platforms.len(), 1);
    }

    #[test]
    fn zero_and_null_are_nothing() {
        let query =
            parse("memory=0&cpushares=0&buildargs=null&labels=&ulimits=null&shmsize=0&networkmode=default")
                .unwrap();
        assert_eq!(query.request.resources, Resources::default());
        assert_eq!(query.request.shm_size, None);
    }

    #[test]
    fn networks_are_named() {
        for mode in ["other", "container:x"] {
            let query = parse(&format!("networkmode={mode}")).unwrap();
            assert_eq!(query.request.network, Network::Named(mode.to_owned()));
        }
    }

    #[test]
    fn wrong_values_are_told() {
        for raw in [
            "memory=x",
            "buildargs=%7B",
            "labels=1",
            "networkmode=container%3A",
            "platform=a%2Fb%2Fc%2Fd",
            "extrahosts=x",
        ] {
            assert!(parse(raw).is_err(), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(name in prop::sample::select(vec!["t", "memory", "buildargs", "labels", "cachefrom", "ulimits",
            "networkmode", "extrahosts", "platform", "shmsize", "dockerfile"]), value in "\\PC{0,40}") {
            let encoded: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let _ = parse(&format!("{name}={encoded}"));
        }
    }
}
