//! Writing and reading netlink messages: `nlmsghdr`, attributes (`nlattr`), nesting. Native byte order, 4-byte alignment
//! (netlink(7), `include/uapi/linux/netlink.h`).

/// `sizeof(struct nlmsghdr)`.
pub(crate) const HEADER: usize = 16;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Several messages that go to the kernel in one `sendmsg`.
///
/// Sequence numbers are filled in by the socket; each message carries words for what it does, so that an error names the
/// step that failed.
#[derive(Default)]
pub(crate) struct Batch {
    pub(super) buf: Vec<u8>,
    pub(super) steps: Vec<Step>,
}

/// Where a message begins in the buffer, and what it does.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) at: usize,
    pub(super) what: &'static str,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            buf: Vec::with_capacity(1024),
            steps: Vec::with_capacity(8),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Adds a message: `what` completes the sentence "cannot …".
    pub(crate) fn push(
        &mut self,
        what: &'static str,
        kind: u16,
        flags: u16,
        head: &[u8],
        body: impl FnOnce(&mut Attrs<'_>),
    ) {
        let at = self.buf.len();
        self.steps.push(Step { at, what });
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf
            .extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.buf.extend_from_slice(&[0; 8]);
        self.buf.extend_from_slice(head);
        pad(&mut self.buf);
        body(&mut Attrs { buf: &mut self.buf });
        let len = (self.buf.len() - at) as u32;
        self.buf[at..at + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Adds a flag to the message at `index`.
    pub(super) fn set_flag(&mut self, index: usize, flag: u16) {
        if let Some(step) = self.steps.get(index) {
            let at = step.at + 6;
            let old = u16::from_ne_bytes([self.buf[at], self.buf[at + 1]]);
            self.buf[at..at + 2].copy_from_slice(&(old | flag).to_ne_bytes());
        }
    }
}

fn pad(buf: &mut Vec<u8>) {
    buf.resize(buf.len().next_multiple_of(4), 0);
}

/// Appends attributes to a message.
pub(crate) struct Attrs<'a> {
    buf: &'a mut Vec<u8>,
}

impl Attrs<'_> {
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let len = (value.len() + 4) as u16;
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        pad(self.buf);
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.put(kind, &[value]);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Network byte order, as everything in nfnetlink.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A string with its terminating zero.
    pub(crate) fn str(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes);
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attrs<'_>)) {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0, 0]);
        self.buf.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        body(&mut Attrs { buf: self.buf });
        let len = (self.buf.len() - at) as u16;
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// A fixed struct in front of nested attributes, as in `VETH_INFO_PEER`.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        pad(self.buf);
    }
}

/// Reads attributes; ends at the first one that does not fit, so a truncated message yields less, never a panic.
#[derive(Clone, Copy)]
pub(crate) struct AttrIter<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for AttrIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from(u16::from_ne_bytes(*self.0.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(*self.0.get(2..)?.first_chunk::<2>()?) & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> AttrIter<'a> {
    /// The first attribute of this kind.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        for (k, value) in self {
            if k == kind {
                return Some(value);
            }
        }
        None
    }
}

/// A zero-terminated string attribute.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&b| b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// A 32-bit attribute in native byte order.
pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nested_attributes_come_back() {
        let mut batch = Batch::new();
        batch.push("test", 16, 0, &[1, 2, 3, 4], |a| {
            a.str(3, "eth0");
            a.nest(18, |a| a.u32(1, 7));
        });
        let body = &batch.buf[HEADER + 4..];
        assert_eq!(AttrIter(body).find(3).map(text).as_deref(), Some("eth0"));
        let inner = AttrIter(body).find(18).unwrap();
        assert_eq!(AttrIter(inner).find(1).and_then(u32_of), Some(7));
        assert_eq!(
            batch.buf.len() as u32,
            u32::from_ne_bytes(*batch.buf.first_chunk().unwrap())
        );
    }

    proptest! {
        #[test]
        fn hostile_attributes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let total: usize = AttrIter(&bytes).map(|(_, v)| v.len()).sum();
            prop_assert!(total <= bytes.len());
        }
    }
}
