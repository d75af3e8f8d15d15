//! What becomes of a result: an image in the store or a registry, archives, files.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use vessel_image::{Digest, Platform};

use super::state::State;
use super::{Pending, as_part, as_vertex, platform_text};
use crate::blocking;
use crate::builder::Builder;
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::request::{BuildResult, BuiltImage, Output};
use crate::session::{ExportTree, Session};
use crate::worker::PushRequest;

/// How many pieces of an archive wait for the client.
const PIECES: usize = 16;

/// A result for one platform.
pub(crate) struct Finished {
    pub platform: Platform,
    pub state: State,
    pub epoch: Option<i64>,
    /// The cache that goes into its configuration.
    pub cache: Option<Vec<u8>>,
}

impl Finished {
    fn image(&self) -> Result<BuiltImage> {
        let mut config = self.state.config.to_raw()?;
        if let Some(cache) = &self.cache {
            config = crate::cache::export::embed(config, cache);
        }
        Ok(BuiltImage {
            platform: self.platform.clone(),
            id: Digest::sha256(&config),
            config,
            stored: false,
        })
    }
}

/// What outputs need.
pub(crate) struct Exporter {
    pub builder: Arc<Builder>,
    pub session: Arc<dyn Session>,
    pub progress: Progress,
}

impl Exporter {
    /// Makes all outputs of a build.
    pub async fn export(&self, outputs: &[Output], finished: &[Finished]) -> Result<BuildResult> {
        let mut result = BuildResult::default();
        for finished in finished {
            result.images.push(finished.image()?);
        }
        for output in outputs {
            match output {
                Output::CacheOnly => {}
                Output::Image {
                    names,
                    store,
                    push,
                    style,
                } => {
                    let vertex = Pending::new("exporting to image");
                    let work = async {
                        if *store {
                            self.store(&vertex.digest, &mut result, names, finished).await?;
                        }
                        if *push {
                            let configs: Vec<Vec<u8>> =
                                result.images.iter().map(|image| image.config.clone()).collect();
                            for name in names {
                                let request = PushRequest {
                                    reference: name,
                                    configs: &configs,
                                    style,
                                    session: &self.session,
                                    progress: &self.progress,
                                    vertex: &vertex.digest,
                                };
                                result.pushed = Some(self.builder.worker().push(request).await?);
                            }
                        }
                        Ok(())
                    };
                    as_vertex(&self.progress, &vertex, work).await?;
                }
                Output::Archive {
                    exporter,
                    format,
                    names,
                } => {
                    let what = match format {
                        vessel_image::Format::Docker => "exporting to docker image format",
                        vessel_image::Format::Oci => "exporting to oci image format",
                    };
                    let vertex = Pending::new(what);
                    let images: Vec<(Vec<u8>, Vec<String>)> = result
                        .images
                        .iter()
                        .map(|image| (image.config.clone(), names.clone()))
                        .collect();
                    let work = self.archive(exporter, *format, images);
                    let work = self.part(&vertex, "sending tarball", work);
                    as_vertex(&self.progress, &vertex, work).await?;
                }
                Output::Local {
                    exporter,
                    platform_split,
                } => {
                    let vertex = Pending::new("exporting to client directory");
                    let split = platform_split.unwrap_or(finished.len() > 1);
                    let work = self.directory(&vertex, exporter, split, finished);
                    as_vertex(&self.progress, &vertex, work).await?;
                }
                Output::Tar {
                    exporter,
                    platform_split,
                } => {
                    let vertex = Pending::new("exporting to client tarball");
                    let split = platform_split.unwrap_or(finished.len() > 1);
                    let work = self.tar(exporter, split, finished);
                    let work = self.part(&vertex, "sending tarball", work);
                    as_vertex(&self.progress, &vertex, work).await?;
                }
            }
        }
        Ok(result)
    }

    async fn part<T>(
        &self,
        vertex: &Pending,
        name: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        as_part(&self.progress, &vertex.digest, name, work).await
    }

    async fn store(
        &self,
        vertex: &Digest,
        result: &mut BuildResult,
        names: &[String],
        finished: &[Finished],
    ) -> Result<()> {
        let worker = self.builder.worker();
        let host = worker.platform();
        // A name means the image for this host; without one, the first.
        let named = finished
            .iter()
            .position(|one| host.accepts(&one.platform))
            .unwrap_or(0);
        for (at, (image, finished)) in result.images.iter_mut().zip(finished).enumerate() {
            let mut lease = worker.store().lease();
            if !finished.state.chain.iter().all(|chain| lease.pin_layer(chain)) {
                return Err(Error::new(ErrorKind::System, "a layer of the result is gone"));
            }
            let own = if at == named { names } else { &[] };
            let part = format!("writing image {}", image.id);
            let stored = worker.store_image(&image.config, own, &lease);
            image.id = as_part(&self.progress, vertex, &part, stored).await?;
            image.stored = true;
        }
        if result.images.len() > 1 {
            let ids: Vec<Digest> = result.images.iter().map(|image| image.id.clone()).collect();
            worker.keep_together(&ids, names).await?;
        }
        for name in names {
            let part = format!(
                "naming to {}",
                vessel_image::Reference::parse(name)?.with_default_tag()
            );
            as_part(&self.progress, vertex, &part, async { Ok(()) }).await?;
        }
        Ok(())
    }

    async fn archive(
        &self,
        exporter: &str,
        format: vessel_image::Format,
        images: Vec<(Vec<u8>, Vec<String>)>,
    ) -> Result<()> {
        let store = self.builder.worker().store().clone();
        self.stream(exporter, move |out| {
            let mut lease = store.lease();
            let mut saved = Vec::new();
            for (config, names) in images {
                let id = store.put_blob(&config, &mut lease)?;
                let references = names
                    .iter()
                    .map(|name| Ok(vessel_image::Reference::parse(name)?.with_default_tag()))
                    .collect::<Result<Vec<_>>>()?;
                saved.push(vessel_image::SaveImage { id, references });
            }
            match saved.as_slice() {
                [first, _, ..] if format == vessel_image::Format::Oci => {
                    let ids: Vec<Digest> = saved.iter().map(|image| image.id.clone()).collect();
                    vessel_image::save_platforms(&store, &ids, &first.references, out)?;
                }
                images => vessel_image::save(&store, images, format, out)?,
            }
            Ok(())
        })
        .await
    }

    async fn directory(
        &self,
        vertex: &Pending,
        exporter: &str,
        split: bool,
        finished: &[Finished],
    ) -> Result<()> {
        for one in finished {
            let (worker, chain) = (Arc::clone(self.builder.worker()), one.state.chain.clone());
            let root = blocking(move || worker.mount(&chain, None)).await?;
            let tree = ExportTree {
                root,
                prefix: prefix(split, &one.platform),
                epoch: one.epoch,
            };
            let part = match split {
                true => format!("copying files {}", platform_text(&one.platform)),
                false => "copying files".to_owned(),
            };
            let copied = self.session.export_directory(exporter, tree);
            self.part(vertex, &part, copied).await?;
        }
        Ok(())
    }

    async fn tar(&self, exporter: &str, split: bool, finished: &[Finished]) -> Result<()> {
        let worker = Arc::clone(self.builder.worker());
        let trees: Vec<_> = finished
            .iter()
            .map(|one| (one.state.chain.clone(), prefix(split, &one.platform)))
            .collect();
        self.stream(exporter, move |out| {
            let count = trees.len();
            for (number, (chain, prefix)) in trees.into_iter().enumerate() {
                let root = worker.mount(&chain, None)?;
                let options = vessel_image::PackOptions {
                    name: prefix.into_bytes(),
                    continued: number + 1 < count,
                    ..vessel_image::PackOptions::default()
                };
                vessel_image::pack(root.as_fd(), b"/", &options, &mut *out)?;
            }
            Ok(())
        })
        .await
    }

    /// Sends what a blocking writer makes to the client.
    async fn stream(
        &self,
        exporter: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut sink = self.session.export_stream(exporter).await?;
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<Vec<u8>>(PIECES);
        let writer = blocking(move || {
            let mut out = std::io::BufWriter::with_capacity(1 << 18, Pieces(sender));
            write(&mut out)?;
            out.flush()
                .map_err(|error| Error::io("cannot send the archive", error))
        });
        let sink_ref = &mut sink;
        let send = async move {
            while let Some(piece) = receiver.recv().await {
                sink_ref.write_all(&piece).await.map_err(|error| {
                    Error::with_source(ErrorKind::Remote, "cannot send the archive to the client", error)
                })?;
            }
            Ok(())
        };
        let (written, sent): (Result<()>, Result<()>) = tokio::join!(writer, send);
        sent?;
        written?;
        sink.shutdown()
            .await
            .map_err(|error| Error::with_source(ErrorKind::Remote, "cannot end the archive", error))
    }
}

/// The directory of a platform in files of several.
fn prefix(split: bool, platform: &Platform) -> String {
    if split {
        platform_text(platform).replace('/', "_")
    } else {
        String::new()
    }
}

struct Pieces(tokio::sync::mpsc::Sender<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0
            .blocking_send(bytes.to_vec())
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
