//! What a stage has come to after some of its instructions: layers, configuration, variables.

use std::sync::Arc;

use vessel_image::{ChainId, DiffId, Digest, History, ImageConfig, Lease, Platform};

use crate::cache::Busy;
use crate::dockerfile::Variables;
use crate::error::{Error, Result};
use crate::time;

/// The search path of images that have none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The remark BuildKit makes on every step.
const COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage, or an image, at some point.
#[derive(Clone)]
pub(crate) struct State {
    /// The configuration; its layers are those of `chain`.
    pub config: ImageConfig,
    /// The layers, bottom first.
    pub chain: Vec<ChainId>,
    /// Variables that expansion and processes see: the image's and the build arguments that were declared.
    pub env: Variables,
    /// Build arguments that were declared, for the history of `RUN`.
    pub args: Vec<(String, Option<String>)>,
    pub platform: Platform,
    /// Whether this Dockerfile has a `CMD`, so that `ENTRYPOINT` leaves it.
    pub cmd_set: bool,
    /// What its stage was `FROM`.
    pub from: From,
    /// The image it is or comes from; none: nothing, or files.
    pub image: Option<Digest>,
    /// What keeps the layers.
    pub held: Vec<Arc<Held>>,
}

/// Where a stage begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct From {
    pub layers: usize,
    /// Steps of the history.
    pub steps: usize,
    /// The image's ID; none: `scratch`.
    pub id: Option<Digest>,
}

/// What keeps layers from being collected and from being pruned.
pub(crate) struct Held {
    pub _lease: Arc<Lease>,
    pub _busy: Option<Busy>,
}

impl State {
    /// No image. BuildKit says where its processes begin, and so do we.
    pub fn scratch(platform: &Platform) -> Self {
        let mut config = ImageConfig {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            ..ImageConfig::default()
        };
        config.config.working_dir = Some("/".to_owned());
        Self {
            config,
            chain: Vec::new(),
            env: Variables::default(),
            args: Vec::new(),
            platform: platform.clone(),
            cmd_set: false,
            from: From::default(),
            image: None,
            held: Vec::new(),
        }
    }

    pub fn of_image(image: crate::worker::ResolvedImage) -> Self {
        let config = ImageConfig {
            created: None,
            ..image.config
        };
        let chain = config.chain();
        Self {
            from: From::default(),
            image: Some(image.id),
            chain,
            env: Variables::default(),
            args: Vec::new(),
            platform: Platform::of(&config),
            cmd_set: false,
            held: vec![Arc::new(Held {
                _lease: image.lease,
                _busy: None,
            })],
            config,
        }
    }

    /// To be called when a stage begins: variables of the image, and the search path it must have.
    pub fn begin(&mut self) -> Result<()> {
        self.cmd_set = false;
        let env = self.config.config.env.get_or_insert_default();
        if !env.iter().any(|pair| pair.starts_with("PATH=")) {
            env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for pair in env.clone() {
            let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
            self.set(name, value)?;
        }
        Ok(())
    }

    pub fn get(&self, name: &str) -> Option<String> {
        self.env.get(name).map(str::to_owned)
    }

    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.env.set(name, value).map_err(Error::invalid)
    }

    /// What a stage takes with it that is `FROM` this one, in bytes, roughly.
    pub fn bytes(&self) -> usize {
        let history = self.config.history.iter();
        let history: usize = history
            .map(|step| 64 + step.created_by.as_deref().map_or(0, str::len))
            .sum();
        let args = self.args.iter();
        let args: usize = args
            .map(|(name, value)| 64 + name.len() + value.as_deref().map_or(0, str::len))
            .sum();
        // Those of the image are variables, too.
        2 * self.env.bytes() + args + history
    }

    pub fn top(&self) -> Option<&ChainId> {
        self.chain.last()
    }

    pub fn workdir(&self) -> &str {
        match self.config.config.working_dir.as_deref() {
            None | Some("") => "/",
            Some(path) => path,
        }
    }

    pub fn user(&self) -> &str {
        self.config.config.user.as_deref().unwrap_or_default()
    }

    /// A command for the shell.
    pub fn with_shell(&self, text: String) -> Vec<String> {
        let mut args = match self.config.config.shell.as_deref() {
            Some(shell) if !shell.is_empty() => shell.to_vec(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        };
        args.push(text);
        args
    }

    /// Adds a layer on top.
    pub fn push_layer(&mut self, chain: ChainId, diff: DiffId, held: Held) {
        self.chain.push(chain);
        self.config.rootfs.diff_ids.push(diff);
        self.held.push(Arc::new(held));
    }

    /// Adds a step to the history. `layer`: when its layer was made.
    pub fn history(&mut self, text: String, layer: Option<i64>, epoch: Option<i64>) {
        let created = epoch.map(seconds).or(layer);
        self.config.history.push(History {
            created: created.map(time::rfc3339),
            created_by: Some(text),
            author: None,
            comment: Some(COMMENT.to_owned()),
            empty_layer: layer.is_none().then_some(true),
        });
    }

    /// The configuration of the image: steps without a time take that of the layer before, or of the first after.
    pub fn finish(&mut self, epoch: Option<i64>) {
        let history = &mut self.config.history;
        if let Some(first) = history.iter().position(|step| step.created.is_none()) {
            let after = history[first..].iter().find_map(|step| step.created.clone());
            let before = || {
                history[..first]
                    .iter()
                    .rev()
                    .find_map(|step| step.created.clone())
            };
            let now = || time::rfc3339(epoch.map_or_else(time::now, seconds));
            let mut time = after.or_else(before).unwrap_or_else(now);
            for step in &mut history[first..] {
                match &step.created {
                    Some(created) => time.clone_from(created),
                    None => step.created = Some(time.clone()),
                }
            }
        }
        if self.config.created.is_none() {
            let last = self
                .config
                .history
                .iter()
                .rev()
                .find_map(|step| step.created.clone());
            self.config.created = epoch.map(|epoch| time::rfc3339(seconds(epoch))).or(last);
        }
    }
}

pub(super) fn seconds(epoch: i64) -> i64 {
    epoch.saturating_mul(1_000_000_000)
}

/// A list as Go's `%v` prints it.
pub(crate) fn go_list(items: &[String]) -> String {
    format!("[{}]", items.join(" "))
}

/// A list as Go's `%q` prints it.
pub(crate) fn go_quoted(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| go_quote(item)).collect();
    format!("[{}]", quoted.join(" "))
}

fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A duration as Go prints it: `1m30s`, `500ms`.
pub(crate) fn go_duration(nanos: i64) -> String {
    let fraction = |value: f64| {
        let text = format!("{value:.9}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => return "0s".to_owned(),
        ..1_000 => return format!("{nanos}ns"),
        1_000..1_000_000 => return format!("{}µs", fraction(nanos as f64 / 1e3)),
        1_000_000..1_000_000_000 => return format!("{}ms", fraction(nanos as f64 / 1e6)),
        _ => {}
    }
    let (hours, minutes) = (nanos / 3_600_000_000_000, nanos / 60_000_000_000 % 60);
    let seconds = fraction((nanos % 60_000_000_000) as f64 / 1e9);
    let seconds = if seconds.is_empty() {
        "0".to_owned()
    } else {
        seconds
    };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        let items = ["a \"b\"".to_owned(), "c\n\u{1}".to_owned()];
        assert_eq!(go_quoted(&items), r#"["a \"b\"" "c\n\x01"]"#);
        for (nanos, text) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
        ] {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn steps_without_a_time_get_one() {
        let mut state = State::scratch(&Platform::host());
        state.history("ENV".into(), None, None);
        state.history("RUN".into(), Some(5_000_000_000), None);
        state.history("CMD".into(), None, None);
        state.finish(None);
        let steps = state.config.history.iter();
        let created: Vec<&str> = steps.filter_map(|step| step.created.as_deref()).collect();
        assert_eq!(created, ["1970-01-01T00:00:05Z"; 3]);
        assert_eq!(state.config.created.as_deref(), Some("1970-01-01T00:00:05Z"));
    }
}
