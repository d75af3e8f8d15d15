//! The messages of containerd's content service (`containerd.services.content.v1.Content`), by which a build reads and
//! writes an OCI layout of its client: what both sides need of them.

/// The name of the service.
pub const SERVICE: &str = "containerd.services.content.v1.Content";
/// The header that names one of the client's stores.
pub const STORE: &str = "buildkit-attachable-store-id";
/// What is before the path of a layout in the name of its store.
pub const LOCAL: &str = "local:";

/// What is known of a blob.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Info {
    /// Its digest.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Its size.
    #[prost(int64, tag = "2")]
    pub size: i64,
}

/// Asks for [`Info`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoRequest {
    /// Of which blob.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// Answers it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InfoResponse {
    /// What is known.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// Asks for the bytes of a blob.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentRequest {
    /// Of which blob.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// From where on.
    #[prost(int64, tag = "2")]
    pub offset: i64,
    /// How many; 0: to the end.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// Some of the bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReadContentResponse {
    /// Where they are.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: prost::bytes::Bytes,
}

/// What is done with a blob that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WriteAction {
    /// It is asked for how much is there.
    Stat = 0,
    /// Bytes are added.
    Write = 1,
    /// Bytes are added, and it is whole.
    Commit = 2,
}

/// A piece of a blob.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentRequest {
    /// What is done.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// Names what is being written.
    #[prost(string, tag = "2")]
    pub r#ref: String,
    /// The size of all of it.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// Its digest.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// Where the bytes belong.
    #[prost(int64, tag = "5")]
    pub offset: i64,
    /// The bytes.
    #[prost(bytes = "vec", tag = "6")]
    pub data: Vec<u8>,
}

/// Answers each of them.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WriteContentResponse {
    /// What was done.
    #[prost(enumeration = "WriteAction", tag = "1")]
    pub action: i32,
    /// How much is there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
    /// The size of all of it.
    #[prost(int64, tag = "5")]
    pub total: i64,
    /// The digest of what is there.
    #[prost(string, tag = "6")]
    pub digest: String,
}
