//! `POST /grpc`: the services by the path of a call.

use std::convert::Infallible;
use std::sync::Arc;

use bollard_buildkit_proto::health::health_server::HealthServer;
use bollard_buildkit_proto::moby::buildkit::v1::control_server::ControlServer;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridgeServer;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tonic::codegen::http;
use tower::Service;

use super::control::Control;
use super::gateway::Gateway;
use super::health::Well;
use super::sessions::{check_upgrade, upgraded};
use super::transport::{MAX_MESSAGE, serve as serve_http2};
use crate::request::Request;
use crate::response::Answer;
use crate::server::State;

/// Answers `POST /grpc`.
pub fn serve(state: &Arc<State>, mut request: Request) -> Answer {
    check_upgrade(&request)?;
    let upgrade = request.on_upgrade();
    let control = ControlServer::new(Control::new(Arc::clone(state), request.peer.take()))
        .max_decoding_message_size(MAX_MESSAGE);
    let gateway =
        LlbBridgeServer::new(Gateway::new(Arc::clone(state))).max_decoding_message_size(MAX_MESSAGE);
    let health = HealthServer::new(Well);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (mut control, mut gateway, mut health) = (control.clone(), gateway.clone(), health.clone());
        async move {
            let path = request.uri().path();
            let known = |service: &str| {
                path.strip_prefix('/')
                    .and_then(|path| path.strip_prefix(service))
                    .is_some_and(|rest| rest.starts_with('/'))
            };
            if known("moby.buildkit.v1.Control") {
                control.call(request).await
            } else if known("moby.buildkit.v1.frontend.LLBBridge") {
                gateway.call(request).await
            } else if known("grpc.health.v1.Health") {
                health.call(request).await
            } else {
                let status = tonic::Status::unimplemented(format!("{path} is not a service of this daemon"));
                Ok::<http::Response<tonic::body::Body>, Infallible>(status.into_http())
            }
        }
    });
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => {
                if let Err(error) = serve_http2(connection, service).await {
                    tracing::debug!(%error, "a gRPC connection ended");
                }
            }
            Err(error) => tracing::debug!(%error, "the client went away before the upgrade"),
        }
    });
    Ok(upgraded())
}
