//! `moby.buildkit.v1.frontend.LLBBridge`: a client that steers its own build, as buildx does.
//!
//! Such a client asks for results of front ends and says at the end which one is the build's. Nothing is made before
//! that, except what it asks about: the answers of `requestid`, and results it wants made at once. The build it belongs
//! to is in a header of every call. What would need a result's files or a container is refused.

use std::pin::Pin;
use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::v1::apicaps::ApiCap;
use bollard_buildkit_proto::moby::buildkit::v1::frontend as api;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_server::LlbBridge;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::result;
use futures_util::Stream;
use tonic::{Code, Request, Response, Status, Streaming};
use vessel_build::request::{BuildResult, Goal, Output};

use super::attributes;
use super::control::{builder, worker};
use super::convert::{failure, value};
use super::jobs::{Asked, Job};
use crate::server::{Busy, State};

const BUILD: &str = "buildkit-controlapi-buildid";
const SUBREQUEST_VERSION: &str = "1.0.0";

/// What clients may use of the gateway.
const GATEWAY: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "return",
    "returnmap",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
];

/// What clients look for before they use it in the front end's attributes or the exporters.
const FEATURES: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.git",
    "source.git.keepgitdir",
    "source.http",
    "source.http.checksum",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.security",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.tmpfs",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.secretenv",
    "file.base",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "exporter.image.annotations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
];

/// The service.
#[derive(Debug)]
pub struct Gateway {
    state: Arc<State>,
}

impl Gateway {
    /// On the daemon's builds.
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    async fn job<T>(&self, request: &Request<T>) -> Result<Arc<Job>, Status> {
        let reference = value(request, BUILD);
        if reference.is_empty() {
            return Err(Status::invalid_argument(format!(
                "no buildid found in the header {BUILD}"
            )));
        }
        let job = self.state.jobs.get(reference).await;
        job.ok_or_else(|| Status::not_found(format!("no such job {reference}")))
    }

    /// Makes what was asked for, for its answer or for the cache alone.
    async fn make(&self, job: &Job, asked: &Asked) -> Result<BuildResult, Status> {
        let mut request =
            attributes::parse(&asked.frontend, &asked.attributes).map_err(Status::invalid_argument)?;
        if request.goal == Goal::Build {
            request.outputs = vec![Output::CacheOnly];
        }
        let client = job
            .client()
            .await
            .ok_or_else(|| Status::failed_precondition("the build has no gateway"))?;
        let _busy = Busy::new(&self.state);
        job.build(&builder(&self.state)?, request, client)
            .await
            .map_err(|error| failure(&error))
    }

    async fn evaluate_reference(&self, job: &Job, reference: &str) -> Result<(), Status> {
        let asked = job
            .asked(reference)
            .ok_or_else(|| Status::not_found(format!("no such ref {reference}")))?;
        self.make(job, &asked).await.map(drop)
    }
}

fn capabilities(names: &[&str]) -> Vec<ApiCap> {
    names
        .iter()
        .map(|name| ApiCap {
            id: (*name).to_owned(),
            enabled: true,
            ..ApiCap::default()
        })
        .collect()
}

fn absent(what: &str) -> Status {
    Status::unimplemented(format!(
        "{what} of a build's gateway are not there: Vessel builds Dockerfiles"
    ))
}

/// The answer to a question about a Dockerfile.
fn answer(result: BuildResult) -> api::SolveResponse {
    let answer = result.answer.unwrap_or_default();
    let status = u8::from(answer.findings > 0).to_string();
    let metadata = [
        ("result.json", answer.json),
        ("result.txt", answer.text),
        ("result.statuscode", status),
        ("version", SUBREQUEST_VERSION.to_owned()),
    ];
    api::SolveResponse {
        r#ref: String::new(),
        result: Some(api::Result {
            metadata: metadata
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into_bytes()))
                .collect(),
            ..api::Result::default()
        }),
    }
}

/// The reference of a result, when it has one.
fn reference(result: Option<api::Result>) -> Option<String> {
    let id = match result?.result? {
        result::Result::RefDeprecated(id) => id,
        result::Result::RefsDeprecated(map) => map.refs.into_values().next()?,
        result::Result::Ref(reference) => reference.id,
        result::Result::Refs(map) => map.refs.into_values().next()?.id,
    };
    Some(id).filter(|id| !id.is_empty())
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    async fn ping(&self, request: Request<api::PingRequest>) -> Result<Response<api::PongResponse>, Status> {
        self.job(&request).await?;
        Ok(Response::new(api::PongResponse {
            frontend_api_caps: capabilities(GATEWAY),
            llb_caps: capabilities(FEATURES),
            workers: vec![worker()],
        }))
    }

    async fn solve(
        &self,
        request: Request<api::SolveRequest>,
    ) -> Result<Response<api::SolveResponse>, Status> {
        let job = self.job(&request).await?;
        let request = request.into_inner();
        if request
            .definition
            .is_some_and(|definition| !definition.def.is_empty())
            || !request.frontend_inputs.is_empty()
        {
            return Err(Status::unimplemented(
                "LLB definitions cannot be built: Vessel builds Dockerfiles (front end dockerfile.v0)",
            ));
        }
        let mut asked = Asked {
            frontend: request.frontend,
            attributes: request.frontend_opt,
        };
        add_imports(&mut asked, &request.cache_imports)?;
        let parsed =
            attributes::parse(&asked.frontend, &asked.attributes).map_err(Status::invalid_argument)?;
        if parsed.goal != Goal::Build {
            return Ok(Response::new(answer(self.make(&job, &asked).await?)));
        }
        if request.evaluate {
            self.make(&job, &asked).await?;
        }
        let id = job.ask(asked)?;
        let mut response = api::SolveResponse::default();
        if request.allow_result_return {
            let result = if request.allow_result_array_ref {
                result::Result::Ref(api::Ref { id, def: None })
            } else {
                result::Result::RefDeprecated(id)
            };
            response.result = Some(api::Result {
                result: Some(result),
                ..api::Result::default()
            });
        } else {
            response.r#ref = id;
        }
        Ok(Response::new(response))
    }

    async fn r#return(
        &self,
        request: Request<api::ReturnRequest>,
    ) -> Result<Response<api::ReturnResponse>, Status> {
        let job = self.job(&request).await?;
        let request = request.into_inner();
        job.give_back(match request.error {
            Some(error) if error.code != 0 => Err(Status::new(Code::from(error.code), error.message)),
            _ => Ok(reference(request.result)),
        });
        Ok(Response::new(api::ReturnResponse {}))
    }

    async fn evaluate(
        &self,
        request: Request<api::EvaluateRequest>,
    ) -> Result<Response<api::EvaluateResponse>, Status> {
        let job = self.job(&request).await?;
        self.evaluate_reference(&job, &request.into_inner().r#ref).await?;
        Ok(Response::new(api::EvaluateResponse {}))
    }

    async fn warn(&self, request: Request<api::WarnRequest>) -> Result<Response<api::WarnResponse>, Status> {
        self.job(&request).await?;
        Ok(Response::new(api::WarnResponse {}))
    }

    async fn inputs(
        &self,
        request: Request<api::InputsRequest>,
    ) -> Result<Response<api::InputsResponse>, Status> {
        self.job(&request).await?;
        Ok(Response::new(api::InputsResponse::default()))
    }

    async fn resolve_image_config(
        &self,
        _: Request<api::ResolveImageConfigRequest>,
    ) -> Result<Response<api::ResolveImageConfigResponse>, Status> {
        Err(absent("configurations of images"))
    }

    async fn resolve_source_meta(
        &self,
        _: Request<api::ResolveSourceMetaRequest>,
    ) -> Result<Response<api::ResolveSourceMetaResponse>, Status> {
        Err(absent("properties of sources"))
    }

    async fn read_file(
        &self,
        _: Request<api::ReadFileRequest>,
    ) -> Result<Response<api::ReadFileResponse>, Status> {
        Err(absent("files"))
    }

    async fn read_dir(
        &self,
        _: Request<api::ReadDirRequest>,
    ) -> Result<Response<api::ReadDirResponse>, Status> {
        Err(absent("files"))
    }

    async fn stat_file(
        &self,
        _: Request<api::StatFileRequest>,
    ) -> Result<Response<api::StatFileResponse>, Status> {
        Err(absent("files"))
    }

    async fn new_container(
        &self,
        _: Request<api::NewContainerRequest>,
    ) -> Result<Response<api::NewContainerResponse>, Status> {
        Err(absent("containers"))
    }

    async fn release_container(
        &self,
        _: Request<api::ReleaseContainerRequest>,
    ) -> Result<Response<api::ReleaseContainerResponse>, Status> {
        Err(absent("containers"))
    }

    type ExecProcessStream = Pin<Box<dyn Stream<Item = Result<api::ExecMessage, Status>> + Send>>;

    async fn exec_process(
        &self,
        _: Request<Streaming<api::ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        Err(absent("containers"))
    }

    async fn read_file_container(
        &self,
        _: Request<api::ReadFileRequest>,
    ) -> Result<Response<api::ReadFileResponse>, Status> {
        Err(absent("containers"))
    }

    async fn read_dir_container(
        &self,
        _: Request<api::ReadDirRequest>,
    ) -> Result<Response<api::ReadDirResponse>, Status> {
        Err(absent("containers"))
    }

    async fn stat_file_container(
        &self,
        _: Request<api::StatFileRequest>,
    ) -> Result<Response<api::StatFileResponse>, Status> {
        Err(absent("containers"))
    }
}

/// Caches that the gateway names beside the attributes: references join `cache-from`.
fn add_imports(asked: &mut Asked, imports: &[api::CacheOptionsEntry]) -> Result<(), Status> {
    for entry in imports {
        let import =
            attributes::cache_import(&entry.r#type, |name| entry.attrs.get(name).map(String::as_str))
                .map_err(Status::invalid_argument)?;
        if let Some(vessel_build::request::CacheImport::Registry(reference)) = import {
            let all = asked.attributes.entry("cache-from".to_owned()).or_default();
            if !all.is_empty() {
                all.push(',');
            }
            all.push_str(&reference);
        }
    }
    Ok(())
}
