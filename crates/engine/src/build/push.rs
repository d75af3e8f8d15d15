//! Pushing what was built, for one platform or several.

use vessel_build::worker::PushRequest;
use vessel_image::registry::{Credentials, PushImage, PushedImage};
use vessel_image::{Descriptor, Digest, ImageConfig, Platform, Reference};

use super::{EngineWorker, credentials, progress};
use crate::images::platforms::{encode, new_index};
use crate::{Engine, Error, Result};

impl EngineWorker {
    /// Pushes images whose layers are here: one under its name, several as an index.
    pub(super) async fn send(&self, request: &PushRequest<'_>) -> Result<Descriptor> {
        let engine = self.engine()?;
        let named = Reference::parse(request.reference)?;
        let bare = Reference::parse(&named.repository())?;
        let name = match request.style.by_digest {
            true => bare.clone(),
            false => named.with_default_tag(),
        };
        let given = request
            .session
            .credentials(name.domain())
            .await
            .map_err(Error::from)?;
        let credentials = given.map(credentials).unwrap_or_default();
        if let [config] = request.configs {
            let pushed = self
                .send_one(&engine, request, config, &name, &credentials)
                .await?;
            return Ok(descriptor(&pushed));
        }
        let mut entries = Vec::with_capacity(request.configs.len());
        for config in request.configs {
            let pushed = self
                .send_one(&engine, request, config, &bare, &credentials)
                .await?;
            let mut entry = descriptor(&pushed);
            entry.platform = Some(Platform::of(&ImageConfig::parse(config)?));
            entries.push(entry);
        }
        let mut index = new_index(entries);
        let annotations = &request.style.index_annotations;
        index.annotations = (!annotations.is_empty()).then(|| annotations.clone());
        let raw = encode(index)?;
        let digest = engine.put_index(&name, &raw, &credentials).await?;
        let (raw, kind) = raw;
        Ok(Descriptor::new(kind, digest, raw.len() as u64))
    }

    async fn send_one(
        &self,
        engine: &Engine,
        request: &PushRequest<'_>,
        config: &[u8],
        name: &Reference,
        credentials: &Credentials,
    ) -> Result<PushedImage> {
        let parsed = ImageConfig::parse(config)?;
        let layers = &parsed.rootfs.diff_ids;
        let mut style = request.style.push.clone();
        if !request.style.index_annotations.is_empty() {
            // An index with annotations is OCI's, and so is what is in it.
            style.oci.get_or_insert(true);
        }
        let image = PushImage {
            manifest: None,
            raw_config: config.to_vec(),
            known: layers.iter().map(|layer| engine.known_blobs(layer)).collect(),
            style,
        };
        let (progress, vertex) = (request.progress.clone(), request.vertex.clone());
        let tell = move |event| progress::pushing(&progress, &vertex, event);
        let pushed = engine
            .registries()
            .push(&self.store, &image, name, credentials, tell)
            .await?;
        engine.remember_pushed(layers, &pushed, name);
        Ok(pushed)
    }
}

fn descriptor(pushed: &PushedImage) -> Descriptor {
    let size = pushed.manifest.len() as u64;
    Descriptor::new(pushed.media_type.clone(), Digest::sha256(&pushed.manifest), size)
}
