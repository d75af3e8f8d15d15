//! The instructions that `import --change` applies to an image's configuration: those of a Dockerfile that make no
//! layer.

use vessel_image::{ContainerConfig, Empty, Healthcheck};

use crate::{Error, Result};

/// Longer instructions have no honest use.
const MAX_LENGTH: usize = 64 * 1024;

/// Applies one instruction: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `HEALTHCHECK`, `LABEL`, `ONBUILD`, `SHELL`,
/// `STOPSIGNAL`, `USER`, `VOLUME` or `WORKDIR`.
pub(super) fn apply(config: &mut ContainerConfig, instruction: &str) -> Result<()> {
    let text = instruction.trim();
    if text.len() > MAX_LENGTH {
        return Err(Error::invalid(format!(
            "a change is longer than {MAX_LENGTH} bytes"
        )));
    }
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let name = name.to_ascii_uppercase();
    if rest.is_empty() {
        return Err(Error::invalid(format!("the change {name:?} has no value")));
    }
    match name.as_str() {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)),
        "SHELL" => {
            let shell = json_list(rest)
                .ok_or_else(|| Error::invalid("SHELL requires the arguments to be in JSON form"))?;
            config.shell = Some(shell);
        }
        "ENV" => {
            let env = config.env.get_or_insert_default();
            for (key, value) in pairs("ENV", rest)? {
                env.retain(|line| line.split_once('=').map_or(line.as_str(), |(known, _)| known) != key);
                env.push(format!("{key}={value}"));
            }
        }
        "LABEL" => config
            .labels
            .get_or_insert_default()
            .extend(pairs("LABEL", rest)?),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                config
                    .exposed_ports
                    .get_or_insert_default()
                    .insert(exposed(port)?, Empty {});
            }
        }
        "VOLUME" => {
            for path in
                json_list(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect())
            {
                config.volumes.get_or_insert_default().insert(path, Empty {});
            }
        }
        "USER" => config.user = Some(rest.to_owned()),
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        "WORKDIR" => {
            let before = config.working_dir.as_deref().unwrap_or("/");
            config.working_dir = Some(match rest.starts_with('/') {
                true => rest.to_owned(),
                false => format!("{}/{rest}", before.trim_end_matches('/')),
            });
        }
        "ONBUILD" => config.on_build.get_or_insert_default().push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest)?),
        _ => {
            return Err(Error::invalid(format!(
                "{name} is not a valid change command: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME and WORKDIR are"
            )));
        }
    }
    Ok(())
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[')
        .then(|| serde_json::from_str(text).ok())
        .flatten()
}

/// A JSON list, or a line for the shell.
fn command(text: &str) -> Vec<String> {
    json_list(text).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

fn exposed(port: &str) -> Result<String> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    match number.parse::<u16>() {
        Ok(number) if number > 0 && ["tcp", "udp", "sctp"].contains(&protocol.as_str()) => {
            Ok(format!("{number}/{protocol}"))
        }
        _ => Err(Error::invalid(format!(
            "invalid containerPort: {port}: 80, 80/tcp, 53/udp are some"
        ))),
    }
}

/// `key=value …` with quotes and backslashes, or `key the rest`.
fn pairs(name: &str, text: &str) -> Result<Vec<(String, String)>> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        return match text.split_once(char::is_whitespace) {
            Some((key, value)) => Ok(vec![(key.to_owned(), value.trim().to_owned())]),
            None => Err(Error::invalid(format!(
                "{name} must have two arguments: {text:?} has one"
            ))),
        };
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(Error::invalid(format!(
                "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
            ))),
        })
        .collect()
}

/// Splits at blanks outside quotes.
fn words(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut begun) = (Vec::new(), String::new(), false);
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => {
                word.extend(characters.next());
                begun = true;
            }
            (mark @ ('"' | '\''), None) => {
                quote = Some(mark);
                begun = true;
            }
            (mark, Some(open)) if mark == open => quote = None,
            (blank, None) if blank.is_whitespace() => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (other, _) => {
                word.push(other);
                begun = true;
            }
        }
    }
    if quote.is_some() {
        return Err(Error::invalid(format!("a quote is not closed in {text:?}")));
    }
    if begun {
        words.push(word);
    }
    Ok(words)
}

/// `NONE`, or options and `CMD`.
fn healthcheck(text: &str) -> Result<Healthcheck> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).unwrap_or((option, ""));
        rest = after.trim_start();
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let bad = || {
            Error::invalid(format!(
                "HEALTHCHECK: --{option} is not valid: --interval=30s, --timeout=5s, --start-period=1m, --start-interval=5s and --retries=3 are"
            ))
        };
        let slot = match key {
            "interval" => &mut check.interval,
            "timeout" => &mut check.timeout,
            "start-period" => &mut check.start_period,
            "start-interval" => &mut check.start_interval,
            "retries" => {
                check.retries = Some(
                    value
                        .parse::<i64>()
                        .ok()
                        .filter(|&retries| retries >= 0)
                        .ok_or_else(bad)?,
                );
                continue;
            }
            _ => return Err(bad()),
        };
        let length = value.parse::<jiff::SignedDuration>().map_err(|_| bad())?;
        *slot = Some(
            i64::try_from(length.as_nanos())
                .ok()
                .filter(|&nanos| nanos >= 0)
                .ok_or_else(bad)?,
        );
    }
    let (kind, command_text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    check.test = Some(match (kind.to_ascii_uppercase().as_str(), command_text.trim()) {
        ("NONE", "") => vec!["NONE".to_owned()],
        ("CMD", command) if !command.is_empty() => match json_list(command) {
            Some(list) => std::iter::once("CMD".to_owned()).chain(list).collect(),
            None => vec!["CMD-SHELL".to_owned(), command.to_owned()],
        },
        _ => {
            return Err(Error::invalid(
                "HEALTHCHECK: NONE or CMD and a command are expected",
            ));
        }
    });
    Ok(check)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applied(changes: &[&str]) -> ContainerConfig {
        let mut config = ContainerConfig::default();
        for change in changes {
            apply(&mut config, change).unwrap();
        }
        config
    }

    #[test]
    fn every_instruction() {
        let config = applied(&[
            "cmd echo hi",
            "ENTRYPOINT [\"/bin/x\", \"-y\"]",
            "ENV A=1 B=\"two words\" C=a\\ b",
            "ENV A 2 and more",
            "LABEL k=v \"q u\"='x y'",
            "EXPOSE 80 53/udp",
            "VOLUME /a /b",
            "VOLUME [\"/c d\"]",
            "USER 1:2",
            "WORKDIR /srv",
            "WORKDIR app",
            "STOPSIGNAL SIGINT",
            "ONBUILD RUN x",
            "SHELL [\"/bin/bash\"]",
            "HEALTHCHECK --interval=30s --retries=3 CMD curl x",
        ]);
        assert_eq!(config.cmd.unwrap(), ["/bin/sh", "-c", "echo hi"]);
        assert_eq!(config.entrypoint.unwrap(), ["/bin/x", "-y"]);
        assert_eq!(config.env.unwrap(), ["B=two words", "C=a b", "A=2 and more"]);
        assert_eq!(
            config.labels.unwrap().into_iter().collect::<Vec<_>>(),
            [
                ("k".to_owned(), "v".to_owned()),
                ("q u".to_owned(), "x y".to_owned())
            ]
        );
        assert_eq!(
            config.exposed_ports.unwrap().into_keys().collect::<Vec<_>>(),
            ["53/udp", "80/tcp"]
        );
        assert_eq!(
            config.volumes.unwrap().into_keys().collect::<Vec<_>>(),
            ["/a", "/b", "/c d"]
        );
        assert_eq!(config.working_dir.unwrap(), "/srv/app");
        let check = config.healthcheck.unwrap();
        assert_eq!((check.interval, check.retries), (Some(30_000_000_000), Some(3)));
        assert_eq!(check.test.unwrap(), ["CMD-SHELL", "curl x"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "CMD",
            "RUN make",
            "ENV A",
            "ENV A=1 B",
            "ENV A='1",
            "EXPOSE 0",
            "EXPOSE 80/icmp",
            "SHELL /bin/sh",
            "HEALTHCHECK --nope=1 CMD x",
            "HEALTHCHECK CMD",
            "HEALTHCHECK --interval=x CMD y",
        ] {
            assert!(apply(&mut ContainerConfig::default(), bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "(CMD|ENV|LABEL|HEALTHCHECK|EXPOSE|VOLUME) \\PC{0,60}") {
            let _ = apply(&mut ContainerConfig::default(), &text);
        }
    }
}
