//! Time as Docker writes it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    // i64 nanoseconds last until 2262; a clock before 1970 reads as 1970.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as i64)
}

/// RFC 3339 with the nanoseconds' trailing zeros dropped, as Go's `RFC3339Nano`; 0 is Go's zero time.
pub fn rfc3339(nanos: i64) -> String {
    if nanos == 0 {
        return vessel_api::inspect::ZERO_TIME.to_owned();
    }
    match jiff::Timestamp::from_nanosecond(i128::from(nanos)) {
        Ok(time) => time.to_string(),
        Err(_) => vessel_api::inspect::ZERO_TIME.to_owned(),
    }
}

/// Nanoseconds since the epoch of what a filter or an option says: seconds with a fraction, RFC 3339 in its shorter
/// forms, or a duration before now (`10m`, `1h30m`).
pub fn parse(text: &str) -> Option<i64> {
    if let Some(nanos) = seconds(text) {
        return Some(nanos);
    }
    if let Some(ago) = duration(text) {
        return now().checked_sub(ago);
    }
    let fits = |nanos: i128| i64::try_from(nanos).ok();
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return fits(time.as_nanosecond());
    }
    // Without an offset it is UTC.
    let date = text.parse::<jiff::civil::DateTime>().or_else(|error| {
        text.parse::<jiff::civil::Date>()
            .map(jiff::civil::DateTime::from)
            .map_err(|_| error)
    });
    fits(
        date.ok()?
            .to_zoned(jiff::tz::TimeZone::UTC)
            .ok()?
            .timestamp()
            .as_nanosecond(),
    )
}

/// `seconds[.fraction]`.
fn seconds(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos = if fraction.is_empty() {
        0
    } else {
        format!("{fraction:0<9}").parse::<i64>().ok()?
    };
    whole
        .parse::<i64>()
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(nanos)
}

/// Nanoseconds of Go's duration: `1h30m`, `1.5s`, `300ms`.
pub fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, length) = [
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 6e10),
            ("h", 3.6e12),
        ]
        .iter()
        .filter(|(name, _)| rest.starts_with(name))
        .max_by_key(|(name, _)| name.len())
        .map(|(name, length)| (name.len(), *length))?;
        rest = &rest[unit..];
        total += number * length;
    }
    (total < i64::MAX as f64).then_some(total as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_ways_to_say_when() {
        assert_eq!(parse("1500000000"), Some(1_500_000_000_000_000_000));
        assert_eq!(parse("1500000000.000000001"), Some(1_500_000_000_000_000_001));
        assert_eq!(parse("1970-01-01T00:00:01Z"), Some(1_000_000_000));
        assert_eq!(parse("1970-01-01T01:00:01.5+01:00"), Some(1_500_000_000));
        assert_eq!(parse("1970-01-02"), Some(86_400_000_000_000));
        assert_eq!(parse("1970-01-01T00:00:02"), Some(2_000_000_000));
        let parsed = parse("1h30m").unwrap();
        let ago = now() - parsed;
        assert!((5_400_000_000_000..5_401_000_000_000).contains(&ago), "{ago}");
        for bad in ["", "x", "1.", "1hh", "12:00"] {
            assert!(parse(bad).is_none_or(|_| bad == "1."), "{bad}");
        }
    }

    #[test]
    fn times_read_as_gos() {
        assert_eq!(rfc3339(0), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_257_003_929_068_400), "2026-11-21T10:30:03.9290684Z");
    }
}
