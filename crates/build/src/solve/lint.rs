//! The build checks during a build: warnings go along with its progress, and with `error=true` any fails it before
//! anything runs.
//!
//! Of the base images the checks see what the build has of them; a question about the Dockerfile alone (`--check`) sees
//! what is on this host. Nothing is pulled only to be checked.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use vessel_image::{ImageConfig, Platform};

use super::{Solve, build_args, location, platform_args, platform_text};
use crate::blocking;
use crate::builder::Builder;
use crate::check::{self, BaseImage, Options, Report};
use crate::dockerfile::{Base, Dockerfile, Globals};
use crate::error::{Error, Result};
use crate::ignore::Matcher;
use crate::progress::{Event, Progress, Warning, unique_digest};
use crate::request::{BuildRequest, NamedContext};
use crate::session::Session;
use crate::worker::{Pull, ResolveRequest};

/// Warnings that go along with a build; a check tells the rest.
const MAX_TOLD: usize = 200;
/// The longest Dockerfile that goes along with each warning, so that clients show the lines.
const MAX_TEXT: usize = 64 << 10;

/// What is known of base images, by their names and `--platform`.
#[derive(Default)]
pub(crate) struct Bases(HashMap<(String, Option<String>), BaseImage>);

impl Bases {
    /// The image of a name.
    pub fn get(&self, name: &str, platform: Option<&str>) -> Option<BaseImage> {
        self.0
            .get(&(name.to_owned(), platform.map(str::to_owned)))
            .cloned()
    }

    fn put(&mut self, name: &str, platform: Option<&str>, config: &ImageConfig, wanted: &Platform) {
        let found = Platform::of(config);
        let differs = !config.architecture.is_empty()
            && (&found.os, &found.architecture) != (&wanted.os, &wanted.architecture);
        let inner = &config.config;
        let image = BaseImage {
            env: inner.env.clone().unwrap_or_default(),
            shell: inner.shell.as_ref().is_some_and(|shell| !shell.is_empty()),
            on_build: inner.on_build.clone().unwrap_or_default(),
            mismatch: differs.then(|| (platform_text(&found), platform_text(wanted))),
        };
        self.0
            .insert((name.to_owned(), platform.map(str::to_owned)), image);
    }

    /// Those a Dockerfile names that are on this host. A Dockerfile with an error has none: the check tells of it.
    pub async fn here(
        builder: &Builder,
        request: &BuildRequest,
        session: &Arc<dyn Session>,
        progress: &Progress,
        text: &[u8],
        name: &str,
        target: &Platform,
    ) -> Self {
        let mut bases = Self::default();
        let Ok(dockerfile) = Dockerfile::parse(text, name) else {
            return bases;
        };
        let args = build_args(request);
        let platforms = platform_args(&builder.worker().platform(), target, request.target.as_deref());
        let Ok(globals) = Globals::of(&dockerfile, platforms, &args) else {
            return bases;
        };
        let is_context = |name: &str| request.contexts.contains_key(name);
        let Ok(graph) = dockerfile.graph(&globals, request.target.as_deref(), &is_context) else {
            return bases;
        };
        for node in &graph.nodes {
            let (name, reference) = match &node.base {
                Base::Image(name) => (name, name),
                Base::Context(name) => match request.contexts.get(name) {
                    Some(NamedContext::Image(reference)) => (name, reference),
                    _ => continue,
                },
                Base::Scratch | Base::Stage(_) => continue,
            };
            let wanted = match node.platform.as_deref().map(Platform::parse) {
                None => target.clone(),
                Some(Ok(platform)) => platform,
                Some(Err(_)) => continue,
            };
            let request = ResolveRequest {
                reference,
                platform: &wanted,
                pull: Pull::Never,
                session,
                progress,
                vertex: &unique_digest(name),
            };
            if let Ok(image) = builder.worker().resolve(request).await {
                bases.put(name, node.platform.as_deref(), &image.config, &wanted);
            }
        }
        bases
    }
}

impl Solve {
    /// Fails when a warning has to fail the build. To be called before anything runs: the base images are looked up.
    pub async fn refuse_warnings(self: &Arc<Self>) -> Result<()> {
        let args = build_args(&self.plan.request);
        let fatal = check::Config::of(&self.plan.dockerfile, &args).map_err(super::from_diagnostic)?;
        if !fatal.error {
            return Ok(());
        }
        for &index in &self.graph.order {
            let (node, stage) = (&self.graph.nodes[index], &self.plan.dockerfile.stages[index]);
            if let Base::Image(name) = &node.base {
                let looked_up = async {
                    let platform = self.platform_of(node.platform.as_deref())?;
                    self.image(name, &platform, &unique_digest(name)).await
                };
                looked_up.await.map_err(|error| self.at(error, &stage.span))?;
            }
        }
        let solve = Arc::clone(self);
        match blocking(move || solve.check()).await?.violation() {
            Some(violation) => Err(Error::invalid(violation)),
            None => Ok(()),
        }
    }

    /// Tells the warnings, when it is known what the base images are: the build is over, or it is refused.
    pub async fn tell_warnings(self: &Arc<Self>) {
        let solve = Arc::clone(self);
        let Ok(mut report) = blocking(move || solve.check()).await else {
            return;
        };
        if report.warnings.is_empty() {
            return;
        }
        let vertex = self.plan.opened.definition().await;
        let file = &self.plan.dockerfile.source.name;
        let text = (self.text.len() <= MAX_TEXT).then(|| Arc::clone(&self.text));
        report.warnings.retain(|warning| warning.rule.is_some());
        let more = report.warnings.len().saturating_sub(MAX_TOLD);
        report.warnings.truncate(MAX_TOLD);
        for warning in report.warnings {
            let Some(rule) = warning.rule else { continue };
            let line = warning.span.as_ref().map_or(0, |span| span.first);
            let place = if line > 0 {
                format!(" (line {line})")
            } else {
                String::new()
            };
            let event = Warning {
                vertex: vertex.clone(),
                level: 1,
                short: format!("{}: {}{place}", rule.name, warning.message),
                detail: vec![rule.description.to_owned()],
                url: Some(rule.url.to_owned()).filter(|url| !url.is_empty()),
                location: warning.span.as_ref().map(|span| location(file, span)),
                text: text.clone(),
            };
            self.plan.progress.send(Event::Warning(event)).await;
        }
        if more > 0 {
            let event = Warning {
                vertex,
                level: 1,
                short: format!("{more} more warnings: a check of the Dockerfile (--check) tells them"),
                detail: Vec::new(),
                url: None,
                location: None,
                text: None,
            };
            self.plan.progress.send(Event::Warning(event)).await;
        }
    }

    /// What the checks say of the stages that are built.
    fn check(&self) -> Result<Report> {
        let (plan, request) = (&self.plan, &self.plan.request);
        let args = build_args(request);
        let wanted = request.target.as_deref();
        let named = wanted.or_else(|| plan.dockerfile.stages.get(self.graph.target)?.name.as_deref());
        let matcher = plan.opened.known_ignored().map(Matcher::new);
        let matcher = matcher
            .transpose()
            .map_err(|error| Error::invalid(format!(".dockerignore: {error}")))?;
        let bases = self.bases();
        let target = self.graph.target.to_string();
        let options = Options {
            build_args: &args,
            platform_args: &platform_args(&plan.builder.worker().platform(), &plan.platform, named),
            target: Some(wanted.unwrap_or(&target)),
            ignore: matcher.as_ref(),
            is_context: &|name| request.contexts.contains_key(name),
            base: &|name, platform| bases.get(name, platform),
        };
        Ok(check::check(&plan.dockerfile, &options))
    }

    /// The base images the build has so far.
    fn bases(&self) -> Bases {
        let mut bases = Bases::default();
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        for &index in &self.graph.order {
            let node = &self.graph.nodes[index];
            let (Base::Image(name) | Base::Context(name)) = &node.base else {
                continue;
            };
            let Ok(platform) = self.platform_of(node.platform.as_deref()) else {
                continue;
            };
            let cell = images.get(&(name.clone(), platform_text(&platform)));
            if let Some(Ok(state)) = cell.and_then(|cell| cell.get()) {
                bases.put(name, node.platform.as_deref(), &state.config, &platform);
            }
        }
        bases
    }

    /// What a stage is built for, by its `--platform`.
    fn platform_of(&self, stated: Option<&str>) -> Result<Platform> {
        match stated {
            Some(text) => Ok(Platform::parse(text)?),
            None => Ok(self.plan.platform.clone()),
        }
    }
}
