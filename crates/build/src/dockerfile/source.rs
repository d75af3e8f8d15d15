//! The text of a Dockerfile and places in it.

use std::ops::Range;

/// A Dockerfile's text with its name: what spans and diagnostics refer to.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    /// What messages call the file.
    pub name: String,
    /// The text. Bytes that are not UTF-8 have become U+FFFD.
    pub text: String,
    /// Where each line begins.
    starts: Vec<u32>,
}

impl Source {
    /// From a file's bytes.
    pub fn new(name: &str, bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let ends = text.bytes().zip(1u32..).filter(|&(byte, _)| byte == b'\n');
        let mut starts = vec![0];
        starts.extend(ends.map(|(_, next)| next));
        if starts.len() > 1 && starts.last().is_some_and(|&last| last as usize == text.len()) {
            starts.pop();
        }
        Self {
            name: name.to_owned(),
            text,
            starts,
        }
    }

    /// How many lines there are; a text without any has one.
    pub fn lines(&self) -> u32 {
        self.starts.len() as u32
    }

    /// Where a line is, with what ends it. Lines count from one.
    pub fn line_range(&self, line: u32) -> Option<Range<usize>> {
        let index = (line as usize).checked_sub(1)?;
        let start = *self.starts.get(index)? as usize;
        let end = self
            .starts
            .get(index + 1)
            .map_or(self.text.len(), |&end| end as usize);
        Some(start..end)
    }

    /// A line without what ends it.
    pub fn line(&self, line: u32) -> Option<&str> {
        let text = self.text.get(self.line_range(line)?)?;
        Some(text.trim_end_matches(['\r', '\n']))
    }

    /// The line a byte is in.
    pub fn line_of(&self, offset: usize) -> u32 {
        self.starts.partition_point(|&start| start as usize <= offset) as u32
    }
}

/// A place in a Dockerfile: whole lines, both counted from one and inclusive, and the bytes they take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The first line.
    pub first: u32,
    /// The last line: of an instruction with heredocs, that of the last terminator.
    pub last: u32,
    /// The bytes, into [`Source::text`].
    pub bytes: Range<usize>,
}
