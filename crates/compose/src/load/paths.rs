//! Relative paths begin at the directory of the file that is read, or of the project; `~` is the user's home.

use std::path::Path;

use super::files::absolute;
use crate::yaml::{Map, Node};

/// Makes the paths of a model absolute.
pub(super) fn resolve(model: &mut Node, directory: &Path, home: Option<&str>) {
    let resolver = Resolver { directory, home };
    if let Some(services) = model.get_mut("services").and_then(Node::as_map_mut) {
        services
            .values_mut()
            .for_each(|service| resolver.service(service));
    }
    for section in ["configs", "secrets"] {
        for part in parts(model, section) {
            resolver.member(part, "file");
        }
    }
    for volume in parts(model, "volumes") {
        let local = volume.text("driver") == Some("local");
        if let Some(options) = volume.get_mut("driver_opts").filter(|_| local)
            && options.text("o") == Some("bind")
        {
            resolver.member(options, "device");
        }
    }
}

/// Makes the paths of one service absolute, of a file that another one extends.
pub(super) fn resolve_service(service: &mut Node, directory: &Path, home: Option<&str>) {
    Resolver { directory, home }.service(service);
}

fn parts<'a>(model: &'a mut Node, section: &str) -> impl Iterator<Item = &'a mut Node> {
    model
        .get_mut(section)
        .and_then(Node::as_map_mut)
        .into_iter()
        .flat_map(Map::values_mut)
}

struct Resolver<'a> {
    directory: &'a Path,
    home: Option<&'a str>,
}

impl Resolver<'_> {
    fn service(&self, service: &mut Node) {
        if let Some(build) = service.get_mut("build") {
            if let Some(context) = build.get_mut("context") {
                self.context(context);
            }
            if let Some(contexts) = build.get_mut("additional_contexts").and_then(Node::as_map_mut) {
                contexts.values_mut().for_each(|context| self.context(context));
            }
            if let Some(agents) = build.get_mut("ssh").and_then(Node::as_map_mut) {
                agents.values_mut().for_each(|path| self.path(path));
            }
        }
        for file in list(service, "env_file") {
            self.member(file, "path");
        }
        for file in list(service, "label_file") {
            self.path(file);
        }
        if let Some(extends) = service.get_mut("extends") {
            self.member(extends, "file");
        }
        if let Some(develop) = service.get_mut("develop") {
            for rule in list(develop, "watch") {
                self.member(rule, "path");
            }
        }
        for volume in list(service, "volumes") {
            if volume.text("type") == Some("bind") {
                self.member(volume, "source");
            }
        }
    }

    fn member(&self, node: &mut Node, key: &str) {
        if let Some(path) = node.get_mut(key) {
            self.path(path);
        }
    }

    fn path(&self, node: &mut Node) {
        let Some(text) = node.as_str().filter(|text| !text.is_empty()) else {
            return;
        };
        // A variable that is left stands for what is not known.
        if text.starts_with('$') || is_windows(text) {
            return;
        }
        let path = match (text.strip_prefix('~'), self.home) {
            (Some(rest), Some(home)) => Path::new(home).join(rest.trim_start_matches('/')),
            _ => Path::new(text).to_owned(),
        };
        // What is absolute stays as it was written.
        let path = if path.is_absolute() {
            path
        } else {
            absolute(self.directory, &path)
        };
        let path = path.to_string_lossy().into_owned();
        *node = Node::string(node.at, path);
    }

    /// A build's context: a directory unless it is an address, an image or another service.
    fn context(&self, node: &mut Node) {
        let remote = [
            "https://",
            "http://",
            "git://",
            "ssh://",
            "github.com/",
            "git@",
            "service:",
        ];
        let text = node.as_str().unwrap_or_default();
        if text.contains("://") || remote.iter().any(|prefix| text.starts_with(prefix)) {
            return;
        }
        self.path(node);
    }
}

fn list<'a>(node: &'a mut Node, key: &str) -> impl Iterator<Item = &'a mut Node> {
    node.get_mut(key)
        .and_then(Node::as_list_mut)
        .into_iter()
        .flatten()
}

/// `C:\…` or `\\host\…`, which only a daemon on Windows understands.
fn is_windows(text: &str) -> bool {
    text.starts_with("\\\\")
        || matches!(text.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic())
}
