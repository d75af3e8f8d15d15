//! Pages for a person with a browser: repositories, tags, and what an image consists of.
//!
//! HTML and CSS in one document, no script, nothing from elsewhere; everything that came from a client is escaped. Many
//! files are read for a page, on threads that may wait for a disk.

use std::fmt::Write;

use hyper::header::{self, HeaderValue};

use crate::api::{document, value};
use crate::error::{Code, Error, Result};
use crate::http::Response;
use crate::manifest::Manifest;
use crate::name::{ManifestName, Repository};
use crate::storage::Storage;

/// Rows of a table at most.
const MAX_ROWS: usize = 2000;
/// Configurations that are larger are not shown.
const MAX_CONFIG: u64 = 4 << 20;

const STYLE: &str = "\
:root{color-scheme:light dark;--line:light-dark(#ddd,#444);--dim:light-dark(#666,#aaa)}\
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem}\
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}\
th{font-weight:600;color:var(--dim)}td.n,th.n{text-align:right;white-space:nowrap}\
code,pre{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}\
pre{user-select:all;padding:.6rem .8rem;border:1px solid var(--line);border-radius:.4rem;white-space:pre-wrap;margin:.5rem 0}\
small,.dim{color:var(--dim)}nav{margin-bottom:1rem}a{color:light-dark(#05c,#7bf)}";

/// Text in HTML.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() && c != '\n' && c != '\t' => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

fn render(title: &str, content: &str) -> Response {
    let title = Escaped(title);
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\
         <style>{STYLE}</style><body>{content}</body></html>"
    );
    let mut response = document("text/html; charset=utf-8", html.into_bytes());
    let headers = response.headers_mut();
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        style_hash()
    );
    headers.insert(header::CONTENT_SECURITY_POLICY, value(policy));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The one style that the policy allows.
fn style_hash() -> String {
    use base64::Engine;
    let digest = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

const HOME: &str = "<nav><a href=\"/\">All repositories</a></nav>";

/// `/`, with the repositories that may be seen.
pub fn home(storage: &Storage, names: &[Repository]) -> Result<Response> {
    let mut rows = String::new();
    let mut count = 0;
    for name in names {
        count += 1;
        if count > MAX_ROWS {
            continue;
        }
        let tags = storage.tags(name).map_or(0, |tags| tags.len());
        let used = size(storage.usage().repository(name));
        let _ = write!(
            rows,
            "<tr><td><a href=\"/r/{name}\">{name}</a></td><td class=\"n\">{tags}</td><td class=\"n\">{used}</td></tr>"
        );
    }
    let mut content = format!("<h1>Repositories</h1><p class=\"dim\">{count} in this registry</p>");
    if count > 0 {
        let _ = write!(
            content,
            "<table><tr><th>Name</th><th class=\"n\">Tags</th><th class=\"n\">Size</th></tr>{rows}</table>"
        );
    }
    if count > MAX_ROWS {
        let _ = write!(content, "<p class=\"dim\">The first {MAX_ROWS} are shown.</p>");
    }
    Ok(render("Vessel registry", &content))
}

/// `/r/NAME`
pub fn repository(storage: &Storage, host: &str, name: &Repository) -> Result<Response> {
    let tags = storage.tags(name)?;
    let mut content = format!("{HOME}<h1>{name}</h1>");
    if tags.is_empty() {
        content.push_str("<p class=\"dim\">No tags.</p>");
    } else {
        let tag = tags.iter().find(|tag| tag.as_str() == "latest").or(tags.last());
        if let Some(tag) = tag {
            let _ = write!(content, "<pre>vessel pull {}/{name}:{tag}</pre>", Escaped(host));
        }
        content.push_str(
            "<table><tr><th>Tag</th><th>Digest</th><th>Platforms</th><th class=\"n\">Size</th></tr>",
        );
        for tag in tags.iter().take(MAX_ROWS) {
            let Ok(stored) = storage.manifest(name, &ManifestName::Tag(tag.clone())) else {
                continue;
            };
            let (platforms, bytes) = match Manifest::parse(&stored.raw, None) {
                Ok(manifest) => summary(storage, name, &manifest),
                Err(_) => (String::new(), 0),
            };
            let _ = write!(
                content,
                "<tr><td><a href=\"/r/{name}/-/{tag}\">{tag}</a></td><td><code>{}</code></td><td>{}</td><td class=\"n\">{}</td></tr>",
                stored.digest.short(),
                Escaped(&platforms),
                size(bytes)
            );
        }
        content.push_str("</table>");
    }
    Ok(render(name.as_str(), &content))
}

/// Platforms of an index, and the size of an image's blobs.
fn summary(storage: &Storage, name: &Repository, manifest: &Manifest) -> (String, u64) {
    if manifest.is_index() {
        let platforms: Vec<&str> = manifest
            .manifests
            .iter()
            .filter_map(|child| child.platform.as_deref())
            .filter(|platform| *platform != "unknown/unknown")
            .collect();
        let bytes = manifest
            .manifests
            .iter()
            .take(100)
            .filter_map(|child| {
                storage
                    .manifest(name, &ManifestName::Digest(child.digest.clone()))
                    .ok()
            })
            .filter_map(|stored| Manifest::parse(&stored.raw, None).ok())
            .map(|manifest| blobs_size(&manifest))
            .fold(0u64, u64::saturating_add);
        return (platforms.join(", "), bytes);
    }
    let config = image_config(storage, name, manifest);
    let platform = config.as_ref().and_then(|config| {
        Some(format!(
            "{}/{}",
            config.get("os")?.as_str()?,
            config.get("architecture")?.as_str()?
        ))
    });
    (platform.unwrap_or_default(), blobs_size(manifest))
}

fn blobs_size(manifest: &Manifest) -> u64 {
    let layers = manifest.layers.iter().chain(&manifest.config);
    layers.map(|layer| layer.size).fold(0, u64::saturating_add)
}

fn image_config(storage: &Storage, name: &Repository, manifest: &Manifest) -> Option<serde_json::Value> {
    use std::io::Read;
    let config = manifest.config.as_ref()?;
    let content = storage.blob(name, &config.digest).ok()?;
    if content.size > MAX_CONFIG {
        return None;
    }
    let mut raw = Vec::new();
    content.file.take(MAX_CONFIG).read_to_end(&mut raw).ok()?;
    serde_json::from_slice(&raw).ok()
}

/// `/r/NAME/-/REFERENCE`
pub fn manifest(storage: &Storage, host: &str, name: &Repository, which: &ManifestName) -> Result<Response> {
    let stored = storage.manifest(name, which)?;
    let manifest = Manifest::parse(&stored.raw, None).map_err(|error| {
        Error::new(
            Code::Unknown,
            format!("a stored manifest cannot be read: {error}"),
        )
    })?;
    let separator = match which {
        ManifestName::Tag(_) => ':',
        ManifestName::Digest(_) => '@',
    };
    let mut content = format!(
        "{HOME}<h1><a href=\"/r/{name}\">{name}</a>{separator}{which}</h1>\
         <pre>vessel pull {}/{name}{separator}{which}</pre>\
         <table><tr><th>Digest</th><td><code>{}</code></td></tr><tr><th>Type</th><td><code>{}</code></td></tr>",
        Escaped(host),
        stored.digest,
        manifest.media_type
    );
    if let Some(kind) = manifest.artifact_type.as_deref().filter(|_| !manifest.is_index()) {
        let _ = write!(
            content,
            "<tr><th>Content</th><td><code>{}</code></td></tr>",
            Escaped(kind)
        );
    }
    if let Some(subject) = &manifest.subject {
        let _ = write!(
            content,
            "<tr><th>About</th><td><a href=\"/r/{name}/-/{subject}\"><code>{subject}</code></a></td></tr>"
        );
    }
    for (key, text) in manifest.annotations.iter().flatten().take(100) {
        let _ = write!(
            content,
            "<tr><th>{}</th><td>{}</td></tr>",
            Escaped(key),
            Escaped(text)
        );
    }
    content.push_str("</table>");
    if manifest.is_index() {
        content.push_str(
            "<h2>Manifests</h2><table><tr><th>Platform</th><th>Digest</th><th class=\"n\">Size</th></tr>",
        );
        for child in manifest.manifests.iter().take(MAX_ROWS) {
            let _ = write!(
                content,
                "<tr><td>{}</td><td><a href=\"/r/{name}/-/{}\"><code>{}</code></a></td><td class=\"n\">{}</td></tr>",
                Escaped(child.platform.as_deref().unwrap_or("")),
                child.digest,
                child.digest,
                size(child.size)
            );
        }
        content.push_str("</table>");
    } else {
        layers(&mut content, &manifest);
        if let Some(config) = image_config(storage, name, &manifest) {
            configuration(&mut content, &config);
        }
    }
    let title = format!("{name}{separator}{which}");
    Ok(render(&title, &content))
}

fn layers(content: &mut String, manifest: &Manifest) {
    content.push_str("<h2>Layers</h2><table><tr><th>Digest</th><th>Type</th><th class=\"n\">Size</th></tr>");
    for layer in manifest.layers.iter().take(MAX_ROWS) {
        let _ = write!(
            content,
            "<tr><td><code>{}</code></td><td><small>{}</small></td><td class=\"n\">{}</td></tr>",
            layer.digest,
            Escaped(&layer.media_type),
            size(layer.size)
        );
    }
    let _ = write!(
        content,
        "<tr><th>Together</th><td></td><td class=\"n\">{}</td></tr></table>",
        size(blobs_size(manifest))
    );
}

/// What an image runs, and how it was made.
fn configuration(content: &mut String, config: &serde_json::Value) {
    let list = |value: &serde_json::Value| {
        let words = value.as_array()?.iter().filter_map(|word| word.as_str());
        Some(words.collect::<Vec<_>>().join(" ")).filter(|words| !words.is_empty())
    };
    let text = |value: &serde_json::Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let keys = |value: &serde_json::Value| {
        let keys: Vec<&str> = value.as_object()?.keys().map(String::as_str).collect();
        Some(keys.join(" ")).filter(|keys| !keys.is_empty())
    };
    let inner = config.get("config").cloned().unwrap_or_default();
    let of = |name: &str| inner.get(name).cloned().unwrap_or_default();
    let rows = [
        (
            "Created",
            text(&config.get("created").cloned().unwrap_or_default()),
        ),
        ("Entrypoint", list(&of("Entrypoint"))),
        ("Command", list(&of("Cmd"))),
        ("User", text(&of("User"))),
        ("Directory", text(&of("WorkingDir"))),
        ("Ports", keys(&of("ExposedPorts"))),
        ("Volumes", keys(&of("Volumes"))),
    ];
    if rows.iter().any(|(_, value)| value.is_some()) {
        content.push_str("<h2>Configuration</h2><table>");
        for (name, value) in rows {
            if let Some(value) = value {
                let _ = write!(
                    content,
                    "<tr><th>{name}</th><td><code>{}</code></td></tr>",
                    Escaped(&value)
                );
            }
        }
        content.push_str("</table>");
    }
    let history = config.get("history").and_then(|history| history.as_array());
    let Some(history) = history.filter(|history| !history.is_empty()) else {
        return;
    };
    content.push_str("<h2>History</h2><table><tr><th>Step</th><th>Made</th></tr>");
    for step in history.iter().take(MAX_ROWS) {
        let part = |name: &str| {
            step.get(name)
                .and_then(|text| text.as_str())
                .unwrap_or("")
                .to_owned()
        };
        let by = match part("created_by") {
            by if by.is_empty() => part("comment"),
            by => by,
        };
        let when: String = part("created").chars().take(10).collect();
        let _ = write!(
            content,
            "<tr><td><code>{}</code></td><td class=\"n\">{}</td></tr>",
            Escaped(&by),
            Escaped(&when)
        );
    }
    content.push_str("</table>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_escaped() {
        assert_eq!(
            Escaped("<script>'\"&\u{0}").to_string(),
            "&lt;script&gt;&#39;&quot;&amp;\u{fffd}"
        );
        let mut content = String::new();
        let hostile = serde_json::json!({
            "created": "<x>",
            "config": {"Cmd": ["<img src=x>"], "ExposedPorts": {"<p>": {}}, "User": 5},
            "history": [{"created_by": "<script>"}, {"created_by": 7}, "x"],
        });
        configuration(&mut content, &hostile);
        for tag in ["<x>", "<img", "<p>", "<script"] {
            assert!(!content.contains(tag), "{tag}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(
            [size(0), size(999), size(1500), size(2_000_000_000)],
            ["0 B", "999 B", "1.5 kB", "2.0 GB"]
        );
    }
}
