//! How a project's images are pulled and built.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use vessel_client::build::{Build, BuildOutput, SecretSource, Sink};
use vessel_client::{Client, ImageCreateOptions};
use vessel_compose::project::{Project, Service};
use vessel_compose::{Error, Result, act};

use crate::commands::build::credentials;
use crate::commands::build_context::{Context as BuildContext, Dockerfile};
use crate::commands::build_options;
use crate::commands::pull::split_reference;
use crate::credentials::header_for;
use crate::failure::Failure;
use crate::output::build_progress::Display;

/// Pulls and builds with a daemon.
pub struct ImageSource<'a> {
    client: &'a Client,
    progress: String,
}

/// What the command line adds to what a service says of its build.
#[derive(Debug, Clone, Default)]
pub struct BuildExtra {
    /// `NAME=VALUE`, or `NAME`.
    pub arguments: Vec<String>,
    /// Take nothing from the cache.
    pub no_cache: bool,
    /// Look images up in their registries.
    pub pull: bool,
    /// Push what was built.
    pub push: bool,
    /// Show nothing.
    pub quiet: bool,
    /// Sockets of SSH agents.
    pub ssh: Vec<String>,
}

impl<'a> ImageSource<'a> {
    /// Progress of builds is of the kind that `--progress` says.
    pub fn new(client: &'a Client, progress: &str) -> Self {
        let progress = match progress {
            "json" => "rawjson",
            other => other,
        };
        Self {
            client,
            progress: progress.to_owned(),
        }
    }

    /// Builds the image of a service.
    pub fn build_one(
        &self,
        project: &Project,
        service: &Service,
        extra: &BuildExtra,
    ) -> crate::failure::Result {
        let mut build = prepared(project, service, extra)?;
        let Some(how) = &service.build else { return Ok(()) };
        let inline;
        let dockerfile = match (how.dockerfile_inline.as_str(), how.dockerfile.as_str()) {
            ("", "" | "Dockerfile") => Dockerfile::Default,
            ("", path) if super::super::build_context::is_remote(&how.context) => {
                Dockerfile::Path(Path::new(path))
            }
            ("", path) => {
                inline = Path::new(&how.context).join(path);
                Dockerfile::Path(&inline)
            }
            (text, _) => {
                let file = InlineFile::new(text)?;
                let path = file.0.clone();
                let made = BuildContext::new(&how.context, Dockerfile::Path(&path))?.offer(&mut build)?;
                let result = self.solve(build, extra);
                drop((made, file));
                return result;
            }
        };
        let _made = BuildContext::new(&how.context, dockerfile)?.offer(&mut build)?;
        self.solve(build, extra)
    }

    fn solve(&self, build: Build, extra: &BuildExtra) -> crate::failure::Result {
        let mut display = Display::new(if extra.quiet { "quiet" } else { &self.progress })?;
        let answer = self.client.build(build, &mut |told| display.show(told));
        display.finish();
        answer.map(drop).map_err(|error| match error {
            vessel_client::Error::Build(failure) => crate::commands::build::failed(&failure),
            other => other.into(),
        })
    }
}

/// A Dockerfile that was written in a Compose file, as a file while it is needed.
struct InlineFile(std::path::PathBuf);

impl InlineFile {
    fn new(text: &str) -> crate::failure::Result<Self> {
        let name = format!("vessel-compose-{}-{:x}.Dockerfile", std::process::id(), rand());
        let path = std::env::temp_dir().join(name);
        let write = || -> std::io::Result<()> {
            use std::io::Write;
            use std::os::unix::fs::OpenOptionsExt;
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(text.as_bytes())
        };
        write()?;
        Ok(Self(path))
    }
}

impl Drop for InlineFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn rand() -> u64 {
    let mut bytes = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

/// A build as a service says, without its context.
fn prepared(project: &Project, service: &Service, extra: &BuildExtra) -> crate::failure::Result<Build> {
    let mut build = Build {
        credentials: Some(Arc::new(credentials)),
        ..Build::default()
    };
    let Some(how) = &service.build else {
        return Ok(build);
    };
    let attributes = &mut build.attributes;
    let mut set = |name: &str, value: String| {
        if !value.is_empty() {
            attributes.insert(name.to_owned(), value);
        }
    };
    set("target", how.target.clone());
    let platforms = if how.platforms.is_empty() {
        service.platform.clone()
    } else {
        how.platforms.join(",")
    };
    set("platform", platforms);
    if how.pull || extra.pull {
        set("image-resolve-mode", "pull".to_owned());
    }
    if let Some(size) = &how.shm_size {
        set("shm-size", size.clone());
    }
    if !matches!(how.network.as_str(), "" | "default") {
        set("force-network-mode", how.network.clone());
    }
    let hosts: Vec<String> = how.extra_hosts.clone();
    if let Some(hosts) = build_options::hosts(&hosts)? {
        set("add-hosts", hosts);
    }
    let ulimits: Vec<String> = how
        .ulimits
        .iter()
        .map(|(name, limit)| match limit {
            vessel_compose::project::Limit::One(both) => format!("{name}={both}"),
            vessel_compose::project::Limit::Two { soft, hard } => format!("{name}={soft}:{hard}"),
        })
        .collect();
    set("ulimit", ulimits.join(","));
    if how.no_cache || extra.no_cache {
        attributes.insert("no-cache".to_owned(), String::new());
    } else if !how.no_cache_filter.is_empty() {
        attributes.insert("no-cache".to_owned(), how.no_cache_filter.join(","));
    }
    for (name, value) in &how.args {
        attributes.insert(format!("build-arg:{name}"), value.clone().unwrap_or_default());
    }
    for (name, value) in build_options::arguments(&extra.arguments) {
        attributes.insert(format!("build-arg:{name}"), value);
    }
    for (name, value) in &how.labels {
        attributes.insert(format!("label:{name}"), value.clone().unwrap_or_default());
    }
    for (name, value) in [
        (act::labels::PROJECT, &project.name),
        (act::labels::SERVICE, &service.name),
        (act::labels::VERSION, &act::labels::OUR_VERSION.to_owned()),
    ] {
        attributes.insert(format!("label:{name}"), value.clone());
    }
    build.entitlements.clone_from(&how.entitlements);
    if how.network == "host" {
        build.entitlements.push("network.host".to_owned());
    }
    if how.privileged {
        build.entitlements.push("security.insecure".to_owned());
    }
    let mut names = vec![service.image_name(&project.name)];
    names.extend(how.tags.iter().cloned());
    let mut attributes: BTreeMap<String, String> = [("name".to_owned(), names.join(","))].into();
    let kind = if extra.push { "image" } else { "moby" };
    if extra.push {
        attributes.insert("push".to_owned(), "true".to_owned());
    }
    build.outputs.push(BuildOutput {
        kind: kind.to_owned(),
        attributes,
        sink: Sink::None,
    });
    for mount in &how.secrets {
        let Some(secret) = project.secrets.get(&mount.source) else {
            continue;
        };
        let id = if mount.target.is_empty() {
            mount.source.clone()
        } else {
            mount.target.clone()
        };
        let id = id.trim_start_matches("/run/secrets/").to_owned();
        let source = if secret.file.is_empty() {
            SecretSource::Value(secret.value.clone().unwrap_or_default().into_bytes())
        } else {
            SecretSource::File(secret.file.clone().into())
        };
        build.secrets.insert(id, source);
    }
    let mut agents: Vec<String> = how
        .ssh
        .iter()
        .map(|(id, path)| match path {
            Some(path) => format!("{id}={path}"),
            None => id.clone(),
        })
        .collect();
    agents.extend(extra.ssh.iter().cloned());
    build.agents = build_options::agents(&agents)?;
    build_options::cache_to(&how.cache_to, &mut build)?;
    build_options::cache_from(&how.cache_from, &mut build)?;
    let contexts: Vec<String> = how
        .additional_contexts
        .iter()
        .map(|(name, context)| {
            let context = context.clone().unwrap_or_default();
            // Another service's context is the image that was made of it before.
            let context = match context.strip_prefix("service:") {
                Some(other) => {
                    let image = project
                        .service(other)
                        .map(|service| service.image_name(&project.name));
                    format!("docker-image://{}", image.unwrap_or_default())
                }
                None => context,
            };
            format!("{name}={context}")
        })
        .collect();
    build_options::contexts(&contexts, &mut build)?;
    Ok(build)
}

fn told(failure: Failure) -> Error {
    Error::Project(failure.message.unwrap_or_else(|| "it failed".to_owned()))
}

impl act::Images for ImageSource<'_> {
    fn pull(&self, image: &str, platform: &str) -> Result<()> {
        let (repository, tag) = split_reference(image);
        let options = ImageCreateOptions {
            from_image: repository.to_owned(),
            tag: tag.unwrap_or("latest").to_owned(),
            platform: platform.to_owned(),
            credentials: header_for(repository).map_err(told)?,
        };
        let fail = |source| Error::Engine {
            doing: format!("cannot pull {image}"),
            source,
        };
        let messages = self.client.image_pull(&options).map_err(fail)?;
        crate::output::progress::quietly(messages)
            .map_err(told)
            .map_err(|error| Error::Project(format!("cannot pull {image}: {error}")))
    }

    fn build(&self, project: &Project, services: &[&Service]) -> Result<()> {
        for service in services {
            self.build_one(project, service, &BuildExtra::default())
                .map_err(|failure| {
                    let error = told(failure);
                    Error::Project(format!(
                        "cannot build the image of service {:?}: {error}",
                        service.name
                    ))
                })?;
        }
        Ok(())
    }
}
