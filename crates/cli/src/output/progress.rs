//! The progress of a pull, load or import: on a terminal a line for each layer that is drawn again and
//! again, elsewhere a plain line for each change of state.

use std::io::{self, Write};

use vessel_api::JsonMessage;

use super::units::human_size;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Shows messages until they end; a message of failure is the command's.
pub fn show(messages: impl Iterator<Item = vessel_client::Result<JsonMessage>>) -> Result {
    let mut display = Display::new(
        io::stdout().lock(),
        terminal::stdout_is_terminal(),
        terminal::size().map_or(80, |size| size.1.into()),
    );
    for message in messages {
        display.show(&message?)?;
    }
    Ok(())
}

/// The same on standard error, where standard output is the container's.
pub fn show_on_stderr(messages: impl Iterator<Item = vessel_client::Result<JsonMessage>>) -> Result {
    let mut display = Display::new(
        io::stderr().lock(),
        terminal::stderr_is_terminal(),
        terminal::size().map_or(80, |size| size.1.into()),
    );
    for message in messages {
        display.show(&message?)?;
    }
    Ok(())
}

/// Shows nothing; a message of failure is the command's.
pub fn quietly(messages: impl Iterator<Item = vessel_client::Result<JsonMessage>>) -> Result {
    for message in messages {
        if let Some(error) = message?.error_detail {
            return Err(Failure::new(error.message));
        }
    }
    Ok(())
}

struct Display<W> {
    out: W,
    terminal: bool,
    width: usize,
    /// Layers in the order of their lines.
    lines: Vec<String>,
}

impl<W: Write> Display<W> {
    fn new(out: W, terminal: bool, width: usize) -> Self {
        Self {
            out,
            terminal,
            width,
            lines: Vec::new(),
        }
    }

    fn show(&mut self, message: &JsonMessage) -> Result {
        let error = message
            .error_detail
            .as_ref()
            .map(|detail| detail.message.as_str());
        if let Some(error) = error
            .filter(|text| !text.is_empty())
            .or(Some(message.error.as_str()).filter(|t| !t.is_empty()))
        {
            return Err(Failure::new(error));
        }
        if message.aux.is_some() && message.stream.is_empty() && message.status.is_empty() {
            return Ok(());
        }
        let detail = message
            .progress_detail
            .as_ref()
            .filter(|detail| **detail != Default::default());
        if !self.terminal {
            // Only changes of state: a line for each step of a bar is noise in a log.
            if detail.is_some() || !message.progress.is_empty() {
                return Ok(());
            }
            self.line(message, "")?;
            self.out.flush()?;
            return Ok(());
        }
        let bar = detail
            .map(|detail| bar(detail.current, detail.total, detail.hide_counts, self.width))
            .unwrap_or_default();
        if message.id.is_empty() {
            self.line(message, &bar)?;
            // What was drawn above stays as it is.
            self.lines.clear();
        } else {
            self.redraw(message, &bar)?;
        }
        self.out.flush()?;
        Ok(())
    }

    fn line(&mut self, message: &JsonMessage, bar: &str) -> io::Result<()> {
        if !message.stream.is_empty() {
            return write!(self.out, "{}", message.stream);
        }
        if !message.id.is_empty() {
            write!(self.out, "{}: ", message.id)?;
        }
        let space = if bar.is_empty() { "" } else { " " };
        writeln!(self.out, "{}{space}{bar}", message.status)
    }

    fn redraw(&mut self, message: &JsonMessage, bar: &str) -> io::Result<()> {
        let up = match self.lines.iter().position(|id| *id == message.id) {
            Some(index) => self.lines.len() - index,
            None => {
                self.lines.push(message.id.clone());
                writeln!(self.out)?;
                1
            }
        };
        let space = if bar.is_empty() { "" } else { " " };
        // Up, clear the line, write it, and down again.
        write!(
            self.out,
            "\x1b[{up}A\x1b[2K\r{}: {}{space}{bar}\r\x1b[{up}B",
            message.id, message.status
        )
    }
}

/// `[====>    ]  1.2MB/3.4MB`
fn bar(current: i64, total: i64, hide_counts: bool, width: usize) -> String {
    if current <= 0 && total <= 0 {
        return String::new();
    }
    let now = human_size(current as f64);
    if total <= 0 {
        return format!("{now:>8}");
    }
    let mut out = String::new();
    if width > 110 {
        let percent = ((current as f64 / total as f64) * 100.0).clamp(0.0, 100.0) as usize / 2;
        let spaces = 50usize.saturating_sub(percent);
        out.push_str(&format!("[{}>{}] ", "=".repeat(percent), " ".repeat(spaces)));
    }
    if !hide_counts {
        out.push_str(&format!("{now:>8}"));
        if current <= total {
            out.push_str(&format!("/{}", human_size(total as f64)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_api::ProgressDetail;

    fn layer(id: &str, status: &str, current: i64) -> JsonMessage {
        let progress_detail = (current > 0).then(|| ProgressDetail {
            current,
            total: 2000,
            ..Default::default()
        });
        JsonMessage {
            id: id.into(),
            status: status.into(),
            progress_detail,
            ..Default::default()
        }
    }

    fn shown(terminal: bool, messages: &[JsonMessage]) -> String {
        let mut out = Vec::new();
        let mut display = Display::new(&mut out, terminal, 80);
        for message in messages {
            display.show(message).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_log_gets_changes_of_state() {
        let messages = [
            layer("a", "Loading", 0),
            layer("a", "Loading", 1000),
            JsonMessage::stream("Loaded\n"),
        ];
        assert_eq!(shown(false, &messages), "a: Loading\nLoaded\n");
    }

    #[test]
    fn a_terminal_gets_lines_that_change() {
        let messages = [
            layer("a", "Loading", 0),
            layer("b", "Waiting", 0),
            layer("a", "Loading", 1000),
        ];
        assert!(shown(true, &messages).ends_with("\x1b[2A\x1b[2K\ra: Loading      1kB/2kB\r\x1b[2B"));
    }

    #[test]
    fn an_error_ends_it() {
        let mut display = Display::new(Vec::new(), false, 80);
        let failure = display.show(&JsonMessage::error("no space")).unwrap_err();
        assert_eq!(failure.message.unwrap(), "no space");
    }

    #[test]
    fn bars() {
        assert_eq!(
            bar(1000, 2000, false, 200),
            format!("[{}>{}]      1kB/2kB", "=".repeat(25), " ".repeat(25))
        );
        assert_eq!(bar(1000, 0, false, 200), "     1kB");
        assert_eq!(bar(3000, 2000, false, 80), "     3kB");
    }
}
