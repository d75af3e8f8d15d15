//! `--security-opt`, capabilities, and which system call filter goes with them.

use vessel_api::HostConfig;
use vessel_runtime::capabilities::{self, CapSet};
use vessel_runtime::seccomp::docker::{Host, Profile};
use vessel_runtime::spec::Seccomp;

use crate::{Error, Result};

/// Which filter a container gets.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Filter {
    /// The default profile.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// The user's.
    Custom(Box<Seccomp>),
}

/// What `--security-opt`, `--cap-add`, `--cap-drop` and `--privileged` come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Security {
    /// The bounding set.
    pub capabilities: CapSet,
    /// The filter.
    pub filter: Filter,
    /// Whether programs may gain privileges by being executed.
    pub no_new_privileges: bool,
    /// Whether the kernel's paths are neither hidden nor read-only.
    pub system_paths_unconfined: bool,
    /// Whether the container may write its cgroups.
    pub writable_cgroups: bool,
    /// An AppArmor profile by name.
    pub apparmor: String,
}

/// Reads them; `available` is what this engine itself may do.
///
/// # Errors
/// Options, capabilities and profiles that make no sense.
pub fn security(host: &HostConfig, available: CapSet) -> Result<Security> {
    let bounding = capabilities::resolve(&host.cap_add, &host.cap_drop, host.privileged, available)
        .map_err(|error| crate::Error::from(error).as_invalid())?;
    let mut security = Security {
        capabilities: bounding,
        filter: if host.privileged {
            Filter::Unconfined
        } else {
            Filter::Default
        },
        no_new_privileges: false,
        system_paths_unconfined: host.privileged,
        writable_cgroups: host.privileged,
        apparmor: String::new(),
    };
    for option in &host.security_opt {
        let truth = |value: &str| match value {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(Error::invalid(format!(
                "invalid --security-opt {option:?}: true or false expected"
            ))),
        };
        let (key, value) = match option.split_once(['=', ':']) {
            Some(pair) => pair,
            None if matches!(option.as_str(), "no-new-privileges" | "writable-cgroups") => {
                (option.as_str(), "true")
            }
            None if option == "disable" => ("label", "disable"),
            None => {
                return Err(Error::invalid(format!(
                    "invalid --security-opt {option:?}: name=value expected"
                )));
            }
        };
        match key {
            "seccomp" => security.filter = filter(value, bounding)?,
            "no-new-privileges" => security.no_new_privileges = truth(value)?,
            "writable-cgroups" => security.writable_cgroups = truth(value)?,
            "apparmor" => value.clone_into(&mut security.apparmor),
            // SELinux: accepted, since `label=disable` is common; there is nothing to label without SELinux.
            "label" => {}
            "systempaths" if value == "unconfined" => security.system_paths_unconfined = true,
            _ => return Err(Error::invalid(format!("invalid --security-opt 2: {option:?}"))),
        }
    }
    if security.apparmor == "unconfined" {
        security.apparmor.clear();
    }
    Ok(security)
}

fn filter(value: &str, bounding: CapSet) -> Result<Filter> {
    match value {
        "unconfined" => Ok(Filter::Unconfined),
        "builtin" | "default" | "" => Ok(Filter::Default),
        json if json.trim_start().starts_with('{') => {
            let profile = Profile::parse(json).map_err(|error| crate::Error::from(error).as_invalid())?;
            Ok(match profile.resolve(&Host::current(bounding)) {
                Some(profile) => Filter::Custom(Box::new(profile)),
                None => Filter::Unconfined,
            })
        }
        other => Err(Error::invalid(format!(
            "invalid seccomp profile {other:?}: unconfined, builtin, or the profile's JSON expected (the command line reads files)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Result<Security> {
        let host = HostConfig {
            security_opt: options.iter().map(|o| (*o).to_owned()).collect(),
            ..HostConfig::default()
        };
        security(&host, CapSet::KNOWN)
    }

    #[test]
    fn options_are_read_in_all_their_spellings() {
        assert!(of(&["no-new-privileges"]).unwrap().no_new_privileges);
        assert!(of(&["no-new-privileges:true"]).unwrap().no_new_privileges);
        assert!(!of(&["no-new-privileges=false"]).unwrap().no_new_privileges);
        assert_eq!(of(&["seccomp=unconfined"]).unwrap().filter, Filter::Unconfined);
        assert_eq!(
            of(&["seccomp:unconfined", "apparmor=unconfined", "label=disable"])
                .unwrap()
                .apparmor,
            ""
        );
        let custom = of(&[r#"seccomp={"defaultAction":"SCMP_ACT_ALLOW"}"#])
            .unwrap()
            .filter;
        assert!(matches!(custom, Filter::Custom(_)));
        for bad in [
            "nonsense",
            "x=y",
            "no-new-privileges=maybe",
            "seccomp=/a/file",
            "seccomp={\"defaultAction\":7}",
        ] {
            assert_eq!(of(&[bad]).unwrap_err().kind(), crate::ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn privileged_is_unconfined_unless_told_otherwise() {
        let mut host = HostConfig {
            privileged: true,
            ..HostConfig::default()
        };
        assert_eq!(security(&host, CapSet::KNOWN).unwrap().filter, Filter::Unconfined);
        host.security_opt = vec!["seccomp=builtin".into()];
        assert_eq!(security(&host, CapSet::KNOWN).unwrap().filter, Filter::Default);
    }
}
