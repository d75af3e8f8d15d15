//! BuildKit's protocols, as today's `docker build` and `docker buildx` speak them.
//!
//! A client opens two connections that leave HTTP/1.1 for HTTP/2 (`Upgrade: h2c`). On `/session` ([`sessions`]) the
//! daemon is the one that calls: for files, secrets, agents and credentials of the client ([`session`]), and to hand
//! results over; it may also come inside a call on the other one ([`tunnel`]). On `/grpc` the client calls: [`control`] is `moby.buildkit.v1.Control`, and [`gateway`] is
//! `moby.buildkit.v1.frontend.LLBBridge`, through which buildx steers a build of its own.
//!
//! What is built is always a Dockerfile, by our own front end: `dockerfile.v0`, or `gateway.v0` with an image of
//! Docker's front end. [`attributes`] reads what the client wants of it. LLB, other front ends and containers of the
//! gateway are refused by a sentence.

pub mod attributes;
mod content;
pub mod context;
mod control;
mod convert;
pub mod exporters;
mod gateway;
mod grpc;
mod health;
pub mod jobs;
pub mod session;
pub mod sessions;
mod transport;
mod tunnel;
mod upload;

pub use control::client;
pub use convert::status_response;
pub use grpc::serve;
pub use upload::take as take_upload;
