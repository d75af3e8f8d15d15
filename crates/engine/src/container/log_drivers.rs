//! Log drivers: what `--log-driver` and `--log-opt` ask for becomes what the shim does.
//!
//! json-file and local are the same file here, bounded in size; `local` only differs in the limits it has by default. syslog and
//! journald send every line there, and keep a file beside it as Docker does, so that `logs` reads all of them alike; with
//! `cache-disabled` it keeps none. The texts of what is refused are Docker's.
//!
//! Not there: `syslog-address=tcp+tls://`, and host names in addresses (a shim resolves nothing). `compress` is accepted, and
//! rotated files stay as they are. `mode` and `max-buffer-size` change nothing: no log ever waits for its reader.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use regex::Regex;
use vessel_api::{HostConfig, Map};
use vessel_runtime::shim::{LogAddress, LogConfig, LogFormat, LogTarget, SyslogStyle};

use super::record::Record;
use crate::oci_spec::validate::bytes;
use crate::{Error, Result};

/// The drivers there are.
pub const DRIVERS: [&str; 5] = ["journald", "json-file", "local", "none", "syslog"];

/// Options that choose what is said of a container beside its lines.
const ATTRIBUTES: [&str; 5] = ["labels", "labels-regex", "env", "env-regex", "tag"];
/// Options of every driver.
const COMMON: [&str; 2] = ["mode", "max-buffer-size"];
/// Options of the file that is kept beside what is sent.
const CACHE: [&str; 4] = [
    "cache-disabled",
    "cache-max-size",
    "cache-max-file",
    "cache-compress",
];

/// The journal's socket.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Where a syslog server of this host listens.
const LOCAL_SYSLOG: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];
/// Syslog's port.
const PORT: u16 = 514;
/// The facility of system daemons.
const DAEMON: u8 = 3;
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "",
    "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// Size and number of files.
type Limits = (u64, u32);
/// What there is without a word about it: a log has an end.
const BOUNDED: Limits = (20 << 20, 5);

/// Checks what is asked for, without looking at the host.
///
/// # Errors
/// Unknown drivers and options, values that make no sense.
pub fn check(host: &HostConfig) -> Result<()> {
    let options = &host.log_config.config;
    let driver = host.log_config.kind.as_str();
    if driver == "none" {
        return Ok(());
    }
    let refuse = |sentence: String| Err(Error::invalid(sentence));
    let text = |name: &str| options.get(name).map_or("", String::as_str);
    let mode = text("mode");
    if !matches!(mode, "" | "blocking" | "non-blocking") {
        return refuse(format!("logger: logging mode not supported: {mode}"));
    }
    if let Some(size) = options.get("max-buffer-size") {
        if mode != "non-blocking" {
            return refuse(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'".into(),
            );
        }
        if bytes(size).is_none() {
            return refuse(format!(
                "error parsing option max-buffer-size: invalid size: '{size}'"
            ));
        }
    }
    let own: &[&str] = match driver {
        "" | "json-file" | "local" => &["max-size", "max-file", "compress"],
        "journald" => &[],
        "syslog" => &[
            "syslog-address",
            "syslog-facility",
            "syslog-format",
            "syslog-tls-ca-cert",
            "syslog-tls-cert",
            "syslog-tls-key",
            "syslog-tls-skip-verify",
        ],
        other => return refuse(format!("logger: no log driver named '{other}' is registered")),
    };
    let cached = matches!(driver, "journald" | "syslog");
    for name in options.keys().map(String::as_str) {
        let known = own.contains(&name)
            || COMMON.contains(&name)
            || ATTRIBUTES.contains(&name)
            || (cached && CACHE.contains(&name));
        if !known {
            return refuse(match driver {
                "local" => format!("unknown log opt '{name}' for log driver local"),
                "" => format!("unknown log opt '{name}' for json-file log driver"),
                driver => format!("unknown log opt '{name}' for {driver} log driver"),
            });
        }
    }
    limits(options, if cached { "cache-" } else { "" })?;
    boolean(options, "cache-disabled")?;
    for name in ["labels-regex", "env-regex"] {
        pattern(options, name)?;
    }
    if driver == "syslog" {
        address(text("syslog-address"))?;
        facility(text("syslog-facility"))?;
        style(text("syslog-format"))?;
    }
    tag(text("tag"), &Record::default()).map(drop)
}

/// What the shim is told; none when nothing is logged.
///
/// # Errors
/// As [`check`]; a host without a journal or a local syslog server.
pub fn config(record: &Record, path: PathBuf) -> Result<Option<LogConfig>> {
    let log = &record.host.log_config;
    let options = &log.config;
    let text = |name: &str| options.get(name).map_or("", String::as_str);
    let plain = |(max_size, max_files): Limits| LogConfig {
        path: path.clone(),
        max_size,
        max_files,
        attrs: Vec::new(),
        target: None,
    };
    let target = match log.kind.as_str() {
        "none" => return Ok(None),
        "syslog" => syslog(record, options)?,
        "journald" => journald(record, options)?,
        _ => {
            let mut attrs = attributes(record, options, |name| name.to_owned())?;
            if !text("tag").is_empty() {
                attrs.push(("tag".into(), tag(text("tag"), record)?));
            }
            attrs.sort();
            return Ok(Some(LogConfig {
                attrs,
                ..plain(limits(options, "")?)
            }));
        }
    };
    let mut config = plain(limits(options, "cache-")?);
    if boolean(options, "cache-disabled")? {
        // What is sent has no file beside it.
        config.path = "/dev/null".into();
        config.max_size = 0;
    }
    config.target = Some(target);
    Ok(Some(config))
}

/// Whether a container's log can be read back.
pub(crate) fn is_readable(record: &Record) -> bool {
    let log = &record.host.log_config;
    let disabled = boolean(&log.config, "cache-disabled").unwrap_or(false);
    log.kind != "none" && !(disabled && matches!(log.kind.as_str(), "syslog" | "journald"))
}

fn limits(options: &Map<String>, prefix: &str) -> Result<Limits> {
    let (mut size, mut files) = BOUNDED;
    let name = |name: &str| format!("{prefix}{name}");
    if let Some(text) = options.get(&name("max-size")) {
        size = match text.as_str() {
            "-1" => 0,
            text => bytes(text)
                .filter(|size| *size > 0)
                .ok_or_else(|| Error::invalid(format!("invalid value for {}: {text:?}", name("max-size"))))?,
        };
    }
    if let Some(text) = options.get(&name("max-file")) {
        let number: i64 = text
            .parse()
            .map_err(|_| Error::invalid(format!("invalid value for {}: {text:?}", name("max-file"))))?;
        if number < 1 {
            return Err(Error::invalid("max-file cannot be less than 1"));
        }
        files = u32::try_from(number)
            .ok()
            .filter(|files| *files <= 1000)
            .ok_or_else(|| Error::invalid("max-file cannot be more than 1000"))?;
    }
    boolean(options, &name("compress"))?;
    Ok((size, files))
}

/// A switch, off unless told otherwise; the words are Go's.
fn boolean(options: &Map<String>, name: &str) -> Result<bool> {
    match options.get(name).map_or("", String::as_str) {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "" | "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        text => Err(Error::invalid(format!(
            "invalid boolean value for {name}: {text:?}"
        ))),
    }
}

fn pattern(options: &Map<String>, name: &str) -> Result<Option<Regex>> {
    let Some(text) = options.get(name).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let compiled = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
    compiled
        .map(Some)
        .map_err(|error| Error::invalid(format!("invalid value for {name}: {error}")))
}

/// Labels and variables of the container that options ask for.
fn attributes(
    record: &Record,
    options: &Map<String>,
    rename: fn(&str) -> String,
) -> Result<Vec<(String, String)>> {
    let environment: Map<String> = record
        .config
        .env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut chosen = Map::new();
    for (names, regex, from) in [
        ("labels", "labels-regex", &record.config.labels),
        ("env", "env-regex", &environment),
    ] {
        let listed = options.get(names).map_or("", String::as_str);
        let pattern = pattern(options, regex)?;
        for (name, value) in from {
            let wanted = listed.split(',').any(|other| other == name)
                || pattern.as_ref().is_some_and(|pattern| pattern.is_match(name));
            if wanted {
                chosen.insert(rename(name), value.clone());
            }
        }
    }
    Ok(chosen.into_iter().collect())
}

/// Fills in a tag: `{{.Name}}` and the like; what is between braces has to be one of Docker's names.
fn tag(template: &str, record: &Record) -> Result<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (field, after) = after
            .split_once("}}")
            .ok_or_else(|| Error::invalid(format!("invalid log tag {template:?}: a }}}} is missing")))?;
        rest = after;
        out.push_str(&match field.trim() {
            ".ID" => record.short_id().to_owned(),
            ".FullID" => record.id.clone(),
            ".Name" => record.name.clone(),
            ".ImageName" => record.config.image.clone(),
            ".ImageID" => {
                let id = record.image_id.trim_start_matches("sha256:");
                id.get(..12).unwrap_or(id).to_owned()
            }
            ".ImageFullID" => record.image_id.clone(),
            ".Command" => std::iter::once(&record.path)
                .chain(&record.args)
                .cloned()
                .collect::<Vec<_>>()
                .join(" "),
            ".DaemonName" => "vessel".to_owned(),
            other => {
                return Err(Error::invalid(format!(
                    "invalid log tag {template:?}: {other:?} is not known; .ID, .FullID, .Name, .ImageName, .ImageID, .ImageFullID, .Command and .DaemonName are"
                )));
            }
        });
    }
    out.push_str(rest);
    Ok(out)
}

/// The tag, the short ID unless told otherwise, as one word of printable characters: it stands in the head of messages.
fn tag_or_id(record: &Record, options: &Map<String>) -> Result<String> {
    let text = match options.get("tag").map(String::as_str) {
        None | Some("") => record.short_id().to_owned(),
        Some(template) => tag(template, record)?,
    };
    Ok(text
        .chars()
        .map(|letter| if letter.is_ascii_graphic() { letter } else { '_' })
        .collect())
}

fn syslog(record: &Record, options: &Map<String>) -> Result<LogTarget> {
    let text = |name: &str| options.get(name).map_or("", String::as_str);
    let address = match address(text("syslog-address"))? {
        Some(address) => address,
        None => LOCAL_SYSLOG
            .into_iter()
            .find(|path| Path::new(path).exists())
            .map(|path| LogAddress::Unix(path.into()))
            .ok_or_else(|| {
                Error::system(
                    "failed to initialize logging driver: no syslog server listens on this host (/dev/log): give --log-opt syslog-address=",
                )
            })?,
    };
    if let LogAddress::Unix(path) = &address
        && !path.exists()
    {
        return Err(Error::system(format!(
            "failed to initialize logging driver: {}: no such file or directory",
            path.display()
        )));
    }
    Ok(LogTarget {
        address,
        format: LogFormat::Syslog {
            style: style(text("syslog-format"))?,
            facility: facility(text("syslog-facility"))?,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            tag: tag_or_id(record, options)?,
            process: std::process::id(),
        },
    })
}

fn journald(record: &Record, options: &Map<String>) -> Result<LogTarget> {
    if !Path::new(JOURNAL).exists() {
        return Err(Error::system(
            "failed to initialize logging driver: journald is not enabled on this host",
        ));
    }
    Ok(LogTarget {
        address: LogAddress::Unix(JOURNAL.into()),
        format: LogFormat::Journal {
            fields: journal_fields(record, options)?,
        },
    })
}

/// Docker's fields.
fn journal_fields(record: &Record, options: &Map<String>) -> Result<Vec<(String, String)>> {
    let tag = tag_or_id(record, options)?;
    let mut fields = vec![
        ("CONTAINER_ID".to_owned(), record.short_id().to_owned()),
        ("CONTAINER_ID_FULL".to_owned(), record.id.clone()),
        ("CONTAINER_NAME".to_owned(), record.name.clone()),
        ("CONTAINER_TAG".to_owned(), tag.clone()),
        ("IMAGE_NAME".to_owned(), record.config.image.clone()),
        ("SYSLOG_IDENTIFIER".to_owned(), tag),
    ];
    let more = attributes(record, options, |name| {
        // The journal takes capitals, digits and underscores, and no underscore first.
        let name: String = name
            .chars()
            .map(|letter| match letter.to_ascii_uppercase() {
                letter @ ('A'..='Z' | '0'..='9') => letter,
                _ => '_',
            })
            .collect();
        name.trim_start_matches('_').to_owned()
    })?;
    fields.extend(more.into_iter().filter(|(name, _)| !name.is_empty()));
    Ok(fields)
}

fn address(text: &str) -> Result<Option<LogAddress>> {
    if text.is_empty() {
        return Ok(None);
    }
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    let refuse = |why: &str| {
        Error::invalid(format!(
            "invalid syslog-address {text:?}: {why}; it looks like udp://192.0.2.1:514"
        ))
    };
    let socket = || -> Result<SocketAddr> {
        if let Ok(address) = rest.parse() {
            return Ok(address);
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| refuse("the port is no number"))?)
            }
            _ => (rest, PORT),
        };
        let ip = match host.trim_start_matches('[').trim_end_matches(']') {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host
                .parse()
                .map_err(|_| refuse("names are not looked up here, an IP address is expected"))?,
        };
        Ok(SocketAddr::new(ip, port))
    };
    match scheme {
        "unix" | "unixgram" if rest.starts_with('/') => Ok(Some(LogAddress::Unix(rest.into()))),
        "unix" | "unixgram" => Err(refuse("the path has to be absolute")),
        "udp" => Ok(Some(LogAddress::Udp(socket()?))),
        "tcp" => Ok(Some(LogAddress::Tcp(socket()?))),
        "tcp+tls" => Err(Error::unsupported(
            "syslog over TLS is not there: send to a syslog server on this host and let it forward",
        )),
        other => Err(Error::invalid(format!("unsupported scheme: '{other}'"))),
    }
}

fn facility(text: &str) -> Result<u8> {
    if text.is_empty() {
        return Ok(DAEMON);
    }
    let number = match FACILITIES.iter().position(|name| *name == text) {
        Some(number) => u8::try_from(number).ok(),
        None => text.parse().ok().filter(|number| *number <= 23),
    };
    number.ok_or_else(|| Error::invalid("invalid syslog facility"))
}

fn style(text: &str) -> Result<SyslogStyle> {
    match text {
        "" => Ok(SyslogStyle::Local),
        "rfc3164" => Ok(SyslogStyle::Rfc3164),
        "rfc5424" => Ok(SyslogStyle::Rfc5424),
        "rfc5424micro" => Ok(SyslogStyle::Rfc5424Micro),
        _ => Err(Error::invalid("Invalid syslog format")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kind: &str, options: &[(&str, &str)]) -> HostConfig {
        let mut host = HostConfig::default();
        host.log_config.kind = kind.into();
        host.log_config.config = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        host
    }

    fn record(kind: &str, options: &[(&str, &str)]) -> Record {
        let mut record = Record {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            host: host(kind, options),
            ..Record::default()
        };
        record.config.image = "img:1".into();
        record.config.labels = [("tier", "front"), ("com.x-y", "z")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        record.config.env = vec!["MODE=prod".into(), "SECRET=s".into()];
        record
    }

    #[test]
    fn what_is_refused_is_refused_in_dockers_words() {
        for (kind, options, part) in [
            (
                "asdf",
                &[][..],
                "logger: no log driver named 'asdf' is registered",
            ),
            (
                "json-file",
                &[("x", "y")],
                "unknown log opt 'x' for json-file log driver",
            ),
            ("local", &[("x", "y")], "unknown log opt 'x' for log driver local"),
            (
                "syslog",
                &[("max-size", "1m")],
                "unknown log opt 'max-size' for syslog log driver",
            ),
            (
                "journald",
                &[("syslog-address", "")],
                "unknown log opt 'syslog-address' for journald log driver",
            ),
            (
                "syslog",
                &[("syslog-address", "ftp://h")],
                "unsupported scheme: 'ftp'",
            ),
            (
                "syslog",
                &[("syslog-facility", "nope")],
                "invalid syslog facility",
            ),
            ("syslog", &[("syslog-format", "nope")], "Invalid syslog format"),
            (
                "json-file",
                &[("mode", "x")],
                "logger: logging mode not supported: x",
            ),
            (
                "json-file",
                &[("max-buffer-size", "1m")],
                "only supported with 'mode=non-blocking'",
            ),
            (
                "json-file",
                &[("max-file", "0")],
                "max-file cannot be less than 1",
            ),
            ("json-file", &[("max-size", "x")], "invalid value for max-size"),
            (
                "syslog",
                &[("cache-disabled", "yes")],
                "invalid boolean value for cache-disabled: \"yes\"",
            ),
            (
                "json-file",
                &[("labels-regex", "(")],
                "invalid value for labels-regex",
            ),
            ("json-file", &[("tag", "{{.Nope}}")], "\".Nope\" is not known"),
            (
                "syslog",
                &[("syslog-address", "udp://log.example:514")],
                "an IP address is expected",
            ),
        ] {
            let error = check(&host(kind, options)).unwrap_err();
            assert!(
                error.message().contains(part),
                "{kind} {options:?}: {}",
                error.message()
            );
        }
        for (kind, options) in [
            (
                "",
                &[("max-size", "10m"), ("max-file", "3"), ("compress", "true")][..],
            ),
            ("none", &[("anything", "goes")]),
            (
                "local",
                &[
                    ("max-size", "-1"),
                    ("mode", "non-blocking"),
                    ("max-buffer-size", "4m"),
                ],
            ),
            (
                "syslog",
                &[("syslog-address", "tcp://[::1]:601"), ("cache-disabled", "true")],
            ),
            (
                "journald",
                &[("labels", "a,b"), ("env", "MODE"), ("tag", "{{.Name}}/{{.ID}}")],
            ),
        ] {
            check(&host(kind, options)).unwrap_or_else(|error| panic!("{kind}: {}", error.message()));
        }
    }

    #[test]
    fn attributes_are_those_asked_for() {
        let options = [
            ("labels", "tier"),
            ("env-regex", "^MO"),
            ("tag", "{{.Name}}-{{.ImageName}}"),
        ];
        let config = config(&record("json-file", &options), "/log".into())
            .unwrap()
            .unwrap();
        let attrs: Vec<(&str, &str)> = config
            .attrs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(attrs, [("MODE", "prod"), ("tag", "web-img:1"), ("tier", "front")]);
        assert_eq!((config.max_size, config.max_files), BOUNDED);
    }

    #[test]
    fn the_journals_fields_are_dockers() {
        let record = record("journald", &[("labels", "com.x-y")]);
        let fields = journal_fields(&record, &record.host.log_config.config).unwrap();
        for expected in [
            ("CONTAINER_ID", "0123456789ab"),
            ("CONTAINER_ID_FULL", "0123456789abcdef"),
            ("CONTAINER_NAME", "web"),
            ("SYSLOG_IDENTIFIER", "0123456789ab"),
            ("IMAGE_NAME", "img:1"),
            ("COM_X_Y", "z"),
        ] {
            assert!(
                fields
                    .iter()
                    .any(|(name, value)| (name.as_str(), value.as_str()) == expected),
                "{expected:?}"
            );
        }
    }

    #[test]
    fn what_is_sent_is_kept_unless_told_otherwise() {
        let syslog = |options: &[(&str, &str)]| {
            let mut all = vec![("syslog-address", "udp://127.0.0.1")];
            all.extend(options);
            let record = record("syslog", &all);
            let config = config(&record, "/log".into()).unwrap().unwrap();
            (
                config.path,
                config.max_files,
                is_readable(&record),
                config.target.unwrap(),
            )
        };
        let (path, files, readable, target) = syslog(&[("cache-max-file", "2"), ("tag", "a b")]);
        assert_eq!((path, files, readable), ("/log".into(), 2, true));
        assert_eq!(target.address, LogAddress::Udp("127.0.0.1:514".parse().unwrap()));
        assert!(matches!(
            target.format,
            LogFormat::Syslog { style: SyslogStyle::Local, facility: 3, tag, .. } if tag == "a_b"
        ));
        for yes in ["true", "1", "t", "TRUE"] {
            let (path, _, readable, _) = syslog(&[("cache-disabled", yes)]);
            assert_eq!((path, readable), ("/dev/null".into(), false), "{yes}");
        }
    }
}
