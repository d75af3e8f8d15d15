//! The public key in a PEM file: `SubjectPublicKeyInfo` (RFC 5280), by itself or in a certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What kind of key it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ECDSA on P-256; the bytes are the uncompressed point.
    P256,
    /// RSA; the bytes are an `RSAPublicKey`.
    Rsa,
    /// Ed25519; the bytes are the key.
    Ed25519,
}

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// What signatures are verified with.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const BIT_STRING: u8 = 0x03;
const VERSION: u8 = 0xa0;

/// The first key in a PEM text.
pub fn public_key(text: &str) -> Result<(Kind, Vec<u8>), String> {
    let begin = text.find("-----BEGIN ").ok_or("it has no PEM block")?;
    let (label, rest) = text[begin + 11..]
        .split_once("-----")
        .ok_or("it has no PEM block")?;
    let end = rest.find("-----END ").ok_or("its PEM block does not end")?;
    let encoded: String = rest[..end].split_ascii_whitespace().collect();
    let der = STANDARD
        .decode(encoded)
        .map_err(|_| "its PEM block is not base64")?;
    let wrong = || "its key cannot be read".to_owned();
    let info = match label {
        "PUBLIC KEY" => take(&der, SEQUENCE).ok_or_else(wrong)?.0,
        "CERTIFICATE" => of_certificate(&der).ok_or_else(wrong)?,
        other => {
            return Err(format!(
                "it has a {other}, and a PUBLIC KEY or CERTIFICATE is needed"
            ));
        }
    };
    let (algorithm, rest) = take(info, SEQUENCE).ok_or_else(wrong)?;
    let (bits, _) = take(rest, BIT_STRING).ok_or_else(wrong)?;
    // The first byte counts unused bits.
    let key = bits.strip_prefix(&[0]).ok_or_else(wrong)?.to_vec();
    let (oid, parameters) = take(algorithm, OID).ok_or_else(wrong)?;
    let kind = match oid {
        RSA => Kind::Rsa,
        ED25519 => Kind::Ed25519,
        EC if take(parameters, OID).is_some_and(|(curve, _)| curve == P256) => Kind::P256,
        _ => return Err("its key is neither RSA nor ECDSA on P-256 nor Ed25519".into()),
    };
    if kind == Kind::Rsa {
        let bits = modulus_bits(&key).ok_or_else(wrong)?;
        if !RSA_BITS.contains(&bits) {
            return Err(format!(
                "its RSA key has {bits} bits, and 2048 to 8192 are needed"
            ));
        }
    }
    Ok((kind, key))
}

/// `RSAPublicKey ::= SEQUENCE { modulus INTEGER, exponent INTEGER }`
fn modulus_bits(key: &[u8]) -> Option<usize> {
    let (integers, _) = take(key, SEQUENCE)?;
    let (modulus, _) = take(integers, INTEGER)?;
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = modulus.get(zeros..)?;
    Some(significant.len() * 8 - significant.first()?.leading_zeros() as usize)
}

/// `Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version, serial, signature, issuer, validity, subject, key, … } … }`
fn of_certificate(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = take(der, SEQUENCE)?;
    let (mut rest, _) = take(certificate, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        rest = take(rest, VERSION)?.1;
    }
    rest = take(rest, INTEGER)?.1;
    for _ in 0..4 {
        rest = take(rest, SEQUENCE)?.1;
    }
    Some(take(rest, SEQUENCE)?.0)
}

/// The content of the element of this type at the beginning, and what follows it.
fn take(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let bytes = rest
            .get(..usize::from(first & 0x7f))
            .filter(|bytes| (1..=4).contains(&bytes.len()))?;
        length = bytes
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = &rest[bytes.len()..];
    }
    (length <= rest.len()).then(|| rest.split_at(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_and_certificates() {
        let key = rcgen::KeyPair::generate().unwrap();
        let (kind, bytes) = public_key(&key.public_key_pem()).unwrap();
        assert_eq!((kind, bytes.len()), (Kind::P256, 65));
        let certificate = rcgen::CertificateParams::new(vec!["x".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        assert_eq!(public_key(&certificate.pem()).unwrap(), (Kind::P256, bytes));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(public_key(&key.public_key_pem()).unwrap().0, Kind::Ed25519);
        assert!(public_key(&key.serialize_pem()).is_err());
    }

    #[test]
    fn an_rsa_key_has_bits_enough() {
        let short = "-----BEGIN PUBLIC KEY-----\n\
             MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCix0NZO+1TZgk8RkqyGTwwVwn9\n\
             B+2DSlvZihLzNTNRlbTv+7MfkUtumDnczVzkFt7Qk8gEY4S02r4RperD3ZrP9OVL\n\
             0rioQIlrcMl2/GBmAeGBIcapro3L0qjIC42a7Maa+lt8efCnqrDlUtV10s68daUY\n\
             pGkYPiGmTuCUzCtWGQIDAQAB\n\
             -----END PUBLIC KEY-----";
        assert_eq!(
            public_key(short).unwrap_err(),
            "its RSA key has 1024 bits, and 2048 to 8192 are needed"
        );
        // A modulus of 2048 bits and an exponent of 3.
        let mut key = vec![0x30, 0x82, 0x01, 0x08, 0x02, 0x82, 0x01, 0x01, 0x00, 0x80];
        key.extend([0; 254]);
        key.extend([0x01, 0x02, 0x01, 0x03]);
        assert_eq!(modulus_bits(&key), Some(2048));
        assert_eq!(modulus_bits(&key[..40]), None);
        assert_eq!(modulus_bits(&[0x30, 0x02, 0x02, 0x00]), None);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = of_certificate(&bytes);
            let _ = public_key(&format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(&bytes)));
            let _ = public_key(&String::from_utf8_lossy(&bytes));
        }
    }
}
