//! `RUN`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;

use super::Solve;
use super::dispatch::Line;
use super::mounts::Asked;
use super::state::State;
use super::step::{Cached, Workspace, digest, key};
use super::stubs::Stubs;
use crate::blocking;
use crate::dockerfile::{Instruction, Network as AskedNetwork, Run, Script, Security, is_proxy_arg};
use crate::error::{Error, ErrorKind, FailedProcess, Result};
use crate::request::{Entitlement, Network};
use crate::worker::RunRequest;

/// The host name of processes, as in BuildKit.
const HOSTNAME: &str = "buildkitsandbox";

/// The build argument that names another one.
const HOSTNAME_ARG: &str = "BUILDKIT_SANDBOX_HOSTNAME";

/// All that decides what a process does.
#[derive(Serialize)]
struct Parts<'a> {
    root: Option<String>,
    args: &'a [String],
    env: &'a [String],
    cwd: &'a str,
    user: &'a str,
    network: u8,
    insecure: bool,
    mounts: &'a [(String, bool, String)],
    hosts: Vec<String>,
    hostname: &'a str,
    platform: String,
    epoch: Option<i64>,
}

impl Solve {
    pub(super) async fn run_step(
        self: &Arc<Self>,
        state: &mut State,
        line: &mut Line,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<()> {
        let mut inline = None;
        let args = match run.script() {
            Script::Exec(words) => words,
            Script::Shell(text) => state.with_shell(text),
            Script::File { name, content } => {
                let path = format!("/dev/pipes/{name}");
                inline = Some((name, content));
                vec![path]
            }
        };
        let sources: Vec<String> = run.mount_sources().collect();
        self.wait_for(sources.iter().map(String::as_str), false).await;
        let place = Some((instruction.original.as_str(), &instruction.span));
        let shown = uppercase_keyword(&instruction.original);
        let vertex = self.line_vertex(line, &shown, place);
        self.tell(vertex.started()).await;
        let prepared = self
            .prepare_run(state, run, &args, inline.as_ref(), line.no_cache)
            .await;
        let (request, mounts, cache_key) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.told(vertex, Err(error), |&()| (false, None)).await,
        };
        let cached = Cached {
            key: cache_key,
            aliases: Vec::new(),
            description: shown,
            link: false,
            ignore: line.no_cache,
        };
        let history = history(state, &args);
        self.charge(history.len())?;
        let solve = Arc::clone(self);
        let (layers, name) = (state.chain.clone(), args.join(" "));
        let digest = vertex.digest.clone();
        let make = |workspace: Workspace| async move {
            let workspace = Arc::new(workspace);
            let mut request = request;
            request.layers = layers;
            request.upper.clone_from(&workspace.upper);
            request.work.clone_from(&workspace.work);
            request.vertex = digest;
            let mut mounts = mounts;
            mounts.sort_by(|one, other| one.order().cmp(&other.order()));
            let (mut ready, mut locked) = (Vec::new(), HashMap::new());
            for asked in mounts {
                let index = asked.index;
                let taken = asked.take(&solve, &mut locked).await?;
                ready.extend(taken.map(|ready| (index, ready)));
            }
            ready.sort_by_key(|(index, _)| *index);
            let mut keeps = Vec::new();
            for (_, ready) in ready {
                if let Some((name, value)) = ready.variable {
                    let same = |pair: &String| pair.split('=').next() == Some(name.as_str());
                    request.env.retain(|pair| !same(pair));
                    request.env.push(format!("{name}={value}"));
                }
                request.mounts.extend(ready.mount);
                keeps.push(ready.keep);
            }
            drop(locked);
            let keeps = Arc::new(keeps);
            request.keep = Some(Arc::new((Arc::clone(&workspace), Arc::clone(&keeps))));
            // Not before the mounts: one that another build has to itself would be waited for in others' place.
            let permit = solve.plan.builder.permit().await?;
            let targets: Vec<String> = request.mounts.iter().map(|mount| mount.target.clone()).collect();
            let (worker, layers) = (Arc::clone(solve.plan.builder.worker()), request.layers.clone());
            let started = SystemTime::now();
            let exit = solve.plan.builder.worker().run(request).await;
            let upper = workspace.upper.clone();
            blocking(move || {
                let etc = upper.join("etc").symlink_metadata().is_ok_and(|etc| etc.is_dir());
                if etc || !targets.is_empty() {
                    let stubs = Stubs::new(worker.mount(&layers, None)?, targets);
                    stubs.clean(&upper)?;
                    stubs.uncover(&upper, started)?;
                }
                for cache in keeps.iter().filter_map(|keep| keep.cache.as_ref()) {
                    cache.count();
                }
                Ok(())
            })
            .await?;
            let exit = exit?;
            if exit.code != 0 {
                let why = if exit.oom_killed {
                    " (the kernel killed it for want of memory)"
                } else {
                    ""
                };
                return Err(Error::new(
                    ErrorKind::Process,
                    format!(
                        "process \"{name}\" did not complete successfully: exit code: {}{why}",
                        exit.code
                    ),
                )
                .of_process(FailedProcess {
                    command: name,
                    code: exit.code,
                }));
            }
            let workspace = Arc::try_unwrap(workspace)
                .map_err(|_| Error::new(ErrorKind::System, "the files of a step are still in use"))?;
            Ok((workspace, permit))
        };
        let made = self.layer(state, line, vertex, cached, make).await?;
        state.history(history, Some(made), self.epoch);
        Ok(())
    }

    /// What to run, with which mounts, and the step's key.
    async fn prepare_run(
        self: &Arc<Self>,
        state: &State,
        run: &Run,
        args: &[String],
        inline: Option<&(String, String)>,
        anew: bool,
    ) -> Result<(RunRequest, Vec<Asked>, String)> {
        let request = &self.plan.request;
        let worker = self.plan.builder.worker();
        if !worker.can_run(&state.platform) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "programs for {} do not run on this host ({}): only FROM, COPY, ADD and metadata work for that platform; \
                     use FROM --platform=$BUILDPLATFORM for stages that run programs, or enter an emulator with binfmt_misc (flag F)",
                    super::platform_text(&state.platform),
                    super::platform_text(&worker.platform())
                ),
            ));
        }
        let insecure = run.security == Security::Insecure;
        let network = match run.network {
            AskedNetwork::Default => request.network.clone(),
            AskedNetwork::None => Network::None,
            AskedNetwork::Host => Network::Host,
        };
        for (needed, entitlement) in [
            (insecure, Entitlement::SecurityInsecure),
            (network == Network::Host, Entitlement::NetworkHost),
        ] {
            if needed && !request.entitlements.contains(&entitlement) {
                let name = entitlement.name();
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!("{name} is not allowed: build with --allow {name} to let this step have it"),
                ));
            }
        }
        if let Some(device) = run.devices.iter().find(|device| device.required) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "RUN --device={} cannot be had: this host has no CDI devices",
                    device.name
                ),
            ));
        }
        let lexer = self.plan.dockerfile.lexer();
        let mut expand = |word: &str| {
            lexer
                .word(word, &mut |name| state.get(name))
                .map(|expanded| expanded.text)
                .map_err(|error| error.to_string())
        };
        let mut asked = Vec::new();
        let mut keys: Vec<(String, bool, String)> = Vec::new();
        if let Some((name, content)) = inline {
            keys.push(("/dev/pipes".to_owned(), true, digest(content.as_bytes())));
            asked.push(Asked::script(name, content.clone()));
        }
        for mount in run.mounts(&mut expand).map_err(Error::invalid)? {
            let index = asked.len();
            let (one, key) = self.plan_mount(state, &mount, index, anew).await?;
            keys.push((one.target.clone(), one.read_only, key));
            asked.push(one);
        }
        let named = super::build_args(request)
            .remove(HOSTNAME_ARG)
            .filter(|name| !name.is_empty());
        let hostname = named
            .or(request.hostname.clone())
            .unwrap_or_else(|| HOSTNAME.to_owned());
        let env: Vec<String> = state
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let parts = Parts {
            root: state.top().map(ToString::to_string),
            args,
            env: &env,
            cwd: state.workdir(),
            user: state.user(),
            network: network.key(),
            insecure,
            mounts: &keys,
            hosts: request
                .extra_hosts
                .iter()
                .map(|(name, address)| format!("{name}:{address}"))
                .collect(),
            hostname: &hostname,
            platform: super::platform_text(&state.platform),
            epoch: self.epoch,
        };
        let cache_key = key("run", &parts)?;
        let mut env_of_process = env.clone();
        // Proxies are known to the process and to nothing else.
        let args_of_build = super::build_args(request);
        let proxies = || args_of_build.iter().filter(|(name, _)| is_proxy_arg(name));
        let spelled = proxies().map(|(name, value)| (name.clone(), value));
        // Programs look for one spelling or the other.
        let lower = proxies().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let upper = proxies().map(|(name, value)| (name.to_ascii_uppercase(), value));
        let mut proxied = BTreeSet::new();
        for (name, value) in spelled.chain(lower).chain(upper) {
            if state.get(&name).is_none() && proxied.insert(name.clone()) {
                env_of_process.push(format!("{name}={value}"));
            }
        }
        let process = RunRequest {
            layers: Vec::new(),
            upper: Default::default(),
            work: Default::default(),
            args: args.to_vec(),
            env: env_of_process,
            cwd: state.workdir().to_owned(),
            user: state.user().to_owned(),
            network,
            insecure,
            mounts: Vec::new(),
            extra_hosts: request.extra_hosts.clone(),
            hostname,
            shm_size: request.shm_size,
            ulimits: request.ulimits.clone(),
            resources: request.resources.clone(),
            cgroup_parent: request.cgroup_parent.clone(),
            progress: self.plan.progress.clone(),
            vertex: crate::progress::unique_digest("run"),
            keep: None,
        };
        Ok((process, asked, cache_key))
    }
}

/// An instruction's text with its keyword in capitals.
pub(super) fn uppercase_keyword(text: &str) -> String {
    match text.split_once(char::is_whitespace) {
        Some((keyword, rest)) => format!("{} {}", keyword.to_uppercase(), rest.trim_start()),
        None => text.to_uppercase(),
    }
}

/// The history of a `RUN`: the build arguments in effect, then the command.
fn history(state: &State, args: &[String]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut known: Vec<&str> = Vec::new();
    for (name, value) in &state.args {
        let value = state.get(name).or_else(|| value.clone()).unwrap_or_default();
        let pair = format!("{name}={value}");
        match known.iter().position(|seen| seen == name) {
            Some(at) => words[at] = pair,
            None => {
                known.push(name);
                words.push(pair);
            }
        }
    }
    if !words.is_empty() {
        words.insert(0, format!("|{}", words.len()));
    }
    words.extend(args.iter().cloned());
    format!("RUN {} # buildkit", words.join(" "))
}
