//! Platforms as `FROM --platform` writes them: `linux/amd64`, `linux`, `arm64`, `linux/arm/v7`.

const SYSTEMS: [&str; 17] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
]; // fmt: skip

const ARCHITECTURES: [&str; 30] = [
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "loong64",
    "mips",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "mipsle",
    "ppc",
    "ppc64",
    "ppc64le",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
    "i386",
    "x86_64",
    "x86-64",
    "aarch64",
    "armhf",
    "armel",
]; // fmt: skip

fn architecture(name: &str) -> &str {
    match name {
        "i386" => "386",
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "armhf" | "armel" => "arm",
        name => name,
    }
}

/// The system and the architecture of a platform, normalized; none if it is not one.
pub(crate) fn parse(text: &str) -> Option<(String, String)> {
    let text = text.to_lowercase();
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    let mut parts = text.split('/');
    let first = parts.next()?;
    let system = first.split('(').next()?;
    let rest: Vec<&str> = parts.collect();
    if !part(system) || !rest.iter().copied().all(part) || rest.len() > 2 {
        return None;
    }
    let system = if system == "macos" { "darwin" } else { system };
    let host = architecture(std::env::consts::ARCH);
    match rest.first() {
        Some(name) => Some((system.to_owned(), architecture(name).to_owned())),
        None if SYSTEMS.contains(&system) => Some((system.to_owned(), host.to_owned())),
        None if ARCHITECTURES.contains(&system) => {
            Some(("linux".to_owned(), architecture(system).to_owned()))
        }
        None => None,
    }
}
