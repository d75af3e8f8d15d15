//! What containers write, line by line.

use std::io::Read;

use vessel_client::{Client, Demux, LogsOptions};

use crate::error::{Error, Result};

/// The longest line that is kept together.
const MAX_LINE: usize = 256 << 10;

/// Bytes become lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes bytes and hands on the lines that are complete, without their ends.
    pub fn feed(&mut self, mut data: &[u8], mut sink: impl FnMut(&[u8])) {
        while let Some(at) = data.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = data.split_at(at);
            self.0.extend_from_slice(line);
            let line = self.0.strip_suffix(b"\r").unwrap_or(&self.0);
            sink(line);
            self.0.clear();
            data = &rest[1..];
        }
        self.0.extend_from_slice(data);
        if self.0.len() > MAX_LINE {
            sink(&self.0);
            self.0.clear();
        }
    }

    /// Hands on what is left at the end.
    pub fn finish(&mut self, mut sink: impl FnMut(&[u8])) {
        if !self.0.is_empty() {
            sink(&self.0);
            self.0.clear();
        }
    }
}

/// Reads the log of a container and hands on its lines until the end, or until `sink` says that it is enough.
///
/// # Errors
/// The log cannot be read.
pub fn read(
    client: &Client,
    id: &str,
    options: &LogsOptions,
    mut sink: impl FnMut(&[u8]) -> bool,
) -> Result<()> {
    let fail = || Error::engine("cannot read a container's log");
    let tty = client.container_inspect(id, false).map_err(fail())?.config.tty;
    let mut answer = client.container_logs(id, options).map_err(fail())?;
    // Each stream has lines of its own, so that they do not mix.
    let mut lines = [Lines::default(), Lines::default()];
    let mut demux = Demux::default();
    let mut buffer = vec![0; 64 << 10];
    let mut go_on = true;
    while go_on {
        let count = match answer.body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(Error::project(format!(
                    "the log of a container broke off: {error}"
                )));
            }
        };
        if tty {
            lines[0].feed(&buffer[..count], |line| go_on &= sink(line));
            continue;
        }
        demux
            .feed(&buffer[..count], |kind, data| {
                let which = usize::from(kind == vessel_client::StreamKind::Stderr);
                lines[which].feed(data, |line| go_on &= sink(line));
                Ok(())
            })
            .map_err(|error| Error::project(error.to_string()))?;
    }
    for lines in &mut lines {
        lines.finish(|line| {
            sink(line);
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for part in ["a", "b\r\nc\n", "\nd"] {
            lines.feed(part.as_bytes(), |line| {
                seen.push(String::from_utf8(line.to_vec()).unwrap())
            });
        }
        lines.finish(|line| seen.push(String::from_utf8(line.to_vec()).unwrap()));
        assert_eq!(seen, ["ab", "c", "", "d"]);
    }
}
