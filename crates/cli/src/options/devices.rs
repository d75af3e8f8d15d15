//! `--device`, `--gpus`, and the devices of block I/O limits.

use vessel_api::{DeviceMapping, DeviceRequest, ThrottleDevice, WeightDevice};

use super::csv;
use super::env::to_map;
use crate::output::units::parse_size;

/// Whether text is a set of `r`, `w` and `m`.
fn is_mode(text: &str) -> bool {
    let mut seen = [false; 3];
    !text.is_empty()
        && text.chars().all(|c| match "rwm".find(c) {
            Some(index) => !std::mem::replace(&mut seen[index], true),
            None => false,
        })
}

/// Whether this names a device of the Container Device Interface: `vendor.com/class=name`.
pub fn is_cdi(device: &str) -> bool {
    let Some((kind, name)) = device.split_once('=') else {
        return false;
    };
    let Some((vendor, class)) = kind.split_once('/') else {
        return false;
    };
    let plain = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':'))
    };
    vendor.starts_with(|c: char| c.is_ascii_alphabetic()) && plain(vendor) && plain(class) && plain(name)
}

/// Reads `--device path[:path in the container][:rwm]`.
pub fn device(spec: &str) -> Result<DeviceMapping, String> {
    let parts: Vec<&str> = spec.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [source] => (*source, *source, "rwm"),
        [source, mode] if is_mode(mode) => (*source, *source, *mode),
        [source, target] => (*source, *target, "rwm"),
        [source, target, mode] => {
            if !is_mode(mode) {
                return Err(format!("bad mode specified: {mode}"));
            }
            (*source, *target, *mode)
        }
        _ => return Err(format!("bad format for path: {spec}")),
    };
    if source.is_empty() {
        return Err(format!("bad format for path: {spec}"));
    }
    if !target.starts_with('/') {
        return Err(format!("{target} is not an absolute path"));
    }
    Ok(DeviceMapping {
        path_on_host: source.to_string(),
        path_in_container: target.to_string(),
        cgroup_permissions: mode.to_string(),
    })
}

/// Checks a line for the device cgroup.
pub fn cgroup_rule(rule: &str) -> Result<(), String> {
    let wrong = || format!("invalid device cgroup format '{rule}'");
    let number =
        |text: &str| text == "*" || (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let parts: Vec<&str> = rule.split(' ').collect();
    let [kind, numbers, mode] = parts.as_slice() else {
        return Err(wrong());
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(wrong)?;
    let mode_right = (1..=3).contains(&mode.len()) && mode.chars().all(|c| "rwm".contains(c));
    if matches!(*kind, "a" | "b" | "c") && number(major) && number(minor) && mode_right {
        return Ok(());
    }
    Err(wrong())
}

fn path_and_value(spec: &str) -> Result<(&str, &str), String> {
    let (path, value) = spec
        .split_once(':')
        .filter(|(path, value)| !path.is_empty() && !value.contains(':'))
        .ok_or_else(|| format!("bad format: {spec}"))?;
    if !path.starts_with("/dev/") {
        return Err(format!("bad format for device path: {spec}"));
    }
    Ok((path, value))
}

/// Reads `--blkio-weight-device path:weight`.
pub fn weight(spec: &str) -> Result<WeightDevice, String> {
    let (path, value) = path_and_value(spec)?;
    let weight = value
        .parse()
        .ok()
        .filter(|weight| *weight == 0 || (10..=1000).contains(weight));
    let weight: u16 = weight.ok_or_else(|| format!("invalid weight for device: {spec}"))?;
    Ok(WeightDevice {
        path: path.to_string(),
        weight,
    })
}

/// Reads `--device-read-bps path:rate`.
pub fn bytes_per_second(spec: &str) -> Result<ThrottleDevice, String> {
    let (path, value) = path_and_value(spec)?;
    let rate = parse_size(value).ok().and_then(|rate| u64::try_from(rate).ok());
    let rate = rate.ok_or_else(|| {
        format!(
            "invalid rate for device: {spec}. The correct format is <device-path>:<number>[<unit>]. Number must be a \
             positive integer. Unit is optional and can be kb, mb, or gb"
        )
    })?;
    Ok(ThrottleDevice {
        path: path.to_string(),
        rate,
    })
}

/// Reads `--device-read-iops path:rate`.
pub fn operations_per_second(spec: &str) -> Result<ThrottleDevice, String> {
    let (path, value) = path_and_value(spec)?;
    let rate = value.parse().map_err(|_| {
        format!(
            "invalid rate for device: {spec}. The correct format is <device-path>:<number>. Number must be a positive \
             integer"
        )
    })?;
    Ok(ThrottleDevice {
        path: path.to_string(),
        rate,
    })
}

/// Reads `--gpus`.
pub fn gpus(spec: &str) -> Result<DeviceRequest, String> {
    let mut request = DeviceRequest::default();
    let mut seen: Vec<String> = Vec::new();
    let count = |text: &str| -> Result<i64, String> {
        if text == "all" {
            return Ok(-1);
        }
        text.parse()
            .map_err(|_| format!("count must be an integer: {text}"))
    };
    for field in csv::parse(spec)? {
        let (key, value) = field.split_once('=').unwrap_or(("count", &field));
        if seen.iter().any(|other| other == key) {
            return Err(format!("gpu request key '{key}' can be specified only once"));
        }
        seen.push(key.to_string());
        let list = || value.split(',').map(String::from);
        match key {
            "count" => request.count = count(value)?,
            "driver" => request.driver = value.to_string(),
            "device" => request.device_ids = list().collect(),
            "capabilities" => request.capabilities = vec![list().chain(["gpu".to_string()]).collect()],
            "options" => request.options = to_map(&csv::parse(value)?),
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
    }
    if !seen.iter().any(|key| key == "count") && request.device_ids.is_empty() {
        request.count = 1;
    }
    if request.capabilities.is_empty() {
        request.capabilities = vec![vec!["gpu".to_string()]];
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mappings() {
        for (spec, expected) in [
            ("/dev/a", ("/dev/a", "/dev/a", "rwm")),
            ("/dev/a:r", ("/dev/a", "/dev/a", "r")),
            ("/dev/a:/dev/b", ("/dev/a", "/dev/b", "rwm")),
            ("/dev/a:/dev/b:mr", ("/dev/a", "/dev/b", "mr")),
        ] {
            let d = device(spec).unwrap();
            let got = (
                d.path_on_host.as_str(),
                d.path_in_container.as_str(),
                d.cgroup_permissions.as_str(),
            );
            assert_eq!(got, expected, "{spec}");
        }
        for wrong in [
            "",
            ":/a",
            "a",
            "/a:b",
            "/a:/b:x",
            "/a:/b:rr",
            "/a:/b:r:w",
            "/a:/b:",
        ] {
            assert!(device(wrong).is_err(), "{wrong}");
        }
        assert!(is_cdi("nvidia.com/gpu=0") && !is_cdi("/dev/a=b") && !is_cdi("/dev/a"));
    }

    #[test]
    fn limits() {
        assert_eq!(bytes_per_second("/dev/sda:1mb").unwrap().rate, 1 << 20);
        assert_eq!(operations_per_second("/dev/sda:100").unwrap().rate, 100);
        assert_eq!(weight("/dev/sda:500").unwrap().weight, 500);
        for wrong in ["/dev/sda", "sda:1", "/dev/sda:-1", "/dev/sda:x", "/dev/sda:1:2"] {
            assert!(
                bytes_per_second(wrong).is_err() && operations_per_second(wrong).is_err(),
                "{wrong}"
            );
        }
        assert!(weight("/dev/sda:5").is_err() && weight("/dev/sda:1001").is_err());
    }

    #[test]
    fn rules() {
        for right in ["c 42:* rmw", "a *:* r", "b 8:0 rw"] {
            assert!(cgroup_rule(right).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "x 1:1 r",
            "c 1 r",
            "c 1:1",
            "c 1:1 x",
            "c 1:1 rrww",
            "c  1:1 r",
        ] {
            assert!(cgroup_rule(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gpu_requests() {
        let all = gpus("all").unwrap();
        assert_eq!((all.count, all.capabilities), (-1, vec![vec!["gpu".to_string()]]));
        assert_eq!(gpus("\"device=0,1\"").unwrap().device_ids, ["0", "1"]);
        assert_eq!(gpus("driver=x").unwrap().count, 1);
        for wrong in ["x", "1,count=2", "nope=1"] {
            assert!(gpus(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(spec in "[a-c/:=,0-9\" *-]{0,20}") {
            let _ = (device(&spec), cgroup_rule(&spec), weight(&spec), bytes_per_second(&spec));
            let _ = (operations_per_second(&spec), gpus(&spec), is_cdi(&spec));
        }
    }
}
