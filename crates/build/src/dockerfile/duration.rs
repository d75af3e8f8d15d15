//! Go's durations, as `HEALTHCHECK` takes them: `1m30s`, `1.5h`, `500ms`.

use std::time::Duration;

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// An interval of `HEALTHCHECK`, zero if it is not given. One below a millisecond is refused.
pub(crate) fn interval(flag: &str, value: Option<&str>) -> Result<Duration, String> {
    let Some(value) = value else {
        return Ok(Duration::ZERO);
    };
    let (negative, nanos) = parse(value)?;
    if nanos != 0 && (negative || nanos < 1_000_000) {
        return Err(format!("Interval {flag:?} cannot be less than 1ms"));
    }
    Ok(Duration::from_nanos(nanos))
}

/// The sign and the nanoseconds.
fn parse(text: &str) -> Result<(bool, u64), String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok((false, 0));
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, after) = rest.split_at(digits(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(digits(after)),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = after
            .find(|c: char| c == '.' || c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {text:?}"));
        }
        let Some(&(_, nanos)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("time: unknown unit {unit:?} in duration {text:?}"));
        };
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| invalid())?
        };
        let part = fraction_of(fraction, nanos);
        let value = whole.checked_mul(nanos).and_then(|value| value.checked_add(part));
        total = value
            .and_then(|value| total.checked_add(value))
            .ok_or_else(invalid)?;
        // Go's durations are signed.
        if total > i64::MAX as u64 {
            return Err(invalid());
        }
        rest = after;
    }
    Ok((negative, total))
}

/// Digits after the point, of a unit.
fn fraction_of(digits: &str, unit: u64) -> u64 {
    let (mut value, mut scale) = (0u128, 1u128);
    for digit in digits.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    (value * u128::from(unit) / scale) as u64
}
