//! The progress of a build, as BuildKit's clients show it: lines as they come (`plain`), lines that are drawn again and
//! fold (`tty`), or JSON for programs (`rawjson`). It goes to standard error.

mod json;
mod plain;
mod trace;
mod tty;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use vessel_client::build::StatusResponse;

use crate::failure::{Failure, Result};
use crate::terminal;
use plain::Plain;
use trace::Trace;
use tty::Tty;

/// The display is drawn once in so long at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Shows how a build gets on.
pub struct Display {
    trace: Trace,
    mode: Mode,
    drawn: Option<Instant>,
    out: io::Stderr,
}

enum Mode {
    Quiet,
    Plain(Plain),
    Tty(Tty),
    Json,
}

impl Display {
    /// Of the kind that `--progress` says.
    pub fn new(progress: &str) -> Result<Self> {
        let mode = match progress {
            "" | "auto" if terminal::stderr_is_terminal() => Mode::Tty(Tty::default()),
            "" | "auto" | "plain" => Mode::Plain(Plain::default()),
            "tty" if terminal::stderr_is_terminal() => Mode::Tty(Tty::default()),
            "tty" => {
                return Err(
                    Failure::new("failed to get console: standard error is not a terminal")
                        .with_hint("use --progress plain"),
                );
            }
            "quiet" | "none" => Mode::Quiet,
            "rawjson" => Mode::Json,
            other => {
                return Err(Failure::new(format!(
                    "invalid progress mode {other}: auto, plain, tty, quiet or rawjson is expected"
                )));
            }
        };
        Ok(Self {
            trace: Trace::default(),
            mode,
            drawn: None,
            out: io::stderr(),
        })
    }

    /// Takes what the daemon tells, or nothing when some time went by. There is nobody to tell when standard error is
    /// gone.
    pub fn show(&mut self, told: Option<StatusResponse>) {
        let _ = match (&mut self.mode, told) {
            (Mode::Quiet, _) | (Mode::Json, None) => Ok(()),
            (Mode::Json, Some(told)) => self.out.write_all(&json::line(&told)),
            (_, told) => {
                let news = told.is_some();
                if let Some(told) = told {
                    self.trace.update(told);
                }
                let soon = self.drawn.is_some_and(|drawn| drawn.elapsed() < PAUSE);
                if news && soon { Ok(()) } else { self.draw(false) }
            }
        };
    }

    /// Shows the rest, and the last lines of what failed.
    pub fn finish(&mut self) {
        let _ = self.draw(true);
    }

    fn draw(&mut self, last: bool) -> io::Result<()> {
        self.drawn = Some(Instant::now());
        let mut text = Vec::new();
        match &mut self.mode {
            Mode::Quiet | Mode::Json => return Ok(()),
            Mode::Plain(plain) => plain.draw(&mut self.trace, &mut text),
            Mode::Tty(tty) => {
                let (rows, columns) =
                    terminal::size().map_or((10, 80), |(rows, columns)| (rows.into(), columns.into()));
                tty.draw(&self.trace, rows, columns, last, &mut text);
            }
        }
        if last {
            self.trace.last_words(&mut text);
            self.trace.all_warnings(&mut text);
        }
        self.out.write_all(&text)?;
        self.out.flush()
    }
}
