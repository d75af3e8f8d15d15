//! How a request fails: a code of the distribution specification, an HTTP status, and a sentence.

use std::fmt;
use std::io;

use hyper::StatusCode;

/// A result whose error is this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The codes of the distribution specification ("Error Codes"), and those that `docker-registry` added to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The blob is not in the repository.
    BlobUnknown,
    /// The upload cannot go on like this.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// Content does not have the digest, or the digest is malformed.
    DigestInvalid,
    /// A manifest refers to what is not there.
    ManifestBlobUnknown,
    /// The manifest is malformed.
    ManifestInvalid,
    /// There is no such manifest.
    ManifestUnknown,
    /// The manifest is larger than is accepted.
    ManifestTooLarge,
    /// The repository's name is malformed.
    NameInvalid,
    /// There is no such repository.
    NameUnknown,
    /// The tag is malformed.
    TagInvalid,
    /// `n` is not a number that can be served.
    PaginationNumberInvalid,
    /// The range is not one of this content.
    RangeInvalid,
    /// The length is not what was announced.
    SizeInvalid,
    /// Credentials are needed.
    Unauthorized,
    /// Credentials do not suffice, or a quota is used up.
    Denied,
    /// This server does not do that.
    Unsupported,
    /// Too much at once.
    TooManyRequests,
    /// There is no such page.
    NotFound,
    /// The registry behind this one does not answer.
    Unavailable,
    /// A fault of this server.
    Unknown,
}

impl Code {
    /// As it is written in an answer.
    pub fn name(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::ManifestTooLarge | Self::SizeInvalid => "SIZE_INVALID",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::TagInvalid => "TAG_INVALID",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::RangeInvalid => "RANGE_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::NotFound => "NOT_FOUND",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
        }
    }

    /// The status it is sent with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::NotFound => StatusCode::NOT_FOUND,
            Self::BlobUploadInvalid
            | Self::DigestInvalid
            | Self::ManifestBlobUnknown
            | Self::ManifestInvalid
            | Self::NameInvalid
            | Self::TagInvalid
            | Self::PaginationNumberInvalid
            | Self::SizeInvalid => StatusCode::BAD_REQUEST,
            Self::ManifestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::BAD_GATEWAY,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A failure: its code, a sentence, and the cause if there is one.
#[derive(Debug)]
pub struct Error {
    code: Code,
    message: String,
    source: Option<io::Error>,
}

impl Error {
    /// An error without a further cause.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            source: None,
        }
    }

    /// A failed operation of the file system or network.
    pub fn io(message: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            code: Code::Unknown,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The status of an answer that tells it. A full disk is no fault of the program.
    pub fn status(&self) -> StatusCode {
        match self.source.as_ref().map(io::Error::kind) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            _ => self.code.status(),
        }
    }

    /// What the client is told. Causes inside this server name its paths and stay in its log.
    pub fn public(&self) -> String {
        match &self.source {
            None => self.message.clone(),
            Some(source) => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "no space is left on the registry's disk".to_owned()
                }
                _ => "the registry could not do it; its log has the reason".to_owned(),
            },
        }
    }

    /// The body of an answer: the errors document of the specification.
    pub fn document(&self) -> Vec<u8> {
        let document = serde_json::json!({
            "errors": [{ "code": self.code.name(), "message": self.public() }]
        });
        document.to_string().into_bytes()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            None => Ok(()),
            Some(source) => write!(f, ": {}", words(source)),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// The cause in words, without the "(os error N)" that Rust appends.
pub fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let Some(end) = text.find(" (os error") else {
        return text;
    };
    let mut text = text[..end].to_owned();
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_have_a_code_and_no_paths() {
        let error = Error::new(Code::BlobUnknown, "blob \"x\" is not here");
        assert_eq!(
            String::from_utf8(error.document()).unwrap(),
            r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob \"x\" is not here"}]}"#
        );
        let error = Error::io("cannot open /secret", io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(error.to_string(), "cannot open /secret: permission denied");
        assert!(!error.public().contains("secret"));
        let full = Error::io("cannot write", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.status(), StatusCode::INSUFFICIENT_STORAGE);
    }
}
