//! How a build fails: a sentence, and where in the Dockerfile.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bollard_buildkit_proto::google::rpc;
use prost::Message;
use serde::Deserialize;
use tonic::{Code, Status};

use crate::Error;

/// By this name daemons say where in the Dockerfile an error is.
const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";

/// A build that failed.
#[derive(Debug)]
pub struct BuildFailure {
    /// The daemon's sentence.
    pub message: String,
    /// Where in the Dockerfile.
    pub excerpt: Option<Excerpt>,
    /// Whether the daemon says that it was cancelled.
    pub cancelled: bool,
}

impl std::fmt::Display for BuildFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// A place in a Dockerfile, with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// Its name.
    pub file: String,
    /// Its text.
    pub text: Vec<u8>,
    /// First and last line, from 1.
    pub lines: (u32, u32),
    /// First column and one past the last, in bytes from 0; equal when nothing narrower than the lines is meant.
    pub columns: (u32, u32),
}

#[derive(Deserialize)]
struct Source {
    info: Info,
    #[serde(default)]
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize, Default)]
struct Range {
    #[serde(default)]
    start: Position,
    #[serde(default)]
    end: Position,
}

#[derive(Deserialize, Default, Clone, Copy)]
struct Position {
    #[serde(default)]
    line: u32,
    #[serde(default)]
    character: u32,
}

/// A call that was refused, other than a build.
pub fn refused(status: Status) -> Error {
    Error::Api {
        status: match status.code() {
            Code::NotFound => 404,
            Code::InvalidArgument => 400,
            Code::Unimplemented => 501,
            _ => 500,
        },
        message: sentence(&status),
    }
}

fn sentence(status: &Status) -> String {
    match status.message() {
        "" => format!("the daemon broke the build off: {}", status.code()),
        message => message.to_owned(),
    }
}

/// A build that failed.
pub fn failed(status: Status) -> Error {
    Error::Build(Box::new(BuildFailure {
        message: sentence(&status),
        excerpt: excerpt(status.details()),
        cancelled: status.code() == Code::Cancelled,
    }))
}

fn excerpt(details: &[u8]) -> Option<Excerpt> {
    let details = rpc::Status::decode(details).ok()?;
    let source = details.details.iter().find(|detail| detail.type_url == SOURCE)?;
    let source: Source = serde_json::from_slice(&source.value).ok()?;
    let range = source.ranges.first()?;
    Some(Excerpt {
        file: source.info.filename,
        text: BASE64.decode(&source.info.data).ok()?,
        lines: (range.start.line, range.end.line.max(range.start.line)),
        columns: (range.start.character, range.end.character),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_place_of_an_error() {
        let json = r#"{"info":{"filename":"Dockerfile","data":"RlJPTQo="},"ranges":[{"start":{"line":1},"end":{"line":1}}]}"#;
        let details = rpc::Status {
            details: vec![bollard_buildkit_proto::google::protobuf::Any {
                type_url: SOURCE.to_owned(),
                value: json.as_bytes().to_vec(),
            }],
            ..rpc::Status::default()
        };
        let excerpt = excerpt(&details.encode_to_vec()).unwrap();
        assert_eq!((excerpt.text.as_slice(), excerpt.lines), (&b"FROM\n"[..], (1, 1)));
    }

    proptest! {
        #[test]
        fn arbitrary_details_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = excerpt(&bytes);
        }
    }
}
