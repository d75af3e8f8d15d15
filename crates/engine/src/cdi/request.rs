//! Which devices a `DeviceRequest` means: those it names (`--device vendor/class=name`), or GPUs (`--gpus`).

use vessel_api::DeviceRequest;

use super::Registry;
use crate::{Error, Result};

/// The most devices one request counts up to.
const MAX_COUNT: i64 = 1024;

/// Vendors of GPUs, with the capabilities they have beside `gpu`. Of several the first that has a specification is taken.
const VENDORS: [(&str, &str, &[&str]); 2] = [
    (
        "nvidia",
        "nvidia.com/gpu",
        &[
            "nvidia", "compute", "compat32", "graphics", "utility", "video", "display",
        ],
    ),
    ("amd", "amd.com/gpu", &["amd"]),
];

impl Registry {
    /// The full names of the devices that are asked for.
    pub(super) fn names(&self, request: &DeviceRequest) -> Result<Vec<String>> {
        if request.driver == "cdi" {
            if request.count != 0 {
                return Err(Error::invalid("unexpected count in CDI device request"));
            }
            if !request.options.is_empty() {
                return Err(Error::invalid("unexpected options in CDI device request"));
            }
            return Ok(request.device_ids.clone());
        }
        let kind = self.gpu_kind(request).ok_or_else(|| self.no_driver(request))?;
        if request.count != 0 && !request.device_ids.is_empty() {
            return Err(Error::invalid(
                "cannot set both Count and DeviceIDs on device request",
            ));
        }
        if request.count > MAX_COUNT {
            return Err(Error::invalid(format!(
                "{} devices are asked for: at most {MAX_COUNT} can be counted",
                request.count
            )));
        }
        let full = |name: &str| match name.contains('=') {
            true => name.to_owned(),
            false => format!("{kind}={name}"),
        };
        Ok(match request.count {
            0 => request.device_ids.iter().map(|name| full(name)).collect(),
            count if count < 0 => vec![full("all")],
            count => (0..count).map(|number| full(&number.to_string())).collect(),
        })
    }

    /// The kind of GPU that fits what is asked for.
    fn gpu_kind(&self, request: &DeviceRequest) -> Option<&'static str> {
        let fits = |driver: &str, also: &[&str]| match request.driver.as_str() {
            "" => request
                .capabilities
                .iter()
                .any(|all| all.iter().all(|one| one == "gpu" || also.contains(&one.as_str()))),
            "nvidia.cdi" => driver == "nvidia",
            named => named == driver,
        };
        VENDORS
            .iter()
            .find(|(driver, kind, also)| fits(driver, also) && self.has_kind(kind))
            .map(|(_, kind, _)| *kind)
    }

    fn no_driver(&self, request: &DeviceRequest) -> Error {
        let lists: Vec<String> = request
            .capabilities
            .iter()
            .map(|all| format!("[{}]", all.join(" ")))
            .collect();
        let mut message = format!(
            "could not select device driver {:?} with capabilities: [{}]",
            request.driver,
            lists.join(" ")
        );
        let known = VENDORS.iter().any(|(driver, ..)| *driver == request.driver);
        if request.driver.is_empty() || known {
            let directories: Vec<String> = self
                .directories
                .iter()
                .map(|directory| directory.display().to_string())
                .collect();
            message.push_str(&format!(
                " (no CDI specification of {} is in {}; vendors' tools write them, e.g. nvidia-ctk cdi generate)",
                VENDORS.map(|(_, kind, _)| kind).join(" or "),
                directories.join(" or ")
            ));
        }
        Error::invalid(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(kinds: &[&str]) -> Registry {
        let root = tempfile::tempdir().unwrap();
        for (number, kind) in kinds.iter().enumerate() {
            let text =
                format!("cdiVersion: 0.6.0\nkind: {kind}\ndevices: [{{name: all, containerEdits: {{}}}}]\n");
            std::fs::write(root.path().join(format!("{number}.yaml")), text).unwrap();
        }
        Registry::read(&[root.path().to_owned()])
    }

    fn gpus(driver: &str, count: i64, ids: &[&str], capabilities: &[&str]) -> DeviceRequest {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        DeviceRequest {
            driver: driver.into(),
            count,
            device_ids: words(ids),
            capabilities: vec![words(capabilities)],
            ..DeviceRequest::default()
        }
    }

    #[test]
    fn gpus_are_devices_of_their_vendor() {
        let both = registry(&["amd.com/gpu", "nvidia.com/gpu"]);
        let names = |request: DeviceRequest| both.names(&request).map_err(|error| error.to_string());
        assert_eq!(
            names(gpus("", -1, &[], &["gpu"])).unwrap(),
            ["nvidia.com/gpu=all"]
        );
        assert_eq!(
            names(gpus("", 2, &[], &["gpu", "compute"])).unwrap(),
            ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
        );
        assert_eq!(
            names(gpus("", 0, &["1", "v.com/c=x"], &["gpu"])).unwrap(),
            ["nvidia.com/gpu=1", "v.com/c=x"]
        );
        assert_eq!(
            names(gpus("", -1, &[], &["gpu", "amd"])).unwrap(),
            ["amd.com/gpu=all"]
        );
        assert_eq!(
            names(gpus("amd", -1, &[], &["whatever"])).unwrap(),
            ["amd.com/gpu=all"]
        );
        assert_eq!(names(gpus("cdi", 0, &["v.com/c=x"], &[])).unwrap(), ["v.com/c=x"]);
        assert!(
            names(gpus("cdi", 1, &[], &[]))
                .unwrap_err()
                .contains("unexpected count")
        );
        assert!(
            names(gpus("", 1, &["0"], &["gpu"]))
                .unwrap_err()
                .contains("cannot set both")
        );
        assert!(
            names(gpus("", i64::MAX, &[], &["gpu"]))
                .unwrap_err()
                .contains("at most")
        );
        assert_eq!(
            registry(&["amd.com/gpu"])
                .names(&gpus("", -1, &[], &["gpu"]))
                .unwrap(),
            ["amd.com/gpu=all"]
        );
    }

    #[test]
    fn without_a_specification_it_is_dockers_error() {
        let none = registry(&[]);
        let error = none.names(&gpus("", -1, &[], &["gpu"])).unwrap_err().to_string();
        assert!(
            error.starts_with("could not select device driver \"\" with capabilities: [[gpu]] (no CDI"),
            "{error}"
        );
        let error = none
            .names(&gpus("odd", 1, &[], &["gpu", "x"]))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "could not select device driver \"odd\" with capabilities: [[gpu x]]"
        );
    }
}
