//! DNS messages (RFC 1035, 4.1; RFC 6891): as much of them as it takes to know what is asked, and to say an address or a name.
//!
//! What is not understood is not rebuilt: questions that are passed on, and the answers to them, stay the bytes they are. A
//! question is taken only as programs send them: one of them, its name without compression.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `struct` of every message: ID, flags, four counts.
const HEADER: usize = 12;
/// RFC 1035, 2.3.4.
const MAX_NAME: usize = 255;
/// What every resolver takes over UDP.
const UDP_SIZE: usize = 512;
/// What is sent over UDP to who says that it takes more.
const MAX_UDP_SIZE: usize = 4096;
/// Answers are short-lived: an address belongs to another container when it has passed on.
const TTL: u32 = 5;

const FLAG_RESPONSE: u16 = 1 << 15;
const FLAG_AUTHORITATIVE: u16 = 1 << 10;
const FLAG_TRUNCATED: u16 = 1 << 9;
const FLAG_RECURSION_DESIRED: u16 = 1 << 8;
const FLAG_RECURSION_AVAILABLE: u16 = 1 << 7;
const OPCODE: u16 = 0xf << 11;

const CLASS_IN: u16 = 1;
const TYPE_OPT: u16 = 41;

/// Kinds of records that are answered here.
pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_AAAA: u16 = 28;

/// Outcomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Success = 0,
    Format = 1,
    ServerFailure = 2,
    NotImplemented = 4,
}

/// A question as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    flags: u16,
    /// Name, type and class as they came.
    question: Vec<u8>,
    /// The name in lower case without the last dot; none when a byte of it cannot be in a container's name.
    pub(crate) name: Option<String>,
    pub(crate) kind: u16,
    class: u16,
    /// What the asker takes over UDP; none when it does not know of RFC 6891.
    udp_size: Option<u16>,
}

/// Why a packet is no question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not even an answer can be given.
    Silent,
    /// This is the answer.
    Say(Vec<u8>),
}

impl Query {
    pub(crate) fn parse(packet: &[u8]) -> Result<Self, Refusal> {
        let header = packet.first_chunk::<HEADER>().ok_or(Refusal::Silent)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (id, flags) = (word(0), word(2));
        // An answer to an answer would be a conversation of servers.
        if flags & FLAG_RESPONSE != 0 {
            return Err(Refusal::Silent);
        }
        let refuse = |code| {
            let mut query = Self {
                id,
                flags,
                question: Vec::new(),
                name: None,
                kind: 0,
                class: 0,
                udp_size: None,
            };
            query.flags &= OPCODE | FLAG_RECURSION_DESIRED;
            Err(Refusal::Say(query.plain(code)))
        };
        if flags & OPCODE != 0 {
            return refuse(Code::NotImplemented);
        }
        if word(4) != 1 || word(6) != 0 {
            return refuse(Code::Format);
        }
        let Some((name, end)) = read_name(packet, HEADER) else {
            return refuse(Code::Format);
        };
        let Some(&[t0, t1, c0, c1]) = packet.get(end..).and_then(|rest| rest.first_chunk::<4>()) else {
            return refuse(Code::Format);
        };
        let records = usize::from(word(8)) + usize::from(word(10));
        Ok(Self {
            id,
            flags,
            question: packet[HEADER..end + 4].to_vec(),
            name,
            kind: u16::from_be_bytes([t0, t1]),
            class: u16::from_be_bytes([c0, c1]),
            udp_size: find_opt(packet, end + 4, records),
        })
    }

    pub(crate) fn is_internet(&self) -> bool {
        self.class == CLASS_IN
    }

    /// The largest answer over UDP.
    pub(crate) fn limit(&self) -> usize {
        let takes = self.udp_size.map_or(UDP_SIZE, usize::from);
        takes.clamp(UDP_SIZE, MAX_UDP_SIZE)
    }

    /// An answer without records.
    pub(crate) fn plain(&self, code: Code) -> Vec<u8> {
        self.write(code, false, 0, 0, &[])
    }

    /// The answer that these are the addresses, all of the kind that was asked for: none means that there is such a name, without
    /// any of that kind. As many as `limit` has room for.
    pub(crate) fn addresses(&self, addresses: &[IpAddr], limit: usize) -> Vec<u8> {
        let records: Vec<Vec<u8>> = addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            })
            .collect();
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        self.answer(&records, limit)
    }

    /// The answer that this is the name; one that is none in DNS is left out.
    pub(crate) fn pointer(&self, name: &str, limit: usize) -> Vec<u8> {
        match write_name(name) {
            Some(name) => self.answer(&[&name], limit),
            None => self.answer(&[], limit),
        }
    }

    fn answer(&self, records: &[&[u8]], limit: usize) -> Vec<u8> {
        let room = limit.saturating_sub(HEADER + self.question.len() + self.opt().len());
        let mut body = Vec::new();
        let mut count = 0;
        for data in records {
            // The name: a pointer to the question's.
            let mut record = vec![0xc0, HEADER as u8];
            record.extend_from_slice(&self.kind.to_be_bytes());
            record.extend_from_slice(&CLASS_IN.to_be_bytes());
            record.extend_from_slice(&TTL.to_be_bytes());
            record.extend_from_slice(&(data.len() as u16).to_be_bytes());
            record.extend_from_slice(data);
            if body.len() + record.len() > room {
                break;
            }
            body.extend_from_slice(&record);
            count += 1;
        }
        let truncated = if usize::from(count) < records.len() {
            FLAG_TRUNCATED
        } else {
            0
        };
        self.write(Code::Success, true, truncated, count, &body)
    }

    fn write(&self, code: Code, authoritative: bool, more: u16, count: u16, body: &[u8]) -> Vec<u8> {
        let mut flags = FLAG_RESPONSE | FLAG_RECURSION_AVAILABLE | code as u16 | more;
        flags |= self.flags & (OPCODE | FLAG_RECURSION_DESIRED);
        if authoritative {
            flags |= FLAG_AUTHORITATIVE;
        }
        let opt = self.opt();
        let questions = u16::from(!self.question.is_empty());
        let additional = u16::from(!opt.is_empty());
        let mut message = Vec::with_capacity(HEADER + self.question.len() + body.len() + opt.len());
        for word in [self.id, flags, questions, count, 0, additional] {
            message.extend_from_slice(&word.to_be_bytes());
        }
        message.extend_from_slice(&self.question);
        message.extend_from_slice(body);
        message.extend_from_slice(&opt);
        message
    }

    /// Who sends an OPT record gets one (RFC 6891, 6.1.1).
    fn opt(&self) -> Vec<u8> {
        if self.udp_size.is_none() {
            return Vec::new();
        }
        let mut record = vec![0];
        record.extend_from_slice(&TYPE_OPT.to_be_bytes());
        record.extend_from_slice(&(MAX_UDP_SIZE as u16).to_be_bytes());
        record.extend_from_slice(&[0; 6]);
        record
    }

    /// Whether a packet is an answer to this question under another ID.
    pub(crate) fn is_answered_by(&self, packet: &[u8], id: u16) -> bool {
        let Some(header) = packet.first_chunk::<HEADER>() else {
            return false;
        };
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        if word(0) != id || word(2) & FLAG_RESPONSE == 0 {
            return false;
        }
        // A server that understood nothing may leave the question out.
        word(4) == 0
            || packet
                .get(HEADER..HEADER + self.question.len())
                .is_some_and(|question| question.eq_ignore_ascii_case(&self.question))
    }
}

/// Writes another ID into a message.
pub(crate) fn set_id(message: &mut [u8], id: u16) {
    if let Some(place) = message.first_chunk_mut::<2>() {
        *place = id.to_be_bytes();
    }
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` is of (RFC 3596, 2.5).
pub(crate) fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(nibbles) = name.strip_suffix(".ip6.arpa") {
        let mut parts = nibbles.split('.');
        let mut address = 0_u128;
        for place in 0..32 {
            let part = parts.next().filter(|part| part.len() == 1)?;
            address |= u128::from(part.chars().next()?.to_digit(16)?) << (4 * place);
        }
        return parts.next().is_none().then(|| Ipv6Addr::from(address).into());
    }
    let mut octets = [0; 4];
    let mut parts = name.strip_suffix(".in-addr.arpa")?.split('.');
    for octet in octets.iter_mut().rev() {
        let part = parts.next().filter(|part| (1..=3).contains(&part.len()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A name without compression, and where it ends.
fn read_name(packet: &[u8], begin: usize) -> Option<(Option<String>, usize)> {
    let mut name = String::new();
    let mut plain = true;
    let mut at = begin;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return Some((plain.then_some(name), at));
        }
        if length > 63 || at + length + 1 - begin > MAX_NAME {
            return None;
        }
        let label = packet.get(at..at + length)?;
        if !name.is_empty() {
            name.push('.');
        }
        for &byte in label {
            plain &= byte.is_ascii_graphic() && byte != b'.';
            name.push(char::from(byte.to_ascii_lowercase()));
        }
        at += length;
    }
}

/// A name as labels.
fn write_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        if !(1..=63).contains(&label.len()) {
            return None;
        }
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= MAX_NAME).then_some(bytes)
}

/// Where a name ends that may be compressed.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    for _ in 0..128 {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length <= 63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    None
}

/// The size that an OPT record names. What comes after something that is not understood does not count.
fn find_opt(packet: &[u8], mut at: usize, records: usize) -> Option<u16> {
    // More than any program sends.
    for _ in 0..records.min(16) {
        at = skip_name(packet, at)?;
        let head = packet.get(at..)?.first_chunk::<10>()?;
        if u16::from_be_bytes([head[0], head[1]]) == TYPE_OPT {
            return Some(u16::from_be_bytes([head[2], head[3]]));
        }
        at += 10 + usize::from(u16::from_be_bytes([head[8], head[9]]));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A question as a stub resolver sends it.
    fn question(name: &str, kind: u16, udp_size: Option<u16>) -> Vec<u8> {
        let mut packet = vec![
            0x12,
            0x34,
            0x01,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            u8::from(udp_size.is_some()),
        ];
        packet.extend(write_name(name).unwrap());
        packet.extend(kind.to_be_bytes());
        packet.extend(CLASS_IN.to_be_bytes());
        if let Some(size) = udp_size {
            packet.push(0);
            packet.extend(TYPE_OPT.to_be_bytes());
            packet.extend(size.to_be_bytes());
            packet.extend([0; 6]);
        }
        packet
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let query = Query::parse(&question("Db.Example", TYPE_A, None)).unwrap();
        assert_eq!(query.name.as_deref(), Some("db.example"));
        assert_eq!((query.kind, query.limit()), (TYPE_A, 512));
        let answer = query.addresses(&[Ipv4Addr::new(10, 0, 0, 2).into()], 512);
        assert_eq!(answer[..12], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert!(answer.ends_with(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 2]));
        assert!(query.is_answered_by(&answer, 0x1234) && !query.is_answered_by(&answer, 0x1235));
        let six = Query::parse(&question("db.example", TYPE_AAAA, None)).unwrap();
        let six = six.addresses(&["fd00::2".parse().unwrap()], 512);
        assert!(six.ends_with(&[
            0, 28, 0, 1, 0, 0, 0, 5, 0, 16, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2
        ]));
        let other = Query::parse(&question("dc.example", TYPE_A, None)).unwrap();
        assert!(!other.is_answered_by(&answer, 0x1234));
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_cut() {
        let many: Vec<IpAddr> = (0..200).map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect();
        let query = Query::parse(&question("many", TYPE_A, None)).unwrap();
        let answer = query.addresses(&many, query.limit());
        assert!(answer.len() <= 512 && answer.len() > 480 && answer[2] & 2 != 0);
        let query = Query::parse(&question("many", TYPE_A, Some(60_000))).unwrap();
        assert_eq!(query.limit(), 4096);
        let answer = query.addresses(&many, query.limit());
        assert!(answer[2] & 2 == 0 && answer[7] == 200 && answer[11] == 1);
    }

    #[test]
    fn reverse_names() {
        assert_eq!(
            reverse("2.0.18.172.in-addr.arpa"),
            Some(Ipv4Addr::new(172, 18, 0, 2).into())
        );
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(six), Some("fd00:1::2".parse().unwrap()));
        for bad in [
            &six[2..],
            &format!("0.{six}"),
            &six.replace("2.0", "g.0"),
            &six.replace("2.0", "22.0"),
            "ip6.arpa",
            "in-addr.arpa",
            "0.18.172.in-addr.arpa",
            "1.2.3.4.5.in-addr.arpa",
            "256.1.1.1.in-addr.arpa",
            "a",
        ] {
            assert_eq!(reverse(bad), None, "{bad}");
        }
        let query = Query::parse(&question("2.0.18.172.in-addr.arpa", TYPE_PTR, None)).unwrap();
        assert!(query.pointer("web.net", 512).ends_with(b"\x03web\x03net\0"));
        // A network's name may have a space in it, or be too long for DNS.
        assert_eq!(query.pointer(&"x".repeat(70), 512)[7], 0);
    }

    #[test]
    fn what_is_no_question_gets_what_it_deserves() {
        let good = question("a", TYPE_A, None);
        let with = |at: usize, byte: u8| {
            let mut packet = good.clone();
            packet[at] = byte;
            Query::parse(&packet).unwrap_err()
        };
        assert_eq!(with(2, 0x80), Refusal::Silent);
        assert_eq!(Query::parse(&good[..11]), Err(Refusal::Silent));
        for (refusal, code) in [
            (with(2, 0x28), 4),
            (with(5, 2), 1),
            (with(5, 0), 1),
            (with(12, 0xc0), 1),
            (with(12, 200), 1),
            (Query::parse(&good[..good.len() - 1]).unwrap_err(), 1),
        ] {
            match refusal {
                Refusal::Say(answer) => assert_eq!((answer[3] & 15, answer.len()), (code, 12)),
                Refusal::Silent => panic!("no answer"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(query) = Query::parse(&packet) {
                let answer = query.addresses(&[IpAddr::from(Ipv4Addr::LOCALHOST); 40], query.limit());
                prop_assert!(answer.len() <= query.limit());
                prop_assert!(query.is_answered_by(&answer, query.id));
            }
        }

        #[test]
        fn questions_with_noise_behind_them_are_survived(name in "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}", noise in proptest::collection::vec(any::<u8>(), 0..80), records in any::<[u8; 4]>()) {
            let mut packet = question(&name, TYPE_A, None);
            packet[8..12].copy_from_slice(&records);
            packet.extend(noise);
            let query = Query::parse(&packet).unwrap();
            prop_assert_eq!(query.name.as_deref(), Some(name.as_str()));
        }

        #[test]
        fn names_survive_a_round(name in "[!-~&&[^.A-Z]]{1,63}(\\.[!-~&&[^.A-Z]]{1,40}){0,4}") {
            let bytes = write_name(&name).unwrap();
            prop_assert_eq!(read_name(&bytes, 0), Some((Some(name), bytes.len())));
        }
    }
}
