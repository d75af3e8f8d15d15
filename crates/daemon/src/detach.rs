//! Detach keys: the sequence that takes a client off a terminal and leaves the container running.
//!
//! The format is Docker's: keys separated by commas, each one character or `ctrl-` and a letter or one of
//! `@ [ \ ] ^ _`. The keys of a sequence that is begun and not finished are passed on late, unchanged.

use crate::error::ApiError;

/// The sequence when neither request nor configuration names one: Ctrl-P Ctrl-Q.
pub const DEFAULT_KEYS: [u8; 2] = [16, 17];

/// Longer than anybody's fingers would do.
const MAX_KEYS: usize = 32;

/// Reads a sequence; the empty text is the default one.
pub fn parse(text: &str) -> Result<Vec<u8>, ApiError> {
    if text.is_empty() {
        return Ok(DEFAULT_KEYS.to_vec());
    }
    let keys = text
        .split(',')
        .map(key)
        .collect::<Option<Vec<_>>>()
        .filter(|keys| keys.len() <= MAX_KEYS);
    keys.ok_or_else(|| {
        ApiError::bad_request(format!(
            "invalid detach keys ({text}) provided: keys are separated by commas, each one character or ctrl- and a letter or one of @ [ \\ ] ^ _"
        ))
    })
}

fn key(text: &str) -> Option<u8> {
    if let [byte] = text.as_bytes() {
        return Some(*byte);
    }
    let name = text.strip_prefix("ctrl-")?;
    let [byte] = name.as_bytes() else { return None };
    match byte.to_ascii_lowercase() {
        letter @ b'a'..=b'z' => Some(letter - b'a' + 1),
        other @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_') => Some(other - b'@'),
        _ => None,
    }
}

/// Looks for the sequence in a stream that comes in pieces.
#[derive(Debug)]
pub struct Watcher {
    keys: Vec<u8>,
    matched: usize,
}

impl Watcher {
    /// A watcher for a sequence of at least one key.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Takes the next piece: appends to `out` what is to be passed on and says whether the sequence was
    /// completed; nothing after it is passed on.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in input {
            while self.keys.get(self.matched) != Some(&byte) && self.matched > 0 {
                // What was held back so far is not the sequence: release its first key and look whether
                // the rest still begins one.
                out.push(self.keys[0]);
                let held = self.matched;
                self.matched = (1..held)
                    .find(|&skip| self.keys[skip..held] == self.keys[..held - skip])
                    .map_or(0, |skip| {
                        out.extend_from_slice(&self.keys[1..skip]);
                        held - skip
                    });
                if self.matched == 0 {
                    out.extend_from_slice(&self.keys[1..held]);
                }
            }
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
            } else {
                out.push(byte);
            }
        }
        false
    }

    /// The end of the stream: what was held back is passed on.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.keys[..self.matched]);
        self.matched = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sequences() {
        assert_eq!(parse("").unwrap(), DEFAULT_KEYS);
        assert_eq!(parse("ctrl-p,ctrl-q").unwrap(), DEFAULT_KEYS);
        assert_eq!(parse("a,ctrl-A,ctrl-@,ctrl-_").unwrap(), [b'a', 1, 0, 31]);
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "ctrl-ab", "é"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_begun_sequence_is_passed_on_late() {
        let mut watcher = Watcher::new(vec![1, 2]);
        let mut out = Vec::new();
        assert!(!watcher.feed(&[b'x', 1], &mut out));
        assert_eq!(out, b"x");
        assert!(!watcher.feed(&[1, b'y'], &mut out));
        assert_eq!(out, [b'x', 1, 1, b'y']);
        assert!(watcher.feed(&[b'z', 1, 2, b'!'], &mut out));
        assert_eq!(out, [b'x', 1, 1, b'y', b'z']);
    }

    proptest! {
        /// Against the plain definition: everything before the first occurrence, or everything.
        #[test]
        fn agrees_with_a_search(
            keys in prop::collection::vec(0u8..3, 1..5),
            input in prop::collection::vec(0u8..3, 0..60),
            piece in 1usize..7,
        ) {
            let mut watcher = Watcher::new(keys.clone());
            let mut out = Vec::new();
            let found = input.chunks(piece).any(|piece| watcher.feed(piece, &mut out));
            if !found {
                watcher.finish(&mut out);
            }
            let position = input.windows(keys.len()).position(|window| window == keys);
            prop_assert_eq!(found, position.is_some());
            prop_assert_eq!(out, &input[..position.unwrap_or(input.len())]);
        }
    }
}
