//! Connections, bodies, headers: what is HTTP and not a registry.

pub mod body;
pub mod fields;
pub mod mapping;
pub mod patience;
pub mod query;
pub mod receive;
pub mod server;
pub mod tls;
pub mod wire;

pub use body::Body;

/// An answer.
pub type Response = hyper::Response<Body>;
/// A request.
pub type Request = hyper::Request<hyper::body::Incoming>;
