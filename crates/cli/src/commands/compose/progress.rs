//! Progress as Docker Compose shows it: a line for each thing that something happens to. On a terminal the lines are
//! drawn again, elsewhere each change is a line of its own. It goes to standard error.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use vessel_compose::act::{Event, Observer, Status};

use crate::failure::{Failure, Result};
use crate::output;
use crate::terminal;

enum Mode {
    Quiet,
    Plain,
    Json,
    Tty(Mutex<Block>),
}

/// Shows progress.
pub struct Progress {
    mode: Mode,
    colour: bool,
}

/// Lines that are on the screen.
#[derive(Default)]
struct Block {
    lines: Vec<Line>,
    drawn: usize,
}

struct Line {
    resource: String,
    status: Status,
    text: String,
    begun: Instant,
    took: Option<f64>,
}

impl Progress {
    /// Of the kind that `--progress` and `--ansi` say.
    pub fn new(progress: &str, ansi: &str) -> Result<Self> {
        if !matches!(ansi, "auto" | "never" | "always") {
            return Err(Failure::new(format!(
                "unknown value for --ansi: {ansi:?}: never, always or auto is expected"
            )));
        }
        let mode = match progress {
            "quiet" => Mode::Quiet,
            "plain" => Mode::Plain,
            "json" | "rawjson" => Mode::Json,
            "tty" => Mode::Tty(Mutex::default()),
            "auto" | "" if terminal::stderr_is_terminal() && ansi != "never" => Mode::Tty(Mutex::default()),
            "auto" | "" => Mode::Plain,
            other => {
                return Err(Failure::new(format!(
                    "unsupported --progress value {other:?}: auto, tty, plain, json or quiet is expected"
                )));
            }
        };
        Ok(Self {
            mode,
            colour: ansi != "never",
        })
    }

    /// Leaves what was shown where it is; more begins below it.
    pub fn finish(&self) {
        if let Mode::Tty(block) = &self.mode {
            *block.lock().unwrap_or_else(PoisonError::into_inner) = Block::default();
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event<'_>) {
        match &self.mode {
            Mode::Quiet => {}
            Mode::Plain => output::warn(&format!(" {}  {}", event.resource, event.text)),
            Mode::Json => {
                let status = match event.status {
                    Status::Working => "Working",
                    Status::Done => "Done",
                    Status::Warning => "Warning",
                    Status::Failed => "Error",
                };
                let line = serde_json::json!({"id": event.resource, "status": status, "text": event.text});
                output::warn(&line.to_string());
            }
            Mode::Tty(block) => {
                let mut block = block.lock().unwrap_or_else(PoisonError::into_inner);
                block.update(event);
                block.draw(self.colour);
            }
        }
    }

    fn warn(&self, line: &str) {
        self.finish();
        output::warn(&format!("vessel: warning: {line}"));
    }
}

impl Block {
    fn update(&mut self, event: &Event<'_>) {
        let index = match self.lines.iter().position(|line| line.resource == event.resource) {
            Some(index) => index,
            None => {
                self.lines.push(Line {
                    resource: event.resource.to_owned(),
                    status: event.status,
                    text: String::new(),
                    begun: Instant::now(),
                    took: None,
                });
                self.lines.len() - 1
            }
        };
        let Some(line) = self.lines.get_mut(index) else {
            return;
        };
        if line.took.is_some() && event.status == Status::Working {
            line.begun = Instant::now();
        }
        line.status = event.status;
        event.text.clone_into(&mut line.text);
        line.took = (event.status != Status::Working).then(|| line.begun.elapsed().as_secs_f64());
    }

    /// Draws all lines over those that are there. What does not fit on the screen is not shown.
    fn draw(&mut self, colour: bool) {
        let (rows, columns) = terminal::size().map_or((24, 80), |(rows, columns)| {
            (usize::from(rows), usize::from(columns))
        });
        let done = self.lines.iter().filter(|line| line.took.is_some()).count();
        let room = rows.saturating_sub(2).max(1);
        let shown = &self.lines[self.lines.len().saturating_sub(room)..];
        let width = shown
            .iter()
            .map(|line| line.resource.chars().count())
            .max()
            .unwrap_or(0)
            .min(columns.saturating_sub(24));
        let mut out = String::new();
        if self.drawn > 0 {
            out.push_str(&format!("\x1b[{}A", self.drawn));
        }
        out.push_str(&format!("\r\x1b[K[+] Running {done}/{}\n", self.lines.len()));
        for line in shown {
            let (mark, code) = match line.status {
                Status::Working => ("⠿", "0"),
                Status::Done => ("✔", "32"),
                Status::Warning => ("!", "33"),
                Status::Failed => ("✘", "31"),
            };
            let resource: String = line.resource.chars().take(width).collect();
            let took = line.took.map(|took| format!("{took:.1}s")).unwrap_or_default();
            let room = columns.saturating_sub(width + 12);
            let text: String = line.text.chars().take(room).collect();
            let body = format!(" {mark} {resource:width$}  {text:<10} {took:>6}");
            if colour {
                out.push_str(&format!("\x1b[K\x1b[{code}m{body}\x1b[0m\n"));
            } else {
                out.push_str(&format!("\x1b[K{body}\n"));
            }
        }
        self.drawn = shown.len() + 1;
        let _ = std::io::stderr().lock().write_all(out.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        assert!(Progress::new("plain", "auto").is_ok() && Progress::new("quiet", "never").is_ok());
        assert!(Progress::new("loud", "auto").is_err() && Progress::new("auto", "sometimes").is_err());
    }

    #[test]
    fn a_line_for_each_thing() {
        let mut block = Block::default();
        let event = |resource, status, text| Event {
            resource,
            status,
            text,
        };
        block.update(&event("a", Status::Working, "Creating"));
        block.update(&event("b", Status::Working, "Creating"));
        block.update(&event("a", Status::Done, "Created"));
        assert_eq!(block.lines.len(), 2);
        assert!(
            block.lines[0].text == "Created"
                && block.lines[0].took.is_some()
                && block.lines[1].took.is_none()
        );
    }
}
