//! `RUN --mount` and `RUN --device`: comma-separated fields, some of which may have variables.

use super::ast::Run;
use super::suggest;

/// What `--mount` mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MountType {
    /// A path of a stage, an image or a context.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A secret of the client's.
    Secret,
    /// The client's SSH agent.
    Ssh,
}

impl MountType {
    const ALL: [(&'static str, Self); 5] = [
        ("bind", Self::Bind),
        ("cache", Self::Cache),
        ("tmpfs", Self::Tmpfs),
        ("secret", Self::Secret),
        ("ssh", Self::Ssh),
    ];

    /// As the option is written.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }
}

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// All.
    Shared,
    /// Each has one of its own.
    Private,
    /// One after the other.
    Locked,
}

/// `--mount`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// `type`
    pub kind: MountType,
    /// `from`; never expanded.
    pub from: Option<String>,
    /// `source`
    pub source: Option<String>,
    /// `target`
    pub target: Option<String>,
    /// `readonly`; without it, caches and memory are writable and the rest is not.
    pub read_only: bool,
    /// `size`, in bytes; zero means unlimited.
    pub size: i64,
    /// `id`
    pub id: Option<String>,
    /// `sharing`
    pub sharing: Option<Sharing>,
    /// `required`
    pub required: bool,
    /// `env`: the variable a secret is put into; an empty one stands for the secret's own name.
    pub env: Option<String>,
    /// `mode`
    pub mode: Option<u32>,
    /// `uid`
    pub uid: Option<u32>,
    /// `gid`
    pub gid: Option<u32>,
}

/// `--device`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The name, a CDI one.
    pub name: String,
    /// Whether the build fails without it.
    pub required: bool,
}

/// Expands a value.
pub type Expand<'a> = &'a mut dyn FnMut(&str) -> Result<String, String>;

impl Run {
    /// The mounts, values expanded.
    pub fn mounts(&self, expand: Expand<'_>) -> Result<Vec<Mount>, String> {
        let parse = |flag: &String| parse(flag, Some(&mut *expand));
        self.mount_flags.iter().map(parse).collect()
    }

    /// What `from` of each mount says; variables have no say in it.
    pub fn mount_sources(&self) -> impl Iterator<Item = String> {
        self.mount_flags
            .iter()
            .filter_map(|flag| parse(flag, None).ok()?.from)
    }
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
]; // fmt: skip

/// Reads `--mount`. Without variables, only `from` counts.
pub(crate) fn parse(value: &str, mut expand: Option<Expand<'_>>) -> Result<Mount, String> {
    let mut mount = Mount::default();
    let mut read_only = None;
    let fields = fields(value).map_err(|error| format!("failed to parse csv mounts: {error}"))?;
    for field in &fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        let Some(expand) = expand.as_mut() else {
            if let (Some(value), "from") = (value, key.as_str()) {
                if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                    return Err(format!(
                        "'{key}' doesn't support variable expansion, define alias stage instead"
                    ));
                }
                mount.from = Some(value.to_owned()).filter(|value| !value.is_empty());
            }
            continue;
        };
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => read_only = Some(true),
                "readwrite" | "rw" => read_only = Some(false),
                "required" => mount.required = required(&mount, &key, "true")?,
                _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
            }
            continue;
        };
        let value = expand(value)?;
        let given = || Some(value.clone()).filter(|value| !value.is_empty());
        match key.as_str() {
            "type" => mount.kind = choose(&value, &MountType::ALL, "unsupported mount type")?,
            "from" => mount.from = given(),
            "source" | "src" => mount.source = given(),
            "target" | "dst" | "destination" => mount.target = given(),
            "readonly" | "ro" => read_only = Some(boolean(&key, &value)?),
            "readwrite" | "rw" => read_only = Some(!boolean(&key, &value)?),
            "required" => mount.required = required(&mount, &key, &value)?,
            "size" if mount.kind == MountType::Tmpfs => {
                mount.size = bytes(&value).ok_or_else(|| format!("invalid value for {key}: {value}"))?;
            }
            "size" => return Err(unexpected(&key, &mount)),
            "id" => mount.id = given(),
            "sharing" => {
                let modes = [
                    ("shared", Sharing::Shared),
                    ("private", Sharing::Private),
                    ("locked", Sharing::Locked),
                ];
                mount.sharing = Some(choose(&value, &modes, "unsupported sharing value")?);
            }
            "mode" => mount.mode = Some(number(&key, &value, 8)?),
            "uid" => mount.uid = Some(number(&key, &value, 10)?),
            "gid" => mount.gid = Some(number(&key, &value, 10)?),
            "env" => mount.env = Some(value),
            _ => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(suggest::with(message, suggest::closest(&key, KEYS, true)));
            }
        }
    }
    if expand.is_some() {
        check(&mount)?;
    }
    let writable = matches!(mount.kind, MountType::Cache | MountType::Tmpfs);
    mount.read_only = read_only.unwrap_or(!writable);
    Ok(mount)
}

fn check(mount: &Mount) -> Result<(), String> {
    if matches!(mount.kind, MountType::Bind | MountType::Tmpfs) {
        for (key, given) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if given.is_some() {
                return Err(format!(
                    "{key} not allowed for {:?} type mounts",
                    mount.kind.name()
                ));
            }
        }
    }
    if mount.kind == MountType::Secret {
        let wrong = if mount.from.is_some() {
            "secret mount should not have a from"
        } else if mount.sharing.is_some() {
            "secret mount should not define sharing"
        } else if mount.source.is_none() && mount.target.is_none() && mount.id.is_none() {
            "invalid secret mount. one of source, target required"
        } else if mount.source.is_some() && mount.id.is_some() {
            "both source and id can't be set"
        } else {
            ""
        };
        if !wrong.is_empty() {
            return Err(wrong.to_owned());
        }
    }
    if mount.sharing.is_some() && mount.kind != MountType::Cache {
        return Err(format!(
            "invalid cache sharing set for {} mount",
            mount.kind.name()
        ));
    }
    Ok(())
}

fn choose<T: Copy>(value: &str, known: &[(&'static str, T)], wrong: &str) -> Result<T, String> {
    let lower = value.to_lowercase();
    if let Some((_, chosen)) = known.iter().find(|(name, _)| *name == lower) {
        return Ok(*chosen);
    }
    let names = known.iter().map(|(name, _)| *name);
    Err(suggest::with(
        format!("{wrong} {value:?}"),
        suggest::closest(value, names, true),
    ))
}

fn unexpected(key: &str, mount: &Mount) -> String {
    format!("unexpected key '{key}' for mount type '{}'", mount.kind.name())
}

fn required(mount: &Mount, key: &str, value: &str) -> Result<bool, String> {
    if !matches!(mount.kind, MountType::Secret | MountType::Ssh) {
        return Err(unexpected(key, mount));
    }
    boolean(key, value)
}

/// As Go's `strconv.ParseBool`.
fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("invalid value for {key}: {value}")),
    }
}

fn number(key: &str, value: &str, radix: u32) -> Result<u32, String> {
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits {
        u32::from_str_radix(value, radix).ok()
    } else {
        None
    };
    number.ok_or_else(|| format!("invalid value {value} for {key}"))
}

/// `64m`, `1.5GiB`: a number and a binary unit, as Docker reads them.
fn bytes(value: &str) -> Option<i64> {
    let end = value.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = value.split_at(end + 1);
    let number = number.strip_suffix(' ').unwrap_or(number);
    let number: f64 = if number.contains(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-')) {
        return None;
    } else {
        number.parse().ok()?
    };
    let unit = unit.to_lowercase();
    let exponent = match unit.as_bytes().first() {
        None => 0,
        Some(b'b') => return (unit == "b" && number >= 0.0).then_some(number as i64),
        Some(&letter) => 1 + b"kmgtp".iter().position(|&known| known == letter)?,
    };
    if !matches!(unit.get(1..), None | Some("" | "b" | "ib")) || number < 0.0 {
        return None;
    }
    Some((number * 1024f64.powi(exponent as i32)) as i64)
}

/// Reads `--device`.
pub(crate) fn device(value: &str) -> Result<Device, String> {
    let mut device = Device::default();
    let fields = fields(value).map_err(|error| format!("failed to parse csv devices: {error}"))?;
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => device.required = boolean(&key, value)?,
            ("name", Some(_)) if !device.name.is_empty() => {
                return Err(format!("device name already set to {}", device.name));
            }
            ("name", Some(value)) => device.name = value.to_owned(),
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(format!("invalid field '{field}' must be a key=value pair")),
            (_, Some(_)) => {
                let message = format!("unexpected key '{key}' in '{field}'");
                let known = suggest::closest(&key, ["name", "required"], true);
                return Err(suggest::with(message, known));
            }
        }
    }
    Ok(device)
}

/// One line of comma-separated values; a field in `"` may have commas, and `""` for a quote.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let line = line
        .strip_suffix('\n')
        .map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err("EOF".to_owned());
    }
    let mut fields = Vec::new();
    let mut rest = line;
    let wrong = |rest: &str, what: &str| {
        Err(format!(
            "parse error on line 1, column {}: {what}",
            line.len() - rest.len() + 1
        ))
    };
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            if let Some(at) = rest[..end].find('"') {
                return wrong(&rest[at..], "bare \" in non-quoted-field");
            }
            fields.push(rest[..end].to_owned());
            match rest.get(end + 1..) {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        rest = quoted;
        loop {
            let Some((part, next)) = rest.split_once('"') else {
                return wrong(rest, "extraneous or missing \" in quoted-field");
            };
            field.push_str(part);
            if let Some(next) = next.strip_prefix('"') {
                field.push('"');
                rest = next;
                continue;
            }
            fields.push(field);
            match next.strip_prefix(',') {
                Some(next) => rest = next,
                None if next.is_empty() => return Ok(fields),
                None => return wrong(next, "extraneous or missing \" in quoted-field"),
            }
            break;
        }
    }
}
