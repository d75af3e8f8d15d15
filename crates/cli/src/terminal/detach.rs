//! The keys that detach from a container: `ctrl-p,ctrl-q` unless told otherwise.

/// Ctrl-P, Ctrl-Q.
pub const DEFAULT: [u8; 2] = [16, 17];

/// Reads `ctrl-p,ctrl-q`, `a,b,c`: keys separated by commas, `ctrl-` before a letter or one of `@[\]^_`.
pub fn parse(text: &str) -> Result<Vec<u8>, String> {
    text.split(',')
        .map(|key| {
            let wrong = || format!("invalid detach keys ({text}): Unknown character: '{key}'");
            if let [byte] = key.as_bytes() {
                return Ok(*byte);
            }
            let lower = key.to_ascii_lowercase();
            let rest = lower.strip_prefix("ctrl-").ok_or_else(wrong)?;
            match rest.as_bytes() {
                [byte @ b'a'..=b'z'] => Ok(byte - b'a' + 1),
                [b'@'] => Ok(0),
                [b'['] => Ok(27),
                [b'\\'] => Ok(28),
                [b']'] => Ok(29),
                [b'^'] => Ok(30),
                [b'_'] => Ok(31),
                _ => match rest {
                    "del" => Ok(127),
                    _ => Err(wrong()),
                },
            }
        })
        .collect()
}

/// Watches input for the keys. What may be their beginning is held back until it is known.
#[derive(Debug)]
pub struct Detector {
    keys: Vec<u8>,
    matched: usize,
}

impl Detector {
    /// Watches for `keys`; for nothing when there are none.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// Adds to `out` what of `input` is to be sent; true when the keys were pressed.
    pub fn pass(&mut self, input: &[u8], out: &mut Vec<u8>) -> bool {
        for byte in input {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return true;
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = usize::from(self.keys.first() == Some(byte) && !self.keys.is_empty());
            if self.matched == 0 {
                out.push(*byte);
            } else if self.keys.len() == 1 {
                self.matched = 0;
                return true;
            }
        }
        false
    }

    /// What is still held back at the end of the input.
    pub fn rest(&mut self) -> &[u8] {
        let held = std::mem::take(&mut self.matched);
        &self.keys[..held]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys() {
        assert_eq!(parse("ctrl-p,ctrl-q").unwrap(), DEFAULT);
        assert_eq!(parse("a,ctrl-@,ctrl-[,CTRL-A").unwrap(), [b'a', 0, 27, 1]);
        for wrong in ["", "ab", "ctrl-", "ctrl-1", "a,,b", "ü"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    fn pass(parts: &[&[u8]], keys: &[u8]) -> (Vec<u8>, bool) {
        let mut detector = Detector::new(keys.to_vec());
        let mut out = Vec::new();
        for part in parts {
            if detector.pass(part, &mut out) {
                return (out, true);
            }
        }
        out.extend_from_slice(detector.rest());
        (out, false)
    }

    #[test]
    fn detection() {
        assert_eq!(pass(&[b"ab\x10\x11cd"], &DEFAULT), (b"ab".to_vec(), true));
        assert_eq!(pass(&[b"ab\x10", b"\x11cd"], &DEFAULT), (b"ab".to_vec(), true));
        assert_eq!(pass(&[b"a\x10b\x11"], &DEFAULT), (b"a\x10b\x11".to_vec(), false));
        assert_eq!(pass(&[b"\x10\x10\x11"], &DEFAULT), (b"\x10".to_vec(), true));
        assert_eq!(pass(&[b"a\x10"], &DEFAULT), (b"a\x10".to_vec(), false));
        assert_eq!(pass(&[b"xa"], b"a"), (b"x".to_vec(), true));
        assert_eq!(pass(&[b"xa"], b""), (b"xa".to_vec(), false));
    }

    proptest! {
        #[test]
        fn other_input_passes_unchanged(input in proptest::collection::vec(any::<u8>(), 0..60), cut in 0usize..60) {
            prop_assume!(!input.windows(2).any(|pair| pair == DEFAULT));
            let cut = cut.min(input.len());
            prop_assert_eq!(pass(&[&input[..cut], &input[cut..]], &DEFAULT), (input.clone(), false));
        }
    }
}
