//! Output and errors of a container without a terminal come through one stream, in frames: one byte for
//! the stream, three zero bytes, a big-endian length, and so many bytes.

use std::io::{self, Read, Write};

/// Which of the container's streams a frame is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard input, echoed by very old daemons; treated as output.
    Stdin,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The daemon's own words: the stream failed.
    SystemError,
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Whose bytes follow.
    pub kind: StreamKind,
    /// How many.
    pub length: u32,
}

impl Frame {
    /// Reads a header.
    pub fn parse(header: [u8; 8]) -> io::Result<Self> {
        let kind = match header[0] {
            0 => StreamKind::Stdin,
            1 => StreamKind::Stdout,
            2 => StreamKind::Stderr,
            3 => StreamKind::SystemError,
            other => {
                let message = format!("the output of the container is garbled: there is no stream {other}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        };
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        Ok(Self { kind, length })
    }
}

/// Takes frames apart as bytes come in, in pieces of any size. Holds a header at most, however long a
/// frame says it is.
#[derive(Debug, Default)]
pub struct Demux {
    header: [u8; 8],
    have: usize,
    frame: Option<Frame>,
}

impl Demux {
    /// Takes bytes and hands on what is in them.
    pub fn feed(
        &mut self,
        mut data: &[u8],
        mut sink: impl FnMut(StreamKind, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        while !data.is_empty() {
            match &mut self.frame {
                Some(frame) if frame.length > 0 => {
                    let (part, rest) = data.split_at(data.len().min(frame.length as usize));
                    frame.length -= part.len() as u32;
                    data = rest;
                    sink(frame.kind, part)?;
                }
                frame => {
                    let (part, rest) = data.split_at(data.len().min(self.header.len() - self.have));
                    self.header[self.have..self.have + part.len()].copy_from_slice(part);
                    self.have += part.len();
                    data = rest;
                    if self.have == self.header.len() {
                        self.have = 0;
                        *frame = Some(Frame::parse(self.header)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// The end came: an error when it is inside a frame.
    pub fn finish(&self) -> io::Result<()> {
        if self.have > 0 || self.frame.is_some_and(|frame| frame.length > 0) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the output was cut short",
            ));
        }
        Ok(())
    }
}

/// Writes a part of a frame where it belongs.
pub fn write_part(
    kind: StreamKind,
    data: &[u8],
    stdout: &mut impl Write,
    stderr: &mut impl Write,
) -> io::Result<()> {
    match kind {
        StreamKind::Stdin | StreamKind::Stdout => {
            stdout.write_all(data)?;
            stdout.flush()
        }
        StreamKind::Stderr => {
            stderr.write_all(data)?;
            stderr.flush()
        }
        StreamKind::SystemError => {
            let message = String::from_utf8_lossy(data).into_owned();
            Err(io::Error::other(format!(
                "the daemon could not go on with the output: {message}"
            )))
        }
    }
}

/// Copies frames to where they belong until the end.
pub fn copy(mut source: impl Read, mut stdout: impl Write, mut stderr: impl Write) -> io::Result<()> {
    let mut demux = Demux::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return demux.finish(),
            Ok(count) => demux.feed(&buffer[..count], |kind, data| {
                write_part(kind, data, &mut stdout, &mut stderr)
            })?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
        let mut out = vec![kind, 0, 0, 0];
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    }

    #[test]
    fn frames_go_where_they_belong() {
        let source = [
            frame(1, b"out"),
            frame(2, b"err"),
            frame(1, b""),
            frame(1, b"put"),
        ]
        .concat();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        copy(&source[..], &mut out, &mut err).unwrap();
        assert_eq!((out.as_slice(), err.as_slice()), (&b"output"[..], &b"err"[..]));
    }

    #[test]
    fn a_failure_of_the_daemon_is_an_error() {
        let error = copy(&frame(3, b"no space")[..], io::sink(), io::sink()).unwrap_err();
        assert!(error.to_string().contains("no space"));
    }

    #[test]
    fn cut_and_garbled_streams_are_errors() {
        let whole = frame(1, b"output");
        for cut in [3, 8, 10] {
            assert!(copy(&whole[..cut], io::sink(), io::sink()).is_err(), "{cut}");
        }
        assert!(copy(&frame(9, b"x")[..], io::sink(), io::sink()).is_err());
        // A length of 4 GiB is not allocated.
        assert!(copy(&b"\x01\0\0\0\xff\xff\xff\xffabc"[..], io::sink(), io::sink()).is_err());
    }

    /// Reads one byte at a time, as a slow peer would send.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = 1.min(out.len());
            self.0.read(&mut out[..count])
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = copy(&bytes[..], io::sink(), io::sink());
        }

        #[test]
        fn what_was_framed_comes_out(parts in proptest::collection::vec((1u8..3, proptest::collection::vec(any::<u8>(), 0..40)), 0..20)) {
            let source: Vec<u8> = parts.iter().flat_map(|(kind, data)| frame(*kind, data)).collect();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            copy(Trickle(&source), &mut out, &mut err).unwrap();
            let expected = |kind| parts.iter().filter(|p| p.0 == kind).flat_map(|p| p.1.clone()).collect::<Vec<_>>();
            prop_assert_eq!(out, expected(1));
            prop_assert_eq!(err, expected(2));
        }
    }
}
