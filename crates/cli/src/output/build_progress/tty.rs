//! Lines that are drawn again: one for each vertex with its time, below a running one its parts and the last of its
//! output, as many as fit.

use super::trace::{Time, Trace, amount, now, seconds};

/// Room that output takes on a line besides itself.
const MARGIN: usize = 10;

/// What was drawn.
#[derive(Debug, Default)]
pub struct Tty {
    lines: usize,
    begun: bool,
}

struct Line {
    text: String,
    status: Option<String>,
    seconds: f64,
    color: &'static str,
    completed: bool,
    /// Output to show below.
    output: Vec<String>,
}

impl Tty {
    /// Draws it all again.
    pub fn draw(&mut self, trace: &Trace, rows: usize, columns: usize, last: bool, out: &mut Vec<u8>) {
        let now = now();
        let mut lines = collect(trace, now);
        if !last {
            fold(&mut lines, rows.saturating_sub(2).max(1));
        }
        let mut text = String::new();
        if self.begun {
            text.push_str(&format!("\x1b[{}A", self.lines + 1));
        }
        self.begun = true;
        text.push_str("\r\x1b[?25l");
        let total = trace.vertices.len();
        let done = trace
            .vertices
            .iter()
            .filter(|vertex| vertex.is_completed())
            .count();
        let finished = if last && done > 0 && done == total {
            "FINISHED"
        } else {
            ""
        };
        let since = trace.started.map_or(0.0, |started| seconds(now - started));
        let head = format!("[+] Building {since:.1}s ({done}/{total}) {finished}");
        text.push_str(&format!("{}\x1b[K\n", cut(&head, columns)));
        let mut count = 0;
        for line in lines {
            let timer = format!(" {:3.1}s", if line.seconds < 0.05 { 0.0 } else { line.seconds });
            let mut left = columns.saturating_sub(4 + timer.len() + 1);
            let status = line.status.filter(|status| left + status.len() > 20);
            if let Some(status) = &status {
                left = left.saturating_sub(status.len() + 1);
            }
            if left < 12 {
                continue;
            }
            let mut body = format!(" => {}", cut(&line.text, left));
            if let Some(status) = status {
                body.push(' ');
                body.push_str(&status);
            }
            let fill = columns.saturating_sub(body.chars().count() + timer.len());
            text.push_str(&format!(
                "{}{body}{}{timer}{}\x1b[K\n",
                line.color,
                " ".repeat(fill),
                if line.color.is_empty() { "" } else { "\x1b[0m" }
            ));
            count += 1;
            for output in line.output {
                text.push_str(&format!(
                    "\x1b[2m => => # {}\x1b[0m\x1b[K\n",
                    cut(&output, columns.saturating_sub(MARGIN))
                ));
                count += 1;
            }
        }
        // What was drawn below the last line is wiped.
        text.push_str("\x1b[J\x1b[?25h");
        self.lines = count;
        out.extend_from_slice(text.as_bytes());
    }
}

fn collect(trace: &Trace, now: Time) -> Vec<Line> {
    let mut lines = Vec::new();
    for vertex in trace.begun.iter().filter_map(|index| trace.vertices.get(*index)) {
        let (mark, color) = if vertex.is_cancelled() {
            ("CANCELED ", "\x1b[33m")
        } else if !vertex.error.is_empty() {
            ("ERROR ", "\x1b[31m")
        } else if vertex.cached {
            ("CACHED ", "\x1b[34m")
        } else {
            ("", "\x1b[34m")
        };
        let completed = vertex.is_completed();
        lines.push(Line {
            text: clean(&format!("{mark}{}", vertex.name)),
            status: None,
            seconds: vertex.seconds(now),
            color: if completed { color } else { "" },
            completed,
            output: if completed {
                Vec::new()
            } else {
                vertex
                    .window()
                    .map(|line| clean(&String::from_utf8_lossy(line)))
                    .collect()
            },
        });
        for part in &vertex.parts {
            let Some(started) = part.started else { continue };
            lines.push(Line {
                text: clean(&format!("=> {}", part.id)),
                status: amount(part),
                seconds: seconds(part.completed.unwrap_or(now) - started),
                color: if part.completed.is_some() { "\x1b[34m" } else { "" },
                completed: part.completed.is_some(),
                output: Vec::new(),
            });
        }
        for warning in &vertex.warnings {
            lines.push(Line {
                text: clean(&format!("WARN: {warning}")),
                status: None,
                seconds: 0.0,
                color: "\x1b[33m",
                completed: true,
                output: Vec::new(),
            });
        }
    }
    lines
}

/// Keeps what fits: output goes first, then what has ended, from the top.
fn fold(lines: &mut Vec<Line>, room: usize) {
    let height = |lines: &[Line]| lines.iter().map(|line| 1 + line.output.len()).sum::<usize>();
    let mut at = 0;
    while height(lines) > room && at < lines.len() {
        if let Some(line) = lines.get_mut(at) {
            let excess = line.output.len().min(line.output.len().saturating_sub(1));
            line.output.drain(..excess);
        }
        at += 1;
    }
    let mut at = 0;
    while height(lines) > room && at < lines.len() {
        if lines.get(at).is_some_and(|line| line.completed) {
            lines.remove(at);
        } else {
            at += 1;
        }
    }
    while height(lines) > room && !lines.is_empty() {
        lines.pop();
    }
}

fn cut(text: &str, columns: usize) -> String {
    text.chars().take(columns).collect()
}

/// Text of strangers on its way to a terminal: the last that a carriage return leaves of a line, without control
/// characters and sequences.
fn clean(text: &str) -> String {
    let text = text.trim_end_matches('\r');
    let text = text.rsplit('\r').next().unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => {
                if chars.next_if_eq(&'[').is_some() {
                    // To the final byte of a control sequence.
                    for c in chars.by_ref() {
                        if ('@'..='~').contains(&c) {
                            break;
                        }
                    }
                }
            }
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_move_the_cursor() {
        assert_eq!(clean("50%\r100%\r"), "100%");
        assert_eq!(clean("\x1b[31mred\x1b[0m\tx\x07"), "red x");
        assert_eq!(clean("\x1b]0;title"), "]0;title");
    }

    #[test]
    fn what_has_ended_folds_first() {
        let line = |text: &str, completed| Line {
            text: text.into(),
            status: None,
            seconds: 0.0,
            color: "",
            completed,
            output: vec!["x".into(); if completed { 0 } else { 3 }],
        };
        let mut lines = vec![line("a", true), line("b", true), line("c", false)];
        fold(&mut lines, 3);
        let left: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(left, ["b", "c"]);
    }
}
