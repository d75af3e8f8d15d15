//! The name in a certificate (RFC 5280, 4.1.2.6): the last common name of its subject.
//!
//! The handshake has verified the certificate before; this only reads it, and finds nothing where it does not understand.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
/// The version, `[0] EXPLICIT`.
const VERSION: u8 = 0xa0;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// The longest name that is told.
const MAX: usize = 128;

/// One element of DER (X.690): its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = digits
                .iter()
                .fold(0usize, |length, &digit| length << 8 | usize::from(digit));
            (length, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn tagged(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(der)?;
    (found == tag).then_some((content, rest))
}

/// The name.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    let (certificate, _) = tagged(SEQUENCE, certificate)?;
    let (mut body, _) = tagged(SEQUENCE, certificate)?;
    if let Some((_, rest)) = tagged(VERSION, body) {
        body = rest;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        body = element(body)?.2;
    }
    let (mut subject, _) = tagged(SEQUENCE, body)?;
    let mut name = None;
    while !subject.is_empty() {
        let (mut set, rest) = tagged(SET, subject)?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = tagged(SEQUENCE, set)?;
            set = rest;
            let (kind, value) = tagged(OID, pair)?;
            let (tag, text, _) = element(value)?;
            if kind == COMMON_NAME && TEXTS.contains(&tag) {
                name = std::str::from_utf8(text).ok();
            }
        }
    }
    let printable = name?.chars().filter(|letter| !letter.is_control());
    Some(printable.take(MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_certificate_is_found_and_torn_ones_have_none() {
        let mut parameters = rcgen::CertificateParams::new(vec!["host".to_owned()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "Somebody");
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Änne\u{1b}[1m");
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let der: &[u8] = certificate.der();
        assert_eq!(common_name(der).unwrap(), "Änne[1m");
        for end in 0..der.len() {
            assert_eq!(common_name(&der[..end]), None, "{end}");
        }
    }

    proptest::proptest! {
        #[test]
        fn anything_is_read_without_harm(bytes: Vec<u8>) {
            let _ = common_name(&bytes);
        }
    }
}
