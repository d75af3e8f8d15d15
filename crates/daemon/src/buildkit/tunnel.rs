//! A connection inside a call: what is written comes out as messages, what comes in as messages can be read.

use std::fmt::Display;

use bollard_buildkit_proto::moby::buildkit::v1::BytesMessage;
use futures_util::{Stream, StreamExt, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tonic::Status;

/// What is on its way in one direction, and the largest message sent.
const BUFFER: usize = 32 << 10;

/// The connection, and what is to be answered. It ends when `messages` end and when it is dropped.
pub fn open<M, E>(
    messages: M,
) -> (
    TokioIo<DuplexStream>,
    impl Stream<Item = Result<BytesMessage, Status>> + Send + 'static,
)
where
    M: Stream<Item = Result<BytesMessage, E>> + Send + Unpin + 'static,
    E: Display + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let (reader, writer) = tokio::io::split(theirs);
    tokio::spawn(receive(messages, writer));
    let answers = stream::unfold(reader, |mut reader| async move {
        let mut data = vec![0; BUFFER];
        match reader.read(&mut data).await {
            Ok(0) => None,
            Ok(length) => {
                data.truncate(length);
                Some((Ok(BytesMessage { data }), reader))
            }
            Err(error) => Some((Err(Status::aborted(error.to_string())), reader)),
        }
    });
    (TokioIo::new(ours), answers)
}

async fn receive<M, E>(mut messages: M, mut writer: tokio::io::WriteHalf<DuplexStream>)
where
    M: Stream<Item = Result<BytesMessage, E>> + Unpin,
    E: Display,
{
    while let Some(message) = messages.next().await {
        match message {
            Ok(message) => {
                if writer.write_all(&message.data).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a tunnelled session was cut");
                break;
            }
        }
    }
    let _ = writer.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_the_end_is_an_end() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<BytesMessage, Status>>(1);
        let messages = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let (connection, answers) = open(Box::pin(messages));
        let mut connection = connection.into_inner();
        let mut answers = Box::pin(answers);

        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            for piece in sent.chunks(70_000) {
                let data = piece.to_vec();
                sender.send(Ok(BytesMessage { data })).await.unwrap();
            }
        });
        let mut received = vec![0; expected.len()];
        connection.read_exact(&mut received).await.unwrap();
        assert_eq!(received, expected);
        sending.await.unwrap();
        assert_eq!(connection.read(&mut received).await.unwrap(), 0);

        connection.write_all(b"answer").await.unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap().data, b"answer");
        drop(connection);
        assert!(answers.next().await.is_none());
    }
}
