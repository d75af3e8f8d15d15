//! What the builder needs from the engine: images, processes, names.
//!
//! The builder decides what is done; a [`Worker`] does what needs a kernel, a network or the engine's records.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use vessel_image::{ChainId, Descriptor, Digest, ImageConfig, Platform, Store};

use crate::error::Result;
use crate::place::CachePlace;
use crate::progress::Progress;
use crate::request::{ImageStyle, Network, Resources, Ulimit};
use crate::session::{Secret, Session};

/// The engine's side of a build. Futures that are dropped stop what they do: a process is killed, a pull ends.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// The content store in which layers and configurations are.
    fn store(&self) -> &Store;

    /// The platform processes run on.
    fn platform(&self) -> Platform;

    /// Whether processes of a platform run here.
    fn can_run(&self, platform: &Platform) -> bool;

    /// Mounts layers (bottom first) without attaching the mount anywhere; dropping the descriptor unmounts it. With a
    /// writable layer, what is written goes there; without, the mount is read-only. Blocks for a moment.
    fn mount(&self, layers: &[ChainId], writable: Option<Writable<'_>>) -> Result<OwnedFd>;

    /// The same for a directory of this host in the place of layers, with a writable layer.
    fn mount_directory(&self, directory: &Path, writable: Writable<'_>) -> Result<OwnedFd>;

    /// The layers that images and containers have: they are not the cache's to free.
    fn used_layers(&self) -> HashSet<ChainId>;

    /// Removes layers that nothing holds any more: records of the cache were removed.
    async fn collect(&self);

    /// Finds an image, pulling it if `pull` says so. Its layers are in the store and stay there as long
    /// as the result is kept.
    async fn resolve(&self, request: ResolveRequest<'_>) -> Result<ResolvedImage>;

    /// Downloads a file of an HTTP server.
    async fn download(&self, request: Download<'_>) -> Result<Downloaded>;

    /// Runs a process to its end in a root of its own. `Ok` whatever its exit code.
    async fn run(&self, request: RunRequest) -> Result<Exit>;

    /// Makes an image of a configuration whose layers are in the store known under names, and keeps both. The lease keeps
    /// the layers until then.
    async fn store_image(
        &self,
        config: &[u8],
        names: &[String],
        lease: &vessel_image::Lease,
    ) -> Result<Digest>;

    /// The configuration of an image that is here, by name.
    async fn image_here(&self, reference: &str) -> Option<Vec<u8>>;

    /// The place for a cache that a reference to a registry names.
    async fn cache_place(&self, reference: &str, session: &Arc<dyn Session>) -> Result<Arc<dyn CachePlace>>;

    /// Pushes an image of the store to a registry.
    async fn push(&self, request: PushRequest<'_>) -> Result<Descriptor>;

    /// Keeps images of several platforms that were built together as one: by `names` they are pushed together later.
    async fn keep_together(&self, images: &[Digest], names: &[String]) -> Result<()>;
}

/// The writable layer of a mount.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a> {
    /// The upper directory of the overlay; exists.
    pub upper: &'a Path,
    /// Its work directory, beside it; exists and is empty.
    pub work: &'a Path,
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pull {
    /// Never: what is not here is not found.
    Never,
    /// When it is not here.
    Missing,
    /// Also when it is here.
    Always,
}

/// An image that is asked for.
pub struct ResolveRequest<'a> {
    /// Its name as written.
    pub reference: &'a str,
    /// For which platform.
    pub platform: &'a Platform,
    /// Whether the registry is asked.
    pub pull: Pull,
    /// For credentials.
    pub session: &'a Arc<dyn Session>,
    /// Where progress goes.
    pub progress: &'a Progress,
    /// As whose progress.
    pub vertex: &'a Digest,
}

/// A file to download.
pub struct Download<'a> {
    /// From where.
    pub url: &'a str,
    /// The same as it may be shown: without credentials.
    pub shown: &'a str,
    /// To where; the file is made.
    pub destination: &'a Path,
    /// Where progress goes.
    pub progress: &'a Progress,
    /// As whose progress.
    pub vertex: &'a Digest,
}

/// What was downloaded.
#[derive(Debug, Clone)]
pub struct Downloaded {
    /// The sha256 of the content.
    pub digest: Digest,
    /// `Last-Modified`, seconds since 1970.
    pub modified: Option<i64>,
}

/// An image that was found.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The image ID: the digest of its configuration.
    pub id: Digest,
    /// What names it for ever: `docker.io/library/busybox:latest@sha256:…`, or the reference when no digest is known.
    pub reference: String,
    /// The configuration.
    pub config: ImageConfig,
    /// Protects the layers from collection while it lives.
    pub lease: Arc<vessel_image::Lease>,
}

/// An image that is pushed.
pub struct PushRequest<'a> {
    /// To where.
    pub reference: &'a str,
    /// The configurations of the images, one for each platform.
    pub configs: &'a [Vec<u8>],
    /// How layers and manifests are written.
    pub style: &'a ImageStyle,
    /// For credentials.
    pub session: &'a Arc<dyn Session>,
    /// Where progress goes.
    pub progress: &'a Progress,
    /// As whose progress.
    pub vertex: &'a Digest,
}

/// A process to run.
pub struct RunRequest {
    /// The layers of the root, bottom first.
    pub layers: Vec<ChainId>,
    /// Where what it writes goes: the upper directory of the overlay, which exists.
    pub upper: PathBuf,
    /// The overlay's work directory, on the same file system; exists and is empty.
    pub work: PathBuf,
    /// The command.
    pub args: Vec<String>,
    /// Its environment, `NAME=value`.
    pub env: Vec<String>,
    /// Its working directory; made if it is not there.
    pub cwd: String,
    /// `name|uid[:group|gid]`, looked up in the root's account files; empty: root.
    pub user: String,
    /// The network.
    pub network: Network,
    /// `--security=insecure`: all capabilities, no filter, devices.
    pub insecure: bool,
    /// Mounts in the order of the Dockerfile.
    pub mounts: Vec<Mount>,
    /// Further lines of `/etc/hosts`.
    pub extra_hosts: Vec<(String, std::net::IpAddr)>,
    /// Host name.
    pub hostname: String,
    /// Size of `/dev/shm`; none: 64 MiB.
    pub shm_size: Option<u64>,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Limits of the cgroup.
    pub resources: Resources,
    /// Parent of the cgroup.
    pub cgroup_parent: Option<String>,
    /// Where output goes.
    pub progress: Progress,
    /// As whose output.
    pub vertex: Digest,
    /// Dropped when nothing of the process is left, even if nobody waits for its end any more: what it works on.
    pub keep: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

/// A mount of a process.
pub struct Mount {
    /// Where, absolute in the root.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// What is mounted.
pub enum MountSource {
    /// A file or directory below a detached mount, or below a directory of this host. Where it is not mounted read-only,
    /// the process writes there.
    Inside {
        /// The mount's or directory's root.
        root: OwnedFd,
        /// What is mounted (`O_PATH`).
        inside: OwnedFd,
    },
    /// A file in memory, nowhere else, gone with the process.
    Secret {
        /// Its content.
        content: Secret,
        /// Mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// A socket that leads to an agent of the client.
    Agent {
        /// Its ID.
        id: String,
        /// The client.
        session: Arc<dyn Session>,
        /// Mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its size in bytes; none: half of the memory.
        size: Option<u64>,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; 128 + the signal for one that was killed.
    pub code: i32,
    /// Whether the kernel killed something in it for want of memory.
    pub oom_killed: bool,
}
