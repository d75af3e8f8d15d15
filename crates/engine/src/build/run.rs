//! A process of a build: a container that is in no list.
//!
//! It has what a container has (a shim, a cgroup, a network of its own, the default filter) and no record: whatever ends
//! the build ends it. The shim kills it when the stream to the daemon closes, so it does not outlive a daemon that
//! crashes; what it had on the host then is removed by the next start, as for any shim that no record explains.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use vessel_api::{ContainerConfig, HostConfig, Resources, Ulimit};
use vessel_build::progress::{Event as BuildEvent, Log, Progress};
use vessel_build::request::Network;
use vessel_build::worker::{Exit, RunRequest};
use vessel_image::Digest;
use vessel_network::{EndpointRecord, EndpointRequest};
use vessel_runtime::cgroup::{Cgroup, CgroupPath};
use vessel_runtime::rlimits;
use vessel_runtime::shim::protocol::{EXIT, InheritedFds};
use vessel_runtime::shim::{Attach, Event, LaunchedShim, Overlay, RootSource, ShimConfig, ShimFds};

use super::mounts::{self, Agents};
use crate::container::names;
use crate::container::prepare::open_namespace;
use crate::container::record::Record;
use crate::container::shim::{asynchronous, receive};
use crate::error::Context;
use crate::network::End;
use crate::oci_spec::modes::{Ipc, NetworkMode};
use crate::oci_spec::{self, Inputs, Namespaces, devices, security, user, validate};
use crate::{Engine, Error, Result, blocking, ids};

/// Bytes of output that are told at once.
const PIECE: usize = 32 << 10;

/// Runs a process to its end. Dropping the future kills it; what it had is given back in the background then.
pub(super) async fn run(engine: Arc<Engine>, request: RunRequest) -> Result<Exit> {
    // The task holds the receiving end: it learns from the drop of this one that nobody waits any more.
    let (_alive, cancelled) = oneshot::channel::<()>();
    tokio::spawn(run_to_end(engine, request, cancelled))
        .await
        .map_err(|error| Error::system(format!("a build step ended abnormally: {error}")))?
}

/// What a run has on the host.
struct Running {
    id: String,
    cgroup: String,
    endpoints: BTreeMap<String, EndpointRecord>,
}

struct Launched {
    shim: LaunchedShim,
    output: std::os::unix::net::UnixStream,
    agents: Agents,
}

async fn run_to_end(
    engine: Arc<Engine>,
    request: RunRequest,
    cancelled: oneshot::Receiver<()>,
) -> Result<Exit> {
    let (progress, vertex) = (request.progress.clone(), request.vertex.clone());
    let keep = request.keep.clone();
    let owner = Arc::clone(&engine);
    let launched = blocking(move || {
        let id = ids::id();
        let mut running = Running {
            cgroup: owner.cgroup_for(&record_of(&request, &id))?,
            id,
            endpoints: BTreeMap::new(),
        };
        owner.steps.begin(&running.id);
        let launched = launch(&owner, request, &mut running);
        if launched.is_err() {
            owner.give_back(&running.id, &running.endpoints);
            owner.steps.end(&running.id);
        }
        launched.map(|launched| (launched, running))
    });
    let (launched, running) = launched.await?;
    let pid = launched.shim.pid;
    let ended = follow(launched, cancelled, &progress, &vertex).await;
    crate::container::reap(pid);
    blocking(move || {
        if ended.is_err() {
            // The shim may be gone without having cleaned up.
            let cleared = CgroupPath::parse(&running.cgroup)
                .and_then(|path| Cgroup::open(&engine.hierarchies, &path))
                .and_then(|cgroup| {
                    cgroup.kill_all(rustix::process::Signal::KILL)?;
                    cgroup.destroy()
                });
            if let Err(error) = cleared {
                tracing::debug!("the cgroup of a build step: {error}");
            }
        }
        engine.give_back(&running.id, &running.endpoints);
        engine.steps.end(&running.id);
        drop(keep);
        ended
    })
    .await
}

/// Hands the output on and waits for the end.
async fn follow(
    launched: Launched,
    mut cancelled: oneshot::Receiver<()>,
    progress: &Progress,
    vertex: &Digest,
) -> Result<Exit> {
    let mut control = asynchronous(launched.shim.control)?;
    let mut output = asynchronous(launched.output)?;
    let agents = launched.agents.serve()?;
    let told = async {
        let handed = hand_on(&mut output, progress, vertex).await;
        // Open until the end: its end is what kills.
        (handed, output)
    };
    let ended = async {
        loop {
            match receive::<Event>(&mut control).await? {
                Some(Event::Exited(exit)) => {
                    return Ok(Exit {
                        code: exit.code,
                        oom_killed: exit.oom_killed,
                    });
                }
                Some(Event::Failed(report)) => return Err(Error::from(report)),
                Some(Event::Started { warnings, .. }) => {
                    for warning in warnings {
                        tracing::debug!("{warning}");
                    }
                }
                Some(_) => {}
                None => return Err(Error::system("the shim of a build step was killed or crashed")),
            }
        }
    };
    let both = async {
        let ((handed, _output), ended) = tokio::join!(told, ended);
        let ended = ended?;
        handed?;
        Ok(ended)
    };
    let result = tokio::select! {
        result = both => Some(result),
        _dropped = &mut cancelled => None,
    };
    drop(agents);
    match result {
        Some(result) => result,
        // The stream is closed: the shim kills the process. Its last word is waited for, so that nothing of it is left.
        None => {
            let last = async { while let Ok(Some(_)) = receive::<Event>(&mut control).await {} };
            let _late = tokio::time::timeout(std::time::Duration::from_secs(10), last).await;
            Err(Error::system("the build was cancelled"))
        }
    }
}

/// Reads Docker's frames and tells what is in them.
async fn hand_on(output: &mut (impl AsyncRead + Unpin), progress: &Progress, vertex: &Digest) -> Result<()> {
    let failed = || "read the output of a build step".to_owned();
    let mut header = [0; 8];
    loop {
        match output.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
                ) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error).context(failed),
        }
        let [stream, .., a, b, c, d] = header;
        let mut left = u32::from_be_bytes([a, b, c, d]) as usize;
        while left > 0 {
            let mut data = vec![0; left.min(PIECE)];
            output.read_exact(&mut data).await.context(failed)?;
            left -= data.len();
            let log = Log {
                vertex: vertex.clone(),
                stream,
                time: SystemTime::now(),
                data,
            };
            progress.send(BuildEvent::Log(log)).await;
        }
    }
}

/// The process as the record of a container.
fn record_of(request: &RunRequest, id: &str) -> Record {
    let resources = &request.resources;
    let signed = |value: Option<u64>| {
        value
            .and_then(|value| i64::try_from(value).ok())
            .unwrap_or_default()
    };
    let host = HostConfig {
        network_mode: match &request.network {
            Network::Default => "bridge",
            Network::None => "none",
            Network::Host => "host",
            Network::Named(name) => name,
        }
        .to_owned(),
        privileged: request.insecure,
        shm_size: signed(request.shm_size),
        extra_hosts: request
            .extra_hosts
            .iter()
            .map(|(name, address)| format!("{name}:{address}"))
            .collect(),
        auto_remove: true,
        resources: Resources {
            memory: resources.memory.unwrap_or_default(),
            memory_swap: resources.memory_swap.unwrap_or_default(),
            cpu_shares: signed(resources.cpu_shares),
            cpu_quota: resources.cpu_quota.unwrap_or_default(),
            cpu_period: signed(resources.cpu_period),
            cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
            cgroup_parent: request.cgroup_parent.clone().unwrap_or_default(),
            ulimits: request
                .ulimits
                .iter()
                .map(|limit| Ulimit {
                    name: limit.name.clone(),
                    hard: limit.hard,
                    soft: limit.soft,
                })
                .collect(),
            ..Resources::default()
        },
        ..HostConfig::default()
    };
    let (path, args) = match request.args.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => Default::default(),
    };
    Record {
        id: id.to_owned(),
        name: id.to_owned(),
        path,
        args,
        config: ContainerConfig {
            hostname: request.hostname.clone(),
            user: request.user.clone(),
            env: request.env.clone(),
            working_dir: request.cwd.clone(),
            attach_stdout: true,
            attach_stderr: true,
            ..ContainerConfig::default()
        },
        host,
        ..Record::default()
    }
}

fn launch(engine: &Engine, request: RunRequest, running: &mut Running) -> Result<Launched> {
    let mut record = record_of(&request, &running.id);
    let directory = engine.paths.shim(&running.id);
    std::fs::create_dir(&directory).context(|| format!("create {}", directory.display()))?;
    let security = security::security(&record.host, engine.capabilities)?;
    validate::fill_defaults(&mut record.host, &engine.facts, security.system_paths_unconfined);
    let mut lower = vec![engine.paths.init_layer()];
    let chains: Vec<String> = request.layers.iter().map(ToString::to_string).collect();
    lower.append(&mut engine.layer_paths(&chains)?);
    let accounts = user::read_stack(lower.clone())?;
    let identity = accounts.identity(&request.user, &[])?;

    if let Some(network) = engine.networks.find_user(&record.host.network_mode) {
        // Its ends are known by its name.
        record.host.network_mode.clone_from(&network.record.name);
    }
    let mode = NetworkMode::parse(&record.host.network_mode)?;
    let netns = match &mode {
        NetworkMode::Host => None,
        NetworkMode::None => Some(engine.networks.isolated()?.netns),
        NetworkMode::Container(name) => Some(open_namespace(engine.joined_pid(name, "network")?, "net")?),
        NetworkMode::Named(_) => {
            let joined = engine.networks.join(&End::all(&record)?, &[])?;
            running.endpoints = joined.endpoints;
            engine
                .networks
                .announce(&record, &running.endpoints, &engine.config.dns);
            engine
                .networks
                .serve_names(&record.id, &running.endpoints, joined.netns.as_fd())?;
            Some(joined.netns)
        }
        NetworkMode::Bridge => {
            let attachment = engine.networks.attach(&EndpointRequest::default(), &[])?;
            running
                .endpoints
                .extend(attachment.endpoint.map(|end| ("bridge".to_owned(), end)));
            Some(attachment.netns)
        }
    };
    for end in running.endpoints.values() {
        engine.steps.connected(&running.id, &end.ifname);
    }
    let mut addresses: Vec<IpAddr> = running
        .endpoints
        .values()
        .map(|endpoint| endpoint.address)
        .collect();
    if addresses.is_empty() {
        // Without a network, too, a process finds its own name, as with BuildKit.
        addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let around = names::Surroundings {
        mode: &mode,
        addresses,
        links: Vec::new(),
        own_server: crate::network::has_names(&running.endpoints),
        gateway: engine
            .networks
            .bridge()
            .map(|bridge| IpAddr::V4(bridge.gateway())),
        dns: &engine.config.dns,
        owner: None,
    };
    let names = match &mode {
        NetworkMode::Container(name) => engine.names_of_another(name)?,
        _ => names::write(&directory, &record, &around)?,
    };
    let filter = match security.filter {
        security::Filter::Default => Some(engine.default_filter(security.capabilities)?),
        security::Filter::Unconfined | security::Filter::Custom(_) => None,
    };
    let mut sources = Vec::new();
    let (mounts, agents) = mounts::prepare(request.mounts, &directory, &mut sources)?;
    let namespaces = Namespaces {
        network: netns.is_some().then_some(None),
        pid: Some(None),
        ipc: Some(None),
        uts: true,
        cgroup: record.host.cgroupns_mode == "private",
        user: None,
    };
    let spec = oci_spec::compose(Inputs {
        record: &record,
        identity,
        security: &security,
        devices: devices::devices(&record.host)?,
        namespaces,
        ipc: Ipc::Private,
        names,
        mounts,
        init: None,
        link_environment: Vec::new(),
        cgroup: running.cgroup.clone(),
    })?;
    let mut config = ShimConfig {
        machine: None,
        bundle: None,
        id: running.id.clone(),
        spec,
        root: RootSource::Overlay(Overlay {
            lower,
            upper: Some(request.upper),
            work: Some(request.work),
            volatile: true,
        }),
        hierarchies: engine.hierarchies.clone(),
        seccomp_program: filter,
        open_stdin: false,
        stdin_once: false,
        leashed: true,
        log: None,
        exit_file: directory.join(EXIT),
        durable: false,
        fds: InheritedFds {
            limit: rlimits::descriptors_before(),
            ..InheritedFds::default()
        },
    };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().context(|| "make a stream for output")?;
    let attach = Attach {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    let fds = ShimFds {
        netns,
        sources,
        taps: Vec::new(),
        boot: None,
        keep: Vec::new(),
        attach: vec![(theirs.into(), attach)],
    };
    let shim = engine.launcher.launch(&directory, &mut config, fds)?;
    Ok(Launched {
        shim,
        output: ours,
        agents,
    })
}
