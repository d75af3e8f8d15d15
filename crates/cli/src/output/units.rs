//! Sizes and durations as Docker prints them (the formats of the Go package `go-units`), and read.

/// Go's `%.{digits}g`.
fn general(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".to_string();
    }
    let scientific = format!("{value:.*e}", digits.saturating_sub(1));
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        } else {
            text.to_string()
        }
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.abs());
    }
    trim(&format!(
        "{value:.*}",
        (digits as i32 - 1 - exponent).max(0) as usize
    ))
}

fn scaled(mut size: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while size >= base && unit + 1 < units.len() {
        size /= base;
        unit += 1;
    }
    format!("{}{}", general(size, digits), units[unit])
}

const DECIMAL: [&str; 9] = ["B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
const BINARY: [&str; 9] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"];

/// `1.234MB`: powers of 1000, four digits.
pub fn human_size(size: f64) -> String {
    human_size_digits(size, 4)
}

/// Powers of 1000 with so many digits.
pub fn human_size_digits(size: f64, digits: usize) -> String {
    scaled(size, 1000.0, &DECIMAL, digits)
}

/// `1.234MiB`: powers of 1024, four digits.
pub fn bytes_size(size: f64) -> String {
    scaled(size, 1024.0, &BINARY, 4)
}

/// `About an hour`, `3 days`: a duration in whole seconds, roughly.
pub fn human_duration(seconds: i64) -> String {
    let minutes = seconds / 60;
    let hours = (seconds as f64 / 3600.0 + 0.5) as i64;
    match () {
        () if seconds < 1 => "Less than a second".to_string(),
        () if seconds == 1 => "1 second".to_string(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_string(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_string(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// `2 hours ago`, from a time in seconds since the epoch; `N/A` for no time.
pub fn ago(then: i64) -> String {
    if then <= 0 {
        return "N/A".to_string();
    }
    format!("{} ago", human_duration(now() - then))
}

/// Seconds since the epoch.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Reads a size in powers of 1024: `10`, `64m`, `1.5GB`, `2 KiB`.
pub fn parse_size(text: &str) -> Result<i64, String> {
    let wrong = || format!("invalid size: '{text}'");
    let end = text
        .rfind(|c: char| c.is_ascii_digit() || c == '.')
        .map(|at| at + 1)
        .ok_or_else(wrong)?;
    let (number, unit) = (text[..end].trim(), text[end..].trim_start());
    if !number.starts_with(|c: char| c.is_ascii_digit() || c == '.') || number.contains(['e', 'E']) {
        return Err(wrong());
    }
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.to_ascii_lowercase();
    let power = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" if matches!(unit.as_str(), "" | "b") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(format!("invalid suffix: '{unit}'")),
    };
    if !matches!(unit.len(), 0..=3) || (unit.ends_with('i')) || unit.ends_with("bb") {
        return Err(format!("invalid suffix: '{unit}'"));
    }
    let bytes = number * 1024f64.powi(power);
    if bytes >= i64::MAX as f64 {
        return Err(format!("size too large: '{text}'"));
    }
    Ok(bytes as i64)
}

/// Reads a duration as Go writes one (`1h30m`, `1.5s`, `100ms`), in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let wrong = || format!("time: invalid duration \"{text}\"");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "" => return Err(format!("time: missing unit in duration \"{text}\"")),
            other => return Err(format!("time: unknown unit \"{other}\" in duration \"{text}\"")),
        };
        total += number * unit;
        rest = &rest[end..];
    }
    if total >= i64::MAX as f64 {
        return Err(wrong());
    }
    let nanoseconds = total as i64;
    Ok(if negative { -nanoseconds } else { nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (size, three, four) in [
            (0.0, "0B", "0B"),
            (999.0, "999B", "999B"),
            (1000.0, "1kB", "1kB"),
            (1_982_382.0, "1.98MB", "1.982MB"),
            (123_456_789.0, "123MB", "123.5MB"),
            (999_999.0, "1e+03kB", "1000kB"),
            (1e12, "1TB", "1TB"),
        ] {
            assert_eq!(human_size_digits(size, 3), three);
            assert_eq!(human_size(size), four);
        }
        assert_eq!(bytes_size(622_592.0), "608KiB");
        assert_eq!(bytes_size(25_276_514_304.0), "23.54GiB");
        assert_eq!(bytes_size(0.0), "0B");
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (5400, "2 hours"),
            (47 * 3600, "47 hours"),
            (48 * 3600, "2 days"),
            (14 * 86400, "2 weeks"),
            (60 * 86400, "2 months"),
            (730 * 86400, "2 years"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn sizes_read() {
        for (text, size) in [
            ("0", 0),
            ("42", 42),
            ("42b", 42),
            ("1k", 1024),
            ("1KB", 1024),
            ("1 KiB", 1024),
            ("1.5m", 1_572_864),
            ("2g", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for wrong in [
            "",
            "m",
            "-1",
            "1x",
            "1bb",
            "1ki",
            "k1",
            "1e400",
            "99999999p",
            "1 2",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_read() {
        assert_eq!(parse_duration("1h30m"), Ok(5_400_000_000_000));
        assert_eq!(parse_duration("1.5s"), Ok(1_500_000_000));
        assert_eq!(parse_duration("-100ms"), Ok(-100_000_000));
        assert_eq!(parse_duration("0"), Ok(0));
        for wrong in ["", "1", "s", "1x", "-", "1s2"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,12}", size in any::<f64>(), seconds in any::<i64>()) {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
            let _ = human_size(size.abs());
            let _ = bytes_size(size.abs());
            let _ = human_duration(seconds);
        }
    }
}
