//! The instructions that `import --change` and `commit --change` apply to an image's configuration: those of a
//! Dockerfile that make no layer, read as the builder reads them. Variables are those of the configuration.

use vessel_build::dockerfile::{Command, CommandLine, Healthcheck, KeyValue, Lexer, parse_trigger};
use vessel_image::{ContainerConfig, Empty};

use crate::{Error, Result, signal};

const ALLOWED: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME and WORKDIR are";

/// Changes a configuration, instruction after instruction.
pub(super) fn apply(config: &mut ContainerConfig, changes: &[String]) -> Result<()> {
    let mut command_set = false;
    for change in changes {
        let instruction = parse_trigger(change).map_err(|error| Error::invalid(error.message))?;
        let expand = Expand { config };
        match &instruction.command {
            Command::Cmd(line) => {
                let words = words(config, line);
                config.cmd = Some(words).filter(|words| !words.is_empty());
                command_set = true;
            }
            Command::Entrypoint(line) => {
                let words = words(config, line);
                config.entrypoint = Some(words).filter(|words| !words.is_empty());
                // The command was made for the entry point that goes.
                if !command_set {
                    config.cmd = None;
                }
            }
            Command::Env(pairs) => {
                let pairs = expand.pairs(pairs)?;
                let env = config.env.get_or_insert_default();
                for (key, value) in pairs {
                    let line = format!("{key}={value}");
                    let same = |known: &String| known.split('=').next() == Some(&key);
                    match env.iter().position(same) {
                        Some(at) => env[at] = line,
                        None => env.push(line),
                    }
                }
            }
            Command::Label(pairs) => {
                let pairs = expand.pairs(pairs)?;
                config.labels.get_or_insert_default().extend(pairs);
            }
            Command::Expose(ports) => {
                let ports = ports.iter().map(|port| expand.words(port));
                let ports = ports.collect::<Result<Vec<_>>>()?.concat();
                for port in ports {
                    let all = config.exposed_ports.get_or_insert_default();
                    all.extend(exposed(&port)?.map(|port| (port, Empty {})));
                }
            }
            Command::Volume(paths) => {
                for path in paths {
                    let path = Expand { config }.word(path)?;
                    if path.trim().is_empty() {
                        return Err(Error::invalid("VOLUME specified can not be an empty string"));
                    }
                    config.volumes.get_or_insert_default().insert(path, Empty {});
                }
            }
            Command::User(user) => config.user = Some(expand.word(user)?),
            Command::StopSignal(name) => {
                let name = expand.word(name)?;
                signal::parse(&name)?;
                config.stop_signal = Some(name);
            }
            Command::Workdir(path) => {
                let path = expand.word(path)?;
                config.working_dir = Some(directory(config.working_dir.as_deref(), &path));
            }
            Command::Onbuild(trigger) => {
                config.on_build.get_or_insert_default().push(trigger.clone());
            }
            Command::Shell(shell) => config.shell = Some(shell.clone()),
            Command::Healthcheck(check) => config.healthcheck = Some(healthcheck(check)),
            other => {
                return Err(Error::invalid(format!(
                    "{} is not a valid change command: {ALLOWED}",
                    other.name()
                )));
            }
        }
    }
    Ok(())
}

/// Expands the configuration's own variables.
struct Expand<'a> {
    config: &'a ContainerConfig,
}

impl Expand<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        let env = self.config.env.iter().flatten();
        let mut pairs = env.filter_map(|line| line.split_once('='));
        pairs
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.to_owned())
    }

    fn word(&self, word: &str) -> Result<String> {
        let expanded = Lexer::new('\\').word(word, &mut |name| self.lookup(name));
        expanded
            .map(|expanded| expanded.text)
            .map_err(|error| Error::invalid(error.to_string()))
    }

    fn words(&self, text: &str) -> Result<Vec<String>> {
        Lexer::new('\\')
            .words(text, &mut |name| self.lookup(name))
            .map_err(|error| Error::invalid(error.to_string()))
    }

    fn pairs(&self, pairs: &[KeyValue]) -> Result<Vec<(String, String)>> {
        let expanded = pairs
            .iter()
            .map(|pair| Ok((self.word(&pair.key)?, self.word(&pair.value)?)));
        expanded.collect()
    }
}

/// A command's words: of the shell form, with the shell in front.
fn words(config: &ContainerConfig, line: &CommandLine) -> Vec<String> {
    if line.exec || line.words.is_empty() {
        return line.words.clone();
    }
    let shell = config.shell.clone().filter(|shell| !shell.is_empty());
    let mut out = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
    out.extend(line.words.iter().cloned());
    out
}

/// A path as a process would see it that is in `from`.
fn directory(from: Option<&str>, path: &str) -> String {
    let from = from.filter(|_| !path.starts_with('/')).unwrap_or_default();
    let mut parts: Vec<&str> = Vec::new();
    for part in from.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `80`, `53/udp`, `8000-8010/tcp` as the ports they mean.
fn exposed(text: &str) -> Result<impl Iterator<Item = String>> {
    let bad = || {
        Error::invalid(format!(
            "invalid containerPort: {text}: 80, 80/tcp, 8000-8010/udp are some"
        ))
    };
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|&number| number > 0);
    let (first, last) = (number(first).ok_or_else(bad)?, number(last).ok_or_else(bad)?);
    if first > last || !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(bad());
    }
    Ok((first..=last).map(move |port| format!("{port}/{protocol}")))
}

fn healthcheck(check: &Healthcheck) -> vessel_image::Healthcheck {
    let (line, options) = match check {
        Healthcheck::None => {
            return vessel_image::Healthcheck {
                test: Some(vec!["NONE".to_owned()]),
                ..vessel_image::Healthcheck::default()
            };
        }
        Healthcheck::Command { line, options } => (line, options),
    };
    let kind = if line.exec { "CMD" } else { "CMD-SHELL" };
    let nanos = |length: std::time::Duration| {
        Some(i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)).filter(|&nanos| nanos != 0)
    };
    vessel_image::Healthcheck {
        test: Some(
            std::iter::once(kind.to_owned())
                .chain(line.words.iter().cloned())
                .collect(),
        ),
        interval: nanos(options.interval),
        timeout: nanos(options.timeout),
        start_period: nanos(options.start_period),
        start_interval: nanos(options.start_interval),
        retries: Some(i64::from(options.retries)).filter(|&retries| retries != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn on(mut config: ContainerConfig, changes: &[&str]) -> Result<ContainerConfig> {
        let changes: Vec<String> = changes.iter().map(|&change| change.to_owned()).collect();
        apply(&mut config, &changes).map(|()| config)
    }

    fn applied(changes: &[&str]) -> ContainerConfig {
        on(ContainerConfig::default(), changes).unwrap()
    }

    #[test]
    fn every_instruction() {
        let config = applied(&[
            "ENTRYPOINT [\"/bin/x\", \"-y\"]",
            "cmd echo hi",
            "ENV A=1 B=\"two words\" C=a\\ b",
            "ENV A 2 and more",
            "ENV D=${B}-$C E=$D",
            "LABEL k=v \"q u\"='x y'",
            "EXPOSE 80 53/udp 90-91",
            "VOLUME /a /b",
            "VOLUME [\"/c d\"]",
            "USER 1:2",
            "WORKDIR /srv",
            "WORKDIR app/../$A",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN $x",
            "SHELL [\"/bin/bash\"]",
            "HEALTHCHECK --interval=30s --retries=3 CMD curl x",
        ]);
        assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/x", "-y"]);
        assert_eq!(
            config.env.unwrap(),
            ["A=2 and more", "B=two words", "C=a b", "D=two words-a b", "E="]
        );
        assert_eq!(
            config.labels.unwrap().into_iter().collect::<Vec<_>>(),
            [
                ("k".to_owned(), "v".to_owned()),
                ("q u".to_owned(), "x y".to_owned())
            ]
        );
        assert_eq!(
            config.exposed_ports.unwrap().into_keys().collect::<Vec<_>>(),
            ["53/udp", "80/tcp", "90/tcp", "91/tcp"]
        );
        assert_eq!(
            config.volumes.unwrap().into_keys().collect::<Vec<_>>(),
            ["/a", "/b", "/c d"]
        );
        assert_eq!(config.working_dir.unwrap(), "/srv/2 and more");
        assert_eq!(config.on_build.unwrap(), ["RUN $x"]);
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (Some(30_000_000_000), Some(3)));
        assert_eq!(check.test.unwrap(), ["CMD-SHELL", "curl x"]);
    }

    #[test]
    fn a_new_entry_point_drops_the_command_it_was_not_made_with() {
        let inherited = ContainerConfig {
            cmd: Some(vec!["serve".to_owned()]),
            shell: Some(vec!["/bin/bash".to_owned(), "-c".to_owned()]),
            ..ContainerConfig::default()
        };
        let config = on(inherited.clone(), &["ENTRYPOINT run it"]).unwrap();
        assert_eq!(config.cmd, None);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/bash", "-c", "run it"]);
        let config = on(inherited, &["CMD [\"x\"]", "ENTRYPOINT [\"y\"]"]).unwrap();
        assert_eq!(config.cmd.unwrap(), ["x"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "RUN make",
            "FROM x",
            "COPY a b",
            "ENV A",
            "ENV A=1 B",
            "EXPOSE 0",
            "EXPOSE 9-8",
            "EXPOSE 80/icmp",
            "SHELL /bin/sh",
            "STOPSIGNAL NOPE",
            "HEALTHCHECK --nope=1 CMD x",
            "HEALTHCHECK --interval=x CMD y",
            "USER a\nRUN b",
        ] {
            assert!(on(ContainerConfig::default(), &[bad]).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(CMD|ENV|LABEL|HEALTHCHECK|EXPOSE|VOLUME|WORKDIR) \\PC{0,60}") {
            let _ = on(ContainerConfig::default(), &[&text]);
        }
    }
}
