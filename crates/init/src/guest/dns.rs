//! The little a forwarder of DNS has to know of its messages (RFC 1035, RFC 6891). The guest's init compiles it in; the host
//! tests it.

use alloc::vec::Vec;

/// Bytes of a message's header.
pub const HEADER: usize = 12;

/// What everybody takes over UDP.
const SMALLEST: usize = 512;

/// What who asks this takes as an answer over UDP: 512 bytes, or what its EDNS option says.
pub fn largest_answer(question: &[u8]) -> usize {
    match end_of_question(question).and_then(|end| question.get(end..)) {
        // The root's name, type OPT; its class is the size.
        Some([0, 0, 41, high, low, ..]) => usize::from(u16::from_be_bytes([*high, *low])).max(SMALLEST),
        _ => SMALLEST,
    }
}

/// The header and the question of an answer, marked as cut short, so that who asked comes again over TCP.
pub fn truncated(answer: &[u8]) -> Vec<u8> {
    let end = end_of_question(answer);
    let mut cut = answer.get(..end.unwrap_or(HEADER)).unwrap_or(answer).to_vec();
    if let Some(flags) = cut.get_mut(2) {
        *flags |= 2;
    }
    if let Some(counts) = cut.get_mut(4..HEADER) {
        counts.copy_from_slice(&[0, u8::from(end.is_some()), 0, 0, 0, 0, 0, 0]);
    }
    cut
}

/// Where the question section of a message ends, if it has exactly one question.
fn end_of_question(message: &[u8]) -> Option<usize> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 5).filter(|end| *end <= message.len()),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03web\x07example\0\0\x01\0\x01";

    fn with(rest: &[u8]) -> Vec<u8> {
        [QUESTION, rest].concat()
    }

    #[test]
    fn the_option_says_how_large_an_answer_may_be() {
        assert_eq!(largest_answer(QUESTION), 512);
        assert_eq!(largest_answer(&with(b"\0\0\x29\x04\xd0\0\0\0\0\0\0")), 1232);
        assert_eq!(largest_answer(&with(b"\0\0\x29\0\x10\0\0\0\0\0\0")), 512);
        // Another record is no option.
        assert_eq!(largest_answer(&with(b"\0\0\x01\x04\xd0\0\0\0\0\0\0")), 512);
    }

    #[test]
    fn a_cut_answer_has_its_question_and_says_so() {
        let mut answer = with(&[7; 600]);
        answer[7] = 3;
        let cut = truncated(&answer);
        assert_eq!(cut.len(), QUESTION.len());
        assert_eq!(cut[..2], [0x12, 0x34]);
        assert_eq!(cut[2], 3);
        assert_eq!(cut[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(cut[12..], QUESTION[12..]);
        // Without a question that can be found, the header alone.
        answer[5] = 2;
        assert_eq!(truncated(&answer), b"\x12\x34\x03\0\0\0\0\0\0\0\0\0");
    }

    proptest! {
        #[test]
        fn anything_can_be_asked_and_cut(mut message in prop::collection::vec(any::<u8>(), 0..100), one: bool) {
            if one && message.len() > 6 {
                message[4..6].copy_from_slice(&[0, 1]);
            }
            prop_assert!(largest_answer(&message) >= 512);
            prop_assert!(truncated(&message).len() <= message.len());
        }
    }
}
