//! The end of loading: what is implied is said, active services are told from others, references are checked.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Loader, Options, Scope, environment, schema, settle};
use crate::error::{Error, Result};
use crate::project::{self, Project};
use crate::yaml::{Fault, Map, Node, Value};

/// What a loaded model becomes.
pub(super) fn finish(
    loader: &mut Loader,
    model: &mut Node,
    name: &str,
    scope: &Scope,
    options: &Options,
    profiles: &[String],
) -> Result<Project> {
    schema::check(model).map_err(|fault| loader.fault(fault))?;
    settle::types(model);
    let at = model.at;
    if let Some(map) = model.as_map_mut() {
        map.insert("name".to_owned(), Node::string(at, name));
        map.entry("services".to_owned()).or_insert_with(|| Node::map(at));
    }
    networks(model);
    if let Some(services) = model.get_mut("services").and_then(Node::as_map_mut) {
        for service in services.values_mut() {
            normalize(service, scope);
        }
        services.sort_keys();
    }
    names(model, name);
    let profiles = &enabling(model, profiles, &options.services)?;
    let active = active(model, profiles);
    if !options.no_consistency {
        consistent(model, &active).map_err(|fault| loader.fault(fault))?;
    }
    // Files of services that nobody starts need not be there.
    if let Some(services) = model.get_mut("services").and_then(Node::as_map_mut) {
        for (name, service) in services.iter_mut() {
            if active.contains(name) && !options.no_env_resolution {
                environment::add_files(service, &scope.environment)?;
            }
            if active.contains(name) {
                environment::add_labels(service)?;
            }
        }
    }
    project::bind(model.clone(), &active, profiles)
}

/// Services that name no network are in `default`, which exists when somebody is in it.
fn networks(model: &mut Node) {
    let at = model.at;
    let mut uses_default = false;
    let services = model.get_mut("services").and_then(Node::as_map_mut);
    for service in services.into_iter().flat_map(Map::values_mut) {
        let at = service.at;
        let Some(map) = service.as_map_mut() else { continue };
        if map.contains_key("provider") || map.contains_key("network_mode") {
            continue;
        }
        let named = map
            .get("networks")
            .and_then(Node::as_map)
            .filter(|named| !named.is_empty());
        match named {
            Some(named) => uses_default |= named.contains_key("default"),
            None => {
                let mut networks = Node::map(at);
                if let Some(networks) = networks.as_map_mut() {
                    networks.insert("default".to_owned(), Node::new(at, Value::Null));
                }
                map.insert("networks".to_owned(), networks);
                uses_default = true;
            }
        }
    }
    if uses_default && let Some(map) = model.as_map_mut() {
        let networks = map.entry("networks".to_owned()).or_insert_with(|| Node::map(at));
        if networks.is_null() {
            *networks = Node::map(at);
        }
        if let Some(networks) = networks.as_map_mut() {
            networks
                .entry("default".to_owned())
                .or_insert_with(|| Node::new(at, Value::Null));
        }
    }
}

fn normalize(service: &mut Node, scope: &Scope) {
    let at = service.at;
    let image = service.text("image").map(str::to_owned);
    let Some(map) = service.as_map_mut() else { return };
    if map.get("pull_policy").and_then(Node::as_str) == Some("if_not_present") {
        map.insert("pull_policy".to_owned(), Node::string(at, "missing"));
    }
    if let Some(build) = map.get_mut("build") {
        let at = build.at;
        if let Some(build) = build.as_map_mut()
            && !build.contains_key("dockerfile")
            && !build.contains_key("dockerfile_inline")
        {
            build.insert("dockerfile".to_owned(), Node::string(at, "Dockerfile"));
        }
        environment::resolve(build.get_mut("args"), &scope.environment, false);
    }
    environment::resolve(map.get_mut("environment"), &scope.environment, true);
    for hook in map
        .get_mut("pre_start")
        .and_then(Node::as_list_mut)
        .into_iter()
        .flatten()
    {
        if let (Some(hook), Some(image)) = (hook.as_map_mut(), &image) {
            hook.entry("image".to_owned())
                .or_insert_with(|| Node::string(at, image.as_str()));
        }
    }
    if let Some(test) = map.get_mut("healthcheck").and_then(|check| check.get_mut("test"))
        && let Some(text) = test.as_str().map(str::to_owned)
    {
        let words = ["CMD-SHELL", &text].map(|word| Node::string(test.at, word));
        test.value = Value::List(words.into());
    }
    for volume in map
        .get_mut("volumes")
        .and_then(Node::as_list_mut)
        .into_iter()
        .flatten()
    {
        if let Some(target) = volume.get_mut("target")
            && let Some(text) = target.as_str()
        {
            let clean = super::files::clean(Path::new(text))
                .to_string_lossy()
                .into_owned();
            target.value = Value::String(clean);
        }
    }
    for key in ["expose", "group_add"] {
        for item in map.get_mut(key).and_then(Node::as_list_mut).into_iter().flatten() {
            item.value = Value::String(item.printed().unwrap_or_default());
        }
    }
    for port in map
        .get_mut("ports")
        .and_then(Node::as_list_mut)
        .into_iter()
        .flatten()
    {
        if let Some(published) = port.get_mut("published") {
            published.value = Value::String(published.printed().unwrap_or_default());
        }
    }
    for key in ["secrets", "configs"] {
        for mount in map.get_mut(key).and_then(Node::as_list_mut).into_iter().flatten() {
            octal(mount.get_mut("mode"));
        }
    }
    if let Some(build) = map.get_mut("build") {
        for mount in build
            .get_mut("secrets")
            .and_then(Node::as_list_mut)
            .into_iter()
            .flatten()
        {
            octal(mount.get_mut("mode"));
        }
    }
    for volume in map
        .get_mut("volumes")
        .and_then(Node::as_list_mut)
        .into_iter()
        .flatten()
    {
        octal(volume.get_mut("tmpfs").and_then(|tmpfs| tmpfs.get_mut("mode")));
    }
    implied_dependencies(map);
}

/// Permission bits as people read them.
fn octal(node: Option<&mut Node>) {
    if let Some(node) = node
        && let Value::Int(mode) = node.value
    {
        node.value = Value::String(format!("0{mode:o}"));
    }
}

/// Who uses another service's network, volumes or name depends on it.
fn implied_dependencies(map: &mut Map) {
    let mut implied: Vec<(String, bool)> = Vec::new();
    let texts = |key: &str| {
        let list = map.get(key).and_then(Node::as_list).unwrap_or_default();
        list.iter()
            .filter_map(Node::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for link in texts("links") {
        let service = link.split_once(':').map_or(link.as_str(), |(service, _)| service);
        implied.push((service.to_owned(), true));
    }
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        if let Some(service) = map
            .get(key)
            .and_then(Node::as_str)
            .and_then(|mode| mode.strip_prefix("service:"))
        {
            implied.push((service.to_owned(), true));
        }
    }
    for source in texts("volumes_from") {
        if !source.starts_with("container:") {
            let service = source.split(':').next().unwrap_or_default();
            implied.push((service.to_owned(), false));
        }
    }
    if implied.is_empty() {
        return;
    }
    let at = map
        .values()
        .next()
        .map_or(crate::yaml::At::file(0), |node| node.at);
    let depends = map
        .entry("depends_on".to_owned())
        .or_insert_with(|| Node::map(at));
    if let Some(depends) = depends.as_map_mut() {
        for (service, restart) in implied {
            depends.entry(service).or_insert_with(|| {
                let mut node = super::canonical::dependency(at);
                if let Some(map) = node.as_map_mut() {
                    map.insert("restart".to_owned(), Node::new(at, Value::Bool(restart)));
                }
                node
            });
        }
    }
}

/// Networks, volumes, secrets and configs have the names they are given, or the project's with theirs.
fn names(model: &mut Node, project: &str) {
    for section in ["networks", "volumes", "configs", "secrets"] {
        let Some(parts) = model.get_mut(section).and_then(Node::as_map_mut) else {
            continue;
        };
        for (key, part) in parts.iter_mut() {
            let at = part.at;
            if part.is_null() {
                *part = Node::map(at);
            }
            let external = matches!(
                part.get("external").map(|node| &node.value),
                Some(Value::Bool(true))
            );
            if let Some(map) = part.as_map_mut() {
                map.entry("name".to_owned()).or_insert_with(|| {
                    Node::string(
                        at,
                        if external {
                            key.clone()
                        } else {
                            format!("{project}_{key}")
                        },
                    )
                });
            }
        }
    }
}

/// Profiles with those that named services need to be active.
fn enabling(model: &Node, profiles: &[String], named: &[String]) -> Result<Vec<String>> {
    let services = model.get("services").and_then(Node::as_map);
    let before = active(model, profiles);
    let mut profiles = profiles.to_vec();
    for name in named {
        let service = services
            .and_then(|services| services.get(name))
            .ok_or_else(|| no_such_service(name))?;
        if before.contains(name) {
            continue;
        }
        let own = service.get("profiles").and_then(Node::as_list);
        profiles.extend(
            own.into_iter()
                .flatten()
                .filter_map(Node::as_str)
                .map(str::to_owned),
        );
    }
    Ok(profiles)
}

/// Services without profiles, and those of which one is active.
fn active(model: &Node, profiles: &[String]) -> BTreeSet<String> {
    let services = model.get("services").and_then(Node::as_map);
    let wanted = |service: &Node| {
        let own = service
            .get("profiles")
            .and_then(Node::as_list)
            .unwrap_or_default();
        own.is_empty()
            || profiles.iter().any(|profile| {
                profile == "*" || own.iter().any(|name| name.as_str() == Some(profile.as_str()))
            })
    };
    services
        .into_iter()
        .flatten()
        .filter(|(_, service)| wanted(service))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Checks what refers to what.
fn consistent(model: &Node, active: &BTreeSet<String>) -> std::result::Result<(), Fault> {
    let section = |name: &str| model.get(name).and_then(Node::as_map);
    let has = |part: &str, name: &str| section(part).is_some_and(|map| map.contains_key(name));
    let services = section("services");
    for (name, service) in services
        .into_iter()
        .flatten()
        .filter(|(name, _)| active.contains(*name))
    {
        let fail = |key: &str, message: String| {
            let at = service.get(key).map_or(service.at, |node| node.at);
            let path = if key.is_empty() {
                format!("services.{name}")
            } else {
                format!("services.{name}.{key}")
            };
            Err(Fault::new(at, path, message))
        };
        let list = |key: &str| service.get(key).and_then(Node::as_list).unwrap_or_default();
        let keys = |key: &str| service.get(key).and_then(Node::as_map).into_iter().flatten();
        let (image, build) = (service.text("image").unwrap_or_default(), service.get("build"));
        if image.is_empty() && build.is_none() && service.get("provider").is_none() {
            return fail(
                "",
                format!("service {name:?} has neither an image nor a build context specified"),
            );
        }
        if let Some(build) = build {
            if build.get("dockerfile").is_some() && build.get("dockerfile_inline").is_some() {
                let message =
                    format!("service {name:?} declares mutually exclusive dockerfile and dockerfile_inline");
                return fail("build", message);
            }
            let platform = service.text("platform").unwrap_or_default();
            let platforms = build.get("platforms").and_then(Node::as_list).unwrap_or_default();
            if !platform.is_empty()
                && !platforms.is_empty()
                && !platforms.iter().any(|known| known.as_str() == Some(platform))
            {
                return fail(
                    "build",
                    format!("platforms must include the service's platform {platform:?}"),
                );
            }
            for secret in build.get("secrets").and_then(Node::as_list).unwrap_or_default() {
                let source = secret.text("source").unwrap_or_default();
                if !has("secrets", source) {
                    return fail(
                        "build",
                        format!("service {name:?} refers to undefined build secret {source}"),
                    );
                }
            }
            let contexts = build.get("additional_contexts").and_then(Node::as_map);
            for (context, node) in contexts.into_iter().flatten() {
                if let Some(other) = node.as_str().and_then(|text| text.strip_prefix("service:")) {
                    let target = services.and_then(|services| services.get(other));
                    if target.is_none_or(|target| target.get("build").is_none()) {
                        let message = format!(
                            "service {name:?} declares service {other:?}, which is not built here, as additional context {context}"
                        );
                        return fail("build", message);
                    }
                }
            }
        }
        if service.get("network_mode").is_some() && keys("networks").next().is_some() {
            return fail(
                "network_mode",
                format!("service {name} declares mutually exclusive `network_mode` and `networks`"),
            );
        }
        for (network, _) in keys("networks") {
            if !has("networks", network) {
                return fail(
                    "networks",
                    format!("service {name:?} refers to undefined network {network}"),
                );
            }
        }
        let test = service
            .get("healthcheck")
            .and_then(|check| check.get("test"))
            .and_then(Node::as_list);
        if let Some(first) = test.and_then(|test| test.first()).and_then(Node::as_str)
            && !matches!(first, "CMD" | "CMD-SHELL" | "NONE")
        {
            return fail(
                "healthcheck",
                "test must start either by \"CMD\", \"CMD-SHELL\" or \"NONE\"".to_owned(),
            );
        }
        for (other, how) in keys("depends_on") {
            let required = !matches!(
                how.get("required").map(|node| &node.value),
                Some(Value::Bool(false))
            );
            if !has("services", other) {
                return fail(
                    "depends_on",
                    format!("service {name:?} depends on undefined service {other:?}"),
                );
            }
            if required && !active.contains(other) {
                let message = format!(
                    "service {name:?} depends on service {other:?}, none of whose profiles is active; use --profile"
                );
                return fail("depends_on", message);
            }
        }
        for volume in list("volumes") {
            let source = volume.text("source").unwrap_or_default();
            if volume.text("type") == Some("volume") && !source.is_empty() && !has("volumes", source) {
                return fail(
                    "volumes",
                    format!("service {name:?} refers to undefined volume {source}"),
                );
            }
        }
        for (key, one) in [("configs", "config"), ("secrets", "secret")] {
            for mount in list(key) {
                let source = mount.text("source").unwrap_or_default();
                if !has(key, source) {
                    return fail(
                        key,
                        format!("service {name:?} refers to undefined {one} {source}"),
                    );
                }
            }
        }
        for (used, _) in keys("models") {
            if !has("models", used) {
                return fail(
                    "models",
                    format!("service {name:?} refers to undefined model {used}"),
                );
            }
        }
        if let Some(count) = service
            .get("scale")
            .filter(|_| service.text("container_name").is_some())
            && matches!(count.value, Value::Int(count) if count > 1)
        {
            let message = format!("service {name:?} can't have a container_name and more than one container");
            return fail("container_name", message);
        }
    }
    cycle(services, active)
}

/// Refuses services that wait for each other.
fn cycle(services: Option<&Map>, active: &BTreeSet<String>) -> std::result::Result<(), Fault> {
    let Some(services) = services else { return Ok(()) };
    let depends = |name: &str| {
        let service = services.get(name).and_then(|service| service.get("depends_on"));
        service.and_then(Node::as_map).into_iter().flat_map(Map::keys)
    };
    let mut done: BTreeSet<&str> = BTreeSet::new();
    for name in active {
        // A stack of its own: chains may be longer than that of the thread.
        let mut way: Vec<&str> = vec![name];
        let mut on_way: BTreeSet<&str> = BTreeSet::from([name.as_str()]);
        let mut open = vec![depends(name)];
        while let Some(others) = open.last_mut() {
            let Some(other) = others.next() else {
                open.pop();
                if let Some(left) = way.pop() {
                    on_way.remove(left);
                    done.insert(left);
                }
                continue;
            };
            if on_way.contains(other.as_str()) {
                let begin = way.iter().position(|known| known == other).unwrap_or(0);
                let at = services
                    .get(name)
                    .map_or(crate::yaml::At::file(0), |service| service.at);
                let message = format!(
                    "dependency cycle detected: {} -> {other}",
                    way[begin..].join(" -> ")
                );
                return Err(Fault::new(at, "", message));
            }
            if !done.contains(other.as_str()) {
                way.push(other);
                on_way.insert(other);
                open.push(depends(other));
            }
        }
    }
    Ok(())
}

/// The error of a name that no service has.
pub(crate) fn no_such_service(name: &str) -> Error {
    Error::project(format!("no such service: {name}"))
}
