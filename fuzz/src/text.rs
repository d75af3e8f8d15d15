//! Texts and structures that are parsed in memory.

use vessel_api::{ContainerConfig, ContainerCreateRequest, HostConfig};
use vessel_engine::oci_spec::{devices, merge, ports as exposed, resources, security, validate};
use vessel_engine::{Filters, time};
use vessel_image::{Digest, Document, ImageConfig, Index, Manifest, Reference, image_id_prefix};
use vessel_runtime::capabilities::CapSet;
use vessel_runtime::seccomp::docker::{Host, Profile};
use vessel_runtime::seccomp::{Program, Seccomp, compile};
use vessel_runtime::shim::protocol as shim;
use vessel_runtime::spec::{Process, Spec};

use crate::go_template::{Data, Format};

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Image names, digests, configurations, manifests and indexes.
pub fn names(data: &[u8]) {
    if let Some(text) = text(data) {
        if let Ok(name) = Reference::parse(text) {
            assert_eq!(Reference::parse(&name.familiar()).unwrap(), name);
            let tagged = name.with_default_tag();
            assert_eq!(Reference::parse(&tagged.familiar()).unwrap(), tagged);
        }
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
        }
        let _ = image_id_prefix(text);
    }
    if let Ok(config) = ImageConfig::parse(data) {
        let raw = config.to_raw().unwrap();
        assert_eq!(ImageConfig::parse(&raw).unwrap().chain(), config.chain());
    }
    let _ = (Document::parse(data), Manifest::parse(data), Index::parse(data));
}

/// `config.json` of an OCI bundle, and a process alone.
pub fn oci(data: &[u8]) {
    if let Ok(spec) = serde_json::from_slice::<Spec>(data)
        && spec.validate().is_ok()
    {
        let again = serde_json::to_vec(&spec).unwrap();
        assert_eq!(serde_json::from_slice::<Spec>(&again).unwrap(), spec);
        if let Some(profile) = spec.linux.as_ref().and_then(|linux| linux.seccomp.as_ref()) {
            let _ = compile(profile);
        }
    }
    if let Ok(process) = serde_json::from_slice::<Process>(data) {
        let _ = process.validate();
    }
}

/// Seccomp profiles, Docker's and OCI's, and compiled programs on their way to the shim.
pub fn seccomp(data: &[u8]) {
    let compiled = |profile: &Seccomp| {
        if let Ok(program) = compile(profile) {
            assert!(program.len() <= 4096);
            let bytes = program.to_bytes();
            assert_eq!(Program::from_bytes(&bytes).unwrap().to_bytes(), bytes);
        }
    };
    if let Ok(profile) = serde_json::from_slice::<Seccomp>(data) {
        compiled(&profile);
    }
    if let Some(text) = text(data)
        && let Ok(profile) = Profile::parse(text)
        && let Some(profile) = profile.resolve(&Host::current(CapSet::KNOWN))
    {
        compiled(&profile);
    }
    let _ = Program::from_bytes(data);
}

/// The body of a container's creation, and all that follows from it without touching the host.
pub fn create(data: &[u8]) {
    let Ok(request) = serde_json::from_slice::<ContainerCreateRequest>(data) else {
        return;
    };
    let again = serde_json::to_vec(&request).unwrap();
    let _ = serde_json::from_slice::<ContainerCreateRequest>(&again).unwrap();
    let (mut config, mut host): (ContainerConfig, HostConfig) = (
        serde_json::from_slice(data).unwrap_or_default(),
        serde_json::from_slice::<serde_json::Value>(data)
            .ok()
            .and_then(|value| serde_json::from_value(value.get("HostConfig")?.clone()).ok())
            .unwrap_or_default(),
    );
    let facts = validate::HostFacts {
        cpus: [0, 1].into(),
        memory_nodes: [0].into(),
        cgroup_v2: data.len() % 2 == 0,
        userns_remap: false,
    };
    merge::merge(&mut config, &ContainerConfig::default());
    let _ = merge::command(&config);
    let known = validate::check(&config, &host, &facts).is_ok();
    let _ = (
        exposed::published(&config, &host),
        security::security(&host, CapSet::KNOWN),
        validate::log_options(&host),
        devices::devices(&host),
    );
    if known {
        validate::fill_defaults(&mut host, &facts, false);
        validate::check(&config, &host, &facts).unwrap();
        let _ = resources::resources(&host.resources, Vec::new());
    }
    let _ = validate::resources(&host.resources, &facts, true);
}

/// Published ports, sizes, times, filters: what stands in queries and options.
pub fn ports(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let _ = vessel_network::parse_publish(text);
    let _ = exposed::parse_port(text);
    let _ = (validate::bytes(text), validate::number_list(text));
    let _ = (time::parse(text), time::duration(text));
    let _ = text.parse::<vessel_network::MacAddr>();
    if let Ok(filters) = Filters::parse(text) {
        let _ = filters.check(&["label"]);
        let _ = filters.labels(&[("a".to_owned(), "b".to_owned())].into());
    }
}

/// Messages between daemon and shim: a container's processes may have taken over neither, but it costs nothing.
pub fn protocol(data: &[u8]) {
    let _ = shim::receive::<shim::Request>(&mut &data[..]);
    let _ = shim::receive::<shim::Reply>(&mut &data[..]);
    let _ = shim::receive::<shim::Event>(&mut &data[..]);
    let _ = shim::decode::<shim::ShimConfig>(data);
    let _ = shim::decode::<shim::Status>(data);
}

/// The host's `resolv.conf`, names and servers of a container.
pub fn resolv(data: &[u8]) {
    use vessel_network::files::{ResolvConf, for_endpoint, hostname};
    let Some(text) = text(data) else { return };
    let rendered = ResolvConf::parse(text).render();
    assert_eq!(ResolvConf::parse(&rendered).render(), rendered);
    let _ = for_endpoint(text, Some(text)).render();
    let _ = hostname(text);
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let _ = ResolvConf::parse(text).override_with(&words, &words, &words);
}

/// A packet from a container for the DNS server. Whatever it is: an answer is one, to this question, and of bounded size.
pub fn dns(data: &[u8]) {
    if let Some(answer) = vessel_network::dns::answer_any(data) {
        assert!(answer.len() <= 4096 && answer.len() >= 12);
        assert!(answer[..2] == data[..2] && answer[2] & 0x80 != 0 && data[2] & 0x80 == 0);
        // Two servers do not talk to each other for ever.
        assert_eq!(vessel_network::dns::answer_any(&answer), None);
    }
}

/// A Go template (up to the first empty line) over JSON.
pub fn template(data: &[u8]) {
    let Some(text) = text(data) else { return };
    let (source, json) = text.split_once("\n\n").unwrap_or((text, "{}"));
    let json = serde_json::from_str(json).unwrap_or_default();
    if let Ok(template) = Format::parse(source) {
        let _ = template.apply(&Data::new(&json));
    }
}

/// What a daemon sends: frames of output, and the address that leads to it.
pub fn client(data: &[u8]) {
    use vessel_client::{Demux, Host as Address};
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    let ok = Demux::default()
        .feed(data, |_, part| {
            whole.extend_from_slice(part);
            Ok(())
        })
        .is_ok();
    let mut demux = Demux::default();
    let fed = data.chunks(3).all(|piece| {
        let sink = |_, part: &[u8]| {
            pieces.extend_from_slice(part);
            Ok(())
        };
        demux.feed(piece, sink).is_ok()
    });
    assert_eq!(ok, fed);
    assert_eq!(whole, pieces);
    if let Some(text) = text(data) {
        let _ = Address::parse(text);
    }
}
