//! What older versions of the API look like: one table of what came, what went and what was different.
//!
//! Structures are those of the newest version. An answer to a client that speaks an older one, and a request of such a
//! client, pass through the entries of their route whose bounds the version is within. The reference is Docker's version
//! history, and where dockerd does not do what that says, dockerd. What other versions *do* differently stands in the
//! routes; what they would call a field stands here.
//!
//! A place is a path of names; `*` is every element of a list or every value of an object.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::version::ApiVersion;

/// One difference.
pub struct Difference {
    /// Method and path of the route.
    route: &'static str,
    /// The first version that it is about.
    from: u32,
    /// The first version that it is not about any more.
    below: u32,
    at: &'static str,
    what: What,
}

enum What {
    /// It is not there.
    Absent,
    /// It is there, made of the object it stands in.
    Present(fn(&Map<String, Value>) -> Value),
    /// The value is another.
    Other(fn(&mut Value)),
    /// It is refused, by this sentence.
    Refused(fn(&Value) -> Option<String>),
}

const ALWAYS: u32 = u32::MAX;

/// A field that came with a version.
const fn since(version: u32, route: &'static str, at: &'static str) -> Difference {
    Difference {
        route,
        from: 0,
        below: version,
        at,
        what: What::Absent,
    }
}

/// A field that went with a version.
const fn gone(version: u32, route: &'static str, at: &'static str) -> Difference {
    Difference {
        route,
        from: version,
        below: ALWAYS,
        at,
        what: What::Absent,
    }
}

/// A field that was there before a version and is in no structure any more.
const fn before(
    version: u32,
    route: &'static str,
    at: &'static str,
    make: fn(&Map<String, Value>) -> Value,
) -> Difference {
    Difference {
        route,
        from: 0,
        below: version,
        at,
        what: What::Present(make),
    }
}

/// A value that was another before a version.
const fn other(version: u32, route: &'static str, at: &'static str, change: fn(&mut Value)) -> Difference {
    Difference {
        route,
        from: 0,
        below: version,
        at,
        what: What::Other(change),
    }
}

/// A value that is another from a version on.
const fn later(version: u32, route: &'static str, at: &'static str, change: fn(&mut Value)) -> Difference {
    Difference {
        route,
        from: version,
        below: ALWAYS,
        at,
        what: What::Other(change),
    }
}

/// Something of a request that a version must not ask for.
const fn refused(
    version: u32,
    route: &'static str,
    at: &'static str,
    why: fn(&Value) -> Option<String>,
) -> Difference {
    Difference {
        route,
        from: 0,
        below: version,
        at,
        what: What::Refused(why),
    }
}

const CONTAINERS: &str = "GET /containers/json";
const CONTAINER: &str = "GET /containers/{id:.*}/json";
const CREATE: &str = "POST /containers/create";
const UPDATE: &str = "POST /containers/{id:.*}/update";
const IMAGES: &str = "GET /images/json";
const IMAGE: &str = "GET /images/{name:.*}/json";
const INFO: &str = "GET /info";
const DISK: &str = "GET /system/df";
const VERSION: &str = "GET /version";
const NETWORKS: &str = "GET /networks";
const NETWORK: &str = "GET /networks/{id:.*}";
const EXEC: &str = "POST /containers/{id:.*}/exec";

/// What of answers differs.
pub const ANSWERS: &[Difference] = &[
    since(46, CONTAINERS, "*/HostConfig/Annotations"),
    since(48, CONTAINERS, "*/NetworkSettings/Networks/*/GwPriority"),
    since(43, CONTAINER, "HostConfig/Annotations"),
    since(44, CONTAINER, "NetworkSettings/Networks/*/DNSNames"),
    since(48, CONTAINER, "NetworkSettings/Networks/*/GwPriority"),
    since(44, CONTAINER, "Config/Healthcheck/StartInterval"),
    other(45, CONTAINER, "", with_short_id),
    before(42, CONTAINER, "HostConfig/KernelMemory", |_| json!(0)),
    before(42, CONTAINER, "HostConfig/KernelMemoryTCP", |_| json!(0)),
    before(44, IMAGES, "*/VirtualSize", size_of),
    other(51, IMAGES, "*/Containers", |count| *count = json!(-1)),
    other(43, IMAGES, "*", with_none),
    before(44, IMAGE, "VirtualSize", size_of),
    gone(45, IMAGE, "Container"),
    gone(50, IMAGE, "Config/Hostname"),
    gone(50, IMAGE, "Config/Domainname"),
    gone(50, IMAGE, "Config/AttachStdin"),
    gone(50, IMAGE, "Config/AttachStdout"),
    gone(50, IMAGE, "Config/AttachStderr"),
    gone(50, IMAGE, "Config/Tty"),
    gone(50, IMAGE, "Config/OpenStdin"),
    gone(50, IMAGE, "Config/StdinOnce"),
    gone(50, IMAGE, "Config/Image"),
    gone(50, IMAGE, "Config/NetworkDisabled"),
    gone(50, IMAGE, "Config/MacAddress"),
    gone(50, IMAGE, "Config/StopTimeout"),
    later(52, IMAGE, "", |image| {
        without_empty(image, &["Parent", "Comment", "DockerVersion", "Author"]);
    }),
    later(52, IMAGE, "Config", |config| {
        without_empty(
            config,
            &[
                "Cmd",
                "Entrypoint",
                "Env",
                "Labels",
                "OnBuild",
                "User",
                "Volumes",
                "WorkingDir",
            ],
        );
    }),
    later(52, CONTAINER, "Config", |config| {
        without_empty(config, &["OnBuild"])
    }),
    since(53, IMAGE, "Identity"),
    before(44, DISK, "Images/*/VirtualSize", size_of),
    since(42, DISK, "BuildCache/*/Parents"),
    before(42, DISK, "BuilderSize", |usage| {
        let records = usage.get("BuildCache").and_then(Value::as_array);
        let sizes = records
            .into_iter()
            .flatten()
            .filter_map(|record| record["Size"].as_i64());
        json!(sizes.fold(0_i64, i64::saturating_add))
    }),
    since(35, VERSION, "Platform"),
    since(35, VERSION, "Components"),
    since(44, INFO, "Runtimes/*/status"),
    since(44, INFO, "CDISpecDirs"),
    since(50, INFO, "DiscoveredDevices"),
    since(41, INFO, "CgroupVersion"),
    since(41, INFO, "DefaultAddressPools"),
    since(39, INFO, "Warnings"),
    before(42, INFO, "KernelMemory", |_| json!(false)),
    before(42, INFO, "KernelMemoryTCP", |_| json!(false)),
    gone(49, INFO, "RegistryConfig/AllowNondistributableArtifactsCIDRs"),
    gone(49, INFO, "RegistryConfig/AllowNondistributableArtifactsHostnames"),
    gone(49, INFO, "ContainerdCommit/Expected"),
    gone(49, INFO, "RuncCommit/Expected"),
    gone(49, INFO, "InitCommit/Expected"),
    gone(50, INFO, "BridgeNfIptables"),
    gone(50, INFO, "BridgeNfIp6tables"),
    since(48, NETWORKS, "*/EnableIPv4"),
    since(48, NETWORK, "EnableIPv4"),
];

/// What of requests differs: what a version does not know is not asked for by its clients, whatever they send.
pub const REQUESTS: &[Difference] = &[
    other(ALWAYS, CREATE, "", with_flat_limits),
    since(40, CREATE, "HostConfig/Mounts/*/BindOptions/NonRecursive"),
    since(42, CREATE, "HostConfig/Mounts/*/BindOptions/CreateMountpoint"),
    since(42, CREATE, "HostConfig/ConsoleSize"),
    since(43, CREATE, "HostConfig/Annotations"),
    since(44, CREATE, "Healthcheck/StartInterval"),
    since(48, CREATE, "NetworkingConfig/EndpointsConfig/*/GwPriority"),
    gone(42, CREATE, "HostConfig/KernelMemory"),
    // Containers of old clients shared their memory unless told otherwise.
    other(40, CREATE, "HostConfig", |host| {
        if host["IpcMode"].as_str().unwrap_or_default().is_empty() && host.is_object() {
            host["IpcMode"] = json!("shareable");
        }
    }),
    refused(44, CREATE, "NetworkingConfig/EndpointsConfig", |ends| {
        let names: Vec<&str> = ends.as_object()?.keys().map(String::as_str).collect();
        (names.len() > 1).then(|| {
            format!(
                "Container cannot be created with multiple network endpoints: {}",
                names.join(", ")
            )
        })
    }),
    refused(
        44,
        CREATE,
        "HostConfig/Mounts/*/BindOptions/ReadOnlyForceRecursive",
        |asked| {
            let needs = "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer";
            (*asked == json!(true)).then(|| needs.to_owned())
        },
    ),
    refused(45, CREATE, "HostConfig/Mounts/*/VolumeOptions/Subpath", |path| {
        let needs = "VolumeOptions.Subpath needs API v1.45 or newer";
        path.as_str()
            .filter(|path| !path.is_empty())
            .map(|_| needs.to_owned())
    }),
    refused(48, CREATE, "HostConfig/Mounts/*/Type", |kind| {
        (kind == "image").then(|| "Mount type \"Image\" needs API v1.48 or newer".to_owned())
    }),
    since(40, UPDATE, "PidsLimit"),
    gone(42, UPDATE, "KernelMemory"),
    since(55, UPDATE, "BlkioWeightDevice"),
    since(55, UPDATE, "BlkioDeviceReadBps"),
    since(55, UPDATE, "BlkioDeviceWriteBps"),
    since(55, UPDATE, "BlkioDeviceReadIOps"),
    since(55, UPDATE, "BlkioDeviceWriteIOps"),
    since(42, EXEC, "ConsoleSize"),
];

/// Some settings of the host stood beside those of the container once, and clients still send them so.
fn with_flat_limits(request: &mut Value) {
    let Some(request) = request.as_object_mut() else {
        return;
    };
    for (from, to) in [
        ("Memory", "Memory"),
        ("MemorySwap", "MemorySwap"),
        ("CpuShares", "CpuShares"),
        ("Cpuset", "CpusetCpus"),
        ("CpusetCpus", "CpusetCpus"),
        ("VolumeDriver", "VolumeDriver"),
        ("Runtime", "Runtime"),
    ] {
        let zero = |value: &Value| *value == Value::Null || *value == json!(0) || *value == json!("");
        let Some(value) = request.shift_remove(from).filter(|value| !zero(value)) else {
            continue;
        };
        let host = request.entry("HostConfig").or_insert_with(|| json!({}));
        if host.is_null() {
            *host = json!({});
        }
        if let Some(host) = host.as_object_mut()
            && host.get(to).is_none_or(zero)
        {
            host.insert(to.to_owned(), value);
        }
    }
}

/// Images have one size since layers are shared.
fn size_of(image: &Map<String, Value>) -> Value {
    image.get("Size").cloned().unwrap_or_default()
}

/// Fields that say nothing are not there.
fn without_empty(value: &mut Value, names: &[&str]) {
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    fields.retain(|name, value| {
        let empty = match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        !(empty && names.contains(&name.as_str()))
    });
}

/// Images without a name had one.
fn with_none(image: &mut Value) {
    for (key, none) in [("RepoTags", "<none>:<none>"), ("RepoDigests", "<none>@<none>")] {
        if image[key].as_array().is_none_or(Vec::is_empty) {
            image[key] = json!([none]);
        }
    }
}

/// A container was called by its short ID on networks that users made, and that showed.
fn with_short_id(container: &mut Value) {
    let short = container["Id"].as_str().and_then(|id| id.get(..12));
    let Some(short) = short.map(str::to_owned) else {
        return;
    };
    let networks = container
        .get_mut("NetworkSettings")
        .and_then(|settings| settings.get_mut("Networks"))
        .and_then(Value::as_object_mut);
    for (name, end) in networks.into_iter().flatten() {
        if matches!(name.as_str(), "bridge" | "host" | "none" | "default") {
            continue;
        }
        let mut aliases = end["Aliases"].as_array().cloned().unwrap_or_default();
        if !aliases.iter().any(|alias| *alias == short.as_str()) {
            aliases.push(json!(short));
        }
        end["Aliases"] = Value::Array(aliases);
    }
}

/// Whether anything of this route differs for this version.
fn differing(
    table: &'static [Difference],
    route: &str,
    version: ApiVersion,
) -> impl Iterator<Item = &'static Difference> {
    table
        .iter()
        .filter(move |difference| {
            difference.from <= version.minor && version.minor < difference.below && version.major == 1
        })
        .filter(move |difference| difference.route == route)
}

/// Whether answers of this route are others for this version.
pub fn answer_differs(route: &str, version: ApiVersion) -> bool {
    differing(ANSWERS, route, version).next().is_some()
}

/// Whether an answer is the same for a version, as far as a glance at its text tells: then it need not be parsed. Most lists
/// of containers have none of the few fields that came later.
pub fn answer_stays(route: &str, version: ApiVersion, text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    differing(ANSWERS, route, version).all(|difference| {
        let name = difference.at.rsplit('/').next().unwrap_or_default();
        matches!(difference.what, What::Absent) && !text.contains(&format!("\"{name}\":"))
    })
}

/// Makes an answer that of a version.
pub fn answer(route: &str, version: ApiVersion, value: &mut Value) {
    for difference in differing(ANSWERS, route, version) {
        // Nothing of an answer is refused.
        let _ = apply(value, difference.at, &difference.what);
    }
}

/// Makes a request one of the newest version.
pub fn request(route: &str, version: ApiVersion, value: &mut Value) -> Result<(), ApiError> {
    for difference in differing(REQUESTS, route, version) {
        apply(value, difference.at, &difference.what).map_err(ApiError::bad_request)?;
    }
    Ok(())
}

fn apply(value: &mut Value, at: &str, what: &What) -> Result<(), String> {
    if at.is_empty() {
        return here(value, what);
    }
    let (name, rest) = at.split_once('/').unwrap_or((at, ""));
    if name == "*" {
        let mut all: Vec<&mut Value> = match value {
            Value::Array(list) => list.iter_mut().collect(),
            Value::Object(map) => map.values_mut().collect(),
            _ => Vec::new(),
        };
        return all.iter_mut().try_for_each(|item| apply(item, rest, what));
    }
    let Some(map) = value.as_object_mut() else {
        return Ok(());
    };
    if !rest.is_empty() {
        return map.get_mut(name).map_or(Ok(()), |inner| apply(inner, rest, what));
    }
    match what {
        What::Absent => {
            map.shift_remove(name);
            Ok(())
        }
        What::Present(make) => {
            let made = make(map);
            map.entry(name).or_insert(made);
            Ok(())
        }
        What::Other(_) | What::Refused(_) => map.get_mut(name).map_or(Ok(()), |inner| here(inner, what)),
    }
}

fn here(value: &mut Value, what: &What) -> Result<(), String> {
    match what {
        What::Absent | What::Present(_) => Ok(()),
        What::Other(change) => {
            change(value);
            Ok(())
        }
        What::Refused(why) => why(value).map_or(Ok(()), Err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(route: &str, minor: u32, mut value: Value) -> Value {
        answer(route, ApiVersion::new(minor), &mut value);
        value
    }

    /// Endpoint, place, the versions in which it is there: first, and first in which it is not.
    #[test]
    fn fields_are_there_in_their_versions() {
        let container = json!({
            "Id": "0123456789abcdef", "HostConfig": {"Annotations": {"a": "b"}}, "Config": {"Healthcheck": {"StartInterval": 1}, "OnBuild": null},
            "NetworkSettings": {"Networks": {"bridge": {"Aliases": null}, "n": {"Aliases": ["x"], "DNSNames": ["n"], "GwPriority": 3}}},
        });
        let image = json!({
            "Size": 7, "Container": "c", "ContainerConfig": {}, "Parent": "", "Comment": "c", "Identity": {"Pull": []},
            "Config": {"Hostname": "", "Tty": false, "Cmd": null, "User": "u", "Volumes": {}},
        });
        let info = json!({
            "Runtimes": {"r": {"status": {}}}, "CDISpecDirs": [], "DiscoveredDevices": [], "RegistryConfig": {"AllowNondistributableArtifactsCIDRs": []},
            "RuncCommit": {"ID": "", "Expected": ""}, "BridgeNfIptables": true, "CgroupVersion": "1",
        });
        let list = json!([{"HostConfig": {"Annotations": {}}, "NetworkSettings": {"Networks": {"n": {"GwPriority": 1}}}}]);
        let usage = json!({"Images": [{"Size": 3}], "BuildCache": [{"Size": 2, "Parents": []}, {"Size": 3}]});
        let version = json!({"Platform": {}, "Components": []});
        let networks = json!([{"EnableIPv4": true}]);
        let images = json!([{"Size": 3, "RepoTags": [], "RepoDigests": [], "Containers": 2}]);
        for (route, value, pointer, first, end) in [
            (CONTAINER, &container, "/HostConfig/Annotations", 43, ALWAYS),
            (
                CONTAINER,
                &container,
                "/NetworkSettings/Networks/n/DNSNames",
                44,
                ALWAYS,
            ),
            (
                CONTAINER,
                &container,
                "/NetworkSettings/Networks/n/GwPriority",
                48,
                ALWAYS,
            ),
            (
                CONTAINER,
                &container,
                "/NetworkSettings/Networks/n/Aliases/1",
                24,
                45,
            ),
            (
                CONTAINER,
                &container,
                "/NetworkSettings/Networks/bridge/Aliases/0",
                99,
                99,
            ),
            (CONTAINER, &container, "/HostConfig/KernelMemory", 24, 42),
            (
                CONTAINER,
                &container,
                "/Config/Healthcheck/StartInterval",
                44,
                ALWAYS,
            ),
            (CONTAINERS, &list, "/0/HostConfig/Annotations", 46, ALWAYS),
            (
                CONTAINERS,
                &list,
                "/0/NetworkSettings/Networks/n/GwPriority",
                48,
                ALWAYS,
            ),
            (IMAGE, &image, "/Identity", 53, ALWAYS),
            (IMAGE, &image, "/VirtualSize", 24, 44),
            (IMAGE, &image, "/Container", 24, 45),
            // Gone in 1.45 of Docker: docker-compose 1 asks for the newest version, and for this to make a container anew.
            (IMAGE, &image, "/ContainerConfig", 24, ALWAYS),
            (IMAGE, &image, "/Config/Hostname", 24, 50),
            (IMAGE, &image, "/Config/Tty", 24, 50),
            (IMAGE, &image, "/Config/Cmd", 24, 52),
            (IMAGE, &image, "/Config/User", 24, ALWAYS),
            (IMAGE, &image, "/Config/Volumes", 24, 52),
            (IMAGE, &image, "/Parent", 24, 52),
            (IMAGE, &image, "/Comment", 24, ALWAYS),
            (CONTAINER, &container, "/Config/OnBuild", 24, 52),
            (IMAGES, &images, "/0/VirtualSize", 24, 44),
            (IMAGES, &images, "/0/RepoTags/0", 24, 43),
            (IMAGES, &images, "/0/RepoDigests/0", 24, 43),
            (DISK, &usage, "/Images/0/VirtualSize", 24, 44),
            (DISK, &usage, "/BuilderSize", 24, 42),
            (DISK, &usage, "/BuildCache/0/Parents", 42, ALWAYS),
            (INFO, &info, "/Runtimes/r/status", 44, ALWAYS),
            (INFO, &info, "/CDISpecDirs", 44, ALWAYS),
            (INFO, &info, "/DiscoveredDevices", 50, ALWAYS),
            (INFO, &info, "/CgroupVersion", 41, ALWAYS),
            (INFO, &info, "/KernelMemory", 24, 42),
            (
                INFO,
                &info,
                "/RegistryConfig/AllowNondistributableArtifactsCIDRs",
                24,
                49,
            ),
            (INFO, &info, "/RuncCommit/Expected", 24, 49),
            (INFO, &info, "/RuncCommit/ID", 24, ALWAYS),
            (INFO, &info, "/BridgeNfIptables", 24, 50),
            (VERSION, &version, "/Components", 35, ALWAYS),
            (NETWORKS, &networks, "/0/EnableIPv4", 48, ALWAYS),
        ] {
            for minor in ApiVersion::OLDEST.minor..=ApiVersion::NEWEST.minor {
                let there = shaped(route, minor, value.clone()).pointer(pointer).is_some();
                assert_eq!(
                    there,
                    (first..end).contains(&minor),
                    "{route} {pointer} in 1.{minor}"
                );
            }
        }
        assert_eq!(shaped(IMAGES, 50, images.clone())[0]["Containers"], -1);
        assert_eq!(shaped(IMAGES, 51, images)[0]["Containers"], 2);
        assert_eq!(shaped(DISK, 41, usage)["BuilderSize"], 5);
    }

    #[test]
    fn requests_of_old_clients_ask_for_what_they_know() {
        let body = json!({
            "Healthcheck": {"StartInterval": 1},
            "HostConfig": {"Annotations": {"a": "b"}, "ConsoleSize": [1, 2], "Mounts": [{"BindOptions": {"NonRecursive": true}}]},
        });
        let asked = |minor: u32| {
            let mut body = body.clone();
            request(CREATE, ApiVersion::new(minor), &mut body).map(|()| body)
        };
        for (pointer, first) in [
            ("/Healthcheck/StartInterval", 44),
            ("/HostConfig/Annotations", 43),
            ("/HostConfig/ConsoleSize", 42),
            ("/HostConfig/Mounts/0/BindOptions/NonRecursive", 40),
        ] {
            for minor in ApiVersion::OLDEST.minor..=ApiVersion::NEWEST.minor {
                let there = asked(minor).unwrap().pointer(pointer).is_some();
                assert_eq!(there, minor >= first, "{pointer} in 1.{minor}");
            }
        }
        for name in [
            "BlkioWeightDevice",
            "BlkioDeviceReadBps",
            "BlkioDeviceWriteBps",
            "BlkioDeviceReadIOps",
            "BlkioDeviceWriteIOps",
        ] {
            for minor in ApiVersion::OLDEST.minor..=ApiVersion::NEWEST.minor {
                let mut body = json!({name: []});
                request(UPDATE, ApiVersion::new(minor), &mut body).unwrap();
                assert_eq!(body.get(name).is_some(), minor >= 55, "{name} in 1.{minor}");
            }
        }
        assert_eq!(asked(39).unwrap()["HostConfig"]["IpcMode"], "shareable");
        assert!(asked(40).unwrap()["HostConfig"].get("IpcMode").is_none());
    }

    #[test]
    fn settings_beside_the_containers_are_the_hosts() {
        let mut body = json!({"Image": "i", "Memory": 7, "Cpuset": "0", "VolumeDriver": "", "HostConfig": {"Memory": 0}});
        request(CREATE, ApiVersion::NEWEST, &mut body).unwrap();
        assert_eq!(
            body,
            json!({"Image": "i", "HostConfig": {"Memory": 7, "CpusetCpus": "0"}})
        );
        let mut body = json!({"Memory": 7, "Runtime": "runc", "HostConfig": {"Memory": 8}});
        request(CREATE, ApiVersion::new(24), &mut body).unwrap();
        assert_eq!(body["HostConfig"]["Memory"], 8);
        assert_eq!(body["HostConfig"]["Runtime"], "runc");
    }

    #[test]
    fn what_a_version_does_not_know_is_refused_where_dockerd_refuses_it() {
        for (body, first, part) in [
            (
                json!({"NetworkingConfig": {"EndpointsConfig": {"a": {}, "b": {}}}}),
                44,
                "multiple network endpoints: a, b",
            ),
            (
                json!({"HostConfig": {"Mounts": [{"VolumeOptions": {"Subpath": "x"}}]}}),
                45,
                "VolumeOptions.Subpath needs API v1.45",
            ),
            (
                json!({"HostConfig": {"Mounts": [{"Type": "image"}]}}),
                48,
                "API v1.48",
            ),
        ] {
            for minor in ApiVersion::OLDEST.minor..=ApiVersion::NEWEST.minor {
                let answer = request(CREATE, ApiVersion::new(minor), &mut body.clone());
                match answer {
                    Ok(()) => assert!(minor >= first, "{body} in 1.{minor}"),
                    Err(error) => {
                        assert!(
                            minor < first && error.message().contains(part),
                            "{}",
                            error.message()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_stays_needs_no_parsing() {
        let version = ApiVersion::new(40);
        for (list, stays) in [
            (json!([]), true),
            (json!([{"Id": "a", "HostConfig": {"NetworkMode": "x"}}]), true),
            (
                json!([{"Id": "a", "HostConfig": {"Annotations": {"a": "b"}}}]),
                false,
            ),
            (
                json!([{"NetworkSettings": {"Networks": {"n": {"GwPriority": 1}}}}]),
                false,
            ),
        ] {
            let text = serde_json::to_vec(&list).unwrap();
            assert_eq!(answer_stays(CONTAINERS, version, &text), stays, "{list}");
            let mut shaped = list.clone();
            answer(CONTAINERS, version, &mut shaped);
            assert_eq!(shaped == list, stays);
        }
        // What is added is found by no look at what is there.
        assert!(!answer_stays(INFO, version, b"{}"));
    }

    #[test]
    fn differences_are_of_routes_that_exist() {
        for difference in ANSWERS.iter().chain(REQUESTS) {
            let (method, path) = difference.route.split_once(' ').unwrap();
            let found = crate::table::ROUTES
                .iter()
                .any(|route| route.method.as_str() == method && route.path == path);
            assert!(found, "{}", difference.route);
        }
    }
}
