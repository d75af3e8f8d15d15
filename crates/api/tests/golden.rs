//! What dockerd 20.10 answered, read into our structures and written again, is what dockerd answered.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use vessel_api as api;

/// Go echoes a client's `null` or `[]` for lists nobody filled; which of them came in carries no meaning, and
/// neither does an absent member. Everything else must be there again, alike.
fn normal(value: Value) -> Value {
    match value {
        Value::Array(list) => Value::Array(list.into_iter().map(normal).collect()),
        Value::Object(map) => {
            let mut members: Vec<_> = map
                .into_iter()
                .map(|(name, member)| (name, normal(member)))
                .filter(|(_, member)| match member {
                    Value::Null => false,
                    Value::Array(list) => !list.is_empty(),
                    Value::Object(map) => !map.is_empty(),
                    _ => true,
                })
                .collect();
            members.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(members.into_iter().collect())
        }
        other => other,
    }
}

/// The members of `value` that `other` lacks or has differently, as paths.
fn missing(value: &Value, other: &Value, path: &str, optional: &[&str], out: &mut Vec<String>) {
    match (value, other) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, member) in a {
                let path = format!("{path}.{name}");
                match b.get(name) {
                    Some(again) => missing(member, again, &path, optional, out),
                    None if optional.contains(&name.as_str()) => {}
                    None => out.push(format!("{path}: {member} is missing")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (member, again)) in a.iter().zip(b).enumerate() {
                missing(member, again, &format!("{path}[{index}]"), optional, out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: {a} became {b}")),
    }
}

fn round_trip<T: Serialize + DeserializeOwned>(name: &str, text: &str) {
    let theirs: Value = serde_json::from_str(text).unwrap();
    let read: T = serde_json::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
    let ours = serde_json::to_value(&read).unwrap();
    let (theirs, ours) = (normal(theirs), normal(ours));
    let mut differences = Vec::new();
    // Members that newer dockerds leave out when they are zero, as we do.
    missing(
        &theirs,
        &ours,
        name,
        &["KernelMemory", "KernelMemoryTCP", "BuilderSize"],
        &mut differences,
    );
    missing(&ours, &theirs, name, &[], &mut differences);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

macro_rules! golden {
    ($($name:ident: $type:ty),* $(,)?) => { $(
        #[test]
        fn $name() {
            round_trip::<$type>(
                stringify!($name),
                include_str!(concat!("golden/", stringify!($name), ".json")),
            );
        }
    )* };
}

golden! {
    changes: Vec<api::Change>,
    container_create: api::ContainerCreateResponse,
    container_inspect: api::ContainerInspect,
    container_inspect_created: api::ContainerInspect,
    container_inspect_failed: api::ContainerInspect,
    container_inspect_host: api::ContainerInspect,
    container_list: Vec<api::ContainerSummary>,
    container_prune: api::ContainersPruneReport,
    df: api::DiskUsage,
    error: api::ErrorResponse,
    exec_create: api::ExecCreateResponse,
    exec_inspect: api::ExecInspect,
    image_delete: Vec<api::ImageDeleteItem>,
    image_history: Vec<api::HistoryItem>,
    image_inspect: api::ImageInspect,
    image_list: Vec<api::ImageSummary>,
    image_prune: api::ImagesPruneReport,
    info: api::Info,
    network_inspect: api::Network,
    network_list: Vec<api::Network>,
    network_prune: api::NetworksPruneReport,
    stats: api::Stats,
    top: api::TopResponse,
    update: api::UpdateResponse,
    version: api::Version,
    volume_inspect: api::Volume,
    volume_list: api::VolumeList,
    volume_prune: api::VolumesPruneReport,
    wait: api::WaitResponse,
}

#[test]
fn events() {
    for line in include_str!("golden/events.json").lines() {
        round_trip::<api::EventMessage>("event", line);
    }
}

/// What `docker run` sends, nulls and all.
#[test]
fn create_request_of_a_go_client() {
    let text = r#"{"Hostname":"","Cmd":"sh","Entrypoint":null,"Env":null,"Labels":null,"Volumes":{},
        "ExposedPorts":{"80/tcp":{}},"Tty":null,"NoSuchField":{"a":[1]},"Healthcheck":null,"Image":"i",
        "HostConfig":{"Binds":null,"PortBindings":{"80/tcp":null,"81/tcp":[{"HostIp":"","HostPort":"8081"}]},
        "Memory":null,"LogConfig":null,"Dns":null,"RestartPolicy":{"Name":"always","MaximumRetryCount":null},
        "MemorySwappiness":-1,"PidsLimit":0,"MaskedPaths":[],"ReadonlyPaths":null,"ConsoleSize":[24,80]},
        "NetworkingConfig":{"EndpointsConfig":null}}"#;
    let request: api::ContainerCreateRequest = serde_json::from_str(text).unwrap();
    assert_eq!(request.config.cmd, ["sh"]);
    assert_eq!(request.config.entrypoint, None);
    assert_eq!(request.host_config.resources.memory_swappiness, Some(-1));
    assert_eq!(request.host_config.resources.pids_limit, Some(0));
    assert_eq!(request.host_config.port_bindings["80/tcp"], None);
    assert_eq!(request.host_config.masked_paths, Some(vec![]));
    assert_eq!(request.host_config.readonly_paths, None);
    assert_eq!(request.host_config.console_size, [24, 80]);
    assert!(request.host_config.restart_policy.is_always());
    let again: api::ContainerCreateRequest =
        serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
    assert_eq!(again, request);
}

/// Where the zero value means something, Go's daemon writes `null`, `[]` or `{}`, and scripts depend on it.
#[test]
fn empty_lists_are_written_as_docker_writes_them() {
    let inspect = serde_json::to_value(api::ContainerInspect::default()).unwrap();
    for (pointer, expected) in [
        ("/HostConfig/Binds", "null"),
        ("/HostConfig/CapAdd", "null"),
        ("/HostConfig/Dns", "[]"),
        ("/HostConfig/PortBindings", "{}"),
        ("/Config/Entrypoint", "null"),
        ("/Config/Cmd", "null"),
        ("/Config/Labels", "{}"),
        ("/ExecIDs", "null"),
        ("/Mounts", "[]"),
        ("/NetworkSettings/Ports", "{}"),
    ] {
        assert_eq!(
            inspect.pointer(pointer).map(Value::to_string).as_deref(),
            Some(expected),
            "{pointer}"
        );
    }
    assert!(inspect.pointer("/State/Health").is_none());
    assert!(inspect.pointer("/Config/Healthcheck").is_none());
}

#[test]
fn wrong_types_are_refused() {
    assert!(serde_json::from_str::<api::ContainerCreateRequest>(r#"{"Cmd":{"a":1}}"#).is_err());
    assert!(
        serde_json::from_str::<api::ContainerCreateRequest>(r#"{"HostConfig":{"Memory":"1g"}}"#).is_err()
    );
    assert!(serde_json::from_str::<api::Change>(r#"{"Path":"/a","Kind":7}"#).is_err());
}
