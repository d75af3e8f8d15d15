//! The builder in the engine: what [`vessel_build`] needs of it, and its cache in `system df` and prune.

mod binfmt;
mod caches;
mod mounts;
mod progress;
mod push;
mod run;
mod steps;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use vessel_build::place::CachePlace;
use vessel_build::session::Session;
use vessel_build::worker::{
    Download, Downloaded, Exit, Pull, PushRequest, ResolveRequest, ResolvedImage, RunRequest, Worker,
    Writable,
};
use vessel_build::{Builder, BuilderConfig};
use vessel_image::registry::{Credentials, PullOptions};
use vessel_image::{ChainId, Descriptor, Digest, ImageConfig, LoadedImage, Platform, Reference};
use vessel_runtime::shim::Overlay;

use crate::images::{CHANGES, Progress, chain_id};
use crate::oci_spec::user;
use crate::paths::Paths;
use crate::{Engine, Error, ErrorKind, Result, blocking};

pub(crate) use steps::Steps;

/// The engine as builds see it. It does not keep the engine alive.
pub(crate) struct EngineWorker {
    engine: Weak<Engine>,
    store: vessel_image::Store,
    paths: Paths,
}

/// What is said of it to who builds.
fn to_build(error: Error) -> vessel_build::Error {
    use vessel_build::ErrorKind as Build;
    let kind = match error.kind() {
        ErrorKind::NotFound => Build::NotFound,
        ErrorKind::Invalid => Build::Invalid,
        _ => Build::System,
    };
    vessel_build::Error::new(kind, error.to_string())
}

impl From<vessel_build::Error> for Error {
    fn from(error: vessel_build::Error) -> Self {
        use vessel_build::ErrorKind as Build;
        let message = error.to_string();
        match error.kind() {
            Build::NotFound => Self::not_found(message),
            Build::Invalid | Build::Unsupported | Build::Denied => Self::invalid(message),
            _ => Self::system(message),
        }
    }
}

impl Engine {
    /// Opens the build cache. To be called before images are collected: what the cache has is pinned from then on.
    pub(crate) async fn open_builder(self: &Arc<Self>) -> Result<()> {
        let worker = EngineWorker {
            engine: Arc::downgrade(self),
            store: self.images().content().clone(),
            paths: self.paths.clone(),
        };
        let config = BuilderConfig {
            root: self.paths.build(),
            keep_bytes: None,
            parallelism: None,
        };
        let builder = blocking(move || Ok(Builder::open(Arc::new(worker), config)?)).await?;
        let _set = self.builder.set(builder);
        Ok(())
    }

    /// The builder.
    ///
    /// # Errors
    /// When the engine is not open yet.
    pub fn builder(&self) -> Result<&Arc<Builder>> {
        self.builder
            .get()
            .ok_or_else(|| Error::system("the builder is not ready yet; try again in a moment"))
    }
}

impl EngineWorker {
    fn engine(&self) -> Result<Arc<Engine>> {
        self.engine
            .upgrade()
            .ok_or_else(|| Error::system("the engine is ending"))
    }

    /// An image: the one that is here, unless it is to be asked for or is for another platform; else the registry's.
    async fn find(&self, request: &ResolveRequest<'_>) -> Result<ResolvedImage> {
        let engine = self.engine()?;
        if request.pull != Pull::Always {
            match self.find_here(&engine, request).await {
                Err(error) if error.kind() == ErrorKind::NotFound && request.pull == Pull::Missing => {}
                found => return found,
            }
        }
        let reference = Reference::parse(request.reference)?.with_default_tag();
        let host = reference.domain().to_owned();
        let given = request.session.credentials(&host).await.map_err(Error::from)?;
        let credentials = given.map(credentials).unwrap_or_default();
        let options = PullOptions {
            platform: Some(request.platform.clone()),
            trust: engine.config().trust.clone(),
            ..PullOptions::default()
        };
        let (messages, receiver) = tokio::sync::mpsc::unbounded_channel();
        let teller = tokio::spawn(progress::tell(
            receiver,
            request.progress.clone(),
            request.vertex.clone(),
        ));
        let pulled = engine
            .pull_content(&reference, &options, &credentials, &Progress::new(messages))
            .await;
        // It ends with the pull, which had the other end.
        let _told = teller.await;
        let pulled = pulled?;
        let config = ImageConfig::parse(&pulled.raw_config)?;
        let _change = CHANGES.lock().await;
        engine
            .record_pulled(&pulled, &reference.with_digest(pulled.digest.clone()))
            .await?;
        // A name means the image for this host.
        if reference.digest().is_none() && Platform::host().accepts(request.platform) {
            engine.name_pulled(&reference, &pulled).await?;
        }
        Ok(ResolvedImage {
            reference: reference.with_digest(pulled.digest.clone()).familiar(),
            id: pulled.id,
            config,
            lease: Arc::new(pulled.lease),
        })
    }

    async fn find_here(&self, engine: &Arc<Engine>, request: &ResolveRequest<'_>) -> Result<ResolvedImage> {
        let found = engine.find_image(request.reference)?;
        let id: Digest = found.id.parse()?;
        let (store, named, wanted) = (self.store.clone(), found.name, request.platform.clone());
        let reference = request.reference.to_owned();
        blocking(move || {
            let mut lease = store.lease();
            let raw = store.blob(&id)?;
            let config = ImageConfig::parse(&raw)?;
            lease.pin_blob(&id);
            for chain in config.chain() {
                if !lease.pin_layer(&chain) {
                    return Err(Error::not_found(format!("layer {chain} of {reference} is gone")));
                }
            }
            let offered = Platform::of(&config);
            // What has no platform is taken for any, as images from scratch often say nothing.
            if !config.architecture.is_empty() && wanted.rank(&offered).is_none() {
                return Err(Error::not_found(format!(
                    "the image here is for {}/{}, the build wants {}/{}",
                    offered.os, offered.architecture, wanted.os, wanted.architecture
                )));
            }
            Ok(ResolvedImage {
                reference: named.unwrap_or(reference),
                id,
                config,
                lease: Arc::new(lease),
            })
        })
        .await
    }

    async fn keep_image(&self, config: &[u8], names: &[String]) -> Result<Digest> {
        let engine = self.engine()?;
        let (store, raw): (_, Arc<[u8]>) = (self.store.clone(), config.into());
        let references = names
            .iter()
            .map(|name| Ok(Reference::parse(name)?.with_default_tag()))
            .collect::<Result<Vec<_>>>()?;
        let image = blocking(move || {
            let parsed = ImageConfig::parse(&raw)?;
            let mut lease = store.lease();
            let mut layers = Vec::new();
            for chain in parsed.chain() {
                lease.pin_layer(&chain);
                layers.push(store.layer(&chain)?);
            }
            Ok(LoadedImage {
                id: store.put_blob(&raw, &mut lease)?,
                raw_config: raw,
                references,
                layers,
                lease,
            })
        })
        .await?;
        let _change = CHANGES.lock().await;
        engine.record_image(&image).await?;
        let id = image.id.to_string();
        for reference in &image.references {
            engine.name_image(reference, &id).await?;
        }
        Ok(image.id)
    }
}

#[async_trait]
impl Worker for EngineWorker {
    fn store(&self) -> &vessel_image::Store {
        &self.store
    }

    fn platform(&self) -> Platform {
        Platform::host()
    }

    fn can_run(&self, platform: &Platform) -> bool {
        platform.architecture.is_empty()
            || Platform::host().rank(platform).is_some()
            || binfmt::runs(platform)
    }

    fn mount(&self, layers: &[ChainId], writable: Option<Writable<'_>>) -> vessel_build::Result<OwnedFd> {
        let mut lower: Vec<_> = layers
            .iter()
            .rev()
            .map(|chain| self.store.layer_path(chain))
            .collect();
        if lower.is_empty() {
            lower.push(self.paths.build_empty());
        }
        let Some(writable) = writable else {
            return user::stack(lower).map_err(to_build);
        };
        written_above(lower, writable)
    }

    fn mount_directory(&self, directory: &Path, writable: Writable<'_>) -> vessel_build::Result<OwnedFd> {
        written_above(vec![directory.to_owned()], writable)
    }

    fn used_layers(&self) -> HashSet<ChainId> {
        let Ok(engine) = self.engine() else {
            return HashSet::new();
        };
        let images = engine.images().all();
        let of_images = images.into_iter().flat_map(|(_, record)| record.chain_ids);
        let of_containers = engine
            .containers()
            .into_iter()
            .flat_map(|container| container.record().layers.clone());
        let all = of_images.chain(of_containers);
        all.filter_map(|chain| chain_id(&chain).ok()).collect()
    }

    async fn collect(&self) {
        let Ok(engine) = self.engine() else { return };
        if let Err(error) = engine.collect_images().await {
            tracing::warn!("{error}");
        }
    }

    async fn resolve(&self, request: ResolveRequest<'_>) -> vessel_build::Result<ResolvedImage> {
        self.find(&request).await.map_err(to_build)
    }

    async fn download(&self, request: Download<'_>) -> vessel_build::Result<Downloaded> {
        let engine = self.engine().map_err(to_build)?;
        let tell = |current, total| {
            progress::downloading(request.progress, request.vertex, request.shown, current, total)
        };
        let downloaded = engine
            .registries()
            .download(request.url, request.destination, tell)
            .await?;
        Ok(Downloaded {
            digest: downloaded.digest,
            modified: downloaded.modified,
        })
    }

    async fn run(&self, request: RunRequest) -> vessel_build::Result<Exit> {
        let engine = self.engine().map_err(to_build)?;
        run::run(engine, request).await.map_err(to_build)
    }

    async fn store_image(
        &self,
        config: &[u8],
        names: &[String],
        _lease: &vessel_image::Lease,
    ) -> vessel_build::Result<Digest> {
        self.keep_image(config, names).await.map_err(to_build)
    }

    async fn image_here(&self, reference: &str) -> Option<Vec<u8>> {
        let engine = self.engine().ok()?;
        let id = engine.find_image(reference).ok()?.id;
        engine.image_document(&id).await.ok()
    }

    async fn cache_place(
        &self,
        reference: &str,
        session: &Arc<dyn Session>,
    ) -> vessel_build::Result<Arc<dyn CachePlace>> {
        self.place(reference, session).await.map_err(to_build)
    }

    async fn push(&self, request: PushRequest<'_>) -> vessel_build::Result<Descriptor> {
        self.send(&request).await.map_err(to_build)
    }

    async fn keep_together(&self, images: &[Digest], names: &[String]) -> vessel_build::Result<()> {
        let engine = self.engine().map_err(to_build)?;
        engine.keep_together(images, names).await.map_err(to_build)
    }
}

fn written_above(lower: Vec<PathBuf>, writable: Writable<'_>) -> vessel_build::Result<OwnedFd> {
    let overlay = Overlay {
        lower,
        upper: Some(writable.upper.to_owned()),
        work: Some(writable.work.to_owned()),
        // A layer that is not whole is not used after a crash.
        volatile: true,
    };
    vessel_runtime::rootfs::overlay(&overlay, None).map_err(|error| to_build(error.into()))
}

fn credentials(given: vessel_build::session::Credentials) -> Credentials {
    Credentials {
        username: given.username,
        password: given.password,
        identitytoken: given.identity_token.unwrap_or_default(),
        registrytoken: given.registry_token.unwrap_or_default(),
        ..Credentials::default()
    }
}
