//! What the user asked for, completed by what the image says.

use vessel_api::ContainerConfig;

use crate::{Error, Result};

/// Completes a container's configuration with its image's, as Docker does: the user's word wins; environment, labels,
/// ports and volumes are united; the image's command is dropped when the user gives an entry point or a command.
pub fn merge(user: &mut ContainerConfig, image: &ContainerConfig) {
    let inherit = |own: &mut String, theirs: &String| {
        if own.is_empty() {
            own.clone_from(theirs);
        }
    };
    inherit(&mut user.user, &image.user);
    inherit(&mut user.working_dir, &image.working_dir);
    inherit(&mut user.stop_signal, &image.stop_signal);
    for port in image.exposed_ports.keys() {
        user.exposed_ports.entry(port.clone()).or_default();
    }
    for path in image.volumes.keys() {
        user.volumes.entry(path.clone()).or_default();
    }
    for (key, value) in &image.labels {
        user.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let known: std::collections::HashSet<String> = user.env.iter().map(|pair| name(pair)).collect();
    user.env.extend(
        image
            .env
            .iter()
            .filter(|pair| !known.contains(&name(pair)))
            .cloned(),
    );
    if user.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        if user.cmd.is_empty() {
            user.cmd.clone_from(&image.cmd);
        }
        if user.entrypoint.is_none() {
            user.entrypoint.clone_from(&image.entrypoint);
        }
    }
    if user.shell.is_empty() {
        user.shell.clone_from(&image.shell);
    }
    if user.stop_timeout.is_none() {
        user.stop_timeout = image.stop_timeout;
    }
    match (&mut user.healthcheck, &image.healthcheck) {
        (None, theirs) => user.healthcheck.clone_from(theirs),
        (Some(own), Some(theirs)) => {
            if own.test.is_empty() {
                own.test.clone_from(&theirs.test);
            }
            for (own, theirs) in [
                (&mut own.interval, theirs.interval),
                (&mut own.timeout, theirs.timeout),
                (&mut own.start_period, theirs.start_period),
                (&mut own.start_interval, theirs.start_interval),
                (&mut own.retries, theirs.retries),
            ] {
                if *own == 0 {
                    *own = theirs;
                }
            }
        }
        (Some(_), None) => {}
    }
    // `--entrypoint ""` takes the image's away.
    if user
        .entrypoint
        .as_deref()
        .is_some_and(|words| words.len() == 1 && words[0].is_empty())
    {
        user.entrypoint = None;
    }
}

/// Program and arguments: the entry point, then the command.
///
/// # Errors
/// When neither names a program.
pub fn command(config: &ContainerConfig) -> Result<(String, Vec<String>)> {
    let mut words = config.entrypoint.iter().flatten().chain(&config.cmd).cloned();
    match words.next() {
        Some(program) if !program.is_empty() => Ok((program, words.collect())),
        _ => Err(Error::invalid(
            "no command specified: the image has none, so name one after the image",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image() -> ContainerConfig {
        ContainerConfig {
            entrypoint: Some(words("/entry")),
            cmd: words("serve"),
            env: words("PATH=/bin A=image"),
            user: "app".into(),
            working_dir: "/srv".into(),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn entry_points_and_commands_combine_as_dockers() {
        let run = |entrypoint: Option<&str>, cmd: &str| {
            let entrypoint = entrypoint.map(|text| {
                if text.is_empty() {
                    vec![String::new()]
                } else {
                    words(text)
                }
            });
            let mut config = ContainerConfig {
                entrypoint,
                cmd: words(cmd),
                ..ContainerConfig::default()
            };
            merge(&mut config, &image());
            command(&config).map(|(program, args)| format!("{program} {}", args.join(" ")).trim().to_owned())
        };
        assert_eq!(run(None, "").unwrap(), "/entry serve");
        assert_eq!(run(None, "other").unwrap(), "/entry other");
        assert_eq!(run(Some("/mine"), "").unwrap(), "/mine");
        assert_eq!(run(Some("/mine"), "x y").unwrap(), "/mine x y");
        assert_eq!(run(Some(""), "sh -c").unwrap(), "sh -c");
        assert!(run(Some(""), "").is_err());
    }

    #[test]
    fn the_users_word_wins() {
        let mut config = ContainerConfig {
            env: words("A=user B"),
            user: "1".into(),
            ..ContainerConfig::default()
        };
        merge(&mut config, &image());
        assert_eq!(config.env, words("A=user B PATH=/bin"));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1", "/srv"));
    }
}
