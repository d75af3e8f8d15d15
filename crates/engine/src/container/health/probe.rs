//! One probe: an exec whose output is kept up to a limit, and whose process is killed when it takes too long.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use vessel_api::ExecCreateRequest;

use super::super::Container;
use super::{Check, Finding};
use crate::{Engine, Result, time};

/// How much output is kept.
const OUTPUT: usize = 4096;
/// How long starting the command may take: a shim that hangs must not look healthy for ever.
const STARTING: Duration = Duration::from_secs(30);
/// How long a killed command may take to be gone. What hangs in the kernel longer is left to itself.
const KILLED: Duration = Duration::from_secs(10);

/// The beginning of what a command wrote.
#[derive(Debug, Default)]
struct Output {
    kept: Vec<u8>,
    truncated: bool,
}

impl Output {
    /// Reads Docker's multiplexed frames to the end. What was read counts, also when this is dropped.
    async fn read(&mut self, mut stream: impl AsyncRead + Unpin) -> std::io::Result<()> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let mut header = [0; 8];
            match stream.read_exact(&mut header).await {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let [_, _, _, _, length @ ..] = header;
            let mut left = u32::from_be_bytes(length) as usize;
            while left > 0 {
                let most = left.min(buffer.len());
                let count = stream.read(&mut buffer[..most]).await?;
                if count == 0 {
                    return Ok(());
                }
                self.take(&buffer[..count]);
                left -= count;
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        let keep = bytes.len().min(OUTPUT - self.kept.len());
        self.kept.extend_from_slice(&bytes[..keep]);
        self.truncated |= keep < bytes.len();
    }

    fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.truncated {
            text.push_str("...");
        }
        text
    }
}

impl Engine {
    /// Runs a container's check once.
    pub(super) async fn probe(&self, container: &Arc<Container>, check: &Check) -> Finding {
        let start = time::now();
        let (exit_code, output) = match self.run_check(container, check).await {
            Ok(result) => result,
            Err(error) => (-1, error.message().to_owned()),
        };
        Finding {
            start,
            end: time::now(),
            exit_code,
            output,
        }
    }

    async fn run_check(&self, container: &Arc<Container>, check: &Check) -> Result<(i32, String)> {
        let exec = self.new_exec(
            container,
            ExecCreateRequest {
                attach_stdout: true,
                attach_stderr: true,
                cmd: check.command.clone(),
                ..ExecCreateRequest::default()
            },
            true,
        )?;
        let Ok(started) = timeout(STARTING, self.start_probe(&exec)).await else {
            return Ok((
                -1,
                "Health check could not be started: the container's shim does not answer".into(),
            ));
        };
        let stream = started?;
        let mut output = Output::default();
        let run = async {
            // A child the command leaves behind does not keep the stream open: the shim closes it when the command ends.
            let _ = output.read(stream).await;
            exec.ended().await
        };
        if let Ok(exit_code) = timeout(check.timeout, run).await {
            return Ok((exit_code, output.text()));
        }
        // The stream is closed by now, and so the command killed. It is waited for, so that none pile up.
        let _ = timeout(KILLED, exec.ended()).await;
        let said = match output.kept.is_empty() {
            true => String::new(),
            false => format!(": {}", output.text()),
        };
        let limit = duration(check.timeout);
        Ok((-1, format!("Health check exceeded timeout ({limit}){said}")))
    }
}

/// As Go writes a duration of a millisecond or more.
fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        return format!("{}ms", duration.as_secs_f64() * 1e3);
    }
    let minutes = duration.as_secs() / 60;
    let rest = (duration - Duration::from_secs(minutes * 60)).as_secs_f64();
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        let mut frame = vec![1, 0, 0, 0];
        frame.extend((bytes.len() as u32).to_be_bytes());
        frame.extend(bytes);
        frame
    }

    async fn text(stream: &[u8]) -> String {
        let mut output = Output::default();
        output.read(stream).await.unwrap();
        output.text()
    }

    #[tokio::test]
    async fn frames_are_joined_and_bounded() {
        let two = [frame(b"one "), frame(b""), frame(b"two")].concat();
        assert_eq!(text(&two).await, "one two");
        // Cut anywhere, what is there counts and nothing panics.
        for cut in 0..two.len() {
            text(&two[..cut]).await;
        }
        let long = [frame(&[b'x'; 4090]), frame(&[b'y'; 100_000])].concat();
        let said = text(&long).await;
        assert_eq!(said.len(), 4096 + 3);
        assert!(said.starts_with("xx") && said.ends_with("yyyyyy..."));
        assert_eq!(text(&frame(&[b'z'; 4096])).await.len(), 4096);
        assert_eq!(text(&frame(b"\xff")).await, "\u{fffd}");
    }

    #[test]
    fn limits_read_as_gos() {
        for (millis, text) in [
            (1, "1ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (90_000, "1m30s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
