//! Every route there is: method, path, what it is for, what it takes and gives, and who answers.
//!
//! The router searches it, and the description of the API (`GET /openapi.json`) is made of it. In a path `{id}` is one
//! segment and `{id:.*}` one or more: names of images, plugins and links contain slashes. Of several rows that fit the first
//! one counts.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::Method;
use vessel_api as api;
use vessel_api::describe::{Describe, Shape};

use crate::buildkit;
use crate::openapi;
use crate::request::Request;
use crate::response::Answer;
use crate::routes::{
    absent, build, commit, containers, copy, exec, image_explain, images, networks, operations, registries,
    streams, system, usage, volumes,
};
use crate::server::State;

/// An answer on its way.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;
/// Who answers: state, request, and what stands in the places of the path.
pub type Handler = for<'a> fn(&'a Arc<State>, Request, &'a [String]) -> Answering<'a>;

/// A row.
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, without a version.
    pub path: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// Parameters of the query.
    pub query: &'static [Parameter],
    /// The body it takes.
    pub body: Body,
    /// The status of success, and what comes with it.
    pub answer: (u16, Body),
    /// Who answers.
    pub handler: Handler,
}

impl Route {
    /// Method and path, by which it is called elsewhere.
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// A parameter of a query.
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
}

/// Kinds of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// True or false.
    Flag,
    /// A whole number.
    Number,
    /// Text.
    Text,
    /// Several of it.
    List,
    /// A JSON object of filters.
    Filters,
}

/// What bodies are.
#[derive(Clone, Copy)]
pub enum Body {
    /// Nothing.
    None,
    /// JSON of this shape.
    Json(fn() -> Shape),
    /// JSON without a shape of its own.
    Object,
    /// Values of JSON, one after the other.
    Lines,
    /// A tar archive.
    Tar,
    /// Text.
    Text,
    /// The connection becomes a stream of bytes.
    Raw,
}

const fn flag(name: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Flag,
    }
}

const fn number(name: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Number,
    }
}

const fn text(name: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::Text,
    }
}

const fn list(name: &'static str) -> Parameter {
    Parameter {
        name,
        kind: Kind::List,
    }
}

const FILTERS: Parameter = Parameter {
    name: "filters",
    kind: Kind::Filters,
};

const NONE: Body = Body::None;

const fn of<T: Describe>() -> Body {
    Body::Json(T::describe)
}

/// One row: method, path, summary, query, body, answer, handler.
macro_rules! rows {
    ($(
        $method:ident $path:literal, $summary:literal, [$($parameter:expr),*], $body:expr => $status:literal $answer:expr,
        |$state:pat_param, $request:pat_param, $places:pat_param| $call:expr;
    )*) => {
        &[ $( Route {
            method: Method::$method,
            path: $path,
            summary: $summary,
            query: &[$($parameter),*],
            body: $body,
            answer: ($status, $answer),
            handler: |$state, $request, $places| Box::pin(async move { $call }),
        } ),* ]
    };
}

/// All of them.
pub static ROUTES: &[Route] = rows! {
    GET "/_ping", "Whether the daemon is there, and which versions it speaks", [], NONE => 200 Body::Text,
        |_, r, _| system::ping(&r);
    HEAD "/_ping", "The same, without a body", [], NONE => 200 NONE, |_, r, _| system::ping(&r);
    GET "/version", "Versions of the daemon and its parts", [], NONE => 200 of::<api::Version>(), |s, _, _| system::version(s);
    GET "/info", "The daemon and its host", [], NONE => 200 of::<api::Info>(), |s, _, _| system::info(s);
    GET "/events", "What happened and happens", [text("since"), text("until"), FILTERS], NONE => 200 Body::Lines,
        |s, r, _| system::events(s, &r);
    GET "/system/df", "What takes how much of the disk", [list("type"), flag("verbose"), flag("vessel")], NONE => 200 of::<api::DiskUsage>(),
        |s, r, _| usage::disk_usage(s, &r).await;
    GET "/vessel/explain", "Where everything on the host comes from, and what frees it", [], NONE
        => 200 of::<api::Explanation>(), |s, _, _| operations::explain(s).await;
    GET "/vessel/bin", "What was removed and can be brought back, the newest first", [], NONE => 200 of::<api::BinList>(),
        |s, _, _| operations::bin(s).await;
    POST "/vessel/bin/empty", "Remove it for good", [], NONE => 200 of::<api::BinEmptied>(), |s, _, _| operations::empty(s).await;
    POST "/vessel/undo", "Bring back what the last command removed, or another one", [], of::<api::UndoRequest>()
        => 200 of::<api::UndoReport>(), |s, r, _| operations::undo(s, r).await;
    GET "/vessel/exec/{id}/ws", "Start a prepared process over a websocket", [], NONE => 101 Body::Raw,
        |s, r, p| exec::start_websocket(s, r, &p[0]).await;
    GET "/vessel/log", "Who did what, the newest last", [text("since"), text("until"), text("tail"), flag("follow")], NONE
        => 200 Body::Lines, |s, r, _| operations::log(s, &r);
    GET "/openapi.json", "This description", [], NONE => 200 Body::Object, |_, _, _| openapi::answer();
    POST "/auth", "Log in to a registry", [], Body::Object => 200 Body::Object, |s, r, _| registries::auth(s, r).await;
    GET "/distribution/{name:.*}/json", "What a name stands for at its registry", [], NONE => 200 Body::Object,
        |s, r, p| registries::distribution(s, &r, &p[0]).await;

    GET "/containers/json", "List containers", [flag("all"), number("limit"), flag("size"), FILTERS], NONE
        => 200 of::<Vec<api::ContainerSummary>>(), |s, r, _| containers::list(s, &r).await;
    POST "/containers/create", "Create a container", [text("name"), text("platform")], of::<api::ContainerCreateRequest>()
        => 201 of::<api::ContainerCreateResponse>(), |s, r, _| containers::create(s, r).await;
    POST "/containers/prune", "Remove containers that do not run", [FILTERS], NONE
        => 200 of::<api::ContainersPruneReport>(), |s, r, _| containers::prune(s, &r).await;
    GET "/containers/{id:.*}/json", "Everything about a container", [flag("size")], NONE
        => 200 of::<api::ContainerInspect>(), |s, r, p| containers::inspect(s, &r, &p[0]).await;
    GET "/containers/{id:.*}/top", "Its processes", [text("ps_args")], NONE => 200 of::<api::TopResponse>(),
        |s, r, p| containers::top(s, &r, &p[0]).await;
    GET "/containers/{id:.*}/changes", "How its files differ from its image's", [], NONE => 200 of::<Vec<api::Change>>(),
        |s, _, p| copy::changes(s, &p[0]).await;
    GET "/containers/{id:.*}/export", "Its files", [], NONE => 200 Body::Tar, |s, _, p| copy::export(s, &p[0]).await;
    GET "/containers/{id:.*}/archive", "Files at a path", [text("path")], NONE => 200 Body::Tar,
        |s, r, p| copy::get(s, &r, &p[0]).await;
    HEAD "/containers/{id:.*}/archive", "What is at a path", [text("path")], NONE => 200 NONE,
        |s, r, p| copy::head(s, &r, &p[0]).await;
    PUT "/containers/{id:.*}/archive", "Unpack files into a directory",
        [text("path"), flag("noOverwriteDirNonDir"), flag("copyUIDGID")], Body::Tar => 200 NONE,
        |s, r, p| copy::put(s, r, &p[0]).await;
    GET "/containers/{id:.*}/logs", "Its log",
        [flag("follow"), flag("stdout"), flag("stderr"), text("since"), text("until"), flag("timestamps"), flag("details"),
        text("tail")], NONE => 200 Body::Raw, |s, r, p| streams::logs(s, &r, &p[0]).await;
    GET "/containers/{id:.*}/stats", "What it uses", [flag("stream"), flag("one-shot")], NONE => 200 of::<api::Stats>(),
        |s, r, p| streams::stats(s, &r, &p[0]).await;
    GET "/containers/{id:.*}/attach/ws", "Attach over a websocket",
        [text("detachKeys"), flag("logs"), flag("stream"), flag("stdin"), flag("stdout"), flag("stderr")], NONE => 101 Body::Raw,
        |s, r, p| streams::attach_websocket(s, r, &p[0]).await;
    POST "/containers/{id:.*}/attach", "Attach to its streams",
        [text("detachKeys"), flag("logs"), flag("stream"), flag("stdin"), flag("stdout"), flag("stderr")], NONE => 101 Body::Raw,
        |s, r, p| streams::attach(s, r, &p[0]).await;
    POST "/containers/{id:.*}/wait", "Wait for its end", [text("condition")], NONE => 200 of::<api::WaitResponse>(),
        |s, r, p| streams::wait(s, &r, &p[0]);
    POST "/containers/{id:.*}/exec", "Prepare another process in it", [], of::<api::ExecCreateRequest>()
        => 201 of::<api::ExecCreateResponse>(), |s, r, p| exec::create(s, r, &p[0]).await;
    POST "/containers/{id:.*}/start", "Start it", [text("detachKeys")], NONE => 204 NONE,
        |s, r, p| containers::start(s, &r, &p[0]).await;
    POST "/containers/{id:.*}/stop", "Stop it", [text("signal"), number("t")], NONE => 204 NONE,
        |s, r, p| containers::stop(s, &r, &p[0]).await;
    POST "/containers/{id:.*}/restart", "Stop and start it", [text("signal"), number("t")], NONE => 204 NONE,
        |s, r, p| containers::restart(s, &r, &p[0]).await;
    POST "/containers/{id:.*}/kill", "Send it a signal", [text("signal")], NONE => 204 NONE,
        |s, r, p| containers::kill(s, &r, &p[0]).await;
    POST "/containers/{id:.*}/pause", "Freeze it", [], NONE => 204 NONE, |s, _, p| containers::pause(s, &p[0]).await;
    POST "/containers/{id:.*}/unpause", "Thaw it", [], NONE => 204 NONE, |s, _, p| containers::unpause(s, &p[0]).await;
    POST "/containers/{id:.*}/rename", "Give it another name", [text("name")], NONE => 204 NONE,
        |s, r, p| containers::rename(s, &r, &p[0]).await;
    POST "/containers/{id:.*}/resize", "Change the size of its terminal", [number("h"), number("w")], NONE => 200 NONE,
        |s, r, p| containers::resize(s, &r, &p[0]).await;
    POST "/containers/{id:.*}/update", "Change its limits", [], of::<api::UpdateRequest>() => 200 of::<api::UpdateResponse>(),
        |s, r, p| containers::update(s, r, &p[0]).await;
    GET "/containers/{id:.*}/checkpoints", "Checkpoints: there are none", [text("dir")], NONE => 501 NONE,
        |_, _, _| absent::checkpoints();
    POST "/containers/{id:.*}/checkpoints", "Checkpoints: there are none", [], NONE => 501 NONE, |_, _, _| absent::checkpoints();
    DELETE "/containers/{id:.*}/checkpoints/{checkpoint}", "Checkpoints: there are none", [text("dir")], NONE => 501 NONE,
        |_, _, _| absent::checkpoints();
    DELETE "/containers/{id:.*}", "Remove it, or a link", [flag("v"), flag("force"), flag("link")], NONE => 204 NONE,
        |s, r, p| containers::remove(s, &r, &p[0]).await;
    POST "/commit", "Make an image of a container",
        [text("container"), text("repo"), text("tag"), text("comment"), text("author"), flag("pause"), list("changes")],
        of::<api::ContainerConfig>() => 201 of::<api::CommitResponse>(), |s, r, _| commit::commit(s, r).await;
    POST "/exec/{id}/start", "Start a prepared process", [], of::<api::ExecStartRequest>() => 101 Body::Raw,
        |s, r, p| exec::start(s, r, &p[0]).await;
    POST "/exec/{id}/resize", "Change the size of its terminal", [number("h"), number("w")], NONE => 200 NONE,
        |s, r, p| exec::resize(s, r, &p[0]).await;
    GET "/exec/{id}/json", "Everything about it", [], NONE => 200 of::<api::ExecInspect>(), |s, _, p| exec::inspect(s, &p[0]).await;

    GET "/images/json", "List images", [flag("all"), flag("digests"), flag("shared-size"), flag("manifests"), flag("identity"), text("filter"), FILTERS], NONE
        => 200 of::<Vec<api::ImageSummary>>(), |s, r, _| images::list(s, &r).await;
    GET "/images/get", "Images as an archive", [list("names"), text("platform")], NONE => 200 Body::Tar,
        |s, r, _| images::save(s, &r, None).await;
    GET "/images/search", "Search a registry", [text("term"), number("limit"), FILTERS], NONE => 200 Body::Object,
        |s, r, _| registries::search(s, &r).await;
    POST "/images/load", "Load images of an archive", [flag("quiet"), text("platform")], Body::Tar => 200 Body::Lines,
        |s, r, _| images::load(s, r).await;
    POST "/images/create", "Pull an image, or make one of an archive of files",
        [text("fromImage"), text("fromSrc"), text("repo"), text("tag"), text("message"), text("platform"), list("changes")],
        Body::Tar => 200 Body::Lines, |s, r, _| images::create(s, r).await;
    POST "/images/prune", "Remove images nobody uses", [FILTERS], NONE => 200 of::<api::ImagesPruneReport>(),
        |s, r, _| images::prune(s, &r).await;
    GET "/images/{name:.*}/json", "Everything about an image", [], NONE => 200 of::<api::ImageInspect>(),
        |s, _, p| images::inspect(s, &p[0]).await;
    GET "/images/{name:.*}/attestations", "Statements about it that came with it, from 1.55",
        [list("platform"), list("type"), flag("statement")], NONE => 200 of::<Vec<api::AttestationStatement>>(),
        |s, r, p| images::attestations(s, &r, &p[0]).await;
    GET "/images/{name:.*}/history", "How it was made", [text("platform")], NONE => 200 of::<Vec<api::HistoryItem>>(),
        |s, r, p| images::history(s, &r, &p[0]).await;
    GET "/images/{name:.*}/explain", "What its layers hold, and what of it is wasted", [], NONE
        => 200 of::<api::ImageExplanation>(), |s, _, p| image_explain::explain(s, &p[0]).await;
    GET "/images/{name:.*}/diff", "What differs between two images", [text("to")], NONE => 200 Body::Object,
        |s, r, p| image_explain::diff(s, &r, &p[0]).await;
    GET "/images/{name:.*}/get", "An image as an archive", [text("platform")], NONE => 200 Body::Tar,
        |s, r, p| images::save(s, &r, Some(p[0].clone())).await;
    POST "/images/{name:.*}/tag", "Give it one name more", [text("repo"), text("tag")], NONE => 201 NONE,
        |s, r, p| images::tag(s, &r, &p[0]).await;
    POST "/images/{name:.*}/push", "Push it to its registry", [text("tag"), text("platform")], NONE => 200 Body::Lines,
        |s, r, p| images::push(s, r, p[0].clone()).await;
    DELETE "/images/{name:.*}", "Remove a name, or the image", [flag("force"), flag("noprune")], NONE
        => 200 of::<Vec<api::ImageDeleteItem>>(), |s, r, p| images::remove(s, &r, &p[0]).await;

    POST "/build", "Build an image",
        [text("dockerfile"), list("t"), text("remote"), flag("q"), flag("nocache"), flag("pull"), flag("rm"), flag("forcerm"),
        text("buildargs"), text("labels"), text("target"), text("platform"), text("networkmode"), text("version"),
        flag("squash"), text("cachefrom"), number("memory"), number("memswap"), number("cpushares"), number("cpuquota"),
        number("cpuperiod"), text("cpusetcpus"), text("cpusetmems"), number("shmsize"), list("extrahosts"), text("ulimits"),
        text("cgroupparent"), text("outputs"), text("session"), text("buildid")], Body::Tar
        => 200 Body::Lines, |s, r, _| build::build(s, r).await;
    POST "/build/cancel", "Cancel a build", [text("id")], NONE => 204 NONE, |s, r, _| build::cancel(s, &r);
    POST "/build/prune", "Remove records of the build cache",
        [flag("all"), number("keep-storage"), number("reserved-space"), number("max-used-space"), number("min-free-space"), FILTERS],
        NONE => 200 Body::Object, |s, r, _| build::prune(s, &r).await;
    POST "/session", "Answer calls of builds (HTTP/2 after an upgrade)", [], NONE => 101 Body::Raw,
        |s, r, _| s.sessions.accept(r);
    POST "/grpc", "BuildKit's calls (HTTP/2 after an upgrade)", [], NONE => 101 Body::Raw, |s, r, _| buildkit::serve(s, r);

    GET "/networks", "List networks", [FILTERS], NONE => 200 of::<Vec<api::Network>>(), |s, r, _| networks::list(s, &r).await;
    POST "/networks/create", "Make a network", [], of::<api::NetworkCreateRequest>() => 201 of::<api::NetworkCreateResponse>(),
        |s, r, _| networks::create(s, r).await;
    POST "/networks/prune", "Remove networks nobody uses", [FILTERS], NONE => 200 of::<api::NetworksPruneReport>(),
        |s, r, _| networks::prune(s, &r).await;
    POST "/networks/{id:.*}/connect", "Connect a container", [], of::<api::NetworkConnectRequest>() => 200 NONE,
        |s, r, p| networks::connect(s, r, &p[0]).await;
    POST "/networks/{id:.*}/disconnect", "Disconnect a container", [], of::<api::NetworkDisconnectRequest>() => 200 NONE,
        |s, r, p| networks::disconnect(s, r, &p[0]).await;
    GET "/networks/{id:.*}", "Everything about a network", [text("scope"), flag("verbose")], NONE => 200 of::<api::Network>(),
        |s, r, p| networks::inspect(s, &r, &p[0]).await;
    DELETE "/networks/{id:.*}", "Remove it", [], NONE => 204 NONE, |s, _, p| networks::remove(s, &p[0]).await;

    GET "/volumes", "List volumes", [FILTERS], NONE => 200 of::<api::VolumeList>(), |s, r, _| volumes::list(s, &r).await;
    POST "/volumes/create", "Make a volume", [], of::<api::VolumeCreateRequest>() => 201 of::<api::Volume>(),
        |s, r, _| volumes::create(s, r).await;
    POST "/volumes/prune", "Remove volumes nobody uses", [FILTERS], NONE => 200 of::<api::VolumesPruneReport>(),
        |s, r, _| volumes::prune(s, &r).await;
    GET "/volumes/{name:.*}/archive", "Its files, of Vessel only", [], NONE => 200 Body::Tar,
        |s, _, p| volumes::archive(s, &p[0]).await;
    PUT "/volumes/{name:.*}/archive", "Fill an empty volume, or a new one, of Vessel only", [text("labels")], Body::Tar => 200 of::<api::Volume>(),
        |s, r, p| volumes::extract(s, r, &p[0]).await;
    POST "/volumes/{name:.*}/clone", "Copy it into a new one, of Vessel only", [], of::<api::VolumeCloneRequest>() => 201 of::<api::Volume>(),
        |s, r, p| volumes::clone(s, r, &p[0]).await;
    GET "/volumes/{name:.*}", "Everything about a volume", [], NONE => 200 of::<api::Volume>(),
        |s, _, p| volumes::inspect(s, &p[0]).await;
    DELETE "/volumes/{name:.*}", "Remove it", [flag("force")], NONE => 204 NONE, |s, r, p| volumes::remove(s, &r, &p[0]).await;
    PUT "/volumes/{name:.*}", "Cluster volumes: there is no swarm", [number("version")], NONE => 503 NONE,
        |_, _, _| absent::not_a_manager();

    GET "/plugins", "Plugins: there are none", [FILTERS], NONE => 200 Body::Object, |_, _, _| absent::no_plugins();
    GET "/plugins/privileges", "What a plugin would be granted: nothing", [text("remote")], NONE => 200 Body::Object,
        |_, _, _| absent::no_plugins();
    POST "/plugins/pull", "Plugins: there are none", [text("remote"), text("name")], NONE => 501 NONE,
        |_, _, _| absent::plugins_missing();
    POST "/plugins/create", "Plugins: there are none", [text("name")], Body::Tar => 501 NONE, |_, _, _| absent::plugins_missing();
    GET "/plugins/{name:.*}/json", "Plugins: there are none", [], NONE => 404 NONE, |_, _, p| absent::no_plugin(&p[0]);
    POST "/plugins/{name:.*}/enable", "Plugins: there are none", [number("timeout")], NONE => 404 NONE,
        |_, _, p| absent::no_plugin(&p[0]);
    POST "/plugins/{name:.*}/disable", "Plugins: there are none", [flag("force")], NONE => 404 NONE,
        |_, _, p| absent::no_plugin(&p[0]);
    POST "/plugins/{name:.*}/upgrade", "Plugins: there are none", [text("remote")], NONE => 404 NONE,
        |_, _, p| absent::no_plugin(&p[0]);
    POST "/plugins/{name:.*}/push", "Plugins: there are none", [], NONE => 404 NONE, |_, _, p| absent::no_plugin(&p[0]);
    POST "/plugins/{name:.*}/set", "Plugins: there are none", [], NONE => 404 NONE, |_, _, p| absent::no_plugin(&p[0]);
    DELETE "/plugins/{name:.*}", "Plugins: there are none", [flag("force")], NONE => 404 NONE, |_, _, p| absent::no_plugin(&p[0]);

    POST "/swarm/init", "Begin a swarm: not possible", [], NONE => 501 NONE, |_, _, _| absent::no_swarm_mode();
    POST "/swarm/join", "Join a swarm: not possible", [], NONE => 501 NONE, |_, _, _| absent::no_swarm_mode();
    POST "/swarm/leave", "Swarm: this node is in none", [flag("force")], NONE => 503 NONE, |_, _, _| absent::not_in_a_swarm();
    POST "/swarm/update", "Swarm: this node is in none", [number("version")], NONE => 503 NONE,
        |_, r, _| absent::needs_version(&r, "swarm");
    GET "/swarm", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/swarm/unlockkey", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/swarm/unlock", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/nodes", "Swarm: this node is in none", [FILTERS], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/nodes/{id}/update", "Swarm: this node is in none", [number("version")], NONE => 503 NONE,
        |_, r, _| absent::needs_version(&r, "node");
    GET "/nodes/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    DELETE "/nodes/{id}", "Swarm: this node is in none", [flag("force")], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/services", "Swarm: this node is in none", [FILTERS], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/services/create", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/services/{id}/update", "Swarm: this node is in none", [number("version")], NONE => 503 NONE,
        |_, r, _| absent::needs_version(&r, "service");
    GET "/services/{id}/logs", "Swarm: this node is in none", [flag("stdout"), flag("stderr")], NONE => 503 NONE,
        |_, r, _| absent::needs_stream(&r);
    GET "/services/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    DELETE "/services/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/tasks", "Swarm: this node is in none", [FILTERS], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/tasks/{id}/logs", "Swarm: this node is in none", [flag("stdout"), flag("stderr")], NONE => 503 NONE,
        |_, r, _| absent::needs_stream(&r);
    GET "/tasks/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/secrets", "Swarm: this node is in none", [FILTERS], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/secrets/create", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/secrets/{id}/update", "Swarm: this node is in none", [number("version")], NONE => 503 NONE,
        |_, r, _| absent::needs_version(&r, "secret");
    GET "/secrets/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    DELETE "/secrets/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    GET "/configs", "Swarm: this node is in none", [FILTERS], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/configs/create", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    POST "/configs/{id}/update", "Swarm: this node is in none", [number("version")], NONE => 503 NONE,
        |_, r, _| absent::needs_version(&r, "config");
    GET "/configs/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
    DELETE "/configs/{id}", "Swarm: this node is in none", [], NONE => 503 NONE, |_, _, _| absent::not_a_manager();
};
