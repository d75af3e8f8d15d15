//! What a build is asked for, whoever asks: the classic `/build` endpoint, BuildKit's gRPC session, the command line.
//!
//! A [`BuildRequest`] is plain data. What belongs to the client (its directories, secrets, agents, credentials) is
//! named here and fetched through the [`Session`](crate::session::Session) when a step needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use vessel_image::registry::PushStyle;
use vessel_image::{Compression, Descriptor, Platform};

/// One build.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// What is wanted: an image or something about the Dockerfile.
    pub goal: Goal,
    /// Where the Dockerfile is.
    pub dockerfile: DockerfileSource,
    /// The build context: what `COPY` without `--from` sees.
    pub context: Source,
    /// The directory of it that is the context, where it comes from elsewhere; the Dockerfile is looked for in all of it.
    pub part: Option<String>,
    /// Further contexts by name (`--build-context`). A name stands for a `FROM` or `--from` of that name, before stages
    /// and images; keys are as the user wrote them (`alpine:3.20` is a name, too).
    pub contexts: BTreeMap<String, NamedContext>,
    /// The stage to build; none: the last.
    pub target: Option<String>,
    /// Build arguments. None: declared without a value, which removes a predefined one.
    pub args: BTreeMap<String, Option<String>>,
    /// Labels set on the result, over those of the Dockerfile.
    pub labels: BTreeMap<String, String>,
    /// Platforms to build for; empty: this host's.
    pub platforms: Vec<Platform>,
    /// Which steps must not come from the cache. Their results still go into it.
    pub no_cache: NoCache,
    /// Whether images of `FROM` are looked up in their registry even if they are here.
    pub pull: bool,
    /// The network of `RUN` steps that do not say.
    pub network: Network,
    /// Lines of `/etc/hosts` for `RUN` steps.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// The host name inside `RUN` steps; none: `buildkitsandbox`, as BuildKit has it.
    pub hostname: Option<String>,
    /// Size of `/dev/shm` in `RUN` steps in bytes; none: 64 MiB.
    pub shm_size: Option<u64>,
    /// Resource limits of `RUN` steps.
    pub ulimits: Vec<Ulimit>,
    /// The cgroup under which those of `RUN` steps are made; none: the engine's.
    pub cgroup_parent: Option<String>,
    /// Limits of `RUN` steps, which only the classic endpoint has.
    pub resources: Resources,
    /// What the client allows beyond the default. A step that needs more fails by a sentence.
    pub entitlements: BTreeSet<Entitlement>,
    /// Where results of earlier builds may be found.
    pub cache_from: Vec<CacheImport>,
    /// Where results of this build are left for later ones.
    pub cache_to: Vec<CacheExport>,
    /// What becomes of the result; empty: nothing but the cache.
    pub outputs: Vec<Output>,
    /// Seconds since 1970: no time in the result is later, and times the builder makes up are this. None: the build
    /// argument `SOURCE_DATE_EPOCH` decides, and without it the clock.
    pub source_date_epoch: Option<i64>,
    /// Whether all layers over the base become one (`--squash` of the classic builder).
    pub squash: bool,
    /// Whether warnings of the build checks fail the build (`BUILDKIT_DOCKERFILE_CHECK`, `# check=error=true` of the
    /// Dockerfile has the same effect).
    pub check: Option<String>,
}

/// What is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Goal {
    /// The outputs.
    #[default]
    Build,
    /// The findings of the build checks (`--check`, subrequest `frontend.lint`); nothing is built.
    Check,
    /// Arguments, secrets, mounts of the target (`frontend.outline`); nothing is built.
    Outline,
    /// The stages (`frontend.targets`); nothing is built.
    Targets,
}

/// Where the Dockerfile is.
#[derive(Debug, Clone)]
pub enum DockerfileSource {
    /// Its text.
    Inline(Vec<u8>),
    /// A file.
    File {
        /// Where the file is; none: in the build context.
        source: Option<Source>,
        /// Path in the source; `Dockerfile` unless told otherwise. An ignore file beside it (`NAME.dockerignore`)
        /// comes before the context's `.dockerignore`.
        path: String,
    },
}

impl Default for DockerfileSource {
    fn default() -> Self {
        Self::File {
            source: None,
            path: "Dockerfile".to_owned(),
        }
    }
}

/// A tree of files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// No files.
    #[default]
    Empty,
    /// A directory of the client, fetched through [`Session::sync`](crate::session::Session::sync) under this name
    /// (BuildKit's are `context` and `dockerfile`).
    Session(String),
    /// A directory of this host: a tar of the client that the caller unpacked for this build. It must not change while the
    /// build runs, and belongs to the caller. `.dockerignore` is applied; nothing is remembered of it.
    Directory(PathBuf),
    /// A Git repository (`https://….git#ref:dir`, `git@host:…`) or an HTTP URL of an archive or a Dockerfile.
    Remote(String),
}

/// What a name of `--build-context` stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NamedContext {
    /// Files.
    Files(Source),
    /// An image (`docker-image://REF`).
    Image(String),
}

/// Which steps must not come from the cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NoCache {
    /// None: everything may.
    #[default]
    Never,
    /// All.
    All,
    /// Those of these stages (`--no-cache-filter`).
    Stages(BTreeSet<String>),
}

impl NoCache {
    /// Whether a stage's steps must run.
    pub fn covers(&self, stage: Option<&str>, index: usize) -> bool {
        match self {
            Self::Never => false,
            Self::All => true,
            Self::Stages(names) => {
                names.contains(&index.to_string())
                    || stage.is_some_and(|stage| names.iter().any(|name| name.eq_ignore_ascii_case(stage)))
            }
        }
    }
}

/// The network of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Network {
    /// The default bridge, with name servers.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's. Needs [`Entitlement::NetworkHost`].
    Host,
    /// A network that a user has made, or with `container:` in front a container's. For clients that may do all that this
    /// daemon may.
    Named(String),
}

impl Network {
    /// What a step's key knows of it: a step on one network is taken for the same on another.
    pub(crate) fn key(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::None => 1,
            Self::Host => 2,
            Self::Named(_) => 3,
        }
    }
}

/// What a client may allow a build beyond the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Entitlement {
    /// `network.host`.
    NetworkHost,
    /// `security.insecure`.
    SecurityInsecure,
}

impl Entitlement {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetworkHost => "network.host",
            Self::SecurityInsecure => "security.insecure",
        }
    }

    /// From its name in the API.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "network.host" => Some(Self::NetworkHost),
            "security.insecure" => Some(Self::SecurityInsecure),
            _ => None,
        }
    }
}

/// A limit of a kind of resource, as `--ulimit` sets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// `nofile`, `nproc`, …
    pub name: String,
    /// The limit in force.
    pub soft: i64,
    /// What it may be raised to.
    pub hard: i64,
}

/// Limits of the classic builder. None and zero: no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Memory in bytes.
    pub memory: Option<i64>,
    /// Memory and swap in bytes, -1: without limit.
    pub memory_swap: Option<i64>,
    /// Relative weight of the processor.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds.
    pub cpu_period: Option<u64>,
    /// Processors it may use (`0-2,4`).
    pub cpuset_cpus: Option<String>,
    /// Memory nodes it may use.
    pub cpuset_mems: Option<String>,
}

/// Where results of earlier builds may be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheImport {
    /// An image (inline cache) or a cache manifest in a registry or the local store.
    Registry(String),
    /// A manifest in an OCI layout of the client.
    Local {
        /// The session's name of the layout.
        store: String,
        /// Digest of the manifest.
        digest: vessel_image::Digest,
    },
}

/// Where results are left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheExport {
    /// In the configuration of the image itself: only layers the image has.
    Inline,
    /// As a manifest of its own in a registry.
    Registry {
        /// The reference to push to.
        reference: String,
        /// What goes into it.
        options: CacheExportOptions,
    },
    /// Into an OCI layout of the client, who enters the manifest ([`BuildResult::cache_manifest`]) into its index.
    Local {
        /// The session's name of the layout.
        store: String,
        /// What goes into it.
        options: CacheExportOptions,
    },
}

/// What goes into an exported cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheExportOptions {
    /// `mode=max`: the results of all stages; otherwise those of the target only.
    pub max: bool,
    /// `cache-mounts=true`: the directories of `RUN --mount=type=cache` go along.
    pub mounts: bool,
    /// How layers are compressed; none: gzip.
    pub compression: Option<Compression>,
    /// The level of compression.
    pub level: Option<i32>,
    /// `oci-mediatypes`: whether media types are OCI's; none: they are.
    pub oci: Option<bool>,
    /// `ignore-error=true`: a failure is told as a warning.
    pub ignore_error: bool,
}

/// How what is pushed is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageStyle {
    /// Layers and manifests.
    pub push: PushStyle,
    /// Annotations of the index of several platforms.
    pub index_annotations: BTreeMap<String, String>,
    /// Whether names get no tag: what is pushed is known by its digest.
    pub by_digest: bool,
}

/// What becomes of the result.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// An image in the store and, if asked, in a registry.
    Image {
        /// References to give it; may be empty. Full ones (`docker.io/library/x:latest`) or familiar ones.
        names: Vec<String>,
        /// Whether it stays in the store.
        store: bool,
        /// Whether every name is pushed.
        push: bool,
        /// How pushed layers and manifests are written.
        style: ImageStyle,
    },
    /// An archive as `save` makes it, through [`Session::export_stream`](crate::session::Session::export_stream).
    Archive {
        /// Which output this is to the session.
        exporter: String,
        /// Docker's or OCI's.
        format: vessel_image::Format,
        /// References written into it.
        names: Vec<String>,
    },
    /// The files of the result into a directory of the client
    /// ([`Session::export_directory`](crate::session::Session::export_directory)). With several platforms a directory
    /// for each (`linux_amd64`).
    Local {
        /// Which output this is to the session.
        exporter: String,
        /// Whether there is a directory for each platform; none: only when there are several.
        platform_split: Option<bool>,
    },
    /// The files of the result as one tar, through [`Session::export_stream`](crate::session::Session::export_stream).
    Tar {
        /// Which output this is to the session.
        exporter: String,
        /// Whether there is a directory for each platform; none: only when there are several.
        platform_split: Option<bool>,
    },
    /// Nothing: the build only fills the cache.
    CacheOnly,
}

/// What a build gives back.
#[derive(Debug, Clone, Default)]
pub struct BuildResult {
    /// The images, one for each platform, in the order of the request; empty if no output makes one.
    pub images: Vec<BuiltImage>,
    /// What a registry has: the manifest, or the index of several platforms.
    pub pushed: Option<Descriptor>,
    /// The manifest of a cache that was left in a layout of the client.
    pub cache_manifest: Option<vessel_image::Descriptor>,
    /// The answer to [`Goal::Check`], [`Goal::Outline`] and [`Goal::Targets`]: BuildKit's JSON (`result.json`) and its
    /// rendering for people (`result.txt`).
    pub answer: Option<Answer>,
}

/// An image that was built.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// For what.
    pub platform: Platform,
    /// Its ID: the digest of its configuration.
    pub id: vessel_image::Digest,
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// Whether it is in the store.
    pub stored: bool,
}

/// The answer to a question about a Dockerfile.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The JSON document BuildKit's frontend gives.
    pub json: String,
    /// The same for people.
    pub text: String,
    /// Findings of the checks; more than none makes `--check` fail.
    pub findings: usize,
}
