//! One build for one platform: the stages that are needed, each a task, and what they give.
//!
//! A stage is evaluated by whoever needs it first; all that are needed begin at once. All of a build runs in the future
//! of its caller: dropped, it is cancelled, and what blocks meanwhile ends at its next look at [`Cancelled`].

pub(crate) mod caches;
mod copy;
mod dispatch;
mod elsewhere;
mod exec;
mod files;
mod git;
pub(crate) mod lint;
pub(crate) mod mounts;
pub(crate) mod output;
pub(crate) mod remote;
mod squash;
mod state;
mod step;
mod stubs;
mod vertex;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, try_join_all};
use tokio::sync::OnceCell;
use vessel_image::{Digest, Platform};

use crate::builder::Builder;
use crate::dockerfile::{
    Base, Command, Diagnostic, Dockerfile, Globals, Graph, Instruction, Origin, PLATFORM_ARGS, Span, charge,
    parse_trigger,
};
use crate::error::{Error, ErrorKind, Location, Result};
use crate::progress::Progress;
use crate::request::{BuildRequest, NamedContext};
use crate::session::Session;
use crate::worker::{Pull, ResolveRequest};
pub(crate) use files::{Files, Opened};
use state::Held;
pub(crate) use state::State;
pub(crate) use vertex::{Pending, as_part, as_vertex};

/// Whether a build was given up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancelled(Arc<AtomicBool>);

impl Cancelled {
    /// Fails when it was.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Cancelled, "the build was cancelled"));
        }
        Ok(())
    }

    /// What is set when it was, for code that looks for itself.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A failure that was recorded in [`Solve::failure`] already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed;

/// A result that is made once and shared.
type Shared<T> = OnceCell<Result<Arc<T>, Failed>>;

/// What a [`Solve`] is made of.
pub(crate) struct Plan {
    pub builder: Arc<Builder>,
    pub request: Arc<BuildRequest>,
    pub session: Arc<dyn Session>,
    pub progress: Progress,
    pub cancelled: Cancelled,
    pub opened: Arc<Opened>,
    pub dockerfile: Arc<Dockerfile>,
    /// What is built for.
    pub platform: Platform,
    /// Whether it is one of several, so that names of vertices say which.
    pub several: bool,
    /// The steps this build has made, for all its platforms.
    pub made: Arc<step::Own>,
    /// The cache mounts this build has begun anew, for all its platforms.
    pub anew: Arc<mounts::Anew>,
    /// Caches of elsewhere.
    pub imports: Arc<crate::cache::import::Imports>,
    /// Whether what they promise is believed and fetched when it is needed.
    pub lazy: bool,
}

/// Images that are wanted, by name and platform.
type Images = HashMap<(String, String), Arc<Shared<State>>>;

/// A build for one platform.
pub(crate) struct Solve {
    pub plan: Plan,
    text: Arc<[u8]>,
    globals: Globals,
    graph: Graph,
    pub epoch: Option<i64>,
    stages: Vec<Shared<State>>,
    images: Mutex<Images>,
    failure: Mutex<Option<Error>>,
    steps: AtomicUsize,
    total: usize,
    elsewhere: elsewhere::Elsewhere,
    /// What the stages take with them, in bytes.
    charged: Mutex<usize>,
}

/// How a platform is written.
pub(crate) fn platform_text(platform: &Platform) -> String {
    let text = format!("{}/{}", platform.os, platform.architecture);
    match platform.variant.as_deref() {
        None | Some("") => text,
        Some(variant) => format!("{text}/{variant}"),
    }
}

/// The platform arguments.
pub(crate) fn platform_args(
    build: &Platform,
    target: &Platform,
    stage: Option<&str>,
) -> Vec<(String, String)> {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let values = [
        platform_text(build),
        build.os.clone(),
        text(&build.os_version),
        build.architecture.clone(),
        text(&build.variant),
        platform_text(target),
        target.os.clone(),
        text(&target.os_version),
        target.architecture.clone(),
        text(&target.variant),
        stage.unwrap_or("default").to_owned(),
    ];
    let names = PLATFORM_ARGS.iter().map(|name| (*name).to_owned());
    names.zip(values).collect()
}

/// The build arguments that have a value.
pub(crate) fn build_args(request: &BuildRequest) -> BTreeMap<String, String> {
    let args = request.args.iter();
    args.filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
        .collect()
}

/// An error in the Dockerfile's text.
pub(crate) fn from_diagnostic(diagnostic: Diagnostic) -> Error {
    let message = match &diagnostic.help {
        Some(help) => format!("{}. {help}", diagnostic.message),
        None => diagnostic.message.clone(),
    };
    let error = Error::new(ErrorKind::Invalid, message);
    let (Some(source), Some(span)) = (&diagnostic.source, &diagnostic.span) else {
        return error;
    };
    let mut place = location(&source.name, span);
    if let Some(word) = &diagnostic.word {
        let number = source.line_of(word.start);
        let line = source.line_range(number).unwrap_or_default();
        let column = |at: usize| u32::try_from(at.saturating_sub(line.start)).unwrap_or_default();
        (place.start_line, place.end_line) = (number, number);
        place.columns = Some((column(word.start), column(word.end)));
    }
    error.at(place, source.text.as_bytes().into())
}

fn location(file: &str, span: &Span) -> Location {
    Location {
        file: file.to_owned(),
        start_line: span.first,
        end_line: span.last,
        columns: None,
    }
}

/// Whether an instruction counts among `[stage 2/5]`.
fn makes_layer(instruction: &Instruction) -> bool {
    matches!(
        instruction.command,
        Command::Run(_) | Command::Copy(_) | Command::Add(_) | Command::Workdir(_)
    )
}

fn layers_of(instructions: &[Instruction]) -> usize {
    instructions.iter().filter(|one| makes_layer(one)).count()
}

impl Solve {
    pub fn new(plan: Plan) -> Result<Arc<Self>> {
        let (dockerfile, request) = (&plan.dockerfile, &plan.request);
        let build_platform = plan.builder.worker().platform();
        let args = build_args(request);
        let wanted = request.target.as_deref();
        let target = dockerfile.target(wanted).map_err(from_diagnostic)?;
        let named = wanted.or_else(|| dockerfile.stages.get(target)?.name.as_deref());
        let platform_args = platform_args(&build_platform, &plan.platform, named);
        let globals = Globals::of(dockerfile, platform_args, &args).map_err(from_diagnostic)?;
        let is_context = |name: &str| request.contexts.contains_key(name);
        let graph = dockerfile
            .graph(&globals, wanted, &is_context)
            .map_err(from_diagnostic)?;
        let stated = args.get("SOURCE_DATE_EPOCH").map(String::as_str);
        let epoch = match stated.or_else(|| globals.get("SOURCE_DATE_EPOCH")) {
            _ if request.source_date_epoch.is_some() => request.source_date_epoch,
            None | Some("") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                Error::invalid(format!(
                    "invalid SOURCE_DATE_EPOCH: {text}: seconds since 1970 are expected"
                ))
            })?),
        };
        let count = |&index: &usize| {
            1 + graph.nodes[index].triggers.len() + dockerfile.stages[index].instructions.len()
        };
        let total = graph.order.iter().map(count).sum();
        Ok(Arc::new(Self {
            text: dockerfile.source.text.as_bytes().into(),
            stages: dockerfile.stages.iter().map(|_| OnceCell::new()).collect(),
            images: Mutex::default(),
            failure: Mutex::default(),
            steps: AtomicUsize::new(0),
            total,
            elsewhere: elsewhere::Elsewhere::default(),
            charged: Mutex::default(),
            globals,
            graph,
            epoch,
            plan,
        }))
    }

    /// Builds the target.
    pub async fn run(self: &Arc<Self>) -> Result<State> {
        let stages = self.graph.order.iter().map(|&index| self.stage(index));
        let states = match try_join_all(stages).await {
            Ok(states) => states,
            Err(Failed) => return Err(self.take_failure()),
        };
        // The target is the last.
        let target = states
            .last()
            .ok_or_else(|| Error::invalid("there is no stage to build"))?;
        let mut state = State::clone(target);
        let request = &self.plan.request;
        if !request.labels.is_empty() {
            let labels = state.config.config.labels.get_or_insert_default();
            labels.extend(request.labels.clone());
        }
        if !request.platforms.is_empty() || state.config.architecture.is_empty() {
            let platform = &self.plan.platform;
            state.config.architecture.clone_from(&platform.architecture);
            state.config.os.clone_from(&platform.os);
            state.config.variant.clone_from(&platform.variant);
        }
        state.finish(self.epoch);
        Ok(state)
    }

    /// Counts what a stage takes with it, against the bound for all.
    fn charge(&self, bytes: usize) -> Result<()> {
        let mut charged = self.charged.lock().unwrap_or_else(PoisonError::into_inner);
        charge(&mut charged, bytes).map_err(Error::invalid)
    }

    /// Records a failure; the first is what is told.
    fn fail(&self, error: Error) -> Failed {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
        Failed
    }

    fn take_failure(&self) -> Error {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let cancelled = || Error::new(ErrorKind::Cancelled, "the build was cancelled");
        failure.take().unwrap_or_else(cancelled)
    }

    /// A stage's result.
    fn stage(self: &Arc<Self>, index: usize) -> BoxFuture<'_, Result<Arc<State>, Failed>> {
        Box::pin(async move {
            let cell = self.stages.get(index).ok_or(Failed)?;
            let make = || async {
                let made = Box::pin(self.evaluate(index)).await;
                made.map(Arc::new).map_err(|error| self.fail(error))
            };
            cell.get_or_init(make).await.clone()
        })
    }

    /// A stage's result, for a step of another stage.
    async fn stage_for(self: &Arc<Self>, index: usize) -> Result<Arc<State>> {
        self.stage(index)
            .await
            .map_err(|Failed| Error::new(ErrorKind::Cancelled, "a stage that this one needs has failed"))
    }

    /// Waits for the stages that `--from` and the like name, so that a step does not count as begun before it can. Their
    /// failures are told when the step asks for them.
    async fn wait_for<'a>(self: &Arc<Self>, names: impl IntoIterator<Item = &'a str>, numbers: bool) {
        for name in names {
            if let Ok(Origin::Stage(index)) = self.plan.dockerfile.origin(name, numbers) {
                let _told_later = self.stage(index).await;
            }
        }
    }

    /// Says where in the Dockerfile an error is.
    fn at(&self, error: Error, span: &Span) -> Error {
        let place = location(&self.plan.dockerfile.source.name, span);
        error.at(place, Arc::clone(&self.text))
    }

    async fn evaluate(self: &Arc<Self>, index: usize) -> Result<State> {
        let (stage, node) = (&self.plan.dockerfile.stages[index], &self.graph.nodes[index]);
        let platform = match &node.platform {
            Some(text) => Platform::parse(text).map_err(|error| self.at(error.into(), &stage.span))?,
            None => self.plan.platform.clone(),
        };
        let label = match &stage.name {
            Some(name) => name.clone(),
            None if self.plan.dockerfile.stages.len() == 1 => String::new(),
            None => format!("stage-{index}"),
        };
        let mut triggers = Vec::new();
        let mut line = dispatch::Line {
            label,
            number: 0,
            total: layers_of(&stage.instructions) + layers_of(&node.triggers),
            previous: None,
            no_cache: self.plan.request.no_cache.covers(stage.name.as_deref(), index),
            platform: self.plan.several.then(|| platform_text(&platform)),
        };
        let mut state = match &node.base {
            Base::Scratch => {
                self.steps.fetch_add(1, Ordering::Relaxed);
                State::scratch(&platform)
            }
            Base::Stage(base) => {
                self.steps.fetch_add(1, Ordering::Relaxed);
                let base = self.stage_for(*base).await?;
                self.charge(base.bytes())
                    .map_err(|error| self.at(error, &stage.span))?;
                let mut state = State::clone(&base);
                state.config.config.on_build = None;
                triggers.clone_from(&node.triggers);
                state
            }
            Base::Image(name) | Base::Context(name) => {
                line.total += 1;
                let place = Some((stage.original.as_str(), &stage.span));
                let vertex = self.line_vertex(&mut line, &format!("FROM {name}"), place);
                self.tell(vertex.started()).await;
                let based = self.image(name, &platform, &vertex.digest).await;
                let based = based.map_err(|error| self.at(error, &stage.span));
                line.previous = Some(vertex.digest.clone());
                let top = |state: &Arc<State>| (true, state.top().map(|chain| chain.0.clone()));
                let mut state = State::clone(&*self.told(vertex, based, top).await?);
                for text in state.config.config.on_build.take().unwrap_or_default() {
                    let trigger = parse_trigger(&text).map_err(from_diagnostic);
                    let trigger = trigger.map_err(|error| self.at(error, &stage.span))?;
                    // The graph knows nothing of these: a stage that is not done before this one would be waited for
                    // for ever.
                    let origins = self.plan.dockerfile.origins(&trigger.command);
                    let origins = origins.map_err(|(message, _)| {
                        self.at(Error::invalid(format!("ONBUILD {text}: {message}")), &stage.span)
                    })?;
                    let later = |origin: &Origin| matches!(origin, Origin::Stage(needed) if *needed >= index);
                    if let Some(Origin::Stage(needed)) = origins.into_iter().find(later) {
                        let error = Error::invalid(format!(
                            "the base image {name} has the trigger ONBUILD {text}, which takes files from the stage {}: \
                             that has to be defined before the stage that is FROM {name}",
                            self.plan.dockerfile.label(needed)
                        ));
                        return Err(self.at(error, &stage.span));
                    }
                    triggers.push(Instruction {
                        span: stage.span.clone(),
                        ..trigger
                    });
                }
                line.total += layers_of(&triggers);
                state
            }
        };
        if matches!(node.base, Base::Context(_)) {
            return Ok(state);
        }
        let id = match &node.base {
            Base::Stage(_) if self.plan.request.squash => {
                let mut base = state.clone();
                base.finish(self.epoch);
                Some(Digest::sha256(&base.config.to_raw()?))
            }
            _ => state.image.clone(),
        };
        state.from = state::From {
            layers: state.chain.len(),
            steps: state.config.history.len(),
            id,
        };
        state.begin().map_err(|error| self.at(error, &stage.span))?;
        for instruction in triggers.iter().chain(&stage.instructions) {
            Box::pin(self.dispatch(&mut state, &mut line, instruction))
                .await
                .map_err(|error| self.at(error, &instruction.span))?;
        }
        Ok(state)
    }

    /// The image of a name, or the named context that stands for it.
    async fn image(self: &Arc<Self>, name: &str, platform: &Platform, vertex: &Digest) -> Result<Arc<State>> {
        if name == "scratch" {
            return Ok(Arc::new(State::scratch(platform)));
        }
        let cell = {
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (name.to_owned(), platform_text(platform));
            Arc::clone(images.entry(key).or_default())
        };
        let make = || async {
            let made = Box::pin(self.resolve(name, platform, vertex)).await;
            made.map(Arc::new).map_err(|error| self.fail(error))
        };
        let made = cell.get_or_init(make).await.clone();
        made.map_err(|Failed| self.take_failure())
    }

    async fn resolve(self: &Arc<Self>, name: &str, platform: &Platform, vertex: &Digest) -> Result<State> {
        let reference = match self.named_context(name) {
            Some(NamedContext::Image(reference)) => reference.clone(),
            Some(NamedContext::Files(source)) => return self.state_of_files(source, platform).await,
            None => name.to_owned(),
        };
        if reference == "scratch" {
            return Ok(State::scratch(platform));
        }
        let request = ResolveRequest {
            reference: &reference,
            platform,
            pull: if self.plan.request.pull {
                Pull::Always
            } else {
                Pull::Missing
            },
            session: &self.plan.session,
            progress: &self.plan.progress,
            vertex,
        };
        let image = self.plan.builder.worker().resolve(request).await;
        Ok(State::of_image(image.map_err(|error| error.context(name))?))
    }

    /// A named context, by its name as written or as a full reference.
    fn named_context(&self, name: &str) -> Option<&NamedContext> {
        let contexts = &self.plan.request.contexts;
        let full = |name: &str| {
            let reference = vessel_image::Reference::parse(name).ok()?;
            Some(reference.with_default_tag().familiar())
        };
        contexts.get(name).or_else(|| {
            let wanted = full(name)?;
            let mut others = contexts.iter();
            let found = others.find(|(known, _)| full(known).as_ref() == Some(&wanted));
            found.map(|(_, context)| context)
        })
    }

    /// What keeps a layer while the build runs.
    fn hold(&self, chain: &vessel_image::ChainId, lease: vessel_image::Lease) -> Held {
        Held {
            _lease: Arc::new(lease),
            _busy: Some(self.plan.builder.cache().hold(chain)),
        }
    }
}
