//! `moby.buildkit.v1.Control`: builds, how they get on, and the cache.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1 as api;
use bollard_buildkit_proto::moby::buildkit::v1::control_server::Control as Service;
use bollard_buildkit_proto::moby::buildkit::v1::types::{BuildkitVersion, WorkerRecord};
use bollard_buildkit_proto::pb;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, Streaming};
use vessel_build::request::{BuildRequest, BuildResult, CacheExport, Entitlement, Goal, Output};
use vessel_build::session::NoSession;
use vessel_build::{Builder, CacheRecord, PruneOptions};
use vessel_image::Platform;

use super::convert::{failure, status_response};
use super::jobs::{Asked, Client, Job};
use super::session::ClientSession;
use super::{attributes, exporters, tunnel};
use crate::oplog::{Peer, Pending};
use crate::server::{Busy, State};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Clients choose what they may ask for by the version of BuildKit; this is the one whose services these are.
const VERSION: &str = concat!("v0.20.0+vessel.", env!("CARGO_PKG_VERSION"));

/// The service.
#[derive(Debug)]
pub struct Control {
    state: Arc<State>,
    /// Who calls.
    peer: Option<Arc<Peer>>,
}

impl Control {
    /// On the daemon's engine.
    pub fn new(state: Arc<State>, peer: Option<Arc<Peer>>) -> Self {
        Self { state, peer }
    }
}

/// The session that a call names.
///
/// # Errors
/// There is none.
pub async fn client(state: &State, id: &str) -> Result<Client, Status> {
    if id.is_empty() {
        return Ok(Client {
            connected: None,
            session: Arc::new(NoSession),
        });
    }
    match state.sessions.get(id).await {
        Some(connected) => Ok(Client {
            session: Arc::new(ClientSession {
                connected: Arc::clone(&connected),
                elsewhere: HashMap::new(),
            }),
            connected: Some(connected),
        }),
        None => Err(Status::not_found(format!("no active session for {id}"))),
    }
}

/// The client, with the directories that the attributes `local-sessionid:NAME` say are another session's.
async fn with_directories(
    state: &State,
    client: Client,
    attributes: &attributes::Attributes,
) -> Result<Client, Status> {
    let Some(connected) = client.connected.clone() else {
        return Ok(client);
    };
    let mut elsewhere = HashMap::new();
    for (name, value) in attributes {
        let Some(name) = name.strip_prefix("local-sessionid:") else {
            continue;
        };
        let other = state.sessions.get(value).await;
        let missing = || Status::not_found(format!("no active session for {value}, which is to have {name}"));
        elsewhere.insert(name.to_owned(), other.ok_or_else(missing)?);
    }
    if elsewhere.is_empty() {
        return Ok(client);
    }
    Ok(Client {
        session: Arc::new(ClientSession { connected, elsewhere }),
        ..client
    })
}

/// The daemon's builder.
///
/// # Errors
/// The engine has none.
pub fn builder(state: &State) -> Result<Arc<Builder>, Status> {
    state
        .builder()
        .map_err(|error| Status::unavailable(error.message().to_owned()))
}

/// What the daemon builds for.
pub fn worker() -> WorkerRecord {
    let host = Platform::host();
    let labels = [
        ("org.mobyproject.buildkit.worker.executor", "vessel"),
        ("org.mobyproject.buildkit.worker.network", "vessel"),
        // By this one buildx knows that archives, several platforms and pushes are there.
        ("org.mobyproject.buildkit.worker.snapshotter", "overlayfs"),
    ];
    WorkerRecord {
        id: "vessel".to_owned(),
        labels: labels
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        platforms: vec![pb::Platform {
            architecture: host.architecture,
            os: host.os,
            variant: host.variant.unwrap_or_default(),
            ..pb::Platform::default()
        }],
        buildkit_version: Some(version()),
        ..WorkerRecord::default()
    }
}

fn version() -> BuildkitVersion {
    BuildkitVersion {
        package: "github.com/moby/buildkit".to_owned(),
        version: VERSION.to_owned(),
        revision: String::new(),
    }
}

/// What the request of a build wants beside the front end's attributes.
fn complete(request: &mut BuildRequest, solve: &api::SolveRequest) -> Result<(), String> {
    let cache = solve.cache.clone().unwrap_or_default();
    for entry in &cache.imports {
        let import =
            attributes::cache_import(&entry.r#type, |name| entry.attrs.get(name).map(String::as_str))?;
        if let Some(import) = import.filter(|import| !request.cache_from.contains(import)) {
            request.cache_from.push(import);
        }
    }
    for entry in &cache.exports {
        request
            .cache_to
            .push(exporters::cache(&entry.r#type, &entry.attrs)?);
    }
    if request
        .args
        .get("BUILDKIT_INLINE_CACHE")
        .is_some_and(|value| value.as_deref() == Some("1"))
        && !request.cache_to.contains(&CacheExport::Inline)
    {
        request.cache_to.push(CacheExport::Inline);
    }
    for name in &solve.entitlements {
        // What nobody knows allows nothing.
        request.entitlements.extend(Entitlement::parse(name));
    }
    if solve.exporters.is_empty() && !solve.exporter_deprecated.is_empty() {
        let output = exporters::output(0, &solve.exporter_deprecated, &solve.exporter_attrs_deprecated)?;
        request.outputs.push(output);
    }
    for (index, exporter) in solve.exporters.iter().enumerate() {
        request
            .outputs
            .push(exporters::output(index, &exporter.r#type, &exporter.attrs)?);
    }
    Ok(())
}

/// What the client is told of the result.
pub fn exporter_response(outputs: &[Output], result: &BuildResult) -> HashMap<String, String> {
    let mut response = HashMap::new();
    if let Some(image) = result.images.first() {
        let id = image.id.to_string();
        let digest = result.pushed.as_ref().map(|pushed| &pushed.digest);
        response.insert(
            "containerimage.digest".to_owned(),
            digest.map_or_else(|| id.clone(), ToString::to_string),
        );
        response.insert("containerimage.config.digest".to_owned(), id);
    }
    let names: Vec<&str> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::Image { names, .. } | Output::Archive { names, .. } => Some(names),
            _ => None,
        })
        .flatten()
        .map(String::as_str)
        .collect();
    if !names.is_empty() {
        response.insert("image.name".to_owned(), names.join(","));
    }
    if let Some(pushed) = &result.pushed
        && let Ok(text) = serde_json::to_vec(pushed)
    {
        response.insert(
            "containerimage.descriptor".to_owned(),
            crate::base64::encode(&text),
        );
    }
    if let Some(manifest) = &result.cache_manifest
        && let Ok(text) = serde_json::to_string(manifest)
    {
        response.insert("cache.manifest".to_owned(), text);
    }
    if let Some(answer) = &result.answer {
        response.insert("result.json".to_owned(), answer.json.clone());
        response.insert("result.txt".to_owned(), answer.text.clone());
        response.insert(
            "result.statuscode".to_owned(),
            u8::from(answer.findings > 0).to_string(),
        );
    }
    response
}

/// Builds what a request's front end, or that of its gateway, asks for.
async fn solve(
    state: &Arc<State>,
    builder: &Arc<Builder>,
    job: &Job,
    solve: &api::SolveRequest,
    client: Client,
) -> Result<HashMap<String, String>, Status> {
    if solve
        .definition
        .as_ref()
        .is_some_and(|definition| !definition.def.is_empty())
    {
        return Err(Status::unimplemented(
            "LLB definitions cannot be built: Vessel builds Dockerfiles (front end dockerfile.v0)",
        ));
    }
    let asked = if solve.frontend.is_empty() {
        job.open_gateway(client.clone());
        let returned = tokio::select! {
            returned = job.given_back() => returned?,
            () = client.gone() => return Err(Status::cancelled("the client is gone")),
        };
        let Some(reference) = returned else {
            return Ok(HashMap::new());
        };
        job.asked(&reference)
            .ok_or_else(|| Status::not_found(format!("no such ref {reference}")))?
    } else {
        Asked {
            frontend: solve.frontend.clone(),
            attributes: solve.frontend_attrs.clone(),
        }
    };
    let mut request =
        attributes::parse(&asked.frontend, &asked.attributes).map_err(Status::invalid_argument)?;
    complete(&mut request, solve).map_err(Status::invalid_argument)?;
    if request.goal != Goal::Build {
        request.outputs.clear();
        request.cache_to.clear();
    }
    let outputs = request.outputs.clone();
    let client = with_directories(state, client, &asked.attributes).await?;
    let _context = super::upload::take(state, &client, &mut request).await?;
    let result = Box::pin(job.build(builder, request, client))
        .await
        .map_err(|error| failure(&error))?;
    Ok(exporter_response(&outputs, &result))
}

#[tonic::async_trait]
impl Service for Control {
    async fn solve(
        &self,
        request: Request<api::SolveRequest>,
    ) -> Result<Response<api::SolveResponse>, Status> {
        let request = request.into_inner();
        if request.r#ref.is_empty() {
            return Err(Status::invalid_argument("the build has no reference"));
        }
        let builder = builder(&self.state)?;
        let running = self.state.jobs.begin(&request.r#ref)?;
        let _busy = Busy::new(&self.state);
        let client = client(&self.state, &request.session).await?;
        let logged = self.peer.as_ref().map(|peer| {
            let told = ["target", "filename", "platform"].into_iter().filter_map(|name| {
                let value = request
                    .frontend_attrs
                    .get(name)
                    .filter(|value| !value.is_empty())?;
                Some((name.to_owned(), value.clone()))
            });
            let names = request
                .exporters
                .iter()
                .filter_map(|exporter| exporter.attrs.get("name"));
            let names = names.map(|name| ("t".to_owned(), name.clone()));
            Pending::build(&self.state.log, peer, told.chain(names).collect())
        });
        let built = Box::pin(solve(&self.state, &builder, &running.job, &request, client)).await;
        if let Some(logged) = logged {
            match &built {
                Ok(_) => logged.done(200, ""),
                Err(status) => logged.done(500, &format!("{:?}", status.code())),
            }
        }
        let exporter_response = built?;
        Ok(Response::new(api::SolveResponse { exporter_response }))
    }

    type StatusStream = Answers<api::StatusResponse>;

    async fn status(
        &self,
        request: Request<api::StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        let reference = request.into_inner().r#ref;
        let jobs = Arc::clone(&self.state.jobs);
        // The head goes out at once: the client begins the build with the next call.
        let events = stream::unfold(None, move |listener| {
            let (jobs, reference) = (Arc::clone(&jobs), reference.clone());
            async move {
                let listener = match listener {
                    Some(listener) => listener,
                    None => jobs.listen(&reference).await?,
                };
                let events = listener.next().await?;
                Some((Ok(status_response(events)), Some(listener)))
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn disk_usage(
        &self,
        request: Request<api::DiskUsageRequest>,
    ) -> Result<Response<api::DiskUsageResponse>, Status> {
        let wanted = Wanted::parse(&request.into_inner().filter)?;
        let records = builder(&self.state)?
            .cache_records()
            .await
            .map_err(|error| failure(&error))?;
        let record = records
            .iter()
            .filter(|record| wanted.has(record))
            .map(usage)
            .collect();
        Ok(Response::new(api::DiskUsageResponse { record }))
    }

    type PruneStream = Answers<api::UsageRecord>;

    async fn prune(
        &self,
        request: Request<api::PruneRequest>,
    ) -> Result<Response<Self::PruneStream>, Status> {
        let request = request.into_inner();
        let wanted = Wanted::parse(&request.filter)?;
        let keep = request.reserved_space.max(request.max_used_space);
        let options = PruneOptions {
            all: request.all,
            keep_storage: u64::try_from(keep).ok().filter(|bytes| *bytes > 0),
            unused_for: u64::try_from(request.keep_duration)
                .ok()
                .filter(|nanos| *nanos > 0)
                .map(Duration::from_nanos),
            ids: wanted.ids,
            kinds: wanted.kinds,
            descriptions: wanted.descriptions,
        };
        let builder = builder(&self.state)?;
        let before = builder.cache_records().await.map_err(|error| failure(&error))?;
        let pruned = builder.prune(options).await.map_err(|error| failure(&error))?;
        let records: Vec<_> = pruned
            .ids
            .iter()
            .map(|id| match before.iter().find(|record| record.id == *id) {
                Some(record) => usage(record),
                None => api::UsageRecord {
                    id: id.clone(),
                    ..api::UsageRecord::default()
                },
            })
            .map(Ok)
            .collect();
        Ok(Response::new(Box::pin(stream::iter(records))))
    }

    type SessionStream = Answers<api::BytesMessage>;

    /// A session inside a call, for clients that know nothing of `/session`: `buildctl`, and all that uses BuildKit's
    /// own client.
    async fn session(
        &self,
        request: Request<Streaming<api::BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, messages) = request.into_parts();
        let sessions = Arc::clone(&self.state.sessions);
        let offer = sessions
            .admit(&metadata.into_headers())
            .map_err(|error| Status::invalid_argument(error.message()))?;
        let (connection, answers) = tunnel::open(messages);
        tokio::spawn(async move { sessions.hold(offer, connection).await });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn list_workers(
        &self,
        _: Request<api::ListWorkersRequest>,
    ) -> Result<Response<api::ListWorkersResponse>, Status> {
        Ok(Response::new(api::ListWorkersResponse {
            record: vec![worker()],
        }))
    }

    async fn info(&self, _: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        Ok(Response::new(api::InfoResponse {
            buildkit_version: Some(version()),
        }))
    }

    type ListenBuildHistoryStream = Answers<api::BuildHistoryEvent>;

    /// There is no history of builds: the list is empty.
    async fn listen_build_history(
        &self,
        _: Request<api::BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Ok(Response::new(Box::pin(stream::empty())))
    }

    async fn update_build_history(
        &self,
        request: Request<api::UpdateBuildHistoryRequest>,
    ) -> Result<Response<api::UpdateBuildHistoryResponse>, Status> {
        let request = request.into_inner();
        if request.delete || request.pinned {
            return Err(Status::not_found(format!("no build record {:?}", request.r#ref)));
        }
        Ok(Response::new(api::UpdateBuildHistoryResponse {}))
    }
}

fn usage(record: &CacheRecord) -> api::UsageRecord {
    let time = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bollard_buildkit_proto::google::protobuf::Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        }
    };
    api::UsageRecord {
        id: record.id.clone(),
        mutable: record.kind == "exec.cachemount",
        in_use: record.in_use,
        size: i64::try_from(record.size).unwrap_or(i64::MAX),
        created_at: Some(time(record.created)),
        last_used_at: Some(time(record.last_used)),
        usage_count: i64::try_from(record.usage_count).unwrap_or(i64::MAX),
        description: record.description.clone(),
        record_type: record.kind.to_owned(),
        shared: record.shared,
        ..api::UsageRecord::default()
    }
}

/// The filters that are known, in containerd's form: `id==x`, `id~=x`, `type==x`, `description~=x`, also with one `=`.
#[derive(Debug, Default)]
struct Wanted {
    ids: Vec<String>,
    kinds: Vec<String>,
    descriptions: Vec<String>,
}

impl Wanted {
    fn parse(filters: &[String]) -> Result<Self, Status> {
        let mut wanted = Self::default();
        for filter in filters
            .iter()
            .flat_map(|filter| filter.split(','))
            .filter(|filter| !filter.is_empty())
        {
            let unknown = || {
                Status::invalid_argument(format!(
                    "the filter {filter:?} is not known: id, type and description are"
                ))
            };
            let (name, value) = filter
                .split_once("==")
                .or_else(|| filter.split_once("~="))
                .or_else(|| filter.split_once('='))
                .ok_or_else(unknown)?;
            let value = value.trim_matches('"').to_owned();
            match name {
                "id" => wanted.ids.push(value),
                "type" => wanted.kinds.push(value),
                "description" => wanted.descriptions.push(value),
                _ => return Err(unknown()),
            }
        }
        Ok(wanted)
    }

    fn has(&self, record: &CacheRecord) -> bool {
        let any = |values: &[String], fits: &dyn Fn(&str) -> bool| {
            values.is_empty() || values.iter().any(|value| fits(value))
        };
        any(&self.ids, &|id| record.id.starts_with(id))
            && any(&self.kinds, &|kind| record.kind == kind)
            && any(&self.descriptions, &|text| record.description.contains(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_cache() {
        let wanted =
            Wanted::parse(&["id~=ab,type==regular".to_owned(), "description~=x".to_owned()]).unwrap();
        assert_eq!(
            (wanted.ids, wanted.kinds, wanted.descriptions),
            (vec!["ab".into()], vec!["regular".into()], vec!["x".into()])
        );
        assert!(Wanted::parse(&["until=1h".to_owned()]).is_err());
        assert!(Wanted::parse(&["x".to_owned()]).is_err());
    }
}
