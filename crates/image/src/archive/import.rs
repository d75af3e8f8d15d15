//! `import`: the tar of a root file system becomes an image of one layer.

use std::io::Read;

use super::load::LoadedImage;
use crate::Store;
use crate::chunk::Pool;
use crate::config::{ContainerConfig, History, ImageConfig, RootFs};
use crate::digest::Algorithm;
use crate::error::{Error, Result};
use crate::fs::Limits;
use crate::layer;
use crate::manifest::Platform;

/// What [`import`] makes of the archive.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Defaults for the image's containers.
    pub config: ContainerConfig,
    /// A remark in the image's history.
    pub message: Option<String>,
    /// What the image is for.
    pub platform: Platform,
    /// When it is made, RFC 3339.
    pub created: String,
    /// Bounds.
    pub limits: Limits,
    /// As in [`super::LoadOptions`].
    pub sync: bool,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            config: ContainerConfig::default(),
            message: None,
            platform: Platform::host(),
            created: jiff::Timestamp::now().to_string(),
            limits: Limits::default(),
            sync: false,
        }
    }
}

/// Makes an image of a root file system's archive: plain, gzip, zstd or xz.
pub fn import(store: &Store, input: impl Read, options: &ImportOptions) -> Result<LoadedImage> {
    let feeder = layer::spawn(store, Algorithm::Sha256, options.limits.clone())?;
    let pending = layer::feed(feeder, input, Pool::new(32))?;
    let Some(diff_id) = pending.diff_id().cloned() else {
        return Err(Error::invalid("the archive was not unpacked"));
    };
    let mut lease = store.lease();
    let layer = store.commit(pending, None, &mut lease)?;
    let config = ImageConfig {
        architecture: options.platform.architecture.clone(),
        variant: options.platform.variant.clone(),
        os: options.platform.os.clone(),
        os_version: options.platform.os_version.clone(),
        created: Some(options.created.clone()),
        comment: options.message.clone(),
        config: options.config.clone(),
        rootfs: RootFs {
            diff_ids: vec![diff_id],
            ..RootFs::default()
        },
        history: vec![History {
            created: Some(options.created.clone()),
            comment: options.message.clone(),
            ..History::default()
        }],
        ..ImageConfig::default()
    };
    let raw_config = config.to_raw()?;
    let id = store.put_blob(&raw_config, &mut lease)?;
    if options.sync {
        store.sync()?;
    }
    Ok(LoadedImage {
        id,
        raw_config: raw_config.into(),
        references: Vec::new(),
        layers: vec![layer],
        lease,
    })
}
