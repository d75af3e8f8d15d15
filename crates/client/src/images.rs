//! Images.

use std::io::Read;

use vessel_api::{
    CommitResponse, HistoryItem, ImageDeleteItem, ImageDifference, ImageExplanation, ImageInspect,
    ImageSummary, ImagesPruneReport, JsonMessage,
};

use crate::request::{Method, Response};
use crate::{Client, Filters, JsonStream, Query, Result, encode};

/// An image to pull.
#[derive(Debug, Clone, Default)]
pub struct ImageCreateOptions {
    /// The repository, with the registry's name.
    pub from_image: String,
    /// A tag or a digest; empty for all tags.
    pub tag: String,
    /// `os[/arch[/variant]]`, or empty for the daemon's own.
    pub platform: String,
    /// What to show to the registry: the value of `X-Registry-Auth`.
    pub credentials: String,
}

/// What a registry said to credentials.
#[derive(Debug, Clone, Default, serde::Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct AuthAnswer {
    /// In words.
    pub status: String,
    /// What replaces the password, if it is not empty.
    pub identity_token: String,
}

/// A root file system to make an image of.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// `-` for the request's body, or an URL.
    pub source: String,
    /// The new image's name; empty for none.
    pub repo: String,
    /// Its tag.
    pub tag: String,
    /// Kept in its history.
    pub message: String,
    /// Lines of a Dockerfile.
    pub changes: Vec<String>,
    /// `os[/arch[/variant]]`, or empty for the daemon's own.
    pub platform: String,
}

/// A container to make an image of.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// The container.
    pub container: String,
    /// The new image's name; empty for none.
    pub repo: String,
    /// Its tag.
    pub tag: String,
    /// Kept in its history.
    pub comment: String,
    /// Who made it.
    pub author: String,
    /// Whether the container is paused meanwhile.
    pub pause: bool,
    /// Lines of a Dockerfile.
    pub changes: Vec<String>,
}

impl Client {
    /// `POST /commit`: makes an image of a container, and returns its ID.
    pub fn container_commit(&self, options: &CommitOptions) -> Result<String> {
        let mut query = Query::new()
            .add("container", &options.container)
            .text("repo", &options.repo)
            .text("tag", &options.tag)
            .text("comment", &options.comment)
            .text("author", &options.author)
            .add("pause", u8::from(options.pause));
        for change in &options.changes {
            query = query.add("changes", change);
        }
        let answer: CommitResponse = self.request(Method::Post, "/commit", &query)?.json()?;
        Ok(answer.id)
    }

    /// `GET /images/json`
    pub fn image_list(&self, all: bool, digests: bool, filters: &Filters) -> Result<Vec<ImageSummary>> {
        let query = Query::new()
            .flag("all", all)
            .flag("digests", digests)
            .filters(filters);
        self.get("/images/json", &query)
    }

    /// `GET /images/{name}/json`
    pub fn image_inspect(&self, name: &str) -> Result<ImageInspect> {
        self.get(&format!("/images/{}/json", encode(name)), &Query::new())
    }

    /// `GET /images/{name}/json`, as the daemon wrote it.
    pub fn image_inspect_raw(&self, name: &str) -> Result<serde_json::Value> {
        self.get(&format!("/images/{}/json", encode(name)), &Query::new())
    }

    /// `GET /images/{name}/history`, of an image that must be for a platform if it is not empty.
    pub fn image_history(&self, name: &str, platform: &str) -> Result<Vec<HistoryItem>> {
        let query = Query::new().text("platform", &platform_json(platform));
        self.get(&format!("/images/{}/history", encode(name)), &query)
    }

    /// `GET /images/{name}/explain`
    pub fn image_explain(&self, name: &str) -> Result<ImageExplanation> {
        self.get(&format!("/images/{}/explain", encode(name)), &Query::new())
    }

    /// `GET /images/{name}/diff`
    pub fn image_diff(&self, from: &str, to: &str) -> Result<ImageDifference> {
        let query = Query::new().add("to", to);
        self.get(&format!("/images/{}/diff", encode(from)), &query)
    }

    /// `POST /images/{name}/tag`
    pub fn image_tag(&self, name: &str, repo: &str, tag: &str) -> Result<()> {
        let query = Query::new().add("repo", repo).text("tag", tag);
        self.post(&format!("/images/{}/tag", encode(name)), &query)
    }

    /// `DELETE /images/{name}`
    pub fn image_remove(&self, name: &str, force: bool, no_prune: bool) -> Result<Vec<ImageDeleteItem>> {
        let query = Query::new().flag("force", force).flag("noprune", no_prune);
        self.request(Method::Delete, &format!("/images/{}", encode(name)), &query)?
            .json()
    }

    /// `POST /images/create`: pulls an image.
    pub fn image_pull(&self, options: &ImageCreateOptions) -> Result<JsonStream<JsonMessage>> {
        let query = Query::new()
            .add("fromImage", &options.from_image)
            .text("tag", &options.tag)
            .text("platform", &options.platform);
        self.with_credentials(Method::Post, "/images/create", &query, &options.credentials)
            .map(JsonStream::new)
    }

    /// `POST /images/{name}/push`: an empty tag stands for all. `credentials` is the value of `X-Registry-Auth`.
    pub fn image_push(&self, name: &str, tag: &str, credentials: &str) -> Result<JsonStream<JsonMessage>> {
        let query = Query::new().text("tag", tag);
        self.with_credentials(
            Method::Post,
            &format!("/images/{}/push", encode(name)),
            &query,
            credentials,
        )
        .map(JsonStream::new)
    }

    /// `GET /images/search`. `credentials` is the value of `X-Registry-Auth`.
    pub fn image_search<T: serde::de::DeserializeOwned>(
        &self,
        term: &str,
        limit: i64,
        filters: &Filters,
        credentials: &str,
    ) -> Result<Vec<T>> {
        let query = Query::new()
            .add("term", term)
            .add("limit", limit)
            .filters(filters);
        self.with_credentials(Method::Get, "/images/search", &query, credentials)?
            .json()
    }

    /// `POST /auth`: shows credentials to a registry.
    pub fn auth(&self, credentials: &impl serde::Serialize) -> Result<AuthAnswer> {
        self.post_json("/auth", &Query::new(), credentials)
    }

    /// `POST /images/create`: makes an image of a tar archive.
    pub fn image_import(
        &self,
        options: &ImportOptions,
        archive: impl Read + Send + 'static,
    ) -> Result<JsonStream<JsonMessage>> {
        let mut query = Query::new()
            .add("fromSrc", &options.source)
            .text("repo", &options.repo)
            .text("tag", &options.tag)
            .text("message", &options.message)
            .text("platform", &options.platform);
        for change in &options.changes {
            query = query.add("changes", change);
        }
        let response = self.upload(
            Method::Post,
            "/images/create",
            &query,
            "application/x-tar",
            archive,
        )?;
        Ok(JsonStream::new(response))
    }

    /// `POST /images/load`, of images for a platform, `os[/architecture[/variant]]`, if it is not empty. The answer is
    /// JSON messages when its type says so, else text.
    pub fn image_load(
        &self,
        quiet: bool,
        platform: &str,
        archive: impl Read + Send + 'static,
    ) -> Result<Response> {
        let query = Query::new()
            .add("quiet", u8::from(quiet))
            .text("platform", &platform_json(platform));
        self.upload(Method::Post, "/images/load", &query, "application/x-tar", archive)
    }

    /// The messages of an answer to [`Client::image_load`].
    pub fn messages(response: Response) -> JsonStream<JsonMessage> {
        JsonStream::new(response)
    }

    /// `GET /images/get`: a docker-archive of the images, which must be for a platform if it is not empty.
    pub fn image_save(&self, names: &[String], platform: &str) -> Result<Response> {
        let mut query = Query::new().text("platform", &platform_json(platform));
        for name in names {
            query = query.add("names", name);
        }
        self.request(Method::Get, "/images/get", &query)
    }

    /// `POST /images/prune`
    pub fn image_prune(&self, filters: &Filters) -> Result<ImagesPruneReport> {
        self.request(Method::Post, "/images/prune", &Query::new().filters(filters))?
            .json()
    }
}

/// `os[/arch[/variant]]`, or an architecture of Linux alone, as the API wants it; empty when that is.
fn platform_json(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut parts = text.split('/');
    let (os, architecture) = match (parts.next().unwrap_or_default(), parts.next()) {
        ("linux", None) => ("linux", std::env::consts::ARCH),
        (architecture, None) => ("linux", architecture),
        (os, Some(architecture)) => (os, architecture),
    };
    let architecture = match architecture {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut platform = serde_json::json!({"os": os, "architecture": architecture});
    if let Some(variant) = parts.next() {
        platform["variant"] = variant.into();
    }
    platform.to_string()
}

#[cfg(test)]
mod tests {
    use super::platform_json;

    #[test]
    fn platforms_are_sent_as_documents() {
        let json = |os: &str, architecture: &str| serde_json::json!({"os": os, "architecture": architecture});
        let parsed = |text| serde_json::from_str::<serde_json::Value>(&platform_json(text)).unwrap();
        assert_eq!(parsed("linux/aarch64"), json("linux", "arm64"));
        assert_eq!(parsed("arm64"), json("linux", "arm64"));
        assert_eq!(parsed("linux/arm/v7")["variant"], "v7");
        assert_eq!(parsed("linux")["os"], "linux");
        assert_eq!(platform_json(""), "");
    }
}
