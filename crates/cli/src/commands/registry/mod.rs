//! `vessel registry`

pub mod collect;
pub mod serve;
pub mod user;

use std::path::PathBuf;
use std::time::Duration;

use crate::context::Places;

/// Where a registry keeps its content unless told otherwise.
fn default_root() -> PathBuf {
    Places::from_environment().root.join("registry")
}

/// `90s`, `15m`, `24h`, `7d`
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' does not look like 90s, 15m, 24h or 7d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

/// `500MB`, `10GiB`, `1024`
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' does not look like 500MB, 10GiB or 1024");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(bytes("10GiB"), Ok(10 << 30));
        assert_eq!(bytes("7"), Ok(7));
        for wrong in [
            "",
            "m",
            "1",
            "1y",
            "-1s",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "GB", "1XB", "-1", "18446744073709551615k"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
