//! How failures are told: a sentence on standard error, and a line in the log containerd reads.

use std::io::Write;
use std::path::{Path, PathBuf};

use vessel_runtime::Error;

/// Where failures go.
pub struct Failures {
    log: Option<PathBuf>,
    json: bool,
}

impl Failures {
    /// To standard error, and to `log` when there is one.
    pub fn new(log: Option<&Path>, json: bool) -> Self {
        Self {
            log: log.map(Path::to_owned),
            json,
        }
    }

    /// Tells one.
    pub fn tell(&self, error: &Error) {
        self.write("error", &error.report().message);
    }

    /// Tells of something that was left out.
    pub fn warn(&self, message: &str) {
        self.write("warning", message);
    }

    fn write(&self, level: &str, message: &str) {
        let _ = writeln!(std::io::stderr(), "vessel runtime: {level}: {message}");
        let Some(path) = &self.log else { return };
        let line = if self.json {
            let time = jiff::Timestamp::now().to_string();
            serde_json::json!({ "level": level, "msg": message, "time": time }).to_string()
        } else {
            format!("level={level} msg={message:?}")
        };
        if let Ok(mut file) = std::fs::File::options().create(true).append(true).open(path) {
            let _ = writeln!(file, "{line}");
        }
    }
}
