//! Contexts that a client of a session offers as an archive: `http://buildkit-session/NAME`.

use std::io;
use std::sync::Arc;

use bollard_buildkit_proto::moby::upload::v1::upload_client::UploadClient;
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::{Request, Status};
use vessel_build::request::{BuildRequest, Source};

use super::context::{Context, upload};
use super::jobs::Client;
use super::transport::{Channel, MAX_MESSAGE};
use crate::body::BodyReader;
use crate::server::State;

const ADDRESS: &str = "http://buildkit-session/";
const DEPTH: usize = 4;

/// Takes the archive, when the context is one. The files stay until what is returned is dropped.
///
/// # Errors
/// No such archive, or none that can be unpacked.
pub async fn take(
    state: &Arc<State>,
    client: &Client,
    build: &mut BuildRequest,
) -> Result<Option<Context>, Status> {
    let Source::Remote(address) = &build.context else {
        return Ok(None);
    };
    let Some(name) = address.strip_prefix(ADDRESS) else {
        return Ok(None);
    };
    let connected = client
        .connected
        .as_ref()
        .ok_or_else(|| Status::invalid_argument("the build has no session to get its context from"))?;
    let mut call = Request::new(stream::empty());
    let path = format!("/{name}")
        .parse()
        .map_err(|_| Status::invalid_argument(format!("{address:?} is not an address of a session")))?;
    call.metadata_mut().insert("urlpath", path);
    let mut uploads = UploadClient::with_origin(connected.channel.clone(), Channel::origin())
        .max_decoding_message_size(MAX_MESSAGE);
    let mut pieces = uploads.pull(call).await?.into_inner();
    let (sender, receiver) = mpsc::channel(DEPTH);
    tokio::spawn(async move {
        loop {
            let piece = match pieces.message().await {
                Ok(Some(piece)) => Ok(Bytes::from(piece.data)),
                Ok(None) => break,
                Err(status) => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    status.message().to_owned(),
                )),
            };
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                break;
            }
        }
    });
    let context = upload(state, BodyReader::of(receiver), build).await;
    context.map_err(|error| Status::invalid_argument(error.message().to_owned()))
}
